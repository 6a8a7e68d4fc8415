//! The pipeline: everything that happens to a push.
//!
//! The way of a push through the files: [`intake`] decides ref by ref; a deploy branch becomes a [`DeployRequest`], which `deploy.rs` puts
//! into its environment's queue; when its turn comes, a `DeploymentSpec` fixes everything about the deployment, with the names of
//! its steps; the runner walks that plan and journals each move; `conclude.rs` ends the deployment, and the [`Ticket`]'s outcome is
//! the verdict on the ref. After a crash `recover.rs` goes on from the journal. [`Pipeline`] is the type to read first.

mod conclude;
mod context;
mod core;
mod deploy;
mod drift;
mod error;
mod facts;
mod failure;
mod fault;
mod followups;
mod health;
mod history;
pub mod intake;
mod journal;
mod known;
pub mod observe;
#[cfg(test)]
mod old_journals_tests;
mod output;
mod permits;
mod phases;
mod plan;
mod publish;
mod queue;
mod recover;
mod registry;
mod runner;
mod running;
mod scans;
mod slot_recovery;
mod slots;
mod spare;
mod state_files;
mod step;
mod supply;
mod transcript;
mod util;
mod verdict;

pub use self::{
    context::Services,
    core::{Pipeline, StartCheck},
    drift::DriftError,
    error::{PipelineError, ThawError},
    facts::Facts,
    history::{History, Summary},
    intake::PushRejection,
    known::{KnownRelease, ReleaseNameError, find},
    permits::Permits,
    plan::Plan,
    queue::{DeployRequest, Goal, Ticket},
    running::RestartError,
    scans::{DriftScans, LastScan},
    state_files::{BuildNumbers, Pin, Pins},
    supply::{ReleaseCandidate, SupplyError},
    transcript::{Follower, Transcript},
    util::{chain, seconds},
};
