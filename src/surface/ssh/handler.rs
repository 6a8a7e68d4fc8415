//! The interface between the SSH server and the rest of larder: who logged in, what was requested, and who carries it out.

use std::{net::IpAddr, os::fd::OwnedFd};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{exec::ExecRequest, keys::PublicKeyInfo};
use crate::model::UserName;

/// The user of a connection. It comes only from a signature that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user, a person or a machine.
    pub user: UserName,
}

/// The terminal of a client that requested one. It decides about line endings and colours only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tty {
    /// `TERM`, at most 64 characters of `[A-Za-z0-9._+-]`.
    pub term: String,
    /// Width in characters.
    pub columns: u32,
    /// Height in lines.
    pub rows: u32,
}

/// The request's ends of the pipes that carry its input and output. Dropping one closes it.
#[derive(Debug)]
pub struct ExecIo {
    /// The input. It ends when the client closes it or is gone.
    pub stdin: OwnedFd,
    /// The output. Writing fails with a broken pipe when the client is gone.
    pub stdout: OwnedFd,
    /// The error output, which clients show apart from the output.
    pub stderr: OwnedFd,
    /// Cancelled when the client closed the channel, vanished or pressed Ctrl-C. The request decides by itself when to end.
    pub gone: CancellationToken,
}

/// A request, ready to be carried out.
#[derive(Debug)]
pub struct ExecCall {
    /// The user who requests it.
    pub identity: Identity,
    /// The request.
    pub request: ExecRequest,
    /// The client's `GIT_PROTOCOL`, checked: `version=` and options.
    pub git_protocol: Option<String>,
    /// The client's terminal. With a terminal, lines are sent with carriage returns.
    pub tty: Option<Tty>,
    /// The client's address.
    pub source: IpAddr,
    /// The input and output.
    pub io: ExecIo,
}

/// Identifies users and carries out their requests.
pub trait ExecHandler: Send + Sync + 'static {
    /// Returns the user of a key. Clients may offer keys that they cannot sign with, so this must change nothing; it runs on the
    /// connection's task, so it must not block. It is called again before each request, so that a removed key stops working at once.
    fn authenticate(&self, key: &PublicKeyInfo, source: IpAddr) -> Option<Identity>;

    /// Notified whenever keys may have been removed. Open connections then check their key again, and end if it has no user.
    fn key_changes(&self) -> watch::Receiver<()>;

    /// Carries out a request and returns its exit status. Runs as a task of its own, which is not aborted when the client is gone.
    fn exec(&self, call: ExecCall) -> BoxFuture<'static, u32>;
}
