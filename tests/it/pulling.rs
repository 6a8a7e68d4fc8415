//! Pulls through the whole pipeline while production is killed, while the link is cut, and over a link of 1 Mbit/s. Fetched data is not
//! fetched again. The release is not visible before it is complete.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::{
    harness::{Repo, SetOnDrop, World, in_one_mode, link::Link, state::names, within},
    promotion::{are_alike, here, introduce},
    remote::noise,
};

in_one_mode!(pull_survives_kills_of_production, pull_survives_cuts_of_the_link);

/// The rate of a slow link: 1 Mbit/s, in bytes per second.
const SLOW: u64 = 125_000;
/// The number of interruptions.
const INSTANTS: u32 = 20;
/// The traffic of a connection without payload, in bytes: keys, the list of offers, the head of the manifest.
const GREETING: u64 = 50_000;
/// The number of pictures in the second release, and the size of each in bytes.
const PICTURES: u64 = 2;
const PICTURE: usize = 1_000_000;

/// Two servers with an unreliable link between them. Version one is live in production; version two is live on staging.
struct Scene<'w> {
    world: &'w World,
    staging: &'w World,
    link: Link,
    old: String,
    new: String,
    /// The size of the new release's archive, in bytes.
    bytes: u64,
}

fn current(world: &World) -> String {
    fs::read_link(world.environment("shop").join("deploy/current")).unwrap().display().to_string()
}

/// Returns and prints the seed of this run, so that a failed run can be reproduced.
fn seed() -> u64 {
    let seed = u64::from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos());
    eprintln!("seed: {seed}");
    seed
}

/// Returns the `n`th number of a pseudo-random sequence; the numbers are below `most`.
fn random(seed: u64, n: u64, most: u64) -> u64 {
    noise(seed + n * 77, 8).iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte)) % most
}

impl<'w> Scene<'w> {
    fn new(world: &'w World, staging: &'w World) -> Scene<'w> {
        let link = Link::to(staging.ssh_port());
        introduce(here(world), (staging, "127.0.0.1", link.port), &["shop"]);
        let repo = Repo::new(staging, "shop");
        repo.page("version one");
        repo.push().accepted();
        world.larder(&["pull", "shop"]).ok();
        world.serves("shop", "version one");
        let old = current(world);
        for number in 0..PICTURES {
            repo.write(&format!("pictures/{number}.jpg"), noise(number + 1, PICTURE));
        }
        repo.page("version two");
        repo.push().accepted();
        let new = current(staging);
        let bytes = fs::metadata(staging.environment("shop").join("releases").join(format!("{new}.tar.zst"))).unwrap().len();
        assert!(bytes > PICTURES * PICTURE as u64);
        Scene { world, staging, link, old, new, bytes }
    }

    fn ask(&self) -> Child {
        let mut command = self.world.larder_command();
        command.args(["pull", "shop"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Returns true if a part of the new release was fetched.
    fn is_half_here(&self) -> bool {
        let incoming = self.world.environment("shop").join("releases/.incoming");
        let of = |directory: &String| names(&incoming.join(directory)).iter().any(|name| name.ends_with(".part"));
        names(&incoming).iter().filter(|directory| directory.starts_with(&self.new)).any(of)
    }

    /// Asserts that the new release is not visible.
    #[track_caller]
    fn is_as_before(&self, when: &str) {
        let top = self.world.environment("shop");
        assert_eq!(names(&top.join("deploy")), [self.old.as_str(), "current"], "{when}");
        self.is_stored_whole_or_not(when);
        assert_eq!(current(self.world), self.old, "{when}");
        self.world.larder(&["releases", "shop"]).keeps_quiet_about("v2").says("v1");
        self.world.larder(&["status"]).keeps_quiet_about("v2").says("v1");
        self.world.serves("shop", "version one");
        assert!(self.world.outcomes("shop").iter().all(Option::is_some), "{when}: a deployment has no end");
    }

    /// Asserts that the store has the new release's archive completely or not at all, and no manifest without an archive or a delta.
    #[track_caller]
    fn is_stored_whole_or_not(&self, when: &str) {
        let releases = self.world.environment("shop").join("releases");
        let file = |ending: &str| releases.join(format!("{}{ending}", self.new));
        let size = fs::metadata(file(".tar.zst")).map(|found| found.len()).ok();
        assert!(size.is_none_or(|size| size == self.bytes), "{when}: {size:?} of {} bytes are in the store", self.bytes);
        let content = size.is_some() || file(".delta").exists();
        assert!(content || !file(".manifest.json").exists(), "{when}: a manifest is there and nothing that it describes");
    }

    /// Returns the minimum traffic in bytes: the release, and the commit with the same pictures.
    fn all(&self) -> u64 {
        2 * self.bytes
    }

    /// Checks repeatedly until `done` that the new release is visible either completely or not at all.
    fn is_never_partial(&self, done: &AtomicBool) -> usize {
        let top = self.world.environment("shop");
        let of_new = |directory: &str, ending: &str| top.join(directory).join(format!("{}{ending}", self.new));
        let mut looks = 0;
        while !done.load(Ordering::Relaxed) {
            // The state that changes last is read first: if a change is seen, all earlier changes must be seen as well.
            let listed = self.world.larder(&["releases", "shop", "--json"]).json().to_string().contains(&self.new);
            let status = self.world.larder(&["status", "--json"]).json();
            let serving = status["environments"][0]["live"]["release"].as_str().unwrap() == self.new;
            let page = self.world.get("shop", "/");
            assert_eq!(page.status, 200);
            let shown = page.body.contains("version two");
            assert!(shown || page.body.contains("version one"), "{page:?}");
            let named = current(self.world) == self.new;
            let installing = of_new("deploy", "").exists();
            let exists = of_new("releases", ".manifest.json").exists();
            for (seen, needs, what) in [
                (listed, named, "`releases` names the release before it is current"),
                (serving, named, "`status` names the release before it is current"),
                (shown, named, "the release answers before it is current"),
                (named, installing, "the release is current and not installed"),
                (installing, exists, "the release is installed and not in the store"),
            ] {
                assert!(!seen || needs, "{what}");
            }
            self.is_stored_whole_or_not("under way");
            if named {
                for number in 0..PICTURES {
                    let picture = of_new("deploy", "").join(format!("pictures/{number}.jpg"));
                    assert_eq!(fs::metadata(picture).unwrap().len(), PICTURE as u64, "the current tree is not complete");
                }
            }
            looks += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        looks
    }

    /// Retries until the pull succeeds, with a concurrent observer. Returns the number of attempts.
    fn arrives(&self) -> u32 {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| self.is_never_partial(&done));
            let asking = scope.spawn(|| {
                let began = Instant::now();
                let mut asked = 0;
                while current(self.world) != self.new {
                    asked += 1;
                    let mut pull = self.ask();
                    let ended = within(Duration::from_secs(80), || pull.try_wait().unwrap().is_some());
                    assert!(ended && began.elapsed() < Duration::from_secs(120), "the new release does not become live");
                }
                asked
            });
            let asked = asking.join();
            done.store(true, Ordering::Relaxed);
            let looks = watching.join().unwrap();
            assert!(looks > 10, "the observer did not run");
            asked.unwrap()
        })
    }

    /// Asserts that both servers have the same bytes, and that production serves the new release.
    fn has_arrived(&self) {
        self.world.serves("shop", "version two");
        are_alike(self.world, self.staging);
        let archive = |world: &World| fs::read(world.environment("shop").join("releases").join(format!("{}.tar.zst", self.new)));
        assert!(archive(self.world).unwrap() == archive(self.staging).unwrap(), "the archives differ");
        for number in 0..PICTURES {
            let picture = fs::read(self.world.environment("shop").join(format!("deploy/{}/pictures/{number}.jpg", self.new)));
            assert!(picture.unwrap() == noise(number + 1, PICTURE), "picture {number}");
        }
        assert!(names(&self.world.environment("shop").join("releases/.incoming")).is_empty());
        self.world.is_consistent("shop");
    }
}

fn pull_survives_kills_of_production(world: &World) {
    let Some(staging) = World::any() else { return };
    let scene = Scene::new(world, &staging);
    // This test pulls frames; the test with cuts of the link pulls a delta.
    let marker = world.environment("shop").join("releases/.no-deltas");
    fs::write(&marker, "").unwrap();
    let owner = fs::metadata(marker.parent().unwrap()).unwrap();
    std::os::unix::fs::chown(&marker, Some(owner.uid()), Some(owner.gid())).unwrap();
    fs::set_permissions(&marker, fs::Permissions::from_mode(0o640)).unwrap();
    let (seed, before) = (seed(), scene.link.passed());
    scene.link.slow_to(3 * SLOW);
    let mut hit = 0;
    for instant in 0..INSTANTS {
        let mut pull = scene.ask();
        std::thread::sleep(Duration::from_millis(150 + random(seed, instant.into(), 650)));
        hit += u32::from(scene.is_half_here());
        if instant % 2 == 0 {
            world.kill9_all();
            world.start(&[]);
        } else {
            world.kill9_server();
        }
        let _ = (pull.kill(), pull.wait());
        scene.is_as_before(&format!("killed for the {}. time", instant + 1));
    }
    let so_far = scene.link.passed() - before;
    assert!(hit > INSTANTS / 2, "only {hit} of {INSTANTS} deaths were in a transfer");
    assert!(so_far < scene.all(), "{so_far} bytes came before the last attempt, of {}: nothing is left to be seen", scene.all());
    scene.link.slow_to(SLOW);
    let began = Instant::now();
    scene.arrives();
    let passed = scene.link.passed() - before;
    eprintln!("{hit} deaths in transfers; {so_far} bytes until then, {passed} in all for {}; {:?}", scene.all(), began.elapsed());
    assert!(passed < scene.all() + u64::from(INSTANTS + 2) * GREETING, "{passed} bytes came for {}", scene.all());
    scene.has_arrived();
    drop(scene);
    staging.end();
}

fn pull_survives_cuts_of_the_link(world: &World) {
    let Some(staging) = World::any() else { return };
    let scene = Scene::new(world, &staging);
    let (seed, before) = (seed(), scene.link.passed());
    let most = scene.all() / u64::from(INSTANTS) * 6 / 5;
    // Some connections end before their cut, so there are more cuts than the test needs.
    scene.link.cut_after((0..INSTANTS + 3).map(|n| 5_000 + random(seed, n.into(), most)));
    scene.link.slow_to(8 * SLOW);
    let done = AtomicBool::new(false);
    let asked = std::thread::scope(|scope| {
        // After the last cut, the link is slow.
        scope.spawn(|| {
            within(Duration::from_secs(100), || scene.link.cuts() >= INSTANTS as usize || done.load(Ordering::Relaxed));
            scene.link.slow_to(SLOW);
        });
        let _done = SetOnDrop(&done);
        scene.arrives()
    });
    let (passed, cuts) = (scene.link.passed() - before, scene.link.cuts());
    eprintln!("{cuts} cuts, {asked} pulls; {passed} bytes for {}", scene.all());
    assert!(cuts >= INSTANTS as usize, "only {cuts} cuts were met");
    assert!(passed < scene.all() + u64::from(INSTANTS + asked + 2) * GREETING, "{passed} bytes came for {}", scene.all());
    scene.has_arrived();
    drop(scene);
    staging.end();
}
