//! The ssh client for a remote larder server: the connection, the commands, and the output of commands.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use russh::{
    Channel, ChannelMsg, Disconnect, Preferred,
    client::{self, Handle, Msg},
    compression,
    keys::{Algorithm, PrivateKeyWithHashAlg, PublicKey},
};
use tokio::{net::TcpStream, time::timeout};

use super::keys::{PullKey, fingerprint, line_of};
use crate::{model::sanitise_line, remote::error::RemoteError};

/// The time limit for each step of a connection: the TCP connection, the key exchange, the authentication, and the opening of a channel.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The time without data after which a keep-alive request is sent.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// The number of unanswered keep-alive requests after which the connection is lost.
const MAX_KEEPALIVES: usize = 3;
/// The maximum time without data during a transfer, even if the keep-alive requests are answered.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);
/// The maximum time before the first byte of an answer. The remote server may have to compute a delta before it answers.
const COMPUTE_TIMEOUT: Duration = Duration::from_secs(20 * 60);
/// The maximum number of requests on one connection. The remote server allows 32 requests.
const MAX_REQUESTS: usize = 24;
/// The maximum length of a command that is sent to the remote server, in bytes. Every version of larder accepts commands of this length.
const MAX_COMMAND: usize = 1024;
/// The maximum size of the standard error that is kept for messages, in bytes.
const MAX_WORDS: usize = 4096;

/// The maximum size of the standard error that [`Exec::next_out`] discards, in bytes.
const MAX_NOISE: usize = 64 * 1024;

static CONFIG: LazyLock<Arc<client::Config>> = LazyLock::new(|| {
    Arc::new(client::Config {
        preferred: Preferred {
            // A larder server has only Ed25519 host keys.
            key: vec![Algorithm::Ed25519].into(),
            compression: vec![compression::NONE].into(),
            ..Preferred::default()
        },
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: MAX_KEEPALIVES,
        channel_buffer_size: 32,
        nodelay: true,
        ..client::Config::default()
    })
});

/// The check that accepts only the pinned host key and records the key of the server.
struct Pinned {
    expected: Option<String>,
    seen: Arc<Mutex<Option<String>>>,
}

impl client::Handler for Pinned {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &russh::keys::PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let shown = match key {
            russh::keys::PublicKeyOrCertificate::PublicKey { key, .. } => key,
            russh::keys::PublicKeyOrCertificate::Certificate(_) => return Ok(false),
        };
        *self.seen.lock() = Some(line_of(shown));
        let expected = self.expected.as_deref().and_then(|line| PublicKey::from_openssh(line).ok());
        Ok(expected.is_some_and(|expected| expected.key_data() == shown.key_data()))
    }
}

struct Connection {
    handle: Arc<Handle<Pinned>>,
    requests: usize,
}

/// A client for a remote larder server.
pub struct RemoteServer {
    /// The name and address of the server, for messages.
    title: String,
    login: String,
    host: String,
    port: u16,
    host_key: Option<String>,
    key: PullKey,
    connection: tokio::sync::Mutex<Option<Connection>>,
}

impl std::fmt::Debug for RemoteServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RemoteServer({}@{}:{})", self.login, self.host, self.port)
    }
}

impl RemoteServer {
    /// Returns a client of the server at `host`, which must have `host_key`. Without a host key, no request is sent.
    pub fn new(title: String, login: &str, host: &str, port: u16, host_key: Option<&str>, key: PullKey) -> RemoteServer {
        let host_key = host_key.map(str::to_owned);
        let connection = tokio::sync::Mutex::default();
        RemoteServer { title, login: login.to_owned(), host: host.to_owned(), port, host_key, key, connection }
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> RemoteError {
        RemoteError::Unreachable { remote: self.title.clone(), why: sanitise_line(&why.to_string()) }
    }

    async fn connect(&self) -> Result<Connection, RemoteError> {
        let late = |_| self.unreachable(format!("no answer within {CONNECT_TIMEOUT:?}"));
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect((self.host.as_str(), self.port))).await.map_err(late)?;
        let stream = stream.map_err(|error| self.unreachable(error))?;
        let seen = Arc::default();
        let handler = Pinned { expected: self.host_key.clone(), seen: Arc::clone(&seen) };
        let greeted = timeout(CONNECT_TIMEOUT, client::connect_stream(CONFIG.clone(), stream, handler)).await.map_err(late)?;
        let mut handle = match (greeted, seen.lock().take()) {
            (Ok(handle), _) => handle,
            (Err(russh::Error::UnknownKey), Some(line)) => return Err(self.other_key(line)),
            (Err(error), _) => return Err(self.unreachable(error)),
        };
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&self.key.0), None);
        let login = timeout(CONNECT_TIMEOUT, handle.authenticate_publickey(&self.login, key)).await.map_err(late)?;
        if !login.map_err(|error| self.unreachable(error))?.success() {
            return Err(RemoteError::Login { remote: self.title.clone(), key: self.key.line() });
        }
        Ok(Connection { handle: Arc::new(handle), requests: 0 })
    }

    fn other_key(&self, line: String) -> RemoteError {
        let (remote, shown) = (self.title.clone(), fingerprint(&line));
        match &self.host_key {
            Some(expected) => RemoteError::HostKey { remote, expected: fingerprint(expected), shown, line },
            None => RemoteError::Unpinned { remote, shown, line },
        }
    }

    async fn channel(&self) -> Result<(Channel<Msg>, Arc<Handle<Pinned>>), RemoteError> {
        let mut slot = self.connection.lock().await;
        // The first round uses the open connection, or makes a connection if none is usable. An open connection may have been lost since
        // its last use, so the second round always makes a new connection. A failure of the second round is an error.
        for fresh in [false, true] {
            let usable = slot.take().filter(|known| !fresh && known.requests < MAX_REQUESTS && !known.handle.is_closed());
            let mut connection = match usable {
                Some(known) => known,
                None => self.connect().await?,
            };
            if let Ok(Ok(channel)) = timeout(CONNECT_TIMEOUT, connection.handle.channel_open_session()).await {
                connection.requests = connection.requests.saturating_add(1);
                let handle = Arc::clone(&connection.handle);
                *slot = Some(connection);
                return Ok((channel, handle));
            }
        }
        Err(self.unreachable("the connection was closed at once"))
    }

    /// Runs a command on the server, without a shell.
    pub async fn exec(&self, words: &[String]) -> Result<Exec, RemoteError> {
        let doing = words.iter().take(2).cloned().collect::<Vec<_>>().join(" ");
        let lost = |why: String| RemoteError::Lost { remote: self.title.clone(), doing: format!("asking for `{doing}`"), why };
        let unsent = |why: String| RemoteError::Unsent { remote: self.title.clone(), doing: doing.clone(), why };
        let command = shlex::try_join(words.iter().map(String::as_str)).map_err(|error| unsent(error.to_string()))?;
        if command.len() > MAX_COMMAND {
            return Err(unsent(format!("the command has {} bytes (expected at most {MAX_COMMAND})", command.len())));
        }
        let (channel, connection) = self.channel().await?;
        channel.exec(true, command).await.map_err(|error| lost(error.to_string()))?;
        Ok(Exec {
            channel,
            _connection: connection,
            remote: self.title.clone(),
            doing,
            words: String::new(),
            code: None,
            began: false,
            noise: 0,
        })
    }

    /// Closes the connection, if a connection is open.
    pub async fn leave(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            let told = connection.handle.disconnect(Disconnect::ByApplication, "", "");
            let _ = timeout(Duration::from_secs(1), told).await;
        }
    }
}

/// A piece of a command's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// Bytes of the standard output.
    Out(Bytes),
    /// Bytes of the standard error.
    Err(Bytes),
}

/// A running command. If this value is dropped, the channel is closed, and the remote server terminates the command.
pub struct Exec {
    channel: Channel<Msg>,
    _connection: Arc<Handle<Pinned>>,
    remote: String,
    doing: String,
    /// The beginning of the standard error.
    words: String,
    code: Option<u32>,
    began: bool,
    /// The number of bytes of the standard error that [`Exec::next_out`] has discarded.
    noise: usize,
}

impl std::fmt::Debug for Exec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exec({} at {})", self.doing, self.remote)
    }
}

impl Exec {
    fn lost(&self, why: impl Into<String>) -> RemoteError {
        RemoteError::Lost { remote: self.remote.clone(), doing: format!("running `{}`", self.doing), why: why.into() }
    }

    fn unsent(&self, why: impl Into<String>) -> RemoteError {
        RemoteError::Unsent { remote: self.remote.clone(), doing: self.doing.clone(), why: why.into() }
    }

    /// Returns the next piece of output; `None` at the end of the command. [`Exec::code`] then returns the exit code.
    pub async fn next(&mut self) -> Result<Option<ExecOutput>, RemoteError> {
        let limit = if self.began { STALL_TIMEOUT } else { COMPUTE_TIMEOUT };
        loop {
            let message = timeout(limit, self.channel.wait()).await;
            match message.map_err(|_| self.lost(format!("no data for {limit:?}")))? {
                Some(ChannelMsg::Data { data }) => {
                    self.began = true;
                    return Ok(Some(ExecOutput::Out(data)));
                }
                Some(ChannelMsg::ExtendedData { data, .. }) => {
                    self.began = true;
                    let left = MAX_WORDS.saturating_sub(self.words.len()).min(data.len());
                    self.words.push_str(&String::from_utf8_lossy(data.get(..left).unwrap_or_default()));
                    return Ok(Some(ExecOutput::Err(data)));
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => self.code = Some(exit_status),
                Some(ChannelMsg::Failure) => return Err(self.unsent("the server does not run commands")),
                Some(ChannelMsg::Close) | None => {
                    return if self.code.is_some() {
                        Ok(None)
                    } else {
                        Err(self.lost("the channel was closed without an exit code"))
                    };
                }
                Some(_) => {}
            }
        }
    }

    /// Returns the next piece of the standard output; `None` at the end of the command. Discards the standard error, and returns an error
    /// if the standard error is longer than `MAX_NOISE`.
    pub async fn next_out(&mut self) -> Result<Option<Bytes>, RemoteError> {
        while let Some(piece) = self.next().await? {
            match piece {
                ExecOutput::Out(data) => return Ok(Some(data)),
                ExecOutput::Err(data) => {
                    self.noise = self.noise.saturating_add(data.len());
                    if self.noise > MAX_NOISE {
                        return Err(RemoteError::TooLarge {
                            remote: self.remote.clone(),
                            what: format!("standard error of `{}`", self.doing),
                            limit: MAX_NOISE as u64,
                        });
                    }
                }
            }
        }
        Ok(None)
    }

    /// Returns the exit code; `None` before the end of the command.
    pub fn code(&self) -> Option<u32> {
        self.code
    }

    /// Returns the error for the exit code; `None` if the command succeeded. `what` is the requested object.
    pub fn refusal(&self, what: &str) -> Option<RemoteError> {
        let (remote, words) = (self.remote.clone(), self.message());
        match self.code {
            Some(0) => None,
            Some(4) => Some(RemoteError::NotFound { remote, what: what.to_owned(), words }),
            code => Some(RemoteError::Refused { remote, doing: format!("send the {what}"), code: code.unwrap_or(255), words }),
        }
    }

    /// Returns the error message of the command as one line.
    fn message(&self) -> String {
        let lines = self.words.lines().map(|line| line.strip_prefix("error: ").unwrap_or(line));
        let lines: Vec<_> = lines.filter(|line| !line.starts_with("hint: ")).map(sanitise_line).collect();
        lines.join("; ")
    }

    /// Returns the whole standard output. Returns an error if the output is longer than `limit` bytes, or if the command fails.
    pub async fn output(mut self, what: &str, limit: u64) -> Result<Vec<u8>, RemoteError> {
        let mut bytes = Vec::new();
        while let Some(data) = self.next_out().await? {
            if (bytes.len() as u64).saturating_add(data.len() as u64) > limit {
                return Err(RemoteError::TooLarge { remote: self.remote.clone(), what: what.to_owned(), limit });
            }
            bytes.extend_from_slice(&data);
        }
        match self.refusal(what) {
            None => Ok(bytes),
            Some(error) => Err(error),
        }
    }
}
