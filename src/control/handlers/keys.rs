//! Requests about keys: the login keys of users, this server's own keys, and the signing keys that a project trusts.

use serde::Serialize;

use super::users::{ensure_key_is_free, no_user};
use crate::{
    control::{
        authz::{Caller, Needs},
        error::{CommandError, no_project, not_found, refused, usage},
        login::{Key, LoginKeyRow, OfferRow},
        registry::{Registry, TrustedKey},
        request::{Context, Reply, Request},
        state::{Control, ServerKeys},
    },
    model::{Access, ProjectName, PublicKey, RemoteName, UserName},
};

/// The maximum number of keys that one project may trust.
const MAX_TRUSTED: usize = 64;

/// The request to add a key to a user.
#[derive(Debug)]
pub struct KeyAdd {
    /// The user.
    pub name: UserName,
    /// The key.
    pub key: Key,
}

/// A key that was added.
#[derive(Debug, Serialize)]
pub struct KeyAdded {
    /// The user.
    pub name: UserName,
    /// The fingerprint of the new key.
    pub fingerprint: String,
}

impl Request for KeyAdd {
    type View = KeyAdded;
    const NAME: &'static str = "key add";
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    fn detail(&self) -> Option<String> {
        Some(format!("{} {}", self.name, self.key.summary()))
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<KeyAdded>, CommandError> {
        let KeyAdd { name, key } = self;
        let fingerprint = key.fingerprint.clone();
        let add = |registry: &mut Registry| {
            ensure_key_is_free(registry, &key)?;
            let unknown = no_user(&registry.users, &name);
            registry.user_mut(&name).ok_or(unknown)?.keys.push(key);
            Ok(())
        };
        control.change(add).await?;
        Ok(KeyAdded { name, fingerprint }.into())
    }
}

/// The request to remove a key from the user that has it.
#[derive(Debug)]
pub struct KeyRemove {
    /// The fingerprint of the key.
    pub fingerprint: String,
}

/// A key that was removed.
#[derive(Debug, Serialize)]
pub struct KeyRemoved {
    /// The user that had the key.
    pub name: UserName,
    /// The fingerprint of the key.
    pub fingerprint: String,
}

impl Request for KeyRemove {
    type View = KeyRemoved;
    const NAME: &'static str = "key remove";
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    fn detail(&self) -> Option<String> {
        Some(self.fingerprint.clone())
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<KeyRemoved>, CommandError> {
        let fingerprint = self.fingerprint;
        let remove = |registry: &mut Registry| {
            let owner = registry.key(&fingerprint).map(|(user, _)| user.name.clone());
            let owner = owner.ok_or_else(|| not_found(format!("there is no key {fingerprint}")))?;
            if let Some(user) = registry.user_mut(&owner) {
                user.keys.retain(|key| key.fingerprint != fingerprint);
            }
            Ok(owner)
        };
        let name = control.change(remove).await?;
        Ok(KeyRemoved { name, fingerprint }.into())
    }
}

/// The request to list login keys.
#[derive(Debug)]
pub struct KeyList {
    /// The user whose keys are listed; the caller if absent.
    pub name: Option<UserName>,
}

impl Request for KeyList {
    type View = Vec<LoginKeyRow>;
    const NAME: &'static str = "key list";

    fn needs(&self) -> Needs {
        match &self.name {
            Some(_) => Needs::server(Access::Admin),
            None => Needs::server(Access::View),
        }
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<Vec<LoginKeyRow>>, CommandError> {
        let registry = control.registry();
        let name = match (self.name, caller) {
            (Some(name), _) => name,
            (None, Caller::User(login)) => login.user.clone(),
            (None, Caller::Operator) => {
                return Err(usage("cannot list the keys of the operator: the operator logs in without a key")
                    .hint("name a user, as in `larder key list alice`"));
            }
        };
        let user = registry.user(&name).ok_or_else(|| no_user(&registry.users, &name))?;
        Ok(user.keys.iter().map(|key| LoginKeyRow::new(&name, key)).collect::<Vec<_>>().into())
    }
}

/// The request to list the keys that clients offered last.
#[derive(Debug)]
pub struct OfferedKeys;

impl Request for OfferedKeys {
    type View = Vec<OfferRow>;
    const NAME: &'static str = "doctor keys";

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Vec<OfferRow>>, CommandError> {
        Ok(control.offers().list().into())
    }
}

/// The request to show this server's own public keys.
#[derive(Debug)]
pub struct KeyShow;

impl Request for KeyShow {
    type View = ServerKeys;
    const NAME: &'static str = "key show";

    fn needs(&self) -> Needs {
        Needs::server(Access::View)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<ServerKeys>, CommandError> {
        Ok(control.keys().clone().into())
    }
}

/// The request to accept deliverables that are signed with a key. Without a key, the request lists the accepted keys.
#[derive(Debug)]
pub struct KeyTrust {
    /// The project that accepts the deliverables.
    pub project: ProjectName,
    /// The key; absent to list the accepted keys.
    pub key: Option<PublicKey>,
    /// A name for the key; `staging` if absent.
    pub name: Option<RemoteName>,
}

/// The answer to [`KeyTrust`].
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum KeyTrustView {
    /// The accepted keys.
    List(Vec<TrustRow>),
    /// A key that is accepted from now on.
    Trusted(TrustRow),
}

/// An accepted key.
#[derive(Debug, Clone, Serialize)]
pub struct TrustRow {
    /// The project, or `project/environment` for the key of a remote.
    pub on: String,
    /// The public half of the signing key.
    pub key: PublicKey,
    /// The name of the key, or of the remote.
    pub name: String,
}

impl Request for KeyTrust {
    type View = KeyTrustView;
    const NAME: &'static str = "key trust";
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        match &self.key {
            // The trusted keys decide whose code runs on this server.
            Some(_) => Needs::server(Access::Admin),
            None => Needs::project(&self.project, Access::View),
        }
    }

    fn detail(&self) -> Option<String> {
        self.key.map(|key| key.to_string())
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<KeyTrustView>, CommandError> {
        let KeyTrust { project, key, name } = self;
        let Some(key) = key else { return Ok(KeyTrustView::List(list(control, caller, &project)?).into()) };
        let name = match name {
            Some(name) => name,
            None => "staging".parse().map_err(|error| CommandError::internal(&error))?,
        };
        let row = TrustRow { on: project.to_string(), key, name: name.to_string() };
        control.change(|registry| trust(registry, project, key, name)).await?;
        Ok(KeyTrustView::Trusted(row).into())
    }
}

fn trust(registry: &mut Registry, project: ProjectName, key: PublicKey, name: RemoteName) -> Result<(), CommandError> {
    if registry.project(&project).is_none() {
        let names: Vec<_> = registry.projects.iter().map(|project| project.name.clone()).collect();
        return Err(no_project(&project, &names));
    }
    let known = registry.trusted.iter().filter(|trusted| trusted.project == project);
    if known.clone().any(|trusted| trusted.key == key) {
        return Err(refused(format!("cannot trust the key {key}: {project} trusts it already")));
    }
    if let Some(taken) = known.clone().find(|trusted| trusted.name == name) {
        return Err(refused(format!("cannot name the key {}: {project} trusts another key with this name", taken.name))
            .hint("choose another --name"));
    }
    if known.count() >= MAX_TRUSTED {
        return Err(refused(format!(
            "cannot trust another key: {project} trusts {MAX_TRUSTED} keys (expected at most {MAX_TRUSTED})"
        ))
        .hint("remove a key with `larder key untrust`"));
    }
    registry.trusted.push(TrustedKey { project, key, name });
    Ok(())
}

fn list(control: &Control, caller: &Caller, project: &ProjectName) -> Result<Vec<TrustRow>, CommandError> {
    let known = control.visible_project(caller, project)?;
    let registry = control.registry();
    let of_project = registry.trusted.iter().filter(|trusted| trusted.project == *project);
    let row = |trusted: &TrustedKey| TrustRow { on: project.to_string(), key: trusted.key, name: trusted.name.to_string() };
    let mut rows: Vec<_> = of_project.map(row).collect();
    for environment in &known.environments {
        for remote in &environment.remotes {
            let row = |key| TrustRow { on: environment.title(), key, name: remote.name.to_string() };
            rows.extend(remote.trust.iter().copied().map(row));
        }
    }
    Ok(rows)
}

/// The request to stop accepting deliverables that are signed with a key. Releases that were accepted stay.
#[derive(Debug)]
pub struct KeyUntrust {
    /// The project.
    pub project: ProjectName,
    /// The key.
    pub key: PublicKey,
}

/// A key that is no longer accepted.
#[derive(Debug, Serialize)]
pub struct KeyUntrusted {
    /// The project.
    pub project: ProjectName,
    /// The key.
    pub key: PublicKey,
}

impl Request for KeyUntrust {
    type View = KeyUntrusted;
    const NAME: &'static str = "key untrust";
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    fn detail(&self) -> Option<String> {
        Some(self.key.to_string())
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<KeyUntrusted>, CommandError> {
        let KeyUntrust { project, key } = self;
        let untrust = |registry: &mut Registry| {
            let before = registry.trusted.len();
            registry.trusted.retain(|trusted| trusted.project != project || trusted.key != key);
            if registry.trusted.len() < before {
                return Ok(());
            }
            Err(not_found(format!("the project {project} itself does not trust {key}")).hint(format!(
                "list the keys with `larder key trust {project}`; remove the key of a remote with `larder remote remove`"
            )))
        };
        control.change(untrust).await?;
        Ok(KeyUntrusted { project, key }.into())
    }
}
