//! An environment's way in: its state, the switch from one target to the next, and holds.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::RwLock;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{
    access::{RouteCounts, Stats},
    pages::Page,
    target::{Retired, Seat, Target},
};

/// What an environment answers with.
#[derive(Clone)]
pub enum State {
    /// No deployment has succeeded yet.
    Empty,
    /// It is being started.
    Starting,
    /// These instances answer.
    Live(Target),
    /// It does not run, for this reason.
    Failed(String),
    /// No web process of it runs, and none is meant to.
    Stopped,
}

/// The way in to one environment; several hosts may lead to it.
pub struct Route {
    name: Arc<str>,
    inside: RwLock<Inside>,
    waiting: AtomicUsize,
    pub(super) counts: RouteCounts,
}

struct Inside {
    state: State,
    /// Holds in force; requests wait for the newest.
    holds: Vec<Arc<Held>>,
}

struct Held {
    deadline: Instant,
    released: CancellationToken,
}

/// While it lives, requests wait. Dropping it lets them go, to whatever the route's state is by then.
#[must_use = "a hold ends when it is dropped"]
pub struct Hold {
    route: Arc<Route>,
    held: Arc<Held>,
}

enum Admission {
    Pass(Seat),
    Wait(Arc<Held>),
    Refuse(Page),
}

impl Route {
    /// A route in the state [`State::Starting`]; the name is for logs and numbers, such as `shop/production`.
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            inside: RwLock::new(Inside { state: State::Starting, holds: Vec::new() }),
            waiting: AtomicUsize::new(0),
            counts: RouteCounts::default(),
        })
    }

    /// The name that it was made with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.inside.read().state.clone()
    }

    /// Whether there is a target that requests are sent to.
    pub fn is_live(&self) -> bool {
        matches!(self.inside.read().state, State::Live(_))
    }

    /// Sends every request from the next one on to `new`. Takes the same time whatever is under way; the target that was live before
    /// is returned, to be drained.
    pub fn switch(&self, new: Target) -> Option<Retired> {
        self.set(State::Live(new))
    }

    /// Changes the state; if a target was live and is no longer, it is returned, to be drained.
    pub fn set(&self, state: State) -> Option<Retired> {
        let (old, same) = {
            let mut inside = self.inside.write();
            let mut same = false;
            if let State::Live(new) = &state {
                new.enlist();
                same = matches!(&inside.state, State::Live(old) if old.is(new));
            }
            (std::mem::replace(&mut inside.state, state), same)
        };
        match old {
            State::Live(target) if !same => Some(target.retire()),
            _ => None,
        }
    }

    /// Gives the live target other instances, as after a restart on another port or a change of scale. False if nothing is live.
    pub fn retarget(&self, addresses: &[SocketAddr]) -> bool {
        match &self.inside.read().state {
            State::Live(target) => {
                target.set_addresses(addresses);
                true
            }
            _ => false,
        }
    }

    /// Lets new requests wait until the returned guard is dropped. `limit` after now they get the maintenance page instead, until then.
    pub fn hold(self: &Arc<Self>, limit: Duration) -> Hold {
        let held = Arc::new(Held { deadline: Instant::now() + limit, released: CancellationToken::new() });
        self.inside.write().holds.push(held.clone());
        Hold { route: self.clone(), held }
    }

    /// The traffic since the route was made.
    pub fn stats(&self) -> Stats {
        self.counts.snapshot(self.waiting())
    }

    /// Requests that wait in a hold.
    pub fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    pub(super) fn name_shared(&self) -> Arc<str> {
        self.name.clone()
    }

    /// A seat at the live target, after waiting out a hold; or the page that says why there is none.
    pub(super) async fn admit(&self, max_waiting: usize) -> Result<Seat, Page> {
        let mut place = None;
        loop {
            match self.ask() {
                Admission::Pass(seat) => return Ok(seat),
                Admission::Refuse(page) => return Err(page),
                Admission::Wait(held) => {
                    if place.is_none() {
                        place = Some(Place::take(&self.waiting, max_waiting).ok_or(Page::Maintenance)?);
                    }
                    timeout_at(held.deadline, held.released.cancelled()).await.map_err(|_| Page::Maintenance)?;
                }
            }
        }
    }

    fn ask(&self) -> Admission {
        let inside = self.inside.read();
        if let Some(held) = inside.holds.last() {
            return Admission::Wait(held.clone());
        }
        match &inside.state {
            // The seat is taken under the lock: a switch comes either before it, or drains it.
            State::Live(target) => Admission::Pass(target.sit()),
            State::Empty => Admission::Refuse(Page::Empty),
            State::Starting => Admission::Refuse(Page::Starting),
            State::Failed(reason) => Admission::Refuse(Page::Failed(reason.clone())),
            State::Stopped => Admission::Refuse(Page::Stopped),
        }
    }
}

impl Hold {
    /// Waits until no request and no tunnel is under way at the live target, at most `limit`; returns how many are left.
    pub async fn settle(&self, limit: Duration) -> usize {
        match self.route.state() {
            State::Live(target) => target.settle(limit).await,
            _ => 0,
        }
    }

    /// Whether the limit has passed, so that clients see the maintenance page.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.held.deadline
    }

    /// Lets the waiting requests go.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.route.inside.write().holds.retain(|held| !Arc::ptr_eq(held, &self.held));
        self.held.released.cancel();
    }
}

/// A place among the waiting; given up also when the client leaves.
pub(super) struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    pub fn take(waiting: &'a AtomicUsize, max: usize) -> Option<Self> {
        let place = Self(waiting);
        (waiting.fetch_add(1, SeqCst) < max).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}
