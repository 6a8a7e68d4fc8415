//! Starts git workers and reads their answers. This code runs in the server.
//!
//! Each repository has a lock. Several workers can hold the lock shared; maintenance holds the lock exclusively.

use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc};

use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use super::{
    checkout::{CheckoutAnswer, CheckoutJob, CheckoutReport},
    hook::PushToken,
    job::{
        CommitSpec, GitAnswer, GitFailure, GitJob, GitReport, GitTask, LogEntry, MoveRef, PillarCommit, PillarFiles,
        PillarHistory, PillarRefusal, RefEntry, RepositoryId, ServeLimits, Service,
    },
    source::{CommitSource, SourceJob, SourceRefusal, SourceReport},
};
use crate::{
    host::launch::{Child, LaunchError, Launcher, Stdio},
    model::{BranchName, CommitId, EditWork, EnvId, Exit, Launch, LimitClass, ProjectId, ReleaseId, Role, Slot, Supervision},
};

/// The maximum size of a report, in bytes.
const MAX_REPORT: usize = 4 << 20;

/// The maximum size of the report with the history of a pillar, in bytes.
const MAX_HISTORY: usize = 80 << 20;

/// The reason why an operation on a repository failed.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The worker could not be started, or its report could not be read.
    #[error("cannot {doing}: the git worker failed")]
    Launch {
        /// The operation.
        doing: &'static str,
        /// The cause.
        #[source]
        source: LaunchError,
    },
    /// The worker exited without a report.
    #[error("cannot {doing}: the git worker {exit} without a report")]
    Died {
        /// The operation.
        doing: &'static str,
        /// The exit of the worker.
        exit: Exit,
    },
    /// The worker's answer does not belong to its job.
    #[error("cannot {doing}: the git worker's answer does not belong to the job")]
    UnexpectedAnswer {
        /// The operation.
        doing: &'static str,
    },
    /// The worker reported a failure.
    #[error(transparent)]
    Failure(#[from] GitFailure),
    /// The commit cannot be deployed.
    #[error("{0}")]
    Refused(SourceRefusal),
    /// The commit cannot be the values of a pillar.
    #[error("{0}")]
    PillarRefused(PillarRefusal),
}

/// A git process that serves a client. While this value exists, the repository is not packed.
#[derive(Debug)]
pub struct Serving {
    /// The git process.
    pub child: Child,
    _shared: OwnedRwLockReadGuard<()>,
}

/// A handle to all repositories of this server.
#[derive(Debug, Clone)]
pub struct Repositories {
    launcher: Launcher,
    locks: Arc<Mutex<HashMap<RepositoryId, Arc<RwLock<()>>>>>,
}

impl Repositories {
    /// Creates a handle to the repositories. `launcher` starts their workers.
    pub fn new(launcher: Launcher) -> Repositories {
        Repositories { launcher, locks: Arc::default() }
    }

    fn lock(&self, repository: RepositoryId) -> Arc<RwLock<()>> {
        self.locks.lock().entry(repository).or_default().clone()
    }

    /// Serves a client on `stdio`. `protocol` is the client's `GIT_PROTOCOL`; unsupported versions are ignored. A push requires a
    /// token.
    pub async fn serve(
        &self,
        repository: RepositoryId,
        service: Service,
        protocol: Option<&str>,
        stdio: Stdio,
        token: Option<PushToken>,
        limits: ServeLimits,
    ) -> Result<Serving, GitError> {
        let shared = self.lock(repository).read_owned().await;
        let protocol = protocol.and_then(protocol_version);
        let job = GitJob::Serve { service, protocol, token: token.map(PushToken::to_hex), limits };
        let child = self.launch_git(repository, job, stdio, "serve a client").await?;
        Ok(Serving { child, _shared: shared })
    }

    /// Creates the repository if it does not exist, and sets its `HEAD` to the branch `head`.
    pub async fn init(&self, repository: impl Into<RepositoryId>, head: BranchName) -> Result<(), GitError> {
        self.done(repository.into(), GitJob::Init { head }, "create the repository").await
    }

    /// Moves, creates or deletes a ref, and returns after the change is on the disk. A repeated call succeeds.
    pub async fn move_ref(&self, repository: impl Into<RepositoryId>, change: MoveRef) -> Result<(), GitError> {
        self.done(repository.into(), GitJob::MoveRef(change), "move a ref").await
    }

    /// Returns at most `limit` refs, without larder's own refs. The second value is true if there are more refs.
    pub async fn read_refs(&self, project: ProjectId, limit: usize) -> Result<(Vec<RefEntry>, bool), GitError> {
        let doing = "read the refs";
        match self.ask(project, GitJob::ReadRefs { limit }, doing).await? {
            GitAnswer::Refs { refs, more } => Ok((refs, more)),
            _ => Err(GitError::UnexpectedAnswer { doing }),
        }
    }

    /// Returns the names of tags, each with the tag's commit. The names do not contain the prefix `refs/tags/`. The second value is true if
    /// there are more tags.
    pub async fn tags(&self, project: ProjectId) -> Result<(Vec<(String, CommitId)>, bool), GitError> {
        let doing = "read the tags";
        match self.ask(project, GitJob::Tags, doing).await? {
            GitAnswer::Refs { refs, more } => Ok((refs.into_iter().map(|entry| (entry.refname, entry.id)).collect(), more)),
            _ => Err(GitError::UnexpectedAnswer { doing }),
        }
    }

    /// Finds the commit that `spec` describes.
    pub async fn resolve(&self, project: ProjectId, spec: CommitSpec) -> Result<CommitId, GitError> {
        let doing = "find a commit";
        match self.ask(project, GitJob::Resolve { spec }, doing).await? {
            GitAnswer::Commit(commit) => Ok(commit),
            _ => Err(GitError::UnexpectedAnswer { doing }),
        }
    }

    /// Returns the tree of a commit. Commits with the same tree have the same source. Fails with [`GitFailure::NotFound`] if the repository
    /// does not have the commit.
    pub async fn tree(&self, project: ProjectId, commit: CommitId) -> Result<CommitId, GitError> {
        let doing = "find the tree of a commit";
        match self.ask(project, GitJob::Tree { commit }, doing).await? {
            GitAnswer::Tree(tree) => Ok(tree),
            _ => Err(GitError::UnexpectedAnswer { doing }),
        }
    }

    /// Returns the newest commits that are reachable from `to` and not from `from`, newest first. The number of commits is at most `limit`,
    /// and never more than 50. The second value is true if there are more commits.
    pub async fn log(
        &self,
        repository: impl Into<RepositoryId>,
        from: Option<CommitId>,
        to: CommitId,
        limit: usize,
    ) -> Result<(Vec<LogEntry>, bool), GitError> {
        self.read_log(repository.into(), GitJob::Log { from, to, limit, quarantine: None }).await
    }

    /// Returns the same as [`Repositories::log`] for a push whose objects are in git's `quarantine`, because pre-receive has not accepted them.
    pub async fn log_of_push(
        &self,
        project: ProjectId,
        from: Option<CommitId>,
        to: CommitId,
        limit: usize,
        quarantine: String,
    ) -> Result<(Vec<LogEntry>, bool), GitError> {
        self.read_log(project.into(), GitJob::Log { from, to, limit, quarantine: Some(quarantine) }).await
    }

    async fn read_log(&self, repository: RepositoryId, job: GitJob) -> Result<(Vec<LogEntry>, bool), GitError> {
        let doing = "read the log";
        match self.ask(repository, job, doing).await? {
            GitAnswer::Log { entries, more } => Ok((entries, more)),
            _ => Err(GitError::UnexpectedAnswer { doing }),
        }
    }

    /// Writes a thin pack to `output`. The pack contains all objects reachable from `want`, except the objects reachable from `haves`.
    pub async fn export_pack(
        &self,
        project: ProjectId,
        want: CommitId,
        haves: Vec<CommitId>,
        output: OwnedFd,
    ) -> Result<(), GitError> {
        let stdio = Stdio { stdout: Some(output), ..Stdio::default() };
        self.transfer(project, GitJob::ExportPack { want, haves }, stdio, "pack a commit").await
    }

    /// Imports a pack of at most `bytes` bytes. Afterwards, the repository has all objects reachable from `want`. After two weeks,
    /// maintenance removes the objects that no ref reaches.
    pub async fn import_pack(&self, project: ProjectId, want: CommitId, pack: OwnedFd, bytes: u64) -> Result<(), GitError> {
        let stdio = Stdio { stdin: Some(pack), ..Stdio::default() };
        self.transfer(project, GitJob::ImportPack { want, bytes }, stdio, "import a commit").await
    }

    async fn transfer(&self, project: ProjectId, job: GitJob, stdio: Stdio, doing: &'static str) -> Result<(), GitError> {
        let repository = RepositoryId::from(project);
        let _shared = self.lock(repository).read_owned().await;
        let mut child = self.launch_git(repository, job, stdio, doing).await?;
        let report: GitReport = self.report(&mut child, doing).await?;
        report.map(|_| ()).map_err(GitError::from)
    }

    /// Returns the files of a pillar at a commit, or at its branch `main`. `after` must be an ancestor of the commit. Returns `None` if nothing
    /// was pushed to the pillar yet.
    pub async fn read_pillar(
        &self,
        project: ProjectId,
        commit: Option<CommitId>,
        after: Option<CommitId>,
        quarantine: Option<String>,
    ) -> Result<Option<PillarFiles>, GitError> {
        let doing = "read the pillar";
        match self.ask(RepositoryId::pillar(project), GitJob::ReadPillar { commit, after, quarantine }, doing).await? {
            GitAnswer::Pillar(files) => Ok(files),
            GitAnswer::PillarRefused(refusal) => Err(GitError::PillarRefused(refusal)),
            _ => Err(GitError::UnexpectedAnswer { doing }),
        }
    }

    /// Creates a commit of a pillar, which no ref names yet.
    pub async fn commit_pillar(
        &self,
        project: ProjectId,
        parent: Option<CommitId>,
        new: PillarCommit,
    ) -> Result<CommitId, GitError> {
        let doing = "commit to the pillar";
        match self.ask(RepositoryId::pillar(project), GitJob::CommitPillar { parent, new }, doing).await? {
            GitAnswer::Commit(commit) => Ok(commit),
            _ => Err(GitError::UnexpectedAnswer { doing }),
        }
    }

    /// Returns the files of all commits of a pillar up to `from`.
    pub async fn pillar_history(&self, project: ProjectId, from: CommitId) -> Result<PillarHistory, GitError> {
        let doing = "read the history of the pillar";
        let repository = RepositoryId::pillar(project);
        let _shared = self.lock(repository).read_owned().await;
        let mut child = self.launch_git(repository, GitJob::PillarHistory { from }, Stdio::default(), doing).await?;
        let report: GitReport = self.limited_report(&mut child, doing, MAX_HISTORY).await?;
        match report? {
            GitAnswer::PillarHistory(history) => Ok(history),
            _ => Err(GitError::UnexpectedAnswer { doing }),
        }
    }

    /// Waits until the repository is not in use, and then removes the lock files of killed git processes from the repository.
    pub async fn remove_locks(&self, repository: impl Into<RepositoryId>) -> Result<(), GitError> {
        let repository = repository.into();
        let _exclusive = self.lock(repository).write_owned().await;
        let doing = "remove stale locks";
        let mut child = self.launch_git(repository, GitJob::RemoveLocks, Stdio::default(), doing).await?;
        let report: GitReport = self.report(&mut child, doing).await?;
        Ok(report.map(|_| ())?)
    }

    /// Packs the repository and returns `true`. Does nothing and returns `false` if the repository is in use.
    pub async fn gc(&self, repository: impl Into<RepositoryId>) -> Result<bool, GitError> {
        let repository = repository.into();
        let Ok(_exclusive) = self.lock(repository).try_write_owned() else { return Ok(false) };
        let doing = "pack the repository";
        let mut child = self.launch_git(repository, GitJob::Gc, Stdio::default(), doing).await?;
        let report: GitReport = self.report(&mut child, doing).await?;
        report?;
        Ok(true)
    }

    /// Checks a commit, and exports the commit if [`SourceJob::export`] is set.
    pub async fn source(&self, project: ProjectId, environment: EnvId, job: SourceJob) -> Result<CommitSource, GitError> {
        let _shared = self.lock(project.into()).read_owned().await;
        let doing = "export a commit";
        let mut child = self.launch(Role::Source, project, Some(environment), &job, Stdio::default(), doing).await?;
        match self.report(&mut child, doing).await? {
            SourceReport::Ready(source) => Ok(*source),
            SourceReport::Refused(refusal) => Err(GitError::Refused(refusal)),
            SourceReport::Failed(failure) => Err(failure.into()),
        }
    }

    /// Runs a job in the checkout of an editable environment.
    pub async fn checkout(
        &self,
        project: ProjectId,
        environment: EnvId,
        release: ReleaseId,
        job: &CheckoutJob,
    ) -> Result<CheckoutAnswer, GitError> {
        self.in_checkout(project, environment, release, job, Stdio::default()).await
    }

    /// Runs a job in the checkout of an editable environment. The checkout gets the objects of the commit `want`, except those that are reachable from
    /// `known`.
    pub async fn update_checkout(
        &self,
        project: ProjectId,
        environment: EnvId,
        release: ReleaseId,
        job: &CheckoutJob,
        want: &CommitId,
        known: Option<CommitId>,
    ) -> Result<CheckoutAnswer, GitError> {
        let (reader, writer) = std::io::pipe()
            .map_err(|error| GitFailure::Failed { doing: String::from("update the checkout"), why: error.to_string() })?;
        let stdio = Stdio { stdin: Some(reader.into()), ..Stdio::default() };
        let packing = self.export_pack(project, want.clone(), known.into_iter().collect(), writer.into());
        let (answer, packed) = tokio::join!(self.in_checkout(project, environment, release, job, stdio), packing);
        // A worker with an objection does not read the pack.
        if matches!(answer, Ok(CheckoutAnswer::Objection(_))) {
            return answer;
        }
        // A failed export truncates the pack, so the reason of the export comes first.
        packed?;
        answer
    }

    /// Writes a pack with a commit of the checkout of an editable environment to `output`.
    pub async fn pack_checkout(
        &self,
        project: ProjectId,
        environment: EnvId,
        release: ReleaseId,
        job: &CheckoutJob,
        output: OwnedFd,
    ) -> Result<CheckoutAnswer, GitError> {
        let stdio = Stdio { stdout: Some(output), ..Stdio::default() };
        self.in_checkout(project, environment, release, job, stdio).await
    }

    async fn in_checkout(
        &self,
        project: ProjectId,
        environment: EnvId,
        release: ReleaseId,
        job: &CheckoutJob,
        stdio: Stdio,
    ) -> Result<CheckoutAnswer, GitError> {
        let doing = "change the checkout";
        let launch = Launch {
            role: Role::Edit(EditWork::Checkout),
            project,
            environment: Some(environment),
            release: Some(release),
            slot: Some(Slot::InPlace),
            limits: LimitClass::Build { memory: None },
            supervision: Supervision::Once,
        };
        let child = self.launcher.launch(launch, job, stdio).await;
        let mut child = child.map_err(|source| GitError::Launch { doing, source })?;
        let report: CheckoutReport = self.report(&mut child, doing).await?;
        Ok(report?)
    }

    async fn done(&self, repository: RepositoryId, job: GitJob, doing: &'static str) -> Result<(), GitError> {
        match self.ask(repository, job, doing).await? {
            GitAnswer::Done => Ok(()),
            _ => Err(GitError::UnexpectedAnswer { doing }),
        }
    }

    async fn ask(&self, repository: impl Into<RepositoryId>, job: GitJob, doing: &'static str) -> Result<GitAnswer, GitError> {
        let repository = repository.into();
        let _shared = self.lock(repository).read_owned().await;
        let mut child = self.launch_git(repository, job, Stdio::default(), doing).await?;
        let report: GitReport = self.report(&mut child, doing).await?;
        Ok(report?)
    }

    async fn launch_git(
        &self,
        RepositoryId { project, kind }: RepositoryId,
        job: GitJob,
        stdio: Stdio,
        doing: &'static str,
    ) -> Result<Child, GitError> {
        self.launch(Role::Git, project, None, &GitTask { kind, job }, stdio, doing).await
    }

    async fn launch<J: Serialize>(
        &self,
        role: Role,
        project: ProjectId,
        environment: Option<EnvId>,
        job: &J,
        stdio: Stdio,
        doing: &'static str,
    ) -> Result<Child, GitError> {
        let launch = Launch {
            role,
            project,
            environment,
            release: None,
            slot: None,
            limits: LimitClass::Service,
            supervision: Supervision::Once,
        };
        self.launcher.launch(launch, job, stdio).await.map_err(|source| GitError::Launch { doing, source })
    }

    async fn report<R: DeserializeOwned>(&self, child: &mut Child, doing: &'static str) -> Result<R, GitError> {
        self.limited_report(child, doing, MAX_REPORT).await
    }

    async fn limited_report<R: DeserializeOwned>(
        &self,
        child: &mut Child,
        doing: &'static str,
        limit: usize,
    ) -> Result<R, GitError> {
        match child.report(limit).await {
            // A worker reports after it has finished its work, so the server does not wait for the worker's exit and the end of its
            // sandbox.
            Ok(Some(report)) => Ok(report),
            Ok(None) => {
                let exit = child.wait().await.map_err(|source| GitError::Launch { doing, source })?;
                Err(GitError::Died { doing, exit })
            }
            Err(source) => Err(GitError::Launch { doing, source }),
        }
    }
}

/// Returns the protocol version that a client requests, if git supports this version. `asked` can be any text.
fn protocol_version(asked: &str) -> Option<u8> {
    asked.split(':').find_map(|word| match word.strip_prefix("version=") {
        Some("0") => Some(0),
        Some("1") => Some(1),
        Some("2") => Some(2),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::protocol_version;

    #[test]
    fn unknown_protocol_version_is_ignored() {
        assert_eq!(protocol_version("version=2"), Some(2));
        assert_eq!(protocol_version("foo:version=1"), Some(1));
        for odd in ["", "version=3", "version=2\0", "version=2 --x", "$(id)"] {
            assert_eq!(protocol_version(odd), None, "{odd}");
        }
    }
}
