//! Upkeep of restore points: restore points on a schedule, their verification, and the removal of old restore points.
//!
//! `schedule.rs` is the task that starts the runs, `due.rs` computes their times, `run.rs` carries out one run of one environment, and
//! `state.rs` is the record that survives a restart of the server.

mod drill;
mod due;
pub(super) mod records;
mod retain;
mod run;
mod schedule;
mod state;

pub use self::{
    retain::Pruned,
    schedule::BackupOverview,
    state::{BackupState, DamagedPoint, DrillRecord, LastFailure, LastRun, RunResult, VerifiedPoint},
};
