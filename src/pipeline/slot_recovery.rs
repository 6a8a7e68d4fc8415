//! Reconciles the record of the slots with the links on disk, the journals and the running processes.

use super::{
    core::Pipeline,
    followups,
    history::{History, Summary},
    journal::JournalState,
    queue::Queue,
    slots::{Slots, stop_limits},
    util::chain,
};
use crate::{
    host::root::EnvironmentPaths,
    model::{DeploymentId, Live, Occupant, ReleaseId, Slot, SlotTable, SlotUse, StepStatus},
};

impl Pipeline {
    /// Reads the record of the slots before the environment is recovered. If the file is missing, creates the record from the
    /// journals. A record that cannot be used freezes the environment.
    pub(super) fn load_slots(&self, queue: &Queue, paths: &EnvironmentPaths) {
        let loaded = queue.slots.load();
        let (live, mut history) = queue.snapshot();
        match loaded {
            Ok(true) => history.slots = None,
            Ok(false) => {
                history.slots = None;
                self.make_record(queue, &history, live, paths);
            }
            Err(error) => {
                let why = format!("{}; use the version of larder that wrote the record, or remove the file", chain(&error));
                let file = paths.slots_record();
                tracing::error!(environment = queue.environment().title(), file = %file.display(), why, "cannot use the record of the slots");
                // The record is created in memory only; the file does not change.
                self.make_record(queue, &history, live, paths);
                history.slots = Some(why);
            }
        }
        queue.state.lock().history.slots = history.slots;
    }

    /// Creates the record of an environment whose record is missing or cannot be used. Early versions of larder 0.1 did not write the
    /// record.
    fn make_record(&self, queue: &Queue, history: &History, live: Option<Live>, paths: &EnvironmentPaths) {
        let states = history.deployments.iter().filter(|summary| summary.ended.is_none());
        let states =
            states.filter_map(|summary| Some((summary, JournalState::read(&paths.deployment(summary.deployment)).ok()?)));
        let mut table = SlotTable::default();
        let mut live = live;
        for (summary, state) in states {
            if state.is_committed() {
                // Recovery will finish this deployment.
                if let Some(old) = &summary.previous {
                    table.set(old.slot, SlotUse::Draining(self.occupant(history, paths, old.release, None)));
                }
                live = Some(summary.live());
            } else if state.status("deploy.slot") != StepStatus::Waiting && state.status("deploy.slot") != StepStatus::Undone {
                // Recovery will revert this deployment.
                table.set(summary.slot, SlotUse::Ready(self.occupant(history, paths, summary.release, Some(summary))));
            }
        }
        queue.slots.note(|slots| *slots = table);
        if let Some(live) = &live
            && let Some(made) = history.of_release(live.release)
            && let Some(old) = made.previous.as_ref().filter(|old| old.slot != live.slot)
            && queue.slots.table().get(old.slot) == &SlotUse::Idle
            && followups::are_left(&self.0.services, &queue.environment(), made.deployment)
        {
            // Changes made by hand may be left in the old slot.
            let occupant = self.occupant(history, paths, old.release, None);
            queue.slots.note(|table| table.set(old.slot, SlotUse::Draining(occupant)));
        }
        self.reconcile(queue, history, live.as_ref(), paths, true);
    }

    /// Makes the record agree with the live release. If `unfinished` is true, ready slots stay ready, because their deployments
    /// are recovered later.
    fn reconcile(&self, queue: &Queue, history: &History, live: Option<&Live>, paths: &EnvironmentPaths, unfinished: bool) {
        let slots: &Slots = &queue.slots;
        let mut table = slots.table();
        for slot in Slot::ALL {
            let used = match (table.get(slot).clone(), live) {
                (used, Some(live)) if live.slot == slot => {
                    let known = used.occupant().filter(|occupant| occupant.release == live.release).cloned();
                    SlotUse::Live(known.unwrap_or_else(|| self.occupant(history, paths, live.release, None)))
                }
                (SlotUse::Ready(occupant), _) if unfinished => SlotUse::Ready(occupant),
                (SlotUse::Ready(occupant) | SlotUse::Live(occupant) | SlotUse::Draining(occupant), _) => {
                    SlotUse::Draining(occupant)
                }
                (SlotUse::Idle, _) => {
                    let instances = self.0.services.runtime.instances(queue.id, Some(slot));
                    let release = instances.first().map(|instance| instance.label.release);
                    release.map_or(SlotUse::Idle, |release| SlotUse::Draining(self.occupant(history, paths, release, None)))
                }
            };
            table.set(slot, used);
        }
        slots.note(|slots| *slots = table);
    }

    /// Makes the record agree with the live release after all deployments of the environment were recovered.
    pub(super) fn reconcile_slots(&self, queue: &Queue, paths: &EnvironmentPaths) {
        let (live, history) = queue.snapshot();
        self.reconcile(queue, &history, live.as_ref(), paths, false);
    }

    /// Returns the occupant of a slot, with the stop limits from the journal of a deployment of the release: `made`, or else the last
    /// deployment that made the release live, or else the last deployment of the release.
    fn occupant(&self, history: &History, paths: &EnvironmentPaths, release: ReleaseId, made: Option<&Summary>) -> Occupant {
        let last = || history.deployments.iter().rev().find(|summary| summary.release == release);
        let made = made.or_else(|| history.of_release(release)).or_else(last);
        let settings = made.and_then(|made| JournalState::read(&paths.deployment(made.deployment)).ok()?.facts.settings);
        let deployment = made.map(|made| made.deployment);
        Occupant {
            // Without a journal, the deployment is unknown, so the occupant gets a new id. The follow-up that empties the slot takes the id
            // from the table.
            deployment: deployment.unwrap_or_else(|| DeploymentId::new(release.created())),
            release,
            stop: stop_limits(&settings.unwrap_or_default()),
        }
    }
}
