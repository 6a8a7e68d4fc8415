//! Installed trees that are prepared before they are needed: [`SpareTree`] and [`RenewedTree`].
//!
//! The spare tree is a copy of the live release's installed tree by hard links, made after a deployment. The next installation starts from
//! this copy, so the cost of the installation depends only on the changed files.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::model::{Digest, ReleaseId};

/// The spare tree of an environment, if there is one. The tree is in `deploy/` under a separate name, which the file
/// `deploy/.spare` contains. A server that starts removes the spare tree of the previous server.
#[derive(Debug, Clone, Default)]
pub(super) struct SpareTree {
    ready: Arc<Mutex<Option<TreeCopy>>>,
    /// The lock that is held while a spare tree is made.
    pub(super) in_progress: Arc<tokio::sync::Mutex<()>>,
}

/// A copy of an installed tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct TreeCopy {
    /// The name in `deploy/`.
    pub(super) name: ReleaseId,
    /// The release that was copied.
    pub(super) of: ReleaseId,
    /// The fingerprint of the tree, which changes if an entry of the tree is added, removed or replaced.
    pub(super) seal: Digest,
}

impl SpareTree {
    /// Returns the spare tree, which then belongs to the caller. Later calls return `None` until another tree is stored.
    pub(super) fn take(&self) -> Option<TreeCopy> {
        self.ready.lock().take()
    }

    /// Stores a tree.
    pub(super) fn put(&self, copy: TreeCopy) {
        *self.ready.lock() = Some(copy);
    }
}

/// The last renewal of the modification times of a release's installed files. A renewal gives each file that differs from the live release a
/// time after the switch to the live release. Browsers that ask with `If-Modified-Since` after a rollback then get the file of the older
/// release. A rollback does not repeat a renewal that was made while the same release was live.
#[derive(Debug, Clone, Default)]
pub(super) struct RenewedTree(Arc<Mutex<Option<Renewal>>>);

/// The releases and the time that identify a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Renewal {
    /// The release whose files have new times.
    pub(super) release: ReleaseId,
    /// The live release at the time of the renewal.
    pub(super) live: ReleaseId,
    /// The time of the switch to the live release, in seconds since 1970.
    pub(super) since: u64,
}

impl RenewedTree {
    /// Records a renewal, and forgets the previous renewal.
    pub(super) fn put(&self, renewal: Renewal) {
        *self.0.lock() = Some(renewal);
    }

    /// Returns true if `renewal` is the last recorded renewal.
    pub(super) fn is(&self, renewal: Renewal) -> bool {
        *self.0.lock() == Some(renewal)
    }
}
