//! Upkeep of restore points: restore points on a schedule, their verification, and the removal of old restore points.
//!
//! `schedule.rs` is the task that starts the runs, `due.rs` computes their times, `run.rs` carries out one run of one environment, and
//! `state.rs` is the record that survives a restart of the server. `offsite.rs` copies restore points to the stores of `backup.offsite`.
//! `drill.rs` restores a copy and loads its databases, and `rehearsal.rs` starts the release on the copy.

mod drill;
mod due;
mod offsite;
mod offsite_cycle;
mod offsite_state;
pub(super) mod records;
mod rehearsal;
mod retain;
mod run;
mod schedule;
mod state;

pub use self::{
    offsite_state::{CopyState, OffsiteState},
    retain::Pruned,
    schedule::BackupOverview,
    state::{BackupState, DamagedPoint, DrillRecord, DrilledDatabase, LastFailure, LastRun, RunResult, VerifiedPoint},
};
