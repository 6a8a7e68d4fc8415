//! What a project says about its deployment, read and judged; in the same words whether a push is refused for it at once or its
//! deployment in gather.

use super::{Pipeline, PipelineError, step::Failure, step::chain, verdict};
use crate::{
    config::{
        ConfigError,
        project::{self, ProjectConfig, ProjectFiles},
    },
    git::source::RecipeFiles,
    model::{Environment, Outcome, Phase},
};

/// What is wrong with a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Every problem, with file, line, what was expected and a hint; for the screen.
    pub lines: Vec<String>,
    /// The first one, and how many more there are; fits git's own line.
    pub why: String,
}

/// Reads the files of a recipe.
pub fn load(files: RecipeFiles) -> Result<ProjectConfig, Wrong> {
    let files = ProjectFiles {
        recipe: files.larder_yml,
        procfile: files.procfile,
        app_json: files.app_json,
        buildpacks: files.buildpacks,
    };
    project::load(&files).map_err(|problems| {
        let first = problems.first().map(short).unwrap_or_default();
        let rest = problems.len().saturating_sub(1);
        let more = if rest == 0 { String::new() } else { format!(" (and {rest} more)") };
        Wrong { lines: problems.iter().map(ToString::to_string).collect(), why: format!("{first}{more}") }
    })
}

/// What fits git's own line: the place and the problem. The screen has the rest.
fn short(problem: &ConfigError) -> String {
    let line = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
    format!("{}{line}: {}", problem.file, problem.problem)
}

/// Why a push to a deploy branch cannot become a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objection {
    /// For the screen.
    pub lines: Vec<String>,
    /// For git's own line.
    pub reason: String,
}

impl Pipeline {
    /// What can be said of a push to `environment` before anything of it is kept: whether deployments are taken at all, and
    /// whether its recipe, if one could be read, is one. No deployment is begun, none that waits is superseded.
    pub fn objection(&self, environment: &Environment, recipe: Option<RecipeFiles>) -> Option<Objection> {
        let lane = self.lane(environment.id)?;
        if let Err(frozen @ PipelineError::Frozen { .. }) = self.thawed(&lane) {
            return Some(Objection { lines: Vec::new(), reason: chain(&frozen) });
        }
        let wrong = load(recipe?).err()?;
        let live = self.live(environment.id);
        let mut lines = wrong.lines;
        lines.push(match &live {
            Some(live) => format!("Nothing was changed. {} is still live.", live.number),
            None => format!("Nothing was changed. Nothing is live in {} yet.", environment.title()),
        });
        let outcome = Outcome::Refused { fault: Failure::pusher(wrong.why).in_phase(Phase::Gather) };
        Some(Objection { lines, reason: verdict::reason(&outcome, live.as_ref())? })
    }
}
