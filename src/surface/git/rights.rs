//! The rights of the pusher on each ref, and the records of pushes in the audit log.

use super::{PushInFlight, Pushes};
use crate::{
    control::{AuditEntry, AuditOutcome, Caller, CommandError, Needs},
    git::{
        RepositoryKind, Service,
        hook::{HookSession, RefVerdict},
    },
    model::{Access, Environment, Project, ProjectName},
    pipeline::intake::{RefDecision, RefUpdate, decide},
};

/// Returns what a client of git needs.
pub(super) fn needs(project: &ProjectName, kind: RepositoryKind, service: Service) -> Needs {
    match (kind, service) {
        (RepositoryKind::Pillar, _) => Needs::pillar(project),
        // Each ref of the push is checked again, with the environment that deploys the ref.
        (RepositoryKind::Code, Service::ReceivePack) => Needs::repository(project, Access::Push),
        (RepositoryKind::Code, Service::UploadPack) => Needs::project(project, Access::View),
    }
}

impl Pushes {
    /// Returns the project of a request if the caller has the needed rights. Records a refusal in the audit log.
    pub(super) async fn authorized(
        &self,
        caller: &Caller,
        name: &ProjectName,
        service: Service,
        needs: &Needs,
    ) -> Result<Project, CommandError> {
        let project = self.control.project(caller, name, needs);
        if let Err(error) = &project {
            let what = if service == Service::ReceivePack { "git push" } else { "git fetch" };
            let entry = AuditEntry::new(caller, what, needs.scope.to_string(), None);
            self.control.audit(entry.ended(AuditOutcome::Refused, &error.message)).await;
        }
        project
    }

    /// Returns the decision `fate` about a ref, or the refusal if the pusher has lost the right to push the ref.
    pub(super) fn still_may(&self, push: &PushInFlight, project: &Project, update: &RefUpdate, fate: RefDecision) -> RefDecision {
        let mut now = self.decide(push, project, std::slice::from_ref(update), false);
        match now.pop() {
            Some(refused @ RefDecision::Refuse { .. }) => refused,
            _ => fate,
        }
    }

    /// Returns the decision about every ref of a push, with the current rights of the pusher.
    pub(super) fn decide(&self, push: &PushInFlight, project: &Project, updates: &[RefUpdate], atomic: bool) -> Vec<RefDecision> {
        let right = |environment: Option<&Environment>| match environment {
            Some(environment) => self.control.right_on(&push.caller, environment),
            None => self.control.right_on_project(&push.caller, &project.name),
        };
        decide(&project.environments, &right, updates, atomic)
    }

    /// Returns the verdict on a ref, and records the push of the ref in the audit log.
    pub(super) async fn recorded_verdict(
        &self,
        session: &HookSession<PushInFlight>,
        update: &RefUpdate,
        fate: RefDecision,
    ) -> RefVerdict {
        let on = match &fate {
            RefDecision::Deploy { environment, .. } => environment.title(),
            _ => session.ticket.project.name.to_string(),
        };
        let entry = AuditEntry::new(&session.ticket.caller, "git push", on, Some(format!("{} {}", update.name, update.new)));
        let refused = matches!(fate, RefDecision::Refuse { .. });
        if !refused {
            self.control.audit(entry.clone()).await;
        }
        let verdict = self.verdict(session, fate).await;
        if let RefVerdict::Refused { reason } = &verdict {
            let outcome = if refused { AuditOutcome::Refused } else { AuditOutcome::Failed };
            self.control.audit(entry.ended(outcome, reason)).await;
        }
        verdict
    }
}
