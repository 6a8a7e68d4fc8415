//! The running instances behind a route: choosing one, connections kept alive, and leaving in good order.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, RwLock};
use tokio::{net::TcpStream, sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{ProxySettings, body::Upload};
use crate::host::sockets;

/// Idle connections kept per instance.
const MAX_IDLE: usize = 128;
/// Idle connections that are older are not used again: the application has probably closed them.
pub(super) const MAX_IDLE_AGE: Duration = Duration::from_secs(30);
/// How long an instance that refused a connection is tried only after all others.
const REST: Duration = Duration::from_secs(1);
/// How long requests that were cut may take to notice.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// The instances of one release in one slot. Clones mean the same instances.
#[derive(Clone)]
pub struct Target {
    shared: Arc<Shared>,
}

struct Shared {
    endpoints: RwLock<Arc<[Arc<Endpoint>]>>,
    turn: AtomicUsize,
    in_flight: AtomicUsize,
    quiet: Notify,
    /// The user whose processes the instances are; anybody's where all run as one.
    owner: Option<u32>,
    retired: AtomicBool,
    /// Ends every connection to the instances.
    cut: CancellationToken,
}

struct Endpoint {
    address: SocketAddr,
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    idle: Vec<(SendRequest<Upload>, Instant)>,
    refused: Option<Instant>,
}

/// How the requests of a retired target ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainReport {
    /// Requests and tunnels that ended by themselves while we waited.
    pub finished: usize,
    /// Requests and tunnels that were cut at the limit.
    pub cut: usize,
}

/// A target that gets no new requests; it still answers those that it has.
#[must_use = "drain it before its instances are stopped"]
pub struct Retired {
    target: Target,
}

impl Target {
    /// The instances at `addresses`, one per `web` process.
    pub fn new(addresses: Vec<SocketAddr>) -> Self {
        Self::owned(addresses, None)
    }

    /// The same; what another user listens on is none of them.
    pub fn owned(addresses: Vec<SocketAddr>, owner: Option<u32>) -> Self {
        let endpoints = addresses.into_iter().map(Endpoint::new).collect();
        Self {
            shared: Arc::new(Shared {
                endpoints: RwLock::new(endpoints),
                turn: AtomicUsize::new(0),
                in_flight: AtomicUsize::new(0),
                quiet: Notify::new(),
                owner,
                retired: AtomicBool::new(false),
                cut: CancellationToken::new(),
            }),
        }
    }

    /// Replaces the instances; those whose address stays keep their connections, those that go finish what they have.
    pub fn set_addresses(&self, addresses: &[SocketAddr]) {
        let mut endpoints = self.shared.endpoints.write();
        let next = addresses
            .iter()
            .map(|address| match endpoints.iter().find(|known| known.address == *address) {
                Some(known) => known.clone(),
                None => Endpoint::new(*address),
            })
            .collect();
        *endpoints = next;
    }

    /// The addresses of the instances.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.shared.endpoints.read().iter().map(|endpoint| endpoint.address).collect()
    }

    /// Requests and tunnels that the instances are answering now.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(SeqCst)
    }

    /// Waits until nothing is in flight, at most `limit`; returns how many requests are left.
    pub async fn settle(&self, limit: Duration) -> usize {
        let waiting = async {
            loop {
                let quiet = self.shared.quiet.notified();
                tokio::pin!(quiet);
                // Listen first, look then: a request that ends in between is not missed.
                quiet.as_mut().enable();
                if self.in_flight() == 0 {
                    return;
                }
                quiet.await;
            }
        };
        let _ = timeout(limit, waiting).await;
        self.in_flight()
    }

    pub(super) fn is(&self, other: &Target) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(super) fn sit(&self) -> Seat {
        self.shared.in_flight.fetch_add(1, SeqCst);
        Seat { target: self.clone() }
    }

    pub(super) fn enlist(&self) {
        self.shared.retired.store(false, SeqCst);
    }

    pub(super) fn retire(self) -> Retired {
        self.shared.retired.store(true, SeqCst);
        for endpoint in self.shared.endpoints.read().iter() {
            endpoint.pool.lock().idle.clear();
        }
        Retired { target: self }
    }
}

impl Retired {
    /// Waits until the requests and tunnels of the old target have ended, at most `limit`; then cuts the rest.
    pub async fn drain(self, limit: Duration) -> DrainReport {
        let shared = &self.target.shared;
        let before = self.target.in_flight();
        let cut = self.target.settle(limit).await;
        if cut > 0 {
            shared.cut.cancel();
            self.target.settle(CUT_GRACE).await;
        }
        DrainReport { finished: before.saturating_sub(cut), cut }
    }

    /// Requests and tunnels that it still answers.
    pub fn in_flight(&self) -> usize {
        self.target.in_flight()
    }

    /// The same instances, to be switched back to. What the old one still answers goes on.
    pub fn target(&self) -> Target {
        Target::owned(self.target.addresses(), self.target.shared.owner)
    }
}

/// A request's place at a target: as long as it lives, the target is not drained.
pub(super) struct Seat {
    target: Target,
}

impl Seat {
    pub fn is_retired(&self) -> bool {
        self.target.shared.retired.load(SeqCst)
    }

    pub fn is_cut(&self) -> bool {
        self.target.shared.cut.is_cancelled()
    }

    pub fn cut(&self) -> CancellationToken {
        self.target.shared.cut.clone()
    }

    /// A connection to one of the instances: the next in turn, those that have just refused last. A kept connection is taken if it has
    /// not idled for longer than `max_idle`.
    pub async fn lease(self, settings: &ProxySettings, max_idle: Duration) -> Result<Lease, io::Error> {
        let shared = &self.target.shared;
        let endpoints = shared.endpoints.read().clone();
        let turn = if endpoints.len() > 1 { shared.turn.fetch_add(1, Relaxed) % endpoints.len() } else { 0 };
        let mut failure = io::Error::new(io::ErrorKind::ConnectionRefused, "no instance is running");
        let now = Instant::now();
        for resting in [false, true] {
            for endpoint in endpoints.iter().cycle().skip(turn).take(endpoints.len()) {
                // As of the beginning: one that refuses in the first round is not asked again in the second.
                if endpoint.was_resting(now) != resting {
                    continue;
                }
                if let Some(sender) = endpoint.pooled(max_idle).await {
                    return Ok(Lease { sender, endpoint: endpoint.clone(), seat: self, reused: true });
                }
                match endpoint.connect(settings, shared.owner, &shared.cut).await {
                    Ok(sender) => return Ok(Lease { sender, endpoint: endpoint.clone(), seat: self, reused: false }),
                    Err(error) => failure = error,
                }
            }
        }
        Err(failure)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.target.shared.in_flight.fetch_sub(1, SeqCst) == 1 {
            self.target.shared.quiet.notify_waiters();
        }
    }
}

/// A connection that belongs to one request for its time.
pub(super) struct Lease {
    pub sender: SendRequest<Upload>,
    pub seat: Seat,
    /// Whether the connection has already carried another request.
    pub reused: bool,
    endpoint: Arc<Endpoint>,
}

impl Lease {
    /// Keeps the connection for the next request. Only for a connection whose request and response have both ended.
    pub fn give_back(self) {
        if self.seat.is_retired() || self.sender.is_closed() {
            return;
        }
        let mut pool = self.endpoint.pool.lock();
        if pool.idle.len() < MAX_IDLE {
            pool.idle.push((self.sender, Instant::now()));
        }
    }
}

impl Endpoint {
    fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self { address, pool: Mutex::default() })
    }

    fn was_resting(&self, now: Instant) -> bool {
        self.pool.lock().refused.is_some_and(|refused| refused <= now && now < refused + REST)
    }

    async fn pooled(&self, max_idle: Duration) -> Option<SendRequest<Upload>> {
        loop {
            let mut sender = {
                let idle = &mut self.pool.lock().idle;
                let age = idle.last()?.1.elapsed();
                if age > MAX_IDLE_AGE {
                    // The rest of the stack is older still.
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
            // Given back a moment ago, its task has not yet seen that the response is over; or it is closed.
            if let Ok(Ok(())) = timeout(Duration::from_millis(100), sender.ready()).await {
                return Some(sender);
            }
        }
    }

    async fn connect(
        &self,
        settings: &ProxySettings,
        owner: Option<u32>,
        cut: &CancellationToken,
    ) -> Result<SendRequest<Upload>, io::Error> {
        let connected = async {
            let stream = TcpStream::connect(self.address).await?;
            // Each time: while an application is away, any project may take its port. It costs little beside the connection, which
            // is kept for many requests.
            if let Some(owner) = owner
                && sockets::listener(self.address)? != Some(owner)
            {
                let error = io::Error::new(io::ErrorKind::ConnectionRefused, "the instance's port is somebody else's");
                // Not for each attempt.
                if self.pool.lock().refused.is_none() {
                    tracing::warn!(address = %self.address, %error, "an application is not reached");
                }
                return Err(error);
            }
            stream.set_nodelay(true)?;
            super::io::keep_alive(&stream);
            let mut builder = Builder::new();
            builder.max_header_size(settings.max_header_size).max_buf_size(settings.max_header_size.max(64 * 1024));
            builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)
        };
        let result = match timeout(settings.connect_timeout, connected).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the instance did not accept the connection in time")),
        };
        match result {
            Ok((sender, connection)) => {
                self.pool.lock().refused = None;
                let cut = cut.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        // Errors reach the request that waits; between requests they are just the end.
                        _ = connection.with_upgrades() => {}
                        () = cut.cancelled() => {}
                    }
                });
                Ok(sender)
            }
            Err(error) => {
                self.pool.lock().refused = Some(Instant::now());
                Err(error)
            }
        }
    }
}
