//! Answers. The surface renders them as text or JSON; they hold no text for people except where a check explains itself.

use std::os::fd::OwnedFd;

use serde::Serialize;

use super::{
    drift::{DriftReport, PatchDetail, PatchRow},
    registry::User,
    releases::{ReleaseDetail, ReleaseDiff},
};
use crate::{
    host::launch::Child,
    model::{Access, CommitId, Live, Project, ProjectName, PublicKey, ReleaseId, ReleaseNumber, Remote, Slot, UserName},
    pipeline::{KnownRelease, LastLook, Summary, Ticket},
    remote::{Blob, Offer, ssh::Exec},
    runtime::LogLine,
};

/// An answer.
pub enum Reply {
    /// It is done; what was done.
    Done(String),
    /// Who the caller is, and its projects.
    Whoami {
        /// The name.
        name: UserName,
        /// The rights on each project that it may see.
        access: Vec<(ProjectName, Access)>,
    },
    /// Users.
    Users(Vec<User>),
    /// A project was made.
    Created {
        /// It.
        project: Project,
        /// The port of the SSH server.
        ssh_port: u16,
        /// The address of the new environment.
        url: String,
        /// Where its branch stood, if it was stored already; now it stands nowhere.
        unset: Option<CommitId>,
    },
    /// The keys by which others know this server.
    Keys(ServerKeys),
    /// Whose deliverables are accepted.
    Trusted(Vec<TrustRow>),
    /// Projects, each with what is live in its environments.
    Projects(Vec<ProjectRow>),
    /// A deployment to follow.
    Ticket(Box<Ticket>),
    /// A deployment that was told to stop.
    Cancelling(Box<Ticket>),
    /// A deployment that has ended; its transcript, from its beginning.
    Past {
        /// In short.
        summary: Box<Summary>,
        /// What it said.
        transcript: String,
    },
    /// The steps of a plan, as text.
    Plan(String),
    /// Releases, newest first.
    Releases(Vec<KnownRelease>),
    /// One release.
    Release(Box<ReleaseDetail>),
    /// Two releases compared.
    ReleaseDiff(Box<ReleaseDiff>),
    /// What was changed by hand in what runs.
    Drift(Box<DriftReport>),
    /// Patches, newest first.
    Patches(Vec<PatchRow>),
    /// A patch.
    Patch(Box<PatchDetail>),
    /// Processes.
    Processes(Vec<ProcessRow>),
    /// Output of processes.
    Logs {
        /// The past.
        lines: Vec<String>,
        /// What comes; nothing where the caller did not want to follow.
        follow: Option<Box<LogFollower>>,
    },
    /// A prepared command; the surface connects it.
    Run(Box<dyn FnOnce(crate::host::launch::Stdio) -> RunFuture + Send>),
    /// What other servers may pull, newest first.
    Offers(Vec<Offer>),
    /// Size and digest of a file.
    Blob(Blob),
    /// Bytes; the surface says where to.
    Bytes(Box<dyn FnOnce(OwnedFd) -> SendFuture + Send>),
    /// Bytes are wanted; the surface says where from.
    Take(Box<dyn FnOnce(OwnedFd) -> TakeFuture + Send>),
    /// The places of an environment.
    Remotes(Vec<Remote>),
    /// What another server says about what it was asked to do.
    Relay(Box<Exec>),
    /// The state of everything.
    Status(Box<StatusReport>),
    /// What was looked at, and what was found.
    Checks(Vec<Check>),
}

/// The public halves of this server's own keys.
#[derive(Debug, Clone, Serialize)]
pub struct ServerKeys {
    /// The SSH host key as in a `known_hosts` file, without the host.
    pub host: String,
    /// Its fingerprint.
    pub fingerprint: String,
    /// What it signs its deliverables with.
    pub signing: PublicKey,
    /// What it logs in with where it pulls from; a line as in an `authorized_keys` file.
    pub pull: Option<String>,
}

/// A key in the list of those whose deliverables are accepted.
#[derive(Debug, Clone, Serialize)]
pub struct TrustRow {
    /// For which project, or `project/environment`.
    pub on: String,
    /// The key.
    pub key: PublicKey,
    /// What it is called.
    pub name: String,
}

/// A command that is being started.
pub type RunFuture = std::pin::Pin<Box<dyn Future<Output = Result<Child, super::CommandError>> + Send>>;

/// Bytes that are being written.
pub type SendFuture = std::pin::Pin<Box<dyn Future<Output = Result<(), super::CommandError>> + Send>>;

/// Bytes that are being read; at the end, what became of them.
pub type TakeFuture = std::pin::Pin<Box<dyn Future<Output = Result<String, super::CommandError>> + Send>>;

/// Lines to come, and which of them are wanted.
pub struct LogFollower {
    /// All lines of the server.
    pub lines: tokio::sync::broadcast::Receiver<LogLine>,
    /// Whether a line is wanted.
    pub wanted: Box<dyn Fn(&LogLine) -> bool + Send>,
}

/// A project in a list.
#[derive(Debug, Clone, Serialize)]
pub struct ProjectRow {
    /// It.
    pub project: Project,
    /// What is live in each of its environments, in their order.
    pub live: Vec<Option<Live>>,
    /// The addresses of each of its environments.
    pub urls: Vec<Vec<String>>,
    /// What the last look for drift has found in each of them.
    pub drift: Vec<Option<LastLook>>,
}

/// A process in a list.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessRow {
    /// Such as `web.1`.
    pub process: String,
    /// The slot that it runs in.
    pub slot: Slot,
    /// The release that it runs.
    pub release: ReleaseId,
    /// The number of that release.
    pub number: Option<ReleaseNumber>,
    /// The port that it was told to listen on.
    pub port: Option<u16>,
    /// How often it ended and was started again since this server started.
    pub restarts: u32,
    /// How it ended last.
    pub last_exit: Option<String>,
    /// Whether its slot is the one that serves.
    pub active: bool,
}

/// The state of everything that the caller may see.
#[derive(Debug, Clone, Serialize)]
pub struct StatusReport {
    /// larder's version.
    pub version: &'static str,
    /// `system` or `rootless`.
    pub mode: String,
    /// What protects projects from each other here, in words.
    pub protection: Vec<String>,
    /// The fingerprint of the SSH host key.
    pub host_key: String,
    /// Free disk space below the root, bytes.
    pub disk_free: u64,
    /// One line for each environment.
    pub environments: Vec<EnvironmentStatus>,
}

/// The state of one environment.
#[derive(Debug, Clone, Serialize)]
pub struct EnvironmentStatus {
    /// `project/environment`.
    pub environment: String,
    /// Its mode.
    pub mode: crate::model::Mode,
    /// The branch that it deploys.
    pub branch: String,
    /// What is live.
    pub live: Option<Live>,
    /// `live`, `empty`, `deploying`, `frozen`.
    pub state: &'static str,
    /// What to know beyond that.
    pub note: Option<String>,
    /// What the last look for drift has found.
    pub drift: Option<LastLook>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Good,
    /// Works, but not as well as it could.
    Warning,
    /// Does not work.
    Bad,
}

/// Something that `doctor` looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What.
    pub what: String,
    /// How it is.
    pub grade: Grade,
    /// What was found, and what to do.
    pub finding: String,
}
