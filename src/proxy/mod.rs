//! The HTTP front door: routes by host, holds requests, switches and drains.
//!
//! A [`Route`] is an environment's way in, a [`Target`] the running instances behind it. [`Route::switch`] puts a new target in the
//! place of the old one at once; [`Retired::drain`] then waits for what the old one still answers. The way of one request is told in
//! `relay.rs`; what a client may send and what an application gets to see of it, in `host.rs` and `headers.rs`.

mod access;
mod body;
#[cfg(test)]
mod bounds_tests;
mod headers;
mod host;
mod io;
mod listen;
mod pages;
mod probe;
mod relay;
mod route;
#[cfg(test)]
mod switch_tests;
mod target;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tunnel;

use std::{
    collections::HashMap,
    net::{IpAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use access::{AccessLine, ProxyStats, Stats};
pub use probe::{ProbeError, fetch, probe};
pub use route::{Hold, Route, State};
pub use target::{DrainReport, Retired, Target};

/// What the front door could not do.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// A route was given a host that no request could ever carry.
    #[error("cannot route {host:?}: it is not a host name or address; use a name such as shop.example.org")]
    Host {
        /// The host as it was given.
        host: String,
    },
    /// The inherited socket is not one that connections can be accepted on.
    #[error("cannot serve HTTP on the listening socket that was handed over")]
    Listener {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// The limits of the front door; the defaults suit one server with some dozens of applications.
#[derive(Debug, Clone)]
pub struct ProxySettings {
    /// Connections of clients at one time, tunnels included; more are answered 503 and closed.
    pub max_connections: usize,
    /// Connections of one client address at one time. Trusted peers are not counted; of each visitor that they name, the requests are.
    pub max_connections_per_peer: usize,
    /// Bytes of a request's head, and of a response's.
    pub max_header_size: usize,
    /// How long a client may take for a request's head; also how long a connection may idle between two requests.
    pub header_timeout: Duration,
    /// How long a client may send nothing in the middle of a body, or take nothing of a response; also how long an application may take
    /// nothing of a body.
    pub stall_timeout: Duration,
    /// How long one instance may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long instances may refuse connections, because they are being restarted, before the client is told.
    pub connect_patience: Duration,
    /// How long an application may take for its response's head, counted from the end of the request.
    pub response_timeout: Duration,
    /// Requests of one route that may wait in a hold; more get the maintenance page at once.
    pub max_waiting: usize,
    /// How long `serve` lets requests and tunnels finish after it was told to stop.
    pub shutdown_limit: Duration,
    /// Other proxies in front of this one: what they say about a visitor's address and scheme is believed.
    pub trusted: Vec<IpAddr>,
    /// What clients speak to reach us, for `X-Forwarded-Proto`: `http`, or `https` behind something that ends TLS.
    pub scheme: Scheme,
    /// Whether the page of a failed application shows why it failed. For people who try things out, not for the public.
    pub reveal_reasons: bool,
}

/// The scheme under which clients reach the front door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// TLS, ended in front of us.
    Https,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            max_connections: 8192,
            max_connections_per_peer: 1024,
            max_header_size: 32 * 1024,
            header_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            connect_patience: Duration::from_secs(3),
            response_timeout: Duration::from_secs(60),
            max_waiting: 1000,
            shutdown_limit: Duration::from_secs(30),
            trusted: Vec::new(),
            scheme: Scheme::Http,
            reveal_reasons: false,
        }
    }
}

/// The front door. Clones share one table of routes.
#[derive(Clone)]
pub struct Proxy {
    inner: Arc<Inner>,
}

struct Inner {
    settings: ProxySettings,
    routes: RwLock<HashMap<Box<str>, Arc<Route>>>,
    pages: pages::Pages,
    ids: headers::RequestIds,
    counts: access::ProxyCounts,
    log: RwLock<Option<mpsc::Sender<AccessLine>>>,
    missed: AtomicU64,
    opening: RwLock<Option<Arc<Threshold>>>,
}

/// Where requests wait while routes are being opened.
#[derive(Default)]
struct Threshold {
    opened: CancellationToken,
    waiting: AtomicUsize,
}

/// While it lives, requests that nobody can answer yet wait; those that lead to a live target pass. Dropping it lets all of them go,
/// to whatever their hosts lead to by then.
#[must_use = "the opening ends when it is dropped"]
pub struct Opening {
    inner: Arc<Inner>,
    threshold: Arc<Threshold>,
}

impl Opening {
    /// Requests that wait for its end.
    pub fn waiting(&self) -> usize {
        self.threshold.waiting.load(SeqCst)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        *self.inner.opening.write() = None;
        self.threshold.opened.cancel();
    }
}

impl Proxy {
    /// A front door without routes.
    pub fn new(settings: ProxySettings) -> Self {
        Self {
            inner: Arc::new(Inner {
                settings,
                routes: RwLock::default(),
                pages: pages::Pages::new(),
                ids: headers::RequestIds::new(),
                counts: access::ProxyCounts::default(),
                log: RwLock::new(None),
                missed: AtomicU64::new(0),
                opening: RwLock::new(None),
            }),
        }
    }

    /// Accepts connections until `shutdown`, then lets what is under way finish, up to `shutdown_limit`.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), ProxyError> {
        listen::serve(self.inner.clone(), listener, shutdown).await
    }

    /// Begins an opening, at a start for example, when routes are still being set and targets found. Whoever calls ends it soon:
    /// requests wait for it without a limit of their own. More of them than may wait in a hold are answered at once.
    pub fn opening(&self) -> Opening {
        let threshold = Arc::<Threshold>::default();
        *self.inner.opening.write() = Some(threshold.clone());
        Opening { inner: self.inner.clone(), threshold }
    }

    /// Sends the requests for `host` to `route`, from the next request on; returns the route that had the host before.
    pub fn set_route(&self, host: &str, route: Arc<Route>) -> Result<Option<Arc<Route>>, ProxyError> {
        let key = host::normalise(host).ok_or_else(|| ProxyError::Host { host: host.chars().take(300).collect() })?;
        Ok(self.inner.routes.write().insert(key.into_owned().into_boxed_str(), route))
    }

    /// Forgets `host`; returns the route that it had.
    pub fn remove_route(&self, host: &str) -> Option<Arc<Route>> {
        let key = host::normalise(host)?;
        self.inner.routes.write().remove(key.as_ref())
    }

    /// The route of `host`, written in any case, with or without a port.
    pub fn route(&self, host: &str) -> Option<Arc<Route>> {
        let key = host::normalise(host)?;
        self.inner.routes.read().get(key.as_ref()).cloned()
    }

    /// All hosts and their routes, sorted by host.
    pub fn routes(&self) -> Vec<(String, Arc<Route>)> {
        let mut all: Vec<_> = self.inner.routes.read().iter().map(|(host, route)| (host.to_string(), route.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Sends a line for each finished request to `sender`. A slow reader costs lines, never requests: the next line that fits says in
    /// `missed` how many were dropped before it.
    pub fn access_log(&self, sender: mpsc::Sender<AccessLine>) {
        *self.inner.log.write() = Some(sender);
    }

    /// The numbers of the front door as a whole.
    pub fn stats(&self) -> ProxyStats {
        self.inner.counts.snapshot()
    }
}
