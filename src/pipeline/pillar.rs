//! The pillars of projects: the values that deployments use, and the check of pushed values.
//!
//! The branch `main` of a pillar names the values with which all environments run, or which their next deployment uses. A configuration
//! snapshot contains the values of its environment, so that a release can always run with the values that it had.

use std::sync::Arc;

use super::{
    core::Pipeline,
    failure::Failure,
    intake::PushRejection,
    pillar_state::{effective, pillar_level, sample_level},
    queue::{PillarGoal, Queue},
    template_job::template_job,
    util::chain,
};
use crate::{
    config::{
        ConfigError,
        pillar::{INIT_FILE, PillarLevel},
    },
    git::{GitError, PillarFiles, RepositoryId},
    model::{CommitId, Environment, Live, ProjectId, SnapshotNumber},
    runtime::TemplateJob,
    secret::{
        AGE_SUFFIX, ProjectKey, RECIPIENTS_FILE, RecipientList, SECRETS_SUFFIX, SecretError, SecretsFile, age_level, sops_level,
    },
    snapshots::{PillarContent, Snapshot, SnapshotError},
};

pub use super::pillar_state::pillar_reason;

/// The reason why a pushed pillar is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PillarProblem {
    /// The reason in git's own line.
    pub reason: String,
    /// Lines for the pusher's screen.
    pub lines: Vec<String>,
}

impl From<&ConfigError> for PillarProblem {
    fn from(error: &ConfigError) -> PillarProblem {
        PillarProblem { reason: pillar_reason(error), lines: vec![error.to_string()] }
    }
}

impl From<PillarProblem> for PushRejection {
    fn from(PillarProblem { reason, lines }: PillarProblem) -> PushRejection {
        PushRejection { lines, reason }
    }
}

impl Pipeline {
    /// Returns the values on the branch `main` of a pillar; `None` if nothing was pushed yet.
    pub async fn pillar_head(&self, project: ProjectId) -> Result<Option<Arc<PillarFiles>>, GitError> {
        if let Some(known) = self.0.pillars.head(project) {
            return Ok(known);
        }
        let read = self.services().repositories.read_pillar(project, None, None, None).await?;
        let files = read.map(Arc::new);
        self.0.pillars.set_head(project, files.clone());
        Ok(files)
    }

    /// Records the values on the branch `main` after the branch has moved.
    pub fn set_pillar_head(&self, project: ProjectId, files: Arc<PillarFiles>) {
        self.0.pillars.set_head(project, Some(files));
    }

    /// Waits until no other push to the pillar of a project is in progress.
    pub async fn lock_pillar(&self, project: ProjectId) -> tokio::sync::OwnedMutexGuard<()> {
        self.0.pillars.lock(project).lock_owned().await
    }

    /// Creates the repository of a pillar if it does not exist.
    pub async fn make_pillar(&self, project: ProjectId) -> Result<(), GitError> {
        match "main".parse() {
            Ok(head) => self.services().repositories.init(RepositoryId::pillar(project), head).await,
            Err(_) => Ok(()),
        }
    }

    /// Checks the values that `files` give to an environment, with the sample of the live release.
    pub fn check_pillar(&self, environment: &Environment, files: &PillarFiles) -> Result<(), PillarProblem> {
        let content = self.pillar_content(environment, files).map_err(|error| PillarProblem::from(&error))?;
        let other = |why: String| PillarProblem { reason: why, lines: Vec::new() };
        let current = self.configuration(environment).map_err(|error| other(chain(&error)))?;
        let sample = match &current.release {
            Some(live) => self.facts(environment, live.release).map_err(|error| other(chain(&error)))?.pillar_sample,
            None => None,
        };
        let sample = self.sample(environment, sample.as_deref()).map_err(|error| PillarProblem::from(&error))?;
        effective(&current.variables, Some(&content), sample.as_ref()).map_err(|error| PillarProblem::from(&error))?;
        Ok(())
    }

    /// Returns the key with which the secrets of a project are encrypted.
    pub fn project_key(&self, project: ProjectId) -> Result<ProjectKey, SecretError> {
        self.services().snapshots.project_key(project)
    }

    /// Parses the sample of a project, and decrypts its secrets.
    pub(super) fn sample(&self, environment: &Environment, text: Option<&str>) -> Result<Option<PillarLevel>, ConfigError> {
        sample_level(text, || self.project_key(environment.project_id))
    }

    /// Parses the files of a pillar that concern an environment, and decrypts their secrets.
    fn pillar_content(&self, environment: &Environment, files: &PillarFiles) -> Result<PillarContent, ConfigError> {
        let key = self.project_key(environment.project_id);
        let key = key.map_err(|error| ConfigError::new(INIT_FILE, error.to_string()))?;
        if let Some((name, bytes)) = files.files.iter().find(|(name, _)| name == RECIPIENTS_FILE) {
            RecipientList::parse(bytes, &key).map_err(|error| of_recipients(name, &error))?;
        }
        let mut levels = Vec::new();
        for stem in ["init", environment.name.as_str()] {
            for (name, is_encrypted) in [(format!("{stem}.yml"), false), (format!("{stem}{SECRETS_SUFFIX}"), true)] {
                let Some((_, bytes)) = files.files.iter().find(|(known, _)| *known == name) else { continue };
                if let Some(level) = sops_level(&name, bytes, &key)? {
                    levels.push(level);
                    continue;
                }
                if is_encrypted {
                    SecretsFile::parse(&name, bytes)?;
                }
                levels.push(pillar_level(&name, bytes, &key)?);
            }
            // A file of one value counts for all environments, so the files of the environment take precedence.
            if stem == "init" {
                let whole = files.files.iter().filter(|(name, _)| name.ends_with(AGE_SUFFIX));
                for (name, bytes) in whole {
                    levels.push(age_level(name, bytes, &key)?);
                }
            }
        }
        Ok(PillarContent { commit: files.commit.clone(), levels })
    }

    /// Returns true if the live release of an environment runs with other values of the pillar than `files` give to the environment.
    pub fn pillar_differs(&self, environment: &Environment, files: &PillarFiles) -> Result<bool, PillarProblem> {
        let content = self.pillar_content(environment, files).map_err(|error| PillarProblem::from(&error))?;
        let current = self.configuration(environment);
        let current = current.map_err(|error| PillarProblem { reason: chain(&error), lines: Vec::new() })?;
        // The lines of unchanged values may have moved, and the values of a file without keys are those of a missing file.
        let values = |content: Option<&PillarContent>| {
            let levels = content.map(|content| content.levels.as_slice()).unwrap_or_default();
            levels.iter().map(|level| level.root.without_lines()).collect::<Vec<_>>()
        };
        Ok(values(Some(&content)) != values(current.pillar.as_ref()))
    }

    /// Returns the live release of an environment, and its templates with the values that the next deployment uses. Returns `None` if nothing
    /// is live, or if the live release has no templates.
    pub fn templates(&self, environment: &Environment) -> Result<Option<(Live, TemplateJob)>, SnapshotError> {
        let current = self.configuration(environment)?;
        let Some(live) = current.release else { return Ok(None) };
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let number = current.next.map_or(SnapshotNumber(0), |next| next.number);
        let wrong = |why: String| SnapshotError::Content { number, why };
        let facts = self.facts(environment, live.release).map_err(|error| wrong(chain(&error)))?;
        let loaded = self.load_configuration(&paths, current.next.as_ref()).map_err(|failure| wrong(failure.why))?;
        let sample = self.sample(environment, facts.pillar_sample.as_deref()).map_err(|error| wrong(error.to_string()))?;
        let loaded = loaded.evaluated(sample).map_err(|failure| wrong(failure.why))?;
        let job = template_job(environment, self.services().config.domain.as_str(), &facts, &loaded, &live);
        Ok(job.map(|job| (live, job)))
    }

    /// Chooses the values of the pillar for a deployment. A release that is based on the snapshot `base` keeps the values of this snapshot if
    /// the values on the branch `main` were live before: a rollback has then brought the earlier values back on purpose.
    pub(super) async fn choose_pillar(
        &self,
        queue: &Queue,
        goal: &PillarGoal,
        base: Option<&Snapshot>,
    ) -> Result<Option<PillarContent>, Failure> {
        let environment = queue.environment();
        let before = base.and_then(|base| base.pillar.clone());
        let files = match goal {
            PillarGoal::Files(files) => files.clone(),
            PillarGoal::Usual => {
                let head = self.pillar_head(environment.project_id).await.map_err(|error| Failure::host(&error))?;
                match head {
                    Some(files) if !is_settled(queue, &files.commit, before.as_ref()) => Some(files),
                    _ => return Ok(before),
                }
            }
        };
        let content = files.map(|files| self.pillar_content(&environment, &files)).transpose();
        content.map_err(|error| super::pillar_state::of_pillar(&error))
    }
}

/// Returns true if the values of `commit` are the values of the snapshot on which the deployment is based, or were live before.
fn is_settled(queue: &Queue, commit: &CommitId, before: Option<&PillarContent>) -> bool {
    if before.is_some_and(|before| before.commit == *commit) {
        return true;
    }
    let state = queue.state.lock();
    state.history.deployments.iter().any(|summary| summary.went_live() && summary.pillar.as_ref() == Some(commit))
}

/// Returns the problem of the file with the recipients.
fn of_recipients(file: &str, error: &SecretError) -> ConfigError {
    let problem = match error {
        SecretError::Recipient { line, why } => {
            ConfigError::new(file, why.clone()).at_line(u32::try_from(*line).unwrap_or(u32::MAX))
        }
        other => ConfigError::new(file, other.to_string()),
    };
    error.hint().into_iter().fold(problem, ConfigError::hint)
}
