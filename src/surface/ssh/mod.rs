//! The embedded SSH server: who calls, what they ask for, and bytes both ways.
//!
//! The room authenticates people by their public keys, turns what they ask for into an [`ExecRequest`], and joins the channel to
//! three pipes. What a request means and who may make it, the [`Desk`] decides. Nothing here starts a process or reads a path
//! that a client named.
//!
//! The library's own accept loop, its lack of a login deadline and its habit of opening the window without being asked do not
//! suit a server on the open network, so this room has its own accept loop (`server`), limits (`limits`) and flow control
//! (`channel`).

mod algorithms;
mod channel;
mod exec;
pub mod hostkey;
pub mod keys;
mod limits;
mod server;
mod session;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, os::fd::OwnedFd, time::Duration};

use futures_util::future::BoxFuture;
use russh::keys::PrivateKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::model::UserName;

pub use algorithms::Profile;
pub use exec::{ExecError, ExecRequest, GitService, RepoPath};
pub use keys::{KeyError, PublicKeyInfo};
pub use limits::{Limits, Network};
pub use server::serve;

/// Who is calling; made only from a signature that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The person or machine.
    pub user: UserName,
}

/// The client's terminal, if it asked for one; a reason to use colours, nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tty {
    /// `TERM`, at most 64 characters of `[A-Za-z0-9._+-]`.
    pub term: String,
    /// Width in characters.
    pub columns: u32,
    /// Height in lines.
    pub rows: u32,
}

/// The other ends of the pipes that carry a request's input and output. Dropping one closes it.
#[derive(Debug)]
pub struct ExecIo {
    /// To read from; ends when the client has no more to say or is gone.
    pub stdin: OwnedFd,
    /// To write to; fails with a broken pipe when the client is gone.
    pub stdout: OwnedFd,
    /// To write to, shown apart from the output.
    pub stderr: OwnedFd,
    /// Cancelled when the client closed the channel, vanished or pressed Ctrl-C. The request itself goes on until it chooses to end.
    pub gone: CancellationToken,
}

/// A request, ready to be carried out.
#[derive(Debug)]
pub struct ExecCall {
    /// Who asks.
    pub identity: Identity,
    /// What for.
    pub request: ExecRequest,
    /// The client's `GIT_PROTOCOL`, already checked: `version=` and options.
    pub git_protocol: Option<String>,
    /// The client's terminal. With one, lines are sent with carriage returns, as terminals want them.
    pub tty: Option<Tty>,
    /// Where the client calls from.
    pub source: IpAddr,
    /// Its input and output.
    pub io: ExecIo,
}

/// What this room asks of the rest of larder.
pub trait Desk: Send + Sync + 'static {
    /// Whose key this is, if anyone's. Called for keys that are only offered too, so it must change nothing, and it must not
    /// wait: it runs on the connection's task. Asked again before each request, so that a key that was taken away stops working at once.
    fn authenticate(&self, key: &PublicKeyInfo, source: IpAddr) -> Option<Identity>;

    /// Told whenever keys may have been taken away; open connections then ask again whose key theirs is, and end if it is nobody's.
    fn key_changes(&self) -> watch::Receiver<()>;

    /// Carries out a request and gives its exit status. Runs as a task of its own and is never aborted, whatever becomes of the client.
    fn exec(&self, call: ExecCall) -> BoxFuture<'static, u32>;
}

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct SshConfig {
    /// The server's key, from [`hostkey::load_or_create`].
    pub host_key: PrivateKey,
    /// The user names in `ssh NAME@host` that are accepted; who is who follows from the key alone.
    pub logins: Vec<String>,
    /// Which algorithms are on offer.
    pub profile: Profile,
    /// All bounds.
    pub limits: Limits,
    /// How long requests may go on after a shutdown was asked for.
    pub drain: Duration,
}

impl SshConfig {
    /// The usual settings with this key.
    pub fn new(host_key: PrivateKey) -> Self {
        Self {
            host_key,
            logins: vec![String::from("git"), String::from("larder")],
            profile: Profile::default(),
            limits: Limits::default(),
            drain: Duration::from_secs(30),
        }
    }
}
