//! The command `larder doctor`, which checks this machine's set-up.

use super::super::command::{Command, Shown};
use crate::control::{self, CommandError, DoctorCheck, Grade};

/// Check this machine's set-up: disk, sandbox, limits, missing languages
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {}

impl Command for DoctorArgs {
    type Request = control::Doctor;

    fn request(self) -> Result<control::Doctor, CommandError> {
        Ok(control::Doctor)
    }

    fn show(checks: &Vec<DoctorCheck>) -> Shown {
        Shown::Page(checks.iter().map(line).collect())
    }
}

/// Renders a check as one line.
pub(super) fn line(check: &DoctorCheck) -> String {
    let mark = match check.grade {
        Grade::Good => "ok  ",
        Grade::Warning => "warn",
        Grade::Bad => "BAD ",
    };
    format!("{mark}  {}: {}\n", check.what, check.finding)
}
