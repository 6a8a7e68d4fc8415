//! The worker that verifies a received archive without unpacking it.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use larder_archive::{Archive, ArchiveError, ArchiveLimits, FrameReader, Sink, pool::each_thread};
use serde::{Deserialize, Serialize};

use super::{Refusal, ReleaseError, WorkerAnswer, store};
use crate::model::{Digest, Entry, Manifest};

/// The job of the verify worker. Descriptor 5 is the archive, and 6 is the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyJob {
    /// The number of threads that decompress.
    pub threads: usize,
    /// The limits of the archive.
    pub limits: ArchiveLimits,
}

/// The verdict on an archive: accepted, or the reason to refuse the archive.
pub type Verdict = Result<(), Refusal>;

/// Verifies the digest of every frame, the header of every entry and the digest of every file. Refuses an archive with additional bytes.
pub fn work(job: &VerifyJob, archive: &File, manifest: &File) -> WorkerAnswer<Verdict> {
    verify(job, archive, manifest).into()
}

fn verify(job: &VerifyJob, archive: &File, manifest: &File) -> Result<Verdict, ReleaseError> {
    let manifest = store::parse(manifest, Path::new("the manifest"))?;
    verdict(&manifest, read_all(archive, &manifest, &job.limits, job.threads))
}

/// Returns the verdict on an archive; `result` is the result of reading the archive. A failure of the machine is an error, not a refusal.
pub(super) fn verdict(manifest: &Manifest, result: Result<(), ArchiveError>) -> Result<Verdict, ReleaseError> {
    match result {
        Ok(()) => Ok(Ok(())),
        Err(error) => match Refusal::of_archive(manifest, &error) {
            Some(refusal) => Ok(Err(refusal)),
            None => Err(ReleaseError::Archive { doing: "accept", source: error }),
        },
    }
}

/// Reads and verifies the whole archive like an installation, but writes nothing.
pub fn read_all(file: &File, manifest: &Manifest, limits: &ArchiveLimits, threads: usize) -> Result<(), ArchiveError> {
    let archive = Archive::open(file, &manifest.entries, &manifest.archive, limits)?;
    let count = archive.frames().len();
    let next = AtomicUsize::new(0);
    let results = each_thread(threads.clamp(1, count.max(1)), || {
        let mut reader = FrameReader::new()?;
        loop {
            let frame = next.fetch_add(1, Ordering::Relaxed);
            if frame >= count {
                return Ok(());
            }
            if let Err(error) = archive.read(frame, &mut reader, &mut Nowhere) {
                next.store(count, Ordering::Relaxed); // All threads stop.
                return Err(error);
            }
        }
    });
    results.into_iter().collect()
}

/// Compares the bytes of all frames with their digests, without decompressing the frames.
pub(super) fn read_digests(file: &File, manifest: &Manifest, limits: &ArchiveLimits) -> Result<(), ArchiveError> {
    Archive::open(file, &manifest.entries, &manifest.archive, limits)?;
    let mut buffer = vec![0; 1 << 20];
    for (index, frame) in manifest.archive.frames.iter().enumerate() {
        let mut hasher = blake3::Hasher::new();
        let mut done = 0;
        while done < frame.bytes {
            let most = usize::try_from(frame.bytes - done).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..most).unwrap_or_default();
            let read = file.read_at(part, frame.offset + done).map_err(|source| ArchiveError::Io { doing: "read", source })?;
            if read == 0 {
                let source = io::ErrorKind::UnexpectedEof.into();
                return Err(ArchiveError::Io { doing: "read the end of", source });
            }
            hasher.update(part.get(..read).unwrap_or_default());
            done += read as u64;
        }
        if Digest::from(hasher.finalize()) != frame.digest {
            return Err(ArchiveError::FrameDigest { frame: index });
        }
    }
    Ok(())
}

/// A sink that discards the content of every file, so that all content is decompressed and checked.
struct Nowhere;

impl Sink for Nowhere {
    fn begin(&mut self, _: usize, _: &Entry) -> Result<bool, ArchiveError> {
        Ok(true)
    }
    fn data(&mut self, _: &[u8]) -> Result<(), ArchiveError> {
        Ok(())
    }
    fn end(&mut self) -> Result<(), ArchiveError> {
        Ok(())
    }
}
