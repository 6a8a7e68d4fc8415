//! The permits of waiting requests, and the gate at which requests wait while the server starts.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

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
