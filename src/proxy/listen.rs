//! The accept loop: connection limits, and the graceful stop. No error of a client or of the system ends the loop.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use hyper::{server::conn::http1::Builder, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    clients::{ClientConnection, Clients},
    headers,
    io::{WriteTimeoutStream, keep_alive},
    relay,
    settings::ProxyError,
    shared::ProxyState,
};

/// The pause after the system has run out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// The time that tunnels may continue after the stop begins. Tunnels do not end by themselves, and clients can reopen them.
const TUNNEL_GRACE: Duration = Duration::from_secs(2);
/// The value of `Retry-After` for a rejected connection, in seconds.
const RETRY_AFTER: u8 = 5;

/// The reason why a connection is closed right after it was accepted.
#[derive(Debug, Clone, Copy)]
enum Rejection {
    /// The proxy has too many connections.
    Overloaded,
    /// The client has too many connections.
    TooManyRequests,
}

impl Rejection {
    /// Returns the response, with its head. The response is sent before the request is read, so that a rejected connection needs no task.
    fn response(self) -> String {
        let (status, text) = match self {
            Self::Overloaded => ("503 Service Unavailable", "Too many connections. Try again in a few seconds.\n"),
            Self::TooManyRequests => {
                ("429 Too Many Requests", "Too many connections from this address. Try again in a few seconds.\n")
            }
        };
        // RFC 9110, section 5.6.7: the format of dates.
        let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
        let length = text.len();
        format!(
            "HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
             Cache-Control: no-store\r\nRetry-After: {RETRY_AFTER}\r\nConnection: close\r\n\r\n{text}"
        )
    }
}

/// Accepts connections until `shutdown` is cancelled. Then closes the listener, and waits for requests and tunnels in flight.
pub(super) async fn serve(
    proxy: Arc<ProxyState>,
    listener: std::net::TcpListener,
    shutdown: CancellationToken,
) -> Result<(), ProxyError> {
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(listener))
        .map_err(|source| ProxyError::Listener { source })?;
    let tasks = TaskTracker::new();
    let (hang_up, abort) = (CancellationToken::new(), CancellationToken::new());
    let clients = Arc::new(Clients::default());
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => match enter(&proxy, &clients, address, &tasks, &hang_up) {
                Ok(connection) => {
                    tasks.spawn(attend(connection, stream, shutdown.clone(), abort.clone()));
                }
                Err(rejection) => {
                    proxy.counts.turned_away.fetch_add(1, Relaxed);
                    // A new connection has an empty send buffer, so the write does not block. If it would block, the client gets no
                    // response.
                    let _ = stream.try_write(rejection.response().as_bytes());
                }
            },
            Err(error) => pause_after(&error).await,
        }
    }
    drop(listener);
    tasks.close();
    let limit = proxy.settings.shutdown_limit;
    let tunnels = TUNNEL_GRACE.min(limit);
    if timeout(tunnels, tasks.wait()).await.is_ok() {
        return Ok(());
    }
    hang_up.cancel();
    if timeout(limit.saturating_sub(tunnels), tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "connections cut at the shutdown limit");
        abort.cancel();
        tasks.wait().await;
    }
    Ok(())
}

/// Pauses the loop after an error of `accept`, such as too many open files. Does not pause if the client disconnected before it was
/// accepted.
async fn pause_after(error: &io::Error) {
    if !matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted) {
        tracing::warn!(%error, "cannot accept connections");
        sleep(EXHAUSTED_PAUSE).await;
    }
}

/// Counts a new connection and checks the limits.
fn enter(
    proxy: &Arc<ProxyState>,
    clients: &Arc<Clients>,
    address: SocketAddr,
    tasks: &TaskTracker,
    hang_up: &CancellationToken,
) -> Result<Arc<ClientConnection>, Rejection> {
    let settings = &proxy.settings;
    let peer = address.ip().to_canonical();
    let trusted = settings.trusted.contains(&peer);
    if proxy.counts.open.load(Relaxed) >= settings.max_connections {
        return Err(Rejection::Overloaded);
    }
    let permit = if trusted {
        None
    } else {
        Some(clients.enter(peer, settings.max_connections_per_peer).ok_or(Rejection::TooManyRequests)?)
    };
    proxy.counts.open.fetch_add(1, Relaxed);
    proxy.counts.accepted.fetch_add(1, Relaxed);
    Ok(Arc::new(ClientConnection {
        proxy: proxy.clone(),
        peer,
        peer_value: headers::address_value(peer),
        trusted,
        tasks: tasks.clone(),
        hang_up: hang_up.clone(),
        clients: clients.clone(),
        _permit: permit,
    }))
}

/// Serves one connection until it is closed, or until it has no request in flight after `shutdown` is cancelled.
async fn attend(connection: Arc<ClientConnection>, stream: TcpStream, shutdown: CancellationToken, abort: CancellationToken) {
    let settings = &connection.proxy.settings;
    let _ = stream.set_nodelay(true);
    keep_alive(&stream);
    let mut builder = Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .max_header_size(settings.max_header_size)
        .max_buf_size(settings.max_header_size.max(64 * 1024));
    let stream = TokioIo::new(WriteTimeoutStream::new(stream, settings.stall_timeout));
    let shared = connection.clone();
    let service = service_fn(move |request| relay::answer(shared.clone(), request));
    let serving = builder.serve_connection(stream, service).with_upgrades();
    tokio::pin!(serving);
    let stopping = tokio::select! {
        // An error means that the client disconnected or sent invalid HTTP, which hyper has already answered.
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
