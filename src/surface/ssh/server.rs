//! The accept loop, the life of a connection from outside, and the end of all.

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
    Desk, Identity, SshConfig, channel,
    limits::{Gate, Offence, Ticket},
    session::{Connection, Progress, SessionError},
};
use crate::surface::shares::{Share, Shares};

/// How many callers are turned away before there is a pause, when descriptors run out.
const REFUSED_AT_ONCE: usize = 128;
const BACK_OFF: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
/// How long a connection that was told to end may take to do so.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves connections until `shutdown`; then lets running requests finish for as long as the configuration says, and returns
/// when the last connection is gone.
pub async fn serve(listener: TcpListener, config: SshConfig, desk: Arc<dyn Desk>, shutdown: CancellationToken) {
    let listener = match listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener)) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot listen for ssh");
            return;
        }
    };
    let mut house = House {
        gate: Gate::new(config.limits.clone()),
        shares: Shares::new(config.limits.connections_per_user),
        russh: Arc::new(russh_config(&config)),
        config: Arc::new(config),
        desk,
        shutdown: shutdown.clone(),
        cut: CancellationToken::new(),
        connections: JoinSet::new(),
    };
    // Given up for a moment when descriptors run out, to accept and close: else callers would wait without an answer.
    let mut reserve = reserve();
    let mut back_off = BACK_OFF;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = house.connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                back_off = BACK_OFF;
                house.welcome(stream, peer);
            }
            Err(error) if is_out_of_descriptors(&error) => {
                tracing::warn!(%error, "no descriptor for another ssh connection; raise the limit on open files");
                reserve = None;
                for _ in 0..REFUSED_AT_ONCE {
                    match listener.accept().now_or_never() {
                        Some(Ok(refused)) => drop(refused),
                        _ => break,
                    }
                }
                sleep(back_off).await;
                back_off = back_off.saturating_mul(2).min(BACK_OFF_MAX);
            }
            // The caller hung up while it was waiting, or the network is in trouble: neither is ours to end for.
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
    house.drain().await;
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

fn russh_config(config: &SshConfig) -> server::Config {
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
        // The delay of a refused login is ours: clients offer all their keys, and no one should wait for that.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        // Counts offered keys too, and the first question which methods there are.
        max_auth_attempts: limits.offers.saturating_add(1),
        // Only for a client that takes nothing from the network; one that has nothing to say answers the questions below.
        inactivity_timeout: Some(stalled),
        keepalive_interval: Some(limits.keepalive),
        keepalive_max: limits.keepalive_max,
        nodelay: true,
        ..server::Config::default()
    }
}

struct House {
    gate: Arc<Gate>,
    shares: Arc<Shares>,
    russh: Arc<server::Config>,
    config: Arc<SshConfig>,
    desk: Arc<dyn Desk>,
    shutdown: CancellationToken,
    cut: CancellationToken,
    connections: JoinSet<()>,
}

impl House {
    fn welcome(&mut self, stream: TcpStream, peer: SocketAddr) {
        match self.gate.admit(peer.ip(), Instant::now(), chance()) {
            Ok(ticket) => {
                let life = Life {
                    russh: Arc::clone(&self.russh),
                    config: Arc::clone(&self.config),
                    desk: Arc::clone(&self.desk),
                    shutdown: self.shutdown.clone(),
                    cut: self.cut.child_token(),
                    peer,
                    ticket,
                    shares: Arc::clone(&self.shares),
                    share: None,
                };
                self.connections.spawn(life.live(stream));
            }
            Err(refusal) => tracing::debug!(%peer, ?refusal, "turned away"),
        }
    }

    async fn drain(mut self) {
        let all = async { while self.connections.join_next().await.is_some() {} };
        if timeout(self.config.drain, all).await.is_err() {
            tracing::warn!(left = self.connections.len(), "ssh requests still run; closing their connections");
            self.cut.cancel();
            let all = async { while self.connections.join_next().await.is_some() {} };
            let _ = timeout(FAREWELL, all).await;
        }
    }
}

/// A random number from 0 to below 1; which connections are dropped must not be for the caller to choose.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(_) => f64::from(u32::from_ne_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
}

/// Why a connection is ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Handshake,
    Grace,
    Idle,
    Crowded,
    Revoked,
    Shutdown,
}

/// Returns when the key of the connection was taken away. What it has begun goes on, as with any client that goes away.
async fn revoked(desk: Arc<dyn Desk>, progress: Arc<Progress>, peer: SocketAddr) -> End {
    let mut changes = desk.key_changes();
    progress.logged_in.cancelled().await;
    let Some((key, identity)) = progress.login.get() else { return std::future::pending().await };
    // Changes since the connection began count: one may have come between the login and now.
    loop {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        if desk.authenticate(key, peer.ip()).as_ref() != Some(identity) {
            break;
        }
    }
    tracing::info!(%peer, user = %identity.user, "the key of an open connection was taken away");
    End::Revoked
}

/// One connection, seen from outside.
struct Life {
    russh: Arc<server::Config>,
    config: Arc<SshConfig>,
    desk: Arc<dyn Desk>,
    shutdown: CancellationToken,
    cut: CancellationToken,
    peer: SocketAddr,
    ticket: Ticket,
    shares: Arc<Shares>,
    /// Its user's place, once it has one.
    share: Option<Share>,
}

impl Life {
    async fn live(mut self, stream: TcpStream) {
        let peer = self.peer;
        let began = tokio::time::Instant::now();
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "cannot turn off Nagle's algorithm");
        }
        let progress = Progress::new();
        let connection =
            Connection::new(Arc::clone(&self.desk), Arc::clone(&self.config), peer, Arc::clone(&progress), self.shutdown.clone());
        let line = Line::new(stream, self.cut.clone());
        let greeting = server::run_stream(Arc::clone(&self.russh), line, connection);
        let session = tokio::select! {
            greeted = timeout(self.config.limits.handshake, greeting) => greeted,
            () = self.shutdown.cancelled() => return,
        };
        let mut session = match session {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => {
                tracing::debug!(%peer, ?error, "no SSH greeting");
                return self.ticket.offence(Offence::NoLogin, Instant::now());
            }
            Err(_) => {
                tracing::info!(%peer, "no SSH greeting in time");
                return self.ticket.offence(Offence::Grace, Instant::now());
            }
        };
        let handle = session.handle();
        let revoked = revoked(Arc::clone(&self.desk), Arc::clone(&progress), peer);
        let result = tokio::select! {
            result = &mut session => result,
            end = async { tokio::select! { end = self.oversee(&progress, began) => end, end = revoked => end } } => {
                tracing::debug!(%peer, ?end, "ending a connection");
                match end {
                    End::Handshake | End::Grace => {
                        tracing::info!(%peer, "no login in time");
                        self.ticket.offence(Offence::Grace, Instant::now());
                        self.cut.cancel();
                    }
                    End::Idle | End::Crowded | End::Revoked | End::Shutdown => {
                        let why = match end {
                            End::Crowded => "you have too many connections open; end one of them",
                            End::Idle => "idle for too long",
                            End::Revoked => "your key may not log in any more",
                            _ => "the server is restarting",
                        };
                        let told = handle.disconnect(Disconnect::ByApplication, why.to_owned(), String::new());
                        let _ = timeout(FAREWELL, told).await;
                    }
                }
                match timeout(FAREWELL, &mut session).await {
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

    /// Returns when the connection should end.
    async fn oversee(&mut self, progress: &Progress, began: tokio::time::Instant) -> End {
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
        self.ticket.logged_in();
        if let Some((_, Identity { user })) = progress.login.get() {
            self.share = self.shares.take(user);
            if self.share.is_none() {
                tracing::warn!(peer = %self.peer, %user, "too many connections of one user");
                return End::Crowded;
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
                // A client whose request has just ended leaves by itself, and need not read of our end.
                sleep(Duration::from_millis(200)).await;
                return End::Shutdown;
            }
        }
    }

    fn note(&self, progress: &Progress, result: Result<(), SessionError>) {
        let peer = self.peer;
        // Nothing aborts the library's task, so one that cannot be joined has panicked.
        let crashed = matches!(&result, Err(SessionError::Protocol(russh::Error::Join(_))));
        if crashed {
            tracing::error!(%peer, "a connection's task panicked; only that connection ended");
            self.ticket.offence(Offence::Crash, Instant::now());
        } else if !progress.logged_in.is_cancelled() && !self.cut.is_cancelled() {
            let tried = progress.attempts.load(Ordering::Relaxed) > 0;
            let offence = if tried { Offence::RefusedLogin } else { Offence::NoLogin };
            self.ticket.offence(offence, Instant::now());
        }
        if let Err(error) = result {
            tracing::debug!(%peer, ?error, "connection ended");
        }
    }
}

/// The client's socket, with a way to end it from outside at any moment: the library has none.
struct Line {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    is_cut: bool,
}

impl Line {
    fn new(stream: TcpStream, cut: CancellationToken) -> Self {
        Self { stream, cut: Box::pin(cut.cancelled_owned()), is_cut: false }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.is_cut = self.is_cut || self.cut.as_mut().poll(context).is_ready();
        if self.is_cut { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
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
