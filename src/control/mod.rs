//! The one desk: requests, replies, and the only access decision.
//!
//! Every way in (the command line, ssh, git, later the web) makes a [`Request`] and hands it to [`Control::handle`]. What a caller
//! may do is decided in [`gate`] and nowhere else.

mod drift;
mod error;
mod gate;
mod handlers;
mod registry;
mod releases;
mod reply;
mod request;

use std::sync::Arc;

use parking_lot::RwLock;

pub use self::{
    drift::{DriftReport, PatchDetail, PatchRow, TreeDifference, TreeReport},
    error::{CommandError, Kind},
    gate::Caller,
    registry::{Key, Registry, TrustedKey, User},
    releases::{Commit, CommitsBetween, ManifestBrief, ReleaseDetail, ReleaseDiff},
    reply::{
        Check, EnvironmentStatus, Grade, LogFollower, ProcessRow, ProjectRow, Reply, RunFuture, SendFuture, ServerKeys,
        StatusReport, TakeFuture, TrustRow,
    },
    request::{DeployAction, DriftAction, ProjectSpec, Request, Target},
};
use crate::{
    host::root::Root,
    model::{Access, Environment, Project, ProjectName, PublicKey, UserName},
    pipeline::Pipeline,
};

struct Shared {
    root: Root,
    pipeline: Pipeline,
    registry: RwLock<Registry>,
    /// One change of the registry at a time, from reading it to having written it.
    change: tokio::sync::Mutex<()>,
    /// One project or environment comes or goes at a time, from its entry in the registry to its last directory.
    founding: tokio::sync::Mutex<()>,
    /// Told after each change.
    changed: tokio::sync::watch::Sender<()>,
    keys: ServerKeys,
    /// What is read of manifests again and again.
    heads: handlers::Heads,
}

/// The desk; cheap to clone.
#[derive(Clone)]
pub struct Control(Arc<Shared>);

impl Control {
    /// A desk over the registry in `root`. `keys` are for people to compare and to carry to other servers.
    pub fn new(root: Root, pipeline: Pipeline, registry: Registry, keys: ServerKeys) -> Control {
        let registry = RwLock::new(registry);
        let changed = tokio::sync::watch::Sender::new(());
        Control(Arc::new(Shared {
            root,
            pipeline,
            registry,
            change: tokio::sync::Mutex::default(),
            founding: tokio::sync::Mutex::default(),
            changed,
            keys,
            heads: Default::default(),
        }))
    }

    /// Does what is asked, if the caller may.
    pub async fn handle(&self, caller: &Caller, request: Request) -> Result<Reply, CommandError> {
        self.admit(caller, &request)?;
        handlers::handle(self, caller, request).await
    }

    fn admit(&self, caller: &Caller, request: &Request) -> Result<(), CommandError> {
        let (project, needed) = request.needs();
        if self.access(caller, project) >= needed {
            return Ok(());
        }
        tracing::warn!(%caller, request = request.word(), "refused");
        Err(gate::refusal(caller, project, needed, self.access(caller, project)))
    }

    /// What `caller` may do with `project`, or with the server as a whole.
    pub fn access(&self, caller: &Caller, project: Option<&ProjectName>) -> Access {
        gate::access(&self.0.registry.read(), caller, project)
    }

    /// The user that a verified SSH key belongs to.
    pub fn user_of_key(&self, fingerprint: &str) -> Option<UserName> {
        self.0.registry.read().user_of_key(fingerprint)
    }

    /// Told after each change of users, keys and rights.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Waits until `caller` may no longer do what needs this right; for ever where that does not happen.
    pub async fn revoked(&self, caller: &Caller, project: Option<&ProjectName>, needed: Access) {
        let mut changes = self.0.changed.subscribe();
        while self.access(caller, project) >= needed {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// A project, for a caller that may at least see it.
    pub fn project(&self, caller: &Caller, name: &ProjectName, needed: Access) -> Result<Project, CommandError> {
        let access = self.access(caller, Some(name));
        if access < needed {
            return Err(gate::refusal(caller, Some(name), needed, access));
        }
        self.0.registry.read().project(name).cloned().ok_or_else(|| error::no_project(name, &self.names(caller)))
    }

    /// The environment that a target names; the project's default one where it names none.
    fn environment(&self, target: &Target) -> Result<Environment, CommandError> {
        let registry = self.0.registry.read();
        let project = registry.project(&target.project).ok_or_else(|| error::no_project(&target.project, &[]))?;
        let found = match &target.environment {
            Some(name) => project.environments.iter().find(|environment| &environment.name == name),
            None => project.environments.iter().find(|environment| environment.default).or(project.environments.first()),
        };
        found.cloned().ok_or_else(|| error::no_environment(project, target))
    }

    /// All environments of a project.
    fn environments(&self, project: &ProjectName) -> Vec<Environment> {
        self.0.registry.read().project(project).map(|project| project.environments.clone()).unwrap_or_default()
    }

    /// The projects that a caller may see.
    pub fn names(&self, caller: &Caller) -> Vec<ProjectName> {
        let registry = self.0.registry.read();
        let visible = |project: &&Project| gate::access(&registry, caller, Some(&project.name)) >= Access::View;
        registry.projects.iter().filter(visible).map(|project| project.name.clone()).collect()
    }

    /// Whose deliverables an environment accepts: the keys that its project trusts, those of its remotes, and this server's own.
    pub fn trusted(&self, environment: &Environment) -> Vec<PublicKey> {
        let registry = self.0.registry.read();
        let mine = registry.trusted.iter().filter(|trusted| trusted.project == environment.project);
        let mut keys: Vec<_> = mine.map(|trusted| trusted.key).collect();
        keys.extend(environment.remotes.iter().flat_map(|remote| remote.trust.iter().copied()));
        keys.push(self.0.keys.signing);
        keys
    }

    /// The trades behind the desk.
    pub fn pipeline(&self) -> &Pipeline {
        &self.0.pipeline
    }
}
