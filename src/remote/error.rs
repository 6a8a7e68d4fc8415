//! Errors of remotes and transfers, with their hints.

use super::{address::AddressError, offer::Object};
use crate::host::files::FileError;

/// The reason why a request to a remote or a transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The address is invalid.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// No connection to the remote could be opened.
    #[error("cannot connect to {remote}: {why}")]
    Unreachable {
        /// The name and address of the remote.
        remote: String,
        /// The cause.
        why: String,
    },
    /// The host key of the remote server differs from the pinned host key.
    #[error("{remote} has the host key {shown} (expected {expected})")]
    HostKey {
        /// The name and address of the remote.
        remote: String,
        /// The pinned fingerprint.
        expected: String,
        /// The fingerprint of the remote server's host key.
        shown: String,
        /// The remote server's public host key, as one line.
        line: String,
    },
    /// No host key is pinned for the remote, so no request was sent.
    #[error("cannot connect to {remote}: no host key is pinned, and the server has the host key {shown}")]
    Unpinned {
        /// The name and address of the remote.
        remote: String,
        /// The fingerprint of the remote server's host key.
        shown: String,
        /// The remote server's public host key, as one line.
        line: String,
    },
    /// The remote rejected the key with which this server logs in.
    #[error("{remote} rejected this server's key")]
    Login {
        /// The name and address of the remote.
        remote: String,
        /// This server's public key, as one line.
        key: String,
    },
    /// The connection was lost during a request.
    #[error("the connection to {remote} was lost while {doing}: {why}")]
    Lost {
        /// The name and address of the remote.
        remote: String,
        /// The request, such as `fetching the archive`.
        doing: String,
        /// The cause.
        why: String,
    },
    /// The request cannot be sent, or the remote runs no commands. A retry would fail, too.
    #[error("cannot run `{doing}` on {remote}: {why}")]
    Unsent {
        /// The name and address of the remote.
        remote: String,
        /// The first words of the command.
        doing: String,
        /// The cause.
        why: String,
    },
    /// The remote does not have the requested object.
    #[error("{remote} has no {what}{}", quoted(.words))]
    NotFound {
        /// The name and address of the remote.
        remote: String,
        /// The requested object.
        what: String,
        /// The remote's error message, which may be empty.
        words: String,
    },
    /// The remote refused the request.
    #[error("{remote} refused to {doing} (exit {code}){}", quoted(.words))]
    Refused {
        /// The name and address of the remote.
        remote: String,
        /// The request, such as `send the archive`.
        doing: String,
        /// The exit code of the command on the remote.
        code: u32,
        /// The remote's error message, which may be empty.
        words: String,
    },
    /// The remote offers or sends more than is allowed.
    #[error("the {what} of {remote} is too large (expected at most {limit} bytes)")]
    TooLarge {
        /// The name and address of the remote.
        remote: String,
        /// The requested object.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The answer of the remote is malformed.
    #[error("{remote} sent an invalid {what}: {why}")]
    Invalid {
        /// The name and address of the remote.
        remote: String,
        /// The requested object.
        what: &'static str,
        /// The reason why the answer is malformed.
        why: String,
    },
    /// The received data does not match its digest or its offer.
    #[error("the {what} from {remote} is damaged: {why}")]
    Damaged {
        /// The name and address of the remote.
        remote: String,
        /// The damaged object.
        what: String,
        /// The difference.
        why: String,
    },
    /// The caller's check rejected the manifest.
    #[error("{why}")]
    Rejected {
        /// The reason.
        why: String,
        /// The remedy.
        hint: Option<String>,
    },
    /// The request needs a larder server, and the remote is a store of files.
    #[error("{remote} is not a larder server, so it cannot {doing}")]
    NotAServer {
        /// The name and address of the remote.
        remote: String,
        /// The request, such as `send the archive`.
        doing: &'static str,
    },
    /// The caller tried to publish a release to a larder server. No request was sent.
    #[error("cannot publish to {remote}: it is a larder server, and servers pull releases (expected a directory or a bucket)")]
    NotAStore {
        /// The name and address of the remote.
        remote: String,
    },
    /// The disk of this machine is too full.
    #[error("cannot start the transfer: the disk has {free} bytes of free space (expected {needed})")]
    NoRoom {
        /// The number of bytes that are needed.
        needed: u64,
        /// The number of free bytes.
        free: u64,
    },
    /// A file of this machine could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// This server aborted the transfer.
    #[error("the transfer was aborted")]
    Aborted,
}

fn quoted(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(": {words}") }
}

impl RemoteError {
    /// Returns true if a retry may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, RemoteError::Unreachable { .. } | RemoteError::Lost { .. })
    }

    /// Returns the hints, one line each.
    pub fn hints(&self) -> Vec<String> {
        match self {
            RemoteError::HostKey { .. } => vec![
                String::from(
                    "compare the fingerprint with the output of `larder key show` on that server; if they differ, the connection may be intercepted",
                ),
                String::from(
                    "if the server was reinstalled, run `larder remote remove`, then `larder remote add` with the new --host-key",
                ),
            ],
            RemoteError::Unpinned { line, .. } => {
                vec![format!(
                    "compare the key with the output of `larder key show` on that server, then add --host-key \"{line}\""
                )]
            }
            RemoteError::Login { key, .. } => vec![
                format!("ask an administrator of that server to run: larder user add NAME --key \"{key}\""),
                String::from("then ask the administrator to run: larder user grant NAME PROJECT view"),
            ],
            RemoteError::Unreachable { .. } | RemoteError::Lost { .. } => {
                vec![String::from("try again; the transfer resumes where it was interrupted")]
            }
            RemoteError::NoRoom { .. } => vec![String::from("free disk space, or keep fewer releases (`keep:` in larder.yml)")],
            RemoteError::TooLarge { .. } | RemoteError::Invalid { .. } | RemoteError::Damaged { .. } => {
                vec![String::from("ask the operator of that remote to check its data")]
            }
            RemoteError::Rejected { hint, .. } => hint.iter().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// Returns true if the error only concerns a delta. The whole archive may then still be fetched.
    pub fn is_of_a_delta(&self) -> bool {
        match self {
            RemoteError::NotFound { what, .. } | RemoteError::TooLarge { what, .. } | RemoteError::Damaged { what, .. } => {
                what == Object::DELTA
            }
            RemoteError::Invalid { what, .. } => *what == Object::DELTA_NOTE,
            _ => false,
        }
    }
}
