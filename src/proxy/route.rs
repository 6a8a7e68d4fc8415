//! A route sends the requests for its hosts to one environment. This file contains the state of a route, the switch between targets, and
//! holds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::time::Instant;

use super::{
    counts::{RouteCounts, Stats},
    pages::Page,
    target::{InFlight, Retired, RouteTarget},
    waiting::{HoldQueue, Turn, WaitPermit},
};

/// The state of a route, which determines the response to a request.
#[derive(Clone)]
pub enum RouteState {
    /// No release is live.
    Empty,
    /// The processes are being started, or are stopped during an upgrade.
    Starting,
    /// Requests are sent to this target.
    Live(RouteTarget),
    /// No process serves because of a failure, such as a failed start. The text is the reason.
    Failed(String),
    /// No web process runs, because the environment is configured to run no web processes.
    Stopped,
}

/// The route to one environment. Several hosts may have the same route.
pub struct Route {
    name: Arc<str>,
    inside: RwLock<Inside>,
    waiting: AtomicUsize,
    pub(super) counts: Arc<RouteCounts>,
}

struct Inside {
    state: RouteState,
    /// The active holds, oldest first. A request waits until no hold is active.
    holds: Vec<Arc<HoldQueue>>,
    /// The last hold that ended. A new request waits behind the requests of this hold that still wait for their turn.
    ended: Option<Arc<HoldQueue>>,
    /// The project's own maintenance page, in HTML.
    maintenance_page: Option<Bytes>,
}

/// The guard of a hold. While the guard exists, new requests of the route wait. When the guard is dropped, the waiting requests are routed
/// by the current state of the route.
#[must_use = "the hold ends when the guard is dropped"]
pub struct Hold {
    route: Arc<Route>,
    held: Arc<HoldQueue>,
}

/// The decision about a request at one moment.
enum Admission {
    Pass(InFlight),
    Wait(Arc<HoldQueue>),
    Refuse(Page),
}

impl Route {
    /// Creates a route in the state [`RouteState::Starting`]. The name, such as `shop/production`, is used in logs and statistics.
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            inside: RwLock::new(Inside { state: RouteState::Starting, holds: Vec::new(), ended: None, maintenance_page: None }),
            waiting: AtomicUsize::new(0),
            counts: Arc::default(),
        })
    }

    /// Returns the name that was given to [`Route::new`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the current state.
    pub fn state(&self) -> RouteState {
        self.inside.read().state.clone()
    }

    /// Returns true if the state is [`RouteState::Live`].
    pub fn is_live(&self) -> bool {
        matches!(self.inside.read().state, RouteState::Live(_))
    }

    /// Sends all later requests to `new`, in constant time. Returns the previous live target, which the caller must drain. If the live
    /// target has the same instances as `new`, the live target stays live with its requests in flight, and the result is `None`.
    pub fn switch(&self, new: RouteTarget) -> Option<Retired> {
        self.set(RouteState::Live(new))
    }

    /// Changes the state. Returns the previous live target if the change replaces a live target. The caller must drain the returned target.
    pub fn set(&self, state: RouteState) -> Option<Retired> {
        let old = {
            let mut inside = self.inside.write();
            if let RouteState::Live(new) = &state {
                if matches!(&inside.state, RouteState::Live(old) if old.is_same(new)) {
                    return None;
                }
                new.activate();
            }
            std::mem::replace(&mut inside.state, state)
        };
        match old {
            RouteState::Live(target) => Some(target.retire()),
            _ => None,
        }
    }

    /// Sets the HTML page that browsers get after the limit of a hold; `None` for larder's own page.
    pub fn set_maintenance_page(&self, page: Option<String>) {
        self.inside.write().maintenance_page = page.map(Bytes::from);
    }

    fn maintenance(&self) -> Page {
        self.inside.read().maintenance_page.clone().map_or(Page::Maintenance, Page::OwnMaintenance)
    }

    /// Makes new requests wait until the returned guard is dropped. After `limit`, waiting and new requests get the maintenance page.
    pub fn hold(self: &Arc<Self>, limit: Duration) -> Hold {
        let held = Arc::new(HoldQueue::new(limit));
        self.inside.write().holds.push(held.clone());
        Hold { route: self.clone(), held }
    }

    /// Returns the traffic since the route was created.
    pub fn stats(&self) -> Stats {
        self.counts.snapshot(self.waiting())
    }

    /// Returns the number of requests that wait for the end of a hold.
    pub fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    pub(super) fn name_shared(&self) -> Arc<str> {
        self.name.clone()
    }

    /// Waits until no hold is active, and counts the request as in flight at the live target. Fails with the page for the client if there
    /// is no live target, if the limit of the hold has passed, or if `max_waiting` requests wait already.
    pub(super) async fn admit(&self, max_waiting: usize) -> Result<(InFlight, Option<Turn>), Page> {
        let (mut permit, mut turn) = (None, None);
        loop {
            match self.ask(turn.is_some()) {
                Admission::Pass(in_flight) => return Ok((in_flight, turn)),
                Admission::Refuse(page) => return Err(page),
                Admission::Wait(held) => {
                    if permit.is_none() {
                        permit = Some(WaitPermit::take(&self.waiting, max_waiting).ok_or_else(|| self.maintenance())?);
                    }
                    turn = Some(held.wait().await.ok_or_else(|| self.maintenance())?);
                }
            }
        }
    }

    fn ask(&self, has_turn: bool) -> Admission {
        let inside = self.inside.read();
        if let Some(held) = inside.holds.last() {
            return Admission::Wait(held.clone());
        }
        if let Some(ended) = inside.ended.as_ref().filter(|ended| !has_turn && ended.has_waiting()) {
            return Admission::Wait(ended.clone());
        }
        match &inside.state {
            // The request is counted under the lock. A switch therefore either happens before this request, or retires a target whose drain
            // waits for this request.
            RouteState::Live(target) => Admission::Pass(target.enter()),
            RouteState::Empty => Admission::Refuse(Page::Empty),
            RouteState::Starting => Admission::Refuse(Page::Starting),
            RouteState::Failed(reason) => Admission::Refuse(Page::Failed(reason.clone())),
            RouteState::Stopped => Admission::Refuse(Page::Stopped),
        }
    }
}

impl Hold {
    /// Waits until the live target has no requests and tunnels in flight, at most `limit`. Returns the number of requests and tunnels that
    /// are still in flight.
    pub async fn settle(&self, limit: Duration) -> usize {
        match self.route.state() {
            RouteState::Live(target) => target.settle(limit).await,
            _ => 0,
        }
    }

    /// Waits until the live target has no requests in flight, at most `limit`. Tunnels may stay. Returns the number of requests that are
    /// still in flight.
    pub async fn settle_requests(&self, limit: Duration) -> usize {
        match self.route.state() {
            RouteState::Live(target) => target.settle_requests(limit).await,
            _ => 0,
        }
    }

    /// Returns true if the limit has passed. From then on, clients get the maintenance page.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.held.deadline
    }

    /// Ends the hold, so that the waiting requests continue.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        {
            let mut inside = self.route.inside.write();
            inside.holds.retain(|held| !Arc::ptr_eq(held, &self.held));
            inside.ended = Some(self.held.clone());
        }
        self.held.release();
    }
}
