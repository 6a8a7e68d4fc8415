//! Other places that have deliverables of a project: larder servers over ssh, directories, web servers, buckets.
//!
//! A [`Place`] lists what it [offers](Offer) and hands out ranges of named [objects](Object); [`pull`] brings a release here, frame by
//! frame where an older archive has most of them, or as a delta, and picks up where it was cut. Nothing here decides whether a
//! deliverable is accepted: what arrives is complete and has the digests that its manifest says, and no more than that.
//!
//! *Memory*: a transfer holds at most [`QUEUE`] chunks between the network and the disk, and a connection at most 2 MiB that were sent
//! and not yet taken; lists and manifests have limits of their own ([`Limits`]).

mod address;
mod error;
mod offer;
mod place;
mod pull;
mod share;
pub mod ssh;
mod store;

pub use address::{Address, AddressError};
pub use error::RemoteError;
pub use offer::{Blob, Found, Object, Offer, find};
pub use place::{Limits, Place, Places};
pub use pull::{Judge, Pack, Progress, Pulled, Wanted, discard, pull, pull_believed, pull_pack, sweep, tenths};
pub use share::{Share, publish};

/// How many chunks of a transfer may wait for the disk; a chunk is what the network gives at once, 32 KiB over ssh.
pub(crate) const QUEUE: usize = 16;
