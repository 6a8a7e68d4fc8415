//! The record of a deployment: events, and the status that they add up to.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    BranchName, CommitId, DeploymentId, EnvironmentName, Live, Phase, ReleaseId, ReleaseNumber, RemoteName, Slot, UserName,
};

/// Why a deployment was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Trigger {
    /// Somebody pushed.
    Push {
        /// Who.
        by: UserName,
    },
    /// `larder deploy` was asked for.
    Redeploy {
        /// Who.
        by: UserName,
    },
    /// A deliverable was asked for by name: `larder pull`, or `larder promote` on the other side.
    Pull {
        /// Who.
        by: UserName,
    },
    /// An older release was asked for.
    Rollback {
        /// Who.
        by: UserName,
    },
}

impl Trigger {
    /// Who started it.
    pub fn by(&self) -> &UserName {
        match self {
            Trigger::Push { by } | Trigger::Redeploy { by } | Trigger::Pull { by } | Trigger::Rollback { by } => by,
        }
    }
}

/// Where the release of a deployment comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It is built here, from its commit.
    #[default]
    Commit,
    /// It is a deliverable in the environment's own store.
    Store,
    /// It is a deliverable of another environment of the project on this server.
    Environment(EnvironmentName),
    /// It is a deliverable of another server or of a shared place.
    Remote(RemoteName),
    /// It was live here before, and everything about it is known.
    Past,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Commit => f.write_str("its commit"),
            Origin::Store => f.write_str("the store"),
            Origin::Environment(name) => write!(f, "the environment {name}"),
            Origin::Remote(name) => write!(f, "the remote {name}"),
            Origin::Past => f.write_str("an earlier deployment"),
        }
    }
}

/// Who has to act on a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// The project: its code, recipe or scripts.
    Pusher,
    /// This machine: disk, memory, a missing program.
    Host,
    /// larder itself.
    Bug,
    /// Somebody cancelled, or a newer push took its place.
    Nobody,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The phase of the step.
    pub phase: Phase,
    /// Who has to act.
    pub blame: Blame,
    /// One line; it ends up in git's own rejected line.
    pub why: String,
    /// What to do next, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.phase, self.why)
    }
}

/// How a deployment ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The release serves.
    Live {
        /// Which.
        release: ReleaseId,
        /// Its number.
        number: ReleaseNumber,
    },
    /// Nothing was changed; the request itself was not acceptable.
    Refused {
        /// Why.
        fault: Fault,
    },
    /// It failed, and everything it had changed was put back.
    RolledBack {
        /// Why.
        fault: Fault,
    },
    /// What was to be tried went well, and was put back.
    Tried,
    /// It failed, and putting back failed too. The environment is frozen until a person has looked.
    Stuck {
        /// Why it failed in the first place.
        fault: Fault,
        /// What could not be put back.
        undo: String,
    },
}

/// A thing that happened in a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // There is one at a time, on its way to the disk.
pub enum Event {
    /// The deployment began.
    Opened {
        /// Its id.
        deployment: DeploymentId,
        /// Why it began.
        trigger: Trigger,
        /// The branch that is deployed.
        branch: BranchName,
        /// The commit that is deployed.
        commit: CommitId,
        /// The release that it will make; drawn here, so that a step that runs twice means the same release.
        release: ReleaseId,
        /// Its number.
        number: ReleaseNumber,
        /// The slot that it will boot in.
        slot: Slot,
        /// What serves now, and what an unwind goes back to.
        previous: Option<Live>,
        /// The steps that it will take, by name.
        plan: Vec<String>,
        /// Where the release comes from.
        #[serde(default)]
        origin: Origin,
        /// Whether the release was installed here before: then its tree, its files and its ref are not this deployment's to remove.
        #[serde(default)]
        again: bool,
        /// The deployment that made the release live before, if one did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        recorded: Option<DeploymentId>,
        /// Why the promotion policy does not count this time, in the words of whoever decided that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        overriding: Option<String>,
        /// The phases that are only tried, to be put back whatever comes of them; none for a deployment that shall go live.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        trial: Vec<Phase>,
    },
    /// A step began.
    Started {
        /// Its name.
        step: String,
    },
    /// A step did its work.
    Succeeded {
        /// Its name.
        step: String,
        /// What later steps, an undo or a recovery need to know of it.
        #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
        facts: serde_json::Value,
    },
    /// A step failed.
    Failed {
        /// Its name.
        step: String,
        /// Why.
        fault: Fault,
    },
    /// Putting back the work of a step began.
    UndoStarted {
        /// Its name.
        step: String,
    },
    /// The work of a step was put back.
    UndoFinished {
        /// Its name.
        step: String,
    },
    /// The work of a step could not be put back.
    UndoFailed {
        /// Its name.
        step: String,
        /// Why.
        why: String,
    },
    /// A server took the deployment over after a restart.
    Recovered,
    /// A person has looked at a stuck deployment and released the environment.
    Cleared {
        /// Who.
        by: UserName,
    },
    /// The deployment ended.
    Ended {
        /// How.
        #[serde(flatten)]
        outcome: Outcome,
    },
}

/// An event with its moment; one line of `journal.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// The state of one step, folded from its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not reached.
    Waiting,
    /// Begun, not ended: its effects may or may not be there.
    Running,
    /// Its effects are there.
    Done,
    /// It failed: its effects may be there in part.
    Failed,
    /// Being put back.
    Undoing,
    /// Its effects are gone.
    Undone,
    /// Putting back failed.
    UndoFailed,
}

impl Status {
    /// The state after `event` of the same step, or nothing where that event cannot follow.
    pub fn next(self, event: &Event) -> Option<Status> {
        match (self, event) {
            // A step whose server was killed runs again: every step may safely run twice.
            (Status::Waiting | Status::Running | Status::Done, Event::Started { .. }) => Some(Status::Running),
            (Status::Running, Event::Succeeded { .. }) => Some(Status::Done),
            (Status::Running, Event::Failed { .. }) => Some(Status::Failed),
            (
                Status::Running | Status::Done | Status::Failed | Status::Undoing | Status::UndoFailed,
                Event::UndoStarted { .. },
            ) => Some(Status::Undoing),
            (Status::Undoing, Event::UndoFinished { .. }) => Some(Status::Undone),
            (Status::Undoing, Event::UndoFailed { .. }) => Some(Status::UndoFailed),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_was_never_started_cannot_succeed() {
        let succeeded = Event::Succeeded { step: String::new(), facts: serde_json::Value::Null };
        assert_eq!(Status::Waiting.next(&succeeded), None);
        assert_eq!(Status::Running.next(&succeeded), Some(Status::Done));
    }

    #[test]
    fn an_interrupted_undo_may_begin_again() {
        let undo = Event::UndoStarted { step: String::new() };
        assert_eq!(Status::Undoing.next(&undo), Some(Status::Undoing));
        assert_eq!(Status::Undone.next(&undo), None);
    }
}
