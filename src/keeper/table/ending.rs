//! Restarts and stops processes: at scheduled times, on request, and after the exit of a server.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Notice, ProcessTable, entry::ProcessEntry};
use crate::{
    host::launch::ProcessEvent,
    model::{EnvId, Exit, ProcessId},
};

/// The time without a request after which discarded directories are deleted. Deleting slows down other work on the disk.
const QUIET: Duration = Duration::from_millis(400);
/// The number of discarded directories at which deletion no longer waits for [`QUIET`].
const MAX_DISCARDED: usize = 64;

impl ProcessTable {
    /// Returns the time at which [`ProcessTable::tick`] must be called next.
    pub fn deadline(&self) -> Option<Instant> {
        let others = self.entries.values().map(|entry| entry.schedule.next(entry.live.is_some()));
        others.chain([self.cleanup_due()]).flatten().min()
    }

    /// Returns the time at which the next deletion may begin. Only one deletion runs at a time.
    fn cleanup_due(&self) -> Option<Instant> {
        let idle = self.program.is_some() && self.entries.values().all(|entry| entry.cleanup.is_none());
        let quiet = if self.discarded.len() < MAX_DISCARDED { QUIET } else { Duration::ZERO };
        (idle && !self.discarded.is_empty()).then(|| self.requested + quiet)
    }

    /// Performs all starts, kills and deletions whose time has come.
    pub fn tick(&mut self) {
        let now = Instant::now();
        let is_due = |entry: &ProcessEntry| entry.schedule.next(entry.live.is_some()).is_some_and(|at| at <= now);
        let due: Vec<_> = self.entries.iter().filter(|(_, entry)| is_due(entry)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(mut entry) = self.entries.remove(&id) else { continue };
            if entry.live.is_none() && entry.schedule.begin_restart(now) {
                match self.start(id, &entry) {
                    Ok(live) => entry.live = Some(live),
                    Err(why) => {
                        tracing::warn!(id = id.0, why, "cannot restart a process");
                        entry.schedule.exited(now, Duration::ZERO);
                    }
                }
            }
            if let Some(live) = &entry.live
                && entry.schedule.begin_kill(now)
            {
                live.process.kill();
            }
            self.entries.insert(id, entry);
        }
        if self.cleanup_due().is_some_and(|at| at <= now)
            && let Some(discarded) = self.discarded.pop_front()
        {
            let users = self.users.cleanup_users(EnvId(discarded.owner)).into();
            self.cleanup(discarded, users);
        }
    }

    fn entry(&mut self, id: ProcessId) -> Result<&mut ProcessEntry, String> {
        self.entries.get_mut(&id).ok_or_else(|| format!("process {} does not exist or has ended", id.0))
    }

    /// Sends SIGTERM to a process and its descendants, or kills them if `now` is true.
    pub fn end(&mut self, id: ProcessId, now: bool) -> Result<(), String> {
        let entry = self.entry(id)?;
        match &entry.live {
            _ if now => entry.kill(),
            Some(live) => live.process.signal(Signal::TERM),
            None => {}
        }
        Ok(())
    }

    /// Stops a process, which is not restarted. If the process is already being stopped, `grace` can only shorten the remaining time.
    pub fn stop(&mut self, id: ProcessId, grace: Duration) -> Result<(), String> {
        let entry = self.entry(id)?;
        entry.stop(Instant::now() + grace);
        if entry.live.is_none() {
            let (exit, restarts) = (Exit { code: None, signal: None, out_of_memory: false }, entry.schedule.restarts());
            self.entries.remove(&id);
            self.notices.push_back(Notice::Event(ProcessEvent::Exited { id, exit, restarts, last: true }));
        }
        Ok(())
    }

    /// Kills the processes that must not outlive the server that launched them.
    pub fn end_requests(&mut self) {
        self.notices.clear();
        for entry in self.entries.values_mut().filter(|entry| entry.cleanup.is_none()) {
            // A supervised process is killed only if its launch was not answered yet, because no server has received its id.
            if entry.live.is_some() && (!entry.supervised() || entry.request.is_some()) {
                entry.kill();
                entry.orphaned = true;
            }
            entry.request = None;
        }
    }

    /// Stops all processes, and kills them at `by` even if their grace is longer. Returns true if a process is left.
    pub fn stop_all(&mut self, by: Instant) -> bool {
        self.discarded.clear();
        self.entries.retain(|_, entry| {
            entry.stop(by);
            entry.live.is_some()
        });
        !self.entries.is_empty()
    }
}
