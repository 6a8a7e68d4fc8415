//! Watches a checkout for the files that a person saves, and decides which of these files count.
//!
//! [`Watcher`] reports changes in batches; [`WatchRules`] ignores what git ignores and what tools write; [`FilePatterns`] selects the files of a
//! build or of a process. The module starts and stops nothing. Read [`Watcher`] first. In an editable environment, [`CheckoutWatch`] has a worker
//! watch the checkout, because the server does not read files of a project.

mod classes;
mod messages;
mod patterns;
mod rules;
mod server;
mod watcher;
mod worker;

pub use self::{
    classes::{RECIPE_FILES, is_content, is_script, patterns_of},
    messages::{SavedFiles, SavedPaths, WatchEvent, WatchJob, WatchOrder, WatchedProcess},
    patterns::FilePatterns,
    rules::WatchRules,
    server::{CheckoutWatch, WorkerError},
    watcher::{FileChanges, WatchError, Watcher},
    worker::work,
};
