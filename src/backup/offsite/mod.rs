//! Copies of restore points outside of this machine, in repositories in the format of restic.
//!
//! Each environment has a repository of its own in each store, at `URL/PROJECT/ENVIRONMENT`. A snapshot is one restore point: the files of
//! `data/` and `databases/` with their metadata, and in `larder/` the manifest and the index of the restore point, from which larder
//! rebuilds the restore point on another machine. restic reads the same repository.
//!
//! The *off-site worker* is a child process of the server with the server's user. It holds the password and the credentials of the store,
//! and has no access to files of a project. The dump worker of the environment, which runs as the environment's run user, reads the restore
//! point and sends its files through a socket (`exchange.rs`). Read [`OffsiteJob`] first.

mod backend;
mod bucket;
mod check;
mod copy;
mod directory;
mod exchange;
mod failure;
mod fetch;
mod repair;
mod repository;
mod retain;
mod server;
mod sftp;
mod source;
mod ssh;
mod store_files;
mod worker;

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use self::{
    exchange::{receive as receive_work, serve as serve_work},
    retain::select_copies,
    server::{OFFSITE_WORKER, offsite, offsite_copy, offsite_fetch, open_secret},
    worker::main as offsite_main,
};
use crate::config::{BackupKeep, OffsiteAddress};

/// A store, with the secrets that the off-site worker needs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsiteStore {
    /// The address of the store.
    pub address: OffsiteAddress,
    /// The path of the repository below the address, `PROJECT/ENVIRONMENT`.
    pub below: String,
    /// The password of the repository.
    pub password: String,
    /// The settings of a bucket, such as `AWS_ACCESS_KEY_ID`.
    pub settings: Vec<(String, String)>,
    /// The private key for sftp, in OpenSSH's format.
    pub key: Option<String>,
    /// The file with the known host keys of the sftp server.
    pub known_hosts: Option<PathBuf>,
    /// The id of this server, with which new snapshots are tagged; empty if nothing is written.
    pub writer: String,
}

impl fmt::Debug for OffsiteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OffsiteStore({}, {})", self.address, self.below)
    }
}

/// A job of the off-site worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OffsiteJob {
    /// Lists the restore points in the repository.
    List,
    /// Copies a restore point, which the dump worker sends, into the repository. Creates a missing repository.
    Copy,
    /// Checks that all files of the repository are present with their sizes, and reads packs back. If no defect is found, removes the restore
    /// points that no rule selects.
    Check {
        /// The packs that were read back, with the times in seconds since 1970.
        read: Vec<(String, i64)>,
        /// The maximum number of bytes of packs that were read back before to read again. A pack that was never read back is always read.
        budget: u64,
        /// The restore points that must be in the repository.
        expected: Vec<String>,
        /// The rules of retention; `None` if no restore point is removed.
        retention: Option<OffsiteRetention>,
    },
    /// Removes the damaged files, and the copies that need them and that can be copied again.
    Repair {
        /// The paths of the damaged files that the last check found.
        damaged: Vec<String>,
        /// The restore points that can be copied again.
        replaceable: Vec<String>,
    },
    /// Sends a restore point to the dump worker, which stores the restore point in the environment.
    Fetch {
        /// The restore point.
        point: String,
    },
}

/// The rules by which restore points are removed from a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsiteRetention {
    /// The rules. The limit `bytes` is for the disk of this machine, and does not apply.
    pub keep: BackupKeep,
    /// The restore points that stay in any case.
    pub protected: Vec<String>,
}

/// The report of the off-site worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OffsiteReport {
    /// The restore points in the repository, newest first.
    List(Vec<OffsitePoint>),
    /// A restore point was copied.
    Copied(OffsitePoint),
    /// The result of a check.
    Checked(OffsiteCheck),
    /// The damaged files were removed.
    Repaired,
    /// A restore point was sent.
    Fetched(String),
}

/// A restore point in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsitePoint {
    /// The id of the restore point.
    pub id: String,
    /// The time of the capture, in seconds since 1970.
    pub taken: i64,
    /// The time of the copy, in seconds since 1970.
    pub copied: i64,
    /// The id of the snapshot.
    pub snapshot: String,
    /// The number of bytes that the copy added to the repository.
    pub added: u64,
    /// The id of the server that made the copy; `None` if the snapshot does not tell.
    pub writer: Option<String>,
}

/// The result of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsiteCheck {
    /// All packs that were read back and are good, with the times in seconds since 1970. A pack that no longer exists is not listed.
    pub read: Vec<(String, i64)>,
    /// The bytes of packs that were read in this check.
    pub bytes: u64,
    /// The bytes of packs that were read again.
    pub bytes_again: u64,
    /// The number of packs that were never read back.
    pub unread: u64,
    /// True if all files are present and undamaged. Copies can still be missing, or incomplete because of earlier damage.
    pub is_sound: bool,
    /// The defects, as lines. Empty if no defect was found.
    pub defects: Vec<String>,
    /// The paths of the files whose content is damaged.
    pub damaged_files: Vec<String>,
    /// The restore points whose copies are damaged.
    pub damaged_points: Vec<String>,
    /// The expected restore points whose copies are missing.
    pub missing_points: Vec<String>,
    /// The restore points that were removed, because no rule selects them.
    pub removed: Vec<String>,
    /// The failure of the store that ended the reading early. The other results are those of the part that was read.
    pub interrupted: Option<String>,
}
