//! Writes an archive: frames are read and compressed in parallel, or copied from the previous archive if they have not changed.

use std::fs::File;

use zstd::zstd_safe::CCtx;

use super::{
    ArchiveError, ArchiveLimits, Item, ItemKind, Previous, check_entries,
    compress::{BuiltFrame, CompressWorker, SpareBuffers, Task},
    frames,
    output::ArchiveOutput,
    pool,
    reuse::Reuse,
};
use crate::{ArchiveInfo, Confined, Digest, Entry, EntryKind};

/// The result of writing an archive.
#[derive(Debug)]
pub struct Written {
    /// The description of the archive.
    pub info: ArchiveInfo,
    /// All entries with their digests.
    pub entries: Vec<Entry>,
    /// The number of frames that were copied from the previous archive.
    pub copied: usize,
}

/// Writes an archive of `items`, which are sorted by path, into the file `out`, and replaces the content of `out`. Reads the files below
/// `root`. Returns an error soon after the archive exceeds `limit` bytes. The bytes depend only on the content of the tree: not on
/// `threads`, and not on `previous`.
pub fn write(
    root: &Confined,
    items: &[Item],
    previous: Option<Previous<'_>>,
    out: &File,
    threads: usize,
    limit: u64,
) -> Result<Written, ArchiveError> {
    let plan = frames::plan(items);
    let reuse = previous.and_then(|previous| Reuse::new(previous, items));
    let mut output = ArchiveOutput {
        out,
        previous: previous.map(|p| p.file),
        at: 0,
        limit,
        copy: None,
        frames: Vec::new(),
        large: CCtx::create(),
    };
    let mut digests: Vec<Option<Digest>> = Vec::with_capacity(items.len());
    let mut copied = 0;
    let spare = SpareBuffers::default();
    let task = |index: usize| -> Option<Task<'_>> {
        let range = plan.get(index)?.clone();
        let last = index + 1 == plan.len();
        let items = items.get(range.clone())?;
        let candidate = reuse.as_ref().and_then(|reuse| reuse.candidate(range, last));
        Some(Task { items, last, candidate, raw: frames::raw_size(frames::parts(items), last) })
    };
    pool::ordered(
        plan.len(),
        threads,
        || CompressWorker::new(root, &spare),
        |worker, index| task(index).map(|task| worker.make(task)).transpose(),
        |_, made| {
            match made {
                Some(BuiltFrame::Copy { frame, digests: known }) => {
                    copied += 1;
                    digests.extend(known);
                    output.copy(frame)?;
                }
                Some(BuiltFrame::New { frame, bytes, digests: read }) => {
                    digests.extend(read);
                    output.put(frame, &bytes)?;
                    spare.put(bytes);
                }
                Some(BuiltFrame::Large { task, digest }) => {
                    digests.extend(output.put_large(root, &task, digest, threads)?);
                }
                None => {}
            }
            if output.at > limit { Err(ArchiveError::TooLarge { limit }) } else { Ok(()) }
        },
    )?;
    let entries = items.iter().zip(digests).map(|(item, digest)| entry(item, digest)).collect::<Result<Vec<_>, _>>()?;
    // An archive that a reader would refuse must not be written.
    check_entries(&entries, &ArchiveLimits::default())?;
    let info = output.finish()?;
    Ok(Written { info, entries, copied })
}

fn entry(item: &Item, digest: Option<Digest>) -> Result<Entry, ArchiveError> {
    let kind = match (&item.kind, digest) {
        (ItemKind::Dir, _) => EntryKind::Dir,
        (ItemKind::Link { target }, _) => EntryKind::Link { target: target.clone() },
        (ItemKind::File { size, executable, .. }, Some(digest)) => {
            EntryKind::File { size: *size, digest, executable: *executable }
        }
        (ItemKind::File { .. }, None) => return Err(ArchiveError::Changed { path: item.path.clone() }),
    };
    Ok(Entry { path: item.path.clone(), kind })
}
