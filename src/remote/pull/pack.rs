//! The commit of a release, as a pack of git.
//!
//! Nobody knows its digest before it is there: the other side makes it anew for each request, and git makes the same bytes of the same
//! repository. So what was cut goes on at the byte where it was, and git's own checksum at the end of the pack, which whoever takes it
//! in compares, says whether both halves fit.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::PathBuf,
};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Lease, clear, enter_directory, fill};
use crate::{
    host::{files::FileError, root::EnvironmentPaths},
    model::{CommitId, Digest, ReleaseId},
    remote::{Place, QUEUE, RemoteError},
};

/// A pack that has arrived. As long as this value lives nobody else touches its file.
#[derive(Debug)]
pub struct Pack {
    /// Its file, which stands at its beginning.
    pub file: File,
    /// Whether it came by more than one request: then git may find that both parts do not fit, and it has to come anew.
    pub resumed: bool,
    directory: PathBuf,
    lease: Lease,
}

impl Pack {
    /// Removes its file, after it was taken in or refused.
    pub fn discard(self) {
        clear(&self.directory);
        let _ = std::fs::remove_dir_all(&self.directory);
        drop(self.lease);
    }
}

/// Brings the commit of a release, without what `haves` lead to. May be repeated and interrupted at any moment.
pub async fn pull_pack(
    place: &Place,
    release: ReleaseId,
    haves: &[CommitId],
    paths: &EnvironmentPaths,
) -> Result<Pack, RemoteError> {
    // Not that of its files, which whoever takes them in clears.
    let (directory, lease) = enter_directory(paths.incoming().join(format!("{release}.commit"))).await?;
    // What others have to do without makes another pack.
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
    let limit = place.limits().pack_bytes;
    let mut pauses = fill::pauses();
    loop {
        let (to, chunks) = mpsc::channel(QUEUE);
        let sending = async {
            let sent = place.pack(release, haves, here, &to).await;
            drop(to);
            sent
        };
        let title = place.title().to_owned();
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

/// Writes chunks behind what is there, as far as the limit goes. Gives the number of bytes that are there then.
fn append(
    mut file: File,
    mut here: u64,
    mut chunks: mpsc::Receiver<Bytes>,
    limit: u64,
    place: String,
) -> Result<(File, u64), RemoteError> {
    let failed = |error| FileError::io("write", "a pack", error);
    while let Some(chunk) = chunks.blocking_recv() {
        let after = here.saturating_add(chunk.len() as u64);
        if after > limit {
            // It would be too large the next time, too.
            file.set_len(0).map_err(failed)?;
            return Err(RemoteError::TooLarge { place, what: String::from("pack"), limit });
        }
        file.write_all(&chunk).map_err(failed)?;
        here = after;
    }
    Ok((file, here))
}
