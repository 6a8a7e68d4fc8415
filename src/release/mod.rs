//! Releases: bundling of a built tree, installation, acceptance of received deliverables, verification, and the choice of releases to
//! remove.
//!
//! The server side ([`bundle()`], [`install()`]) opens files and starts workers; the worker side ([`bundle::work`], [`install::work`])
//! reads and writes trees. The server passes a job and descriptors to the worker, and the worker returns a report. [`manifest`] reads and
//! writes manifests, [`store`] lists the releases of an environment, [`verify()`] compares an installed tree with its manifest. [`pack`]
//! makes deltas for other servers and packs installed trees. [`accept()`] adds received deliverables to the store; [`trust`] decides which
//! deliverables are accepted. Read [`WorkerContext`] first.

mod accept;
pub mod bundle;
mod changes;
pub mod check;
mod deliver;
pub mod delta;
mod error;
mod ignored;
pub mod install;
mod leaks;
pub mod manifest;
pub mod pack;
mod promotion;
mod refusal;
mod retention;
mod server;
mod signing;
pub mod store;
pub mod sync;
mod tree;
pub mod trust;
mod verify;
mod walk;
mod worker;

pub use accept::{Body, Incoming, MAX_RECORD, VerifyLevel, accept, accept_manifest, accept_record, known_record, verify_archive};
pub use changes::{Change, ChangeKind, PathPatterns, changes};
pub use deliver::{make_delta, rebuild};
pub use error::{ReleaseError, WorkerAnswer};
pub use promotion::promotable;
pub use refusal::Refusal;
pub use retention::{Keep, ReleaseSummary, prune_plan};
pub use server::{Bundled, Installed, bundle, install, remove_unfinished, renew_times, spare};
pub use signing::{SigningKey, SigningKeyError, verify_signature};
pub use verify::{Difference, verify};
pub use worker::WorkerContext;

#[cfg(test)]
mod delta_tests;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod trust_tests;
