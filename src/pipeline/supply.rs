//! Which release is meant: a deliverable of a commit, or one by its name.

use super::{Pipeline, lane::Goal, step::chain};
use crate::{
    model::{CommitId, EnvId, Environment, Mode, Origin, ReleaseId, ReleaseNumber},
    release::{bundle::Head, store},
};

/// A release that could become live.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// What its manifest says.
    pub head: Head,
    /// Its number where it was cooked, if that is known.
    pub number: Option<ReleaseNumber>,
    /// Where it is.
    pub origin: Origin,
}

/// Why there is nothing to bring.
#[derive(Debug, thiserror::Error)]
pub enum SupplyError {
    /// Nobody cooked it.
    #[error("there is no deliverable of {wanted}")]
    None {
        /// What was asked for.
        wanted: String,
        /// What there is, newest first, in words.
        offered: Vec<String>,
        /// Where it was looked for and could not be, in words.
        unreachable: Vec<String>,
    },
    /// The release cannot be gone back to.
    #[error("{0}")]
    Past(String),
    /// Something on this machine is in the way.
    #[error("{0}")]
    Host(String),
}

impl SupplyError {
    /// What to do next, line by line.
    pub fn hints(&self) -> Vec<String> {
        match self {
            SupplyError::None { offered, unreachable, .. } => {
                let mut hints: Vec<_> = unreachable.iter().map(|why| format!("could not be asked: {why}")).collect();
                match offered.is_empty() {
                    true => hints.push(String::from("nothing was cooked yet; push to the staging environment first")),
                    false => {
                        hints.push(format!("on offer: {}", offered.join(", ")));
                        hints.push(String::from(
                            "push the commit to the staging environment first, or bring one of these with `larder pull`",
                        ));
                    }
                }
                hints
            }
            SupplyError::Past(_) | SupplyError::Host(_) => Vec::new(),
        }
    }
}

/// How many offers are named in a refusal.
const NAMED: usize = 5;

impl Pipeline {
    /// What a push or a redeployment of `commit` brings to `environment`.
    pub async fn goal(&self, environment: &Environment, commit: &CommitId) -> Result<Goal, SupplyError> {
        match environment.mode {
            Mode::Editable | Mode::Cooking => Ok(Goal::Cook),
            Mode::Final => {
                let Candidate { head, origin, .. } = self.deliverable(environment, commit).await?;
                Ok(Goal::Release { release: head.release, origin, overriding: None })
            }
        }
    }

    /// The newest build of `commit`, or of another commit with the same tree: from the environment's own store, from its siblings
    /// on this server, or from its remotes, in this order.
    async fn deliverable(&self, environment: &Environment, commit: &CommitId) -> Result<Candidate, SupplyError> {
        let tree = self.0.services.repositories.tree(environment.project_id, commit.clone()).await.ok();
        let fits = |candidate: &Candidate| candidate.head.commit == *commit || (tree.is_some() && candidate.head.source == tree);
        let mut candidates = self.stored(environment).await?;
        if let Some(found) = newest(candidates.iter().filter(|candidate| fits(candidate))) {
            return Ok(found);
        }
        let near = self.siblings(environment).await?;
        if let Some(found) = newest(near.iter().filter(|candidate| fits(candidate))) {
            return Ok(found);
        }
        candidates.extend(near);
        Err(none(commit.short().to_owned(), candidates, Vec::new()))
    }

    /// The deliverables in the environment's own store.
    async fn stored(&self, environment: &Environment) -> Result<Vec<Candidate>, SupplyError> {
        let paths = self.0.services.root.environment(&environment.project, &environment.name);
        let read = tokio::task::spawn_blocking(move || store::heads(&paths.releases())).await;
        let heads = read.map_err(|error| SupplyError::Host(error.to_string()))?;
        let heads = heads.map_err(|error| SupplyError::Host(chain(&error)))?;
        Ok(heads.into_iter().map(|head| Candidate { head, number: None, origin: Origin::Store }).collect())
    }

    /// What other environments of the project on this server have cooked and served.
    async fn siblings(&self, environment: &Environment) -> Result<Vec<Candidate>, SupplyError> {
        let cooks = |other: &Environment| {
            other.project_id == environment.project_id && other.id != environment.id && other.mode == Mode::Cooking
        };
        let others: Vec<Environment> = self.0.lanes.lock().values().map(|lane| lane.environment.clone()).filter(cooks).collect();
        let mut candidates = Vec::new();
        for other in others {
            let history = self.history(other.id);
            for mut candidate in self.stored(&other).await? {
                let Some(made) = history.of_release(candidate.head.release) else { continue };
                candidate.number = Some(made.number);
                candidate.origin = Origin::Environment(other.name.clone());
                candidates.push(candidate);
            }
        }
        Ok(candidates)
    }

    /// The release that a rollback of an environment goes to: the one that is named, or the good one that came before what is
    /// live first became live, so that going back twice goes back further. It served here before, and its files are still there.
    pub fn past(&self, environment: EnvId, name: Option<&str>) -> Result<(ReleaseId, CommitId), SupplyError> {
        let lane = self.lane(environment).ok_or_else(|| SupplyError::Past(String::from("the environment is not served")))?;
        let title = lane.environment.title();
        let paths = self.0.services.root.environment(&lane.environment.project, &lane.environment.name);
        let state = lane.state.lock();
        let Some(live) = &state.live else { return Err(SupplyError::Past(format!("nothing is live in {title} yet"))) };
        let there = |release: ReleaseId| paths.tree(release).is_dir() || paths.manifest(release).is_file();
        let found = match name {
            None => state
                .history
                .releases()
                .take_while(|summary| summary.release != live.release)
                .filter(|summary| there(summary.release))
                .last()
                .ok_or_else(|| SupplyError::Past(format!("{title} has no release older than {} to go back to", live.number)))?,
            Some(name) => state
                .history
                .named(name)
                .ok_or_else(|| SupplyError::Past(format!("{title} has no release {name} that was ever live")))?,
        };
        if found.release == live.release {
            return Err(SupplyError::Past(format!("{} is live already, as {}", found.number, live.number)));
        }
        if !there(found.release) {
            return Err(SupplyError::Past(format!("{} was removed by retention; its files are not here any more", found.number)));
        }
        Ok((found.release, found.commit.clone()))
    }
}

fn newest<'c>(candidates: impl Iterator<Item = &'c Candidate>) -> Option<Candidate> {
    candidates.max_by_key(|candidate| (candidate.head.build, candidate.head.release)).cloned()
}

fn none(wanted: String, mut candidates: Vec<Candidate>, unreachable: Vec<String>) -> SupplyError {
    candidates.sort_by_key(|candidate| std::cmp::Reverse((candidate.head.build, candidate.head.release)));
    candidates.dedup_by_key(|candidate| candidate.head.release);
    let words = |candidate: &Candidate| {
        let number = candidate.number.map(|number| format!("{number} ")).unwrap_or_default();
        format!("{number}({})", candidate.head.commit.short())
    };
    SupplyError::None { wanted, offered: candidates.iter().take(NAMED).map(words).collect(), unreachable }
}
