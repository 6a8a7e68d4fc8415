//! One instance of an application, with a pool of idle connections. New connections are opened through the target's [`Connector`].

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    connect::{ConnectError, Connector},
    io,
    settings::ProxySettings,
    upload::UploadBody,
};

/// The maximum number of idle connections per instance.
const MAX_IDLE: usize = 128;
/// The idle time after which a connection is not used again, because the application has probably closed the connection.
pub(super) const MAX_IDLE_AGE: Duration = Duration::from_secs(30);
/// The time after a failed connection during which an instance is tried only after all other instances.
const REST: Duration = Duration::from_secs(1);
/// The time limit for an idle connection to become ready for the next request.
const READY_WAIT: Duration = Duration::from_millis(100);

/// One instance and its pool of idle connections.
pub(super) struct Endpoint {
    pub address: SocketAddr,
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    /// The stack of idle connections, each with the start of its idle time. The most recently used connection is on top.
    idle: Vec<(SendRequest<UploadBody>, Instant)>,
    /// The time of the last failed attempt to connect; `None` after a successful attempt.
    refused: Option<Instant>,
    /// True if the log names the foreign listener of this outage.
    foreign: bool,
}

impl Endpoint {
    pub fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self { address, pool: Mutex::default() })
    }

    /// Returns true if the last attempt to connect to the instance failed less than `REST` before `now`.
    pub fn was_resting(&self, now: Instant) -> bool {
        self.pool.lock().refused.is_some_and(|refused| refused <= now && now < refused + REST)
    }

    /// Closes all idle connections.
    pub fn clear(&self) {
        self.pool.lock().idle.clear();
    }

    /// Keeps a connection for the next request. If the pool is full, the connection is closed.
    pub fn give_back(&self, sender: SendRequest<UploadBody>) {
        let mut pool = self.pool.lock();
        if pool.idle.len() < MAX_IDLE {
            pool.idle.push((sender, Instant::now()));
        }
    }

    /// Takes an idle connection from the pool. Returns `None` if no connection can be reused, or if the most recently used connection has
    /// been idle for longer than `max_idle`.
    pub async fn pooled(&self, max_idle: Duration) -> Option<SendRequest<UploadBody>> {
        loop {
            let mut sender = {
                let idle = &mut self.pool.lock().idle;
                let age = idle.last()?.1.elapsed();
                if age > MAX_IDLE_AGE {
                    // All other connections in the stack have been idle for longer.
                    idle.clear();
                }
                if age > max_idle {
                    return None;
                }
                idle.pop()?.0
            };
            if sender.is_ready() {
                return Some(sender);
            }
            // Either the connection's task has not processed the end of the last response yet, or the connection is closed.
            if let Ok(Ok(())) = timeout(READY_WAIT, sender.ready()).await {
                return Some(sender);
            }
        }
    }

    /// Opens a connection and starts the task that drives the connection. The task stops when the connection is closed or `cut` is
    /// cancelled.
    pub async fn connect(
        &self,
        settings: &ProxySettings,
        connector: &dyn Connector,
        cut: &CancellationToken,
    ) -> Result<SendRequest<UploadBody>, ConnectError> {
        let address = self.address;
        let failed = |source| ConnectError::Io { address, source };
        let connected = async {
            let stream = connector.connect(address).await?;
            stream.set_nodelay(true).map_err(failed)?;
            io::keep_alive(&stream);
            let mut builder = Builder::new();
            builder.max_header_size(settings.max_header_size).max_buf_size(settings.max_header_size.max(64 * 1024));
            builder.handshake(TokioIo::new(stream)).await.map_err(|error| failed(std::io::Error::other(error)))
        };
        let limit = settings.connect_timeout;
        let result = timeout(limit, connected).await.unwrap_or(Err(ConnectError::Timeout { address, limit }));
        match result {
            Ok((sender, connection)) => {
                let mut pool = self.pool.lock();
                (pool.refused, pool.foreign) = (None, false);
                drop(pool);
                let cut = cut.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        // If a request is in flight, the request receives the error. Without a request in flight, an error only closes the
                        // connection.
                        _ = connection.with_upgrades() => {}
                        () = cut.cancelled() => {}
                    }
                });
                Ok(sender)
            }
            Err(error) => {
                let mut pool = self.pool.lock();
                pool.refused = Some(Instant::now());
                // The log names a foreign listener only once per outage.
                let is_news = matches!(error, ConnectError::Foreign { .. }) && !std::mem::replace(&mut pool.foreign, true);
                drop(pool);
                if is_news {
                    tracing::warn!(%address, %error, "application unreachable");
                }
                Err(error)
            }
        }
    }
}
