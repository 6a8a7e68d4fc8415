//! Bundling a tree into a release archive, and installing a release from one.
//!
//! The server side ([`bundle()`], [`install()`]) opens files and starts workers; the worker side ([`bundle::work`],
//! [`install::work`]) touches trees. What travels between them are descriptors, a job and a report.
//! [`store`] knows the releases that are there, [`verify()`] compares an installed tree with its manifest. What comes from
//! elsewhere goes through [`take_in()`], which believes what [`trust`] believes and nothing else.

pub mod bundle;
pub mod check;
mod error;
mod ignored;
pub mod install;
mod refusal;
mod server;
mod signing;
pub mod store;
mod take_in;
mod tree;
pub mod trust;
mod verify;

pub use error::{Answer, ReleaseError};
pub use refusal::Refusal;
pub use server::{Bundled, Context, Installed, bundle, install, spare};
pub use signing::{SigningKey, SigningKeyError, verify_signature};
pub use take_in::{Body, Incoming, Look, take_in, verify_archive};
pub use tree::{digest, listing};
pub use verify::{Difference, drift, verify};

#[cfg(test)]
mod tests;
#[cfg(test)]
mod trust_tests;
