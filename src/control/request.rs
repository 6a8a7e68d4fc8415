//! What can be asked, and which right each question needs.

use std::{fmt, ops::Range, str::FromStr};

use serde::{Deserialize, Serialize};

use super::registry::Key;
use crate::{
    model::{
        Access, BranchName, CommitId, EnvironmentName, Mode, NameError, Phase, ProjectName, PublicKey, RemoteName, Strategy,
        UserName,
    },
    remote::Object,
};

/// `shop`, or `shop/staging`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The project.
    pub project: ProjectName,
    /// The environment; the project's default one where it is not given.
    pub environment: Option<EnvironmentName>,
}

impl FromStr for Target {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Target, NameError> {
        let (project, environment) = match text.split_once('/') {
            Some((project, environment)) => (project, Some(environment.parse()?)),
            None => (text, None),
        };
        Ok(Target { project: project.parse()?, environment })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.environment {
            Some(environment) => write!(f, "{}/{environment}", self.project),
            None => self.project.fmt(f),
        }
    }
}

/// How a new environment shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectSpec {
    /// The project; made if it is not there.
    pub project: ProjectName,
    /// The environment's name.
    pub environment: EnvironmentName,
    /// How it deploys.
    pub mode: Mode,
    /// What it deploys.
    pub branch: BranchName,
    /// Further host names.
    pub domains: Vec<String>,
    /// How a release takes over.
    pub strategy: Strategy,
}

/// What to do about a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeployAction {
    /// Deploy a commit that the server has: a branch, a tag, a commit; the live one where nothing is given.
    Start {
        /// Which.
        reference: Option<String>,
        /// The phases that are only tried, to be put back whatever comes of them; none to go live.
        trial: Vec<Phase>,
    },
    /// Deploy the commit of the last deployment that failed again.
    Retry,
    /// Show the one under way, or the last one, from its beginning.
    Follow,
    /// Stop the one under way, and put everything back.
    Cancel,
    /// Release a frozen environment after a person has looked.
    Unfreeze,
}

/// What to do about drift.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriftAction {
    /// Show it.
    Look {
        /// Only in the slot, not in the installed tree.
        quick: bool,
    },
    /// Keep it as a patch.
    Save,
    /// List the patches.
    Patches,
    /// Show a patch.
    Show {
        /// Which, or the beginning of it.
        patch: String,
    },
    /// Remove a patch.
    Drop {
        /// Which, or the beginning of it.
        patch: String,
    },
}

/// A question or an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Who am I, and what may I do?
    Whoami,
    /// A new user.
    UserAdd {
        /// Its name.
        name: UserName,
        /// Whether it may do everything.
        admin: bool,
        /// Its first keys.
        keys: Vec<Key>,
    },
    /// All users.
    UserList,
    /// Removes a user and its keys.
    UserRemove {
        /// Which.
        name: UserName,
    },
    /// Gives a user a right on a project; `none` takes it away.
    UserGrant {
        /// Who.
        name: UserName,
        /// On what.
        project: ProjectName,
        /// Which right.
        access: Access,
    },
    /// A further key.
    KeyAdd {
        /// For whom.
        name: UserName,
        /// The key.
        key: Key,
    },
    /// Removes a key.
    KeyRemove {
        /// Its fingerprint.
        fingerprint: String,
    },
    /// The keys by which others know this server.
    KeyShow,
    /// Accepts deliverables that are signed by a key.
    KeyTrust {
        /// For which project.
        project: ProjectName,
        /// The key; where none is given, the question is which are trusted.
        key: Option<PublicKey>,
        /// What it shall be called.
        name: Option<RemoteName>,
    },
    /// Accepts them no more.
    KeyUntrust {
        /// For which project.
        project: ProjectName,
        /// The key.
        key: PublicKey,
    },
    /// A new environment, and its project if need be.
    ProjectCreate(ProjectSpec),
    /// The projects that the caller may see.
    ProjectList,
    /// Everything about one project.
    ProjectInfo {
        /// Which.
        project: ProjectName,
    },
    /// Ends a project and deletes everything of it.
    ProjectDestroy {
        /// Which.
        project: ProjectName,
        /// The name again, typed by the caller.
        confirm: Option<String>,
    },
    /// A deployment without a push.
    Deploy {
        /// Where.
        target: Target,
        /// What.
        action: DeployAction,
    },
    /// Back to an older release.
    Rollback {
        /// Where.
        target: Target,
        /// To which; the newest good one older than the live one where nothing is given.
        release: Option<String>,
    },
    /// Bring a deliverable here and make it live.
    Pull {
        /// Where to; the project's final environment where none is named.
        target: Target,
        /// Which; the newest where nothing is given.
        release: Option<String>,
        /// From this remote only.
        from: Option<RemoteName>,
        /// Why the promotion policy does not count.
        overriding: Option<String>,
    },
    /// Have another environment or server bring a release that was cooked here.
    Promote {
        /// Where it was cooked; the project's cooking environment where none is named.
        target: Target,
        /// Which; the live one where nothing is given.
        release: Option<String>,
        /// Who shall serve it: a remote, or an environment of the project on this server.
        to: String,
        /// Why the promotion policy does not count.
        overriding: Option<String>,
    },
    /// The steps that a push would take.
    Plan {
        /// Where.
        target: Target,
        /// What would be pushed, if it is there already.
        reference: Option<String>,
        /// Which phases; all where none is given.
        only: Vec<Phase>,
    },
    /// The releases of an environment.
    Releases {
        /// Where.
        target: Target,
    },
    /// One release; the live one where none is named.
    ReleaseShow {
        /// Where.
        target: Target,
        /// Which, as a person names it.
        release: Option<String>,
    },
    /// What differs between two releases.
    ReleaseDiff {
        /// Where.
        target: Target,
        /// The first.
        from: String,
        /// The second; the live one where none is named.
        to: Option<String>,
    },
    /// Keeps a release from being pruned, or lets it be.
    ReleasePin {
        /// Where.
        target: Target,
        /// Which.
        release: String,
        /// Whether to keep it.
        pinned: bool,
    },
    /// What was changed by hand in what runs.
    Drift {
        /// Where.
        target: Target,
        /// What.
        action: DriftAction,
    },
    /// A release in one file.
    ReleaseExport {
        /// Where.
        target: Target,
        /// Which.
        release: String,
    },
    /// Takes a release from such a file.
    ReleaseImport {
        /// Where to.
        target: Target,
    },
    /// The processes of an environment.
    Ps {
        /// Where.
        target: Target,
    },
    /// How many of each process type.
    Scale {
        /// Where.
        target: Target,
        /// Type and number.
        scale: Vec<(String, u32)>,
    },
    /// Ends and starts all processes of an environment.
    Restart {
        /// Where.
        target: Target,
    },
    /// Process output.
    Logs {
        /// Where.
        target: Target,
        /// Only this process, such as `web` or `web.1`.
        process: Option<String>,
        /// How many lines of the past.
        lines: usize,
        /// Whether to go on with what comes.
        follow: bool,
    },
    /// A command in a copy of the live environment.
    Run {
        /// Where.
        target: Target,
        /// Command and arguments.
        command: Vec<String>,
    },
    /// The releases that other servers may pull.
    DeliverableList {
        /// Where; all environments where none is named.
        target: Target,
    },
    /// Size and digest of a file of a release.
    DeliverableInfo {
        /// Where; all environments where none is named.
        target: Target,
        /// Which release, by any of its names.
        release: String,
        /// Which file.
        object: Object,
    },
    /// The bytes of a file of a release.
    DeliverableGet {
        /// Where; all environments where none is named.
        target: Target,
        /// Which release, by any of its names.
        release: String,
        /// Which file.
        object: Object,
        /// Which ranges of it, one after another; an end beyond its own means its end.
        parts: Vec<Range<u64>>,
        /// For a pack: commits that the caller has.
        haves: Vec<CommitId>,
    },
    /// A further place of deliverables.
    RemoteAdd {
        /// For which environment.
        target: Target,
        /// Its name.
        name: RemoteName,
        /// Its address.
        url: String,
        /// For ssh: the host key that it must show.
        host_key: Option<String>,
        /// Whose deliverables are accepted from there.
        trust: Vec<PublicKey>,
        /// Whether releases are published there.
        publish: bool,
    },
    /// The places of an environment.
    RemoteList {
        /// Which.
        target: Target,
    },
    /// Forgets a place.
    RemoteRemove {
        /// Of which environment.
        target: Target,
        /// Which.
        name: RemoteName,
    },
    /// Looks what works with a place.
    RemoteCheck {
        /// Of which environment.
        target: Target,
        /// Which.
        name: RemoteName,
    },
    /// The state of the server and of what the caller may see.
    Status,
    /// Looks for what is wrong with this machine's set-up.
    Doctor,
}

impl Request {
    /// The project it is about, if one, and the right that it needs. A new request does not compile without an answer here.
    pub fn needs(&self) -> (Option<&ProjectName>, Access) {
        match self {
            Request::Whoami | Request::ProjectList | Request::Status | Request::KeyShow => (None, Access::View),
            Request::UserAdd { .. }
            | Request::UserList
            | Request::UserRemove { .. }
            | Request::UserGrant { .. }
            | Request::KeyAdd { .. }
            | Request::KeyRemove { .. }
            | Request::ProjectCreate(_)
            | Request::ProjectDestroy { .. }
            // Whose code runs here, and which machines this server talks to.
            | Request::RemoteAdd { .. }
            | Request::RemoteRemove { .. }
            | Request::Doctor => (None, Access::Admin),
            // Whose code runs is decided by whoever administers the server.
            Request::KeyTrust { key: Some(_), .. } | Request::KeyUntrust { .. } => (None, Access::Admin),
            Request::KeyTrust { project, key: None, .. } | Request::ProjectInfo { project } => (Some(project), Access::View),
            Request::Plan { target, .. }
            | Request::Releases { target }
            | Request::ReleaseShow { target, .. }
            | Request::ReleaseDiff { target, .. }
            | Request::ReleaseExport { target, .. }
            // The same right as `git fetch`.
            | Request::DeliverableList { target }
            | Request::DeliverableInfo { target, .. }
            | Request::DeliverableGet { target, .. }
            | Request::RemoteList { target }
            | Request::Drift { target, action: DriftAction::Look { .. } | DriftAction::Patches }
            | Request::Ps { target }
            | Request::Logs { target, .. }
            | Request::Deploy { target, action: DeployAction::Follow } => (Some(&target.project), Access::View),
            Request::Deploy { target, action: DeployAction::Unfreeze }
            | Request::Drift { target, action: DriftAction::Save | DriftAction::Drop { .. } }
            | Request::Run { target, .. }
            | Request::Scale { target, .. }
            | Request::ReleasePin { target, .. }
            | Request::RemoteCheck { target, .. }
            | Request::Restart { target } => (Some(&target.project), Access::Operate),
            // What was changed by hand may hold more than the repository shows.
            Request::Drift { target, action: DriftAction::Show { .. } }
            | Request::ReleaseImport { target }
            | Request::Deploy { target, .. }
            | Request::Rollback { target, .. }
            | Request::Pull { target, .. }
            | Request::Promote { target, .. } => (Some(&target.project), Access::Push),
        }
    }

    /// A word for records.
    pub fn word(&self) -> &'static str {
        match self {
            Request::Whoami => "whoami",
            Request::UserAdd { .. } => "user add",
            Request::UserList => "user list",
            Request::UserRemove { .. } => "user remove",
            Request::UserGrant { .. } => "user grant",
            Request::KeyAdd { .. } => "key add",
            Request::KeyRemove { .. } => "key remove",
            Request::KeyShow => "key show",
            Request::KeyTrust { .. } => "key trust",
            Request::KeyUntrust { .. } => "key untrust",
            Request::ProjectCreate(_) => "project create",
            Request::ProjectList => "project list",
            Request::ProjectInfo { .. } => "project info",
            Request::ProjectDestroy { .. } => "project destroy",
            Request::Deploy { .. } => "deploy",
            Request::Rollback { .. } => "rollback",
            Request::Pull { .. } => "pull",
            Request::Promote { .. } => "promote",
            Request::Plan { .. } => "plan",
            Request::Releases { .. } => "releases",
            Request::ReleaseShow { .. } => "release show",
            Request::ReleaseExport { .. } => "release export",
            Request::ReleaseImport { .. } => "release import",
            Request::ReleaseDiff { .. } => "release diff",
            Request::ReleasePin { pinned: true, .. } => "release pin",
            Request::ReleasePin { .. } => "release unpin",
            Request::Drift { .. } => "drift",
            Request::Ps { .. } => "ps",
            Request::Scale { .. } => "scale",
            Request::Restart { .. } => "restart",
            Request::Logs { .. } => "logs",
            Request::Run { .. } => "run",
            Request::DeliverableList { .. } => "deliverable list",
            Request::DeliverableInfo { .. } => "deliverable info",
            Request::DeliverableGet { .. } => "deliverable get",
            Request::RemoteAdd { .. } => "remote add",
            Request::RemoteList { .. } => "remote list",
            Request::RemoteRemove { .. } => "remote remove",
            Request::RemoteCheck { .. } => "remote check",
            Request::Status => "status",
            Request::Doctor => "doctor",
        }
    }
}
