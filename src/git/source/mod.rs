//! The export of a commit: rejects everything that git accepts but a file system or a build must not see, then brings the environment's
//! `project/tree` to that commit by writing only the entries that have changed.
//!
//! Nothing of git's checkout runs: no filters, no attributes, no hooks, no submodules. Read `export.rs` first.

mod apply;
mod export;
mod job;
mod special;
#[cfg(test)]
mod tests;
mod tree;
mod walk;

pub use export::perform;
pub use job::{CommitSource, RecipeFiles, SourceJob, SourceLimits, SourceRefusal, SourceReport};
