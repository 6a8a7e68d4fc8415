//! Bundling a tree into a release archive, and installing a release from one.
//!
//! The server side ([`bundle()`], [`install()`]) opens files and starts workers; the worker side ([`bundle::work`],
//! [`install::work`]) touches trees. What travels between them are descriptors, a job and a report.
//! [`delta`] makes what turns one release into the next, [`pack`] is its worker and that of packing an installed tree again.
//! [`store`] knows the releases that are there, [`verify()`] compares an installed tree with its manifest. What comes from
//! elsewhere goes through [`take_in()`], which believes what [`trust`] believes and nothing else.

pub mod bundle;
mod changes;
pub mod check;
mod deliver;
pub mod delta;
mod error;
pub mod forms;
mod ignored;
pub mod index;
pub mod install;
pub mod pack;
mod promotion;
mod refusal;
mod server;
mod signing;
pub mod store;
mod take_in;
mod tree;
pub mod trust;
mod verify;
mod walk;

pub use changes::{Change, ChangeKind, changes};
pub use deliver::{make_delta, rebuild};
pub use error::{Answer, ReleaseError};
pub use promotion::promotable;
pub use refusal::Refusal;
pub use server::{Bundled, Context, Installed, bundle, install, spare};
pub use signing::{SigningKey, SigningKeyError, verify_signature};
pub use take_in::{Body, Incoming, Look, MAX_RECORD, admit_manifest, known_record, take_in, take_record, verify_archive};
pub use tree::listing;
pub use verify::{Difference, verify};

#[cfg(test)]
mod delta_tests;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod trust_tests;
