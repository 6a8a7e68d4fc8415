//! The interface between the SSH server and the rest of larder: identities, requests, and the handler that carries out requests.

use std::{net::IpAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{exec::ExecRequest, keys::PublicKeyInfo, terminal::ExecTerminal};
use crate::{control::LoginCertificate, git::PushCommands, model::UserName};

/// The proof with which a client logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A key that belongs to a user.
    Key(PublicKeyInfo),
    /// A certificate for a key, whose authority certifies users.
    Certificate(Arc<LoginCertificate>),
}

/// The user of a key. A connection gets an identity only after the signature of the client was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshIdentity {
    /// The user, a person or a machine.
    pub user: UserName,
    /// The fingerprint of the key with which the user has logged in.
    pub key: String,
    /// The certificate for the key; absent if the key itself belongs to the user.
    pub certificate: Option<Arc<LoginCertificate>>,
}

/// The reason why a key is refused. Clients do not learn the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRefusal {
    /// The user of the key, if there is one.
    pub user: Option<UserName>,
    /// The reason, as text.
    pub reason: String,
}

/// The answer to a key, for the records of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyAnswer {
    /// The kind, such as `ssh-ed25519`.
    pub kind: String,
    /// `SHA256:...`, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// The key ID and the serial number of the certificate; absent if the client offered no certificate.
    pub certificate: Option<String>,
    /// The address of the client.
    pub source: IpAddr,
    /// The user who has logged in, or the reason of the refusal.
    pub outcome: Result<UserName, KeyRefusal>,
}

/// The request's ends of the pipes that carry its input and output. Dropping a descriptor closes that end of its pipe.
#[derive(Debug)]
pub struct ExecIo {
    /// The input, which ends when the client closes it or disconnects.
    pub stdin: OwnedFd,
    /// The output. Writing fails with a broken pipe after the client has disconnected.
    pub stdout: OwnedFd,
    /// The error output, which clients show apart from the output.
    pub stderr: OwnedFd,
    /// The token that is cancelled when the client closes the channel, disconnects, or sends a signal, or Ctrl-C in a channel that
    /// processes lines. The server does not abort the request: the handler must end the request by itself.
    pub gone: CancellationToken,
    /// The number of ref updates in the input so far; 0 unless the request is a push.
    pub commands: PushCommands,
}

/// A request, ready to be carried out.
#[derive(Debug)]
pub struct ExecCall {
    /// The user who sent the request.
    pub identity: SshIdentity,
    /// The request.
    pub request: ExecRequest,
    /// The client's `GIT_PROTOCOL`: `version=N`, then options. The server accepts no other value.
    pub git_protocol: Option<String>,
    /// The client's terminal. The input waits until the handler has decided how the channel processes it.
    pub terminal: Option<ExecTerminal>,
    /// True if text for the client has colours: with a terminal, unless the client has sent `NO_COLOR`, or with `CLICOLOR_FORCE`.
    pub colours: bool,
    /// The client's address.
    pub source: IpAddr,
    /// The input and output.
    pub io: ExecIo,
}

/// The interface of the handler that identifies users and carries out their requests.
pub trait ExecHandler: Send + Sync + 'static {
    /// Returns the user of a credential, or the reason why the credential is refused. The function must change nothing, because clients may
    /// offer keys that they cannot sign with. The function must not block, because it runs on the connection's task. The server calls the
    /// function again before each request, so that a removed key stops working at once.
    fn authenticate(&self, credential: &Credential, source: IpAddr) -> Result<SshIdentity, KeyRefusal>;

    /// Returns true if a certificate may identify a user. A client may then prove a key that is not known.
    fn accepts_certificates(&self) -> bool;

    /// Returns the time after which the server must check the key of an open connection again; `None` if only changes matter.
    fn recheck_after(&self, identity: &SshIdentity) -> Option<Duration>;

    /// Records the answer to a key: a refusal, or a login. The signature of a refused key may not have been verified.
    fn answered(&self, answer: KeyAnswer);

    /// Returns a receiver that is notified when keys may have been removed. The server then checks the key of each open connection again,
    /// and closes the connection if the key has no user.
    fn key_changes(&self) -> watch::Receiver<()>;

    /// Carries out a request and returns its exit status. The future runs in a separate task, which is not aborted when the client
    /// disconnects.
    fn exec(&self, call: ExecCall) -> BoxFuture<'static, u32>;
}
