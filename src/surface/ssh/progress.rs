//! The progress of one connection, which its session reports to the task that oversees the connection.

use std::sync::{Arc, OnceLock, atomic::AtomicUsize};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::handler::{Credential, SshIdentity};

/// The reason why the server ends a session.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("the SSH protocol failed")]
    Protocol(#[from] russh::Error),
    #[error("more than {0} keys were offered")]
    TooManyOffers(usize),
    #[error("more than {0} logins were refused")]
    TooManyFailures(usize),
}

/// The progress of a connection, for the task that oversees it.
pub(super) struct ConnectionProgress {
    /// The token that is cancelled when the key exchange is done.
    pub(super) keyed: CancellationToken,
    /// The token that is cancelled when a user has logged in.
    pub(super) logged_in: CancellationToken,
    /// The number of running requests.
    pub(super) busy: watch::Sender<usize>,
    /// The credential that was proven, and its user.
    pub(super) login: OnceLock<(Credential, SshIdentity)>,
    /// The number of offered keys and of refused logins.
    pub(super) attempts: AtomicUsize,
}

impl ConnectionProgress {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            keyed: CancellationToken::new(),
            logged_in: CancellationToken::new(),
            busy: watch::Sender::new(0),
            login: OnceLock::new(),
            attempts: AtomicUsize::new(0),
        })
    }
}
