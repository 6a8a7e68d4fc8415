//! The export of a commit. First, a commit is refused if its tree has entries that git accepts, but that are unsafe in a file system or a
//! build. Then, if the job requests an export, the environment's `project/tree` is changed to the tree of the commit; only changed entries
//! are written.
//!
//! The export does not use git's checkout, so filters, attributes, hooks and submodules have no effect. Read `export.rs` first.

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
