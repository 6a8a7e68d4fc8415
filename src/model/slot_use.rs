//! The use of the slots of an environment: the release in each slot, and the limits for stopping the release. Read [`SlotTable`] first.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{DeploymentId, ProcessType, ReleaseId, Slot};

/// The limits for stopping a release, from the release's own recipe. The limits are stored with the slot, so that neither the recipe of a
/// newer release nor a restart of the server changes the limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopLimits {
    /// The time limit for the end of requests in flight, in milliseconds.
    pub drain: u64,
    /// The time in milliseconds between the stop signal and SIGKILL.
    pub grace: u64,
    /// The time in milliseconds between the stop signal and SIGKILL, for each process type whose time differs from `grace`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub processes: BTreeMap<String, u64>,
}

impl StopLimits {
    /// Returns the time limit for the end of requests in flight.
    pub fn drain(&self) -> Duration {
        Duration::from_millis(self.drain)
    }

    /// Returns the time between the stop signal and SIGKILL for a process.
    pub fn grace_of(&self, process: &ProcessType) -> Duration {
        Duration::from_millis(self.processes.get(process.as_str()).copied().unwrap_or(self.grace))
    }

    /// Returns the maximum duration of the stop: the drain time, and then the longest time between the stop signal and SIGKILL.
    pub fn longest(&self) -> Duration {
        let grace = self.processes.values().copied().chain([self.grace]).max().unwrap_or_default();
        Duration::from_millis(self.drain.saturating_add(grace))
    }

    /// Lowers the drain time to at most `drain`, and every time between the stop signal and SIGKILL to at most `grace`.
    #[must_use]
    pub fn at_most(mut self, drain: Duration, grace: Duration) -> StopLimits {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.drain = self.drain.min(millis(drain));
        self.grace = self.grace.min(millis(grace));
        for own in self.processes.values_mut() {
            *own = (*own).min(millis(grace));
        }
        self
    }
}

/// The release in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupant {
    /// The deployment that filled the slot.
    pub deployment: DeploymentId,
    pub release: ReleaseId,
    /// The limits for stopping the release.
    pub stop: StopLimits,
}

/// The use of one slot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "use", rename_all = "snake_case")]
pub enum SlotUse {
    /// No process runs in the slot, and a deployment may empty the slot.
    #[default]
    Idle,
    /// A deployment fills or has filled the slot, and has not switched requests to the slot.
    Ready(Occupant),
    /// The release in the slot serves new requests.
    Live(Occupant),
    /// The release in the other slot serves new requests. The release in this slot answers its requests in flight. After these requests,
    /// the processes of the release are stopped, and changes made by hand are saved.
    Draining(Occupant),
}

impl SlotUse {
    /// Returns the release in the slot.
    pub fn occupant(&self) -> Option<&Occupant> {
        match self {
            SlotUse::Idle => None,
            SlotUse::Ready(occupant) | SlotUse::Live(occupant) | SlotUse::Draining(occupant) => Some(occupant),
        }
    }
}

/// The reason why the use of a slot cannot change, or why a record of the slots cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// The slot is live, so no deployment can fill the slot.
    #[error("cannot fill the slot {0}: the slot is live")]
    Live(Slot),
    /// A deployment can switch only to a slot that the deployment has filled.
    #[error("cannot switch to the slot {0}: deployment {1} has not filled the slot")]
    NotReady(Slot, DeploymentId),
    /// A newer version of larder has written the record.
    #[error("the record has format version {0}, and this larder reads version {VERSION}")]
    Version(Value),
    /// The record is damaged.
    #[error("the record is damaged: {0}")]
    Damaged(String),
}

/// The version of the record's format that this code reads and writes.
const VERSION: u64 = 1;

/// The use of the slots of an environment. Every transition may run twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotTable {
    blue: SlotUse,
    green: SlotUse,
    in_place: SlotUse,
}

/// The record on disk.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u64,
    blue: SlotUse,
    green: SlotUse,
    /// Absent while the slot is idle, so that the record of an environment with overlays has the form of earlier versions.
    #[serde(default, rename = "in-place", skip_serializing_if = "is_idle")]
    in_place: SlotUse,
}

fn is_idle(used: &SlotUse) -> bool {
    *used == SlotUse::Idle
}

impl SlotTable {
    /// Parses a record.
    ///
    /// # Errors
    /// The record is damaged, or its version is unknown. The function never returns a default table for such a record.
    pub fn parse(bytes: &[u8]) -> Result<SlotTable, SlotError> {
        let damaged = |error: serde_json::Error| SlotError::Damaged(error.to_string());
        let value: Value = serde_json::from_slice(bytes).map_err(damaged)?;
        match value.get("version") {
            Some(version) if version.as_u64() == Some(VERSION) => {}
            None => return Err(SlotError::Damaged(String::from("missing field `version`"))),
            Some(other) => return Err(SlotError::Version(other.clone())),
        }
        let Stored { blue, green, in_place, .. } = serde_json::from_value(value).map_err(damaged)?;
        let live = [&blue, &green, &in_place].into_iter().filter(|used| matches!(used, SlotUse::Live(_)));
        match live.count() {
            0 | 1 => Ok(SlotTable { blue, green, in_place }),
            _ => Err(SlotError::Damaged(String::from("several slots are live"))),
        }
    }

    /// Returns the record in the form in which the record is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        let SlotTable { blue, green, in_place } = self.clone();
        let stored = Stored { version: VERSION, blue, green, in_place };
        let mut bytes = serde_json::to_vec_pretty(&stored).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Returns the use of a slot.
    pub fn get(&self, slot: Slot) -> &SlotUse {
        match slot {
            Slot::Blue => &self.blue,
            Slot::Green => &self.green,
            Slot::InPlace => &self.in_place,
        }
    }

    /// Sets the use of a slot.
    pub fn set(&mut self, slot: Slot, used: SlotUse) {
        match slot {
            Slot::Blue => self.blue = used,
            Slot::Green => self.green = used,
            Slot::InPlace => self.in_place = used,
        }
    }

    /// Returns the overlay slot in which the next release boots: the overlay slot that is not live, or blue if neither is live.
    pub fn next(&self) -> Slot {
        if matches!(self.blue, SlotUse::Live(_)) { Slot::Green } else { Slot::Blue }
    }

    /// Returns the draining slot, with its release.
    pub fn draining(&self) -> Option<(Slot, &Occupant)> {
        Slot::ALL.into_iter().find_map(|slot| match self.get(slot) {
            SlotUse::Draining(occupant) => Some((slot, occupant)),
            _ => None,
        })
    }

    /// Records that a deployment has emptied a slot and fills the slot. Any use except live becomes ready.
    ///
    /// # Errors
    /// The slot is live.
    pub fn fill(&mut self, slot: Slot, occupant: Occupant) -> Result<(), SlotError> {
        match self.get(slot) {
            SlotUse::Live(_) => Err(SlotError::Live(slot)),
            _ => {
                self.set(slot, SlotUse::Ready(occupant));
                Ok(())
            }
        }
    }

    /// Records that requests are switched to a slot. The slot becomes live, and the slot that was live becomes draining.
    ///
    /// # Errors
    /// The deployment has not filled the slot.
    pub fn switch(&mut self, slot: Slot, deployment: DeploymentId) -> Result<(), SlotError> {
        match self.get(slot).clone() {
            SlotUse::Ready(occupant) | SlotUse::Live(occupant) if occupant.deployment == deployment => {
                self.set(slot, SlotUse::Live(occupant));
                for other in Slot::ALL.into_iter().filter(|other| *other != slot) {
                    if let SlotUse::Live(old) = self.get(other).clone() {
                        self.set(other, SlotUse::Draining(old));
                    }
                }
                Ok(())
            }
            _ => Err(SlotError::NotReady(slot, deployment)),
        }
    }

    /// Records that the release in the in-place slot was stopped, and that a deployment fills the slot with its own release.
    pub fn replace(&mut self, occupant: Occupant) {
        self.in_place = SlotUse::Ready(occupant);
    }

    /// Reverts [`SlotTable::replace`] of a deployment. The slot has the release `old` again, or is idle.
    pub fn put_back(&mut self, deployment: DeploymentId, old: Option<Occupant>) {
        if self.in_place.occupant().is_none_or(|occupant| occupant.deployment == deployment) {
            self.in_place = old.map_or(SlotUse::Idle, SlotUse::Live);
        }
    }

    /// Reverts [`SlotTable::switch`] of a deployment. The live slot becomes ready, and the slot `old` becomes live if it drains.
    pub fn revert(&mut self, slot: Slot, deployment: DeploymentId, old: Option<Slot>) {
        if let SlotUse::Live(occupant) = self.get(slot).clone()
            && occupant.deployment == deployment
        {
            self.set(slot, SlotUse::Ready(occupant));
            if let Some(old) = old
                && let SlotUse::Draining(occupant) = self.get(old).clone()
            {
                self.set(old, SlotUse::Live(occupant));
            }
        }
    }

    /// Records that the processes of a deployment have exited. A ready or draining slot becomes idle. A live slot, or a slot that another
    /// deployment has filled, is not changed.
    pub fn release(&mut self, slot: Slot, deployment: DeploymentId) {
        if let SlotUse::Ready(occupant) | SlotUse::Draining(occupant) = self.get(slot)
            && occupant.deployment == deployment
        {
            self.set(slot, SlotUse::Idle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occupant(second: i64, grace: u64) -> Occupant {
        let at = jiff::Timestamp::from_second(second).unwrap();
        let stop = StopLimits { drain: 30_000, grace, processes: BTreeMap::from([(String::from("worker"), 2 * grace)]) };
        Occupant { deployment: DeploymentId::new(at), release: ReleaseId::new(at), stop }
    }

    /// Does a transition twice, and parses the record of the table after each transition.
    fn twice(table: &mut SlotTable, transition: impl Fn(&mut SlotTable)) {
        transition(table);
        let once = table.clone();
        *table = SlotTable::parse(&table.to_bytes()).unwrap();
        assert_eq!(*table, once);
        transition(table);
        assert_eq!(*table, once, "the repeated transition changes the table");
    }

    #[test]
    fn repeated_transition_does_not_change_the_table() {
        let (one, two) = (occupant(1, 100), occupant(2, 200));
        let mut table = SlotTable::default();
        assert_eq!(table.next(), Slot::Blue);
        twice(&mut table, |table| table.fill(Slot::Blue, one.clone()).unwrap());
        assert_eq!(table.get(Slot::Blue), &SlotUse::Ready(one.clone()));
        twice(&mut table, |table| table.switch(Slot::Blue, one.deployment).unwrap());
        assert_eq!((table.get(Slot::Blue), table.next()), (&SlotUse::Live(one.clone()), Slot::Green));
        twice(&mut table, |table| table.fill(Slot::Green, two.clone()).unwrap());
        twice(&mut table, |table| table.switch(Slot::Green, two.deployment).unwrap());
        assert_eq!(table.draining(), Some((Slot::Blue, &one)));
        assert_eq!((table.get(Slot::Green), table.next()), (&SlotUse::Live(two.clone()), Slot::Blue));
        // The undo reverts the transitions.
        let mut undone = table.clone();
        twice(&mut undone, |table| table.revert(Slot::Green, two.deployment, Some(Slot::Blue)));
        assert_eq!(
            (undone.get(Slot::Blue), undone.get(Slot::Green)),
            (&SlotUse::Live(one.clone()), &SlotUse::Ready(two.clone()))
        );
        twice(&mut undone, |table| table.release(Slot::Green, two.deployment));
        assert_eq!(undone.get(Slot::Green), &SlotUse::Idle);
        // After the processes of the old release have exited, the draining slot becomes idle.
        twice(&mut table, |table| table.release(Slot::Blue, one.deployment));
        assert_eq!((table.get(Slot::Blue), table.draining()), (&SlotUse::Idle, None));
    }

    #[test]
    fn live_slot_is_neither_filled_nor_released() {
        let (one, two) = (occupant(1, 100), occupant(2, 200));
        let mut table = SlotTable::default();
        table.fill(Slot::Blue, one.clone()).unwrap();
        assert_eq!(table.switch(Slot::Blue, two.deployment), Err(SlotError::NotReady(Slot::Blue, two.deployment)));
        table.switch(Slot::Blue, one.deployment).unwrap();
        assert_eq!(table.fill(Slot::Blue, two.clone()), Err(SlotError::Live(Slot::Blue)));
        table.release(Slot::Blue, one.deployment);
        table.revert(Slot::Blue, two.deployment, None);
        assert_eq!(table.get(Slot::Blue), &SlotUse::Live(one));
        assert!(table.switch(Slot::Green, two.deployment).is_err());
    }

    #[test]
    fn late_follow_up_does_not_release_the_next_occupant() {
        let (one, two) = (occupant(1, 100), occupant(2, 200));
        let mut table = SlotTable::default();
        table.set(Slot::Green, SlotUse::Draining(one.clone()));
        table.fill(Slot::Green, two.clone()).unwrap();
        table.release(Slot::Green, one.deployment);
        assert_eq!(table.get(Slot::Green), &SlotUse::Ready(two));
    }

    #[test]
    fn record_with_unknown_version_or_damage_is_refused() {
        let version = |text: &str| matches!(SlotTable::parse(text.as_bytes()), Err(SlotError::Version(_)));
        assert!(version(r#"{"version":2}"#) && version(r#"{"version":"1"}"#));
        for text in ["", "{}", "[]", r#"{"version":1}"#, r#"{"version":1,"blue":{"use":"parked"},"green":{"use":"idle"}}"#] {
            assert!(matches!(SlotTable::parse(text.as_bytes()), Err(SlotError::Damaged(_))), "{text}");
        }
        let live = SlotUse::Live(occupant(1, 100));
        let both = SlotTable { blue: live.clone(), green: live, ..SlotTable::default() };
        assert!(matches!(SlotTable::parse(&both.to_bytes()), Err(SlotError::Damaged(_))));
    }

    #[test]
    fn stop_limits_of_a_process_are_at_most_the_limits_of_the_server() {
        let stop = occupant(1, 10_000).stop;
        let (web, worker) = ("web".parse().unwrap(), "worker".parse().unwrap());
        assert_eq!((stop.grace_of(&web), stop.grace_of(&worker)), (Duration::from_secs(10), Duration::from_secs(20)));
        assert_eq!(stop.longest(), Duration::from_secs(50));
        let lower = stop.at_most(Duration::from_secs(5), Duration::from_secs(15));
        assert_eq!((lower.drain(), lower.grace_of(&worker)), (Duration::from_secs(5), Duration::from_secs(15)));
    }
}
