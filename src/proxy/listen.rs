//! The accept loop, with the limits on connections and the graceful shutdown. The loop continues after every error of a client or of the
//! system.

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

/// The pause of the accept loop after the system has run out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// The time for which tunnels may continue after the shutdown begins. Tunnels get less time than requests, because a tunnel has no natural
/// end, and its client can open a new tunnel.
const TUNNEL_GRACE: Duration = Duration::from_secs(2);
/// The value of `Retry-After` for a rejected connection, in seconds.
const RETRY_AFTER: u8 = 5;

/// The reason why the proxy closes a connection immediately after accepting the connection.
#[derive(Debug, Clone, Copy)]
enum Rejection {
    /// The proxy has too many connections.
    Overloaded,
    /// The client has too many connections.
    TooManyRequests,
}

impl Rejection {
    /// Returns the complete response, with status line and headers. The proxy sends the response without reading the request, so that a
    /// rejected connection needs no task.
    fn response(self) -> String {
        let (status, text) = match self {
            Self::Overloaded => ("503 Service Unavailable", "Too many connections. Try again in a few seconds.\n"),
            Self::TooManyRequests => {
                ("429 Too Many Requests", "Too many connections from this address. Try again in a few seconds.\n")
            }
        };
        // The format of dates is defined in RFC 9110, section 5.6.7.
        let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
        let length = text.len();
        format!(
            "HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
             Cache-Control: no-store\r\nRetry-After: {RETRY_AFTER}\r\nConnection: close\r\n\r\n{text}"
        )
    }
}

/// Accepts connections until `shutdown` is cancelled. Afterwards, the function closes the listener, and waits for requests in flight, at
/// most `ProxySettings::shutdown_limit`. Tunnels are closed after `TUNNEL_GRACE`, or after `shutdown_limit` if this time is shorter.
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
                    // A new connection has an empty send buffer, which has space for the response. If the write fails nevertheless, the
                    // client gets no response.
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

/// Pauses the loop after an error of `accept`, such as too many open files. There is no pause if the client disconnected before its
/// connection was accepted.
async fn pause_after(error: &io::Error) {
    if !matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted) {
        tracing::warn!(%error, "cannot accept connections");
        sleep(EXHAUSTED_PAUSE).await;
    }
}

/// Checks the connection limits, and counts the connection if the limits are not reached.
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
        has_unread: Arc::default(),
        clients: clients.clone(),
        _permit: permit,
    }))
}

/// Serves one connection until the connection is closed. After `shutdown` is cancelled, the connection is closed as soon as no request is
/// in flight; after `abort` is cancelled, the connection is closed at once.
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
    let stream = WriteTimeoutStream::new(stream, settings.stall_timeout, connection.has_unread.clone());
    let stream = TokioIo::new(stream);
    let shared = connection.clone();
    let service = service_fn(move |request| relay::answer(shared.clone(), request));
    let serving = builder.serve_connection(stream, service).with_upgrades();
    tokio::pin!(serving);
    let stopping = tokio::select! {
        // An error means that the client disconnected, or that the client sent invalid HTTP, to which hyper has already responded.
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
