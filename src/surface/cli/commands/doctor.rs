//! The command `larder doctor`, which checks this machine's set-up.

use clap::ValueEnum;

use super::super::{
    command::{Asked, Asking, Command, Shown},
    text,
};
use crate::control::{self, CommandError, DoctorCheck, Grade, OfferRow, OfferedKeys};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "`larder doctor keys` lists the keys that clients offered last, newest first, with the reason why a key was refused. The list is in memory only, and has a limited length.\n\nExamples:\n  larder doctor\n  larder doctor keys"
)]
/// Check this machine's set-up: disk, sandbox, limits, missing languages
pub struct DoctorArgs {
    /// Subject of the check, instead of this machine
    #[arg(value_name = "SUBJECT")]
    topic: Option<Topic>,
}

/// A subject of checks.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Topic {
    /// The SSH keys that clients offered last, and the reason of each refusal
    Keys,
}

impl DoctorArgs {
    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self.topic {
            None => asking.ask(DoctorMachine).await,
            Some(Topic::Keys) => asking.ask(DoctorKeys).await,
        }
    }
}

struct DoctorKeys;

impl Command for DoctorKeys {
    type Request = OfferedKeys;

    fn request(self) -> Result<OfferedKeys, CommandError> {
        Ok(OfferedKeys)
    }

    fn show(rows: &Vec<OfferRow>) -> Shown {
        let certificate = |row: &OfferRow| row.offer.certificate.as_ref().map(|title| format!(" {title}")).unwrap_or_default();
        let line = |row: &OfferRow| {
            vec![
                row.at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
                row.offer.user.as_ref().map_or_else(|| String::from("?"), ToString::to_string),
                row.offer.source.to_string(),
                format!("{} {}{}", row.offer.kind, row.offer.fingerprint, certificate(row)),
                row.count.to_string(),
                row.offer.refused.clone().unwrap_or_else(|| String::from("logged in")),
            ]
        };
        Shown::Page(text::table(&["TIME (UTC)", "USER", "FROM", "KEY", "TIMES", "ANSWER"], rows.iter().map(line).collect()))
    }
}

struct DoctorMachine;

impl Command for DoctorMachine {
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
