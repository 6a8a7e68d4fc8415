//! The frames of the offered archive, and of older archives of the environment that pulls. The manifests describe the frames.

use std::{collections::HashMap, fs::File, io::BufReader, os::unix::fs::FileExt, path::Path, path::PathBuf, sync::Arc};

use larder_archive::ArchiveInfoExt;
use serde::Deserialize;

use crate::{
    host::files::{FileError, open_regular},
    model::{ArchiveInfo, CommitId, Digest, EnvironmentName, ProjectName, ReleaseId},
    remote::{error::RemoteError, offer::Offer},
};

/// A part of a file, and its digest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// The offset in the file.
    pub(super) at: u64,
    pub(super) bytes: u64,
    pub(super) digest: Digest,
}

/// The fields of a manifest that a transfer needs. The entries, which can be many, are skipped.
#[derive(Debug, Deserialize)]
pub(super) struct TransferHead {
    project: ProjectName,
    environment: EnvironmentName,
    release: ReleaseId,
    commit: CommitId,
    tree: Digest,
    archive: ArchiveInfo,
}

impl TransferHead {
    pub(super) fn read(path: &Path) -> Result<TransferHead, RemoteError> {
        let file = open_regular(path)?;
        let read = serde_json::from_reader(BufReader::new(file));
        Ok(read.map_err(|error| FileError::io("read", path, std::io::Error::other(error)))?)
    }

    /// Returns the description of the archive, if the manifest matches the offer and the frames are consistent.
    pub(super) fn checked(self, offer: &Offer) -> Result<ArchiveInfo, String> {
        let same = self.project == offer.project
            && self.environment == offer.environment
            && self.release == offer.release
            && self.commit == offer.commit
            && self.tree == offer.tree;
        if !same {
            return Err(String::from("the manifest describes another release than the offer"));
        }
        let mut at = 0_u64;
        for frame in &self.archive.frames {
            if frame.offset != at || frame.bytes == 0 {
                return Err(String::from("the frames of the archive are not contiguous"));
            }
            at = at.checked_add(frame.bytes).ok_or("the frames of the archive exceed the maximum size of a file")?;
        }
        let follows = ArchiveInfo { settings: self.archive.settings, ..ArchiveInfo::of_frames(self.archive.frames.clone()) };
        if follows != self.archive || self.archive.bytes != offer.archive_bytes {
            return Err(String::from("the digest or the size of the archive does not match its frames"));
        }
        Ok(self.archive)
    }
}

/// Returns the offset and the bytes of the seek table, which follows the last frame of an archive.
pub(super) fn tail(archive: &ArchiveInfo) -> Option<(u64, Vec<u8>)> {
    let end = archive.frames.iter().map(|frame| frame.bytes).sum();
    Some((end, archive.seek_table()))
}

/// The frames of the archives that this environment already has.
#[derive(Default)]
pub(super) struct HeldFrames(HashMap<Digest, (Arc<File>, u64, u64)>);

/// The maximum number of older archives whose frames are copied.
const MAX_ARCHIVES: usize = 3;

impl HeldFrames {
    /// Reads the frames of `archives`, which are pairs of the paths of a manifest and its archive, newest first. Unreadable archives are
    /// skipped.
    pub(super) fn of(archives: Vec<(PathBuf, PathBuf)>) -> HeldFrames {
        let mut known = HashMap::new();
        let readable = archives.into_iter().filter_map(|(manifest, archive)| {
            Some((TransferHead::read(&manifest).ok()?.archive.frames, Arc::new(open_regular(&archive).ok()?)))
        });
        for (frames, file) in readable.take(MAX_ARCHIVES) {
            for frame in frames {
                known.entry(frame.digest).or_insert((Arc::clone(&file), frame.offset, frame.bytes));
            }
        }
        HeldFrames(known)
    }

    /// Copies a piece from an older archive to the offset of the piece in `to`. Returns false if the piece was not copied completely. The
    /// caller must verify the digest of a copy.
    pub(super) fn copy(&self, piece: &Piece, to: &File, buffer: &mut [u8]) -> bool {
        let Some((from, offset, bytes)) = self.0.get(&piece.digest).filter(|(.., bytes)| *bytes == piece.bytes) else {
            return false;
        };
        let mut done = 0_u64;
        while done < *bytes {
            let most = usize::try_from(bytes.saturating_sub(done)).unwrap_or(usize::MAX).min(buffer.len());
            let Some(part) = buffer.get_mut(..most) else { return false };
            let read = from.read_at(part, offset.saturating_add(done)).unwrap_or(0);
            let Some(part) = part.get(..read).filter(|part| !part.is_empty()) else { return false };
            if to.write_all_at(part, piece.at.saturating_add(done)).is_err() {
                return false;
            }
            done = done.saturating_add(read as u64);
        }
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
