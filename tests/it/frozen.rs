//! The causes that freeze an environment, its service meanwhile, and `--unfreeze`.

use std::{fs, thread};

use crate::harness::{Repo, World, in_one_mode, state::names, until};

in_one_mode!(
    branch_that_cannot_be_restored_freezes_environment_and_keeps_current_tree,
    stuck_journal_without_an_end_is_concluded_by_unfreeze,
    unreadable_journal_freezes_environment,
    journal_write_failure_rejects_push_or_freezes_environment,
    unrecoverable_journal_freezes_environment_until_it_is_repaired,
    unusable_record_of_a_restore_freezes_the_environment,
    ended_restore_of_a_newer_version_freezes_nothing,
);

/// The undo of the switch fails half-way: `current` still names a complete tree, and the previous release keeps serving.
fn branch_that_cannot_be_restored_freezes_environment_and_keeps_current_tree(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    repo.program(".larder/post_install", "#!/bin/sh\nsleep 2\nexit 1\n").page("version two");
    let lock = world.root().join("projects/shop/git/project.git/refs/heads/main.lock");
    thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        let switched = |event: &serde_json::Value| event["step"] == "deploy.switch" && event["event"] == "succeeded";
        until("the deployment has switched", || world.journals("shop").get(1).is_some_and(|second| second.iter().any(switched)));
        fs::write(&lock, "").unwrap();
        push.join().unwrap().rejected_with("frozen");
    });
    assert_eq!(world.outcomes("shop").last().unwrap().as_deref(), Some("stuck"));
    world.serves("shop", "version one");
    let current =
        world.environment("shop").join("deploy").join(fs::read_link(world.environment("shop").join("deploy/current")).unwrap());
    assert!(current.join("index.html").is_file(), "current names an incomplete tree");
    assert!(fs::read_to_string(current.join("index.html")).unwrap().contains("version one"));
    world.larder(&["deploy", "shop", "--unfreeze"]).exits(3).says("main.lock");
    fs::remove_file(&lock).unwrap();
    world.larder(&["deploy", "shop", "--unfreeze"]).exits(0);
    world.is_consistent("shop");
    repo.remove(".larder/post_install").commit("repaired");
    repo.push().accepted();
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

/// The end of a stuck deployment was not written to the disk. `--unfreeze` must write an end: otherwise the next start would unwind this
/// deployment, although a later release is live.
fn stuck_journal_without_an_end_is_concluded_by_unfreeze(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    repo.page("version two");
    world.restart(&[("FAILPOINTS", "step.post_deploy.smoke=1*return;undo.deploy.switch=1*return")]);
    repo.push().rejected_with("frozen");
    let deployments = world.environment("shop").join("deployments");
    let journal = names(&deployments).into_iter().map(|name| deployments.join(name).join("journal.jsonl"));
    let stuck = journal.into_iter().find(|path| fs::read_to_string(path).unwrap().contains("\"stuck\"")).unwrap();
    let text = fs::read_to_string(&stuck).unwrap();
    let cut = text.trim_end().rfind('\n').unwrap() + 1;
    fs::OpenOptions::new().write(true).open(&stuck).unwrap().set_len(cut as u64).unwrap();
    world.larder(&["deploy", "shop", "--unfreeze"]).exits(0);
    world.serves("shop", "version one");
    world.is_consistent("shop");
    let commit = repo.page("version three");
    repo.push().accepted();
    world.restart(&[]);
    world.serves("shop", "version three");
    assert_eq!(repo.live(), Some(commit));
    world.is_consistent("shop");
}

/// The live release stays untouched until an operator has repaired the journal.
fn unreadable_journal_freezes_environment(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let application = world.application("shop");
    let deployments = world.environment("shop").join("deployments");
    let journal = deployments.join(names(&deployments).remove(0)).join("journal.jsonl");
    until("observers are told", || fs::read_to_string(&journal).unwrap().contains("\"announced\""));
    let text = fs::read(&journal).unwrap();
    fs::write(&journal, [b"garbage\n", &text[..]].concat()).unwrap();
    world.kill9_server();
    world.serves("shop", "version one");
    assert_eq!(world.application("shop"), application, "the application was touched");
    repo.page("version two");
    repo.push().rejected_with("is frozen");
    assert!(world.larder(&["status"]).ok().contains("frozen"));
    world.larder(&["deploy", "shop", "--unfreeze"]).exits(70).says(":1:");
    fs::write(&journal, &text).unwrap();
    world.larder(&["deploy", "shop", "--unfreeze"]).exits(0);
    world.serves("shop", "version one");
    repo.push().accepted().says("v2 is live");
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

fn journal_write_failure_rejects_push_or_freezes_environment(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    world.restart(&[("FAILPOINTS", "record.opened=1*return;record.ended=1*return")]);
    let commit = repo.page("version two");
    // No deployment has begun, so the environment is not frozen.
    repo.push().rejected_with("cannot write the journal").says("Nothing was changed");
    world.larder(&["deploy", "shop", "--unfreeze"]).exits(4);
    // The release serves, but the record of its deployment would not survive a power cut.
    repo.push().rejected_with("frozen");
    assert!(world.larder(&["status"]).ok().contains("frozen"));
    repo.push_as(&["HEAD:refs/heads/main", "--force"]);
    world.larder(&["deploy", "shop"]).exits(3).says("frozen");
    world.larder(&["deploy", "shop", "--unfreeze"]).exits(0);
    world.serves("shop", "version two");
    assert_eq!(repo.live(), Some(commit));
    world.restart(&[]);
    world.serves("shop", "version two");
    world.is_consistent("shop");
    repo.page("version three");
    repo.push().accepted().says("v3 is live");
}

/// The server is killed during a deployment, and the journal names a version, a step, facts or an environment that the next server does not
/// have. The server neither finishes nor unwinds the deployment with default values.
fn unrecoverable_journal_freezes_environment_until_it_is_repaired(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    repo.program(".larder/build", "#!/bin/sh\necho build started; exec sleep 98761\n");
    repo.page("version two");
    let edits: [(&str, &str, &str); 4] = [
        ("\"version\":2,", "\"version\":3,", "format version 3"),
        ("\"build.compile\"", "\"build.teleport\"", "build.teleport"),
        ("\"settings\":{", "\"settings\":7,\"was\":{", "facts of step gather.source"),
        ("\"environment\":{\"id\":", "\"environment\":{\"id\":9", "belongs to"),
    ];
    for (old, new, why) in edits {
        let application = world.application("shop");
        let before = names(&world.environment("shop").join("deployments")).len();
        thread::scope(|scope| {
            let push = scope.spawn(|| repo.push());
            let log = |name: &String| world.environment("shop").join("deployments").join(name).join("log");
            until("the build runs", || {
                let names = names(&world.environment("shop").join("deployments"));
                names.len() > before
                    && names.iter().any(|name| {
                        let running =
                            !fs::read_to_string(log(name).with_file_name("journal.jsonl")).unwrap_or_default().contains("ended");
                        running && fs::read_to_string(log(name)).unwrap_or_default().contains("build started")
                    })
            });
            world.kill9_all();
            let _ = push.join().unwrap();
        });
        let deployments = world.environment("shop").join("deployments");
        let unfinished = names(&deployments).into_iter().map(|name| deployments.join(name).join("journal.jsonl"));
        let journal = unfinished.into_iter().find(|path| !fs::read_to_string(path).unwrap().contains("\"ended\"")).unwrap();
        let text = fs::read_to_string(&journal).unwrap();
        assert!(text.contains(old), "{old} is not in {text}");
        fs::write(&journal, text.replacen(old, new, 1)).unwrap();
        world.start(&[]);
        world.serves("shop", "version one");
        assert!(world.larder(&["status"]).ok().contains("frozen"), "{why}");
        repo.push().rejected_with("is frozen");
        assert_ne!(world.application("shop").len(), 0, "{application:?}");
        world.larder(&["deploy", "shop", "--unfreeze"]).exits(70).says(why);
        repo.push().rejected_with("is frozen");
        fs::write(&journal, &text).unwrap();
        world.larder(&["deploy", "shop", "--unfreeze"]).exits(0);
        world.serves("shop", "version one");
    }
    repo.remove(".larder/build").commit("repaired");
    repo.push().accepted();
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

/// A restore of a newer version may have left files and databases of different states, so no process may write to the data.
fn unusable_record_of_a_restore_freezes_the_environment(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let record = world.environment("shop").join("restore.json");
    for (text, reason) in
        [("{\"version\":9,\"end\":null}", "its version is 9"), ("{\"version\":1,", "is not the record of a restore")]
    {
        world.stop();
        fs::write(&record, text).unwrap();
        world.start(&[]);
        assert_eq!(world.get("shop", "/").status, 503, "a release must not run on data of unknown state");
        repo.page("version two");
        repo.push().rejected_with("is frozen").rejected_with(reason);
        world.larder(&["deploy", "shop", "--unfreeze"]).exits(3).says(reason);
        assert_eq!(fs::read_to_string(&record).unwrap(), text, "the record was overwritten");
        fs::remove_file(&record).unwrap();
        world.larder(&["deploy", "shop", "--unfreeze"]).ok();
        world.serves("shop", "version one");
    }
    repo.push().accepted();
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

fn ended_restore_of_a_newer_version_freezes_nothing(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    world.stop();
    fs::write(world.environment("shop").join("restore.json"), "{\"version\":9,\"end\":\"restored\"}").unwrap();
    world.start(&[]);
    world.serves("shop", "version one");
    repo.page("version two");
    repo.push().accepted();
    world.serves("shop", "version two");
}
