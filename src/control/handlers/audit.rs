//! The request that reads the audit log.

use serde::Serialize;

use crate::{
    control::{
        audit::AuditRecord,
        authz::Needs,
        error::{CommandError, run_blocking},
        request::{Context, Reply, Request},
        state::Control,
    },
    model::Access,
};

/// The request to read the audit log, and to check its chain.
#[derive(Debug)]
pub struct AuditRead {
    /// The maximum number of records to return; the newest records are returned.
    pub lines: usize,
    /// True to return only the result of the check.
    pub verify: bool,
}

/// Records of the audit log.
#[derive(Debug, Serialize)]
pub struct AuditView {
    /// The records, oldest first.
    pub records: Vec<AuditRecord>,
    /// The number of all records that are kept.
    pub kept: usize,
    /// The number of the first record that is kept; the rotation has deleted the records before it.
    pub first: Option<u64>,
    /// The first defect of the chain; absent if the chain is intact.
    pub damage: Option<String>,
}

impl Request for AuditRead {
    type View = AuditView;
    const NAME: &'static str = "audit";

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<AuditView>, CommandError> {
        let control = Control::clone(control);
        let report = run_blocking(move || control.audit_report().map_err(|error| CommandError::internal(&error))).await?;
        let (kept, first) = (report.records.len(), report.records.first().map(|record| record.number));
        let mut records = report.records;
        records.drain(..if self.verify { kept } else { kept.saturating_sub(self.lines) });
        Ok(AuditView { records, kept, first, damage: report.damage }.into())
    }
}
