//! What can go wrong between here and another place.

use super::{Object, address::AddressError, place::DELTA_NOTE};
use crate::host::files::FileError;

/// Why a place did not give what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Its address is not one.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Nobody answers there.
    #[error("{place} cannot be reached: {why}")]
    Unreachable {
        /// Which place.
        place: String,
        /// Why not.
        why: String,
    },
    /// It is another server than the one that was expected, or somebody in between.
    #[error("{place} showed the host key {shown}, and {expected} is expected")]
    HostKey {
        /// Which place.
        place: String,
        /// The fingerprint that was pinned.
        expected: String,
        /// The fingerprint that it showed.
        shown: String,
        /// The key that it showed, as one line.
        line: String,
    },
    /// No host key was pinned, so nothing was asked.
    #[error("{place} has no pinned host key; it showed {shown}")]
    Unpinned {
        /// Which place.
        place: String,
        /// The fingerprint that it showed.
        shown: String,
        /// The key that it showed, as one line.
        line: String,
    },
    /// It does not know this server's key.
    #[error("{place} does not let this server in")]
    Login {
        /// Which place.
        place: String,
        /// This server's public key, as one line.
        key: String,
    },
    /// The connection ended in the middle.
    #[error("the connection to {place} was lost while {doing}: {why}")]
    Lost {
        /// Which place.
        place: String,
        /// What was being done.
        doing: String,
        /// What was seen of it.
        why: String,
    },
    /// It has no such thing.
    #[error("{place} has no {what}{}", said(.words))]
    NotFound {
        /// Which place.
        place: String,
        /// What was asked for.
        what: String,
        /// Its own words; may be empty.
        words: String,
    },
    /// It will not.
    #[error("{place} refused to {doing} (exit {code}){}", said(.words))]
    Refused {
        /// Which place.
        place: String,
        /// What was asked for.
        doing: String,
        /// Its exit code.
        code: u32,
        /// Its own words; may be empty.
        words: String,
    },
    /// It sent more than was promised or is allowed.
    #[error("{place} sent more than {limit} bytes for the {what}; nothing of it is kept")]
    TooLarge {
        /// Which place.
        place: String,
        /// What was asked for.
        what: String,
        /// The most that is taken.
        limit: u64,
    },
    /// Its answer is not one.
    #[error("{place} answered something that is not a {what}: {why}")]
    Odd {
        /// Which place.
        place: String,
        /// What was asked for.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// What arrived is not what was promised.
    #[error("the {what} from {place} is damaged: {why}")]
    Damaged {
        /// Which place.
        place: String,
        /// Which object.
        what: String,
        /// What differs.
        why: String,
    },
    /// Whoever asked for it does not want what has come.
    #[error("{why}")]
    Rejected {
        /// What is wrong with it.
        why: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// It cannot do this kind of thing.
    #[error("{place} is not a larder server, so it cannot {doing}")]
    NotAServer {
        /// Which place.
        place: String,
        /// What was asked for.
        doing: &'static str,
    },
    /// This machine has no room for it.
    #[error("{needed} more bytes are needed and {free} are free on the disk")]
    NoRoom {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// Our own disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// Our own program.
    #[error("the transfer was given up")]
    GivenUp,
}

fn said(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(": {words}") }
}

impl RemoteError {
    /// Whether the same may work in a moment.
    pub fn is_transient(&self) -> bool {
        matches!(self, RemoteError::Unreachable { .. } | RemoteError::Lost { .. })
    }

    /// What to do next; one line each.
    pub fn hints(&self) -> Vec<String> {
        match self {
            RemoteError::HostKey { .. } => vec![
                String::from(
                    "somebody may be listening in; ask the operator of that server for its fingerprint (`larder key show` there)",
                ),
                String::from("if it was set up anew: `larder remote remove` and `larder remote add` with the new --host-key"),
            ],
            RemoteError::Unpinned { line, .. } => {
                vec![format!("compare it with `larder key show` there, then add --host-key \"{line}\"")]
            }
            RemoteError::Login { key, .. } => vec![
                format!("an administrator there can run: larder user add NAME --key \"{key}\""),
                String::from("and then: larder user grant NAME PROJECT view"),
            ],
            RemoteError::Unreachable { .. } | RemoteError::Lost { .. } => {
                vec![String::from("try again; what was transferred is kept, and it goes on from there")]
            }
            RemoteError::NoRoom { .. } => vec![String::from("free some space, or keep fewer releases (`keep:` in larder.yml)")],
            RemoteError::TooLarge { .. } | RemoteError::Odd { .. } | RemoteError::Damaged { .. } => {
                vec![String::from("this place cannot be trusted as it is; ask its operator")]
            }
            RemoteError::Rejected { hint, .. } => hint.iter().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// Whether this is about a delta, so that the whole archive may still be had.
    pub fn is_of_a_delta(&self) -> bool {
        match self {
            RemoteError::NotFound { what, .. } | RemoteError::TooLarge { what, .. } | RemoteError::Damaged { what, .. } => {
                what == Object::DELTA
            }
            RemoteError::Odd { what, .. } => *what == DELTA_NOTE,
            _ => false,
        }
    }
}
