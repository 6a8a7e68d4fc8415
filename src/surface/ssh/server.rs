//! The accept loop, the task that oversees each connection, and the shutdown.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use russh::{Disconnect, MethodKind, MethodSet, SshId, server};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{
    channel,
    config::SshServerConfig,
    handler::{ExecHandler, SshIdentity},
    limits::{ConnectionLimiter, ConnectionPermit, Offence},
    progress::{ConnectionProgress, SessionError},
    session::SshConnection,
};
use crate::surface::user_limit::{UserLimit, UserPermit};

/// The maximum number of connections that are closed at once when descriptors run out, before the accept loop pauses.
const MAX_REFUSED_AT_ONCE: usize = 128;
const BACK_OFF: Duration = Duration::from_millis(50);
const MAX_BACK_OFF: Duration = Duration::from_secs(1);
/// The time that a connection may take to end after the server has sent a disconnect message.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves connections until `shutdown` is cancelled. Running requests may then finish within the configured time; after this time, the
/// connections are cut. Returns when the last connection has ended, at the latest two seconds after the cut.
pub async fn serve(listener: TcpListener, config: SshServerConfig, handler: Arc<dyn ExecHandler>, shutdown: CancellationToken) {
    let listener = match listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener)) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot listen for ssh");
            return;
        }
    };
    let mut ssh = SshServer {
        limiter: ConnectionLimiter::new(config.limits.clone()),
        user_limit: UserLimit::new(config.limits.connections_per_user),
        russh: Arc::new(russh_config(&config)),
        config: Arc::new(config),
        handler,
        shutdown: shutdown.clone(),
        cut: CancellationToken::new(),
        connections: JoinSet::new(),
    };
    // `reserve` is a spare descriptor, which is closed when descriptors run out, so that waiting clients can be accepted and disconnected.
    let mut reserve = reserve();
    let mut back_off = BACK_OFF;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = ssh.connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                back_off = BACK_OFF;
                ssh.accept(stream, peer);
            }
            Err(error) if is_out_of_descriptors(&error) => {
                tracing::warn!(%error, "no descriptor for another ssh connection; raise the limit on open files");
                reserve = None;
                for _ in 0..MAX_REFUSED_AT_ONCE {
                    match listener.accept().now_or_never() {
                        Some(Ok(refused)) => drop(refused),
                        _ => break,
                    }
                }
                sleep(back_off).await;
                back_off = back_off.saturating_mul(2).min(MAX_BACK_OFF);
            }
            // The client disconnected while it was waiting, or the network failed. The server continues.
            Err(error) => {
                tracing::debug!(%error, "a connection failed before it was accepted");
                sleep(Duration::from_millis(5)).await;
            }
        }
        if reserve.is_none() {
            reserve = self::reserve();
        }
    }
    drop(listener);
    ssh.drain().await;
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

fn russh_config(config: &SshServerConfig) -> server::Config {
    let limits = &config.limits;
    let mut methods = MethodSet::empty();
    methods.push(MethodKind::PublicKey);
    let stalled = limits.keepalive.saturating_mul(u32::try_from(limits.keepalive_max).unwrap_or(4).saturating_add(1));
    server::Config {
        server_id: SshId::Standard("SSH-2.0-larder".into()),
        methods,
        keys: vec![config.host_key.clone()],
        preferred: config.profile.preferred(),
        window_size: channel::WINDOW,
        event_buffer_size: 32,
        // `session` itself delays refused logins. With a time here, russh would also delay the answers to keys that are only offered.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        // russh also counts offered keys, and the first request, which asks for the methods.
        max_auth_attempts: limits.offers.saturating_add(1),
        // This limit is for clients that read nothing from the network. An idle client answers keepalives.
        inactivity_timeout: Some(stalled),
        keepalive_interval: Some(limits.keepalive),
        keepalive_max: limits.keepalive_max,
        nodelay: true,
        ..server::Config::default()
    }
}

struct SshServer {
    limiter: Arc<ConnectionLimiter>,
    user_limit: Arc<UserLimit>,
    russh: Arc<server::Config>,
    config: Arc<SshServerConfig>,
    handler: Arc<dyn ExecHandler>,
    shutdown: CancellationToken,
    cut: CancellationToken,
    connections: JoinSet<()>,
}

impl SshServer {
    fn accept(&mut self, stream: TcpStream, peer: SocketAddr) {
        match self.limiter.acquire(peer.ip(), Instant::now(), random_fraction()) {
            Ok(permit) => {
                let task = ConnectionTask {
                    russh: Arc::clone(&self.russh),
                    config: Arc::clone(&self.config),
                    handler: Arc::clone(&self.handler),
                    shutdown: self.shutdown.clone(),
                    cut: self.cut.child_token(),
                    peer,
                    permit,
                    user_limit: Arc::clone(&self.user_limit),
                    user_permit: None,
                };
                self.connections.spawn(task.run(stream));
            }
            Err(refusal) => tracing::debug!(%peer, ?refusal, "connection refused"),
        }
    }

    async fn drain(mut self) {
        let all = async { while self.connections.join_next().await.is_some() {} };
        if timeout(self.config.drain, all).await.is_err() {
            tracing::warn!(left = self.connections.len(), "ssh requests still run; closing their connections");
            self.cut.cancel();
            let all = async { while self.connections.join_next().await.is_some() {} };
            let _ = timeout(END_TIMEOUT, all).await;
        }
    }
}

/// Returns a random number from 0 to below 1. Clients must not be able to predict which connections are dropped.
fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(_) => f64::from(u32::from_ne_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
}

/// The reason why the server ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Handshake,
    Grace,
    Idle,
    TooManyConnections,
    Revoked,
    Shutdown,
}

/// Waits until the key of the connection is removed or expires. Running requests continue, as after any disconnect.
async fn revoked(handler: Arc<dyn ExecHandler>, progress: Arc<ConnectionProgress>, peer: SocketAddr) -> End {
    let mut changes = handler.key_changes();
    progress.logged_in.cancelled().await;
    let Some((credential, identity)) = progress.login.get() else { return std::future::pending().await };
    // The receiver was created before the login, so this loop also sees a change that happened between the login and the first wait.
    loop {
        let later = async {
            match handler.recheck_after(identity) {
                Some(left) => sleep(left).await,
                None => std::future::pending().await,
            }
        };
        let closed = tokio::select! {
            changed = changes.changed() => changed.is_err(),
            () = later => false,
        };
        if closed {
            return std::future::pending().await;
        }
        if handler.authenticate(credential, peer.ip().to_canonical()).as_ref() != Ok(identity) {
            break;
        }
    }
    tracing::info!(%peer, user = %identity.user, "the key of an open connection was removed or has expired");
    End::Revoked
}

/// The task that oversees one connection: its deadlines, its limits and its end.
struct ConnectionTask {
    russh: Arc<server::Config>,
    config: Arc<SshServerConfig>,
    handler: Arc<dyn ExecHandler>,
    shutdown: CancellationToken,
    cut: CancellationToken,
    peer: SocketAddr,
    permit: ConnectionPermit,
    user_limit: Arc<UserLimit>,
    /// The user's permit, after the login.
    user_permit: Option<UserPermit>,
}

impl ConnectionTask {
    async fn run(mut self, stream: TcpStream) {
        let peer = self.peer;
        let began = tokio::time::Instant::now();
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "cannot turn off Nagle's algorithm");
        }
        let progress = ConnectionProgress::new();
        let connection = SshConnection::new(
            Arc::clone(&self.handler),
            Arc::clone(&self.config),
            peer,
            Arc::clone(&progress),
            self.shutdown.clone(),
        );
        let stream = CancellableStream::new(stream, self.cut.clone());
        let session_start = server::run_stream(Arc::clone(&self.russh), stream, connection);
        let session = tokio::select! {
            started = timeout(self.config.limits.handshake, session_start) => started,
            () = self.shutdown.cancelled() => return,
        };
        let mut session = match session {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => {
                tracing::debug!(%peer, ?error, "no SSH greeting");
                return self.permit.offence(Offence::NoLogin, Instant::now());
            }
            Err(_) => {
                tracing::info!(%peer, "no SSH greeting in time");
                return self.permit.offence(Offence::Grace, Instant::now());
            }
        };
        let handle = session.handle();
        let revoked = revoked(Arc::clone(&self.handler), Arc::clone(&progress), peer);
        let result = tokio::select! {
            result = &mut session => result,
            end = async { tokio::select! { end = self.oversee(&progress, began) => end, end = revoked => end } } => {
                tracing::debug!(%peer, ?end, "ending a connection");
                match end {
                    End::Handshake | End::Grace => {
                        tracing::info!(%peer, "no login in time");
                        self.permit.offence(Offence::Grace, Instant::now());
                        self.cut.cancel();
                    }
                    End::Idle | End::TooManyConnections | End::Revoked | End::Shutdown => {
                        let why = match end {
                            End::TooManyConnections => "you have too many open connections; close a connection",
                            End::Idle => "the connection was idle for too long",
                            End::Revoked => "your key was removed or has expired",
                            _ => "the server is stopping",
                        };
                        let told = handle.disconnect(Disconnect::ByApplication, why.to_owned(), String::new());
                        let _ = timeout(END_TIMEOUT, told).await;
                    }
                }
                match timeout(END_TIMEOUT, &mut session).await {
                    Ok(result) => result,
                    Err(_) => {
                        self.cut.cancel();
                        session.await
                    }
                }
            }
        };
        self.note(&progress, result);
    }

    /// Waits until the connection should end, and returns the reason.
    async fn oversee(&mut self, progress: &ConnectionProgress, began: tokio::time::Instant) -> End {
        let limits = &self.config.limits;
        let login = async {
            if timeout_at(began + limits.handshake, progress.keyed.cancelled()).await.is_err() {
                return Some(End::Handshake);
            }
            timeout_at(began + limits.login_grace, progress.logged_in.cancelled()).await.err().map(|_| End::Grace)
        };
        tokio::select! {
            late = login => if let Some(end) = late {
                return end;
            },
            () = self.shutdown.cancelled() => return End::Shutdown,
        }
        self.permit.logged_in();
        if let Some((_, SshIdentity { user, .. })) = progress.login.get() {
            self.user_permit = self.user_limit.acquire(user);
            if self.user_permit.is_none() {
                tracing::warn!(peer = %self.peer, %user, "too many connections of one user");
                return End::TooManyConnections;
            }
        }
        let mut busy = progress.busy.subscribe();
        loop {
            // The sender lives as long as `progress`, so these waits do not fail.
            if busy.wait_for(|count| *count == 0).await.is_err() {
                return End::Shutdown;
            }
            let shutdown = tokio::select! {
                () = sleep(self.config.limits.idle) => return End::Idle,
                changed = async { busy.wait_for(|count| *count > 0).await.is_err() } => changed,
                () = self.shutdown.cancelled() => true,
            };
            if shutdown {
                // A client whose request has just ended disconnects by itself during this pause, without a message about the shutdown.
                sleep(Duration::from_millis(200)).await;
                return End::Shutdown;
            }
        }
    }

    fn note(&self, progress: &ConnectionProgress, result: Result<(), SessionError>) {
        let peer = self.peer;
        // Nothing aborts russh's task, so a task that cannot be joined has panicked.
        let crashed = matches!(&result, Err(SessionError::Protocol(russh::Error::Join(_))));
        if crashed {
            tracing::error!(%peer, "a connection's task panicked; only that connection ended");
            self.permit.offence(Offence::Crash, Instant::now());
        } else if !progress.logged_in.is_cancelled() && !self.cut.is_cancelled() {
            let tried = progress.attempts.load(Ordering::Relaxed) > 0;
            let offence = if tried { Offence::RefusedLogin } else { Offence::NoLogin };
            self.permit.offence(offence, Instant::now());
        }
        if let Err(error) = result {
            tracing::debug!(%peer, ?error, "connection ended");
        }
    }
}

/// The client's socket, which the server can close at any time. russh has no function that closes the socket.
struct CancellableStream {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    is_cut: bool,
}

impl CancellableStream {
    fn new(stream: TcpStream, cut: CancellationToken) -> Self {
        Self { stream, cut: Box::pin(cut.cancelled_owned()), is_cut: false }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.is_cut = self.is_cut || self.cut.as_mut().poll(context).is_ready();
        if self.is_cut { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl AsyncRead for CancellableStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for CancellableStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
