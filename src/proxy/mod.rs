//! The HTTP proxy in front of all applications. The proxy routes requests by host, can hold requests back, switches between targets, and
//! drains old targets.
//!
//! A [`Route`] sends requests to one environment; a [`RouteTarget`] is the set of running instances behind a route. [`Route::switch`]
//! replaces the live target at once; [`Retired::drain`] waits for the requests that the old target still answers. Read [`Proxy`] first,
//! then `relay.rs` for the path of one request. `request.rs` defines which requests are valid, and `headers.rs` which headers an
//! application receives.

mod access;
mod clients;
mod connect;
mod counts;
mod endpoint;
mod headers;
mod host;
mod io;
#[cfg(test)]
mod limits_tests;
mod listen;
mod pages;
mod probe;
mod relay;
mod request;
mod response;
mod route;
mod settings;
mod shared;
#[cfg(test)]
mod switch_tests;
mod target;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod upload;
mod waiting;
mod websocket;

use std::{net::TcpListener, sync::Arc};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use access::AccessLine;
pub use connect::{ConnectError, Connector, TcpConnector};
pub use counts::{ProxyStats, Stats};
pub use probe::{ProbeError, fetch, probe};
pub use route::{Hold, Route, RouteState};
pub use settings::{ProxyError, ProxySettings, Scheme};
pub use target::{DrainReport, Retired, RouteTarget};
pub use waiting::StartupGate;

use shared::ProxyState;

/// The HTTP proxy. Clones share one table of routes.
#[derive(Clone)]
pub struct Proxy {
    shared: Arc<ProxyState>,
}

impl Proxy {
    /// Creates a proxy without routes.
    pub fn new(settings: ProxySettings) -> Self {
        Self { shared: Arc::new(ProxyState::new(settings)) }
    }

    /// Accepts connections until `shutdown` is cancelled. Afterwards, the method waits until the requests in flight have finished, at most
    /// [`ProxySettings::shutdown_limit`]. Tunnels are closed after at most two seconds.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), ProxyError> {
        listen::serve(self.shared.clone(), listener, shutdown).await
    }

    /// Closes the startup gate while the server sets routes and starts live releases. Requests for hosts without a live route wait until
    /// the gate opens. The wait has no time limit, so the caller must open the gate soon by dropping the returned guard.
    /// [`ProxySettings::max_waiting`] limits the number of waiting requests.
    pub fn close_startup_gate(&self) -> StartupGate {
        StartupGate::close(&self.shared.gate)
    }

    /// Sends all later requests for `host` to `route`. Returns the previous route of the host. Fails if `host` is invalid.
    pub fn set_route(&self, host: &str, route: Arc<Route>) -> Result<Option<Arc<Route>>, ProxyError> {
        let key = host::normalise(host).ok_or_else(|| ProxyError::Host { host: host.chars().take(300).collect() })?;
        Ok(self.shared.routes.write().insert(key.into_owned().into_boxed_str(), route))
    }

    /// Removes and returns the route of `host`.
    pub fn remove_route(&self, host: &str) -> Option<Arc<Route>> {
        let key = host::normalise(host)?;
        self.shared.routes.write().remove(key.as_ref())
    }

    /// Returns the route of `host`, which may be written in any case and with a port.
    pub fn route(&self, host: &str) -> Option<Arc<Route>> {
        let key = host::normalise(host)?;
        self.shared.routes.read().get(key.as_ref()).cloned()
    }

    /// Returns all hosts and their routes, sorted by host.
    pub fn routes(&self) -> Vec<(String, Arc<Route>)> {
        let mut all: Vec<_> = self.shared.routes.read().iter().map(|(host, route)| (host.to_string(), route.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Sends a line for each finished request to `sender`. If the reader is too slow, lines are dropped. [`AccessLine::missed`] of the next
    /// line is the number of dropped lines.
    pub fn access_log(&self, sender: mpsc::Sender<AccessLine>) {
        self.shared.log.send_to(sender);
    }

    /// Returns the traffic of the whole proxy.
    pub fn stats(&self) -> ProxyStats {
        self.shared.counts.snapshot(self.shared.log.dropped())
    }
}
