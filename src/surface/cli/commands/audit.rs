//! The command `larder audit`, which shows the audit log.

use super::super::{
    command::{Command, Shown},
    text,
};
use crate::control::{AuditOutcome, AuditRead, AuditRecord, AuditView, CommandError};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each record contains the digest of the record before it. The exit status is 1 if a record was changed, removed or inserted later.\n\nExamples:\n  larder audit\n  larder audit --verify\n  larder --json audit --lines 10000"
)]
/// Show who did what, with which key, from where, and check that no record was changed
pub struct AuditArgs {
    /// Number of records, the newest
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 50)]
    lines: usize,
    /// Show only the result of the check
    #[arg(long)]
    verify: bool,
}

impl Command for AuditArgs {
    type Request = AuditRead;

    fn request(self) -> Result<AuditRead, CommandError> {
        Ok(AuditRead { lines: self.lines, verify: self.verify })
    }

    fn show(view: &AuditView) -> Shown {
        let row = |record: &AuditRecord| {
            let entry = &record.entry;
            let outcome = match entry.outcome {
                AuditOutcome::Permitted => "permitted",
                AuditOutcome::Refused => "refused",
                AuditOutcome::Failed => "failed",
            };
            let lost = (record.lost > 0).then(|| format!("{} lost before", text::count(record.lost as usize, "record")));
            let why: Vec<_> = [entry.detail.clone(), entry.why.clone(), lost].into_iter().flatten().collect();
            vec![
                record.number.to_string(),
                record.at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
                entry.who.to_string(),
                entry.from.clone().unwrap_or_default(),
                entry.what.clone(),
                entry.on.clone(),
                outcome.to_owned(),
                why.join("; "),
            ]
        };
        let head = ["NUMBER", "TIME (UTC)", "WHO", "FROM", "WHAT", "ON", "OUTCOME", "DETAILS"];
        let table = text::table(&head, view.records.iter().map(row).collect());
        let table = if view.records.is_empty() { String::new() } else { table };
        let kept = text::count(view.kept, "record");
        Shown::Page(match &view.damage {
            None => format!("{table}{kept}, chain intact\n"),
            Some(damage) => format!("{table}{kept}, CHAIN DAMAGED: {damage}\n"),
        })
    }

    fn exit_code(view: &AuditView) -> u8 {
        u8::from(view.damage.is_some())
    }
}
