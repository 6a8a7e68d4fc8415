//! Configuration snapshots: encrypted, numbered, immutable files in the directory `config/` of an environment.
//!
//! A file is in the format of age, for one recipient: the key of this server in `state/config_age_key`. The text inside is JSON with a
//! format version. Names and values are decrypted in the memory of the server only. This module decides neither which snapshot a release
//! runs with nor who may read values. [`SnapshotStore`] is the type to read first.

mod error;
mod key;
mod snapshot;
mod store;

pub use self::{
    error::SnapshotError,
    snapshot::{MAX_TOTAL, MAX_VALUE, MAX_VARIABLES, PillarContent, Snapshot, check_limits},
    store::{SnapshotDraft, SnapshotStore, StagedSnapshot},
};
