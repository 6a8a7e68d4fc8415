//! The permits of waiting requests, and the gate at which requests wait while the server starts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::RwLock;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The number of requests that continue at the same time after the end of a hold. Processes that have just started would otherwise get all
/// waiting requests at once.
const AT_ONCE: usize = 32;

/// The maximum time for which a request that continues delays the next request.
const TURN: Duration = Duration::from_millis(250);

/// The permit of one waiting request. The permit is also returned if the client disconnects, because the future of the request is then
/// dropped.
pub(super) struct WaitPermit<'a>(&'a AtomicUsize);

impl<'a> WaitPermit<'a> {
    /// Takes a permit. Returns `None` if `max` requests wait already.
    pub fn take(waiting: &'a AtomicUsize, max: usize) -> Option<Self> {
        let permit = Self(waiting);
        (waiting.fetch_add(1, SeqCst) < max).then_some(permit)
    }
}

impl Drop for WaitPermit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// The queue of the requests that wait for the end of one hold. After the end, the requests continue in the order of their arrival.
pub(super) struct HoldQueue {
    /// The end of the time limit of the hold.
    pub deadline: Instant,
    released: CancellationToken,
    turns: Arc<Semaphore>,
    queued: AtomicUsize,
}

/// The turn of one request. The next request continues when the turn is dropped, at the latest after [`TURN`].
pub(super) struct Turn {
    _ended: DropGuard,
}

impl HoldQueue {
    pub fn new(limit: Duration) -> HoldQueue {
        HoldQueue {
            deadline: Instant::now() + limit,
            released: CancellationToken::new(),
            turns: Arc::new(Semaphore::new(0)),
            queued: AtomicUsize::new(0),
        }
    }

    /// Ends the hold.
    pub fn release(&self) {
        self.released.cancel();
        self.turns.add_permits(AT_ONCE);
    }

    /// Returns true if requests wait for their turn.
    pub fn has_waiting(&self) -> bool {
        self.queued.load(SeqCst) > 0
    }

    /// Waits for the end of the hold, and then for the turn of this request. Returns `None` if the time limit passes before the end.
    pub async fn wait(&self) -> Option<Turn> {
        let _queued = Queued::enter(&self.queued);
        // The semaphore is fair: requests get their permits in the order in which they began to wait.
        let acquiring = self.turns.clone().acquire_owned();
        tokio::pin!(acquiring);
        let acquired = tokio::select! {
            biased;
            acquired = acquiring.as_mut() => acquired,
            () = sleep_until(self.deadline) => match self.released.is_cancelled() {
                true => acquiring.await,
                false => return None,
            },
        };
        let permit = acquired.ok()?;
        let ended = CancellationToken::new();
        let turn = Turn { _ended: ended.clone().drop_guard() };
        tokio::spawn(async move {
            let _ = timeout(TURN, ended.cancelled()).await;
            drop(permit);
        });
        Some(turn)
    }
}

/// The entry of one request in the count of a queue.
struct Queued<'a>(&'a AtomicUsize);

impl<'a> Queued<'a> {
    fn enter(count: &'a AtomicUsize) -> Queued<'a> {
        count.fetch_add(1, SeqCst);
        Queued(count)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// The startup gate of a proxy. The field is `None` while the gate is open.
#[derive(Default)]
pub(super) struct GateSlot {
    closed: RwLock<Option<Arc<Gate>>>,
}

/// A closed gate, which opens once, and the number of requests that wait until the gate opens.
#[derive(Default)]
pub(super) struct Gate {
    opened: CancellationToken,
    waiting: AtomicUsize,
}

impl GateSlot {
    pub fn closed(&self) -> Option<Arc<Gate>> {
        self.closed.read().clone()
    }
}

impl Gate {
    /// Waits until the gate opens. Returns `false` at once if `max` requests wait already.
    pub async fn wait(&self, max: usize) -> bool {
        let Some(_permit) = WaitPermit::take(&self.waiting, max) else { return false };
        self.opened.cancelled().await;
        true
    }
}

/// The guard of a closed startup gate. While the guard exists, requests for hosts without a live route wait; all other requests pass. When
/// the guard is dropped, the gate opens, and the waiting requests are routed by the current table of routes.
#[must_use = "the gate opens when the guard is dropped"]
pub struct StartupGate {
    slot: Arc<GateSlot>,
    gate: Arc<Gate>,
}

impl StartupGate {
    pub(super) fn close(slot: &Arc<GateSlot>) -> Self {
        let gate = Arc::<Gate>::default();
        *slot.closed.write() = Some(gate.clone());
        Self { slot: slot.clone(), gate }
    }

    /// Returns the number of waiting requests.
    pub fn waiting(&self) -> usize {
        self.gate.waiting.load(SeqCst)
    }
}

impl Drop for StartupGate {
    fn drop(&mut self) {
        *self.slot.closed.write() = None;
        self.gate.opened.cancel();
    }
}
