//! The pipeline, which deploys pushes, from the decision about each ref to the verdict.
//!
//! A push passes through these files: [`intake`] decides about each ref. The push of a deploy branch becomes a [`DeployRequest`],
//! which `deploy.rs` adds to the queue of the environment. When the deployment starts, a `DeploymentSpec` records all decisions
//! and the plan, which is the list of the steps. `runner.rs` executes the plan and journals each event. `conclude.rs` ends the
//! deployment, and the outcome in the [`Ticket`] is the verdict on the ref. After a crash, `recover.rs` continues from the
//! journal. [`Pipeline`] is the type to read first.

mod conclude;
mod configuration;
mod context;
mod copies;
mod copy_record;
mod core;
mod data_copy;
mod data_return;
mod databases;
mod deploy;
mod disk;
mod disk_guard;
mod disk_state;
mod drift;
mod durations;
mod edits;
mod error;
mod facts;
mod failure;
mod fault;
mod followups;
mod forecast;
mod health;
mod held;
mod history;
mod hooks;
pub mod intake;
mod journal;
mod known;
mod live_app;
pub mod observe;
#[cfg(test)]
mod old_journals_tests;
mod output;
mod permits;
mod phases;
mod pillar;
mod pillar_state;
mod plan;
mod points;
mod publish;
mod queue;
mod recover;
mod registry;
mod report;
mod reserve;
mod restore;
mod restore_databases;
mod restore_record;
mod runner;
mod running;
mod saves;
mod scans;
mod site_watch;
mod slot_recovery;
mod slots;
mod space_wait;
mod spare;
mod state_files;
mod step;
mod strategy;
mod supply;
mod template_job;
mod transcript;
mod upkeep;
mod util;
mod verdict;
mod watch_state;

pub use self::{
    configuration::{ChangeError, EnvironmentConfiguration},
    context::Services,
    core::{Pipeline, ProjectLimits, StartCheck},
    data_copy::{DataCopy, names_a_database},
    data_return::{PointChoiceError, Upgrade},
    databases::StoredUrlError,
    drift::DriftError,
    durations::{HoldRun, MethodEstimate},
    edits::EditsError,
    error::{PipelineError, ThawError},
    facts::Facts,
    forecast::LastUpgrade,
    history::{History, Summary},
    intake::PushRejection,
    known::{KnownRelease, ReleaseNameError, find},
    live_app::UpgradeCase,
    permits::Permits,
    pillar::{PillarProblem, pillar_reason},
    plan::Plan,
    points::PointsError,
    queue::{DeployRequest, Goal, PillarGoal, Ticket},
    report::DeploymentReport,
    restore::Restored,
    restore_record::{RestoreEnd, RestoreRecord},
    running::RestartError,
    scans::{DriftScans, LastScan},
    space_wait::{names_full_disk, with_figures},
    state_files::{BuildNumbers, Pin, Pins},
    supply::{ReleaseCandidate, SupplyError},
    transcript::{Follower, Transcript},
    upkeep::{
        BackupOverview, BackupState, CopyState, DamagedPoint, DrillRecord, DrilledDatabase, LastFailure, LastRun, OffsiteState,
        Pruned, RunResult, VerifiedPoint,
    },
    util::{chain, seconds},
    verdict::unrestored,
};
