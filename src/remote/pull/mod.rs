//! Bringing a release here, whatever happens on the way.
//!
//! Everything lands in `releases/.incoming/<id>/`, under names that end in `.part` until its digest is right. What a cut transfer has
//! left is picked up again: whole frames are known by their digests, and of the one that was under way a note says how far it
//! had come. A frame that turns out wrong is thrown away and fetched anew.

mod fill;
mod frames;
mod pack;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use self::fill::{Filling, Piece};
pub use self::pack::{Pack, pull_pack};
use super::{Blob, Object, Offer, Place, RemoteError};
use crate::{
    host::{
        files::{self, FileError},
        root::EnvironmentPaths,
    },
    model::ReleaseId,
};

/// Is told how many bytes of how many are here, whether they were fetched or held already.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Looks at the manifest that came, as a file, before anything that it leads to does; says no with [`RemoteError::Rejected`].
pub type Judge = Arc<dyn Fn(&Path) -> Result<(), RemoteError> + Send + Sync>;

/// A progress that says one line for every tenth, such as `12 of 40 MiB (30 %)`; small transfers say nothing.
pub fn tenths(say: impl Fn(&str) + Send + Sync + 'static) -> Progress {
    let said = parking_lot::Mutex::new(0_u64);
    Arc::new(move |done, total| {
        let tenth = done.saturating_mul(10).checked_div(total).unwrap_or(10);
        let mut said = said.lock();
        if total >= 1 << 20 && tenth > *said {
            *said = tenth;
            say(&format!("{} of {} MiB ({} %)", done >> 20, total.div_ceil(1 << 20), tenth.saturating_mul(10)));
        }
    })
}

/// What a pull has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// `manifest.json` and `archive.tar.zst`.
    Archive,
    /// `delta`, from which manifest and tree follow; the release that it starts from is held here.
    Delta {
        /// That release.
        from: ReleaseId,
    },
    /// Nothing: the release is in `releases/` already; another pull was faster.
    Held,
}

/// Files that have arrived. As long as this value lives nobody else touches them; [`discard`] removes them.
#[derive(Debug)]
pub struct Pulled {
    /// The directory that they are in.
    pub directory: PathBuf,
    /// What there is.
    pub content: Wanted,
    /// Bytes that came over the network.
    pub fetched: u64,
    /// Bytes that were here already, in older archives or of an earlier attempt.
    pub reused: u64,
    lease: Lease,
}

/// The right to the files of one incoming directory. Threads at work there share it: a pull that is given up leaves threads behind
/// that are still writing, and nobody else may begin before the last of them has ended.
#[derive(Debug, Clone)]
struct Lease {
    _lock: Arc<File>,
}

impl Lease {
    /// Runs `act` on a thread that keeps the lease until it is done.
    async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> Result<T, RemoteError> + Send + 'static,
    ) -> Result<T, RemoteError> {
        let kept = self.clone();
        blocking(move || {
            let done = act();
            drop(kept);
            done
        })
        .await
    }
}

/// The names in an incoming directory.
const MANIFEST: &str = "manifest.json";
const ARCHIVE: &str = "archive.tar.zst";
const DELTA: &str = "delta";
const HEALTH: &str = "health.json";
const LOCK: &str = "lock";

impl Pulled {
    /// The manifest's file, unless a delta came.
    pub fn manifest(&self) -> Option<PathBuf> {
        (self.content == Wanted::Archive).then(|| self.directory.join(MANIFEST))
    }

    /// The archive's file, unless a delta came.
    pub fn archive(&self) -> Option<PathBuf> {
        (self.content == Wanted::Archive).then(|| self.directory.join(ARCHIVE))
    }

    /// The delta's file, if one came.
    pub fn delta(&self) -> Option<PathBuf> {
        matches!(self.content, Wanted::Delta { .. }).then(|| self.directory.join(DELTA))
    }

    /// The health record's file, if the place gave one.
    pub fn health(&self) -> Option<PathBuf> {
        Some(self.directory.join(HEALTH)).filter(|path| path.is_file())
    }
}

/// Brings the release of an offer into `releases/.incoming/`. `held` are releases of which this environment has the tree and maybe the
/// archive, newest first: with a delta from one of them ([`Place::with_deltas`]), or by frames of their archives, only what changed is
/// fetched. May be repeated and interrupted at any
/// moment; two pulls of one release wait for each other.
pub async fn pull(
    place: &Place,
    offer: &Offer,
    held: &[ReleaseId],
    paths: &EnvironmentPaths,
    progress: &Progress,
) -> Result<Pulled, RemoteError> {
    pull_believed(place, offer, held, paths, progress, &(Arc::new(|_: &Path| Ok(())) as Judge)).await
}

/// The same; of a release whose manifest `judge` says no to, nothing more is fetched, and nothing stays. What comes as a delta has its
/// manifest inside: it is judged by whoever takes it in.
pub async fn pull_believed(
    place: &Place,
    offer: &Offer,
    held: &[ReleaseId],
    paths: &EnvironmentPaths,
    progress: &Progress,
    judge: &Judge,
) -> Result<Pulled, RemoteError> {
    let (directory, lease) = enter(paths, offer.release).await?;
    let mut pulled = Pulled { directory, content: Wanted::Archive, fetched: 0, reused: 0, lease };
    match fill(place, offer, held, paths, progress, judge, &mut pulled).await {
        Ok(()) => Ok(pulled),
        Err(rejected @ RemoteError::Rejected { .. }) => {
            discard(pulled);
            Err(rejected)
        }
        Err(error) => Err(error),
    }
}

async fn fill(
    place: &Place,
    offer: &Offer,
    held: &[ReleaseId],
    paths: &EnvironmentPaths,
    progress: &Progress,
    judge: &Judge,
    pulled: &mut Pulled,
) -> Result<(), RemoteError> {
    if paths.manifest(offer.release).is_file() {
        pulled.content = Wanted::Held;
    } else {
        content(place, offer, held, paths, progress, judge, pulled).await?;
    }
    // Also of what is here already: time has passed since.
    if let Some(record) = fill::patiently(|| place.health(offer.release)).await? {
        let path = pulled.directory.join(HEALTH);
        pulled.lease.blocking(move || Ok(files::write_atomic(&path, &record, 0o640)?)).await?;
    }
    Ok(())
}

async fn content(
    place: &Place,
    offer: &Offer,
    held: &[ReleaseId],
    paths: &EnvironmentPaths,
    progress: &Progress,
    judge: &Judge,
    pulled: &mut Pulled,
) -> Result<(), RemoteError> {
    let limits = place.limits();
    for (what, bytes, limit) in
        [("archive", offer.archive_bytes, limits.archive_bytes), ("manifest", offer.manifest.bytes, limits.manifest_bytes)]
    {
        if bytes > limit {
            return Err(RemoteError::TooLarge { place: place.title().to_owned(), what: what.to_owned(), limit });
        }
    }
    if !by_delta(place, offer, held, progress, pulled).await? {
        let quiet: Progress = Arc::new(|_, _| {});
        blob(place, offer, Object::Manifest, offer.manifest, MANIFEST, &quiet, pulled).await?;
        let (manifest, judge) = (pulled.directory.join(MANIFEST), Arc::clone(judge));
        pulled.lease.blocking(move || judge(&manifest)).await?;
        by_frames(place, offer, held, paths, progress, pulled).await?;
    }
    Ok(())
}

/// Deltas from so many of the newest releases are asked for.
const BASES: usize = 2;

async fn by_delta(
    place: &Place,
    offer: &Offer,
    held: &[ReleaseId],
    progress: &Progress,
    pulled: &mut Pulled,
) -> Result<bool, RemoteError> {
    for from in held.iter().take(if place.wants_deltas() { BASES } else { 0 }).copied() {
        let delta = match fill::patiently(|| place.delta(offer.release, from)).await {
            Ok(delta) if delta.bytes < offer.archive_bytes => delta,
            // Not worth it, or nothing that this place can make: there is another way.
            Ok(_) | Err(RemoteError::NotFound { .. } | RemoteError::Refused { .. }) => continue,
            Err(error) => return Err(error),
        };
        blob(place, offer, Object::Delta { from }, delta, DELTA, progress, pulled).await?;
        pulled.content = Wanted::Delta { from };
        return Ok(true);
    }
    Ok(false)
}

async fn by_frames(
    place: &Place,
    offer: &Offer,
    held: &[ReleaseId],
    paths: &EnvironmentPaths,
    progress: &Progress,
    pulled: &mut Pulled,
) -> Result<(), RemoteError> {
    let manifest = pulled.directory.join(MANIFEST);
    let archives = held.iter().map(|id| (paths.manifest(*id), paths.archive(*id))).collect();
    let title = place.title().to_owned();
    let (expected, known) = {
        let offer = offer.clone();
        let read = blocking(move || {
            let outline = frames::Outline::read(&manifest)?.checked(&offer).map_err(|why| RemoteError::Damaged {
                place: title,
                what: String::from("manifest"),
                why,
            });
            Ok((outline, frames::Known::of(archives)))
        });
        let (outline, known) = read.await?;
        match outline {
            Ok(outline) => (outline, known),
            Err(damaged) => {
                // It has the digest that was promised, so fetching it again would change nothing.
                clear(&pulled.directory);
                return Err(damaged);
            }
        }
    };
    let pieces =
        expected.frames.iter().map(|frame| Piece { at: frame.offset, bytes: frame.bytes, digest: frame.digest }).collect();
    let part = pulled.directory.join(format!("{ARCHIVE}.part"));
    let (whole, again) = (pulled.directory.join(ARCHIVE), part.clone());
    // An earlier attempt may have had all of it, and ended before anybody took it in. It is looked at like any other part.
    let pick_up = move || match fs::rename(&whole, &again) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::io("rename", whole, error).into()),
        _ => Ok(()),
    };
    pulled.lease.blocking(pick_up).await?;
    let tail = frames::tail(&expected);
    let mut filling = Filling::open(&pulled.lease, &part, expected.bytes, pieces, progress).await?;
    filling.take_over(known).await?;
    filling.fetch(place, offer.release, Object::Archive).await?;
    pulled.fetched = pulled.fetched.saturating_add(filling.fetched());
    pulled.reused = pulled.reused.saturating_add(filling.reused());
    filling.finish(tail, pulled.directory.join(ARCHIVE)).await
}

/// Fetches an object whose digest is known.
async fn blob(
    place: &Place,
    offer: &Offer,
    object: Object,
    blob: Blob,
    name: &str,
    progress: &Progress,
    pulled: &mut Pulled,
) -> Result<(), RemoteError> {
    let part = pulled.directory.join(format!("{name}.part"));
    let done = pulled.directory.join(name);
    let whole = Piece { at: 0, bytes: blob.bytes, digest: blob.digest };
    if fill::is_whole(&pulled.lease, &done, whole).await? {
        pulled.reused = pulled.reused.saturating_add(blob.bytes);
        return Ok(());
    }
    let mut filling = Filling::open(&pulled.lease, &part, blob.bytes, vec![whole], progress).await?;
    filling.fetch(place, offer.release, object).await?;
    pulled.fetched = pulled.fetched.saturating_add(filling.fetched());
    pulled.reused = pulled.reused.saturating_add(filling.reused());
    filling.finish(None, done).await
}

/// Removes what a pull has brought, after it was taken in or refused.
pub fn discard(pulled: Pulled) {
    clear(&pulled.directory);
    let _ = fs::remove_dir_all(&pulled.directory);
    drop(pulled.lease);
}

/// Removes what pulls have left that nobody came back to within `age`.
pub fn sweep(paths: &EnvironmentPaths, age: Duration) {
    for entry in fs::read_dir(paths.incoming()).into_iter().flatten().flatten() {
        let path = entry.path();
        let inside = fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path());
        let touched = inside.chain([path.clone()]).filter_map(|path| fs::metadata(path).ok()?.modified().ok()).max();
        let old = touched.is_some_and(|touched| SystemTime::now().duration_since(touched).is_ok_and(|since| since > age));
        let free = || File::open(path.join(LOCK)).map_or(true, |lock| lock.try_lock().is_ok());
        if old && free() && fs::remove_dir_all(&path).is_err() {
            tracing::warn!(directory = %path.display(), "what a pull has left could not be removed");
        }
    }
}

/// Removes all files of an incoming directory but its lock.
fn clear(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten().filter(|entry| entry.file_name() != LOCK) {
        let _ = fs::remove_file(entry.path());
    }
}

fn make(directory: &Path) -> Result<(), RemoteError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(directory);
    Ok(made.map_err(|error| FileError::io("create", directory, error))?)
}

/// The directory for a release, which nobody else uses until the lease is dropped.
async fn enter(paths: &EnvironmentPaths, release: ReleaseId) -> Result<(PathBuf, Lease), RemoteError> {
    enter_directory(paths.incoming().join(release.to_string())).await
}

async fn enter_directory(directory: PathBuf) -> Result<(PathBuf, Lease), RemoteError> {
    loop {
        let wanted = directory.clone();
        let locked = blocking(move || {
            make(&wanted)?;
            let path = wanted.join(LOCK);
            let failed = |error: io::Error| FileError::io("lock", path.clone(), error);
            let lock = File::options().create(true).append(true).open(&path).map_err(failed)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => return Ok(None),
                Err(fs::TryLockError::Error(error)) => return Err(failed(error).into()),
            }
            // Whoever had it may have removed the directory when it was done.
            use std::os::unix::fs::MetadataExt;
            let same = match (lock.metadata(), fs::metadata(&path)) {
                (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
                _ => false,
            };
            Ok(same.then_some(lock))
        });
        match locked.await {
            Ok(Some(lock)) => return Ok((directory, Lease { _lock: Arc::new(lock) })),
            Ok(None) => {}
            // Removed between two of our steps.
            Err(RemoteError::File(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> Result<T, RemoteError> + Send + 'static) -> Result<T, RemoteError> {
    tokio::task::spawn_blocking(act).await.map_err(|_| RemoteError::GivenUp)?
}

#[cfg(test)]
mod tests;
