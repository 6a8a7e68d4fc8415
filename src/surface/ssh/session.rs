//! The callbacks of one connection: login, channels, requests. Every protocol request that is not served is refused explicitly.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use russh::{
    Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Pty, Sig,
    server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey},
};
use tokio_util::sync::CancellationToken;

use super::{
    authentication::Authentication,
    channel::{self, ChannelState, Job},
    config::SshServerConfig,
    exec::{self, ExecRequest},
    handler::ExecHandler,
    progress::{ConnectionProgress, SessionError},
    terminal::{self, ExecTerminal, Window},
};

/// The window of a channel whose queue has reached [`channel::INPUT_HIGH`], in bytes. The window is not zero, because russh can open a window
/// only in answer to data. The client sends packets of these few bytes, and russh can open the window in answer to each packet.
const CLOSED_WINDOW: u32 = 2;
/// The delay before the answer to a packet that fills a closed window, so that a waiting client costs little processor time.
const CLOSED_WINDOW_DELAY: Duration = Duration::from_millis(5);
/// The time for which a packet waits if the queue of its channel has reached [`channel::MAX_INPUT`]. All channels of the connection wait as
/// well; after this time, the channel is closed.
const OVERFLOW_WAIT: Duration = Duration::from_secs(1);

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
    /// The requested terminal; absent after the first request, as `write`.
    terminal: Option<ExecTerminal>,
    window: Option<Window>,
    git_protocol: Option<String>,
    /// The client's wish for or against colours.
    colours: Option<bool>,
}

/// The state of one connection.
pub(super) struct SshConnection {
    authentication: Authentication,
    progress: Arc<ConnectionProgress>,
    shutdown: CancellationToken,
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
            authentication: Authentication::new(handler, config, peer, Arc::clone(&progress)),
            progress,
            shutdown,
            channels: HashMap::new(),
            channels_total: 0,
        }
    }

    /// Starts a request in a separate task, or answers with the reason if the request cannot start.
    fn start(
        &mut self,
        id: ChannelId,
        request: Result<ExecRequest, exec::ExecError>,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        let (source, peer) = (self.authentication.source(), self.authentication.peer);
        let Some(open) = self.channels.get_mut(&id) else {
            return Ok(session.channel_failure(id)?);
        };
        let Some(write) = open.write.take() else {
            return Ok(session.channel_failure(id)?);
        };
        session.channel_success(id)?;
        let shared = Arc::clone(&open.shared);
        let busy = Busy::new(&self.progress);
        let identity = self.authentication.current();
        // A certificate can replace every command of its user.
        let request = match self.authentication.forced_command() {
            Some(command) => exec::parse(command.as_bytes()),
            None => request,
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
                tracing::debug!(%peer, user = %identity.user, ?request, "request");
                let has_colours = open.terminal.as_ref().is_some_and(ExecTerminal::shows_colours);
                let job = Job {
                    handler: Arc::clone(&self.authentication.handler),
                    identity,
                    request,
                    git_protocol: open.git_protocol.take(),
                    colours: open.colours.unwrap_or(has_colours),
                    terminal: open.terminal.take(),
                    source,
                };
                tokio::spawn(async move {
                    channel::run(write, shared, job).await;
                    drop(busy);
                });
                return Ok(());
            }
        };
        tracing::info!(%peer, "{refusal}");
        let ending = if open.terminal.is_some() { "\r\n" } else { "\n" };
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

    async fn auth_publickey_offered(&mut self, login: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, SessionError> {
        self.authentication.offered(login, offer.public_key, offer.algorithm)
    }

    // Only this function and the next one store an identity, because russh has verified the client's signature before these calls.
    async fn auth_publickey(&mut self, login: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, SessionError> {
        self.authentication.proven(login, key.public_key, key.algorithm).await
    }

    async fn auth_openssh_certificate(
        &mut self,
        login: &str,
        certificate: &russh::keys::Certificate,
    ) -> Result<Auth, SessionError> {
        self.authentication.certified(login, certificate).await
    }

    async fn auth_password(&mut self, _login: &str, _password: &str) -> Result<Auth, SessionError> {
        self.authentication.refused().await
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _login: &str,
        _submethods: &str,
        _response: Option<Response<'a>>,
    ) -> Result<Auth, SessionError> {
        self.authentication.refused().await
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
        let limits = &self.authentication.config.limits;
        let full = self.channels.len() >= limits.channels_open || self.channels_total >= limits.channels_total;
        if full || !self.authentication.is_done() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        self.channels_total = self.channels_total.saturating_add(1);
        let id = channel.id();
        // Input arrives through `data` below; russh's own queue would block the whole connection.
        let (_, write) = channel.split();
        let open = Open {
            shared: ChannelState::new(),
            write: Some(write),
            terminal: None,
            window: None,
            git_protocol: None,
            colours: None,
        };
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
            tracing::warn!(peer = %self.authentication.peer, "closed a channel whose input is not read");
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
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), SessionError> {
        match self.channels.get_mut(&id) {
            Some(open) if open.write.is_some() && self.authentication.may_have_terminal() => {
                let (window, terminal) = Window::open(term, columns, rows, modes);
                (open.window, open.terminal) = (Some(window), Some(terminal));
                Ok(session.channel_success(id)?)
            }
            _ => Ok(session.channel_failure(id)?),
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        _pix_width: u32,
        _pix_height: u32,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        match self.channels.get(&id).and_then(|open| open.window.as_ref()) {
            Some(window) => {
                window.resize(columns, rows);
                Ok(session.channel_success(id)?)
            }
            None => Ok(session.channel_failure(id)?),
        }
    }

    async fn env_request(&mut self, id: ChannelId, name: &str, value: &str, session: &mut Session) -> Result<(), SessionError> {
        if name == "GIT_PROTOCOL"
            && exec::is_git_protocol(value)
            && let Some(open) = self.channels.get_mut(&id)
        {
            open.git_protocol = Some(value.to_owned());
            return Ok(session.channel_success(id)?);
        }
        if let (Some(wish), Some(open)) = (terminal::wish_for_colours(name, value), self.channels.get_mut(&id)) {
            // The wish against colours wins.
            open.colours = Some(wish && open.colours.unwrap_or(true));
            return Ok(session.channel_success(id)?);
        }
        Ok(session.channel_failure(id)?)
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _session: &mut Session) -> Result<(), SessionError> {
        let Some(open) = self.channels.get(&id) else { return Ok(()) };
        match open.window.as_ref().and_then(|window| window.key(&signal)) {
            // Input without space loses the key, as on a terminal.
            Some(key) => drop(open.shared.input.push(&[key])),
            None if matches!(signal, Sig::INT | Sig::TERM | Sig::HUP | Sig::QUIT | Sig::KILL) => open.shared.stop.cancel(),
            None => {}
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
