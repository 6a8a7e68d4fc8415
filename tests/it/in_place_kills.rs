//! Kills at the journalled events of a deployment in place, while the deployment goes on and while it is unwound. Afterwards the old release
//! serves with the old data, or the new release with the new data.
//!
//! By default, the server is killed at a few events. With `LARDER_TEST_THOROUGH`, the server, and in a second test keeper and server, are
//! killed at every event.

use std::{collections::BTreeMap, fs, path::PathBuf};

use crate::{
    harness::{Repo, World, in_one_mode, installed, ledger::Sqlite, state::names, thorough},
    recovery::{DyingServer, Victim, events, marks},
};

in_one_mode!(
    server_killed_at_events_in_place_leaves_the_old_or_the_new_state,
    keeper_and_server_killed_at_every_event_in_place_leave_the_old_or_the_new_state,
);

/// The recipe without the line of the upgrade.
const RECIPE: &str =
    "strategy: in-place\ndata: [store/, app.sqlite3]\ndatabases: {main: {type: sqlite, path: data/app.sqlite3}}\nsmoke: [/]\n";

/// An upgrade that drops a column if the column exists, deletes an upload, and writes the version to the database and to a file.
const UPGRADE: &str = r#"
import os, sqlite3, sys
data = os.environ["LARDER_DATA"]
with sqlite3.connect(data + "/app.sqlite3", timeout=10) as c:
    if "author" in [row[1] for row in c.execute("pragma table_info(notes)")]:
        c.execute("alter table notes drop column author")
    c.execute("update notes set text = ?", [sys.argv[1]])
if os.path.exists(data + "/store/uploads/one"):
    os.remove(data + "/store/uploads/one")
with open(data + "/store/version", "w") as file:
    file.write(sys.argv[1])
"#;

const CREATE: &str = r#"
import os, sqlite3
os.makedirs("store/uploads", exist_ok=True)
for name in ["one", "two"]:
    with open("store/uploads/" + name, "w") as upload:
        upload.write(name * 500)
with sqlite3.connect("app.sqlite3") as c:
    c.execute("create table notes (id integer primary key, text, author)")
    c.executemany("insert into notes values (?, ?, 'a')", [(number, "first") for number in range(50)])
with open("handmade", "w") as file:
    file.write("by the application")
"#;

/// Everything that a failed deployment must leave as it was: the rows of the database, the other files of the data, and the tree of the
/// running release.
#[derive(Debug, PartialEq, Eq)]
struct Everything {
    rows: String,
    data: BTreeMap<PathBuf, String>,
    tree: BTreeMap<PathBuf, String>,
}

fn everything(world: &World) -> Everything {
    let top = world.environment("shop");
    let walk = |path: &str| {
        let mut all = crate::backup::walk(&top.join(path));
        all.retain(|path, _| !path.starts_with(".larder-seed") && !path.to_str().unwrap().starts_with("app.sqlite3"));
        all.into_iter().map(|(path, seen)| (path, format!("{seen:?}"))).collect()
    };
    let rows = Sqlite(top.join("data/app.sqlite3")).ask("print('\\n'.join(c.iterdump()))");
    Everything { rows, data: walk("data"), tree: walk("slots/in-place/upper") }
}

/// The events at which the default run kills the server.
const FEW: [&str; 7] = [
    "succeeded.deploy.stop",
    "succeeded.deploy.archive",
    "succeeded.deploy.release",
    "undo_started.deploy.sync",
    "undo_finished.deploy.archive",
    "started.deploy.switch",
    "succeeded.deploy.resume",
];

fn server_killed_at_events_in_place_leaves_the_old_or_the_new_state(world: &World) {
    survives_every_kill(world, Victim::Server);
}

fn keeper_and_server_killed_at_every_event_in_place_leave_the_old_or_the_new_state(world: &World) {
    if thorough() {
        survives_every_kill(world, Victim::Both);
    }
}

/// Pushes versions until a version went live without a kill. Then pushes a version whose last step fails, so that the steps after the commit
/// point are reverted.
fn survives_every_kill(world: &World, victim: Victim) {
    if installed("python3").is_none() {
        return;
    }
    world.project("shop");
    let repo = Repo::site(world, "shop", "version 1");
    repo.write("larder.yml", RECIPE).write("upgrade.py", UPGRADE).page("version 1");
    repo.push().accepted();
    world.larder(&["run", "shop", "--", "python3", "-c", CREATE]).ok();
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
        repo.write("larder.yml", format!("{RECIPE}upgrade: python3 upgrade.py {version}\n"));
        goes_live(&repo, world, &marks, &deadly, victim, version);
        assert_eq!(fs::read_to_string(world.environment("shop").join("data/store/version")).unwrap(), version.to_string());
        version += 1;
        if names(&marks).len() == before {
            break;
        }
    }
    if thorough() {
        // A failure after the commit point does not restore the data, so this version has no upgrade.
        repo.write("larder.yml", RECIPE);
        let last = steps.last().unwrap();
        let points = format!("{deadly};step.{last}=1*return;{}", dying(&[format!("journal.failed.{last}")]));
        world.restart(&[("FAILPOINTS", &points)]);
        goes_live(&repo, world, &marks, &points, victim, version);
    }
    let died = names(&marks);
    let missed: Vec<_> = events.iter().filter(|event| !died.contains(event)).collect();
    assert!(missed.is_empty(), "no kill happened at {missed:?}");
    eprintln!("{} kills", died.len());
}

/// Pushes a version repeatedly, through all kills, until the version is live.
fn goes_live(repo: &Repo<'_>, world: &World, marks: &std::path::Path, points: &str, victim: Victim, version: u32) {
    let commit = repo.page(&format!("version {version}"));
    let before = everything(world);
    let dying = DyingServer { world, repo, marks, points };
    for _ in 0..200 {
        let died = dying.deaths();
        let push = match victim {
            Victim::Server => dying.push_to_server(),
            Victim::Both => dying.push_to_both(),
        };
        world.is_consistent("shop");
        if repo.live().unwrap() == commit {
            return world.serves("shop", &format!("version {version}"));
        }
        assert_ne!(push.0.status, 0, "the push was accepted, but its commit is not live: {}", push.0);
        if dying.deaths() == died {
            push.rejected_with("stopped by a failpoint");
        } else if victim == Victim::Server {
            // A restart ends the keeper's backoff, which grows with every kill.
            world.restart(&[("FAILPOINTS", points)]);
        }
        world.serves("shop", &format!("version {}", version - 1));
        let after = everything(world);
        assert!(after == before, "after {:?}: {}\n{after:#?}\n{before:#?}", names(marks), push.0);
    }
    panic!("version {version} never went live");
}
