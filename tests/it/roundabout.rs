//! Fallbacks of pulls: unusable deltas, and abandoned transfers.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use crate::{
    harness::{Repo, World, cli::Output, in_one_mode, state::names, until},
    promotion::{are_alike, here, introduce, live_manifest},
};

in_one_mode!(
    delta_that_cannot_be_installed_is_discarded,
    invalid_delta_falls_back_to_the_archive,
    error_unrelated_to_the_delta_ends_the_pull,
    abandoned_transfer_is_swept,
);

/// Two servers: version one is live on production, and version two is live on staging.
struct Pair<'w> {
    world: &'w World,
    staging: &'w World,
    repo: Repo<'w>,
}

impl<'w> Pair<'w> {
    fn new(world: &'w World, staging: &'w World) -> Pair<'w> {
        introduce(here(world), here(staging), &["shop"]);
        let repo = Repo::new(staging, "shop");
        for number in 0..60 {
            repo.write(&format!("pages/{number}.html"), format!("page {number}\n").repeat(200));
        }
        let pair = Pair { world, staging, repo };
        pair.cook("version one");
        pair.pull().ok();
        pair.cook("version two");
        pair
    }

    fn cook(&self, page: &str) {
        self.repo.page(page);
        self.repo.push().accepted();
    }

    fn pull(&self) -> Output {
        self.world.larder(&["pull", "shop"])
    }

    fn releases(&self) -> PathBuf {
        self.world.environment("shop").join("releases")
    }

    /// Returns the path of the delta in the store of staging, which creates the delta if necessary.
    fn delta(&self) -> PathBuf {
        let live = |world: &World| live_manifest(world, "production", "shop")["release"].as_str().unwrap().to_owned();
        let (from, to) = (live(self.world), live(self.staging));
        self.staging.larder(&["deliverable", "info", "shop", &to, "delta", "--from", &from, "--json"]).ok();
        self.staging.environment("shop").join(format!("releases/.delta/{from}..{to}"))
    }

    /// Asserts that both servers have the same release and archive.
    fn are_alike(&self) {
        are_alike(self.world, self.staging);
        self.world.is_consistent("shop");
        assert_eq!(names(&self.releases().join(".incoming")), Vec::<String>::new());
    }
}

/// Returns the number of KiB that the output of a pull reports as fetched.
fn pulled(said: &Output) -> u64 {
    let line = said.stdout.lines().find_map(|line| line.trim().split_once(" KiB pulled")?.0.parse().ok());
    line.unwrap_or_else(|| panic!("{said}"))
}

fn delta_that_cannot_be_installed_is_discarded(world: &World) {
    let Some(staging) = World::any() else { return };
    let pair = Pair::new(world, &staging);
    let marker = pair.releases().join(".no-deltas");
    // The installed page differs from the page in the release, so the delta, which is based on this page, gives a wrong result.
    let top = world.environment("shop");
    let page = top.join("deploy").join(fs::read_link(top.join("deploy/current")).unwrap()).join("index.html");
    let mut text = fs::read(&page).unwrap();
    text.reverse();
    fs::write(&page, &text).unwrap();
    let before = names(&pair.releases());
    let said = pair.pull();
    said.exits(1).says("The release came as a delta, which is removed; the next attempt fetches the whole archive.");
    said.says("the installed file");
    assert!(marker.exists());
    let mut after = names(&pair.releases());
    after.retain(|name| name != ".no-deltas");
    assert_eq!(after, before, "something of the delta stays");
    assert_eq!(world.outcomes("shop").pop().flatten().as_deref(), Some("rolled_back"));
    text.reverse();
    fs::write(&page, text).unwrap();

    // The next attempt fetches the whole archive.
    let delta = fs::metadata(pair.delta()).unwrap().len();
    let said = pair.pull();
    said.ok();
    assert!(!names(&pair.releases()).iter().any(|name| name.ends_with(".delta")), "a delta was fetched again");
    world.serves("shop", "version two");
    pair.are_alike();

    // For a day after the failure, production requests no delta.
    pair.cook("version three");
    let whole = pulled(&pair.pull());
    world.serves("shop", "version three");
    pair.are_alike();
    File::options().write(true).open(&marker).unwrap().set_modified(SystemTime::now() - Duration::from_secs(25 * 3600)).unwrap();
    pair.cook("version four");
    let part = pulled(&pair.pull());
    world.serves("shop", "version four");
    pair.are_alike();
    assert!(part < whole, "{part} KiB after a day, {whole} KiB before, {delta} bytes of a delta");
    staging.end();
}

fn invalid_delta_falls_back_to_the_archive(world: &World) {
    let Some(staging) = World::any() else { return };
    let pair = Pair::new(world, &staging);
    // The file has a size and a digest that can be offered, but is not a delta.
    let path = pair.delta();
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end / 2..].fill(0x55);
    fs::write(&path, &bytes).unwrap();
    let said = pair.pull();
    said.says("cannot use a delta: ").says("pulling the whole archive").says("v2 is live");
    world.serves("shop", "version two");
    assert!(!pair.releases().join(".no-deltas").exists());
    pair.are_alike();
    staging.end();
}

fn error_unrelated_to_the_delta_ends_the_pull(world: &World) {
    let Some(staging) = World::any() else { return };
    let pair = Pair::new(world, &staging);
    // The signing key of staging is no longer trusted; the remote has only the key of a stranger.
    pair.delta();
    let remotes = world.larder(&["remote", "list", "shop", "--json"]).json();
    let (url, host) = (remotes[0]["url"].as_str().unwrap(), remotes[0]["host_key"].as_str().unwrap());
    let stranger = larder::release::SigningKey::ephemeral().unwrap().public().to_string();
    world.larder(&["remote", "remove", "shop", "staging"]).ok();
    let added = world.larder(&["remote", "add", "shop", "staging", url, "--host-key", host, "--trust", &stranger]);
    added.ok();
    let before = world.snapshot("shop");
    let said = pair.pull();
    said.exits(1).says("which is not trusted for shop").keeps_quiet_about("pulling the whole archive");
    assert_eq!(said.stdout.matches("KiB pulled").count(), 1, "the release was pulled again: {said}");
    assert_eq!(world.snapshot("shop"), before);
    world.serves("shop", "version one");
    staging.end();
}

fn abandoned_transfer_is_swept(world: &World) {
    let Some(staging) = World::any() else { return };
    let pair = Pair::new(world, &staging);
    let incoming = pair.releases().join(".incoming");
    let owner = fs::metadata(&incoming).unwrap();
    let leave = |name: &str, days: u64| {
        let directory = incoming.join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("archive.tar.zst.part"), "half").unwrap();
        fs::write(directory.join("lock"), "").unwrap();
        let at = SystemTime::now() - Duration::from_secs(24 * 3600 * days);
        for path in [directory.join("archive.tar.zst.part"), directory.join("lock"), directory] {
            std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
            File::open(path).unwrap().set_modified(at).unwrap();
        }
    };
    leave("20260101T000000Z-01a1feff-e0f2-75c1-8020-1274c86e2388", 8);
    leave("20260101T000000Z-01a1feff-e0f2-75c1-8020-1274c86e2389", 6);
    leave("20260101T000000Z-01a1feff-e0f2-75c1-8020-1274c86e2390", 8);
    let held = File::open(incoming.join("20260101T000000Z-01a1feff-e0f2-75c1-8020-1274c86e2390/lock")).unwrap();
    held.lock().unwrap();
    pair.pull().ok();
    let left = ["20260101T000000Z-01a1feff-e0f2-75c1-8020-1274c86e2389", "20260101T000000Z-01a1feff-e0f2-75c1-8020-1274c86e2390"];
    until("only the old directory without a lock is removed", || names(&incoming) == left);
    drop(held);
    staging.end();
}
