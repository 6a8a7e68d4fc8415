//! The check that a queued deployment passes once more when it starts.

use super::{authz::Caller, state::Control};
use crate::{
    model::{Access, Environment, UserName},
    pipeline::{DeployRequest, StartCheck},
};

impl StartCheck for Control {
    fn check(&self, request: &DeployRequest) -> Result<Environment, String> {
        let asked = &request.environment;
        let by = request.trigger.by();
        let caller = if *by == UserName::operator() { Caller::Operator } else { Caller::User(by.clone()) };
        if self.access(&caller, Some(&asked.project)) < Access::Push {
            return Err(format!("{by} may no longer push to {}", asked.project));
        }
        let registry = self.registry();
        let environments = registry.projects.iter().flat_map(|project| &project.environments);
        let now = environments.into_iter().find(|environment| environment.id == asked.id).cloned();
        let now = now.ok_or_else(|| format!("{} was removed meanwhile", asked.title()))?;
        match now.branch == request.branch {
            true => Ok(now),
            false => Err(format!("{} deploys the branch {} now, not {}", now.title(), now.branch, request.branch)),
        }
    }
}
