//! Tests of pulls from a directory, with archives of pseudo-random frames.

use std::{os::unix::fs::FileExt, time::Duration};

use jiff::Timestamp;
use larder_archive::ArchiveInfoExt;
use parking_lot::Mutex;

use super::{incoming::LOCK, *};
use crate::{
    host::root::Root,
    model::{ArchiveInfo, Digest, Frame, Remote},
    remote::{DeliverableStores, Publication, TransferLimits, publish, ssh::PullKey},
};

struct World {
    directory: tempfile::TempDir,
    store: DeliverableStore,
    paths: EnvironmentPaths,
    /// The reported progress.
    seen: Arc<Mutex<Vec<(u64, u64)>>>,
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut out = vec![0; bytes];
    hasher.finalize_xof().fill(&mut out);
    out
}

/// Returns an archive with frames of these seeds and sizes, and its description.
fn archive(frames: &[(u64, usize)]) -> (Vec<u8>, ArchiveInfo) {
    let (mut bytes, mut described) = (Vec::new(), Vec::new());
    for (seed, size) in frames {
        let content = noise(*seed, *size);
        let (offset, digest) = (bytes.len() as u64, Digest::of(&content));
        described.push(Frame { offset, bytes: *size as u64, raw: 1, entries: 0, digest });
        bytes.extend(content);
    }
    let info = ArchiveInfo::of_frames(described);
    bytes.extend(info.seek_table());
    assert_eq!(bytes.len() as u64, info.bytes);
    (bytes, info)
}

impl World {
    fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let shared = directory.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        let key = PullKey::load_or_make(&directory.path().join("key")).unwrap();
        let stores = DeliverableStores::new(key, TransferLimits::default());
        let remote = Remote {
            name: "shared".parse().unwrap(),
            url: format!("file://{}", shared.display()),
            host_key: None,
            trust: Vec::new(),
            publish: true,
        };
        let store = stores.open(&remote, &"shop".parse().unwrap()).unwrap();
        let paths =
            Root::new(directory.path().join("root")).environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
        std::fs::create_dir_all(paths.releases()).unwrap();
        World { directory, store, paths, seen: Arc::default() }
    }

    /// Publishes a release with these frames.
    async fn publish(&self, second: i64, frames: &[(u64, usize)]) -> (Offer, Vec<u8>) {
        let release = ReleaseId::new(Timestamp::from_second(1_700_000_000 + second).unwrap());
        let (bytes, info) = archive(frames);
        let manifest = serde_json::json!({
            "format": 1, "project": "shop", "environment": "staging", "release": release, "commit": "a".repeat(40),
            "build": second, "tree": Digest::of(b"tree"), "created": Timestamp::UNIX_EPOCH, "archive": info, "entries": [],
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = self.directory.path().join(format!("{release}.{name}"));
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let offer = Offer {
            project: "shop".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            release,
            number: None,
            build: second as u64,
            commit: "a".repeat(40).parse().unwrap(),
            source: None,
            tag: None,
            tree: Digest::of(b"tree"),
            created: Timestamp::UNIX_EPOCH,
            archive_bytes: info.bytes,
            manifest: Blob { bytes: manifest.len() as u64, digest: Digest::of(&manifest) },
            live: false,
            healthy_since: None,
        };
        let (archive, manifest) = (file("archive", &bytes), file("manifest", &manifest));
        publish(&self.store, &Publication { offer: offer.clone(), archive, manifest, health: Some(b"{}".to_vec()) })
            .await
            .unwrap();
        (offer, bytes)
    }

    async fn pull(&self, offer: &Offer, held: &[ReleaseId]) -> Result<Pulled, RemoteError> {
        let seen = Arc::clone(&self.seen);
        let progress: ProgressFn = Arc::new(move |done, total| seen.lock().push((done, total)));
        pull(&self.store, offer, held, &self.paths, &progress).await
    }

    /// Renames the pulled files to their names in `releases/`, as larder does when it accepts a release.
    fn accept(&self, pulled: Pulled, release: ReleaseId) {
        std::fs::rename(pulled.archive().unwrap(), self.paths.archive(release)).unwrap();
        std::fs::rename(pulled.manifest().unwrap(), self.paths.manifest(release)).unwrap();
        discard(pulled);
    }

    fn incoming(&self, release: ReleaseId) -> PathBuf {
        self.paths.incoming().join(release.to_string())
    }

    fn shared(&self, offer: &Offer, ending: &str) -> PathBuf {
        self.directory.path().join("shared/shop").join(format!("{}.{ending}", offer.release))
    }
}

#[tokio::test]
async fn published_release_is_listed_and_pulled() {
    let world = World::new();
    let (offer, bytes) = world.publish(1, &[(1, 300_000), (2, 5), (3, 2 << 20)]).await;
    let (newer, _) = world.publish(2, &[(1, 10)]).await;
    assert_eq!(world.store.list().await.unwrap(), [newer, offer.clone()]);
    let pulled = world.pull(&offer, &[]).await.unwrap();
    assert_eq!(pulled.content, PulledContent::Archive);
    assert_eq!(std::fs::read(pulled.archive().unwrap()).unwrap(), bytes);
    assert_eq!(std::fs::read(pulled.health().unwrap()).unwrap(), b"{}");
    assert!(pulled.fetched > 300_005 + (2 << 20) && pulled.reused == 0);
    assert!(world.seen.lock().windows(2).all(|pair| pair[0].0 <= pair[1].0), "progress goes backwards");
    assert_eq!(world.seen.lock().last(), Some(&(300_005 + (2 << 20), 300_005 + (2 << 20))));
    let names: Vec<_> = std::fs::read_dir(&pulled.directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    world.accept(pulled, offer.release);
    assert_eq!(std::fs::read_dir(world.paths.incoming()).unwrap().count(), 0);
    // The next pull fetches only the health record, because the environment has the release.
    std::fs::write(world.shared(&offer, "health.json"), b"[1]").unwrap();
    let again = world.pull(&offer, &[]).await.unwrap();
    assert_eq!((again.content, again.fetched), (PulledContent::Held, 0));
    assert_eq!(std::fs::read(again.health().unwrap()).unwrap(), b"[1]");
}

#[tokio::test]
async fn held_frames_are_not_fetched() {
    let world = World::new();
    let (old, _) = world.publish(1, &[(1, 100_000), (2, 200_000), (3, 300_000)]).await;
    let pulled = world.pull(&old, &[]).await.unwrap();
    world.accept(pulled, old.release);
    let (new, bytes) = world.publish(2, &[(3, 300_000), (4, 1000), (1, 100_000), (5, 7), (2, 200_000)]).await;
    let pulled = world.pull(&new, &[old.release]).await.unwrap();
    assert_eq!(std::fs::read(pulled.archive().unwrap()).unwrap(), bytes);
    assert_eq!(pulled.fetched, new.manifest.bytes + 1007);
    assert_eq!(pulled.reused, 600_000);
    discard(pulled);
    // A corrupt frame of an older archive is not used.
    let rotten = std::fs::File::options().write(true).open(world.paths.archive(old.release)).unwrap();
    rotten.write_all_at(b"rot", 150_000).unwrap();
    let pulled = world.pull(&new, &[old.release]).await.unwrap();
    assert_eq!(std::fs::read(pulled.archive().unwrap()).unwrap(), bytes);
    assert_eq!(pulled.fetched, new.manifest.bytes + 201_007);
}

#[tokio::test]
async fn intact_parts_of_an_interrupted_pull_are_reused() {
    let world = World::new();
    let (offer, bytes) = world.publish(1, &[(1, 100_000), (2, 200_000), (3, 300_000)]).await;
    let directory = world.incoming(offer.release);
    std::fs::create_dir_all(&directory).unwrap();
    // Writes the files of an interrupted pull. All bytes from `whole` on are wrong, and the byte at `rot` is wrong. The note
    // records that `part` bytes of the frame at the offset `at` are written.
    let leave = |whole: usize, at: u64, part: u64, rot: Option<usize>| {
        let mut left = bytes.clone();
        left[whole..].fill(0x55);
        if let Some(rot) = rot {
            left[rot] ^= 1;
        }
        std::fs::write(directory.join("archive.tar.zst.part"), &left).unwrap();
        let note: Vec<u8> = at.to_le_bytes().into_iter().chain(part.to_le_bytes()).collect();
        std::fs::write(directory.join("archive.tar.zst.part.note"), note).unwrap();
    };
    let rest = |pulled: &Pulled| pulled.fetched - offer.manifest.bytes;
    // The first frame is complete, and the second frame has 50,000 bytes.
    leave(150_000, 100_000, 50_000, None);
    let pulled = world.pull(&offer, &[]).await.unwrap();
    assert_eq!((std::fs::read(pulled.archive().unwrap()).unwrap() == bytes, rest(&pulled)), (true, 450_000));
    // If a byte before the noted position is wrong, the frame of this byte is fetched again, once.
    for (rot, fetched) in [(120_000, 450_000 + 200_000), (99_999, 550_000)] {
        clear(&pulled.directory);
        leave(150_000, 100_000, 50_000, Some(rot));
        drop(std::fs::remove_file(directory.join(LOCK)));
        let pulled = world.pull(&offer, &[]).await.unwrap();
        assert_eq!((std::fs::read(pulled.archive().unwrap()).unwrap() == bytes, rest(&pulled)), (true, fetched), "{rot}");
    }
    // The note has an invalid position, so every frame is fetched again.
    clear(&pulled.directory);
    drop(std::fs::remove_file(directory.join(LOCK)));
    leave(0, u64::MAX, u64::MAX, None);
    let pulled = world.pull(&offer, &[]).await.unwrap();
    assert_eq!((std::fs::read(pulled.archive().unwrap()).unwrap() == bytes, rest(&pulled)), (true, 600_000));
}

/// The dropped pull stands for a server that was killed after the transfer and before the acceptance.
#[tokio::test]
async fn complete_archive_is_not_fetched_again() {
    let world = World::new();
    let (offer, bytes) = world.publish(1, &[(1, 100_000), (2, 200_000)]).await;
    drop(world.pull(&offer, &[]).await.unwrap());
    let pulled = world.pull(&offer, &[]).await.unwrap();
    assert_eq!((pulled.fetched, std::fs::read(pulled.archive().unwrap()).unwrap() == bytes), (0, true));
    // A corrupt frame is fetched again.
    drop(pulled);
    let rotten = std::fs::File::options().write(true).open(world.incoming(offer.release).join(ARCHIVE)).unwrap();
    rotten.write_all_at(b"rot", 150_000).unwrap();
    let pulled = world.pull(&offer, &[]).await.unwrap();
    assert_eq!((pulled.fetched, std::fs::read(pulled.archive().unwrap()).unwrap() == bytes), (200_000, true));
}

#[tokio::test]
async fn corrupt_or_contradictory_data_of_a_remote_is_rejected() {
    let world = World::new();
    let (offer, bytes) = world.publish(1, &[(1, 100_000), (2, 200_000)]).await;
    let damaged = |error: RemoteError| match error {
        RemoteError::Damaged { what, .. } => what,
        other => panic!("{other}"),
    };
    let nothing_final = || {
        let names = std::fs::read_dir(world.incoming(offer.release)).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(names.filter_map(|name| name.into_string().ok()).all(|name| name != "archive.tar.zst"));
    };
    // In each round, one byte at the edge of a frame is wrong.
    for at in [0, 99_999, 100_000, 299_999] {
        let mut wrong = bytes.clone();
        wrong[at] ^= 0x80;
        std::fs::write(world.shared(&offer, "tar.zst"), &wrong).unwrap();
        assert_eq!(damaged(world.pull(&offer, &[]).await.unwrap_err()), "archive", "{at}");
        nothing_final();
    }
    std::fs::write(world.shared(&offer, "tar.zst"), &bytes[..250_000]).unwrap();
    let cut = world.pull(&offer, &[]).await.unwrap_err();
    assert!(matches!(cut, RemoteError::Damaged { .. } | RemoteError::Lost { .. }), "{cut}");
    nothing_final();
    std::fs::write(world.shared(&offer, "tar.zst"), &bytes).unwrap();
    // The manifest contradicts the offer, or the frames of the manifest overlap.
    let good = std::fs::read_to_string(world.shared(&offer, "manifest.json")).unwrap();
    for (from, to) in [("\"shop\"", "\"blog\""), ("\"staging\"", "\"testing\""), ("\"offset\":100000", "\"offset\":99999")] {
        clear(&world.incoming(offer.release));
        let manifest = good.replace(from, to);
        assert_ne!(manifest, good);
        std::fs::write(world.shared(&offer, "manifest.json"), &manifest).unwrap();
        let mut offer = offer.clone();
        offer.manifest = Blob { bytes: manifest.len() as u64, digest: Digest::of(manifest.as_bytes()) };
        assert_eq!(damaged(world.pull(&offer, &[]).await.unwrap_err()), "manifest", "{to}");
    }
    let mut greedy = offer.clone();
    greedy.archive_bytes = u64::MAX;
    assert!(matches!(world.pull(&greedy, &[]).await, Err(RemoteError::TooLarge { .. })));
}

#[tokio::test]
async fn concurrent_pulls_of_one_release_are_serialised() {
    let world = World::new();
    let (offer, bytes) = world.publish(1, &[(1, 3 << 20), (2, 3 << 20)]).await;
    let one = async {
        let pulled = world.pull(&offer, &[]).await.unwrap();
        match pulled.content {
            PulledContent::Archive => {
                assert_eq!(std::fs::read(pulled.archive().unwrap()).unwrap(), bytes);
                world.accept(pulled, offer.release);
                true
            }
            _ => false,
        }
    };
    let other = async {
        let pulled = world.pull(&offer, &[]).await.unwrap();
        match pulled.content {
            PulledContent::Archive => {
                world.accept(pulled, offer.release);
                true
            }
            _ => false,
        }
    };
    let (one, other) = tokio::join!(one, other);
    assert!(one != other, "exactly one pull must fetch the release");
}

#[tokio::test]
async fn abandoned_incoming_directory_is_swept() {
    let world = World::new();
    let (offer, _) = world.publish(1, &[(1, 1000)]).await;
    let pulled = world.pull(&offer, &[]).await.unwrap();
    sweep(&world.paths, Duration::ZERO);
    assert!(pulled.directory.exists(), "a directory in use must stay");
    let directory = pulled.directory.clone();
    drop(pulled);
    sweep(&world.paths, Duration::from_secs(3600));
    assert!(directory.exists(), "a recent directory must stay");
    sweep_until(&world.paths, || !directory.exists()).await;
}

/// Sweeps until `is_done` returns true. A sweep leaves a directory whose lock is held, and a program that another test starts at this moment has
/// the lock until its `exec`.
async fn sweep_until(paths: &EnvironmentPaths, is_done: impl Fn() -> bool) {
    let swept = async {
        while !is_done() {
            let paths = paths.clone();
            tokio::task::spawn_blocking(move || sweep(&paths, Duration::ZERO)).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), swept).await.expect("the directory is swept within a minute");
}

/// A pull that begins during the removal of its directory must not lose files.
#[tokio::test(flavor = "multi_thread")]
async fn pull_cannot_enter_a_directory_that_is_being_swept() {
    let world = World::new();
    for _ in 0..5 {
        let release = ReleaseId::new(Timestamp::now());
        let (directory, lease) = enter(&world.paths, release).await.unwrap();
        for n in 0..1000 {
            std::fs::write(directory.join(format!("frame-{n}")), b"").unwrap();
        }
        drop(lease);
        let (paths, swept) = (world.paths.clone(), directory.clone());
        let count = move || std::fs::read_dir(&swept).map_or(0, |files| files.count());
        let has_begun = count.clone();
        let sweeping = tokio::spawn(async move { sweep_until(&paths, || has_begun() <= 1000).await });
        while count() > 1000 && !sweeping.is_finished() {
            tokio::task::yield_now().await;
        }
        let (entered, _lease) = enter(&world.paths, release).await.unwrap();
        let body = entered.join("body");
        // The write itself fails if the directory is removed between `enter` and the write.
        std::fs::write(&body, b"x").unwrap();
        sweeping.await.unwrap();
        assert!(entered.join(LOCK).exists() && body.exists(), "the sweep removed files of the pull");
    }
}

#[test]
fn progress_reports_every_tenth_once() {
    let reported = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&reported);
    let progress = tenths(move |line| kept.lock().push(line.to_owned()));
    for done in 0..=40 {
        progress(done << 20, 40 << 20);
    }
    assert_eq!(reported.lock().len(), 10);
    assert_eq!(reported.lock()[2], "12 of 40 MiB (30 %)");
    let small = Arc::clone(&reported);
    tenths(move |line| small.lock().push(line.to_owned()))(1000, 1000);
    assert_eq!(reported.lock().len(), 10);
}

/// While a thread of an aborted pull still writes, no other pull may use the directory.
#[tokio::test(flavor = "multi_thread")]
async fn pull_waits_for_the_threads_of_an_aborted_pull() {
    let world = World::new();
    let release = ReleaseId::new(Timestamp::now());
    let (_, lease) = enter(&world.paths, release).await.unwrap();
    let (go_on, held) = std::sync::mpsc::channel::<()>();
    let (begun, begins) = tokio::sync::oneshot::channel();
    let aborted = tokio::spawn(async move {
        let act = move || {
            let _ = begun.send(());
            let _ = held.recv();
            Ok(())
        };
        lease.blocking(act).await
    });
    begins.await.unwrap();
    aborted.abort();
    let _ = aborted.await;
    let mut next = Box::pin(enter(&world.paths, release));
    let waited = tokio::time::timeout(Duration::from_millis(300), &mut next).await;
    assert!(waited.is_err(), "the thread of the aborted pull still writes");
    go_on.send(()).unwrap();
    next.await.unwrap();
}
