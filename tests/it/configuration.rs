//! The configuration of environments: snapshots, their deployment, and the pair of release and configuration.

use std::process::Command;

use crate::harness::{Repo, World, cli::Output, faults, in_each_mode, in_one_mode, output::golden, python, until};

in_each_mode!(changed_configuration_reaches_processes_without_a_build, every_byte_reaches_build_release_web_worker_and_run);
in_one_mode!(
    failed_check_keeps_the_old_configuration_live,
    rollback_restores_release_and_configuration,
    failure_at_any_step_keeps_release_and_configuration,
    killed_change_is_finished_or_undone,
    changes_of_two_people_are_combined,
    staged_configuration_waits_for_the_next_deployment,
);

/// The application: `/` shows the variable PAGE, and `/env/NAME` shows the bytes of a variable.
const APPLICATION: &str = r#"
import os

class Show(Base):
    def do_GET(self):
        if self.path.startswith("/env/"):
            value = os.environb.get(self.path[5:].encode())
            self.answer(200, "unset" if value is None else "hex:" + value.hex())
        else:
            self.answer(200, "page: " + os.environ.get("PAGE", "none") + ", code " + open("code").read())

if "BROKEN" in os.environ:
    sys.exit("broken by the configuration")
serve(Show)
"#;

/// Creates the project `shop` with the application, without a push.
pub fn shop(world: &World) -> Repo<'_> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("app.py", python::application(APPLICATION)).write("Procfile", "web: exec python3 app.py $PORT\n");
    repo.write("code", "one").write("larder.yml", "health:\n  timeout: 20s\ndrain: 1s\n");
    repo.commit("code one");
    repo
}

pub fn config(world: &World, words: &[&str]) -> Output {
    world.ssh("alice", &[&["config"], words].concat())
}

/// Sets a variable to bytes.
pub fn set_bytes(world: &World, name: &str, value: &[u8], more: &[&str]) -> Output {
    let mut command = world.client("ssh");
    command.args(world.ssh_options("alice")).arg("larder@127.0.0.1").args(["config", "set", "shop", name, "--stdin"]).args(more);
    of_bytes(&mut command, value)
}

pub fn of_bytes(command: &mut Command, input: &[u8]) -> Output {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, input, 0).unwrap();
    Output::of(command.stdin(file))
}

/// Returns the numbers of the configurations of the releases, newest first; 0 without a configuration.
pub fn configurations(world: &World) -> Vec<u64> {
    let listed = world.larder(&["releases", "shop", "--json"]).json();
    listed.as_array().unwrap().iter().map(|row| row["configuration"].as_u64().unwrap_or(0)).collect()
}

fn changed_configuration_reaches_processes_without_a_build(world: &World) {
    let repo = shop(world);
    repo.push().accepted();
    world.serves("shop", "page: none, code one");
    let trees = crate::harness::state::names(&world.environment("shop").join("deploy"));
    let visitor = world.visitor("shop");
    config(world, &["set", "shop", "PAGE=first", "_OTHER=a=b"])
        .says("v2 is live")
        .says("with configuration 1")
        .says("to go back to v1: larder rollback shop v1")
        .ok();
    world.serves("shop", "page: first, code one");
    world.get("shop", "/env/_OTHER").holds("hex:613d62");
    let plan = world.last_plan("shop");
    assert!(!plan.iter().any(|step| step.starts_with("bu") || step.starts_with("gather.source")), "{plan:?}");
    golden("plan of a changed configuration", &(plan.join("\n") + "\n"));
    assert_eq!(crate::harness::state::names(&world.environment("shop").join("deploy")), trees, "the same release");
    // The next push has the configuration, and a change without an effect starts no deployment.
    repo.write("code", "two").commit("code two");
    repo.push().accepted().says("with configuration 1");
    world.serves("shop", "page: first, code two");
    config(world, &["set", "shop", "PAGE=first"]).says("nothing to change").ok();
    assert_eq!(configurations(world), [1, 1, 0]);
    config(world, &["unset", "shop", "PAGE"]).says("v4 is live").says("with configuration 2").ok();
    world.serves("shop", "page: none, code two");
    visitor.satisfied();
    // A restart, also of keeper and server, keeps the configuration.
    world.larder(&["restart", "shop"]).ok();
    world.get("shop", "/env/_OTHER").holds("hex:613d62");
    world.kill9_all();
    world.start(&[]);
    world.serves("shop", "page: none, code two");
    world.get("shop", "/env/_OTHER").holds("hex:613d62");
    world.is_consistent("shop");
    // The journal names the snapshot by number and digest.
    let journals = world.journals("shop");
    let opened = &journals.last().unwrap()[0];
    assert_eq!(opened["configuration"]["number"], 2, "{opened}");
    assert!(opened["configuration"]["digest"].as_str().is_some_and(|digest| digest.len() >= 64), "{opened}");
    assert_eq!((&opened["origin"], &opened["trigger"]["kind"]), (&"configuration".into(), &"configure".into()));
}

fn failed_check_keeps_the_old_configuration_live(world: &World) {
    let repo = shop(world);
    config(world, &["set", "shop", "PAGE=good"]).says("configuration 1 of shop/production is stored").ok();
    repo.push().accepted().says("with configuration 1");
    world.serves("shop", "page: good, code one");
    config(world, &["set", "shop", "PAGE=bad", "BROKEN=1"])
        .exits(1)
        .says("web.1 exited 1 before it was healthy")
        .says("All changes were reverted. v1 is still live.");
    world.serves("shop", "page: good, code one");
    // The next change and the next push are based on the live configuration, not on the failed one.
    repo.write("code", "two").commit("code two");
    repo.push().accepted().says("with configuration 1");
    world.serves("shop", "page: good, code two");
    config(world, &["set", "shop", "PAGE=better"]).says("with configuration 3").ok();
    world.serves("shop", "page: better, code two");
    world.get("shop", "/env/BROKEN").holds("unset");
    let history = config(world, &["history", "shop"]);
    let lines: Vec<_> = history.ok().lines().collect();
    assert!(lines[1].starts_with("3 *") && lines[1].contains("v3") && lines[1].ends_with("PAGE"), "{history}");
    assert!(lines[2].starts_with("2 ") && lines[2].contains(" - ") && lines[2].ends_with("BROKEN, PAGE"), "{history}");
    assert!(lines[3].contains("v2, v1"), "{history}");
    world.is_consistent("shop");
}

fn rollback_restores_release_and_configuration(world: &World) {
    let repo = shop(world);
    repo.push().accepted();
    config(world, &["set", "shop", "PAGE=a"]).ok();
    repo.write("code", "two").commit("code two");
    repo.push().accepted();
    config(world, &["set", "shop", "PAGE=b"]).ok();
    world.serves("shop", "page: b, code two");
    world.larder(&["rollback", "shop"]).says("v5 is live").says("with configuration 1").ok();
    world.serves("shop", "page: a, code two");
    world.larder(&["rollback", "shop"]).ok();
    world.serves("shop", "page: a, code one");
    world.larder(&["rollback", "shop", "v1"]).ok();
    world.serves("shop", "page: none, code one");
    world.larder(&["rollback", "shop", "v4"]).ok();
    world.serves("shop", "page: b, code two");
    assert_eq!(configurations(world), [2, 0, 1, 1, 2, 1, 1, 0]);
    world.larder(&["rollback", "shop", "v4"]).exits(3).says("v4 is live already, as v8");
    // A push after a rollback has the configuration of the rollback.
    world.larder(&["rollback", "shop", "v2"]).ok();
    repo.write("code", "three").commit("code three");
    repo.push().accepted().says("with configuration 1");
    world.serves("shop", "page: a, code three");
    world.is_consistent("shop");
}

fn failure_at_any_step_keeps_release_and_configuration(world: &World) {
    let repo = shop(world);
    repo.push().accepted();
    config(world, &["set", "shop", "PAGE=old"]).ok();
    let points = faults::around(&world.last_plan("shop"));
    world.restart(&[("FAILPOINTS", &faults::once(&points))]);
    world.serves("shop", "page: old");
    let state = || {
        let mut found = world.snapshot("shop");
        // The snapshot of a failed change stays in the history, and is not used.
        found.files.retain(|name, _| !name.starts_with("config/"));
        found
    };
    let before = state();
    let visitor = world.visitor("shop");
    let mut unwinds = String::new();
    for point in &points {
        config(world, &["set", "shop", "PAGE=new"]).exits(1).says("stopped by a failpoint").says("v2 is still live");
        assert_eq!(state(), before, "{point} left something behind");
        world.serves("shop", "page: old");
        unwinds.push_str(&faults::unwind(world));
    }
    golden("unwinds of a changed configuration", &unwinds);
    config(world, &["set", "shop", "PAGE=new"]).ok();
    world.serves("shop", "page: new");
    visitor.satisfied();
    world.is_consistent("shop");
    assert!(world.outcomes("shop").iter().all(|outcome| outcome.as_deref() != Some("stuck")));
}

fn killed_change_is_finished_or_undone(world: &World) {
    let repo = shop(world);
    repo.push().accepted();
    config(world, &["set", "shop", "PAGE=old"]).ok();
    let steps = world.last_plan("shop");
    for (number, step) in steps.iter().enumerate() {
        // By default, each step is interrupted once, in turn at its start and at its end.
        let events = ["started", "succeeded"].into_iter().enumerate();
        for (_, event) in events.filter(|(turn, _)| crate::harness::thorough() || number % 2 == *turn) {
            world.restart(&[("FAILPOINTS", &format!("journal.{event}.{step}=1*sleep(60000)"))]);
            world.serves("shop", "page: old");
            let before = world.journals("shop").len();
            let mut asking = world.larder_command();
            let mut asking =
                asking.args(["config", "set", "shop", "PAGE=new"]).stdout(std::process::Stdio::null()).spawn().unwrap();
            until("the change has begun", || {
                world.journals("shop").len() > before
                    && world.journals("shop").last().unwrap().iter().any(|line| line["step"] == step.as_str())
            });
            world.kill9_all();
            let _ = asking.wait();
            world.start(&[]);
            until("the page is served", || world.get("shop", "/").status == 200);
            let page = world.get("shop", "/").body;
            let shown = config(world, &["show", "shop", "PAGE"]);
            let value = shown.ok();
            assert!(["old", "new"].contains(&value) && page.contains(&format!("page: {value},")), "{page}: {shown}");
            world.is_consistent("shop");
            if value == "new" {
                config(world, &["set", "shop", "PAGE=old"]).ok();
            }
            world.serves("shop", "page: old");
        }
    }
}

/// Values that other tools are known to change.
fn difficult() -> Vec<(&'static str, Vec<u8>)> {
    let every: Vec<u8> = (1..=255).collect();
    vec![
        ("BLANK_FIRST", b"\n\nsecond\n".to_vec()),
        ("CRLF", b"one\r\ntwo\r\n".to_vec()),
        ("DOLLAR", b"$HOME ${X} $(id) `id` \\n % !".to_vec()),
        ("EMPTY", Vec::new()),
        ("EVERY", every.clone()),
        ("LARGE", every.into_iter().cycle().take(64 * 1024).collect()),
        ("PEM", b"-----BEGIN KEY-----\nMIIB=\nAA==\n-----END KEY-----\n".to_vec()),
        ("QUOTES", b"it's \"quoted\" ='x' # no comment".to_vec()),
        ("_FIRST", b" = ".to_vec()),
    ]
}

/// Writes the variables of `difficult` in hexadecimal to the file in the first argument.
const DUMP: &str = "import os, sys\nnames = sorted(name for name in os.environb if name in open('names', 'rb').read().split())\n\
                    open(sys.argv[1], 'wb').write(b'\\n'.join(name + b'=' + os.environb[name].hex().encode() for name in names))\n";

fn every_byte_reaches_build_release_web_worker_and_run(world: &World) {
    let repo = shop(world);
    let names: Vec<_> = difficult().iter().map(|(name, _)| *name).collect();
    repo.write("names", names.join("\n")).write("dump.py", DUMP);
    repo.program(".larder/build", "#!/bin/sh\nexec python3 dump.py in-build\n");
    repo.program(
        "pack/bin/compile",
        "#!/bin/sh\ncd \"$3\" && for name in *; do printf '%s=' $name; od -An -v -tx1 $name | tr -d ' \\n'; echo; done >\"$1/in-pack\"\n",
    );
    repo.write("larder.yml", "buildpack: ./pack\nscale: {worker: 1}\ndata: [seen/]\nhealth: {timeout: 30s}\ndrain: 1s\n");
    repo.write(
        "Procfile",
        "web: exec python3 app.py $PORT\nrelease: python3 dump.py seen/in-release\nworker: python3 dump.py seen/in-worker && exec sleep 1000\n",
    );
    repo.commit("dump the variables");
    for (name, value) in difficult() {
        set_bytes(world, name, &value, &["--no-restart"]).ok();
    }
    repo.push().accepted();
    let hex = |value: &[u8]| value.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let expected: Vec<_> = difficult().iter().map(|(name, value)| format!("{name}={}", hex(value))).collect();
    for (name, value) in difficult() {
        world.get("shop", &format!("/env/{name}")).holds(&format!("hex:{}", hex(&value)));
    }
    let run = |words: &[&str]| world.larder(&[&["run", "shop", "--"], words].concat());
    run(&["python3", "dump.py", "seen/in-run"]).ok();
    until("the worker has written its file", || run(&["test", "-s", "seen/in-worker"]).status == 0);
    for file in ["in-build", "in-pack", "seen/in-release", "seen/in-worker", "seen/in-run"] {
        let written = run(&["cat", file]);
        let lines: Vec<_> = written
            .ok()
            .lines()
            .filter(|line| expected.iter().any(|one| one.split('=').next() == line.split('=').next()))
            .collect();
        assert_eq!(lines, expected, "{file}");
    }
    // What is shown and exported is equal as well, and can be imported again.
    let exported = config(world, &["export", "shop"]);
    for (name, value) in difficult().iter().filter(|(_, value)| std::str::from_utf8(value).is_ok()) {
        assert_eq!(config(world, &["show", "shop", name]).ok().as_bytes(), value, "{name}");
    }
    let mut import = world.larder_command();
    of_bytes(import.args(["config", "import", "shop"]), exported.ok().as_bytes()).says("nothing to change").ok();
}

/// Changes that wait are applied in their order, each to the configuration that is live then. A push neither supersedes a change nor is
/// superseded by one.
fn changes_of_two_people_are_combined(world: &World) {
    let repo = shop(world);
    repo.write("larder.yml", "data: [seen/]\nhealth: {timeout: 20s}\ndrain: 1s\n");
    // The deployment waits in this script until the test creates the file `go`.
    repo.program(".larder/deploy", "#!/bin/sh\nwhile [ -e seen/wait ] && ! [ -e seen/go ]; do sleep 0.1; done\n");
    repo.commit("wait in the script");
    repo.push().accepted();
    let run = |words: &[&str]| world.larder(&[&["run", "shop", "--"], words].concat());
    run(&["touch", "seen/wait"]).ok();
    let deployments = || crate::harness::state::names(&world.environment("shop").join("deployments")).len();
    let ask = |words: &[&str]| {
        let mut command = world.larder_command();
        command.args(["config", "set", "shop"]).args(words);
        let before = deployments();
        let asking = std::thread::spawn(move || Output::of(&mut command));
        until("the change is queued", || deployments() > before);
        asking
    };
    let first = ask(&["PAGE=first", "ONE=1"]);
    let (second, conflict) = (ask(&["TWO=2"]), ask(&["ONE=other"]));
    repo.write("code", "two").commit("code two");
    let mut push = repo.command();
    push.args(["push", &repo.url(), "HEAD:refs/heads/main"]);
    let before = deployments();
    let push = std::thread::spawn(move || Output::of(&mut push));
    until("the push is queued", || deployments() > before);
    let third = ask(&["THREE=3"]);
    run(&["touch", "seen/go"]).ok();
    first.join().unwrap().ok();
    second.join().unwrap().ok();
    conflict.join().unwrap().exits(1).says("ONE was changed meanwhile by operator, in configuration 2").says("no configuration");
    push.join().unwrap().ok();
    third.join().unwrap().ok();
    world.serves("shop", "page: first, code two");
    for (name, value) in [("ONE", "31"), ("TWO", "32"), ("THREE", "33")] {
        world.get("shop", &format!("/env/{name}")).holds(&format!("hex:{value}"));
    }
    assert_eq!(configurations(world), [3, 2, 2, 1, 0]);
    world.is_consistent("shop");
}

fn staged_configuration_waits_for_the_next_deployment(world: &World) {
    let repo = shop(world);
    repo.push().accepted();
    config(world, &["set", "shop", "PAGE=staged", "--no-restart"])
        .says("configuration 1 of shop/production is stored (PAGE)")
        .says("the live release keeps its configuration")
        .ok();
    config(world, &["set", "shop", "OTHER=too", "--no-restart"]).says("configuration 2").ok();
    world.serves("shop", "page: none");
    config(world, &["show", "shop"]).says("configuration 2 of shop/production (used by the next deployment)").ok();
    world.larder(&["restart", "shop"]).ok();
    world.serves("shop", "page: none");
    repo.write("code", "two").commit("code two");
    repo.push().accepted().says("with configuration 2");
    world.serves("shop", "page: staged, code two");
    // A rollback goes back to the configuration of the older release, and a staged change of the newer one is dropped.
    config(world, &["set", "shop", "PAGE=never", "--no-restart"]).ok();
    world.larder(&["rollback", "shop"]).ok();
    world.serves("shop", "page: none, code one");
    config(world, &["show", "shop"]).says("has no configuration").ok();
    config(world, &["set", "shop", "PAGE=again"]).says("with configuration 4").ok();
    world.serves("shop", "page: again, code one");
}
