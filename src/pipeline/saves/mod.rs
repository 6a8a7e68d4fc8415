//! Saved files in the checkouts of editable environments: a worker watches each checkout, and a saved file restarts the processes that it concerns,
//! or runs the build before.
//!
//! The worker (`src/watch/worker.rs`) runs as the owner of the checkout. The server never opens a path of the checkout. One task for each environment
//! ([`session::Session`]) receives the reports of the worker. The task acts only while it holds the lock of deployments and restarts, and a
//! deployment takes precedence: files that were saved meanwhile are compared with the deployed commit afterwards.

mod act;
mod build;
mod restart;
mod session;
pub(super) mod state;

use std::time::{Duration, Instant};

use self::session::{Session, SessionEnd};
use super::{core::Pipeline, queue::Queue};
use crate::model::{EnvId, Environment, Exit, Mode, Slot};

/// The time between two searches for checkouts that are not watched.
const INTERVAL: Duration = Duration::from_millis(250);
/// The name of larder's own lines in the logs of an environment.
const LOG_NAME: &str = "larder";

impl Pipeline {
    /// Watches the checkouts of all live editable environments until the server stops.
    pub fn watch_checkouts(&self) {
        let this = self.clone();
        self.0.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = this.0.stopping.cancelled() => return,
                    () = tokio::time::sleep(INTERVAL) => {}
                }
                let queues: Vec<_> = this.0.queues.lock().values().cloned().collect();
                for queue in queues.into_iter().filter(has_checkout) {
                    if let Some(seen) = this.0.saves.begin(queue.id, Instant::now()) {
                        let pipeline = this.clone();
                        this.0.tasks.spawn(async move {
                            let ended = Session::run(&pipeline, &queue, seen).await;
                            pipeline.watch_ended(&queue, ended);
                        });
                    }
                }
            }
        });
    }

    /// Returns the reason why the checkout of an editable environment is not watched; `None` if it is watched, or if there is none.
    pub fn unwatched(&self, environment: EnvId) -> Option<String> {
        self.0.saves.problem(environment)
    }

    fn watch_ended(&self, queue: &Queue, ended: SessionEnd) {
        let problem = match ended {
            SessionEnd::Over => None,
            SessionEnd::Problem { why, hint } => Some(hint.map_or(why.clone(), |hint| format!("{why}; {hint}"))),
        };
        if self.0.saves.end(queue.id, problem.as_deref(), Instant::now())
            && let Some(problem) = problem
        {
            let environment = queue.environment();
            tracing::warn!(environment = environment.title(), why = problem, "a checkout is not watched");
            self.tell(&environment, &format!("saved files have no effect: {problem}"));
        }
    }

    /// Writes a line of larder's own into the logs of an environment.
    pub(super) fn tell(&self, environment: &Environment, text: &str) {
        let services = self.services();
        let paths = services.root.environment(&environment.project, &environment.name);
        services.runtime.logs().say(environment.id, &paths.log(), LOG_NAME, text);
    }

    /// Shows the first exit of a process of an editable environment in the logs. A process that a half-saved file has broken is no news for
    /// anyone else.
    pub(super) fn edited_process_exited(&self, environment: &Environment, process: &str, exit: &Exit) {
        let is_first = |exits: u32| exits == 1;
        let instances = self.services().runtime.instances(environment.id, Some(Slot::InPlace));
        let instance = instances.iter().find(|instance| instance.label.name() == process);
        if instance.is_some_and(|instance| is_first(instance.exits.borrow().count)) {
            self.tell(environment, &format!("{process} {exit}; it starts again after a pause, or when a file is saved"));
        }
    }
}

/// Returns true if an environment has a live checkout.
fn has_checkout(queue: &Queue) -> bool {
    let state = queue.state.lock();
    let is_live = state.live.as_ref().is_some_and(|live| live.slot == Slot::InPlace);
    state.environment.mode == Mode::Editable && is_live && !state.closed
}
