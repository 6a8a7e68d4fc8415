//! The events of a deployment's journal, and the status of a step, which is computed from the step's events.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DeploymentSpec, Phase, ReleaseId, ReleaseNumber, UserName};

/// The party that must act on a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// The project: its code, recipe or scripts.
    Pusher,
    /// This machine: the disk, the memory, or a missing program.
    Host,
    /// larder itself.
    Bug,
    /// No party: a person cancelled the deployment, or a newer push replaced the deployment.
    Nobody,
}

/// The failure of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The phase of the step.
    pub phase: Phase,
    /// The party that must act on the failure.
    pub blame: Blame,
    /// The reason in one line, which git's rejected line shows.
    pub why: String,
    /// Instructions for the person who must act on the failure, one per line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.phase, self.why)
    }
}

/// The outcome of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The release is live.
    Live {
        /// The release.
        release: ReleaseId,
        /// The number of the release.
        number: ReleaseNumber,
    },
    /// The deployment changed nothing, because it failed before its first change or never began.
    Refused {
        /// The failure.
        fault: Fault,
    },
    /// The deployment failed, and all its changes were reverted.
    RolledBack {
        /// The failure.
        fault: Fault,
    },
    /// The dry run succeeded, and all its changes were reverted.
    Tried,
    /// The deployment failed, and its changes could not be reverted. The environment is frozen until a person unfreezes it.
    Stuck {
        /// The first failure of the deployment.
        fault: Fault,
        /// The step that could not be reverted, and the reason.
        undo: String,
    },
}

/// An event of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The deployment began. The fields of the specification are fields of the event.
    Opened(Box<DeploymentSpec>),
    /// A step began.
    Started {
        /// The name of the step.
        step: String,
    },
    /// A step succeeded.
    Succeeded {
        /// The name of the step.
        step: String,
        /// The facts that later steps, an undo or a recovery need; null if the step changed no facts.
        #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
        facts: serde_json::Value,
    },
    /// A step failed.
    Failed {
        /// The name of the step.
        step: String,
        /// The failure.
        fault: Fault,
    },
    /// The undo of a step began.
    UndoStarted {
        /// The name of the step.
        step: String,
    },
    /// The undo of a step succeeded.
    UndoFinished {
        /// The name of the step.
        step: String,
    },
    /// The undo of a step failed.
    UndoFailed {
        /// The name of the step.
        step: String,
        /// The reason.
        why: String,
    },
    /// A restarted server, or an unfreeze, took over the deployment to finish or unwind it.
    Recovered,
    /// A person unfroze the environment after a stuck deployment.
    Cleared {
        /// The person.
        by: UserName,
    },
    /// The deployment ended.
    Ended {
        /// The outcome.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// The observers received the outcome of the deployment.
    Announced {
        /// The number of the announced `Ended` event among the `Ended` events of the journal, counted from 1.
        ending: u32,
    },
}

/// An event with its time, which is one line of `journal.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The time of the event.
    pub at: Timestamp,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

/// The status of a step, which is computed from the events of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// The step has not begun.
    Waiting,
    /// The step has begun and not ended, so it may have some of its effects.
    Running,
    /// The step succeeded, so it has all of its effects.
    Done,
    /// The step failed, so it may have some of its effects.
    Failed,
    /// The step is being reverted.
    Undoing,
    /// The step was reverted, so it has no effects any more.
    Undone,
    /// The undo of the step failed.
    UndoFailed,
}

impl StepStatus {
    /// Returns the status after `event`, an event of the same step. Returns `None` if the event is impossible in the current status.
    pub fn next(self, event: &Event) -> Option<StepStatus> {
        match (self, event) {
            // After a restart of the server, a step may run again, even if the step has succeeded before. Every step may safely run twice.
            (StepStatus::Waiting | StepStatus::Running | StepStatus::Done, Event::Started { .. }) => Some(StepStatus::Running),
            (StepStatus::Running, Event::Succeeded { .. }) => Some(StepStatus::Done),
            (StepStatus::Running, Event::Failed { .. }) => Some(StepStatus::Failed),
            (
                StepStatus::Running | StepStatus::Done | StepStatus::Failed | StepStatus::Undoing | StepStatus::UndoFailed,
                Event::UndoStarted { .. },
            ) => Some(StepStatus::Undoing),
            (StepStatus::Undoing, Event::UndoFinished { .. }) => Some(StepStatus::Undone),
            (StepStatus::Undoing, Event::UndoFailed { .. }) => Some(StepStatus::UndoFailed),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_that_never_started_cannot_succeed() {
        let succeeded = Event::Succeeded { step: String::new(), facts: serde_json::Value::Null };
        assert_eq!(StepStatus::Waiting.next(&succeeded), None);
        assert_eq!(StepStatus::Running.next(&succeeded), Some(StepStatus::Done));
    }

    #[test]
    fn interrupted_undo_begins_again() {
        let undo = Event::UndoStarted { step: String::new() };
        assert_eq!(StepStatus::Undoing.next(&undo), Some(StepStatus::Undoing));
        assert_eq!(StepStatus::Undone.next(&undo), None);
    }
}
