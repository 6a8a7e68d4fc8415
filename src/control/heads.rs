//! A cache of manifest heads. A head contains the fields of a manifest that the offer of a release ([`Offer`](crate::remote::Offer)) needs.

use std::{
    collections::HashMap,
    io::{self, BufReader},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Deserialize;

use super::error::CommandError;
use crate::{
    host::files,
    model::{CommitId, Digest, EnvironmentName, ProjectName},
    remote::Blob,
};

/// The maximum number of cached heads. The cache is emptied when it is full.
const MAX_HEADS: usize = 4096;

/// The fields of a manifest that an offer needs. A manifest never changes, so these fields stay valid. The large lists of entries and
/// frames are not read into memory.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct OfferHead {
    pub project: ProjectName,
    pub environment: EnvironmentName,
    pub commit: CommitId,
    #[serde(default)]
    pub source: Option<CommitId>,
    pub build: u64,
    #[serde(default)]
    pub tag: Option<String>,
    pub tree: Digest,
    pub created: Timestamp,
    pub archive: ArchiveHead,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct ArchiveHead {
    pub bytes: u64,
}

/// The cached heads, by the path of the manifest. All clones share one cache.
#[derive(Debug, Clone, Default)]
pub(super) struct ManifestHeads(Arc<Mutex<HashMap<PathBuf, KnownHead>>>);

/// The head of a manifest, with the size and digest of the manifest file.
type KnownHead = Arc<(OfferHead, Blob)>;

impl ManifestHeads {
    /// Returns the head of the manifest at `path`. Reads the file only if the head is not in the cache.
    pub fn get(&self, path: &Path) -> Result<KnownHead, CommandError> {
        if let Some(known) = self.0.lock().get(path) {
            return Ok(Arc::clone(known));
        }
        let file = files::open_regular(path).map_err(|error| CommandError::internal(&error))?;
        let head = serde_json::from_reader(BufReader::new(file)).map_err(|error| unreadable(path, io::Error::other(error)))?;
        let known = Arc::new((head, digest(path)?));
        let mut heads = self.0.lock();
        if heads.len() >= MAX_HEADS {
            heads.clear();
        }
        heads.insert(path.to_owned(), Arc::clone(&known));
        Ok(known)
    }
}

/// Returns the size and digest of a file.
pub(super) fn digest(path: &Path) -> Result<Blob, CommandError> {
    let file = files::open_regular(path).map_err(|error| CommandError::internal(&error))?;
    let mut hasher = blake3::Hasher::new();
    let bytes = io::copy(&mut BufReader::with_capacity(1 << 20, file), &mut hasher).map_err(|error| unreadable(path, error))?;
    Ok(Blob { bytes, digest: Digest::from(hasher.finalize()) })
}

fn unreadable(path: &Path, error: io::Error) -> CommandError {
    CommandError::internal(&files::FileError::Io { doing: "read", path: path.to_owned(), source: error })
}
