//! The decision about each ref of a push, before any step runs: the ref is deployed, stored, or refused. This file also checks a
//! push to a deploy branch for errors that need no deployment: a frozen environment or a malformed recipe.
//!
//! A refusal has the same text, whether pre-receive or the step `gather.source` finds the error.

use std::collections::{BTreeMap, BTreeSet};

use super::{core::Pipeline, failure::Failure, util::chain, verdict};
use crate::{
    config::{
        ConfigError,
        project::{self, ProjectConfig, ProjectFiles},
    },
    git::source::RecipeFiles,
    model::{Access, BranchName, CommitId, Environment, Outcome, Phase},
};

/// A ref that a push creates, changes or deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefUpdate {
    /// The full name, such as `refs/heads/main`.
    pub name: String,
    /// The commit before the push; zero for a new ref.
    pub old: CommitId,
    /// The commit after the push; zero if the push deletes the ref.
    pub new: CommitId,
}

/// The decision about a ref.
#[derive(Debug, Clone, PartialEq)]
pub enum RefDecision {
    /// The ref is deployed. The server moves the ref in the step that makes the release live.
    Deploy {
        /// The environment that deploys the branch.
        environment: Box<Environment>,
        /// The deploy branch.
        branch: BranchName,
        /// The commit to deploy.
        commit: CommitId,
        /// The commit of the branch when the pusher's client read the branch; zero for a new branch.
        seen: CommitId,
    },
    /// Git stores the ref, and nothing is deployed.
    Store {
        /// A note for the pusher that nothing is deployed.
        note: Option<String>,
    },
    /// The ref is refused.
    Refuse {
        /// The reason in git's line about the ref.
        reason: String,
        /// An instruction for the pusher's screen.
        hint: Option<String>,
    },
}

/// A function that returns the pusher's right on an environment, or on the project itself.
pub type RightOn<'a> = &'a dyn Fn(Option<&Environment>) -> Access;

/// Returns the decision about every ref of a push to a project with `environments`, in the order of `updates`. A deploy branch needs the
/// right `push` on its environment; any other ref needs this right on the project itself, because the ref belongs to all environments.
pub fn decide(environments: &[Environment], right: RightOn<'_>, updates: &[RefUpdate], atomic: bool) -> Vec<RefDecision> {
    let mut decisions: Vec<_> = updates.iter().map(|update| decide_one(environments, right, update)).collect();
    let deployments = decisions.iter().filter(|decision| matches!(decision, RefDecision::Deploy { .. })).count();
    if atomic && deployments > 1 {
        for decision in decisions.iter_mut().filter(|decision| matches!(decision, RefDecision::Deploy { .. })) {
            *decision = RefDecision::Refuse {
                reason: String::from("an atomic push can deploy one branch only"),
                hint: Some(String::from("push the deploy branches one by one, or without --atomic")),
            };
        }
    }
    let refused = decisions.iter().any(|decision| matches!(decision, RefDecision::Refuse { .. }));
    if atomic && refused {
        for decision in decisions.iter_mut().filter(|decision| !matches!(decision, RefDecision::Refuse { .. })) {
            *decision = RefDecision::Refuse { reason: String::from("another ref of this atomic push was refused"), hint: None };
        }
    }
    decisions
}

/// Returns the first of `updates` that git would not store in a repository with the refs `existing`, and the reason. An atomic push must
/// pass this check before its deployment. git stores the refs that are not deployed only after the deployment, and the deployment cannot be
/// reverted at that time.
pub fn unstorable<'u>(updates: &'u [RefUpdate], existing: &BTreeMap<String, CommitId>) -> Option<(&'u RefUpdate, String)> {
    let made = updates.iter().filter(|update| !update.new.is_zero()).map(|update| update.name.as_str());
    let names: BTreeSet<&str> = existing.keys().map(String::as_str).chain(made).collect();
    updates.iter().find_map(|update| {
        let name = update.name.as_str();
        if existing.get(name).map_or(!update.old.is_zero(), |id| *id != update.old) {
            return Some((update, String::from("another push has moved this ref; fetch first")));
        }
        if update.new.is_zero() {
            return None;
        }
        let above = name.match_indices('/').filter_map(|(at, _)| name.get(..at)).find(|above| names.contains(above));
        let inside = format!("{name}/");
        let below = || names.range(inside.as_str()..).next().copied().filter(|below| below.starts_with(&inside));
        let other = above.or_else(below)?;
        Some((update, format!("{other} exists, and a ref cannot be inside another ref")))
    })
}

fn decide_one(environments: &[Environment], right: RightOn<'_>, update: &RefUpdate) -> RefDecision {
    let deletes = update.new.is_zero();
    let branch = update.name.strip_prefix("refs/heads/");
    let deploying_branch = |environment: &&Environment| branch == Some(environment.branch.as_str());
    let environment = environments.iter().find(deploying_branch);
    let visible = || environments.iter().filter(|environment| right(Some(environment)) >= Access::View);
    if right(environment) < Access::Push {
        let may: Vec<_> = visible().filter(|environment| right(Some(environment)) >= Access::Push).collect();
        // A deploy branch of a hidden environment reads like any other branch.
        let environment = environment.filter(|environment| right(Some(environment)) >= Access::View);
        return RefDecision::Refuse {
            reason: match environment {
                Some(environment) => format!("you may not push to {}", environment.title()),
                None => String::from("you may not push this ref"),
            },
            hint: Some(format!("you may push these deploy branches only: {}", deploying(may))),
        };
    }
    if let Some(branch) = branch {
        let Ok(branch) = branch.parse::<BranchName>() else {
            return RefDecision::Refuse {
                reason: String::from("this branch name is not allowed"),
                hint: branch.parse::<BranchName>().err().map(|error| error.to_string()),
            };
        };
        return match environment {
            Some(environment) if deletes => RefDecision::Refuse {
                reason: format!("{} deploys this branch", environment.title()),
                hint: Some(format!(
                    "deleting the branch would not stop the application; `larder project destroy {}` removes the project with all its \
                     environments",
                    environment.project
                )),
            },
            Some(environment) => RefDecision::Deploy {
                environment: Box::new(environment.clone()),
                branch,
                commit: update.new.clone(),
                seen: update.old.clone(),
            },
            None if deletes => RefDecision::Store { note: None },
            None => RefDecision::Store { note: Some(format!("{branch} is stored and not deployed; {}", deploying(visible()))) },
        };
    }
    if update.name.starts_with("refs/tags/") {
        return RefDecision::Store { note: None };
    }
    RefDecision::Refuse {
        reason: String::from("only branches and tags can be pushed"),
        hint: Some(String::from("push to refs/heads/... or refs/tags/...")),
    }
}

/// Returns a list of the deploy branches and their environments, for messages.
pub fn deploying<'a>(environments: impl IntoIterator<Item = &'a Environment>) -> String {
    let deploys = |environment: &Environment| format!("{} deploys to {}", environment.branch, environment.name);
    let pairs: Vec<_> = environments.into_iter().map(deploys).collect();
    if pairs.is_empty() { String::from("no branch deploys here") } else { pairs.join(", ") }
}

/// The errors of a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipeErrors {
    /// Every error with file, line, expected value and hint, for the pusher's screen.
    pub lines: Vec<String>,
    /// The first error and the number of further errors. This text fits git's own line.
    pub why: String,
}

/// Parses the files of a recipe.
pub fn load_recipe(files: RecipeFiles) -> Result<ProjectConfig, RecipeErrors> {
    let files = ProjectFiles {
        recipe: files.larder_yml,
        procfile: files.procfile,
        app_json: files.app_json,
        buildpacks: files.buildpacks,
        pillar_sample: files.pillar_sample,
    };
    project::load(&files).map_err(|problems| {
        let first = problems.first().map(short).unwrap_or_default();
        let rest = problems.len().saturating_sub(1);
        let more = if rest == 0 { String::new() } else { format!(" (and {rest} more)") };
        RecipeErrors { lines: problems.iter().map(ToString::to_string).collect(), why: format!("{first}{more}") }
    })
}

/// Returns the part of an error that fits git's own line: place and problem. The pusher's screen shows the complete error.
fn short(problem: &ConfigError) -> String {
    let line = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
    format!("{}{line}: {}", problem.file, problem.problem)
}

/// The refusal of a push to a deploy branch before a deployment begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRejection {
    /// Lines for the pusher's screen.
    pub lines: Vec<String>,
    /// The reason in git's own line.
    pub reason: String,
}

impl Pipeline {
    /// Checks a push to `environment` before its objects are stored. The environment must not be frozen, and a readable recipe
    /// must have no errors. This check starts no deployment and supersedes no waiting deployment.
    pub fn reject_early(&self, environment: &Environment, recipe: Option<RecipeFiles>) -> Option<PushRejection> {
        if let Err(frozen) = self.queue(environment.id)?.is_thawed() {
            return Some(PushRejection { lines: Vec::new(), reason: chain(&frozen) });
        }
        let errors = load_recipe(recipe?).err()?;
        let live = self.live(environment.id);
        let mut lines = errors.lines;
        lines.push(match &live {
            Some(live) => format!("Nothing was changed. {} is still live.", live.number),
            None => format!("Nothing was changed. Nothing is live in {} yet.", environment.title()),
        });
        let outcome = Outcome::Refused { fault: Failure::pusher(errors.why).in_phase(Phase::Gather) };
        Some(PushRejection { lines, reason: verdict::reason(&outcome, live.as_ref())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(name: &str, delete: bool) -> RefUpdate {
        let id = |digit: &str| digit.repeat(40).parse().unwrap();
        RefUpdate { name: name.to_owned(), old: id("0"), new: if delete { id("0") } else { id("a") } }
    }

    #[test]
    fn each_kind_of_ref_is_deployed_stored_or_refused() {
        let environments = [Environment::of_shop("production", "main"), Environment::of_shop("staging", "next")];
        let one = |name: &str, delete| decide(&environments, &|_| Access::Push, &[update(name, delete)], false).remove(0);
        assert!(
            matches!(one("refs/heads/main", false), RefDecision::Deploy { environment, .. } if environment.name.as_str() == "production")
        );
        assert!(
            matches!(one("refs/heads/next", false), RefDecision::Deploy { environment, .. } if environment.name.as_str() == "staging")
        );
        assert!(matches!(one("refs/heads/main", true), RefDecision::Refuse { .. }));
        assert!(
            matches!(one("refs/heads/topic", false), RefDecision::Store { note: Some(note) } if note.contains("main deploys to production"))
        );
        assert_eq!(one("refs/heads/topic", true), RefDecision::Store { note: None });
        assert_eq!(one("refs/tags/v1", false), RefDecision::Store { note: None });
        for odd in ["refs/heads/-x", "refs/larder/keep/x", "refs/notes/commits", "refs/for/main", "HEAD"] {
            assert!(matches!(one(odd, false), RefDecision::Refuse { .. }), "{odd}");
        }
    }

    #[test]
    fn atomic_push_is_all_or_nothing() {
        let environments = [Environment::of_shop("production", "main"), Environment::of_shop("staging", "next")];
        let both = [update("refs/heads/main", false), update("refs/heads/next", false), update("refs/tags/v1", false)];
        assert!(
            decide(&environments, &|_| Access::Push, &both, true)
                .iter()
                .all(|decision| matches!(decision, RefDecision::Refuse { .. }))
        );
        assert!(
            !decide(&environments, &|_| Access::Push, &both, false)
                .iter()
                .any(|decision| matches!(decision, RefDecision::Refuse { .. }))
        );
    }

    #[test]
    fn ref_that_git_would_not_store_is_found_before_deployment() {
        let id = |digit: &str| digit.repeat(40).parse::<CommitId>().unwrap();
        let existing: BTreeMap<_, _> =
            ["refs/heads/main", "refs/heads/topic", "refs/tags/v1/a"].map(|name| (name.to_owned(), id("0"))).into();
        let check = |names: &[&str]| {
            let updates: Vec<_> = names.iter().map(|name| update(name, false)).collect();
            unstorable(&updates, &existing).map(|(update, _)| update.name.clone())
        };
        assert_eq!(check(&["refs/heads/main", "refs/heads/topics", "refs/tags/v1/b"]), None);
        assert_eq!(check(&["refs/heads/main", "refs/heads/topic/sub"]).as_deref(), Some("refs/heads/topic/sub"));
        assert_eq!(check(&["refs/heads/main", "refs/tags/v1"]).as_deref(), Some("refs/tags/v1"));
        assert_eq!(check(&["refs/heads/x/y", "refs/heads/x"]).as_deref(), Some("refs/heads/x/y"));
        let moved = [RefUpdate { old: id("b"), ..update("refs/heads/topic", false) }];
        assert!(unstorable(&moved, &existing).is_some());
        let gone = [RefUpdate { old: id("b"), ..update("refs/heads/gone", true) }];
        assert!(unstorable(&gone, &existing).is_some());
    }
}
