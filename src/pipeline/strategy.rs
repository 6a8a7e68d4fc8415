//! The choice between the strategies of a deployment. The strategy determines the plan, so it is known before the first step: the recipe of
//! the commit is read for its key `strategy` before the deployment begins.

use super::{
    core::Pipeline,
    intake,
    queue::{DeployRequest, Goal, Queue},
    util::chain,
};
use crate::{
    git::source::{RecipeFiles, SourceJob, SourceLimits},
    model::{Environment, Mode, Strategy},
};

impl Pipeline {
    /// Returns the strategy of a deployment: the strategy of the release's recipe, or else the environment's strategy. A commit that the
    /// repository does not have yet, or whose recipe has errors, counts as a recipe without a strategy. The step that reads the recipe
    /// refuses a release whose recipe has a different strategy.
    pub(super) async fn strategy(&self, queue: &Queue, request: &DeployRequest) -> Strategy {
        let environment = queue.environment();
        if environment.mode == Mode::Editable {
            return Strategy::InPlace;
        }
        let recorded = match &request.goal {
            Goal::Release { release, .. } => self.strategy_of(&environment, *release),
            Goal::Configure { .. } => self.live(environment.id).and_then(|live| self.strategy_of(&environment, live.release)),
            Goal::Cook => None,
        };
        match recorded {
            Some(strategy) => strategy,
            None => self.strategy_in_commit(&environment, request).await.unwrap_or(environment.strategy),
        }
    }

    /// Returns the strategy of the last deployment of a release that went live; `None` if the release was never live.
    fn strategy_of(&self, environment: &Environment, release: crate::model::ReleaseId) -> Option<Strategy> {
        let settings = self.facts(environment, release).ok()?.settings?;
        Some(settings.strategy.unwrap_or(environment.strategy))
    }

    /// Returns the strategy of the next deployment, if its recipe is the recipe of the live release.
    pub(super) fn usual_strategy(&self, environment: &Environment) -> Strategy {
        if environment.mode == Mode::Editable {
            return Strategy::InPlace;
        }
        let live = self.live(environment.id).and_then(|live| self.strategy_of(environment, live.release));
        live.unwrap_or(environment.strategy)
    }

    async fn strategy_in_commit(&self, environment: &Environment, request: &DeployRequest) -> Option<Strategy> {
        if let Some(recipe) = &request.recipe {
            return strategy_in(environment, recipe.clone());
        }
        let job = SourceJob {
            commit: request.commit.clone(),
            limits: SourceLimits::default(),
            export: false,
            fresh: false,
            quarantine: None,
            tags: Vec::new(),
        };
        let source = self.services().repositories.source(environment.project_id, environment.id, job).await;
        let files =
            source.inspect_err(|error| tracing::debug!(error = chain(error), "cannot read a recipe in advance")).ok()?.files;
        strategy_in(environment, files)
    }
}

fn strategy_in(environment: &Environment, recipe: RecipeFiles) -> Option<Strategy> {
    intake::load_recipe(recipe).ok()?.settings(&environment.name).strategy
}
