//! The running instances behind a route: load balancing, requests in flight, and draining.
//!
//! A [`RouteTarget`] is live until [`RouteTarget::retire`] converts the target to [`Retired`]. A retired target gets no new requests. A
//! retired target is either drained, or restored if the switch is undone. In both cases, the requests in flight stay counted.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};

use hyper::client::conn::http1::SendRequest;
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    connect::{ConnectError, Connector},
    endpoint::Endpoint,
    settings::ProxySettings,
    upload::UploadBody,
};

/// The time limit for the end of requests and tunnels whose connections were cut.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// The instances of one release in one slot. Clones refer to the same instances.
#[derive(Clone)]
pub struct RouteTarget {
    shared: Arc<Shared>,
}

struct Shared {
    endpoints: Box<[Arc<Endpoint>]>,
    connector: Arc<dyn Connector>,
    /// The number of leases that were requested so far. The next instance in round-robin order is derived from this number.
    turn: AtomicUsize,
    /// The number of requests and tunnels in flight.
    in_flight: AtomicUsize,
    /// The number of tunnels in flight.
    tunnels: AtomicUsize,
    /// The notification that the counts changed: a request became a tunnel, or no request is in flight and at most tunnels are left.
    quiet: Notify,
    retired: AtomicBool,
    /// The token that is cancelled to close every connection to the instances.
    cut: CancellationToken,
    /// The token that is cancelled to close every tunnel. A child of `cut`.
    tunnel_cut: CancellationToken,
}

/// The result of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainReport {
    /// Requests and tunnels that finished within the time limit of the drain.
    pub finished: usize,
    /// Requests and tunnels that were cut at the time limit.
    pub cut: usize,
}

/// A target that gets no new requests. Requests and tunnels in flight continue.
#[must_use = "drain the target before its instances are stopped"]
pub struct Retired {
    target: RouteTarget,
}

impl RouteTarget {
    /// Creates a target of the instances at `addresses`, one address for each `web` process. Connections are opened through `connector`.
    pub fn new(addresses: Vec<SocketAddr>, connector: Arc<dyn Connector>) -> Self {
        let cut = CancellationToken::new();
        Self {
            shared: Arc::new(Shared {
                endpoints: addresses.into_iter().map(Endpoint::new).collect(),
                connector,
                turn: AtomicUsize::new(0),
                in_flight: AtomicUsize::new(0),
                tunnels: AtomicUsize::new(0),
                quiet: Notify::new(),
                retired: AtomicBool::new(false),
                tunnel_cut: cut.child_token(),
                cut,
            }),
        }
    }

    /// Returns the addresses of the instances.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.shared.endpoints.iter().map(|endpoint| endpoint.address).collect()
    }

    /// Returns the number of requests and tunnels in flight.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(SeqCst)
    }

    /// Waits until no request and no tunnel is in flight, at most `limit`. Returns the number of requests and tunnels that are still in
    /// flight.
    pub async fn settle(&self, limit: Duration) -> usize {
        self.settle_until(limit, || self.in_flight() == 0).await;
        self.in_flight()
    }

    /// Waits until no request is in flight, at most `limit`. Tunnels may stay, because a tunnel usually ends with its application. Returns
    /// the number of requests that are still in flight.
    pub async fn settle_requests(&self, limit: Duration) -> usize {
        // The end of a tunnel decrements the count of tunnels before the count in flight, so the difference is never too small.
        let requests = || self.in_flight().saturating_sub(self.shared.tunnels.load(SeqCst));
        self.settle_until(limit, || requests() == 0).await;
        requests()
    }

    async fn settle_until(&self, limit: Duration, is_quiet: impl Fn() -> bool) {
        let waiting = async {
            loop {
                let quiet = self.shared.quiet.notified();
                tokio::pin!(quiet);
                // The notification is enabled before the count is read, so that a request that ends between the read and the `await` is
                // not missed.
                quiet.as_mut().enable();
                if is_quiet() {
                    return;
                }
                quiet.await;
            }
        };
        let _ = timeout(limit, waiting).await;
    }

    /// Returns true if both targets have the same instances: clones of one target, or targets with the same addresses. Equal addresses mean
    /// equal instances, because two slots that run at the same time never share an address.
    pub(super) fn is_same(&self, other: &RouteTarget) -> bool {
        let (own, others) = (&self.shared.endpoints, &other.shared.endpoints);
        Arc::ptr_eq(&self.shared, &other.shared)
            || (own.len() == others.len() && own.iter().zip(others).all(|(one, other)| one.address == other.address))
    }

    /// Counts a request as in flight until the returned guard is dropped.
    pub(super) fn enter(&self) -> InFlight {
        self.shared.in_flight.fetch_add(1, SeqCst);
        InFlight { target: self.clone(), is_tunnel: false }
    }

    /// Marks the target as live; reverts [`RouteTarget::retire`].
    pub(super) fn activate(&self) {
        self.shared.retired.store(false, SeqCst);
    }

    /// Marks the target as retired, and closes its idle connections.
    pub(super) fn retire(self) -> Retired {
        self.shared.retired.store(true, SeqCst);
        for endpoint in &self.shared.endpoints {
            endpoint.clear();
        }
        Retired { target: self }
    }
}

impl Retired {
    /// Waits until the requests and tunnels in flight have ended, at most `limit`. Then cuts the remaining requests and tunnels.
    pub async fn drain(self, limit: Duration) -> DrainReport {
        let before = self.target.in_flight();
        let cut = self.target.settle(limit).await;
        if cut > 0 {
            self.target.shared.cut.cancel();
            self.target.settle(CUT_GRACE).await;
        }
        DrainReport { finished: before.saturating_sub(cut), cut }
    }

    /// Closes the tunnels. Clients of WebSocket connections get a close frame. Requests in flight continue.
    pub fn close_tunnels(&self) {
        self.target.shared.tunnel_cut.cancel();
    }

    /// Returns the number of requests and tunnels in flight.
    pub fn in_flight(&self) -> usize {
        self.target.in_flight()
    }

    /// Returns the target, so that the caller can switch the route back to this target. The requests in flight stay counted, so that the
    /// next drain waits for these requests.
    pub fn restore(self) -> RouteTarget {
        self.target
    }
}

/// The guard of a request or tunnel in flight. A drain of the target waits until all guards are dropped.
pub(super) struct InFlight {
    target: RouteTarget,
    is_tunnel: bool,
}

impl InFlight {
    /// Counts the request as a tunnel from now on.
    pub fn into_tunnel(mut self) -> InFlight {
        if !std::mem::replace(&mut self.is_tunnel, true) {
            self.target.shared.tunnels.fetch_add(1, SeqCst);
            self.target.shared.quiet.notify_waiters();
        }
        self
    }

    pub fn is_retired(&self) -> bool {
        self.target.shared.retired.load(SeqCst)
    }

    pub fn is_cut(&self) -> bool {
        self.target.shared.cut.is_cancelled()
    }

    /// Returns the token that is cancelled to close the tunnel.
    pub fn tunnel_cut(&self) -> CancellationToken {
        self.target.shared.tunnel_cut.clone()
    }

    /// Returns a connection to one of the instances. The instances are tried in round-robin order, but an instance that has just refused a
    /// connection is tried last. An idle connection is reused unless the connection has been idle for longer than `max_idle`.
    pub async fn lease(self, settings: &ProxySettings, max_idle: Duration) -> Result<Lease, ConnectError> {
        let shared = &self.target.shared;
        let endpoints = &shared.endpoints;
        let turn = if endpoints.len() > 1 { shared.turn.fetch_add(1, Relaxed) % endpoints.len() } else { 0 };
        let mut failure = ConnectError::NoInstance;
        let now = Instant::now();
        for resting in [false, true] {
            for endpoint in endpoints.iter().cycle().skip(turn).take(endpoints.len()) {
                // Both rounds use the state at `now`, so that an instance that refuses a connection in the first round is not tried again
                // in the second round.
                if endpoint.was_resting(now) != resting {
                    continue;
                }
                if let Some(sender) = endpoint.pooled(max_idle).await {
                    return Ok(Lease { sender, endpoint: endpoint.clone(), in_flight: self, reused: true });
                }
                match endpoint.connect(settings, &*shared.connector, &shared.cut).await {
                    Ok(sender) => return Ok(Lease { sender, endpoint: endpoint.clone(), in_flight: self, reused: false }),
                    Err(error) => failure = error,
                }
            }
        }
        Err(failure)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let shared = &self.target.shared;
        if self.is_tunnel {
            shared.tunnels.fetch_sub(1, SeqCst);
        }
        let left = shared.in_flight.fetch_sub(1, SeqCst).saturating_sub(1);
        if left <= shared.tunnels.load(SeqCst) {
            shared.quiet.notify_waiters();
        }
    }
}

/// A connection to an instance, in use by one request.
pub(super) struct Lease {
    pub sender: SendRequest<UploadBody>,
    pub in_flight: InFlight,
    /// True if the connection has carried an earlier request.
    pub reused: bool,
    endpoint: Arc<Endpoint>,
}

impl Lease {
    /// Keeps the connection for the next request. The caller must have sent the whole request and received the whole response.
    pub fn give_back(self) {
        if !self.in_flight.is_retired() && !self.sender.is_closed() {
            self.endpoint.give_back(self.sender);
        }
    }
}
