//! Bundling a tree into a release archive, and installing a release from one.
//!
//! The server side ([`bundle()`], [`install()`]) opens files and starts workers; the worker side ([`bundle::work`],
//! [`install::work`]) touches trees. What travels between them are descriptors, a job and a report.
//! [`store`] knows the releases that are there, [`verify()`] compares an installed tree with its manifest.

pub mod bundle;
mod changes;
pub mod drift;
mod error;
mod ignored;
pub mod install;
mod server;
pub mod store;
mod tree;
mod verify;

pub use changes::{Change, Way, changes};
pub use error::{Answer, ReleaseError};
pub use server::{Bundled, Context, Installed, bundle, install, spare};
pub use tree::{digest, listing};
pub use verify::{Difference, verify};

#[cfg(test)]
mod tests;
