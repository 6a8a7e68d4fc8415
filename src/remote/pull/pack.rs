//! Pulls the commit of a release, as a git pack.
//!
//! The digest of the pack is not known in advance, because the remote server creates a new pack for each request. An interrupted
//! transfer nevertheless resumes after the last received byte, because git creates the same bytes while the repository does not
//! change. If the repository changes between two requests, the import fails: the checksum at the end of the pack does not match.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::PathBuf,
};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    fill,
    incoming::{self, IncomingLease, enter_directory},
};
use crate::{
    host::{files::FileError, root::EnvironmentPaths},
    model::{CommitId, Digest, ReleaseId},
    remote::{deliverable_store::DeliverableStore, error::RemoteError, offer::MAX_QUEUE},
};

/// A complete pack. While this value exists, no other pull uses its file.
#[derive(Debug)]
pub struct Pack {
    /// The file, positioned at its beginning.
    pub file: File,
    /// True if the pack was fetched by more than one request. If git refuses such a pack, the caller should fetch the pack again, because
    /// its parts may be from different packs.
    pub resumed: bool,
    directory: PathBuf,
    lease: IncomingLease,
}

impl Pack {
    /// Removes the file. Callers call this function after the pack was imported or refused.
    pub fn discard(self) {
        let _ = incoming::remove(&self.directory);
        drop(self.lease);
    }
}

/// Fetches the commit of a release, with all objects that are reachable from this commit and not from `haves`. A call may be interrupted at
/// any moment; the next call resumes the transfer.
pub async fn pull_pack(
    remote: &DeliverableStore,
    release: ReleaseId,
    haves: &[CommitId],
    paths: &EnvironmentPaths,
) -> Result<Pack, RemoteError> {
    // The pack has a separate directory, because the directory of the release's files is cleared when they are accepted.
    let (directory, lease) = enter_directory(paths.incoming().join(format!("{release}.commit"))).await?;
    // The name of the file depends on `haves`, because a pack for other `haves` must not be resumed from this file.
    let all: String = haves.iter().map(CommitId::as_str).collect();
    let path = directory.join(format!("pack-{}.part", Digest::of(all.as_bytes()).short()));
    let opened = path.clone();
    let open = move || {
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&opened);
        let mut file = open.map_err(|error| FileError::io("open", &opened, error))?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(|error| FileError::io("open", &opened, error))?;
        Ok((file, bytes))
    };
    let (mut file, mut here) = lease.blocking(open).await?;
    let mut resumed = here > 0;
    let limit = remote.limits().pack_bytes;
    let mut pauses = fill::pauses();
    loop {
        let (to, chunks) = mpsc::channel(MAX_QUEUE);
        let sending = async {
            let sent = remote.pack(release, haves, here, &to).await;
            drop(to);
            sent
        };
        let title = remote.title().to_owned();
        let writing = lease.blocking(move || append(file, here, chunks, limit, title));
        let (sent, written) = tokio::join!(sending, writing);
        let before = here;
        (file, here) = written?;
        match sent {
            Ok(()) => break,
            Err(error) if error.is_transient() => {
                resumed |= here > 0;
                if here > before {
                    pauses = fill::pauses();
                }
                tokio::time::sleep(pauses.next().ok_or(error)?).await;
            }
            Err(error) => return Err(error),
        }
    }
    file.rewind().map_err(|error| FileError::io("read", &path, error))?;
    Ok(Pack { file, resumed, directory, lease })
}

/// Appends chunks up to the limit. Returns the file and its new size.
fn append(
    mut file: File,
    mut here: u64,
    mut chunks: mpsc::Receiver<Bytes>,
    limit: u64,
    remote: String,
) -> Result<(File, u64), RemoteError> {
    let failed = |error| FileError::io("write", "a pack", error);
    while let Some(chunk) = chunks.blocking_recv() {
        let after = here.saturating_add(chunk.len() as u64);
        if after > limit {
            // The partial pack is not kept: a resumed transfer would exceed the limit again.
            file.set_len(0).map_err(failed)?;
            return Err(RemoteError::TooLarge { remote, what: String::from("pack"), limit });
        }
        file.write_all(&chunk).map_err(failed)?;
        here = after;
    }
    Ok((file, here))
}
