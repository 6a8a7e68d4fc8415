//! Kills at the journalled events of a push to a checkout in which a person works, and undos that fail and are repeated. Afterwards the checkout has the
//! old or the new commit, and no file of the person is lost.
//!
//! By default, a few events and undos are tested. With `LARDER_TEST_THOROUGH`, the server, and in a second test keeper and server, are killed at every
//! event, and the undo of every step fails before and after its work, with and without a kill of all processes before `larder deploy --unfreeze`.

use std::{fs, path::Path};

use crate::{
    harness::{Repo, World, in_one_mode, state::names, thorough, until},
    recovery::{DyingServer, Victim, events, marks},
};

in_one_mode!(
    server_killed_at_events_of_a_push_to_a_checkout_loses_no_edit,
    keeper_and_server_killed_at_every_event_of_a_push_to_a_checkout_lose_no_edit,
    undo_that_fails_in_a_checkout_is_repeated_and_loses_no_edit,
);

/// The events at which the default run kills the server.
const FEW: [&str; 7] = [
    "started.gather.checkout",
    "succeeded.gather.checkout",
    "succeeded.deploy.stop",
    "undo_started.gather.checkout",
    "undo_finished.deploy.prepare",
    "started.deploy.switch",
    "succeeded.deploy.resume",
];

/// Creates a checkout with the first version, and with files that a person changed.
fn shop(world: &World) -> Repo<'_> {
    world.larder(&["project", "create", "shop", "--mode", "editable"]).ok();
    let repo = Repo::site(world, "shop", "version 1");
    repo.write("larder.yml", "edits: stash\nsmoke: [/]\n").write("about.html", "about us\n").write("shared.html", "theirs 1\n");
    repo.page("version 1");
    repo.push().accepted();
    by_hand(world, "echo mine > notes.txt; echo mine > about.html; ln -s notes.txt link");
    repo
}

fn by_hand(world: &World, script: &str) -> String {
    world.larder(&["run", "shop", "--", "sh", "-ec", script]).ok().to_owned()
}

/// Returns everything in the checkout that belongs to the person, and the commit.
fn state(world: &World) -> String {
    by_hand(
        world,
        "git rev-parse HEAD; git symbolic-ref HEAD; git status --porcelain; git stash list; cat notes.txt about.html shared.html; readlink link",
    )
}

fn server_killed_at_events_of_a_push_to_a_checkout_loses_no_edit(world: &World) {
    survives_every_kill(world, Victim::Server);
}

fn keeper_and_server_killed_at_every_event_of_a_push_to_a_checkout_lose_no_edit(world: &World) {
    if thorough() {
        survives_every_kill(world, Victim::Both);
    }
}

fn survives_every_kill(world: &World, victim: Victim) {
    let repo = shop(world);
    let marks = marks(world);
    if victim == Victim::Both {
        fs::write(marks.join("stop"), "").unwrap();
    }
    let steps = world.steps("shop");
    let events = if thorough() { events(&steps) } else { FEW.iter().map(|event| format!("journal.{event}")).collect::<Vec<_>>() };
    let dying = |events: &[String]| {
        events.iter().map(|event| format!("{event}=return({})", marks.display())).collect::<Vec<_>>().join(";")
    };
    let deadly = dying(&events);
    world.restart(&[("FAILPOINTS", &deadly)]);
    let mut version = 2;
    loop {
        let before = names(&marks).len();
        goes_live(&repo, world, &marks, &deadly, victim, version);
        version += 1;
        if names(&marks).len() == before {
            break;
        }
    }
    let last = steps.last().unwrap();
    let points = format!("{deadly};step.{last}=1*return;{}", dying(&[format!("journal.failed.{last}")]));
    world.restart(&[("FAILPOINTS", &points)]);
    goes_live(&repo, world, &marks, &points, victim, version);
    let died = names(&marks);
    let missed: Vec<_> = events.iter().filter(|event| !died.contains(event)).collect();
    assert!(missed.is_empty(), "no kill happened at {missed:?}");
    eprintln!("{} kills", died.len());
}

/// Pushes a version repeatedly, through all kills, until the version is live. The version changes a file that the person changed, too.
fn goes_live(repo: &Repo<'_>, world: &World, marks: &Path, points: &str, victim: Victim, version: u32) {
    repo.write("shared.html", format!("theirs {version}\n"));
    let commit = repo.page(&format!("version {version}"));
    by_hand(world, &format!("echo 'mine {version}' > shared.html"));
    let before = state(world);
    let dying = DyingServer { world, repo, marks, points };
    for _ in 0..200 {
        let died = dying.deaths();
        let push = match victim {
            Victim::Server => dying.push_to_server(),
            Victim::Both => dying.push_to_both(),
        };
        if repo.live().unwrap() == commit {
            world.serves("shop", &format!("version {version}"));
            let script = "git rev-parse HEAD; cat shared.html notes.txt about.html; git show stash@{0}:shared.html; git stash drop --quiet; git stash list";
            assert_eq!(by_hand(world, script), format!("{commit}\ntheirs {version}\nmine\nmine\nmine {version}\n"), "{}", push.0);
            return;
        }
        assert_ne!(push.0.status, 0, "the push was accepted, but its commit is not live: {}", push.0);
        if dying.deaths() == died {
            push.rejected_with("stopped by a failpoint");
        } else if victim == Victim::Server {
            // A restart ends the keeper's backoff, which grows with every kill.
            world.restart(&[("FAILPOINTS", points)]);
        }
        world.serves("shop", &format!("version {}", version - 1));
        assert_eq!(state(world), before, "after {:?}: {}", names(marks), push.0);
    }
    panic!("version {version} never went live");
}

fn undo_that_fails_in_a_checkout_is_repeated_and_loses_no_edit(world: &World) {
    let repo = shop(world);
    let faults = world.directory().join("faults");
    fs::write(&faults, "").unwrap();
    let points = format!("listed=return({})", faults.display());
    world.restart(&[("FAILPOINTS", &points)]);
    let steps = world.steps("shop");
    let mut cases = vec![
        (String::from("deploy.switch.late"), String::from("gather.checkout"), false),
        (String::from("deploy.switch.late"), String::from("gather.checkout.late"), true),
        (String::from("deploy.switch.late"), String::from("deploy.stop"), true),
    ];
    if thorough() {
        let around = steps.iter().flat_map(|step| [step.clone(), format!("{step}.late")]);
        let last = format!("{}.late", steps.last().unwrap());
        cases = around.flat_map(|undo| [false, true].map(|killed| (last.clone(), undo.clone(), killed))).collect();
    }
    let (mut version, mut frozen) = (1, 0);
    for (fails, undo, is_killed) in &cases {
        let about = format!("{fails} fails, then the undo of {undo}, killed: {is_killed}");
        version += 1;
        repo.write("shared.html", format!("theirs {version}\n")).page(&format!("version {version}"));
        by_hand(world, &format!("echo 'mine {version}' > shared.html"));
        let before = state(world);
        fs::write(&faults, format!("step.{fails}\nundo.{undo}\n")).unwrap();
        repo.push().rejected_with("is frozen");
        frozen += 1;
        fs::write(&faults, "").unwrap();
        if *is_killed {
            world.kill9_everything();
            world.start(&[("FAILPOINTS", &points)]);
        }
        world.larder(&["deploy", "shop", "--unfreeze"]).ok();
        until("the old release serves", || world.get("shop", "/").status == 200);
        world.serves("shop", "version 1");
        assert_eq!(state(world), before, "{about}");
    }
    eprintln!("{frozen} undos failed and were repeated");
    repo.push().accepted();
    world.serves("shop", &format!("version {version}"));
}
