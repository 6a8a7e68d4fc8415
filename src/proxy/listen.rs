//! Accepting connections inside limits; nothing that a client or the system does ends the loop.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use hyper::{header::HeaderValue, server::conn::http1::Builder, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Inner, ProxyError, io::Patient, relay};

const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 33\r\nRetry-After: 5\r\nConnection: close\r\n\r\nToo many connections. Come back.\n";
/// How long to wait when the system has nothing left to give us.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// How long tunnels may go on after a stop. They do not end by themselves, and whoever has one can open it again.
const TUNNELS: Duration = Duration::from_secs(2);

/// What all requests of one client connection share; its end frees the connection's place.
pub(super) struct Connection {
    pub proxy: Arc<Inner>,
    pub peer: IpAddr,
    pub peer_value: HeaderValue,
    pub trusted: bool,
    pub tasks: TaskTracker,
    /// Ends tunnels when the server stops.
    pub hang_up: CancellationToken,
    peers: Arc<Peers>,
    /// The peer's own; a trusted one has none, but each of its visitors has for each request.
    _place: Option<Place>,
}

/// How many connections each client has; of those behind a trusted proxy, how many requests.
#[derive(Default)]
struct Peers {
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Peers {
    fn enter(self: &Arc<Self>, peer: IpAddr, limit: usize) -> Option<Place> {
        let mut open = self.open.lock();
        let count = open.entry(peer).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Place { peers: self.clone(), peer })
    }
}

/// One of the places that a client may take at a time; free again when it is dropped.
pub(super) struct Place {
    peers: Arc<Peers>,
    peer: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.peers.open.lock();
        if let Some(count) = open.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.peer);
            }
        }
    }
}

impl Connection {
    /// A place for one request of somebody for whom a trusted proxy speaks; nothing if that visitor has too many.
    pub fn visit(&self, visitor: IpAddr) -> Option<Place> {
        let place = self.peers.enter(visitor, self.proxy.settings.max_connections_per_peer);
        if place.is_none() {
            self.proxy.counts.turned_away.fetch_add(1, Relaxed);
        }
        place
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.proxy.counts.open.fetch_sub(1, Relaxed);
    }
}

pub(super) async fn serve(
    proxy: Arc<Inner>,
    listener: std::net::TcpListener,
    shutdown: CancellationToken,
) -> Result<(), ProxyError> {
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(listener))
        .map_err(|source| ProxyError::Listener { source })?;
    let tasks = TaskTracker::new();
    let (hang_up, abort) = (CancellationToken::new(), CancellationToken::new());
    let peers = Arc::new(Peers::default());
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => match enter(&proxy, &peers, address, &tasks, &hang_up) {
                Some(connection) => {
                    tasks.spawn(attend(connection, stream, shutdown.clone(), abort.clone()));
                }
                None => {
                    proxy.counts.turned_away.fetch_add(1, Relaxed);
                    // Whoever does not take this at once goes without.
                    let _ = stream.try_write(BUSY);
                }
            },
            Err(error) => pause_after(&error).await,
        }
    }
    drop(listener);
    tasks.close();
    let limit = proxy.settings.shutdown_limit;
    let tunnels = TUNNELS.min(limit);
    if timeout(tunnels, tasks.wait()).await.is_ok() {
        return Ok(());
    }
    hang_up.cancel();
    if timeout(limit.saturating_sub(tunnels), tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "connections are cut: they did not end within the time that a stop has");
        abort.cancel();
        tasks.wait().await;
    }
    Ok(())
}

/// One client that vanished between its call and our answer is nothing; no free descriptors is a reason to breathe, not to die.
async fn pause_after(error: &io::Error) {
    if !matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted) {
        tracing::warn!(%error, "connections cannot be accepted for the moment");
        sleep(EXHAUSTED_PAUSE).await;
    }
}

fn enter(
    proxy: &Arc<Inner>,
    peers: &Arc<Peers>,
    address: SocketAddr,
    tasks: &TaskTracker,
    hang_up: &CancellationToken,
) -> Option<Arc<Connection>> {
    let settings = &proxy.settings;
    let peer = address.ip().to_canonical();
    let trusted = settings.trusted.contains(&peer);
    if proxy.counts.open.load(Relaxed) >= settings.max_connections {
        return None;
    }
    let place = if trusted { None } else { Some(peers.enter(peer, settings.max_connections_per_peer)?) };
    proxy.counts.open.fetch_add(1, Relaxed);
    proxy.counts.accepted.fetch_add(1, Relaxed);
    let peer_value = super::headers::address_value(peer);
    Some(Arc::new(Connection {
        proxy: proxy.clone(),
        peer,
        peer_value,
        trusted,
        tasks: tasks.clone(),
        hang_up: hang_up.clone(),
        peers: peers.clone(),
        _place: place,
    }))
}

async fn attend(connection: Arc<Connection>, stream: TcpStream, shutdown: CancellationToken, abort: CancellationToken) {
    let settings = &connection.proxy.settings;
    let _ = stream.set_nodelay(true);
    super::io::keep_alive(&stream);
    let mut builder = Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .max_header_size(settings.max_header_size)
        .max_buf_size(settings.max_header_size.max(64 * 1024));
    let stream = TokioIo::new(Patient::new(stream, settings.stall_timeout));
    let shared = connection.clone();
    let service = service_fn(move |request| relay::answer(shared.clone(), request));
    let serving = builder.serve_connection(stream, service).with_upgrades();
    tokio::pin!(serving);
    let stopping = tokio::select! {
        // Errors here are clients that left or sent what is no HTTP; they have had their answer.
        _ = serving.as_mut() => return,
        () = shutdown.cancelled() => true,
    };
    if stopping {
        serving.as_mut().graceful_shutdown();
        tokio::select! {
            _ = serving.as_mut() => {}
            () = abort.cancelled() => {}
        }
    }
}
