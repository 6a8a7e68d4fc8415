//! Pulls a release from a remote, and resumes an interrupted pull.
//!
//! Files are written to `releases/.incoming/<id>/`, under names that end in `.part` until their digest is verified. After an interrupted
//! pull, the next pull reuses all frames whose digests are right. The next pull also resumes the incomplete frame, whose position is
//! recorded in a file beside the partial file. A frame with a wrong digest is fetched again.

mod fill;
mod frames;
mod incoming;
mod pack;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use self::{
    fill::{PartialFile, with_retries},
    frames::Piece,
    incoming::{IncomingLease, blocking, clear, enter},
};
pub use self::{
    incoming::sweep,
    pack::{Pack, pull_pack},
};
use super::{
    deliverable_store::DeliverableStore,
    error::RemoteError,
    offer::{Blob, Object, Offer},
};
use crate::{
    host::{
        files::{self, FileError},
        root::EnvironmentPaths,
    },
    model::ReleaseId,
};

/// A function that is called with the number of bytes that were fetched or reused so far, and the number of all bytes of the transfer.
pub type ProgressFn = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// A function that checks the manifest file before the archive is fetched. The function rejects the manifest with
/// [`RemoteError::Rejected`].
pub type ManifestCheck = Arc<dyn Fn(&Path) -> Result<(), RemoteError> + Send + Sync>;

/// Returns a progress function that reports one line for every tenth of the transfer, such as `12 of 40 MiB (30 %)`. Transfers below 1 MiB
/// report nothing.
pub fn tenths(report: impl Fn(&str) + Send + Sync + 'static) -> ProgressFn {
    let reported = parking_lot::Mutex::new(0_u64);
    Arc::new(move |done, total| {
        let tenth = done.saturating_mul(10).checked_div(total).unwrap_or(10);
        let mut reported = reported.lock();
        if total >= 1 << 20 && tenth > *reported {
            *reported = tenth;
            report(&format!("{} of {} MiB ({} %)", done >> 20, total.div_ceil(1 << 20), tenth.saturating_mul(10)));
        }
    })
}

/// The content that a pull has fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PulledContent {
    /// The files `manifest.json` and `archive.tar.zst`.
    Archive,
    /// The file `delta`, from which the manifest and the tree are rebuilt.
    Delta {
        /// The release that the delta starts from.
        from: ReleaseId,
    },
    /// No content, because the release is already in `releases/`.
    Held,
}

/// The files of a completed pull. While this value exists, no other pull uses the files. [`discard`] removes the files.
#[derive(Debug)]
pub struct Pulled {
    /// The directory of the files.
    pub directory: PathBuf,
    /// The fetched content.
    pub content: PulledContent,
    /// The number of bytes that were fetched.
    pub fetched: u64,
    /// The number of bytes that were reused, from older archives or an interrupted pull.
    pub reused: u64,
    lease: IncomingLease,
}

/// The names of files in an incoming directory.
const MANIFEST: &str = "manifest.json";
const ARCHIVE: &str = "archive.tar.zst";
const DELTA: &str = "delta";
const HEALTH: &str = "health.json";

impl Pulled {
    /// Returns the path of the manifest, if an archive was fetched.
    pub fn manifest(&self) -> Option<PathBuf> {
        (self.content == PulledContent::Archive).then(|| self.directory.join(MANIFEST))
    }

    /// Returns the path of the archive, if an archive was fetched.
    pub fn archive(&self) -> Option<PathBuf> {
        (self.content == PulledContent::Archive).then(|| self.directory.join(ARCHIVE))
    }

    /// Returns the path of the delta, if a delta was fetched.
    pub fn delta(&self) -> Option<PathBuf> {
        matches!(self.content, PulledContent::Delta { .. }).then(|| self.directory.join(DELTA))
    }

    /// Returns the path of the health record, if the remote has a record.
    pub fn health(&self) -> Option<PathBuf> {
        Some(self.directory.join(HEALTH)).filter(|path| path.is_file())
    }
}

/// Fetches the release of an offer into `releases/.incoming/`. `held` lists the releases whose trees, and perhaps archives, this
/// environment has, newest first. Only changes are fetched: a delta from a held release ([`DeliverableStore::with_deltas`]), or the frames
/// that no archive of a held release has. The call may be interrupted at any moment and repeated. A second pull of the same release waits
/// until the first pull has ended.
pub async fn pull(
    remote: &DeliverableStore,
    offer: &Offer,
    held: &[ReleaseId],
    paths: &EnvironmentPaths,
    progress: &ProgressFn,
) -> Result<Pulled, RemoteError> {
    pull_checked(remote, offer, held, paths, progress, &(Arc::new(|_: &Path| Ok(())) as ManifestCheck)).await
}

/// Pulls like [`pull`], and checks the manifest before the archive is fetched. If `check` rejects the manifest, the archive is not fetched
/// and all received files are removed. The manifest of a delta is inside the delta, so the caller must check that manifest when the delta
/// is applied.
pub async fn pull_checked(
    remote: &DeliverableStore,
    offer: &Offer,
    held: &[ReleaseId],
    paths: &EnvironmentPaths,
    progress: &ProgressFn,
    check: &ManifestCheck,
) -> Result<Pulled, RemoteError> {
    let (directory, lease) = enter(paths, offer.release).await?;
    let mut pulled = Pulled { directory, content: PulledContent::Archive, fetched: 0, reused: 0, lease };
    match fill(remote, offer, held, paths, progress, check, &mut pulled).await {
        Ok(()) => Ok(pulled),
        Err(rejected @ RemoteError::Rejected { .. }) => {
            discard(pulled);
            Err(rejected)
        }
        Err(error) => Err(error),
    }
}

async fn fill(
    remote: &DeliverableStore,
    offer: &Offer,
    held: &[ReleaseId],
    paths: &EnvironmentPaths,
    progress: &ProgressFn,
    check: &ManifestCheck,
    pulled: &mut Pulled,
) -> Result<(), RemoteError> {
    if paths.manifest(offer.release).is_file() {
        pulled.content = PulledContent::Held;
    } else {
        content(remote, offer, held, paths, progress, check, pulled).await?;
    }
    // The health record is fetched even if the release is held already, because the record may have changed.
    if let Some(record) = with_retries(|| remote.health(offer.release)).await? {
        let path = pulled.directory.join(HEALTH);
        pulled.lease.blocking(move || Ok(files::write_atomic(&path, &record, 0o640)?)).await?;
    }
    Ok(())
}

async fn content(
    remote: &DeliverableStore,
    offer: &Offer,
    held: &[ReleaseId],
    paths: &EnvironmentPaths,
    progress: &ProgressFn,
    check: &ManifestCheck,
    pulled: &mut Pulled,
) -> Result<(), RemoteError> {
    let limits = remote.limits();
    for (what, bytes, limit) in
        [("archive", offer.archive_bytes, limits.archive_bytes), ("manifest", offer.manifest.bytes, limits.manifest_bytes)]
    {
        if bytes > limit {
            return Err(RemoteError::TooLarge { remote: remote.title().to_owned(), what: what.to_owned(), limit });
        }
    }
    if !by_delta(remote, offer, held, progress, pulled).await? {
        let quiet: ProgressFn = Arc::new(|_, _| {});
        blob(remote, offer, Object::Manifest, offer.manifest, MANIFEST, &quiet, pulled).await?;
        let (manifest, check) = (pulled.directory.join(MANIFEST), Arc::clone(check));
        pulled.lease.blocking(move || check(&manifest)).await?;
        by_frames(remote, offer, held, paths, progress, pulled).await?;
    }
    Ok(())
}

/// The maximum number of held releases from which a delta is requested.
const MAX_BASES: usize = 2;

/// Fetches a delta from a held release. Returns false if no delta was fetched: the store requests no deltas, or the remote has no delta
/// that is smaller than the archive.
async fn by_delta(
    remote: &DeliverableStore,
    offer: &Offer,
    held: &[ReleaseId],
    progress: &ProgressFn,
    pulled: &mut Pulled,
) -> Result<bool, RemoteError> {
    for from in held.iter().take(if remote.requests_deltas() { MAX_BASES } else { 0 }).copied() {
        let delta = match with_retries(|| remote.delta(offer.release, from)).await {
            Ok(delta) if delta.bytes < offer.archive_bytes => delta,
            // The delta is not smaller than the archive, or the remote cannot compute the delta. The next held release is tried, and
            // finally the archive is fetched.
            Ok(_) | Err(RemoteError::NotFound { .. } | RemoteError::Refused { .. }) => continue,
            Err(error) => return Err(error),
        };
        blob(remote, offer, Object::Delta { from }, delta, DELTA, progress, pulled).await?;
        pulled.content = PulledContent::Delta { from };
        return Ok(true);
    }
    Ok(false)
}

/// Fetches the archive, except the frames that an archive of a held release has.
async fn by_frames(
    remote: &DeliverableStore,
    offer: &Offer,
    held: &[ReleaseId],
    paths: &EnvironmentPaths,
    progress: &ProgressFn,
    pulled: &mut Pulled,
) -> Result<(), RemoteError> {
    let manifest = pulled.directory.join(MANIFEST);
    let archives = held.iter().map(|id| (paths.manifest(*id), paths.archive(*id))).collect();
    let title = remote.title().to_owned();
    let (expected, known) = {
        let offer = offer.clone();
        let read = blocking(move || {
            let head = frames::TransferHead::read(&manifest)?.checked(&offer).map_err(|why| RemoteError::Damaged {
                remote: title,
                what: String::from("manifest"),
                why,
            });
            Ok((head, frames::HeldFrames::of(archives)))
        });
        let (head, known) = read.await?;
        match head {
            Ok(archive) => (archive, known),
            Err(damaged) => {
                // The manifest has the offered digest, so another fetch of the manifest would give the same file. No file of this pull can
                // be reused.
                clear(&pulled.directory);
                return Err(damaged);
            }
        }
    };
    let pieces =
        expected.frames.iter().map(|frame| Piece { at: frame.offset, bytes: frame.bytes, digest: frame.digest }).collect();
    let part = pulled.directory.join(format!("{ARCHIVE}.part"));
    let (whole, again) = (pulled.directory.join(ARCHIVE), part.clone());
    // An earlier pull may have been interrupted after the archive was complete and before it was accepted. Such an archive is verified like
    // a partial file.
    let pick_up = move || match fs::rename(&whole, &again) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::io("rename", whole, error).into()),
        _ => Ok(()),
    };
    pulled.lease.blocking(pick_up).await?;
    let tail = frames::tail(&expected);
    let mut partial = PartialFile::open(&pulled.lease, &part, expected.bytes, pieces, progress).await?;
    partial.take_over(known).await?;
    partial.fetch(remote, offer.release, Object::Archive).await?;
    pulled.fetched = pulled.fetched.saturating_add(partial.fetched());
    pulled.reused = pulled.reused.saturating_add(partial.reused());
    partial.finish(tail, pulled.directory.join(ARCHIVE)).await
}

/// Fetches an object with a known digest.
async fn blob(
    remote: &DeliverableStore,
    offer: &Offer,
    object: Object,
    blob: Blob,
    name: &str,
    progress: &ProgressFn,
    pulled: &mut Pulled,
) -> Result<(), RemoteError> {
    let part = pulled.directory.join(format!("{name}.part"));
    let done = pulled.directory.join(name);
    let whole = Piece { at: 0, bytes: blob.bytes, digest: blob.digest };
    if fill::is_whole(&pulled.lease, &done, whole).await? {
        pulled.reused = pulled.reused.saturating_add(blob.bytes);
        return Ok(());
    }
    let mut partial = PartialFile::open(&pulled.lease, &part, blob.bytes, vec![whole], progress).await?;
    partial.fetch(remote, offer.release, object).await?;
    pulled.fetched = pulled.fetched.saturating_add(partial.fetched());
    pulled.reused = pulled.reused.saturating_add(partial.reused());
    partial.finish(None, done).await
}

/// Removes the files of a pull. Callers call this function after the files were accepted or refused.
pub fn discard(pulled: Pulled) {
    let _ = incoming::remove(&pulled.directory);
    drop(pulled.lease);
}

#[cfg(test)]
mod tests;
