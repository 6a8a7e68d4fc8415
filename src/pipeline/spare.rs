//! The spare tree: a copy of the live release's installed tree by hard links, made after a verdict, so that the next installation
//! costs only what changed.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::model::{Digest, ReleaseId};

/// The spare tree of an environment, if there is one. It stands in `deploy/` under a name of its own, which the file
/// `deploy/.spare` holds: a server that starts removes the spare tree of the server before it.
#[derive(Debug, Clone, Default)]
pub(super) struct SpareTree {
    ready: Arc<Mutex<Option<TreeCopy>>>,
    /// Held while a spare tree is made.
    pub(super) in_progress: Arc<tokio::sync::Mutex<()>>,
}

/// A copy of an installed tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct TreeCopy {
    /// The name in `deploy/`.
    pub(super) name: ReleaseId,
    /// The release that was copied.
    pub(super) of: ReleaseId,
    /// The fingerprint of the tree, which tells whether a file in it was changed.
    pub(super) seal: Digest,
}

impl SpareTree {
    /// Takes the tree out; the next caller gets none.
    pub(super) fn take(&self) -> Option<TreeCopy> {
        self.ready.lock().take()
    }

    /// Stores a tree.
    pub(super) fn put(&self, copy: TreeCopy) {
        *self.ready.lock() = Some(copy);
    }
}
