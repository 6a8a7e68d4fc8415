//! Kills of the server, or of keeper and server, at every event of a journal and at random instants. The next server recovers the deployment.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::harness::{Repo, World, git::Push, in_each_mode, in_one_mode, state::names, thorough, until};

in_each_mode!(application_keeps_running_when_the_server_is_killed);
in_one_mode!(
    killed_keeper_and_server_recover_at_any_instant,
    graceful_restart_serves_the_live_release,
    leftovers_of_a_kill_are_removed_at_start,
    pending_followups_run_after_a_restart,
    every_outcome_is_announced_once,
    push_during_recovery_is_rejected_with_the_reason,
    ending_that_an_observer_did_not_accept_is_announced_by_the_next_server,
);

/// The number of worlds that share the events of a large test. Each world runs in its own thread and mostly waits.
const SHARES: usize = 6;

/// The kind of deployment that is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// The pushed commit is built.
    Cooking,
    /// The pushed commit was cooked before, by another environment of the same server.
    Delivering,
}

/// The number of versions that are cooked in advance for [`Course::Delivering`]; more than a test uses.
const COOKED: u32 = 5;

/// Creates the directory in which failpoints record that they have fired. Each failpoint therefore fires once, although the next server has
/// the same failpoints.
pub fn marks(world: &World) -> PathBuf {
    let marks = world.directory().join("marks");
    fs::create_dir(&marks).unwrap();
    fs::set_permissions(&marks, fs::Permissions::from_mode(0o777)).unwrap();
    marks
}

/// Creates the file that the test observer writes to.
fn observed(world: &World) -> PathBuf {
    let file = world.directory().join("observed");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    file
}

/// Returns true if every end in the journals of a project is recorded as announced.
fn all_announced(world: &World, project: &str) -> bool {
    world.journals(project).iter().all(|journal| {
        let ends = journal.iter().filter(|record| record["event"] == "ended").count() as u64;
        let known = journal.iter().filter(|record| record["event"] == "announced").filter_map(|record| record["ending"].as_u64());
        known.max().unwrap_or(0) == ends
    })
}

/// Asserts that the test observer has seen each end exactly once, with the right outcome.
fn each_ending_is_announced_once(world: &World, project: &str, observed: &std::path::Path) {
    until("observers are told", || all_announced(world, project));
    let text = fs::read_to_string(observed).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.iter().collect::<BTreeSet<_>>().len(), lines.len(), "announced twice: {text}");
    // The first deployment ended before the observer was added.
    for journal in world.journals(project).iter().skip(1) {
        let id = journal[0]["deployment"].as_str().unwrap();
        let ends = journal.iter().filter(|record| record["event"] == "ended");
        for (number, end) in ends.enumerate() {
            let line = format!("{id}.{} {project}/production {}", number + 1, end["outcome"].as_str().unwrap());
            assert_eq!(lines.iter().filter(|seen| **seen == line).count(), 1, "{line:?} in {text}");
        }
    }
}

/// Returns every journal event that a push can reach, while its deployment runs and while the deployment is unwound.
pub fn events(steps: &[String]) -> Vec<String> {
    let of_step = |step: &String| ["started", "succeeded", "undo_started", "undo_finished"].map(|word| format!("{word}.{step}"));
    let whole = ["opened", "recovered", "ended", "announced"].map(str::to_owned);
    let events = whole.into_iter().chain(steps.iter().flat_map(of_step));
    // At this failpoint, the observers know an ending that the journal does not record as announced yet.
    let delivered = String::from("announce.delivered");
    events.map(|event| format!("journal.{event}")).chain([delivered]).collect()
}

/// The processes that are killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The server alone; the keeper starts a new server.
    Server,
    /// Keeper and server, as in a reset of the machine.
    Both,
}

#[test]
fn server_killed_at_every_journal_event_recovers() {
    at_every_event(Victim::Server, Course::Cooking);
}

#[test]
fn keeper_and_server_killed_at_every_journal_event_recover() {
    at_every_event(Victim::Both, Course::Cooking);
}

pub fn at_every_event(victim: Victim, course: Course) {
    let shares: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..SHARES).map(|share| scope.spawn(move || dies_at_events(share, victim, course))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut all = BTreeSet::new();
    let mut died = BTreeSet::new();
    for (events, marks) in shares {
        all.extend(events);
        died.extend(marks);
    }
    let least = if course == Course::Delivering && !thorough() { 20 } else { 75 };
    assert!(all.len() > least, "{all:?}");
    let missed: Vec<_> = all.difference(&died).collect();
    assert!(missed.is_empty(), "no kill happened at {missed:?}");
}

/// A world in which the server is killed once at each of some events.
struct Deadly<'w> {
    world: &'w World,
    repo: Repo<'w>,
    marks: PathBuf,
    points: String,
    victim: Victim,
    course: Course,
    /// The commits of the next versions, if they are cooked in advance.
    cooked: VecDeque<String>,
    version: u32,
}

/// Kills the processes of `victim` at every [`SHARES`]th event. Returns these events, and all events at which a kill happened.
fn dies_at_events(share: usize, victim: Victim, course: Course) -> (Vec<String>, Vec<String>) {
    let Some(world) = (if share.is_multiple_of(2) { World::any() } else { World::rootless() }) else { return Default::default() };
    let (repo, cooked) = match course {
        Course::Cooking => {
            world.project("shop");
            let repo = Repo::new(&world, "shop");
            repo.write("Procfile", "web: larder static-server --root .\nworker: sleep 1000\n");
            repo.write("larder.yml", "smoke: [/]\nscale: {worker: 1}\n").page("version 1");
            (repo, VecDeque::new())
        }
        Course::Delivering => {
            crate::promotion::pair(&world);
            let repo = Repo::site(&world, "shop", "version 1");
            crate::promotion::staging(&repo).accepted();
            let cook = |version: u32| {
                let commit = repo.page(&format!("version {version}"));
                crate::promotion::staging(&repo).accepted();
                commit
            };
            let first = repo.head();
            let cooked = (2..=COOKED).map(cook).collect();
            repo.git(&["checkout", "--quiet", &first]).ok();
            (repo, cooked)
        }
    };
    repo.push().accepted();
    let marks = marks(&world);
    if victim == Victim::Both {
        fs::write(marks.join("stop"), "").unwrap();
    }
    let steps = world.steps("shop");
    let interrupted = match course {
        // The steps after `gather` are the same as in a deployment with a build, which has a test of its own.
        Course::Delivering if !thorough() => steps.iter().filter(|step| step.starts_with("gather.")).cloned().collect(),
        _ => steps.clone(),
    };
    let events: Vec<_> = events(&interrupted).into_iter().skip(share).step_by(SHARES).collect();
    // Without a hold, the step `deploy.switch` is the commit point. The kill after `deploy.boot` therefore makes every share unwind a
    // deployment completely, and the kill after `deploy.switch` makes every share finish a deployment.
    let turns = [String::from("journal.succeeded.deploy.boot"), String::from("journal.succeeded.deploy.switch")];
    let dying = |events: &[String]| events.iter().map(|event| format!("{event}=return({})", marks.display())).collect::<Vec<_>>();
    let mut points = dying(&[&events[..], &turns].concat());
    let observed = observed(&world);
    points.push(format!("observer=return({})", observed.display()));
    let points = points.join(";");
    let mut deadly = Deadly { world: &world, repo, marks: marks.clone(), points, victim, course, cooked, version: 1 };
    world.restart(&[("FAILPOINTS", &deadly.points)]);
    loop {
        let before = deadly.deaths();
        deadly.survives();
        if deadly.deaths() == before {
            break;
        }
    }
    // The unwind from the last step also reverts the steps after the switch.
    let last = steps.last().unwrap();
    let failing = [format!("step.{last}=1*return"), dying(&[format!("journal.failed.{last}")]).concat()].join(";");
    deadly.points = format!("{};{failing}", deadly.points);
    world.restart(&[("FAILPOINTS", &deadly.points)]);
    deadly.survives();
    each_ending_is_announced_once(&world, "shop", &observed);
    let marks = names(&marks);
    world.end();
    (events, marks)
}

impl Deadly<'_> {
    fn deaths(&self) -> usize {
        names(&self.marks).len()
    }

    /// Pushes the next version repeatedly, through all kills, until the version is live.
    fn survives(&mut self) {
        let (old, new) = (format!("version {}\n", self.version), format!("version {}\n", self.version + 1));
        self.version += 1;
        let commit = self.next(new.trim_end());
        let (world, repo) = (self.world, &self.repo);
        let application = world.application("shop");
        for _ in 0..50 {
            let before = self.deaths();
            let dying = DyingServer { world, repo, marks: &self.marks, points: &self.points };
            let push = match self.victim {
                Victim::Server => dying.push_to_server(),
                Victim::Both => dying.push_to_both(),
            };
            if self.deaths() == before && push.0.status != 0 {
                push.rejected_with("stopped by a failpoint");
            }
            match self.course {
                Course::Cooking => world.is_consistent("shop"),
                Course::Delivering => world.is_consistent_with_a_store("shop"),
            }
            let live = repo.live().unwrap();
            let page = world.get("shop", "/");
            assert_eq!(page.status, 200, "{page:?} after {}", push.0);
            if live == commit {
                page.holds(&new);
                return;
            }
            page.holds(&old);
            if self.victim == Victim::Server {
                assert_eq!(world.application("shop"), application, "the application was restarted: {}", push.0);
            }
            assert_ne!(push.0.status, 0, "the push was accepted, but its commit is not live: {}", push.0);
        }
        panic!("version {} never went live", self.version);
    }

    /// Checks out the next version, and returns its commit.
    fn next(&mut self, page: &str) -> String {
        match self.course {
            Course::Cooking => self.repo.page(page),
            Course::Delivering => {
                let commit = self.cooked.pop_front().expect("too few versions were cooked");
                self.repo.git(&["checkout", "--quiet", &commit]).ok();
                commit
            }
        }
    }
}

/// A project whose server is killed at events while a push is in flight.
pub struct DyingServer<'a, 'w> {
    pub world: &'a World,
    pub repo: &'a Repo<'w>,
    /// The directory in which failpoints record that they have fired.
    pub marks: &'a Path,
    /// The value of `FAILPOINTS`.
    pub points: &'a str,
}

impl DyingServer<'_, '_> {
    pub fn deaths(&self) -> usize {
        names(self.marks).len()
    }

    /// Pushes, and waits until the keeper's next server has recovered.
    pub fn push_to_server(&self) -> Push {
        let (before, ready) = (self.deaths(), self.world.with(|server| server.ready()));
        let push = self.repo.push();
        // The kill may also happen after the verdict, while observers are told.
        until("observers are told, or the server was killed", || self.deaths() > before || all_announced(self.world, "shop"));
        if self.deaths() > before {
            // The time limit is for each recovery.
            let mut died = 0;
            while self.deaths() > died {
                died = self.deaths();
                until("a server is ready again and stays, or is killed again", || {
                    self.world.with(|server| server.hurry());
                    let ready = self.world.with(|server| server.ready()) > ready;
                    let recovered = ready && self.world.larder(&["status"]).status == 0 && self.world.has_ended("shop");
                    self.deaths() > died || (recovered && all_announced(self.world, "shop"))
                });
            }
        }
        push
    }

    /// Pushes. Kills keeper and server whenever the server has stopped at an event, also during the recovery from the last kill.
    pub fn push_to_both(&self) -> Push {
        let mut seen = self.deaths();
        thread::scope(|scope| {
            let push = scope.spawn(|| self.repo.push());
            let mut last = Instant::now();
            // A server may be ready before its recovery is complete, and may then still reach an event at which it stops.
            let settled = || self.world.has_ended("shop") && all_announced(self.world, "shop");
            while !push.is_finished() || !settled() || self.deaths() > seen {
                assert!(last.elapsed() < Duration::from_secs(60), "neither an end nor a kill for a minute");
                if self.deaths() > seen {
                    last = Instant::now();
                    self.world.kill9_all();
                    loop {
                        seen = self.deaths();
                        if self.world.start_unless(&[("FAILPOINTS", self.points)], &|| self.deaths() > seen) {
                            break;
                        }
                    }
                }
                thread::sleep(Duration::from_millis(10));
            }
            push.join().unwrap()
        })
    }
}

fn application_keeps_running_when_the_server_is_killed(world: &World) {
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
    // Without a server, the application itself still answers.
    world.with(|server| server.shoot_role());
    let answer = crate::harness::http::get(port, "shop.localhost", "/");
    assert_eq!(answer.unwrap().status, 200);
    until("a server answers", || world.larder(&["status"]).status == 0);
    repo.page("version two");
    repo.push().accepted();
    world.serves("shop", "version two");
}

fn killed_keeper_and_server_recover_at_any_instant(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version 1");
    repo.push().accepted();
    let mut version = 1;
    for delay in instants(if thorough() { 25 } else { 3 }) {
        version += 1;
        let commit = repo.page(&format!("version {version}"));
        thread::scope(|scope| {
            let push = scope.spawn(|| repo.push());
            thread::sleep(delay);
            world.kill9_all();
            let _ = push.join().unwrap();
        });
        world.start(&[]);
        recovers(world, &repo, &commit, version);
    }
}

#[test]
fn server_killed_at_random_instants_recovers() {
    let Some(world) = World::any() else { return };
    world.project("shop");
    let repo = Repo::site(&world, "shop", "version 1");
    repo.push().accepted();
    let mut version = 1;
    for (number, delay) in instants(if thorough() { 50 } else { 6 }).into_iter().enumerate() {
        // The keeper's backoff grows with every kill; a new keeper starts with the shortest pause.
        if number % 6 == 5 {
            world.restart(&[]);
        }
        version += 1;
        let commit = repo.page(&format!("version {version}"));
        let application = world.application("shop");
        thread::scope(|scope| {
            let push = scope.spawn(|| repo.push());
            thread::sleep(delay);
            world.kill9_server();
            let _ = push.join().unwrap();
        });
        if repo.live().as_ref() != Some(&commit) {
            assert_eq!(world.application("shop"), application, "the application was restarted");
        }
        recovers(&world, &repo, &commit, version);
    }
    world.end();
}

/// Asserts that the state is consistent and one version answers, and that a repeated push makes the new version live.
fn recovers(world: &World, repo: &Repo<'_>, commit: &str, version: u32) {
    world.is_consistent("shop");
    let live = repo.live().unwrap() == commit;
    world.serves("shop", &format!("version {}", if live { version } else { version - 1 }));
    repo.push().accepted();
    world.serves("shop", &format!("version {version}"));
    world.is_consistent("shop");
}

/// The leftovers are a stale lock of git, which would block every push, and the directory of a deployment that never began.
fn leftovers_of_a_kill_are_removed_at_start(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    repo.page("version two");
    let lock = world.root().join("projects/shop/git/project.git/refs/heads/main.lock");
    fs::write(&lock, "").unwrap();
    repo.push().rejected_with("main.lock");
    world.kill9_all();
    let deployments = world.environment("shop").join("deployments");
    let mut other = names(&deployments).remove(0);
    let last = other.pop().unwrap();
    other.push(if last == '0' { '1' } else { '0' });
    fs::create_dir(deployments.join(&other)).unwrap();
    world.start(&[]);
    assert!(!deployments.join(&other).exists(), "{other}");
    repo.push().accepted();
    world.serves("shop", "version two");
    assert!(!lock.exists());
    world.is_consistent("shop");
}

/// Returns instants within the duration of a push, evenly spread and shifted from run to run.
fn instants(count: u32) -> Vec<Duration> {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    eprintln!("seed of the instants: {seed}");
    let spread = Duration::from_millis(2500);
    (0..count).map(|number| (spread * number + spread * (seed % 1000) / 1000) / count).collect()
}

fn graceful_restart_serves_the_live_release(world: &World) {
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

fn pending_followups_run_after_a_restart(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", "keep: {releases: 2}\n");
    world.restart(&[("FAILPOINTS", "followups.prune=sleep(60000)")]);
    for page in ["one", "two", "three"] {
        repo.page(page);
        repo.push().accepted();
    }
    let stored =
        || names(&world.environment("shop").join("releases")).iter().filter(|name| name.ends_with(".manifest.json")).count();
    assert_eq!(stored(), 3);
    world.kill9_all();
    world.start(&[]);
    until("the oldest release is removed", || stored() == 2);
    world.is_consistent("shop");
}

fn push_during_recovery_is_rejected_with_the_reason(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    world.restart(&[("FAILPOINTS", "attach=1*sleep(9000)")]);
    repo.page("version two");
    repo.push().rejected_with("still being recovered");
    until("the environment is recovered", || {
        world.larder(&["deploy", "shop", "--cancel"]).status == 4 && world.get("shop", "/").status == 200
    });
    repo.push().accepted();
}

/// Every possible outcome of a deployment reaches an observer exactly once, also across a restart.
fn every_outcome_is_announced_once(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let observed = observed(world);
    let observer = format!("observer=return({})", observed.display());
    let start = |points: &str| world.restart(&[("FAILPOINTS", &format!("{points};{observer}"))]);
    start("step.gather.source=1*return;step.deploy.boot=1*return");
    repo.page("version two");
    repo.push().rejected_with("stopped by a failpoint");
    repo.push().rejected_with("stopped by a failpoint");
    repo.push().accepted();
    world.larder(&["deploy", "shop", "--only", "gather"]).ok();
    start("step.post_deploy.smoke=1*return;undo.deploy.install=1*return");
    repo.page("version three");
    repo.push().rejected_with("frozen");
    start("");
    world.larder(&["deploy", "shop", "--unfreeze"]).ok();
    each_ending_is_announced_once(world, "shop", &observed);
    let text = fs::read_to_string(&observed).unwrap();
    let ends: Vec<_> = text.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
    let of = |word: &str| ends.iter().filter(|end| **end == word).count();
    let counts = ["refused", "rolled_back", "live", "tried", "stuck", "released"].map(of);
    assert_eq!(counts, [1, 2, 1, 1, 1, 1], "{text}");
}

/// If an observer fails three times, the next server announces the ending to the observer.
fn ending_that_an_observer_did_not_accept_is_announced_by_the_next_server(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    until("the first ending is announced", || all_announced(world, "shop"));
    // The observer cannot write its file: the directory is missing.
    let directory = world.directory().join("observers");
    let file = directory.join("observed");
    let observer = format!("observer=return({})", file.display());
    world.restart(&[("FAILPOINTS", &observer)]);
    repo.page("version two");
    repo.push().accepted();
    until("the observer has failed for good", || {
        crate::harness::server::log_tail(world.directory()).contains("observer did not accept an ending")
    });
    assert!(!all_announced(world, "shop"));
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    world.restart(&[("FAILPOINTS", &observer)]);
    each_ending_is_announced_once(world, "shop", &file);
}
