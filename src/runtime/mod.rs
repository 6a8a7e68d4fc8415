//! Application processes: this module starts and stops processes, records their exits, writes their logs, links their persistent
//! paths, and renders their templates.
//!
//! The keeper owns the processes and restarts them when they exit. This module decides which processes run. After a restart of the
//! server, [`Runtime::adopt`] identifies the running processes by the labels that the keeper has stored. The type to read first is
//! [`Runtime`].

mod command;
mod data;
mod logs;
mod ports;
mod process;
mod secret_files;
pub mod static_server;
mod supervision;
mod templates;
pub mod worker;

pub use self::{
    command::{CANNOT_START, HINT, PROFILE_DIR},
    data::{DataJob, SeedRemoval},
    logs::{LogLimits, LogLine, LogPlace, Logs, tail},
    ports::Ports,
    process::{Boot, Exits, Instance, Label, Process, RunJob},
    secret_files::{SECRETS_DIR, SecretFiles},
    supervision::{ProbedWeb, Runtime, RuntimeError},
    templates::{TemplateFile, TemplateJob},
};
