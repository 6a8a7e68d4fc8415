//! Tests of the worker with tiny buildpacks: selection, `bin/compile`, `bin/release`, and phase scripts.

use std::{
    os::unix::{ffi::OsStringExt as _, fs::PermissionsExt},
    path::PathBuf,
};

use tempfile::TempDir;

use super::*;
use crate::{
    buildpack::{context::STACK, script_tests::serve},
    config::BuildpackRef,
    model::BuildpackUse,
};

/// A project, a cache and tiny buildpacks in a temporary directory.
struct World {
    temp: TempDir,
}

impl World {
    fn new() -> World {
        let temp = tempfile::tempdir().unwrap();
        for directory in ["app", "cache", "builtin", "operator"] {
            fs::create_dir(temp.path().join(directory)).unwrap();
        }
        World { temp }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> &World {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn script(&self, name: &str, text: &str) -> &World {
        self.file(name, &format!("#!/bin/sh\n{text}\n"));
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// Writes a buildpack that accepts every project. `compile` is the text of its script `bin/compile`.
    fn pack(&self, directory: &str, compile: &str) -> &World {
        self.script(&format!("{directory}/bin/detect"), "echo Fake").script(&format!("{directory}/bin/compile"), compile)
    }

    fn run(&self, job: BuildJob) -> (BuildReport, String) {
        let paths = BuildPaths {
            profile: None,
            app: self.path("app"),
            cache: self.path("cache"),
            buildpacks: self.path("builtin"),
            operator: self.path("operator"),
            path: "/usr/local/bin:/usr/bin:/bin".into(),
            home: self.path("app"),
        };
        let output = self.path("output");
        let report = BuildWorker::new(job, paths, fs::File::create(&output).unwrap()).work();
        (report, fs::read_to_string(output).unwrap())
    }
}

fn job(steps: &[BuildStep], buildpacks: &[&str]) -> BuildJob {
    BuildJob {
        steps: steps.to_vec(),
        buildpacks: buildpacks.iter().map(|name| name.parse().unwrap()).collect(),
        configuration: vec![
            ("GREETING".into(), "good 'morning'\n$(x)".into()),
            ("BYTES".into(), std::ffi::OsString::from_vec(vec![1, 0xff, b'\n'])),
            ("LARDER_RELEASE".into(), "forged".into()),
            ("../x".into(), "y".into()),
        ],
        environment: vec![("SOURCE_VERSION".into(), "c0ffee".into())],
        variables: String::from("{\"a\":1}"),
        memory: None,
        deploy_key: None,
    }
}

const ALL: [BuildStep; 3] = [BuildStep::Detect, BuildStep::Compile, BuildStep::Release];

#[test]
fn first_accepting_builtin_pack_builds() {
    let world = World::new();
    world.script("builtin/ruby/bin/detect", "exit 1").script("builtin/ruby/bin/compile", "exit 9");
    world.pack("builtin/python", "echo built by \"$0\" >made; echo '-----> Hello'");
    world.script("builtin/python/bin/release", "printf 'default_process_types:\\n  web: run it\\n'");
    world.pack("builtin/node", "exit 9");
    for sign in ["Gemfile", "requirements.txt", "package.json"] {
        std::fs::write(world.path("app").join(sign), "").unwrap();
    }
    // The detect script of go does not run, because there is no go.mod.
    world.script("builtin/go/bin/detect", "exit 0").script("builtin/go/bin/compile", "exit 9");
    let (report, output) = world.run(job(&ALL, &[]));
    assert_eq!(report.failure, None);
    assert_eq!(output, "-----> Fake app detected\n-----> Hello\n");
    assert_eq!(report.buildpacks, [BuildpackUse { name: "python".into(), version: env!("CARGO_PKG_VERSION").into() }]);
    assert_eq!(report.processes, [("web".parse().unwrap(), String::from("run it"))]);
    assert!(world.path("app/made").is_file());
    assert_eq!(report.steps.iter().map(|done| done.step).collect::<Vec<_>>(), ALL);
}

#[test]
fn operator_pack_replaces_builtin_pack() {
    let world = World::new();
    world.pack("builtin/node", "echo larder").pack("operator/node", "echo operator");
    let (report, output) = world.run(job(&ALL, &["node"]));
    assert!(output.contains("operator\n") && !output.contains("larder\n"), "{output}");
    assert_eq!(report.buildpacks[0].version, "operator");
}

#[test]
fn unrecognised_project_gets_hint() {
    let world = World::new();
    world.script("builtin/node/bin/detect", "exit 1");
    let failure = world.run(job(&ALL, &[])).0.failure.unwrap();
    assert_eq!((failure.step, failure.why.as_str()), (BuildStep::Detect, "the project is empty"));
    world.file("app/x", "");
    let failure = world.run(job(&ALL, &[])).0.failure.unwrap();
    assert_eq!(failure.why, "no buildpack accepts the project");
    assert!(failure.hint.contains("Procfile"));
}

#[test]
fn configuration_variables_are_files_in_env_dir() {
    let world = World::new();
    let compile = "ls \"$3\"; cat \"$3/GREETING\"; echo; od -An -tx1 \"$3/BYTES\"; echo \"$SOURCE_VERSION $STACK ${GREETING-none} ${LARDER_RELEASE-none}\"; echo \"$HOME $1\"";
    world.pack("builtin/node", compile);
    let (report, output) = world.run(job(&ALL, &["node"]));
    assert_eq!(report.failure, None);
    let app = world.path("app");
    let app = app.display();
    assert!(
        output.ends_with(&format!("BYTES\nGREETING\ngood 'morning'\n$(x)\n 01 ff 0a\nc0ffee {STACK} none none\n{app} {app}\n")),
        "{output}"
    );
}

#[test]
fn several_packs_run_in_order_with_exports() {
    let world = World::new();
    // The first buildpack writes `export` into its own directory, like Heroku's buildpacks. The second buildpack writes the file
    // `$LARDER_EXPORT`.
    world.pack("app/packs/one", "echo 'export ONE=\"1 $(echo x)\"' >\"$(dirname \"$0\")/../export\"; touch \"$2/mine\"");
    world.pack("builtin/node", "echo \"saw $ONE\"; echo 'export TWO=2' >\"$LARDER_EXPORT\"; ls \"$2\"");
    world.pack("app/packs/three", "echo \"saw $ONE $TWO\"; printf '%s|' \"$@\"");
    for (pack, yaml) in [("builtin/node", "web: a\\n  worker: w"), ("app/packs/three", "web: b")] {
        world.script(&format!("{pack}/bin/release"), &format!("printf 'default_process_types:\\n  {yaml}\\n'"));
    }
    let (report, output) = world.run(job(&ALL, &["./packs/one", "node", "./packs/three"]));
    assert_eq!(report.failure, None);
    assert!(output.contains("saw 1 x\n") && output.contains("saw 1 x 2\n"), "{output}");
    assert!(!output.contains("mine"), "each buildpack has its own cache");
    assert!(!world.path("app/packs/one/export").exists(), "nothing is written to the project");
    let processes: Vec<String> = report.processes.iter().map(|(name, command)| format!("{name}={command}")).collect();
    assert_eq!(processes, ["worker=w", "web=b"]);
    assert_eq!(
        report.buildpacks.iter().map(|used| used.name.as_str()).collect::<Vec<_>>(),
        ["./packs/one", "node", "./packs/three"]
    );
}

#[test]
fn named_pack_gets_larder_named() {
    let world = World::new();
    world.script("builtin/node/bin/detect", "echo \"Node ${LARDER_NAMED-unnamed}\"").script("builtin/node/bin/compile", "true");
    world.file("app/package.json", "{}");
    assert!(world.run(job(&ALL, &[])).1.contains("Node unnamed app detected"));
    assert!(world.run(job(&ALL, &["node"])).1.contains("Node 1 app detected"));
}

#[test]
fn failing_compile_ends_build_with_its_reason() {
    let world = World::new();
    world.pack("builtin/node", "echo lots; echo ' !     npm exited 1' >&2; exit 7").pack("builtin/ruby", "touch after");
    let (report, output) = world.run(job(&ALL, &["node", "ruby"]));
    let failure = report.failure.unwrap();
    assert_eq!(failure.what, "buildpack node: bin/compile");
    assert_eq!((failure.why.as_str(), failure.code, failure.blame), ("npm exited 1", Some(7), Blame::Pusher));
    assert_eq!(failure.tail, ["-----> Buildpack node", "lots", " !     npm exited 1"][1..]);
    assert!(output.contains("lots"));
    assert!(!world.path("app/after").exists());
    assert_eq!(report.steps.len(), 1);

    world.script("builtin/node/bin/compile", "echo something; kill -9 $$");
    let failure = world.run(job(&ALL, &["node"])).0.failure.unwrap();
    assert_eq!((failure.why.as_str(), failure.code), ("buildpack node was killed by signal 9: something", None));
}

#[test]
fn incomplete_pack_is_refused_with_its_defect() {
    let world = World::new();
    world.pack("app/pack", "true").pack("builtin/node", "true");
    let why = |names: &[&str]| world.run(job(&ALL, names)).0.failure.unwrap().why;
    assert_eq!(why(&["nodd"]), "there is no buildpack nodd");
    assert_eq!(why(&["./nothing"]), "there is no buildpack in the directory nothing of the project");

    fs::set_permissions(world.path("app/pack/bin/compile"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(why(&["./pack"]), "bin/compile of buildpack ./pack is not executable");
    fs::remove_file(world.path("app/pack/bin/compile")).unwrap();
    assert_eq!(why(&["./pack"]), "buildpack ./pack has no bin/compile");

    // `bin/detect` and `bin/release` are optional.
    world.script("app/pack/bin/compile", "echo fine");
    fs::remove_file(world.path("app/pack/bin/detect")).unwrap();
    assert_eq!(world.run(job(&ALL, &["./pack"])).0.failure, None);

    world.script("app/pack/bin/detect", "exit 1");
    assert_eq!(why(&["./pack"]), "buildpack ./pack does not accept the project");

    world.file("app/pack/bin/detect", "#!/no/such/interpreter\n");
    fs::set_permissions(world.path("app/pack/bin/detect"), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(why(&["./pack"]).contains("cannot start buildpack ./pack: bin/detect"));
}

#[test]
fn bin_release_without_valid_yaml_fails_the_build() {
    let world = World::new();
    world.pack("builtin/node", "true").script("builtin/node/bin/release", "echo 'default_process_types: [1'");
    let failure = world.run(job(&ALL, &["node"])).0.failure.unwrap();
    assert_eq!(failure.step, BuildStep::Release);
    assert!(failure.why.starts_with("bin/release of buildpack node printed no process types: "), "{}", failure.why);
    world.script("builtin/node/bin/release", "exit 4");
    assert_eq!(world.run(job(&ALL, &["node"])).0.failure.unwrap().why, "bin/release of buildpack node exited 4");
}

#[test]
fn directory_pack_outside_project_is_refused() {
    let world = World::new();
    world.pack("outside", "true");
    let mut job = job(&ALL, &[]);
    // The recipe's parser refuses such a path. The worker does not rely on the parser.
    for path in ["../outside", "a/../../outside", "/etc"] {
        let Ok(path) = path.parse() else { continue };
        job.buildpacks = vec![BuildpackRef::Directory(path)];
        assert!(world.run(job.clone()).0.failure.unwrap().why.contains("no buildpack in the directory"));
    }
}

#[test]
fn phase_script_changes_variables() {
    let world = World::new();
    let steps = [BuildStep::Script(Phase::PreInstall), BuildStep::Script(Phase::Configure), BuildStep::Script(Phase::PostBuild)];
    world.script("app/.larder/pre_install", "cat \"$LARDER_VARIABLES\"; echo '{\"a\": 2, \"b\": [true]}' >\"$LARDER_VARIABLES\"");
    world.script("app/.larder/post_build", "cat \"$LARDER_VARIABLES\"; echo \" $LARDER_PHASE $GREETING\"");
    let (report, output) = world.run(job(&steps, &[]));
    assert_eq!(report.failure, None);
    assert!(output.contains("{\"a\":1}") && output.contains("{\"a\":2,\"b\":[true]} post_build good 'morning'"), "{output}");
    assert_eq!(report.variables.as_deref(), Some("{\"a\":2,\"b\":[true]}"));
    assert_eq!(report.steps.len(), 3);
}

#[test]
fn phase_script_failures_are_reported() {
    let world = World::new();
    let steps = [BuildStep::Script(Phase::Build)];
    // If the new mapping equals the old mapping, the report contains no variables, even if the text differs.
    world.script("app/.larder/build", "echo '{ \"a\" : 1 }' >\"$LARDER_VARIABLES\"");
    assert_eq!(world.run(job(&steps, &[])).0.variables, None);

    world.file("app/.larder/build", "#!/bin/sh\n");
    fs::set_permissions(world.path("app/.larder/build"), fs::Permissions::from_mode(0o644)).unwrap();
    let (report, output) = world.run(job(&steps, &[]));
    assert!(report.failure.is_none() && output.contains(".larder/build is not executable and was not run"), "{output}");

    for (script, why) in [
        ("echo nonsense >\"$LARDER_VARIABLES\"", "the text is not JSON"),
        ("echo '[]' >\"$LARDER_VARIABLES\"", "not an object"),
        ("rm \"$LARDER_VARIABLES\"; ln -s /etc/passwd \"$LARDER_VARIABLES\"", "cannot read"),
        ("rm \"$LARDER_VARIABLES\"", "cannot read"),
        ("exit 5", ".larder/build exited 5"),
        ("echo ' !     no database'; exit 5", "no database"),
    ] {
        world.script("app/.larder/build", script);
        let failure = world.run(job(&steps, &[])).0.failure.unwrap();
        assert!(failure.why.contains(why), "{script}: {}", failure.why);
    }
}

#[test]
fn git_pack_is_fetched_by_commit() {
    let world = World::new();
    world.pack("repo", "echo one");
    let git = |arguments: &[&str]| {
        let mut command = std::process::Command::new("git");
        command.current_dir(world.path("repo")).args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "-c",
            "init.defaultBranch=main",
        ]);
        let output =
            command.args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    git(&["init", "--quiet"]);
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "one"]);
    let commit = git(&["rev-parse", "HEAD"]);
    world.script("repo/bin/compile", "echo two");
    git(&["commit", "--quiet", "-a", "-m", "two"]);
    git(&["update-server-info"]);
    let url = format!("{}/.git", serve(&world.path("repo")));
    let with = |url: &str, commit: &str| {
        let buildpacks = vec![format!("{url}#{commit}").parse().unwrap()];
        world.run(BuildJob { buildpacks, ..job(&ALL, &[]) })
    };
    let (report, output) = with(&url, &commit);
    assert_eq!(report.failure, None);
    assert!(output.contains("one\n") && !output.contains("two"), "{output}");
    assert_eq!(report.buildpacks, [BuildpackUse { name: url.clone(), version: commit.clone() }]);

    let missing = "1234567890123456789012345678901234567890";
    let why = with(&url, missing).0.failure.unwrap().why;
    assert!(why.contains(missing), "{why}");

    // git uses the proxy of the configuration. This proxy does not exist, so the fetch fails.
    let nowhere = vec![("https_proxy".to_owned(), "http://127.0.0.1:1".into())];
    let buildpacks = vec![format!("https://buildpacks.invalid/x#{commit}").parse().unwrap()];
    let why = world.run(BuildJob { buildpacks, configuration: nowhere, ..job(&ALL, &[]) }).0.failure.unwrap().why;
    assert!(why.contains("127.0.0.1") || why.contains("proxy"), "{why}");

    // A commit in the cache needs no repository.
    fs::remove_dir_all(world.path("repo")).unwrap();
    let (report, output) = with(&url, &commit);
    assert!(report.failure.is_none() && output.contains("one\n"), "{output}");
}

#[test]
fn temporary_files_of_killed_build_are_removed_by_the_next_build() {
    let world = World::new();
    world.pack("builtin/node", "test -d \"$TMPDIR\" && touch \"$TMPDIR/mine\"").file("cache/tmp/build-old/variables.json", "{}");
    let (report, output) = world.run(job(&ALL, &["node"]));
    assert_eq!(report.failure, None, "{output}");
    assert_eq!(fs::read_dir(world.path("cache/tmp")).unwrap().count(), 0);
}

#[test]
fn script_that_calls_git_gets_hint_about_source_version() {
    let world = World::new();
    world
        .script("app/.larder/build", "echo 'fatal: not a git repository (or any of the parent directories): .git' >&2; exit 128");
    let failure = world.run(job(&[BuildStep::Script(Phase::Build)], &[])).0.failure.unwrap();
    assert!(failure.hint.contains("SOURCE_VERSION"), "{failure:?}");
}
