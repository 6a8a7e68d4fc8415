//! Looking for everything below a directory, in several threads.

use std::{
    ffi::OsString,
    sync::atomic::{AtomicU64, Ordering},
};

use larder_archive::{Item, ItemKind, pool::each_thread};
use parking_lot::{Condvar, Mutex};

use super::{
    ReleaseError,
    tree::{Warnings, checked, classify, few_enough},
};
use crate::host::files::Confined;

/// With fewer directories than this to look into, another thread costs more than it helps.
const WORTH_A_THREAD: usize = 16;

/// What is still to be looked into.
struct Queue {
    pending: Vec<OsString>,
    /// Threads that are in a directory and may find others in it.
    busy: usize,
    failed: bool,
}

struct Walk<'a> {
    app: &'a Confined,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Entries that were found, those of others included.
    count: AtomicU64,
}

/// Everything below the directory `from` of `app`, sorted by path. `others` entries are known besides, and count for the limit.
pub(super) fn walk(
    app: &Confined,
    from: OsString,
    others: u64,
    threads: usize,
    warnings: &mut Warnings,
) -> Result<Vec<Item>, ReleaseError> {
    let queue = Queue { pending: vec![from], busy: 0, failed: false };
    let walk = Walk { app, queue: Mutex::new(queue), changed: Condvar::new(), count: AtomicU64::new(others) };
    let mut found = Vec::new();
    // Most trees are small. This thread goes ahead until it is worth while to ask for help.
    while let Some(directory) = walk.next(WORTH_A_THREAD) {
        let below = walk.look(&directory, &mut found, warnings)?;
        walk.done(below);
    }
    let left = !walk.queue.lock().pending.is_empty();
    if left {
        for part in each_thread(threads, || walk.rest()) {
            let (items, said) = part?;
            found.extend(items);
            warnings.take(said);
        }
    }
    // Each part is sorted: this only merges them.
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

impl Walk<'_> {
    /// A directory to look into; none if there are more than `most`, or if nothing is left.
    fn next(&self, most: usize) -> Option<OsString> {
        let mut queue = self.queue.lock();
        loop {
            if queue.failed || queue.pending.len() > most {
                return None;
            }
            if let Some(directory) = queue.pending.pop() {
                queue.busy += 1;
                return Some(directory);
            }
            if queue.busy == 0 {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }

    /// A directory has been looked into, and these are in it.
    fn done(&self, below: Vec<OsString>) {
        let mut queue = self.queue.lock();
        queue.busy -= 1;
        queue.pending.extend(below);
        if queue.busy == 0 || !queue.pending.is_empty() {
            self.changed.notify_all();
        }
    }

    /// What one thread does until nothing is left.
    fn rest(&self) -> Result<(Vec<Item>, Warnings), ReleaseError> {
        let (mut found, mut warnings) = (Vec::new(), Warnings::default());
        while let Some(directory) = self.next(usize::MAX) {
            match self.look(&directory, &mut found, &mut warnings) {
                Ok(below) => self.done(below),
                Err(e) => {
                    self.queue.lock().failed = true;
                    self.changed.notify_all();
                    return Err(e);
                }
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok((found, warnings))
    }

    /// Adds what is directly in a directory to `found`; gives the directories among it.
    fn look(&self, directory: &OsString, found: &mut Vec<Item>, warnings: &mut Warnings) -> Result<Vec<OsString>, ReleaseError> {
        let view = self.app.open_dir(directory)?;
        let mut here = view.cursor();
        let (mut below, before) = (Vec::new(), found.len());
        for name in view.names()? {
            let path = checked(directory, &name)?;
            let stat = here.stat(&name)?;
            let Some(kind) = classify(&path, &stat, &mut here, &name, warnings)? else { continue };
            if kind == ItemKind::Dir {
                below.push(path.clone().into());
            }
            found.push(Item { path, kind });
        }
        let more = (found.len() - before) as u64;
        few_enough(self.count.fetch_add(more, Ordering::Relaxed) + more)?;
        Ok(below)
    }
}
