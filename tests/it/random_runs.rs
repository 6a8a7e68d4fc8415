//! Random operations on one project, with kills at random instants and a disk that becomes full, compared with a small model.
//!
//! The model knows the live version, the version before, the content of the data, and the content of each restore point. An operation that
//! reports success has its effect. An operation that was killed or refused has its effect or no effect, and code and data always belong
//! together. After each operation, all invariants hold.
//!
//! `LARDER_TEST_KILLS` sets the number of kills and `LARDER_TEST_CASES` the number of runs of the model; `LARDER_TEST_SEED` repeats a run. With
//! `LARDER_TEST_THOROUGH`, the runs are long.

use std::{collections::BTreeMap, fs, thread, time::Duration};

use proptest::{
    collection::vec,
    prelude::{Strategy, any},
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};
use serde_json::Value;

use crate::{
    backup::{data, id, sh},
    harness::{Repo, World, cli::Output, disk::Disk, server::Server, thorough, until, within},
};

const RECIPE: &str = "data: [media]\nhealth: {timeout: 5s, interval: 20ms}\ndrain: 100ms\n";

/// The number of files in the data that no operation changes.
const CONSTANT: u32 = 10;

/// The operations. The numbers in the code choose versions and restore points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Push,
    /// A push whose upgrade changes the data.
    Upgrade,
    FailedBuild,
    /// A push whose upgrade changes the data, and whose check fails.
    FailedUpgrade,
    Write,
    Take,
    Restore,
    RestoreBeside,
    Rollback,
    RollbackWithData,
    Prune,
    Drill,
    Promote,
    /// Another project is created and destroyed.
    Project,
}

const ACTS: [Act; 14] = [
    Act::Push,
    Act::Upgrade,
    Act::FailedBuild,
    Act::FailedUpgrade,
    Act::Write,
    Act::Take,
    Act::Restore,
    Act::RestoreBeside,
    Act::Rollback,
    Act::RollbackWithData,
    Act::Prune,
    Act::Drill,
    Act::Promote,
    Act::Project,
];

/// The disturbance of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    None,
    KillServer,
    KillEverything,
    FullDisk,
}

/// An operation, its disturbance, the delay of the disturbance in milliseconds, and a choice.
type Move = (Act, Disturbance, u64, usize);

/// The live version and the mark in the data.
type Pair = (u32, String);

struct Model<'w> {
    world: &'w World,
    disk: Option<&'w Disk>,
    repo: Repo<'w>,
    live: Pair,
    previous: Option<u32>,
    /// The commit of each version that went live.
    commits: BTreeMap<u32, String>,
    /// The mark in each restore point.
    points: BTreeMap<String, String>,
    /// The highest number that a version or a mark had.
    last: u32,
    copies: u32,
}

impl<'w> Model<'w> {
    /// Creates a project with production, which cooks, and the environment `copy`, which takes releases over.
    fn new(world: &'w World, disk: Option<&'w Disk>, clone: &std::path::Path) -> Model<'w> {
        world.project("shop");
        world.larder(&["project", "create", "shop", "--env", "copy", "--mode", "final", "--branch", "copy"]).ok();
        let repo = Repo::at(world, "shop", clone);
        repo.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", RECIPE);
        let commit = repo.page("version 1");
        repo.push().accepted();
        sh(world, &format!("echo m1 > media/mark; for i in $(seq {CONSTANT}); do echo constant > media/$i; done"));
        let commits = BTreeMap::from([(1, commit)]);
        let live = (1, String::from("m1"));
        Model { world, disk, repo, live, previous: None, commits, points: BTreeMap::new(), last: 1, copies: 0 }
    }

    /// Does an operation with its disturbance, and compares the result with the model.
    fn step(&mut self, (act, disturbance, delay, choice): Move) {
        let (version, mark) = self.live.clone();
        self.last += 1;
        let new = self.last;
        let chosen = (!self.points.is_empty()).then(|| {
            let (point, mark) = self.points.iter().nth(choice % self.points.len()).unwrap();
            (point.clone(), mark.clone())
        });
        // The pairs that are right after a success. An operation that must fail has none.
        let mut after: Vec<Pair> = vec![self.live.clone()];
        let mut pushed = None;
        let words: Vec<String> = match act {
            Act::Push | Act::Upgrade | Act::FailedBuild | Act::FailedUpgrade => {
                let upgrade = format!("upgrade: {{run: 'echo u{new} > media/mark', safety: hold}}\n");
                let (upgrade, checks) = match act {
                    Act::Upgrade => (upgrade.as_str(), ""),
                    Act::FailedUpgrade => (upgrade.as_str(), "smoke: [/missing]\n"),
                    _ => ("", ""),
                };
                self.repo.write("larder.yml", format!("{RECIPE}{upgrade}{checks}"));
                let script = if act == Act::FailedBuild { "#!/bin/sh\nexit 1\n" } else { "#!/bin/sh\nexit 0\n" };
                self.repo.program(".larder/build", script);
                pushed = Some(self.repo.page(&format!("version {new}")));
                after = match act {
                    Act::Push => vec![(new, mark.clone())],
                    Act::Upgrade => vec![(new, format!("u{new}"))],
                    _ => Vec::new(),
                };
                Vec::new()
            }
            Act::Write => {
                after = vec![(version, format!("m{new}"))];
                words(&["run", "shop", "--", "sh", "-ec", &format!("echo m{new} > media/new; mv media/new media/mark")])
            }
            Act::Take => words(&["--json", "backup", "take", "shop"]),
            Act::Restore => {
                let Some((point, mark)) = chosen else { return };
                after = vec![(version, mark)];
                words(&["backup", "restore", "shop", &point, "--yes"])
            }
            Act::RestoreBeside => {
                let Some((point, _)) = chosen else { return };
                self.copies += 1;
                words(&["backup", "restore", "shop", &point, "--into", &format!("copy{}", self.copies)])
            }
            Act::Rollback | Act::RollbackWithData => {
                let Some(target) = self.previous else { return };
                let commit = self.commits[&target].as_str();
                // The upgrade of the release runs again.
                let upgraded = (target, format!("u{target}"));
                if act == Act::Rollback {
                    after = vec![(target, mark.clone()), upgraded];
                    words(&["rollback", "shop", commit])
                } else {
                    let Some((point, mark)) = chosen else { return };
                    after = vec![(target, mark), upgraded];
                    words(&["rollback", "shop", commit, "--with-data", "--point", &point, "--confirm", "shop"])
                }
            }
            Act::Prune => words(&["backup", "prune", "shop"]),
            Act::Drill => words(&["backup", "drill", "shop"]),
            Act::Promote => words(&["promote", "shop/production", self.commits[&version].as_str(), "--to", "copy"]),
            Act::Project => words(&["project", "create", &format!("other{new}"), "--mode", "cooking"]),
        };
        if act == Act::Drill && self.points.is_empty() {
            return;
        }
        let is_undisturbed = disturbance == Disturbance::None;
        let said = self.disturbed(disturbance, Duration::from_millis(delay), || match pushed {
            Some(_) => self.repo.push().0,
            None => self.world.larder(&words.iter().map(String::as_str).collect::<Vec<_>>()),
        });
        self.world.is_consistent("shop");
        let status = self.world.larder(&["status"]);
        assert!(!status.ok().contains("frozen"), "{act:?}: {status}");
        let seen = self.seen();
        let is_new = after.contains(&seen);
        let about =
            format!("{act:?} with {disturbance:?} after {delay} ms: {seen:?} after {:?} (expected {after:?}): {said}", self.live);
        if said.status == 0 {
            assert!(is_new, "an acknowledged operation has no effect: {about}");
        } else {
            assert!(is_new || seen == self.live, "{about}");
            assert!(!is_undisturbed || after.is_empty(), "an operation failed: {about}");
        }
        self.adopt(act, seen, pushed, &mark);
        if act == Act::Project {
            self.destroy_other(new, said.status == 0, is_undisturbed);
        }
        if act == Act::Promote && said.status == 0 {
            let page = self.world.get("copy--shop", "/").body;
            assert!(page.contains(&format!("version {version}")), "{page}");
        }
    }

    /// Updates the model with the observed state.
    fn adopt(&mut self, act: Act, seen: Pair, pushed: Option<String>, mark: &str) {
        if seen.0 != self.live.0 {
            self.previous = Some(self.live.0);
        }
        match pushed {
            Some(commit) if seen.0 == self.last => drop(self.commits.insert(seen.0, commit)),
            Some(_) => drop(self.repo.git(&["reset", "--quiet", "--hard", "HEAD~1"])),
            None => {}
        }
        self.live = seen;
        let listed = self.world.larder(&["--json", "backup", "list", "shop"]).json();
        let listed: Vec<&Value> = listed["points"].as_array().unwrap().iter().collect();
        let ids: Vec<String> = listed.iter().map(|point| id(point).to_owned()).collect();
        let gone: Vec<_> = self.points.keys().filter(|known| !ids.contains(known)).cloned().collect();
        assert!(gone.is_empty() || act == Act::Prune, "{act:?} removed the restore points {gone:?}");
        gone.iter().for_each(|gone| drop(self.points.remove(gone)));
        for new in ids {
            // The restore points of an operation have the data from before the operation.
            self.points.entry(new).or_insert_with(|| mark.to_owned());
        }
    }

    fn destroy_other(&self, number: u32, is_created: bool, is_undisturbed: bool) {
        let other = format!("other{number}");
        let destroyed = self.world.larder(&["project", "destroy", &other, "--confirm", &other]);
        assert!(destroyed.status == 0 || !is_created, "an acknowledged project is lost: {destroyed}");
        assert!(is_created || !is_undisturbed);
    }

    /// Returns the version that answers, and the mark in the data. The other files of the data must be unchanged.
    fn seen(&self) -> Pair {
        until("the release answers", || self.world.get("shop", "/").status == 200);
        let page = self.world.get("shop", "/").body;
        let version =
            page.split_whitespace().rev().find_map(|word| word.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok());
        let media = data(self.world).join("media");
        let read =
            |name: String| fs::read_to_string(media.join(name)).unwrap_or_else(|error| panic!("{error}")).trim().to_owned();
        let names = crate::harness::state::names(&media);
        let names: Vec<_> = names.into_iter().filter(|name| name != "new").collect();
        assert_eq!(names.len() as u32, CONSTANT + 1, "{names:?}");
        (1..=CONSTANT).for_each(|number| assert_eq!(read(number.to_string()), "constant"));
        (version.unwrap_or_else(|| panic!("{page}")), read(String::from("mark")))
    }

    /// Does an operation, disturbs it after a delay, and waits until the server works again.
    fn disturbed(&self, disturbance: Disturbance, delay: Duration, act: impl FnOnce() -> Output + Send) -> Output {
        let world = self.world;
        let said = thread::scope(|scope| {
            let acting = scope.spawn(act);
            if disturbance != Disturbance::None {
                thread::sleep(delay);
            }
            match (disturbance, self.disk) {
                (Disturbance::KillServer, _) => world.with(Server::shoot_role),
                (Disturbance::KillEverything, _) => world.kill9_everything(),
                (Disturbance::FullDisk, Some(disk)) => {
                    disk.fill();
                    within(Duration::from_secs(3), || acting.is_finished());
                    disk.free();
                }
                _ => {}
            }
            acting.join().unwrap()
        });
        match disturbance {
            Disturbance::KillEverything => world.start(&[]),
            // A restart ends the keeper's pause, which grows with every kill.
            Disturbance::KillServer => {
                until("the server answers", || world.larder(&["status"]).status == 0);
                world.restart(&[]);
            }
            _ => {}
        }
        until("the server answers", || world.larder(&["status"]).status == 0);
        until("every deployment has its end", || world.has_ended("shop"));
        said
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn seed() -> u64 {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    number("LARDER_TEST_SEED").unwrap_or(time.as_nanos() as u64)
}

/// Returns a generator of proptest whose whole state follows from a seed.
fn generator(seed: u64) -> TestRng {
    let bytes: Vec<u8> = (0..4_u64).flat_map(|part| (seed ^ part).to_le_bytes()).collect();
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

fn moves(disturbances: &'static [Disturbance], longest: u64) -> impl Strategy<Value = Move> {
    (any::<u8>(), any::<u8>(), 0..longest, any::<u8>()).prop_map(|(act, disturbance, delay, choice)| {
        let act = ACTS[usize::from(act) % ACTS.len()];
        (act, disturbances[usize::from(disturbance) % disturbances.len()], delay, usize::from(choice))
    })
}

#[test]
fn random_kill_leaves_code_and_data_of_one_version() {
    let Some(world) = World::any() else { return };
    let kills = number("LARDER_TEST_KILLS").unwrap_or(if thorough() { 200 } else { 6 });
    let seed = seed();
    eprintln!("{kills} kills, LARDER_TEST_SEED={seed}");
    let clone = tempfile::tempdir().unwrap();
    let mut model = Model::new(&world, None, clone.path());
    model.step((Act::Take, Disturbance::None, 0, 0));
    model.step((Act::Push, Disturbance::None, 0, 0));
    let mut runner = TestRunner::new_with_rng(Config::default(), generator(seed));
    let strategy = moves(&[Disturbance::KillServer, Disturbance::KillServer, Disturbance::KillEverything], 1500);
    let mut counts = BTreeMap::<String, u32>::new();
    for number in 0..kills {
        let next = proptest::strategy::ValueTree::current(&strategy.new_tree(&mut runner).unwrap());
        eprintln!("kill {number}: {next:?} (LARDER_TEST_SEED={seed})");
        model.step(next);
        *counts.entry(format!("{:?}", next.0)).or_default() += 1;
    }
    eprintln!("{kills} kills at random instants, no invariant broken: {counts:?} (LARDER_TEST_SEED={seed})");
    world.end();
}

#[test]
fn random_operations_agree_with_the_model() {
    // Without a disk of its own, no disk becomes full.
    let disk = Disk::for_world("ext4", 420);
    let cases = number("LARDER_TEST_CASES").unwrap_or(if thorough() { 20 } else { 1 });
    let seed = seed();
    eprintln!("{cases} runs of the model, LARDER_TEST_SEED={seed}");
    let config = Config { cases: cases as u32, max_shrink_iters: if thorough() { 10 } else { 0 }, ..Config::default() };
    let config = Config { failure_persistence: None, ..config };
    let strategy = vec(
        moves(
            &[Disturbance::None, Disturbance::None, Disturbance::KillServer, Disturbance::KillEverything, Disturbance::FullDisk],
            1500,
        ),
        if thorough() { 8..20 } else { 5..6 },
    );
    let done = std::cell::Cell::new(0);
    let ran = TestRunner::new_with_rng(config, generator(seed)).run(&strategy, |moves| {
        let world = match &disk {
            Some(disk) => World::on_disk(disk),
            None => World::any().ok_or_else(|| TestCaseError::reject("no world"))?,
        };
        let clone = tempfile::tempdir().unwrap();
        let mut model = Model::new(&world, disk.as_ref(), clone.path());
        for next in &moves {
            eprintln!("{next:?} (LARDER_TEST_SEED={seed})");
            model.step(*next);
            done.set(done.get() + 1);
        }
        drop(model);
        world.end();
        Ok(())
    });
    ran.unwrap_or_else(|error| panic!("{error} (LARDER_TEST_SEED={seed})"));
    eprintln!("{cases} runs of the model with {} operations agree (LARDER_TEST_SEED={seed})", done.get());
}
