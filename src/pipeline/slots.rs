//! The slots of one environment: a [`SlotTable`] on disk (`slots.json`) and in memory, where steps wait for changes of the table.
//!
//! The links `current` and `run` and the journals decide which release is live; each start reconciles the table with the links and the
//! journals. The table adds the release that still runs in the slot that is not live, and the time limits for stopping this release.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    config::{Settings, TimeSpan},
    host::files::{self, FileError},
    model::{DeploymentId, EnvId, Occupant, Slot, SlotError, SlotTable, SlotUse, StopLimits},
    runtime::{Label, Runtime, RuntimeError},
};

/// The size limit of the record, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The maximum time between the stop signal and SIGKILL for processes whose deployment is reverted. This maximum is far below the time
/// limit of an undo, at which the environment would freeze.
pub(super) const UNDO_GRACE: Duration = Duration::from_secs(60);

/// The time limit of the work between the end of a drain and the idle slot: changes made by hand are found and saved.
const KEEP_TIMEOUT: Duration = Duration::from_secs(150);

/// An error of the record of the slots.
#[derive(Debug, thiserror::Error)]
pub(super) enum SlotsError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The content cannot be used. The message names the file without its directory, because the message is shown in git's rejected
    /// line.
    #[error("cannot use {}", path.file_name().unwrap_or(path.as_os_str()).display())]
    Record {
        path: PathBuf,
        #[source]
        source: SlotError,
    },
    /// A transition is not possible.
    #[error(transparent)]
    Transition(#[from] SlotError),
}

/// The slots of one environment; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    table: watch::Sender<SlotTable>,
    /// The state of the record on disk. This lock is held while the record changes.
    disk: Mutex<Record>,
}

/// The state of the record on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Record {
    Usable,
    /// The file cannot be used, and stays unchanged until a person has inspected the file.
    Unusable,
    /// The environment is removed.
    Closed,
}

impl Slots {
    /// Creates the slots of an environment whose record is at `path`. [`Slots::load`] reads the record.
    pub fn new(path: PathBuf) -> Slots {
        Slots(Arc::new(Inner { path, table: watch::Sender::new(SlotTable::default()), disk: Mutex::new(Record::Usable) }))
    }

    /// Reads the record. Returns false if the file does not exist: the environment is new, or was served by an early version of
    /// larder.
    ///
    /// # Errors
    /// The record cannot be read, is damaged, or was written by a newer larder. The file is not written again until a later call
    /// succeeds. A record that was lost in a power failure counts as missing.
    pub fn load(&self) -> Result<bool, SlotsError> {
        let mut disk = self.0.disk.lock();
        *disk = Record::Unusable;
        let found = match read(&self.0.path) {
            Err(SlotsError::Record { source: SlotError::Damaged(_), .. }) if is_lost(&self.0.path) => {
                tracing::warn!(path = %self.0.path.display(), "the record of the slots was lost in a power failure");
                None
            }
            found => found?,
        };
        *disk = Record::Usable;
        let there = found.is_some();
        let mut table = found.unwrap_or_default();
        for slot in Slot::ALL {
            let lower = |occupant: Occupant| Occupant { stop: limited(occupant.stop), ..occupant };
            let used = match table.get(slot).clone() {
                SlotUse::Idle => SlotUse::Idle,
                SlotUse::Ready(occupant) => SlotUse::Ready(lower(occupant)),
                SlotUse::Live(occupant) => SlotUse::Live(lower(occupant)),
                SlotUse::Draining(occupant) => SlotUse::Draining(lower(occupant)),
            };
            table.set(slot, used);
        }
        self.0.table.send_replace(table);
        Ok(there)
    }

    /// Returns the use of both slots.
    pub fn table(&self) -> SlotTable {
        self.0.table.borrow().clone()
    }

    /// Returns true if the record cannot be used. In this case, the table is no reason to stop a process.
    pub fn are_unknown(&self) -> bool {
        *self.0.disk.lock() == Record::Unusable
    }

    /// Changes the table on disk, then in memory. If the record cannot be written, the table in memory does not change.
    pub fn change<E>(&self, change: impl FnOnce(&mut SlotTable) -> Result<(), E>) -> Result<(), SlotsError>
    where
        SlotsError: From<E>,
    {
        let disk = self.0.disk.lock();
        let (old, mut new) = (self.table(), self.table());
        change(&mut new)?;
        if new != old {
            self.write(*disk, &new)?;
            self.0.table.send_replace(new);
        }
        Ok(())
    }

    /// Changes the table in memory even if the record cannot be written; the next start reconciles the record. This function is
    /// for changes that have already happened.
    pub fn note(&self, change: impl FnOnce(&mut SlotTable)) {
        let disk = self.0.disk.lock();
        let (old, mut new) = (self.table(), self.table());
        change(&mut new);
        if new != old {
            if let Err(error) = self.write(*disk, &new) {
                tracing::warn!(%error, "cannot record the use of the slots");
            }
            self.0.table.send_replace(new);
        }
    }

    fn write(&self, disk: Record, table: &SlotTable) -> Result<(), FileError> {
        match disk {
            // The record must survive the end of this process, not a power failure, which ends all processes in the slots. Three syncs of
            // a deployment are therefore saved. The next start reconciles an older record in the same way as a newer record.
            Record::Usable => files::place_block(&self.0.path, &table.to_bytes(), 0o600),
            Record::Unusable | Record::Closed => Ok(()),
        }
    }

    /// Stops writing the record: the environment is removed, and a later environment may get the same path.
    pub fn close(&self) {
        *self.0.disk.lock() = Record::Closed;
    }

    /// Waits until a slot is no longer draining. The maximum of the wait is the sum of `KEEP_TIMEOUT` and the time limits in the occupant's
    /// recipe. After the wait, the deployment that needs the slot empties the slot itself.
    pub async fn drained(&self, slot: Slot) {
        self.drained_within(slot, KEEP_TIMEOUT).await;
    }

    async fn drained_within(&self, slot: Slot, after_drain: Duration) {
        let limit = match self.0.table.borrow().get(slot) {
            SlotUse::Draining(occupant) => occupant.stop.longest().saturating_add(after_drain),
            _ => return,
        };
        let mut table = self.0.table.subscribe();
        let idle = table.wait_for(|table| !matches!(table.get(slot), SlotUse::Draining(_)));
        if tokio::time::timeout(limit, idle).await.is_err() {
            tracing::warn!(%slot, "a slot is not drained within its limits; the next deployment empties the slot");
        }
    }

    /// Returns a function that returns the grace of a process in `slot`: the time between the stop signal and SIGKILL, from the recipe of
    /// the process's own release. For a process in a different slot, the function returns `None`.
    pub fn grace_in(&self, slot: Slot) -> impl Fn(&Label) -> Option<Duration> + use<> {
        let occupant = self.table().get(slot).occupant().cloned();
        move |label| {
            let grace = || occupant.as_ref().map_or(Duration::ZERO, |occupant| occupant.stop.grace_of(&label.process));
            (label.slot == slot).then(grace)
        }
    }

    /// Stops the processes of a release that is reverted. The recipe of the release cannot extend the grace beyond `UNDO_GRACE`.
    pub async fn stop_reverted(&self, runtime: &Runtime, environment: EnvId, slot: Slot) -> Result<(), RuntimeError> {
        let grace = self.grace_in(slot);
        runtime.stop_each(environment, |label| grace(label).map(|grace| grace.min(UNDO_GRACE))).await
    }

    /// Stops all processes in a slot, with the grace that the recipe of their own release sets.
    pub async fn stop(&self, runtime: &Runtime, environment: EnvId, slot: Slot) -> Result<(), RuntimeError> {
        runtime.stop_each(environment, self.grace_in(slot)).await
    }

    /// Returns a filter for processes whose release, according to the table, does not occupy the slot of the process.
    pub fn strays(&self) -> impl Fn(&Label) -> bool + use<> {
        let table = self.table();
        move |label| table.get(label.slot).occupant().is_none_or(|occupant| occupant.release != label.release)
    }

    /// Records that the processes of a deployment in `slot` have ended.
    pub fn release(&self, slot: Slot, deployment: DeploymentId) {
        self.note(|table| table.release(slot, deployment));
    }
}

fn read(path: &Path) -> Result<Option<SlotTable>, SlotsError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    let bytes = files::read_limited(path, MAX_BYTES)?;
    let table = SlotTable::parse(&bytes).map_err(|source| SlotsError::Record { path: path.to_owned(), source });
    table.map(Some)
}

/// Returns true if a power failure has damaged the file: nothing of the content has reached the disk, or the file was written before the
/// machine was started.
fn is_lost(path: &Path) -> bool {
    let is_blank = files::read_limited(path, MAX_BYTES).is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0));
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let up = Duration::from_secs(u64::try_from(up.tv_sec).unwrap_or(0));
    let booted = SystemTime::now().checked_sub(up);
    let written = std::fs::symlink_metadata(path).and_then(|found| found.modified());
    is_blank || booted.zip(written.ok()).is_some_and(|(booted, written)| written < booted)
}

/// Returns the limits for stopping a release with these settings.
pub(super) fn stop_limits(settings: &Settings) -> StopLimits {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let own = settings.processes.iter().filter_map(|(process, spec)| Some((process.to_string(), spec.stop?)));
    let limits = StopLimits {
        drain: millis(settings.drain.get()),
        grace: millis(settings.stop.grace.get()),
        processes: own.map(|(process, stop)| (process, millis(stop.grace.get()))).collect(),
    };
    limited(limits)
}

fn limited(limits: StopLimits) -> StopLimits {
    limits.at_most(TimeSpan::MAX_DRAIN.get(), TimeSpan::MAX_GRACE.get())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{model::ReleaseId, pipeline::util::chain};

    fn occupant(second: i64) -> Occupant {
        let at = jiff::Timestamp::from_second(second).unwrap();
        let stop = StopLimits { drain: 50, grace: 50, ..StopLimits::default() };
        Occupant { deployment: DeploymentId::new(at), release: ReleaseId::new(at), stop }
    }

    fn reopened(path: &Path) -> SlotTable {
        let slots = Slots::new(path.to_owned());
        assert!(slots.load().unwrap());
        slots.table()
    }

    #[test]
    fn slots_are_read_back_in_each_state() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots.json");
        let slots = Slots::new(path.clone());
        assert!(!slots.load().unwrap(), "there is no record yet");
        let (one, two) = (occupant(1), occupant(2));
        let step = |change: &dyn Fn(&mut SlotTable) -> Result<(), SlotError>| {
            for _ in 0..2 {
                slots.change(change).unwrap();
                assert_eq!(reopened(&path), slots.table());
            }
        };
        step(&|table| table.fill(Slot::Blue, one.clone()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        step(&|table| table.switch(Slot::Blue, one.deployment));
        step(&|table| table.fill(Slot::Green, two.clone()));
        step(&|table| table.switch(Slot::Green, two.deployment));
        assert_eq!(reopened(&path).draining(), Some((Slot::Blue, &one)));
        slots.release(Slot::Blue, one.deployment);
        assert_eq!(reopened(&path).get(Slot::Blue), &SlotUse::Idle);
        assert!(slots.change(|table| table.fill(Slot::Green, one.clone())).is_err());
        assert_eq!(reopened(&path), slots.table(), "a refused transition changes nothing");
    }

    #[test]
    fn unusable_record_is_reported_and_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots.json");
        for (text, reason) in [("{\"version\":9}", "format version 9"), ("{", "damaged")] {
            std::fs::write(&path, text).unwrap();
            let slots = Slots::new(path.clone());
            let error = chain(&slots.load().unwrap_err());
            assert!(error.contains("slots.json") && error.contains(reason), "{error}");
            assert!(slots.are_unknown());
            slots.note(|table| table.set(Slot::Blue, SlotUse::Live(occupant(1))));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            std::fs::remove_file(&path).unwrap();
            assert!(!slots.load().unwrap() && !slots.are_unknown());
        }
    }

    #[test]
    fn record_that_a_power_failure_damaged_counts_as_missing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots.json");
        let age = |path: &Path| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        };
        for damaged in ["", "\0\0\0\0", "{\"version\":1,"] {
            std::fs::write(&path, damaged).unwrap();
            let slots = Slots::new(path.clone());
            let is_blank = !damaged.starts_with('{');
            assert_eq!(slots.load().is_ok(), is_blank, "the damage is newer than the start of the machine");
            assert_eq!(slots.are_unknown(), !is_blank);
            age(&path);
            assert!(!slots.load().unwrap() && !slots.are_unknown());
            slots.note(|table| table.set(Slot::Blue, SlotUse::Live(occupant(1))));
            assert!(reopened(&path).get(Slot::Blue).occupant().is_some());
        }
        // A record of a newer larder is not damaged.
        std::fs::write(&path, "{\"version\":9}").unwrap();
        age(&path);
        assert!(Slots::new(path).load().is_err());
    }

    #[tokio::test]
    async fn wait_for_a_slot_ends_when_its_follow_up_ends() {
        let directory = tempfile::tempdir().unwrap();
        let slots = Slots::new(directory.path().join("slots.json"));
        let one = occupant(1);
        slots.note(|table| table.set(Slot::Blue, SlotUse::Draining(one.clone())));
        let mut waiting = Box::pin(slots.drained(Slot::Blue));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        slots.release(Slot::Blue, one.deployment);
        waiting.await;
        slots.drained(Slot::Green).await;
    }

    #[tokio::test]
    async fn wait_for_a_slot_ends_at_the_occupants_limits() {
        let directory = tempfile::tempdir().unwrap();
        let slots = Slots::new(directory.path().join("slots.json"));
        slots.note(|table| table.set(Slot::Blue, SlotUse::Draining(occupant(1))));
        slots.drained_within(Slot::Blue, Duration::ZERO).await;
        assert!(slots.table().draining().is_some());
    }

    #[test]
    fn closed_slots_write_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let slots = Slots::new(directory.path().join("slots.json"));
        slots.close();
        slots.note(|table| table.set(Slot::Blue, SlotUse::Live(occupant(1))));
        assert!(!directory.path().join("slots.json").exists());
    }
}
