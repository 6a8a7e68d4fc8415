//! Server side: asks the keeper for git workers and understands their answers.

use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc};

use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use super::{
    hook::PushToken,
    job::{GitAnswer, GitFailure, GitJob, GitReport, LogEntry, MoveRef, RefEntry, ServeLimits, Service, Spec},
    source::{Refusal, Source, SourceJob, SourceReport},
};
use crate::{
    host::launch::{Child, LaunchError, Launcher, Stdio},
    model::{BranchName, CommitId, EnvId, Exit, Launch, LimitClass, ProjectId, Role, Supervision},
};

/// The largest report that is read, in bytes.
const REPORT_LIMIT: usize = 4 << 20;

/// Why something with a repository did not work.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// No worker could be started.
    #[error("a git worker could not be used to {doing}")]
    Launch {
        /// What was to be done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: LaunchError,
    },
    /// The worker ended without an answer.
    #[error("the git worker that was to {doing} {exit} without an answer")]
    Died {
        /// What was to be done.
        doing: &'static str,
        /// How it ended.
        exit: Exit,
    },
    /// The worker answered something else.
    #[error("the git worker that was to {doing} answered another question")]
    Confused {
        /// What was to be done.
        doing: &'static str,
    },
    /// The worker could not do it; says why.
    #[error(transparent)]
    Failure(#[from] GitFailure),
    /// The commit cannot be deployed as it is.
    #[error("{0}")]
    Refused(Refusal),
}

/// A client that is being served; the repository is not packed meanwhile.
#[derive(Debug)]
pub struct Serving {
    /// The process.
    pub child: Child,
    _shared: OwnedRwLockReadGuard<()>,
}

/// All repositories of this server.
#[derive(Debug, Clone)]
pub struct Repositories {
    launcher: Launcher,
    locks: Arc<Mutex<HashMap<ProjectId, Arc<RwLock<()>>>>>,
}

impl Repositories {
    /// With workers from this launcher.
    pub fn new(launcher: Launcher) -> Repositories {
        Repositories { launcher, locks: Arc::default() }
    }

    fn lock(&self, project: ProjectId) -> Arc<RwLock<()>> {
        self.locks.lock().entry(project).or_default().clone()
    }

    /// Serves a client on `stdio`. `protocol` is what the client asked for in `GIT_PROTOCOL`; anything that git does not know
    /// is ignored. A push needs its token.
    pub async fn serve(
        &self,
        project: ProjectId,
        service: Service,
        protocol: Option<&str>,
        stdio: Stdio,
        token: Option<PushToken>,
        limits: ServeLimits,
    ) -> Result<Serving, GitError> {
        let shared = self.lock(project).read_owned().await;
        let protocol = protocol.and_then(protocol_version);
        let job = GitJob::Serve { service, protocol, token: token.map(PushToken::to_hex), limits };
        let child = self.launch(Role::Git, project, None, &job, stdio, "serve a client").await?;
        Ok(Serving { child, _shared: shared })
    }

    /// Makes the repository; safe to repeat.
    pub async fn init(&self, project: ProjectId, head: BranchName) -> Result<(), GitError> {
        self.done(project, GitJob::Init { head }, "create the repository").await
    }

    /// Moves, makes or deletes a ref; on the disk for good afterwards, safe to repeat.
    pub async fn move_ref(&self, project: ProjectId, change: MoveRef) -> Result<(), GitError> {
        self.done(project, GitJob::MoveRef(change), "move a ref").await
    }

    /// The refs of clients, at most `limit`, and whether there are more.
    pub async fn read_refs(&self, project: ProjectId, limit: usize) -> Result<(Vec<RefEntry>, bool), GitError> {
        let doing = "read the refs";
        match self.ask(project, GitJob::ReadRefs { limit }, doing).await? {
            GitAnswer::Refs { refs, more } => Ok((refs, more)),
            _ => Err(GitError::Confused { doing }),
        }
    }

    /// All tags, without `refs/tags/`, each with the commit that it names, and whether there are more than are read.
    pub async fn tags(&self, project: ProjectId) -> Result<(Vec<(String, CommitId)>, bool), GitError> {
        let doing = "read the tags";
        match self.ask(project, GitJob::Tags, doing).await? {
            GitAnswer::Refs { refs, more } => Ok((refs.into_iter().map(|entry| (entry.refname, entry.id)).collect(), more)),
            _ => Err(GitError::Confused { doing }),
        }
    }

    /// Finds a commit.
    pub async fn resolve(&self, project: ProjectId, spec: Spec) -> Result<CommitId, GitError> {
        let doing = "find a commit";
        match self.ask(project, GitJob::Resolve { spec }, doing).await? {
            GitAnswer::Commit(commit) => Ok(commit),
            _ => Err(GitError::Confused { doing }),
        }
    }

    /// The tree of a commit: commits with the same tree are the same source. [`GitFailure::NotFound`] where it is not here.
    pub async fn tree(&self, project: ProjectId, commit: CommitId) -> Result<CommitId, GitError> {
        let doing = "find the tree of a commit";
        match self.ask(project, GitJob::Tree { commit }, doing).await? {
            GitAnswer::Tree(tree) => Ok(tree),
            _ => Err(GitError::Confused { doing }),
        }
    }

    /// What is in `to` and not in `from`, newest first, at most `limit` (50), and whether there is more.
    pub async fn log(
        &self,
        project: ProjectId,
        from: Option<CommitId>,
        to: CommitId,
        limit: usize,
    ) -> Result<(Vec<LogEntry>, bool), GitError> {
        let doing = "read the log";
        match self.ask(project, GitJob::Log { from, to, limit }, doing).await? {
            GitAnswer::Log { entries, more } => Ok((entries, more)),
            _ => Err(GitError::Confused { doing }),
        }
    }

    /// Writes a commit with all that it leads to, without what `haves` lead to, to `output` as a thin pack of git.
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

    /// Takes in a pack from `pack`, at most so many bytes of it. Afterwards the repository has `want` and all that it leads to; it stays
    /// for two weeks unless a ref names it.
    pub async fn import_pack(&self, project: ProjectId, want: CommitId, pack: OwnedFd, bytes: u64) -> Result<(), GitError> {
        let stdio = Stdio { stdin: Some(pack), ..Stdio::default() };
        self.transfer(project, GitJob::ImportPack { want, bytes }, stdio, "take in a commit").await
    }

    async fn transfer(&self, project: ProjectId, job: GitJob, stdio: Stdio, doing: &'static str) -> Result<(), GitError> {
        let _shared = self.lock(project).read_owned().await;
        let mut child = self.launch(Role::Git, project, None, &job, stdio, doing).await?;
        let report: GitReport = self.report(&mut child, doing).await?;
        report.map(|_| ()).map_err(GitError::from)
    }

    /// Removes the locks that killed git processes have left in the repository. Waits until nobody uses it.
    pub async fn tidy(&self, project: ProjectId) -> Result<(), GitError> {
        let _exclusive = self.lock(project).write_owned().await;
        let doing = "remove locks that were left";
        let mut child = self.launch(Role::Git, project, None, &GitJob::Tidy, Stdio::default(), doing).await?;
        let report: GitReport = self.report(&mut child, doing).await?;
        Ok(report.map(|_| ())?)
    }

    /// Packs the repository, unless it is in use: then nothing happens and the answer is `false`.
    pub async fn gc(&self, project: ProjectId) -> Result<bool, GitError> {
        let Ok(_exclusive) = self.lock(project).try_write_owned() else { return Ok(false) };
        let doing = "pack the repository";
        let mut child = self.launch(Role::Git, project, None, &GitJob::Gc, Stdio::default(), doing).await?;
        let report: GitReport = self.report(&mut child, doing).await?;
        report?;
        Ok(true)
    }

    /// Checks and exports a commit, as the job says.
    pub async fn source(&self, project: ProjectId, environment: EnvId, job: SourceJob) -> Result<Source, GitError> {
        let _shared = self.lock(project).read_owned().await;
        let doing = "export a commit";
        let mut child = self.launch(Role::Source, project, Some(environment), &job, Stdio::default(), doing).await?;
        match self.report(&mut child, doing).await? {
            SourceReport::Ready(source) => Ok(*source),
            SourceReport::Refused(refusal) => Err(GitError::Refused(refusal)),
            SourceReport::Failed(failure) => Err(failure.into()),
        }
    }

    async fn done(&self, project: ProjectId, job: GitJob, doing: &'static str) -> Result<(), GitError> {
        match self.ask(project, job, doing).await? {
            GitAnswer::Done => Ok(()),
            _ => Err(GitError::Confused { doing }),
        }
    }

    async fn ask(&self, project: ProjectId, job: GitJob, doing: &'static str) -> Result<GitAnswer, GitError> {
        let _shared = self.lock(project).read_owned().await;
        let mut child = self.launch(Role::Git, project, None, &job, Stdio::default(), doing).await?;
        let report: GitReport = self.report(&mut child, doing).await?;
        Ok(report?)
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
        match child.report(REPORT_LIMIT).await {
            // The last thing that such a worker does; nobody has to wait until its sandbox is taken down.
            Ok(Some(report)) => Ok(report),
            Ok(None) => {
                let exit = child.wait().await.map_err(|source| GitError::Launch { doing, source })?;
                Err(GitError::Died { doing, exit })
            }
            Err(source) => Err(GitError::Launch { doing, source }),
        }
    }
}

/// Only the versions that git has; a client may send anything.
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
    fn only_known_protocols_reach_git() {
        assert_eq!(protocol_version("version=2"), Some(2));
        assert_eq!(protocol_version("foo:version=1"), Some(1));
        for odd in ["", "version=3", "version=2\0", "version=2 --x", "$(id)"] {
            assert_eq!(protocol_version(odd), None, "{odd}");
        }
    }
}
