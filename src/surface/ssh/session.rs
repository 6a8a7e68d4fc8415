//! The callbacks of one connection: login, channels, requests. Every protocol request that is not served is refused explicitly.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use russh::{
    Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Pty, Sig,
    keys::HashAlg,
    server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    channel::{self, ChannelState, Job},
    config::SshServerConfig,
    exec::{self, ExecRequest},
    handler::{ExecHandler, KeyAnswer, KeyRefusal, SshIdentity, Tty},
    keys::{self, PublicKeyInfo},
};

/// The window of a channel whose queue has reached [`channel::INPUT_HIGH`], in bytes. The window is not zero, because russh can open a window
/// only in answer to data. The client sends packets of these few bytes, and russh can open the window in answer to each packet.
const CLOSED_WINDOW: u32 = 2;
/// The delay before the answer to a packet that fills a closed window, so that a waiting client costs little processor time.
const CLOSED_WINDOW_DELAY: Duration = Duration::from_millis(5);
/// The time for which a packet waits if the queue of its channel has reached [`channel::MAX_INPUT`]. All channels of the connection wait as
/// well; after this time, the channel is closed.
const OVERFLOW_WAIT: Duration = Duration::from_secs(1);

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
    /// The key that logged in, and its user.
    pub(super) login: OnceLock<(PublicKeyInfo, SshIdentity)>,
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

/// The guard of a running request. The request is counted as running until the guard is dropped.
struct Busy(Arc<ConnectionProgress>);

impl Busy {
    fn new(progress: &Arc<ConnectionProgress>) -> Self {
        progress.busy.send_modify(|count| *count = count.saturating_add(1));
        Self(Arc::clone(progress))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.send_modify(|count| *count = count.saturating_sub(1));
    }
}

struct Open {
    shared: Arc<ChannelState>,
    /// The sender to the client; absent after the first request, because a channel carries only one request.
    write: Option<ChannelWriteHalf<Msg>>,
    tty: Option<Tty>,
    git_protocol: Option<String>,
}

/// The state of one connection.
pub(super) struct SshConnection {
    handler: Arc<dyn ExecHandler>,
    config: Arc<SshServerConfig>,
    peer: SocketAddr,
    progress: Arc<ConnectionProgress>,
    shutdown: CancellationToken,
    login: Option<(PublicKeyInfo, SshIdentity)>,
    offers: usize,
    failures: usize,
    channels: HashMap<ChannelId, Open>,
    channels_total: usize,
}

impl SshConnection {
    pub(super) fn new(
        handler: Arc<dyn ExecHandler>,
        config: Arc<SshServerConfig>,
        peer: SocketAddr,
        progress: Arc<ConnectionProgress>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            handler,
            config,
            peer,
            progress,
            shutdown,
            login: None,
            offers: 0,
            failures: 0,
            channels: HashMap::new(),
            channels_total: 0,
        }
    }

    /// Returns the key and its user if the key is known, and the login name and the kind of key are accepted. Records a refusal. The client
    /// gets the same answer to all refusals.
    fn lookup(
        &self,
        login: &str,
        key: &russh::keys::PublicKey,
        algorithm: &russh::keys::Algorithm,
    ) -> Option<(PublicKeyInfo, SshIdentity)> {
        let described = keys::info(key);
        let (kind, fingerprint) = match &described {
            Ok(info) => (info.algorithm.clone(), info.fingerprint_sha256.clone()),
            Err(_) => (key.algorithm().to_string().chars().take(60).collect(), key.fingerprint(HashAlg::Sha256).to_string()),
        };
        let refusal = match described {
            Ok(info) if keys::accepts_signature(algorithm) => match self.check(login, &info) {
                Ok(identity) => return Some((info, identity)),
                Err(refusal) => refusal,
            },
            Ok(_) => {
                let reason = format!("signatures of kind {:?} are not safe; update the client", algorithm.as_str());
                KeyRefusal { user: None, reason }
            }
            Err(error) => KeyRefusal { user: None, reason: error.to_string() },
        };
        tracing::info!(peer = %self.peer, "cannot accept the {kind} key {fingerprint}: {}", refusal.reason);
        self.handler.answered(KeyAnswer { kind, fingerprint, source: self.source(), outcome: Err(refusal) });
        None
    }

    fn check(&self, login: &str, info: &PublicKeyInfo) -> Result<SshIdentity, KeyRefusal> {
        let identity = self.handler.authenticate(info, self.source())?;
        if self.config.logins.iter().any(|known| known == login) {
            return Ok(identity);
        }
        let expected = self.config.logins.join(" or ");
        let login: String = login.escape_default().take(80).collect();
        let reason = format!("the login is {login} (expected {expected})");
        Err(KeyRefusal { user: Some(identity.user), reason })
    }

    /// Returns the address of the client.
    fn source(&self) -> IpAddr {
        self.peer.ip().to_canonical()
    }

    async fn refused(&mut self) -> Result<Auth, SessionError> {
        self.failures = self.failures.saturating_add(1);
        self.progress.attempts.fetch_add(1, Ordering::Relaxed);
        if self.failures > self.config.limits.auth_failures {
            return Err(SessionError::TooManyFailures(self.config.limits.auth_failures));
        }
        tokio::time::sleep(self.config.limits.refusal_delay).await;
        Ok(Auth::reject())
    }

    /// Starts a request in a separate task, or answers with the reason if the request cannot start.
    fn start(
        &mut self,
        id: ChannelId,
        request: Result<ExecRequest, exec::ExecError>,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        let source = self.source();
        let Some(open) = self.channels.get_mut(&id) else {
            return Ok(session.channel_failure(id)?);
        };
        let Some(write) = open.write.take() else {
            return Ok(session.channel_failure(id)?);
        };
        session.channel_success(id)?;
        let shared = Arc::clone(&open.shared);
        let busy = Busy::new(&self.progress);
        let identity = match &self.login {
            Some((key, login)) => self.handler.authenticate(key, source).ok().filter(|now| now == login),
            None => None,
        };
        let (refusal, status) = match (request, identity) {
            (_, None) => {
                (String::from("larder: your key was removed or has expired; ask an administrator"), channel::STATUS_REFUSED)
            }
            _ if self.shutdown.is_cancelled() => {
                (String::from("larder: the server is stopping; try again in a moment"), channel::STATUS_REFUSED)
            }
            (Err(error), _) => {
                let mut line = match std::error::Error::source(&error) {
                    Some(cause) => format!("larder: {error}: {cause}"),
                    None => format!("larder: {error}"),
                };
                if let Some(hint) = error.hint() {
                    line.push_str(&format!("\nlarder: hint: {hint}"));
                }
                (line, channel::STATUS_USAGE)
            }
            (Ok(request), Some(identity)) => {
                tracing::debug!(peer = %self.peer, user = %identity.user, ?request, "request");
                let job = Job {
                    handler: Arc::clone(&self.handler),
                    identity,
                    request,
                    git_protocol: open.git_protocol.take(),
                    tty: open.tty.take(),
                    source,
                };
                tokio::spawn(async move {
                    channel::run(write, shared, job).await;
                    drop(busy);
                });
                return Ok(());
            }
        };
        tracing::info!(peer = %self.peer, "{refusal}");
        let ending = if open.tty.is_some() { "\r\n" } else { "\n" };
        tokio::spawn(async move {
            channel::refuse_request(write, shared, refusal + ending, status).await;
            drop(busy);
        });
        Ok(())
    }
}

impl Drop for SshConnection {
    fn drop(&mut self) {
        for open in self.channels.values() {
            open.shared.gone.cancel();
        }
    }
}

impl Handler for SshConnection {
    type Error = SessionError;

    // russh calls this function when the key exchange is done and the login begins.
    async fn authentication_banner(&mut self) -> Result<Option<String>, SessionError> {
        self.progress.keyed.cancel();
        Ok(None)
    }

    // The answer only states that a signature with this key would be accepted. Nothing is stored, because the client has not proven
    // that it has the private key.
    async fn auth_publickey_offered(&mut self, login: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, SessionError> {
        self.progress.attempts.fetch_add(1, Ordering::Relaxed);
        self.offers = self.offers.saturating_add(1);
        if self.offers > self.config.limits.offers {
            return Err(SessionError::TooManyOffers(self.config.limits.offers));
        }
        match self.lookup(login, offer.public_key, offer.algorithm) {
            Some(_) => Ok(Auth::Accept),
            None => Ok(Auth::reject()),
        }
    }

    // Only this function stores an identity, because russh has verified the client's signature before this call.
    async fn auth_publickey(&mut self, login: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, SessionError> {
        match self.lookup(login, key.public_key, key.algorithm) {
            Some((info, identity)) => {
                let (kind, fingerprint) = (&info.algorithm, &info.fingerprint_sha256);
                tracing::info!(peer = %self.peer, user = %identity.user, "accepted {kind} {fingerprint}");
                self.handler.answered(KeyAnswer {
                    kind: info.algorithm.clone(),
                    fingerprint: info.fingerprint_sha256.clone(),
                    source: self.source(),
                    outcome: Ok(identity.user.clone()),
                });
                let _ = self.progress.login.set((info.clone(), identity.clone()));
                self.login = Some((info, identity));
                Ok(Auth::Accept)
            }
            None => self.refused().await,
        }
    }

    async fn auth_password(&mut self, _login: &str, _password: &str) -> Result<Auth, SessionError> {
        self.refused().await
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _login: &str,
        _submethods: &str,
        _response: Option<Response<'a>>,
    ) -> Result<Auth, SessionError> {
        self.refused().await
    }

    async fn auth_openssh_certificate(
        &mut self,
        _login: &str,
        _certificate: &russh::keys::Certificate,
    ) -> Result<Auth, SessionError> {
        self.refused().await
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), SessionError> {
        self.progress.logged_in.cancel();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), SessionError> {
        self.channels.retain(|_, open| !open.shared.is_finished());
        let limits = &self.config.limits;
        let full = self.channels.len() >= limits.channels_open || self.channels_total >= limits.channels_total;
        if full || self.login.is_none() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        self.channels_total = self.channels_total.saturating_add(1);
        let id = channel.id();
        // Input arrives through `data` below; russh's own queue would block the whole connection.
        let (_, write) = channel.split();
        let open = Open { shared: ChannelState::new(), write: Some(write), tty: None, git_protocol: None };
        self.channels.insert(id, open);
        reply.accept().await;
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), SessionError> {
        if let Some(open) = self.channels.remove(&id) {
            open.shared.gone.cancel();
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), SessionError> {
        if let Some(open) = self.channels.get(&id) {
            open.shared.input.end();
        }
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), SessionError> {
        let Some(open) = self.channels.get(&id) else { return Ok(()) };
        let input = &open.shared.input;
        if input.push(data) {
            if input.is_high() && data.len() <= CLOSED_WINDOW as usize {
                tokio::time::sleep(CLOSED_WINDOW_DELAY).await;
            }
            return Ok(());
        }
        let retry = async {
            while !input.push(data) {
                input.space_freed().await;
            }
        };
        if tokio::time::timeout(OVERFLOW_WAIT, retry).await.is_err() {
            tracing::warn!(peer = %self.peer, "closed a channel whose input is not read");
            open.shared.gone.cancel();
            self.channels.remove(&id);
            session.close(id)?;
        }
        Ok(())
    }

    fn adjust_window(&mut self, id: ChannelId, _current: u32) -> u32 {
        match self.channels.get(&id) {
            Some(open) if open.shared.input.is_high() => CLOSED_WINDOW,
            _ => channel::WINDOW,
        }
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], session: &mut Session) -> Result<(), SessionError> {
        self.start(id, exec::parse(command), session)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), SessionError> {
        self.start(id, Ok(ExecRequest::Shell), session)
    }

    #[allow(clippy::too_many_arguments)]
    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _pix_width: u32,
        _pix_height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), SessionError> {
        let plain = |text: &str| text.len() <= 64 && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"._+-".contains(&c));
        let term = if plain(term) { term } else { "dumb" };
        match self.channels.get_mut(&id) {
            Some(open) if open.write.is_some() => {
                open.tty = Some(Tty { term: term.to_owned(), columns: columns.min(1000), rows: rows.min(1000) });
                Ok(session.channel_success(id)?)
            }
            _ => Ok(session.channel_failure(id)?),
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        _columns: u32,
        _rows: u32,
        _pix_width: u32,
        _pix_height: u32,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        Ok(session.channel_success(id)?)
    }

    async fn env_request(&mut self, id: ChannelId, name: &str, value: &str, session: &mut Session) -> Result<(), SessionError> {
        if name == "GIT_PROTOCOL"
            && is_git_protocol(value)
            && let Some(open) = self.channels.get_mut(&id)
        {
            open.git_protocol = Some(value.to_owned());
            return Ok(session.channel_success(id)?);
        }
        Ok(session.channel_failure(id)?)
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _session: &mut Session) -> Result<(), SessionError> {
        if let (Some(open), Sig::INT | Sig::TERM | Sig::HUP | Sig::QUIT | Sig::KILL) = (self.channels.get(&id), signal) {
            open.shared.stop.cancel();
        }
        Ok(())
    }

    async fn subsystem_request(&mut self, id: ChannelId, _name: &str, session: &mut Session) -> Result<(), SessionError> {
        Ok(session.channel_failure(id)?)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _single_connection: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        Ok(session.channel_failure(id)?)
    }

    // russh refuses the forwarding of ports, sockets and agents unless the callbacks for this forwarding are implemented. A test requests
    // each kind of forwarding.
}

/// Returns true for values of `GIT_PROTOCOL` that git itself writes: `version=N`, then options.
fn is_git_protocol(value: &str) -> bool {
    let mut parts = value.split(':');
    let option = |part: &str| {
        !part.is_empty() && part.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'=' | b'-'))
    };
    value.len() <= 64 && matches!(parts.next(), Some("version=0" | "version=1" | "version=2")) && parts.all(option)
}

#[cfg(test)]
mod tests {
    use super::is_git_protocol;

    #[test]
    fn only_values_that_git_writes_are_accepted() {
        for good in ["version=2", "version=0", "version=1:agent=x-1"] {
            assert!(is_git_protocol(good), "{good}");
        }
        for bad in ["", "version=3", "version=2:", "version=2\n", "version=2:A", "x:version=2", "version=2 ", "version=2:$(id)"] {
            assert!(!is_git_protocol(bad), "{bad}");
        }
        assert!(!is_git_protocol(&format!("version=2:{}", "a".repeat(60))));
    }
}
