//! The pillar: pushes that change the configuration, refusals, rights, and the pair of release and configuration.

use std::fs;

use crate::{
    configuration::{config, configurations, shop},
    harness::{Repo, World, in_each_mode, in_one_mode, until},
};

in_each_mode!(pushed_values_reach_processes_without_a_build, malformed_pillar_is_refused_before_its_objects_are_kept);
in_one_mode!(
    pillar_has_a_right_of_its_own,
    failing_environment_keeps_all_environments_and_the_branch,
    rollback_keeps_its_values_until_the_next_push_of_the_pillar,
    sample_gives_defaults_and_requires_keys,
    explanation_names_every_level_with_its_line,
    two_people_push_the_pillar_at_once,
);

/// Creates the clone of the pillar of `shop`.
pub fn pillar(world: &World) -> Repo<'_> {
    let path = world.directory().join("clones/pillar");
    fs::create_dir_all(&path).unwrap();
    let repo = Repo::at(world, "shop/pillar", &path);
    repo.git(&["symbolic-ref", "HEAD", "refs/heads/main"]).ok();
    repo
}

fn value(world: &World, project: &str, name: &str) -> String {
    let hex = world.get(project, &format!("/env/{name}")).body;
    let Some(hex) = hex.trim().strip_prefix("hex:").map(str::to_owned) else { return hex.trim().to_owned() };
    let bytes = (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
    String::from_utf8(bytes).unwrap()
}

fn pushed_values_reach_processes_without_a_build(world: &World) {
    let repo = shop(world);
    let pillar = pillar(world);
    pillar.write(
        "init.yml",
        "database: {host: database-one, port: 5432}\nenv:\n  PAGE: first\n  URL: postgres://${database.host}:${database.port}/shop\n",
    );
    let first = pillar.commit("first values");
    // Before the first release, the values wait for it.
    pillar.push().accepted().says("nothing is live in shop/production: the first deployment uses these values");
    repo.push().accepted().says("with configuration 1, pillar ");
    world.serves("shop", "page: first, code one");
    assert_eq!(value(world, "shop", "URL"), "postgres://database-one:5432/shop");
    let visitor = world.visitor("shop");
    pillar.write("production.yml", "database: {host: database-two}\nenv: {PAGE: second}\n");
    let second = pillar.commit("values of production");
    let push = pillar.push();
    push.accepted().says("v2 is live").says("with configuration 2, pillar ");
    world.serves("shop", "page: second, code one");
    assert_eq!(value(world, "shop", "URL"), "postgres://database-two:5432/shop");
    let plan = world.last_plan("shop");
    assert!(!plan.iter().any(|step| step.starts_with("bu") || step.starts_with("gather.source")), "{plan:?}");
    assert_eq!(pillar.live(), Some(second.clone()));
    // The configuration takes precedence, and a push of code has both.
    config(world, &["set", "shop", "PAGE=configured"]).ok();
    world.serves("shop", "page: configured, code one");
    repo.write("code", "two").commit("code two");
    repo.push().accepted();
    world.serves("shop", "page: configured, code two");
    config(world, &["unset", "shop", "PAGE"]).ok();
    world.serves("shop", "page: second, code two");
    // A commit without other values starts nothing.
    pillar.write("README.md", "notes\n").commit("notes");
    pillar.push().accepted().says("the values of shop/production are unchanged");
    visitor.satisfied();
    let listed = world.larder(&["releases", "shop", "--json"]).json();
    let commits: Vec<_> = listed.as_array().unwrap().iter().map(|row| row["pillar"].as_str().unwrap().to_owned()).collect();
    assert_eq!(commits, [&second, &second, &second, &second, &first].map(String::clone));
    let diff = config(world, &["diff", "shop", "1", "2", "--values"]);
    diff.says("first").says("second").says("postgres://database-two:5432/shop").ok();
    config(world, &["history", "shop"]).says(&format!("pillar {}", &second[..10])).ok();
    world.larder(&["releases", "shop"]).says(&format!("2 (pillar {})", &second[..10])).ok();
    // A restart of the whole server keeps the values, and no file on the disk has them.
    world.larder(&["run", "shop", "--", "printenv", "URL"]).says("postgres://database-two:5432/shop").ok();
    world.kill9_all();
    world.start(&[]);
    world.serves("shop", "page: second, code two");
    let journals = format!("{:?}", world.journals("shop"));
    assert!(!journals.contains("database-one") && !journals.contains("database-two"), "{journals}");
    world.is_consistent("shop");
}

fn malformed_pillar_is_refused_before_its_objects_are_kept(world: &World) {
    let repo = shop(world);
    let pillar = pillar(world);
    pillar.write("init.yml", "env: {PAGE: good}\n").commit("good values");
    pillar.push().accepted();
    let good = pillar.head();
    repo.push().accepted();
    let big = format!("a: 1\nbig: {}\n", "x".repeat(10 << 20));
    let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
    let deep = format!("a: {}{}\n", "[".repeat(100), "]".repeat(100));
    let secret = "hunter2hunter2";
    for (file, text, reason) in [
        ("init.yml", "a: 1\n\n\n\n\n\nb: [hunter2hunter2\n", "init.yml line "),
        ("init.yml", "a: ${b}\nb: ${a}\nc: hunter2hunter2\n", "init.yml line 2: b: the references form a cycle: a -> b -> a"),
        (
            "production.yml",
            "x: 1\nenv:\n  URL: ${databse.host}/hunter2hunter2\n",
            "production.yml line 3: env.URL: the reference ${databse.host} names no value",
        ),
        ("init.yml", "a: 1\nb: \"hunter2hunter2\\0\"\n", "init.yml line 2: b has a NUL character"),
        ("init.yml", big.as_str(), "init.yml line 2: big has 10485765 bytes (limit 65536)"),
        ("init.yml", bomb, "init.yml line 1: an anchor (&name) is used"),
        ("init.yml", deep.as_str(), "init.yml line 1: the values are nested too deeply"),
        ("init.yml", "env: {A: 1, A: hunter2hunter2}\n", "init.yml line 1: the key \"A\" is repeated"),
        ("init.yml", "env: {PORT: 80}\n", "init.yml line 1: env: the variable PORT is set by larder itself"),
        ("init.yaml", "a: 1\n", "init.yaml is not read; the name of the file is init.yml"),
    ] {
        pillar.write(file, text).commit("malformed values");
        let push = pillar.push();
        push.rejected_with(reason).says("Nothing was changed.");
        push.0.keeps_quiet_about(secret);
        assert_eq!(pillar.live().as_deref(), Some(good.as_str()), "{reason}");
        pillar.git(&["reset", "--quiet", "--hard", &good]).ok();
    }
    pillar.write("init.yml", [b"a: 1\nb: ".as_slice(), b"\xff\xfe\n"].concat()).commit("not UTF-8");
    pillar.push().rejected_with("init.yml line 2: the text is not UTF-8").says("save the file as UTF-8");
    pillar.git(&["reset", "--quiet", "--hard", &good]).ok();
    std::os::unix::fs::symlink("/etc/passwd", pillar.path().join("staging.yml")).unwrap();
    pillar.commit("a link");
    pillar.push().rejected_with("staging.yml is a symbolic link").says("commit the file itself");
    pillar.git(&["reset", "--quiet", "--hard", &good]).ok();
    let module = format!("160000,{good},lib");
    pillar.git(&["update-index", "--add", "--cacheinfo", &module]).ok();
    pillar.git(&["commit", "--quiet", "--message", "a submodule"]).ok();
    pillar.push().rejected_with("lib is a git submodule");
    pillar.git(&["reset", "--quiet", "--hard", &good]).ok();
    // Other refs, a deletion, and a rewritten history.
    pillar.push_as(&["HEAD:refs/heads/topic"]).rejected_with("a pillar has the branch main only");
    pillar.push_as(&["HEAD:refs/tags/v1"]).rejected_with("a pillar has the branch main only");
    pillar.push_as(&[":refs/heads/main"]).rejected_with("the branch main of a pillar cannot be deleted");
    pillar.git(&["commit", "--quiet", "--amend", "--message", "rewritten"]).ok();
    assert_eq!(pillar.push().0.status, 1);
    pillar.push_as(&["--force", "HEAD:refs/heads/main"]).rejected_with("non-fast-forward");
    assert_eq!(pillar.live().as_deref(), Some(good.as_str()));
    world.serves("shop", "page: good, code one");
    assert_eq!(configurations(world), [1]);
    // The objects of refused pushes are not kept.
    let objects = world.root().join("projects/shop/git/pillar.git/objects");
    let kept: u64 = walk(&objects);
    assert!(kept < 1 << 20, "{kept} bytes are kept");
    world.larder(&["audit"]).says("shop/pillar").keeps_quiet_about(secret);
    world.is_consistent("shop");
}

fn walk(directory: &std::path::Path) -> u64 {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let size = |entry: fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => walk(&entry.path()),
        false => entry.metadata().unwrap().len(),
    };
    entries.map(size).sum()
}

fn pillar_has_a_right_of_its_own(world: &World) {
    let repo = shop(world);
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    let alice = pillar(world);
    alice.write("init.yml", "env: {PAGE: secret}\n").commit("values");
    alice.push().accepted();
    repo.push().accepted();
    let bob = alice.by("bob");
    let url = alice.url();
    let reads = |by: &Repo<'_>| by.git(&["ls-remote", &url]);
    reads(&bob).exits(128).says("there is no project shop that you may see");
    for right in ["view", "push", "deploy", "operate"] {
        world.larder(&["user", "grant", "bob", "shop", right]).ok();
        reads(&bob).exits(128).says("bob may neither read nor push the pillar of shop").says("larder user grant bob shop pillar");
        assert_eq!(bob.push_as(&["HEAD:refs/heads/main"]).0.status, 128, "{right}");
    }
    world.larder(&["user", "grant", "bob", "shop", "push"]).ok();
    // The right on one environment does not show the values of the others.
    world
        .larder(&["user", "grant", "bob", "shop/staging", "pillar"])
        .says("bob has the right on the pillar of shop/staging")
        .ok();
    reads(&bob).exits(128).says("may neither read nor push");
    config(world, &["explain", "shop/staging", "PAGE"]).ok();
    world.larder(&["user", "grant", "bob", "shop", "pillar"]).says("bob has the right on the pillar of shop").ok();
    reads(&bob).ok();
    world.ssh("bob", &["whoami"]).says("shop/pillar").says("read and push").ok();
    world.larder(&["user", "list"]).says("shop:push shop:pillar shop/staging:pillar").ok();
    bob.write("init.yml", "env: {PAGE: by bob}\n").commit("values of bob");
    bob.push().accepted().says("v2 is live");
    world.serves("shop", "page: by bob, code one");
    world.ssh("bob", &["config", "set", "shop", "PAGE=x"]).exits(3);
    world.ssh("bob", &["config", "explain", "shop", "PAGE"]).says("by bob").ok();
    world.larder(&["user", "grant", "bob", "shop/production", "no-pillar"]).ok();
    reads(&bob).exits(128).says("may neither read nor push");
    world.larder(&["user", "grant", "bob", "shop/production", "pillar"]).ok();
    reads(&bob).ok();
    // Every right is taken away together.
    world.larder(&["user", "revoke", "bob", "shop"]).ok();
    world.larder(&["user", "grant", "bob", "shop", "push"]).ok();
    reads(&bob).exits(128).says("may neither read nor push");
    // The members of a group have the right of the group.
    world.larder(&["group", "add", "ops", "bob"]).ok();
    world.larder(&["group", "grant", "ops", "shop", "pillar"]).says("the group ops has the right on the pillar of shop").ok();
    reads(&bob).ok();
    // A key of a CI system that may push has no right on the pillar.
    world.key("ci");
    world.larder(&["key", "add", "bob", "--key-file", &world.public_key("ci"), "--only", "shop"]).ok();
    reads(&alice.by("ci")).exits(128).says("may neither read nor push");
    // No user of the project can read the repository.
    world
        .larder(&[
            "run",
            "shop",
            "--",
            "sh",
            "-c",
            &format!("! cat {}/projects/shop/git/pillar.git/HEAD", world.root().display()),
        ])
        .ok();
}

fn failing_environment_keeps_all_environments_and_the_branch(world: &World) {
    let repo = shop(world);
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let pillar = pillar(world);
    pillar.write("init.yml", "env: {PAGE: old}\n");
    let old = pillar.commit("old values");
    pillar.push().accepted();
    repo.push().accepted();
    repo.push_as(&["HEAD:refs/heads/next"]).accepted();
    pillar.write("init.yml", "env: {PAGE: new}\n").write("staging.yml", "env: {BROKEN: 1}\n").commit("broken in staging");
    let push = pillar.push();
    push.rejected_with("shop/staging: deploy: web.1 exited 1 before it was healthy")
        .says("Starting shop/production with the values before this push");
    // The command would deploy the code again, which did not fail.
    push.0.keeps_quiet_about("--retry");
    assert_eq!(pillar.live().as_deref(), Some(old.as_str()));
    world.serves("shop", "page: old, code one");
    world.serves("staging--shop", "page: old, code one");
    // The next push of code keeps the old values.
    repo.write("code", "two").commit("code two");
    repo.push().accepted();
    world.serves("shop", "page: old, code two");
    pillar.write("staging.yml", "env: {EXTRA: 1}\n").commit("corrected");
    pillar.push().accepted();
    world.serves("shop", "page: new, code two");
    world.serves("staging--shop", "page: new, code one");
    // A release freeze of one environment refuses the push as a whole, before anything starts.
    world.larder(&["freeze", "shop/production", "--until", "3d", "--why", "stocktaking"]).ok();
    pillar.write("init.yml", "env: {PAGE: newer}\n").commit("newer");
    pillar.push().rejected_with("shop/production has a release freeze");
    world.serves("staging--shop", "page: new, code one");
    // Values of staging alone do not concern production.
    pillar.git(&["reset", "--quiet", "--hard", "HEAD~1"]).ok();
    pillar.write("staging.yml", "env: {PAGE: staged}\n").commit("staging only");
    pillar.push().accepted().says("the values of shop/production are unchanged");
    world.serves("staging--shop", "page: staged, code one");
    world.is_consistent("shop");
}

fn rollback_keeps_its_values_until_the_next_push_of_the_pillar(world: &World) {
    let repo = shop(world);
    let pillar = pillar(world);
    pillar.write("init.yml", "env: {PAGE: a}\n").commit("a");
    pillar.push().accepted();
    repo.push().accepted();
    pillar.write("init.yml", "env: {PAGE: b}\n").commit("b");
    pillar.push().accepted();
    world.serves("shop", "page: b, code one");
    world.larder(&["rollback", "shop"]).says("with configuration 1, pillar ").ok();
    world.serves("shop", "page: a, code one");
    repo.write("code", "two").commit("code two");
    repo.push().accepted().says("with configuration 1, pillar ");
    world.serves("shop", "page: a, code two");
    // Values that wait for the next deployment are used by the next deployment.
    pillar.write("init.yml", "env: {PAGE: c}\n").commit("c");
    pillar
        .push_as(&["--push-option=no-restart", "HEAD:refs/heads/main"])
        .accepted()
        .says("the next deployment of shop/production uses these values");
    world.serves("shop", "page: a, code two");
    repo.write("code", "three").commit("code three");
    repo.push().accepted();
    world.serves("shop", "page: c, code three");
    world.larder(&["rollback", "shop", "v2"]).ok();
    world.serves("shop", "page: b, code one");
    world.is_consistent("shop");
}

fn sample_gives_defaults_and_requires_keys(world: &World) {
    let repo = shop(world);
    let pillar = pillar(world);
    let sample = "database:\n  host: localhost\n  password:\nenv:\n  PAGE: of the sample\n  URL: pg://${database.password}@${database.host}\n";
    repo.write(".larder/pillar.sample.yml", sample).commit("a sample");
    let push = repo.push();
    push.rejected_with(
        ".larder/pillar.sample.yml line 3: database.password is required, and the pillar has no value for this key",
    )
    .says("write a value for database.password into the pillar")
    .says("/shop/pillar");
    assert!(!push.remote().iter().any(|line| line.contains("Building")), "{push:?}");
    pillar.write("init.yml", "database: {password: hunter2hunter2}\n").commit("the password");
    pillar.push().accepted();
    repo.push().accepted().0.keeps_quiet_about("hunter2hunter2");
    world.serves("shop", "page: of the sample, code one");
    assert_eq!(value(world, "shop", "URL"), "pg://hunter2hunter2@localhost");
    // The pillar cannot lose the key while the release needs it.
    pillar.write("init.yml", "database: {}\n").commit("no password");
    pillar.push().rejected_with("line 3: database.password is required");
    world.serves("shop", "page: of the sample, code one");
    // A sample that is no YAML is an error of the recipe.
    repo.write(".larder/pillar.sample.yml", "a: [\n").commit("a broken sample");
    repo.push().rejected_with(".larder/pillar.sample.yml");
    world.serves("shop", "page: of the sample, code one");
    world.is_consistent("shop");
}

fn explanation_names_every_level_with_its_line(world: &World) {
    let repo = shop(world);
    let pillar = pillar(world);
    repo.write("app.json", "{\"env\": {\"LEVEL\": \"of app.json\"}}\n");
    repo.write("larder.yml", "drain: 1s\nenv:\n  LEVEL: of larder.yml\n");
    repo.write(".larder/pillar.sample.yml", "env: {LEVEL: of the sample}\n").commit("levels");
    pillar.write("init.yml", "a: 1\nenv: {LEVEL: of init}\n").write("production.yml", "env:\n  X: 1\n  LEVEL: of production\n");
    let commit = pillar.commit("levels");
    pillar.push().accepted();
    repo.push().accepted();
    let explained = config(world, &["explain", "shop", "LEVEL"]);
    let lines: Vec<_> = explained.ok().lines().skip(1).map(str::to_owned).collect();
    let short = &commit[..10];
    for (line, starts) in lines.iter().zip([
        String::from("app.json: env (line 1)"),
        String::from("larder.yml: env (line 3)"),
        String::from(".larder/pillar.sample.yml (line 1)"),
        format!("pillar {short}: init.yml (line 2, by "),
        format!("pillar {short}: production.yml (line 3, by "),
    ]) {
        assert!(line.starts_with(&starts), "{line:?} {starts:?}: {explained}");
    }
    assert!(lines.len() == 5 && lines[4].contains("of production") && lines[4].trim_end().ends_with('*'), "{explained}");
    assert_eq!(value(world, "shop", "LEVEL"), "of production");
    config(world, &["set", "shop", "LEVEL=of-config"]).ok();
    config(world, &["explain", "shop", "LEVEL"]).says("configuration 2 (by alice)").ok();
    assert_eq!(value(world, "shop", "LEVEL"), "of-config");
}

fn two_people_push_the_pillar_at_once(world: &World) {
    let repo = shop(world);
    let pillar = pillar(world);
    pillar.write("init.yml", "env: {PAGE: old}\n").commit("old");
    pillar.push().accepted();
    repo.program(".larder/deploy", "#!/bin/sh\nwhile [ -e seen/wait ] && ! [ -e seen/go ]; do sleep 0.1; done\n");
    repo.write("larder.yml", "data: [seen/]\nhealth: {timeout: 20s}\ndrain: 1s\n").commit("wait in the script");
    repo.push().accepted();
    let run = |words: &[&str]| world.larder(&[&["run", "shop", "--"], words].concat());
    run(&["touch", "seen/wait"]).ok();
    let deployments = || crate::harness::state::names(&world.environment("shop").join("deployments")).len();
    let before = deployments();
    let push = |text: &str| {
        pillar.git(&["checkout", "--quiet", "--detach", "main"]).ok();
        pillar.write("init.yml", format!("env: {{PAGE: {text}}}\n")).commit(text);
        let mut command = pillar.command();
        command.args(["push", &pillar.url(), &format!("{}:refs/heads/main", pillar.head())]);
        std::thread::spawn(move || crate::harness::cli::Output::of(&mut command))
    };
    let first = push("first");
    until("the first push deploys", || deployments() > before);
    let second = push("second");
    until("the second push waits", || world.larder(&["audit"]).stdout.matches("shop/pillar").count() >= 3);
    run(&["touch", "seen/go"]).ok();
    first.join().unwrap().ok();
    second.join().unwrap().exits(1).says("[remote rejected]").says("another push has moved this ref; fetch first");
    world.serves("shop", "page: first");
    world.is_consistent("shop");
}
