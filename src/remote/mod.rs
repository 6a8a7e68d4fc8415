//! Remotes: other larder servers over ssh, directories, web servers and buckets that have deliverables of a project.
//!
//! A [`DeliverableStore`] lists its [offers](Offer) and sends ranges of named [objects](Object). [`pull`] transfers either the frames that
//! no older archive has, or a delta, and resumes an interrupted transfer. This module does not decide whether a deliverable is accepted. A
//! completed transfer only guarantees that the data has the digests of the manifest.
//!
//! *Memory*: a transfer holds at most 16 chunks between the network and the disk, and a connection at most 2 MiB of received data that is
//! not yet read. [`TransferLimits`] limits the size of manifests; lists have a fixed limit.

mod address;
mod deliverable_store;
mod error;
mod offer;
mod publish;
mod pull;
pub mod ssh;
mod store;

pub use address::{Address, AddressError};
pub use deliverable_store::{DeliverableStore, DeliverableStores};
pub use error::RemoteError;
pub use offer::{Blob, Found, Object, Offer, TransferLimits, find};
pub use publish::{Publication, publish};
pub use pull::{ManifestCheck, Pack, ProgressFn, Pulled, PulledContent, discard, pull, pull_checked, pull_pack, sweep, tenths};
