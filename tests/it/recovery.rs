//! The server dies: at every event of a journal, and at any instant. The next one puts things right without help.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::harness::{Repo, World, in_each_mode, in_one_mode, state::names, until};

in_each_mode!(a_killed_server_leaves_the_application_alone);
in_one_mode!(a_killed_keeper_and_server_come_back, a_graceful_restart_serves_again);

/// How many worlds share the events of the big test; each runs on its own, and mostly waits.
const SHARES: usize = 6;

fn thorough() -> bool {
    std::env::var_os("LARDER_TEST_THOROUGH").is_some()
}

/// A directory in which failpoints remember that they have fired: the next server has the same ones.
fn marks(world: &World) -> PathBuf {
    let marks = world.directory().join("marks");
    fs::create_dir(&marks).unwrap();
    fs::set_permissions(&marks, fs::Permissions::from_mode(0o777)).unwrap();
    marks
}

/// Every event of a deployment's journal that a push can meet, on its good way and on its way back.
fn events(steps: &[String]) -> Vec<String> {
    let of_step = |step: &String| ["started", "succeeded", "undo_started", "undo_finished"].map(|word| format!("{word}.{step}"));
    let whole = ["opened", "recovered", "ended"].map(str::to_owned);
    whole.into_iter().chain(steps.iter().flat_map(of_step)).collect()
}

#[test]
fn the_server_dies_at_every_event_of_a_journal() {
    let shares: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SHARES).map(|share| scope.spawn(move || dies_at_events(share))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut all = BTreeSet::new();
    let mut died = BTreeSet::new();
    for (events, marks) in shares {
        all.extend(events);
        died.extend(marks);
    }
    // Where a deployment is finished rather than unwound, its undo never begins; everything else must have been met.
    let missed: Vec<_> = all.difference(&died).filter(|event| !event.starts_with("journal.undo")).collect();
    assert!(missed.is_empty(), "the server never died at {missed:?}");
}

/// Takes every [`SHARES`]th event. Returns those events, and those at which the server died.
fn dies_at_events(share: usize) -> (Vec<String>, Vec<String>) {
    let Some(world) = (if share.is_multiple_of(2) { World::any() } else { World::rootless() }) else { return Default::default() };
    world.project("shop");
    let mut repo = Repo::site(&world, "shop", "version 1");
    repo.push().accepted();
    let marks = marks(&world);
    let events: Vec<_> = events(&world.steps("shop")).into_iter().skip(share).step_by(SHARES).collect();
    let events: Vec<_> = events.into_iter().map(|event| format!("journal.{event}")).collect();
    let points: Vec<_> = events.iter().map(|event| format!("{event}=return({})", marks.display())).collect();
    world.restart(&[("FAILPOINTS", &points.join(";"))]);
    let mut version = 1;
    for _ in 0..2 * events.len() + 2 {
        version += 1;
        let before = names(&marks).len();
        if !survives(&world, &mut repo, version, &|| names(&marks).len()) && names(&marks).len() == before {
            break;
        }
    }
    let marks = names(&marks);
    world.end();
    (events, marks)
}

/// Pushes a version, whatever happens to the server meanwhile, until it is live. Returns whether the server died.
fn survives(world: &World, repo: &mut Repo<'_>, version: u32, deaths: &dyn Fn() -> usize) -> bool {
    let application = world.application("shop");
    let deployments = world.journals("shop").len();
    let old = format!("version {}<", version - 1);
    let new = format!("version {version}");
    let commit = repo.page(&new);
    let mut died = false;
    for _ in 0..50 {
        let (before, ready) = (deaths(), world.with(|server| server.ready()));
        let push = repo.push();
        let fired = deaths() - before;
        if fired > 0 {
            died = true;
            until("a server is ready again", || {
                let fired = deaths() - before;
                world.with(|server| server.ready()) > ready && fired == deaths() - before && world.larder(&["status"]).status == 0
            });
        } else {
            push.accepted();
        }
        world.is_consistent("shop");
        let live = repo.live().unwrap();
        let page = world.get("shop", "/");
        assert_eq!(page.status, 200, "{page:?} after {:?}", push.0);
        if live == commit {
            page.holds(&new);
            return died;
        }
        assert!(page.body.contains(old.trim_end_matches('<')), "{page:?} is not {old}");
        assert_eq!(
            world.application("shop"),
            application,
            "the application was restarted; {} deployments",
            world.journals("shop").len() - deployments
        );
        assert!(fired > 0, "the push was accepted and is not live: {}", push.0);
    }
    panic!("version {version} never went live");
}

fn a_killed_server_leaves_the_application_alone(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let application = world.application("shop");
    assert!(!application.is_empty(), "no process of the application is found");
    let port = world.ports("shop")[0] as u16;
    world.kill9_server();
    world.serves("shop", "version one");
    assert_eq!(world.application("shop"), application, "the application was restarted");
    assert_eq!(world.ports("shop"), [u64::from(port)]);
    // While no server is there, the application itself still answers.
    world.with(|server| server.shoot_role());
    let answer = crate::harness::http::get(port, "shop.localhost", "/");
    assert_eq!(answer.unwrap().status, 200);
    until("a server answers", || world.larder(&["status"]).status == 0);
    repo.page("version two");
    repo.push().accepted();
    world.serves("shop", "version two");
}

fn a_killed_keeper_and_server_come_back(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version 1");
    repo.push().accepted();
    let mut version = 1;
    for delay in instants(if thorough() { 25 } else { 3 }) {
        version += 1;
        let commit = repo.page(&format!("version {version}"));
        std::thread::scope(|scope| {
            let push = scope.spawn(|| repo.push());
            std::thread::sleep(delay);
            world.kill9_all();
            let _ = push.join().unwrap();
        });
        world.start(&[]);
        whole_again(world, &repo, &commit, version);
    }
}

#[test]
fn the_server_dies_at_random_instants() {
    let Some(world) = World::any() else { return };
    world.project("shop");
    let repo = Repo::site(&world, "shop", "version 1");
    repo.push().accepted();
    let mut version = 1;
    for (number, delay) in instants(if thorough() { 50 } else { 6 }).into_iter().enumerate() {
        // The pauses between the keeper's attempts grow; a new keeper begins with the first again.
        if number % 6 == 5 {
            world.restart(&[]);
        }
        version += 1;
        let commit = repo.page(&format!("version {version}"));
        let application = world.application("shop");
        std::thread::scope(|scope| {
            let push = scope.spawn(|| repo.push());
            std::thread::sleep(delay);
            world.kill9_server();
            let _ = push.join().unwrap();
        });
        if repo.live().as_ref() != Some(&commit) {
            assert_eq!(world.application("shop"), application, "the application was restarted");
        }
        whole_again(&world, &repo, &commit, version);
    }
    world.end();
}

/// After whatever happened: no half state, one version answers, and the same push makes the new one live.
fn whole_again(world: &World, repo: &Repo<'_>, commit: &str, version: u32) {
    world.is_consistent("shop");
    let live = repo.live().unwrap() == commit;
    world.serves("shop", &format!("version {}", if live { version } else { version - 1 }));
    repo.push().accepted();
    world.serves("shop", &format!("version {version}"));
    world.is_consistent("shop");
}

/// Instants of a push: spread over the time that one takes here, and shifted from run to run.
fn instants(count: u32) -> Vec<Duration> {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    eprintln!("seed of the instants: {seed}");
    let spread = Duration::from_millis(2500);
    (0..count).map(|number| (spread * number + spread * (seed % 1000) / 1000) / count).collect()
}

fn a_graceful_restart_serves_again(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let start = Instant::now();
    world.restart(&[]);
    world.serves("shop", "version one");
    eprintln!("stopped, started and answered in {:?}", start.elapsed());
    world.is_consistent("shop");
    repo.page("version two");
    repo.push().accepted().says("v2 is live");
    world.serves("shop", "version two");
}
