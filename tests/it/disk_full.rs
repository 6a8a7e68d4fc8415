//! A disk that becomes full at each step of a deployment, a restore point, a restore and a rollback. The operation is refused or reverted with
//! a reason that names the space, the live release and its data stay, and the next push goes live without help when there is space.
//!
//! By default, the disk is full at a few steps. With `LARDER_TEST_THOROUGH`, the disk is full at each step of each plan, on ext4 and on xfs, and
//! the inodes of ext4 are used up; on btrfs and tmpfs, the disk is full at a few steps.

use std::{collections::BTreeMap, fs, path::PathBuf, thread, time::Duration};

use crate::{
    backup::{Seen, data, id, sh, walk},
    harness::{Repo, World, cli::Output, disk::Disk, thorough, until, within},
};

/// The size of a disk in MiB besides the program: a few releases, and the space that must stay free.
const SIZE: u64 = 340;

const UPGRADE: &str =
    "upgrade: |\n  for i in $(seq 20); do echo new > media/new-$i; done; rm -f media/1; head -c 3000000 /dev/zero > media/log\n";

/// The way in which the releases of a test are deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    Cooking,
    InPlace,
    /// Staging cooks, and production takes the release over.
    Final,
}

/// The words that a reason contains if it names the space.
const SPACE: [&str; 6] =
    ["disk is nearly full", "disk is full", "bytes are free", "of disk space are free", "can be created", "inodes are free"];

struct Attempt<'a> {
    world: &'a World,
    disk: &'a Disk,
    fill: fn(&Disk),
}

fn full_at_each_step(plan: Plan, kind: &str, fill: fn(&Disk), chosen: Option<&[&str]>) {
    let Some(disk) = Disk::for_world(kind, SIZE) else { return };
    let world = World::on_disk(&disk);
    if plan == Plan::Final {
        crate::promotion::pair(&world);
    } else {
        world.project("shop");
    }
    // The clone of the developer is on another disk.
    let clone = tempfile::tempdir().unwrap();
    let repo = Repo::at(&world, "shop", clone.path());
    let strategy = if plan == Plan::InPlace { "strategy: in-place\n" } else { "" };
    repo.write("Procfile", "web: exec larder static-server --root .\n");
    repo.write("larder.yml", format!("data: [media/]\nsmoke: [/]\n{strategy}{UPGRADE}"));
    repo.page("version 1");
    push(&world, &repo, plan).accepted();
    sh(&world, "for i in $(seq 1 40); do echo old > media/$i; done");
    repo.page("version 2");
    push(&world, &repo, plan).accepted();
    let steps = world.last_plan("shop");
    let steps: Vec<_> = steps.into_iter().filter(|step| chosen.is_none_or(|chosen| chosen.contains(&step.as_str()))).collect();
    assert!(chosen.is_none_or(|chosen| chosen.len() == steps.len()), "{steps:?}");
    let attempt = Attempt { world: &world, disk: &disk, fill };
    let (mut version, mut refused, mut waited) = (2, 0, 0);
    let mut unnamed = Vec::new();
    for step in &steps {
        version += 1;
        // The pause gives this process the time to fill the disk before the work of the step.
        world.restart(&[("FAILPOINTS", &format!("journal.started.{step}=sleep(500)"))]);
        let before = seen(&world);
        let commit = repo.page(&format!("version {version}"));
        if plan == Plan::Final {
            crate::promotion::staging(&repo).accepted();
        }
        let (said, has_waited) = attempt.fills_at(step, || deploy(&repo, plan));
        waited += u32::from(has_waited);
        let is_live = repo.live().as_ref() == Some(&commit);
        assert_eq!(said.status == 0, is_live, "{step}: {said}");
        if !is_live {
            refused += 1;
            unnamed.extend((!does_name_the_space(&said)).then(|| format!("{step}: {said}")));
            assert_eq!(seen(&world), before, "{step}: the data of a failed deployment differs: {said}");
        }
        is_consistent(&world, plan);
        world.serves("shop", &format!("version {}", if is_live { version } else { version - 1 }));
        if !is_live {
            push(&world, &repo, plan).accepted();
            world.serves("shop", &format!("version {version}"));
        }
    }
    let how = if fill as usize == Disk::fill_inodes as fn(&Disk) as usize { "inodes" } else { "bytes" };
    eprintln!(
        "full disk ({kind}, {how}, {plan:?}): {} steps, {refused} refused or reverted, {waited} waited for space, {} went live",
        steps.len(),
        steps.len() - refused
    );
    assert!(refused > 0, "no step met the full disk");
    assert!(unnamed.is_empty(), "reasons that do not name the space: {}", unnamed.join("\n"));
    world.restart(&[]);
    restore_points(&attempt, plan, chosen.is_none());
    is_consistent(&world, plan);
    world.end();
}

/// Asserts all invariants. In an environment that takes releases over, an accepted release need not have a tree.
fn is_consistent(world: &World, plan: Plan) {
    match plan {
        Plan::Final => world.is_consistent_with_a_store("shop"),
        _ => world.is_consistent("shop"),
    }
}

/// Deploys the head, as a push to production.
fn deploy(repo: &Repo<'_>, plan: Plan) -> Output {
    match plan {
        Plan::Final => crate::promotion::production(repo).0,
        _ => repo.push().0,
    }
}

/// Pushes the head to all environments.
fn push(world: &World, repo: &Repo<'_>, plan: Plan) -> crate::harness::git::Push {
    if plan == Plan::Final {
        let pushed = crate::promotion::staging(repo);
        assert_eq!(pushed.0.status, 0, "{}", pushed.0);
        until("staging has ended", || world.has_ended("shop"));
    }
    crate::harness::git::Push(deploy(repo, plan))
}

/// The disk is full when an operation on restore points begins, or at moments of a restore.
fn restore_points(attempt: &Attempt<'_>, plan: Plan, thorough: bool) {
    let Attempt { world, disk, fill } = attempt;
    let point = world.larder(&["--json", "backup", "take", "shop"]).json();
    sh(world, "rm media/2; for i in $(seq 50); do echo changed > media/c$i; done");
    let before = seen(world);
    fill(disk);
    let mut refused = 0;
    for words in [
        &["backup", "take", "shop"][..],
        &["backup", "restore", "shop", id(&point), "--yes"],
        &["backup", "restore", "shop", id(&point), "--into", "beside"],
        &["backup", "drill", "shop"],
        &["rollback", "shop", "--with-data", "--confirm", "shop"],
    ] {
        let said = world.larder(words);
        assert_ne!(said.status, 0, "{said}");
        names_the_space(words[1], &said);
        assert_eq!(seen(world), before, "{words:?}");
        refused += 1;
    }
    // A removal and a rollback write only small records. They succeed, or they are refused.
    let page = world.get("shop", "/").body;
    for words in [&["backup", "prune", "shop"][..], &["rollback", "shop"]] {
        let said = world.larder(words);
        if said.status != 0 {
            names_the_space(words[0], &said);
            assert_eq!(world.get("shop", "/").body, page);
            refused += 1;
        }
    }
    disk.free();
    is_consistent(world, plan);
    let moments: &[&str] = if thorough { &["filled", "taken", "exchanged", "cleared"] } else { &["taken"] };
    for at in moments {
        refused += u32::from(full_during_a_restore(attempt, id(&point), at).status != 0);
        is_consistent(world, plan);
        world.larder(&["backup", "restore", "shop", id(&point), "--yes"]).ok();
        sh(world, "rm media/2; echo changed > media/changed");
    }
    world.larder(&["backup", "take", "shop"]).ok();
    world.larder(&["backup", "verify", "shop"]).ok();
    eprintln!("full disk during {} operations on restore points, {refused} refused", 7 + moments.len());
}

/// Restores a restore point to the live data. The disk becomes full when the restore has begun, and the server pauses at the moment `at`.
fn full_during_a_restore(attempt: &Attempt<'_>, point: &str, at: &str) -> Output {
    let Attempt { world, disk, fill } = attempt;
    let live = seen(world);
    world.restart(&[("FAILPOINTS", &format!("restore.{at}=sleep(300)"))]);
    let said = thread::scope(|scope| {
        let restore = scope.spawn(|| world.larder(&["backup", "restore", "shop", point, "--yes"]));
        let record = world.environment("shop").join("restore.json");
        let begun = || fs::read_to_string(&record).is_ok_and(|text| text.contains("\"end\": null"));
        until("the restore has begun", || begun() || restore.is_finished());
        fill(disk);
        restore.join().unwrap()
    });
    disk.free();
    if said.status != 0 {
        names_the_space(at, &said);
        assert_ne!(said.status, 70, "{at}: {said}");
        // A restore that has exchanged the data, and cannot start the release, says so.
        match said.stdout.contains(&format!("has the data of {point} again")) {
            true => assert_ne!(seen(world), live, "{at}: the data is not restored: {said}"),
            false => assert_eq!(seen(world), live, "{at}: a failed restore changed the data: {said}"),
        }
    }
    world.restart(&[]);
    said
}

/// Returns the files of the data. larder itself writes `.larder-seed`.
fn seen(world: &World) -> BTreeMap<PathBuf, Seen> {
    let mut all = walk(&data(world));
    all.remove(std::path::Path::new(".larder-seed"));
    all
}

/// Asserts that a refusal names the lack of space.
fn names_the_space(step: &str, said: &Output) {
    assert!(does_name_the_space(said), "{step}: the reason does not name the space: {said}");
}

fn does_name_the_space(said: &Output) -> bool {
    let text = format!("{}{}", said.stdout, said.stderr);
    SPACE.iter().any(|word| text.contains(word))
}

impl Attempt<'_> {
    /// Starts a deployment, fills the disk when a step of the deployment has begun, and frees the disk after the deployment, or as soon as the
    /// deployment waits for space. Returns the output, and true if the deployment has waited.
    fn fills_at(&self, step: &str, act: impl FnOnce() -> Output + Send) -> (Output, bool) {
        let known = self.world.journals("shop").len();
        let deployments = self.world.environment("shop").join("deployments");
        let waits = || {
            let logs = fs::read_dir(&deployments).into_iter().flatten().flatten().map(|entry| entry.path().join("log"));
            logs.filter(|log| fs::read_to_string(log).is_ok_and(|text| text.contains("waits until the disk has space"))).count()
        };
        let earlier = waits();
        thread::scope(|scope| {
            let acting = scope.spawn(act);
            until("the step has begun", || {
                let journals = self.world.journals("shop");
                let has_begun = journals.len() > known
                    && journals.last().unwrap().iter().any(|record| record["event"] == "started" && record["step"] == step);
                has_begun || acting.is_finished()
            });
            (self.fill)(self.disk);
            // The undo of the build layer waits for the space that the server reserves.
            let cleans = || {
                let last = self.world.journals("shop").pop().unwrap_or_default();
                last.iter().any(|record| record["event"] == "undo_started" && record["step"] == "gather.layer")
            };
            until("the deployment ends or waits", || acting.is_finished() || waits() > earlier || cleans());
            let has_waited = waits() > earlier;
            self.disk.free();
            let output = acting.join().unwrap();
            until("the deployment has ended", || self.world.has_ended("shop"));
            (output, has_waited)
        })
    }
}

#[test]
fn full_disk_during_build_and_upgrade_is_reverted_and_the_next_push_works() {
    full_at_each_step(Plan::Cooking, "ext4", Disk::fill, Some(&["bundle.archive", "deploy.release", "deploy.switch"]));
}

/// A disk that stays full beyond the limit of a deployment freezes the environment. When there is space, the guard of the disk finishes or
/// reverts the deployment without a person: also after a restart of the server on the full disk.
fn full_disk_freezes_until_there_is_space(restarts: bool) {
    let Some(disk) = Disk::for_world("ext4", SIZE) else { return };
    let world = World::on_disk(&disk);
    world.project("shop");
    let clone = tempfile::tempdir().unwrap();
    let repo = Repo::at(&world, "shop", clone.path());
    repo.write("Procfile", "web: exec larder static-server --root .\n");
    repo.write("larder.yml", format!("data: [media/]\n{UPGRADE}"));
    repo.page("version 1");
    push(&world, &repo, Plan::Cooking).accepted();
    sh(&world, "for i in $(seq 1 40); do echo old > media/$i; done");
    let (before, live) = (seen(&world), repo.live());
    repo.page("version 2");
    let points = "space.limit=return(1500);journal.started.deploy.release=sleep(250)";
    world.restart(&[("FAILPOINTS", points)]);
    let said = thread::scope(|scope| {
        let pushing = scope.spawn(|| push(&world, &repo, Plan::Cooking).0);
        let has_begun = |record: &serde_json::Value| record["event"] == "started" && record["step"] == "deploy.release";
        until("the step has begun", || world.journals("shop").get(1).is_some_and(|journal| journal.iter().any(has_begun)));
        // The server releases the space that it holds, and the disk becomes full again.
        until("the push ends", || {
            disk.fill();
            pushing.is_finished()
        });
        pushing.join().unwrap()
    });
    disk.fill();
    assert_ne!(said.status, 0, "{said}");
    said.says("This deployment waits until the disk has space.").says("the environment is frozen");
    world.larder(&["status"]).says("frozen");
    assert_eq!(repo.live(), live);
    if restarts {
        world.kill9_everything();
        disk.fill();
        world.start(&[("FAILPOINTS", points)]);
        let status = world.larder(&["status"]);
        assert!(status.stdout.contains("recovering") || status.stdout.contains("frozen"), "{status}");
        until("the recovery freezes the environment", || world.larder(&["status"]).stdout.contains("frozen"));
    }
    disk.free();
    until("the guard has ended the deployment", || {
        world.has_ended("shop") && !world.larder(&["status"]).stdout.contains("frozen")
    });
    assert_eq!(world.outcomes("shop").last().unwrap().as_deref(), Some("rolled_back"));
    assert_eq!(seen(&world), before);
    world.serves("shop", "version 1");
    world.is_consistent("shop");
    push(&world, &repo, Plan::Cooking).accepted();
    world.serves("shop", "version 2");
    world.is_consistent("shop");
    world.end();
}

#[test]
fn deployment_on_a_full_disk_is_frozen_after_its_limit_and_reverted_when_there_is_space() {
    full_disk_freezes_until_there_is_space(false);
}

#[test]
fn server_that_restarts_on_a_full_disk_reverts_the_deployment_when_there_is_space() {
    full_disk_freezes_until_there_is_space(true);
}

#[test]
fn restore_on_a_disk_without_inodes_is_refused_or_completed() {
    let Some(disk) = Disk::for_world("ext4-inodes", SIZE) else { return };
    let world = World::on_disk(&disk);
    world.project("shop");
    let clone = tempfile::tempdir().unwrap();
    let repo = Repo::at(&world, "shop", clone.path());
    repo.write("Procfile", "web: exec larder static-server --root .\n");
    repo.write("larder.yml", "data: [media/]\n");
    repo.page("version 1");
    push(&world, &repo, Plan::Cooking).accepted();
    sh(&world, "for i in $(seq 1 40); do echo old > media/$i; done");
    let point = world.larder(&["--json", "backup", "take", "shop"]).json();
    let attempt = Attempt { world: &world, disk: &disk, fill: Disk::fill_inodes };
    for at in ["taken", "exchanged"] {
        sh(&world, "rm -f media/2; echo changed > media/changed");
        full_during_a_restore(&attempt, id(&point), at);
        is_consistent(&world, Plan::Cooking);
        world.serves("shop", "version 1");
        let left = crate::harness::state::names(&world.environment("shop"));
        assert!(!left.iter().any(|name| name.starts_with(".new-")), "{left:?}");
    }
    world.end();
}

#[test]
fn release_that_cannot_start_on_a_full_disk_starts_when_there_is_space() {
    let Some(disk) = Disk::for_world("ext4", SIZE) else { return };
    let world = World::on_disk(&disk);
    world.project("shop");
    let clone = tempfile::tempdir().unwrap();
    let repo = Repo::at(&world, "shop", clone.path());
    repo.write("Procfile", "web: exec larder static-server --root .\n").page("version 1");
    push(&world, &repo, Plan::Cooking).accepted();
    world.kill9_everything();
    disk.fill();
    disk.fill_inodes();
    world.start(&[]);
    assert_ne!(world.get("shop", "/").status, 200);
    disk.free();
    let answers = within(Duration::from_secs(30), || world.get("shop", "/").status == 200);
    assert!(answers, "the release does not answer: {}", world.larder(&["status"]));
    world.is_consistent("shop");
    world.end();
}

/// The other file systems, with the steps at which most is written.
#[test]
fn full_disk_on_btrfs_and_tmpfs_is_reverted_and_the_next_push_works() {
    if thorough() {
        let chosen = ["gather.source", "bundle.archive", "deploy.install", "deploy.point", "deploy.release", "deploy.switch"];
        full_at_each_step(Plan::Cooking, "btrfs", Disk::fill, Some(&chosen));
        full_at_each_step(Plan::Cooking, "tmpfs", Disk::fill, Some(&chosen));
    }
}

/// Fills the disk at each step of a plan. Only with `LARDER_TEST_THOROUGH`.
fn at_each_step(plan: Plan) {
    if !thorough() {
        return eprintln!("SKIPPED: every step only with LARDER_TEST_THOROUGH");
    }
    full_at_each_step(plan, "ext4", Disk::fill, None);
    full_at_each_step(plan, "xfs", Disk::fill, None);
    full_at_each_step(plan, "ext4-inodes", Disk::fill_inodes, None);
}

#[test]
fn full_disk_at_each_step_of_a_push_is_reverted() {
    at_each_step(Plan::Cooking);
}

#[test]
fn full_disk_at_each_step_in_place_is_reverted() {
    at_each_step(Plan::InPlace);
}

#[test]
fn full_disk_at_each_step_of_a_delivery_is_reverted() {
    at_each_step(Plan::Final);
}
