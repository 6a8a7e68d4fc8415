//! Watches a checkout for the files that a person saves, and decides which of these files count.
//!
//! [`Watcher`] reports changes in batches; [`WatchRules`] ignores what git ignores and what tools write; [`FilePatterns`] selects the files of a
//! build or of a process. The module starts and stops nothing. Read [`Watcher`] first.

mod patterns;
mod rules;
mod watcher;

pub use self::{
    patterns::FilePatterns,
    rules::WatchRules,
    watcher::{FileChanges, WatchError, Watcher},
};
