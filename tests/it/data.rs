//! The persistent state of an environment: files and directories below `data/`, the files that a failed deployment has seeded and removes,
//! and `postdeploy`, which runs once.

use std::{fs, path::PathBuf, process::Command};

use crate::harness::{Repo, World, in_each_mode, in_one_mode, state::names};

in_each_mode!(data_file_persists_over_push_and_rollback);
in_one_mode!(
    sqlite_database_persists_with_its_journal,
    data_path_kind_follows_name_and_release,
    failed_first_deployment_removes_seeded_data,
    failed_later_deployment_keeps_files_written_since_seeding,
    postdeploy_runs_once_per_environment,
    interrupted_postdeploy_is_not_repeated,
    killed_postdeploy_is_not_repeated,
    failed_build_leaves_no_layer,
);

const PROCFILE: &str = "web: exec larder static-server --root .\n";

fn data(world: &World) -> PathBuf {
    world.environment("shop").join("data")
}

fn shop<'w>(world: &'w World, recipe: &str) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", PROCFILE).write("larder.yml", recipe);
    repo
}

fn sh(world: &World, script: &str) -> String {
    world.larder(&["run", "shop", "--", "sh", "-ec", script]).ok().trim().to_owned()
}

fn data_file_persists_over_push_and_rollback(world: &World) {
    let repo = shop(world, "data: [db.sqlite3, var/state.json]\n");
    repo.page("version one");
    repo.push().accepted();
    assert_eq!(sh(world, "test -e db.sqlite3 && echo there || echo absent"), "absent", "the application creates the file");
    sh(world, "echo one > db.sqlite3; echo '{}' > var/state.json");
    assert!(data(world).join("db.sqlite3").is_file() && data(world).join("var/state.json").is_file());
    repo.page("version two");
    repo.push().accepted();
    assert_eq!(sh(world, "cat db.sqlite3"), "one");
    sh(world, "echo two >> db.sqlite3");
    world.larder(&["rollback", "shop"]).ok();
    world.serves("shop", "version one");
    assert_eq!(sh(world, "cat db.sqlite3; cat var/state.json"), "one\ntwo\n{}");
    world.restart(&[]);
    assert_eq!(sh(world, "cat db.sqlite3"), "one\ntwo");
    world.is_consistent("shop");
}

fn sqlite_database_persists_with_its_journal(world: &World) {
    if crate::harness::installed("python3").is_none() {
        return;
    }
    let repo = shop(world, "data: [db.sqlite3]\n");
    repo.write(
        "add.py",
        "import os, sqlite3\nc = sqlite3.connect('db.sqlite3')\nc.execute('pragma journal_mode=wal')\n\
         c.execute('create table if not exists t(x)')\nc.execute('insert into t values (1)')\nc.commit()\n\
         print(c.execute('select count(*) from t').fetchone()[0], flush=True)\nos._exit(0)\n",
    );
    repo.page("version one");
    repo.push().accepted();
    // The process ends without closing the database, so the last rows are in the write-ahead log only.
    assert_eq!(sh(world, "python3 add.py"), "1");
    assert!(names(&data(world)).contains(&String::from("db.sqlite3-wal")), "{:?}", names(&data(world)));
    repo.page("version two");
    repo.push().accepted();
    assert_eq!(sh(world, "python3 add.py"), "2");
    world.larder(&["rollback", "shop"]).ok();
    assert_eq!(sh(world, "python3 add.py"), "3");
}

fn data_path_kind_follows_name_and_release(world: &World) {
    let repo = shop(world, "data: [uploads, photos.old/, seed.txt, bundle.app, notes]\n");
    repo.write("seed.txt", "seeded").write("bundle.app/inside", "x").write("notes", "a file without an extension");
    repo.page("version one");
    repo.push().accepted();
    let kind = |name: &str| fs::metadata(data(world).join(name)).map(|found| found.is_dir());
    for (name, directory) in
        [("uploads", true), ("photos.old", true), ("seed.txt", false), ("bundle.app", true), ("notes", false)]
    {
        assert_eq!(kind(name).unwrap(), directory, "{name}");
    }
    assert_eq!(sh(world, "cat seed.txt bundle.app/inside; echo y > photos.old/y; cat photos.old/y"), "seededxy");
}

fn failed_first_deployment_removes_seeded_data(world: &World) {
    let recipe = "data: [media, db, kept]\nrelease: sh release.sh\n";
    let repo = shop(world, recipe);
    fs::create_dir(data(world).join("kept")).unwrap();
    fs::write(data(world).join("kept/by-hand"), "restored").unwrap();
    assert!(
        Command::new("chown")
            .arg("-R")
            .arg("--reference")
            .arg(data(world))
            .arg(data(world).join("kept"))
            .status()
            .unwrap()
            .success()
    );
    repo.write("media/seed.txt", "first").write("release.sh", "echo schema > db/schema; exit 1\n").page("version one");
    repo.push().rejected_with("the release command exited 1");
    assert_eq!(names(&data(world)), ["kept"], "only the data that the failed deployment seeded is removed");
    assert_eq!(names(&data(world).join("kept")), ["by-hand"]);
    // A deployment that is killed leaves no seeded data, either.
    world.restart(&[("FAILPOINTS", "journal.started.deploy.release=1*sleep(60000)")]);
    let mut push = repo.command();
    let mut push = push.args(["push", &repo.url(), "HEAD:refs/heads/main"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    crate::harness::until("the data is seeded", || data(world).join("media/seed.txt").exists());
    world.kill9_all();
    let _ = push.wait();
    world.start(&[]);
    crate::harness::until("the seeded data is removed", || names(&data(world)) == ["kept"]);
    repo.write("media/seed.txt", "second").write("release.sh", "echo schema > db/schema\n").page("version one");
    repo.push().accepted();
    assert_eq!(sh(world, "cat media/seed.txt db/schema kept/by-hand"), "secondschema\nrestored");
}

fn failed_later_deployment_keeps_files_written_since_seeding(world: &World) {
    let repo = shop(world, "data: [media]\n");
    repo.page("version one");
    repo.push().accepted();
    sh(world, "echo mine > media/mine");
    repo.write("larder.yml", "data: [media, uploads]\n").write("uploads/a.txt", "seed").write("uploads/sub/b.txt", "seed");
    repo.program(".larder/post_deploy", "#!/bin/sh\necho users > uploads/from-a-user\nexit 1\n").page("version two");
    repo.push().rejected_with("post_deploy: ");
    assert_eq!(names(&data(world)), ["media", "uploads"]);
    assert_eq!(
        names(&data(world).join("uploads")),
        ["from-a-user"],
        "the files that were written since then stay, and the seeded files are removed"
    );
    assert_eq!(names(&data(world).join("media")), ["mine"]);
}

fn postdeploy_runs_once_per_environment(world: &World) {
    let repo = shop(world, "data: [db]\n");
    repo.write("app.json", r#"{"scripts": {"postdeploy": "echo seeded >> db/seeds"}}"#);
    repo.program(".larder/post_install", "#!/bin/sh\nexit 1\n").page("version one");
    repo.push().says("Running the postdeploy script").rejected_with("post_install: ");
    // The script has run in the failed deployment, so the next deployment does not run it, although no release is live yet.
    repo.remove(".larder/post_install").page("version one");
    repo.push().accepted().0.keeps_quiet_about("Running the postdeploy script");
    assert_eq!(sh(world, "cat db/seeds"), "seeded", "the failed deployment keeps what postdeploy has made");
    repo.page("version two");
    repo.push().accepted().0.keeps_quiet_about("Running the postdeploy script");
    // If the script fails, the next deployment runs the script again.
    world.larder(&["project", "create", "blog", "--mode", "cooking"]).ok();
    let blog = Repo::new(world, "blog");
    blog.write("Procfile", PROCFILE).write("app.json", r#"{"scripts": {"postdeploy": "exit 3"}}"#).page("one");
    blog.push().rejected_with("the postdeploy script exited 3");
    blog.write("app.json", r#"{"scripts": {"postdeploy": "echo fine"}}"#).page("one");
    blog.push().accepted().says("Running the postdeploy script");
    // The script runs once even if every step runs twice.
    world.restart(&[("FAILPOINTS", "twice=return")]);
    world.larder(&["project", "create", "wiki", "--mode", "cooking"]).ok();
    let wiki = Repo::new(world, "wiki");
    wiki.write("Procfile", PROCFILE).write("app.json", r#"{"scripts": {"postdeploy": "echo once"}}"#).page("one");
    let push = wiki.push();
    push.accepted();
    assert_eq!(push.remote().iter().filter(|line| line.contains("Running the postdeploy script")).count(), 1, "{}", push.0);
}

fn interrupted_postdeploy_is_not_repeated(world: &World) {
    let repo = shop(world, "data: [db]\n");
    repo.write("app.json", r#"{"scripts": {"postdeploy": "echo begun >> db/seeds; sleep 60"}}"#).page("version one");
    let mut push = repo.command();
    let mut push = push.args(["push", &repo.url(), "HEAD:refs/heads/main"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    crate::harness::until("postdeploy has begun", || data(world).join("db/seeds").exists());
    // The test kills only the server. The keeper then kills the script, and no server records the end of the script.
    world.kill9_server();
    let _ = push.wait();
    crate::harness::until("the deployment has its end", || world.has_ended("shop"));
    world.serves("shop", "version one");
    assert_eq!(fs::read_to_string(data(world).join("db/seeds")).unwrap(), "begun\n");
    world.larder(&["deploy", "shop", "--follow"]).says("was interrupted and is not run again");
}

/// The effects of a script that was killed are unknown. Therefore the next deployment does not run this script, but runs a script that
/// exited with an error.
fn killed_postdeploy_is_not_repeated(world: &World) {
    let repo = shop(world, "data: [db]\n");
    repo.write("app.json", r#"{"scripts": {"postdeploy": "echo begun >> db/seeds; exec sleep 98763"}}"#).page("version one");
    std::thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        let sleeping = || {
            let all = crate::harness::processes::of(world.directory());
            all.into_iter().find(|process| process.arguments.iter().any(|word| word == "98763"))
        };
        crate::harness::until("postdeploy has begun", || sleeping().is_some());
        crate::harness::processes::signal(sleeping().unwrap().pid, rustix::process::Signal::KILL);
        let push = push.join().unwrap();
        push.rejected_with("the postdeploy script was killed by signal 9").says("larder does not run it again");
    });
    repo.page("version two");
    repo.push().accepted().says("was interrupted and is not run again");
    assert_eq!(fs::read_to_string(data(world).join("db/seeds")).unwrap(), "begun\n");
}

/// If the layer stayed, the files of a failed build could fill the disk until the next build, and pushes of other projects would fail.
fn failed_build_leaves_no_layer(world: &World) {
    let repo = shop(world, "env: {A: b}\n");
    repo.page("version one");
    repo.push().accepted();
    repo.program(".larder/build", "#!/bin/sh\nhead -c 3000000 /dev/zero > large\nexit 1\n").page("version two");
    repo.push().rejected_with("build: ");
    let upper = world.environment("shop").join("build/upper");
    assert_eq!(names(&upper), Vec::<String>::new());
    let trash = || names(&world.root().join("trash"));
    crate::harness::until("the trash is empty", || trash().is_empty());
}
