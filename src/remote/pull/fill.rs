//! [`PartialFile`]: a file that is fetched in pieces. An interrupted transfer continues over a new connection.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    ProgressFn,
    frames::{HeldFrames, Piece},
    incoming::IncomingLease,
};
use crate::{
    host::files::{FileError, free_space, open_regular, remove_if_present, rename_over},
    model::{Digest, ReleaseId},
    remote::{
        deliverable_store::DeliverableStore,
        error::RemoteError,
        offer::{MAX_QUEUE, Object},
    },
};

/// The suffix of the note, a file beside the partial file. The note records the offset of the piece in progress and the number of written
/// bytes of this piece.
const NOTE: &str = ".note";
/// The size of the buffer for verifying digests, in bytes.
const BUFFER: usize = 1 << 20;
/// The number of interrupted attempts for one file after which progress no longer resets the backoff.
const ATTEMPTS: u32 = 200;
/// The number of bytes that must stay free on the disk.
const RESERVE: u64 = 64 << 20;

fn note_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(NOTE);
    name.into()
}

/// Returns the backoff between attempts. A transfer restarts the backoff after an attempt that made progress.
pub(super) fn pauses() -> ExponentialBackoff {
    let shortest = Duration::from_millis(if cfg!(test) { 1 } else { 250 });
    let pauses = ExponentialBuilder::default().with_min_delay(shortest).with_max_delay(shortest.saturating_mul(40));
    pauses.with_max_times(7).with_jitter().build()
}

/// Runs `attempt`, and retries with backoff after transient errors.
pub(super) async fn with_retries<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, RemoteError>
where
    F: Future<Output = Result<T, RemoteError>> + Send,
{
    let mut pauses = pauses();
    loop {
        match attempt().await {
            Err(error) if error.is_transient() => match pauses.next() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            },
            other => return other,
        }
    }
}

/// Returns true if a complete file with the right digest exists. A file with a wrong size or digest is removed.
pub(super) async fn is_whole(lease: &IncomingLease, path: &Path, piece: Piece) -> Result<bool, RemoteError> {
    let path = path.to_owned();
    let look = move || {
        let Ok(file) = open_regular(&path) else { return Ok(false) };
        let right =
            file.metadata().is_ok_and(|found| found.len() == piece.bytes) && is_right(&file, &piece, &mut vec![0; BUFFER]);
        if !right {
            remove_if_present(&path)?;
        }
        Ok(right)
    };
    lease.blocking(look).await
}

/// Returns true if the bytes of `piece` in `file` have the digest of the piece.
fn is_right(file: &File, piece: &Piece, buffer: &mut [u8]) -> bool {
    hash(file, piece.at, piece.bytes, buffer).is_some_and(|hasher| Digest::from(hasher.finalize()) == piece.digest)
}

/// Hashes a range of a file. The caller can add more bytes to the returned hasher.
fn hash(file: &File, at: u64, bytes: u64, buffer: &mut [u8]) -> Option<blake3::Hasher> {
    let mut hasher = blake3::Hasher::new();
    let mut done = 0_u64;
    while done < bytes {
        let most = usize::try_from(bytes.saturating_sub(done)).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..most)?;
        let read = file.read_at(part, at.saturating_add(done)).ok().filter(|read| *read > 0)?;
        hasher.update(part.get(..read)?);
        done = done.saturating_add(read as u64);
    }
    Some(hasher)
}

/// A file that is being fetched.
pub(super) struct PartialFile {
    path: PathBuf,
    bytes: u64,
    state: WriterState,
    progress: ProgressFn,
}

/// The state of the writing thread.
struct WriterState {
    lease: IncomingLease,
    file: Arc<File>,
    note: Arc<File>,
    /// The pieces that were missing when the fetch began, in the order in which they are fetched.
    missing: Vec<Piece>,
    /// The number of `missing` pieces that are complete now.
    next: usize,
    /// The number of written bytes of the next piece.
    part: u64,
    /// The hash of the written bytes of the next piece.
    hasher: blake3::Hasher,
    /// The number of bytes of the next piece that an earlier attempt has written. If these bytes are wrong, the remote is not at fault.
    found: u64,
    fetched: u64,
    reused: u64,
    total: u64,
}

impl PartialFile {
    /// Opens or creates the file at `path`. The correct pieces of an earlier attempt are kept. `bytes` is the size of the complete file.
    pub(super) async fn open(
        lease: &IncomingLease,
        path: &Path,
        bytes: u64,
        pieces: Vec<Piece>,
        progress: &ProgressFn,
    ) -> Result<PartialFile, RemoteError> {
        let (kept, owned) = (lease.clone(), path.to_owned());
        let state = lease.blocking(move || WriterState::open(kept, &owned, bytes, pieces)).await?;
        let partial = PartialFile { path: path.to_owned(), bytes, state, progress: progress.clone() };
        partial.report();
        Ok(partial)
    }

    fn report(&self) {
        (self.progress)(self.state.fetched.saturating_add(self.state.reused), self.state.total);
    }

    pub(super) fn fetched(&self) -> u64 {
        self.state.fetched
    }

    pub(super) fn reused(&self) -> u64 {
        self.state.reused
    }

    /// Copies the missing pieces that older archives contain.
    pub(super) async fn take_over(&mut self, known: HeldFrames) -> Result<(), RemoteError> {
        if known.is_empty() || self.state.missing.is_empty() {
            return Ok(());
        }
        let (file, missing) = (Arc::clone(&self.state.file), std::mem::take(&mut self.state.missing));
        // If an earlier attempt has begun the first piece, this piece is not copied, because the transfer resumes it.
        let skip = usize::from(self.state.part > 0);
        let copy = move || {
            let mut buffer = vec![0; BUFFER];
            let (mut left, mut reused) = (Vec::new(), 0_u64);
            for (number, piece) in missing.into_iter().enumerate() {
                let taken = number >= skip && known.copy(&piece, &file, &mut buffer) && is_right(&file, &piece, &mut buffer);
                match taken {
                    true => reused = reused.saturating_add(piece.bytes),
                    false => left.push(piece),
                }
            }
            Ok((left, reused))
        };
        let (missing, reused) = self.state.lease.blocking(copy).await?;
        self.state.missing = missing;
        self.state.reused = self.state.reused.saturating_add(reused);
        self.report();
        Ok(())
    }

    /// Fetches the missing pieces.
    pub(super) async fn fetch(
        &mut self,
        remote: &DeliverableStore,
        release: ReleaseId,
        object: Object,
    ) -> Result<(), RemoteError> {
        self.state.check_space(&self.path)?;
        let mut pauses = pauses();
        let (mut again, mut attempts) = (true, 0_u32);
        while let Some(ranges) = self.state.ranges() {
            let before = self.state.fetched;
            let (to, chunks) = mpsc::channel(MAX_QUEUE);
            let sending = async {
                let sent = remote.fetch(release, object, &ranges, &to).await;
                drop(to);
                sent
            };
            let (state, progress) = (self.state.split(), self.progress.clone());
            let writing = tokio::task::spawn_blocking(move || state.write(chunks, &progress));
            let (sent, written) = tokio::join!(sending, writing);
            let (state, written) = written.map_err(|_| RemoteError::Aborted)?;
            self.state = state;
            let wrong = |why: &str| RemoteError::Damaged {
                remote: remote.title().to_owned(),
                what: object.word().to_owned(),
                why: why.to_owned(),
            };
            let pause = match (written?, sent) {
                (Written::Surplus, _) => {
                    let limit = ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
                    return Err(RemoteError::TooLarge {
                        remote: remote.title().to_owned(),
                        what: object.word().to_owned(),
                        limit,
                    });
                }
                // The bytes of an earlier attempt may be wrong, so the piece is fetched again once. A second wrong digest is an error of
                // the remote.
                (Written::Wrong { found: true }, _) if again => {
                    again = false;
                    Some(Duration::ZERO)
                }
                (Written::Wrong { .. }, _) => return Err(wrong("its digest does not match")),
                (Written::All, Err(error)) if !error.is_transient() && self.state.ranges().is_some() => return Err(error),
                (Written::All, Err(RemoteError::Aborted)) => return Err(RemoteError::Aborted),
                (Written::All, Err(error)) => {
                    attempts = attempts.saturating_add(1);
                    if self.state.fetched > before && attempts < ATTEMPTS {
                        pauses = self::pauses();
                    }
                    tracing::debug!(remote = remote.title(), %error, "transfer interrupted; retrying");
                    Some(pauses.next().ok_or(error)?)
                }
                // The remote reported success, but sent too few bytes, so a retry would not help.
                (Written::All, Ok(())) if self.state.ranges().is_some() => return Err(wrong("it is incomplete")),
                (Written::All, Ok(())) => None,
            };
            if let (Some(pause), Some(_)) = (pause, self.state.ranges()) {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(())
    }

    /// Writes `tail`, syncs the complete file and renames it to `name`.
    pub(super) async fn finish(self, tail: Option<(u64, Vec<u8>)>, name: PathBuf) -> Result<(), RemoteError> {
        let PartialFile { path, bytes, state, .. } = self;
        let lease = state.lease.clone();
        let finish = move || {
            let failed = |error: io::Error| FileError::io("write", path.clone(), error);
            if let Some((at, tail)) = tail {
                state.file.write_all_at(&tail, at).map_err(failed)?;
            }
            if state.file.metadata().map_err(failed)?.len() != bytes {
                return Err(failed(io::Error::other("the size of the file has changed")).into());
            }
            state.file.sync_all().map_err(failed)?;
            rename_over(&path, &name)?;
            Ok(remove_if_present(&note_path(&path))?)
        };
        lease.blocking(finish).await
    }
}

/// The result of writing the chunks of one attempt.
enum Written {
    /// All chunks were written.
    All,
    /// The remote sent more than was requested.
    Surplus,
    /// A piece has a wrong digest. `found` is true if an earlier attempt has written the beginning of the piece.
    Wrong { found: bool },
}

impl WriterState {
    fn open(lease: IncomingLease, path: &Path, bytes: u64, pieces: Vec<Piece>) -> Result<WriterState, RemoteError> {
        let failed = |error: io::Error| FileError::io("open", path, error);
        // The file becomes an archive of the store, which other users cannot read.
        let open = |path: &Path| File::options().read(true).write(true).create(true).truncate(false).mode(0o640).open(path);
        let (file, note) = (open(path).map_err(failed)?, open(&note_path(path)).map_err(failed)?);
        let old = file.metadata().map_err(failed)?.len();
        let mut noted = [0; 16];
        let mut known = old > 0 && note.read_exact_at(&mut noted, 0).is_ok();
        if old != bytes {
            // The file is new, or belongs to a transfer of another size.
            file.set_len(0).and_then(|()| file.set_len(bytes)).map_err(failed)?;
            known = false;
        }
        let mut buffer = vec![0; BUFFER];
        let right = |piece: &Piece, buffer: &mut [u8]| old == bytes && is_right(&file, piece, buffer);
        let missing: Vec<_> = pieces.iter().filter(|piece| !right(piece, &mut buffer)).copied().collect();
        let gone: u64 = missing.iter().map(|piece| piece.bytes).sum();
        let total: u64 = pieces.iter().map(|piece| piece.bytes).sum();
        let mut state = WriterState {
            lease,
            file: Arc::new(file),
            note: Arc::new(note),
            missing,
            next: 0,
            part: 0,
            hasher: blake3::Hasher::new(),
            found: 0,
            fetched: 0,
            reused: total.saturating_sub(gone),
            total,
        };
        if known {
            state.pick_up(noted, &mut buffer);
        }
        Ok(state)
    }

    /// Resumes the piece that an earlier attempt has begun.
    fn pick_up(&mut self, noted: [u8; 16], buffer: &mut [u8]) {
        let (at, part) = noted.split_at(8);
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
        let (at, part) = (number(at), number(part));
        let Some(index) = self.missing.iter().position(|piece| piece.at == at && part > 0 && part < piece.bytes) else { return };
        if let Some(hasher) = hash(&self.file, at, part, buffer) {
            let piece = self.missing.remove(index);
            self.missing.insert(0, piece);
            (self.part, self.hasher, self.found) = (part, hasher, part);
            self.reused = self.reused.saturating_add(part);
        }
    }

    /// Checks that the disk has space for the missing pieces.
    fn check_space(&self, path: &Path) -> Result<(), RemoteError> {
        let needed = self.missing.iter().map(|piece| piece.bytes).sum::<u64>().saturating_add(RESERVE);
        let free = free_space(path.parent().unwrap_or(path))?.bytes;
        if needed > free { Err(RemoteError::NoRoom { needed, free }) } else { Ok(()) }
    }

    /// Returns the ranges to request; `None` if the file is complete.
    fn ranges(&self) -> Option<Vec<Range<u64>>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (number, piece) in self.missing.get(self.next..).unwrap_or_default().iter().enumerate() {
            let start = piece.at.saturating_add(if number == 0 { self.part } else { 0 });
            let end = piece.at.saturating_add(piece.bytes);
            match ranges.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end = end,
                None => ranges.push(start..end),
            }
        }
        (!ranges.is_empty()).then_some(ranges)
    }

    /// Returns the state for the writing thread. The caller must replace `self` with the state that the thread returns.
    fn split(&mut self) -> WriterState {
        WriterState {
            lease: self.lease.clone(),
            file: Arc::clone(&self.file),
            note: Arc::clone(&self.note),
            missing: std::mem::take(&mut self.missing),
            hasher: std::mem::take(&mut self.hasher),
            ..*self
        }
    }

    /// Writes chunks until the channel is closed.
    fn write(mut self, mut chunks: mpsc::Receiver<Bytes>, progress: &ProgressFn) -> (WriterState, Result<Written, RemoteError>) {
        while let Some(chunk) = chunks.blocking_recv() {
            match self.take(&chunk) {
                Ok(Written::All) => progress(self.fetched.saturating_add(self.reused), self.total),
                other => return (self, other),
            }
        }
        (self, Ok(Written::All))
    }

    /// Writes a chunk to the missing pieces.
    fn take(&mut self, mut chunk: &[u8]) -> Result<Written, RemoteError> {
        let failed = |error: io::Error| FileError::io("write", "the partial file", error);
        while !chunk.is_empty() {
            let Some(piece) = self.missing.get(self.next).copied() else { return Ok(Written::Surplus) };
            let left = usize::try_from(piece.bytes.saturating_sub(self.part)).unwrap_or(usize::MAX);
            let (now, rest) = chunk.split_at_checked(left).unwrap_or((chunk, &[]));
            self.file.write_all_at(now, piece.at.saturating_add(self.part)).map_err(failed)?;
            self.hasher.update(now);
            self.part = self.part.saturating_add(now.len() as u64);
            self.fetched = self.fetched.saturating_add(now.len() as u64);
            chunk = rest;
            let complete = self.part == piece.bytes;
            if complete {
                let hasher = std::mem::take(&mut self.hasher);
                let (right, found) = (Digest::from(hasher.finalize()) == piece.digest, std::mem::take(&mut self.found));
                self.part = 0;
                if !right {
                    self.reused = self.reused.saturating_sub(found);
                    self.note(piece.at, 0).map_err(failed)?;
                    return Ok(Written::Wrong { found: found > 0 });
                }
                self.next = self.next.saturating_add(1);
            }
            self.note(piece.at, self.part).map_err(failed)?;
        }
        Ok(Written::All)
    }

    /// Records that `part` bytes of the piece at `at` are written.
    fn note(&self, at: u64, part: u64) -> io::Result<()> {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(at.to_le_bytes().into_iter().chain(part.to_le_bytes())) {
            *to = from;
        }
        self.note.write_all_at(&bytes, 0)
    }
}
