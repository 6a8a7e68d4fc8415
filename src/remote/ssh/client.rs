//! One other server: connections that end when they are stale, words that it runs, and their output.

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

use super::{PullKey, fingerprint, line_of};
use crate::{model::sanitise_line, remote::RemoteError};

/// How long a server may take to be reached, to greet and to let us in, each.
const GREETING: Duration = Duration::from_secs(15);
/// How long the connection may be silent, answers to our questions whether it lives included.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Unanswered questions after which it is lost.
const KEEPALIVE_MAX: usize = 3;
/// How long a transfer may stand still although the connection lives.
const STALLED: Duration = Duration::from_secs(120);
/// How long the other side may work on something before its first byte: it may have to make a delta.
const WORKING: Duration = Duration::from_secs(20 * 60);
/// Requests for which a connection is used; the other side allows 32.
const REQUESTS: usize = 24;
/// The longest command that the other side reads, in bytes.
const COMMAND_MAX: usize = 1024;
/// How much of what it says beside its output is kept, in bytes.
const WORDS_MAX: usize = 4096;

/// How much it may say beside what was asked for, in bytes.
const NOISE_MAX: usize = 64 * 1024;

static CONFIG: LazyLock<Arc<client::Config>> = LazyLock::new(|| {
    Arc::new(client::Config {
        preferred: Preferred {
            // The only kind of host key that a larder server has.
            key: vec![Algorithm::Ed25519].into(),
            compression: vec![compression::NONE].into(),
            ..Preferred::default()
        },
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        channel_buffer_size: 32,
        nodelay: true,
        ..client::Config::default()
    })
});

/// Accepts the host key that was pinned and no other; remembers what it saw.
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

/// A larder server elsewhere.
pub struct Server {
    /// What it is called in messages.
    title: String,
    login: String,
    host: String,
    port: u16,
    host_key: Option<String>,
    key: PullKey,
    connection: tokio::sync::Mutex<Option<Connection>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({}@{}:{})", self.login, self.host, self.port)
    }
}

impl Server {
    /// The server at `host`, which must show `host_key`; without one it is never talked to.
    pub fn new(title: String, login: &str, host: &str, port: u16, host_key: Option<&str>, key: PullKey) -> Server {
        let host_key = host_key.map(str::to_owned);
        let connection = tokio::sync::Mutex::default();
        Server { title, login: login.to_owned(), host: host.to_owned(), port, host_key, key, connection }
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> RemoteError {
        RemoteError::Unreachable { place: self.title.clone(), why: sanitise_line(&why.to_string()) }
    }

    async fn connect(&self) -> Result<Connection, RemoteError> {
        let late = |_| self.unreachable(format!("no answer within {GREETING:?}"));
        let stream = timeout(GREETING, TcpStream::connect((self.host.as_str(), self.port))).await.map_err(late)?;
        let stream = stream.map_err(|error| self.unreachable(error))?;
        let seen = Arc::default();
        let handler = Pinned { expected: self.host_key.clone(), seen: Arc::clone(&seen) };
        let greeted = timeout(GREETING, client::connect_stream(CONFIG.clone(), stream, handler)).await.map_err(late)?;
        let mut handle = match (greeted, seen.lock().take()) {
            (Ok(handle), _) => handle,
            (Err(russh::Error::UnknownKey), Some(line)) => return Err(self.other_key(line)),
            (Err(error), _) => return Err(self.unreachable(error)),
        };
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&self.key.0), None);
        let login = timeout(GREETING, handle.authenticate_publickey(&self.login, key)).await.map_err(late)?;
        if !login.map_err(|error| self.unreachable(error))?.success() {
            return Err(RemoteError::Login { place: self.title.clone(), key: self.key.line() });
        }
        Ok(Connection { handle: Arc::new(handle), requests: 0 })
    }

    fn other_key(&self, line: String) -> RemoteError {
        let (place, shown) = (self.title.clone(), fingerprint(&line));
        match &self.host_key {
            Some(expected) => RemoteError::HostKey { place, expected: fingerprint(expected), shown, line },
            None => RemoteError::Unpinned { place, shown, line },
        }
    }

    async fn channel(&self) -> Result<(Channel<Msg>, Arc<Handle<Pinned>>), RemoteError> {
        let mut slot = self.connection.lock().await;
        // A connection that died since it was last used is no reason to fail; one that dies at once is.
        for fresh in [false, true] {
            let usable = slot.take().filter(|known| !fresh && known.requests < REQUESTS && !known.handle.is_closed());
            let mut connection = match usable {
                Some(known) => known,
                None => self.connect().await?,
            };
            if let Ok(Ok(channel)) = timeout(GREETING, connection.handle.channel_open_session()).await {
                connection.requests = connection.requests.saturating_add(1);
                let handle = Arc::clone(&connection.handle);
                *slot = Some(connection);
                return Ok((channel, handle));
            }
        }
        Err(self.unreachable("it ended the connection at once"))
    }

    /// Has the server run `words`, which no shell reads there.
    pub async fn exec(&self, words: &[String]) -> Result<Exec, RemoteError> {
        let doing = words.iter().take(2).cloned().collect::<Vec<_>>().join(" ");
        let lost = |why: String| RemoteError::Lost { place: self.title.clone(), doing: format!("asking for `{doing}`"), why };
        let command = shlex::try_join(words.iter().map(String::as_str)).map_err(|error| lost(error.to_string()))?;
        if command.len() > COMMAND_MAX {
            return Err(lost(format!("the command has {} bytes, and at most {COMMAND_MAX} are read there", command.len())));
        }
        let (channel, connection) = self.channel().await?;
        channel.exec(true, command).await.map_err(|error| lost(error.to_string()))?;
        Ok(Exec {
            channel,
            _connection: connection,
            place: self.title.clone(),
            doing,
            words: String::new(),
            code: None,
            began: false,
            noise: 0,
        })
    }

    /// Ends the connection, if there is one.
    pub async fn leave(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            let told = connection.handle.disconnect(Disconnect::ByApplication, "", "");
            let _ = timeout(Duration::from_secs(1), told).await;
        }
    }
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Of the standard output.
    Out(Bytes),
    /// Of the standard error.
    Err(Bytes),
}

/// Words that are being run; dropping it makes the other side stop.
pub struct Exec {
    channel: Channel<Msg>,
    _connection: Arc<Handle<Pinned>>,
    place: String,
    doing: String,
    /// The first words of the standard error.
    words: String,
    code: Option<u32>,
    began: bool,
    /// How much came beside the standard output where nobody wants that, in bytes.
    noise: usize,
}

impl std::fmt::Debug for Exec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exec({} at {})", self.doing, self.place)
    }
}

impl Exec {
    fn lost(&self, why: impl Into<String>) -> RemoteError {
        RemoteError::Lost { place: self.place.clone(), doing: format!("it answered `{}`", self.doing), why: why.into() }
    }

    /// The next piece; nothing at the end, after which [`Exec::code`] says how it ended.
    pub async fn next(&mut self) -> Result<Option<Output>, RemoteError> {
        let patience = if self.began { STALLED } else { WORKING };
        loop {
            let message = timeout(patience, self.channel.wait()).await;
            match message.map_err(|_| self.lost(format!("nothing came for {patience:?}")))? {
                Some(ChannelMsg::Data { data }) => {
                    self.began = true;
                    return Ok(Some(Output::Out(data)));
                }
                Some(ChannelMsg::ExtendedData { data, .. }) => {
                    self.began = true;
                    let room = WORDS_MAX.saturating_sub(self.words.len()).min(data.len());
                    self.words.push_str(&String::from_utf8_lossy(data.get(..room).unwrap_or_default()));
                    return Ok(Some(Output::Err(data)));
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => self.code = Some(exit_status),
                Some(ChannelMsg::Failure) => return Err(self.lost("it does not run commands")),
                Some(ChannelMsg::Close) | None => {
                    return if self.code.is_some() { Ok(None) } else { Err(self.lost("it ended without a word")) };
                }
                Some(_) => {}
            }
        }
    }

    /// The next piece of its standard output, for whoever passes nothing else on. What it says besides has to end some time.
    pub async fn next_out(&mut self) -> Result<Option<Bytes>, RemoteError> {
        while let Some(piece) = self.next().await? {
            match piece {
                Output::Out(data) => return Ok(Some(data)),
                Output::Err(data) => {
                    self.noise = self.noise.saturating_add(data.len());
                    if self.noise > NOISE_MAX {
                        return Err(self.lost("it says more and more, and none of it is what was asked for"));
                    }
                }
            }
        }
        Ok(None)
    }

    /// How it ended; nothing before its end.
    pub fn code(&self) -> Option<u32> {
        self.code
    }

    /// The error that its exit code means; nothing for success. `what` is what was asked for.
    pub fn refusal(&self, what: &str) -> Option<RemoteError> {
        let (place, words) = (self.place.clone(), self.said());
        match self.code {
            Some(0) => None,
            Some(4) => Some(RemoteError::NotFound { place, what: what.to_owned(), words }),
            code => Some(RemoteError::Refused { place, doing: format!("give the {what}"), code: code.unwrap_or(255), words }),
        }
    }

    /// What it said beside its output, as one line.
    fn said(&self) -> String {
        let lines = self.words.lines().map(|line| line.strip_prefix("error: ").unwrap_or(line));
        let lines: Vec<_> = lines.filter(|line| !line.starts_with("hint: ")).map(sanitise_line).collect();
        lines.join("; ")
    }

    /// All of its standard output, at most `limit` bytes, and an error unless it succeeded.
    pub async fn output(mut self, what: &str, limit: u64) -> Result<Vec<u8>, RemoteError> {
        let mut bytes = Vec::new();
        while let Some(data) = self.next_out().await? {
            if (bytes.len() as u64).saturating_add(data.len() as u64) > limit {
                return Err(RemoteError::TooLarge { place: self.place.clone(), what: what.to_owned(), limit });
            }
            bytes.extend_from_slice(&data);
        }
        match self.refusal(what) {
            None => Ok(bytes),
            Some(error) => Err(error),
        }
    }
}
