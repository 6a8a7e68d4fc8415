//! [`Control`], the state that all requests share: the registry, the pipeline and the server's keys, with the access checks.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;

use super::{
    audit::{AuditEntry, AuditLog, AuditReport},
    authorities,
    authz::{self, Caller, Needs},
    error::{self, CommandError},
    heads::ManifestHeads,
    login::{KeyOffers, Login, LoginCertificate, LoginRefusal, until},
    registry::Registry,
};
use crate::{
    host::root::Root,
    model::{Access, Environment, Project, ProjectId, ProjectName, PublicKey, Target, Trigger, UserName},
    pipeline::{
        DeployRequest, Pipeline, StartCheck,
        observe::{Announcement, News},
    },
};

/// The public halves of this server's own keys.
#[derive(Debug, Clone, Serialize)]
pub struct ServerKeys {
    /// The SSH host key as in a `known_hosts` file, without the host.
    pub host: String,
    /// The fingerprint of the host key.
    pub fingerprint: String,
    /// The key that signs this server's deliverables.
    pub signing: PublicKey,
    /// The public key for logins to the servers that this server pulls from, as a line of an `authorized_keys` file.
    pub pull: Option<String>,
}

struct Shared {
    root: Root,
    pipeline: Pipeline,
    registry: RwLock<Registry>,
    /// The lock that serialises changes of the registry. A change holds the lock from the read to the completed write.
    change_lock: tokio::sync::Mutex<()>,
    /// The lock that serialises the creation and removal of projects and environments. A request holds the lock while the registry entry
    /// and the directories are created or removed.
    create_destroy_lock: tokio::sync::Mutex<()>,
    /// The sender that notifies its receivers after each change of the registry.
    changed: tokio::sync::watch::Sender<()>,
    keys: ServerKeys,
    heads: ManifestHeads,
    /// The reasons why the own file systems or the quotas of projects cannot be used.
    storage_problems: RwLock<BTreeMap<ProjectId, String>>,
    offers: KeyOffers,
    audit: Mutex<AuditLog>,
}

/// The state that all requests share. All clones refer to the same state.
#[derive(Clone)]
pub struct Control(Arc<Shared>);

impl Control {
    /// Creates the state from `registry`, which was loaded from `root`.
    pub fn new(root: Root, pipeline: Pipeline, registry: Registry, keys: ServerKeys) -> Control {
        let audit = Mutex::new(AuditLog::open(root.audit()));
        Control(Arc::new(Shared {
            root,
            pipeline,
            registry: RwLock::new(registry),
            change_lock: tokio::sync::Mutex::default(),
            create_destroy_lock: tokio::sync::Mutex::default(),
            changed: tokio::sync::watch::Sender::new(()),
            keys,
            heads: ManifestHeads::default(),
            storage_problems: RwLock::default(),
            offers: KeyOffers::default(),
            audit,
        }))
    }

    /// Records the reason why the own file system or the quota of a project cannot be used until the server is restarted.
    pub fn storage_failed(&self, project: ProjectId, why: String) {
        self.0.storage_problems.write().insert(project, why);
    }

    /// Returns the reason why the own file system or the quota of a project cannot be used.
    pub(super) fn storage_problem(&self, project: ProjectId) -> Option<String> {
        self.0.storage_problems.read().get(&project).cloned()
    }

    /// Returns the reason why a project is not available. Without its quota, a project is available.
    pub(super) fn unusable_storage(&self, project: ProjectId) -> Option<String> {
        let registry = self.0.registry.read();
        let known = registry.projects.iter().find(|known| known.id == project)?;
        known.storage.filter(|kind| kind.is_file_system())?;
        self.storage_problem(project)
    }

    /// Returns an error unless `caller` has the rights that `needs` states.
    pub fn authorize(&self, caller: &Caller, needs: &Needs) -> Result<(), CommandError> {
        authz::authorize(&self.0.registry.read(), caller, needs)
    }

    /// Returns the right of `caller` on an environment.
    pub fn right_on(&self, caller: &Caller, environment: &Environment) -> Access {
        authz::on_environment(&self.0.registry.read(), caller, environment)
    }

    /// Returns true if `caller` may see the values of the pillar in an environment: with the right on the pillar, or with the right to run
    /// commands, which can print every variable.
    pub(super) fn sees_values(&self, caller: &Caller, environment: &Environment) -> bool {
        let registry = self.0.registry.read();
        authz::on_environment(&registry, caller, environment) >= Access::Operate
            || authz::on_pillar(&registry, caller, environment)
    }

    /// Returns the right of `caller` on a project itself, which counts for each environment without a right of its own.
    pub fn right_on_project(&self, caller: &Caller, project: &ProjectName) -> Access {
        authz::on_project(&self.0.registry.read(), caller, project)
    }

    /// Returns the login of the client at `source` with an SSH key, or the reason why the key is refused. The caller must have verified that
    /// the client has the private key before the caller uses the login.
    pub fn login(&self, fingerprint: &str, source: IpAddr) -> Result<Login, LoginRefusal> {
        let registry = self.0.registry.read();
        let unknown = || {
            // An expired certificate never gets here: the SSH library refuses it, and the client then offers the plain key.
            let reason = match registry.authorities.is_empty() {
                true => "the key is not known; add the key with `larder key add`",
                false => "the key is not known, and has no certificate that is signed and valid now",
            };
            LoginRefusal { user: None, reason: String::from(reason) }
        };
        let (user, key) = registry.key(fingerprint).ok_or_else(unknown)?;
        match key.limits.refusal(Timestamp::now(), source) {
            Some(reason) => Err(LoginRefusal { user: Some(user.name.clone()), reason }),
            None => Ok(Login { user: user.name.clone(), key: fingerprint.to_owned(), source, certificate: None }),
        }
    }

    /// Returns the login of the client at `source` with a certificate, or the reason why the certificate is refused. The caller must have
    /// verified both signatures.
    pub fn certified_login(&self, certificate: &Arc<LoginCertificate>, source: IpAddr) -> Result<Login, LoginRefusal> {
        let registry = self.0.registry.read();
        let (user, _) = authorities::holder(&registry, certificate, Timestamp::now(), source)?;
        let (key, certificate) = (certificate.key.clone(), Some(Arc::clone(certificate)));
        Ok(Login { user: user.name.clone(), key, source, certificate })
    }

    /// Returns true if a certificate may identify a user.
    pub fn accepts_certificates(&self) -> bool {
        !self.0.registry.read().authorities.is_empty()
    }

    /// Returns the time until a login may expire, at most an hour; `None` if its key or its certificate has no end.
    pub fn expires_in(&self, fingerprint: &str, certificate: Option<&LoginCertificate>) -> Option<Duration> {
        let registry = self.0.registry.read();
        let end = match certificate {
            None => registry.key(fingerprint).and_then(|(_, key)| key.limits.expires),
            Some(certificate) => {
                let signers = registry.authorities.iter().filter(|known| known.fingerprint == certificate.authority);
                signers.filter_map(|known| known.limits.expires).chain(certificate.valid_before).min()
            }
        };
        end.map(until)
    }

    /// Appends a record to the audit log, and waits until the record is durable.
    pub async fn audit(&self, entry: AuditEntry) {
        let control = self.clone();
        // A panic of the task is logged like a failed write.
        if let Err(error) = tokio::task::spawn_blocking(move || control.0.audit.lock().append(entry)).await {
            tracing::error!(%error, "cannot write the audit log");
        }
        // No request waits for the head.
        let control = self.clone();
        tokio::task::spawn_blocking(move || control.0.audit.lock().save_head());
    }

    /// Notifies the observers of a change of users, keys, rights, approvals or deploy windows.
    pub(super) fn announce(&self, entry: AuditEntry) {
        let AuditEntry { who, what, on, detail, .. } = entry;
        let id = format!("access-{}", Timestamp::now().as_nanosecond());
        self.announce_news(id, on, News::AccessChanged { by: who, what, detail });
    }

    /// Notifies the observers of news that concern no deployment.
    pub(super) fn announce_news(&self, id: String, environment: String, news: News) {
        let announcement = Announcement { id, at: Timestamp::now(), environment, deployment: None, news };
        self.pipeline().services().observers.milestone(announcement);
    }

    /// Reads the audit log and checks its chain.
    pub(super) fn audit_report(&self) -> std::io::Result<AuditReport> {
        let mut audit = self.0.audit.lock();
        audit.save_head();
        audit.read()
    }

    /// Returns the last keys that clients offered.
    pub fn offers(&self) -> &KeyOffers {
        &self.0.offers
    }

    /// Returns a receiver that is notified after each change of the registry, which contains users, keys and rights.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Waits until `caller` no longer has the rights that `needs` states.
    pub async fn revoked(&self, caller: &Caller, needs: &Needs) {
        let mut changes = self.0.changed.subscribe();
        while self.authorize(caller, needs).is_ok() {
            let expires = match caller {
                Caller::User(login) => self.expires_in(&login.key, login.certificate.as_deref()),
                Caller::Operator => None,
            };
            let expired = async {
                match expires {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            let closed = tokio::select! {
                changed = changes.changed() => changed.is_err(),
                () = expired => false,
            };
            if closed {
                return std::future::pending().await;
            }
        }
    }

    /// Returns a project, with all its environments, if `caller` has the rights that `needs` states.
    pub fn project(&self, caller: &Caller, name: &ProjectName, needs: &Needs) -> Result<Project, CommandError> {
        self.authorize(caller, needs)?;
        let project = self.0.registry.read().project(name).cloned();
        project.ok_or_else(|| error::no_project(name, &self.names(caller)))
    }

    /// Returns a project with the environments that `caller` may see. The caller must have the right to view the project.
    pub(super) fn visible_project(&self, caller: &Caller, name: &ProjectName) -> Result<Project, CommandError> {
        let registry = self.0.registry.read();
        let project = registry.project(name).and_then(|project| authz::visible(&registry, caller, project));
        drop(registry);
        project.ok_or_else(|| error::no_project(name, &self.names(caller)))
    }

    /// Returns the environment that a target names, or the project's default environment if the target names none. The caller must have a
    /// right on this environment: [`Control::handle`] has checked the target of the request.
    pub(super) fn environment(&self, target: &Target) -> Result<Environment, CommandError> {
        let registry = self.0.registry.read();
        let project = registry.project(&target.project).ok_or_else(|| error::no_project(&target.project, &[]))?;
        registry.environment(target).cloned().ok_or_else(|| error::no_environment(project, target))
    }

    /// Returns the names of the projects that a caller may see.
    pub(super) fn names(&self, caller: &Caller) -> Vec<ProjectName> {
        self.visible(caller).into_iter().map(|project| project.name).collect()
    }

    /// Returns the projects that a caller may see, each with the environments that the caller may see.
    pub(super) fn visible(&self, caller: &Caller) -> Vec<Project> {
        let registry = self.0.registry.read();
        registry.projects.iter().filter_map(|project| authz::visible(&registry, caller, project)).collect()
    }

    /// Returns true if a caller may see figures that concern all environments of a project together.
    pub(super) fn sees_all(&self, caller: &Caller, project: &ProjectName) -> bool {
        authz::sees_all(&self.0.registry.read(), caller, project)
    }

    /// Returns the keys whose deliverables an environment accepts: the keys that its project trusts, the keys of its remotes, and
    /// this server's own key.
    pub fn trusted(&self, environment: &Environment) -> Vec<PublicKey> {
        let registry = self.0.registry.read();
        let of_project = registry.trusted.iter().filter(|trusted| trusted.project == environment.project);
        let mut keys: Vec<_> = of_project.map(|trusted| trusted.key).collect();
        keys.extend(environment.remotes.iter().flat_map(|remote| remote.trust.iter().copied()));
        keys.push(self.0.keys.signing);
        keys
    }

    /// Returns all environments, project by project.
    pub fn environments(&self) -> Vec<Environment> {
        let registry = self.0.registry.read();
        registry.projects.iter().flat_map(|project| project.environments.iter().cloned()).collect()
    }

    /// Returns the pipeline, which runs the deployments.
    pub fn pipeline(&self) -> &Pipeline {
        &self.0.pipeline
    }

    pub(super) fn root(&self) -> &Root {
        &self.0.root
    }

    pub(super) fn keys(&self) -> &ServerKeys {
        &self.0.keys
    }

    pub(super) fn heads(&self) -> &ManifestHeads {
        &self.0.heads
    }

    /// Locks the registry for reading. The guard must not be held across an await.
    pub(super) fn registry(&self) -> parking_lot::RwLockReadGuard<'_, Registry> {
        self.0.registry.read()
    }

    /// Returns the login keys and the certificate authorities that expire after `from` and not after `until`, each as a sentence without a
    /// full stop.
    pub fn expiring(&self, from: Timestamp, until: Timestamp) -> Vec<String> {
        self.registry().expiring(from, until)
    }

    /// Acquires the lock for creating and destroying projects and environments.
    pub(super) async fn create_destroy_lock(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.create_destroy_lock.lock().await
    }

    /// Acquires the lock for changes of the registry and of the small files beside it.
    pub(super) async fn change_lock(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.change_lock.lock().await
    }

    /// Applies `change` to the registry. Other requests read the change only after the changed registry is on the disk.
    pub(super) async fn change<T>(
        &self,
        change: impl FnOnce(&mut Registry) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let _one_at_a_time = self.change_lock().await;
        let mut next = self.registry().clone();
        let result = change(&mut next)?;
        let saved = next.save(&self.0.root.registry_file());
        saved.map_err(|error| CommandError::internal(&error))?;
        *self.0.registry.write() = next;
        self.0.changed.send_replace(());
        Ok(result)
    }

    /// Changes one environment in the registry and returns the changed environment.
    pub(super) async fn change_environment(
        &self,
        environment: &Environment,
        change: impl FnOnce(&mut Environment) -> Result<(), CommandError>,
    ) -> Result<Environment, CommandError> {
        self.change(|registry| {
            let mut environments = registry.projects.iter_mut().flat_map(|project| &mut project.environments);
            let known = environments.find(|known| known.id == environment.id);
            let known =
                known.ok_or_else(|| error::not_found(format!("the environment {} no longer exists", environment.title())))?;
            change(known)?;
            Ok(known.clone())
        })
        .await
    }
}

/// Checks a queued deployment again when the deployment starts, because rights and environments may have changed since the submission.
impl StartCheck for Control {
    fn check(&self, request: &DeployRequest) -> Result<Environment, String> {
        let asked = &request.environment;
        let by = request.trigger.by();
        let (needed, verb) = match request.trigger {
            Trigger::Push { .. } | Trigger::Redeploy { .. } => (Access::Push, "push to"),
            Trigger::Pull { .. } | Trigger::Rollback { .. } => (Access::Deploy, "deploy to"),
            Trigger::Configure { .. } => (Access::Operate, "change the configuration of"),
            Trigger::Pillar { .. } => (Access::View, "see"),
        };
        let right =
            if *by == UserName::operator() { Access::Admin } else { authz::of_user(&self.registry(), by, &Target::from(asked)) };
        if right < needed {
            return Err(format!("{by} may no longer {verb} {}", asked.title()));
        }
        let is_pillar = matches!(request.trigger, Trigger::Pillar { .. }) && *by != UserName::operator();
        if is_pillar && !authz::pillar_of_user(&self.registry(), by, &Target::from(asked)) {
            return Err(format!("{by} may no longer push the pillar of {}", asked.project));
        }
        if let Some(objection) = self.objection(request) {
            return Err(objection.reason);
        }
        let registry = self.registry();
        let environments = registry.projects.iter().flat_map(|project| &project.environments);
        let now = environments.into_iter().find(|environment| environment.id == asked.id).cloned();
        let now = now.ok_or_else(|| format!("{} was removed meanwhile", asked.title()))?;
        match now.branch == request.branch {
            true => Ok(now),
            false => Err(format!("{} now deploys the branch {} (expected {})", now.title(), now.branch, request.branch)),
        }
    }
}
