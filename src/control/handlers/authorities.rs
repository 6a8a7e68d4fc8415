//! Requests about the certificate authorities that may certify users.

use serde::Serialize;

use super::users::{ensure_exists, no_user};
use crate::{
    control::{
        authz::Needs,
        error::{CommandError, not_found, refused, similar},
        login::KeyScope,
        registry::{CertificateAuthority, Registry},
        request::{Context, Reply, Request},
    },
    model::{Access, UserName},
};

/// The maximum number of certificate authorities of a server.
const MAX_AUTHORITIES: usize = 64;

/// The maximum number of revoked certificates of one authority.
const MAX_REVOKED: usize = 4096;

/// The request to trust a certificate authority.
#[derive(Debug)]
pub struct AuthorityAdd {
    /// The authority, without revoked certificates.
    pub authority: CertificateAuthority,
}

/// A certificate authority after a change.
#[derive(Debug, Serialize)]
pub struct AuthorityChanged {
    /// The name of the authority.
    pub name: UserName,
    /// The fingerprint of its key.
    pub fingerprint: String,
}

impl Request for AuthorityAdd {
    type View = AuthorityChanged;
    const NAME: &'static str = "user ca add";
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    fn detail(&self) -> Option<String> {
        Some(self.authority.summary())
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<AuthorityChanged>, CommandError> {
        let authority = self.authority;
        let changed = AuthorityChanged { name: authority.name.clone(), fingerprint: authority.fingerprint.clone() };
        let add = |registry: &mut Registry| {
            ensure_addable(registry, &authority)?;
            registry.authorities.push(authority);
            Ok(())
        };
        control.change(add).await?;
        Ok(changed.into())
    }
}

/// Returns an error if an authority cannot be added to the registry.
fn ensure_addable(registry: &Registry, authority: &CertificateAuthority) -> Result<(), CommandError> {
    let CertificateAuthority { name, fingerprint, .. } = authority;
    let cannot = |why: String| refused(format!("cannot add the certificate authority {name}: {why}"));
    if registry.authorities.iter().any(|known| known.name == *name) {
        return Err(cannot(String::from("there is one with this name already")).hint("choose another name"));
    }
    if let Some(known) = registry.authorities.iter().find(|known| known.fingerprint == *fingerprint) {
        return Err(cannot(format!("its key is the key of the authority {}", known.name)));
    }
    if let Some((owner, _)) = registry.key(fingerprint) {
        return Err(cannot(format!("its key is a login key of {}", owner.name)).hint("make a key that only signs certificates"));
    }
    if registry.authorities.len() >= MAX_AUTHORITIES {
        return Err(cannot(format!("the server has {MAX_AUTHORITIES} authorities (the limit)")));
    }
    if let Some(user) = authority.user.as_ref().filter(|user| registry.user(user).is_none()) {
        return Err(no_user(&registry.users, user));
    }
    if let Some(group) = authority.group.as_ref().filter(|group| registry.groups.iter().all(|known| known.name != **group)) {
        return Err(not_found(format!("there is no group {group}")).hint("list the groups with `larder group list`"));
    }
    match &authority.limits.only {
        Some(KeyScope { on, .. }) => ensure_exists(registry, on),
        None => Ok(()),
    }
}

/// The request to list all certificate authorities.
#[derive(Debug)]
pub struct AuthorityList;

impl Request for AuthorityList {
    type View = Vec<CertificateAuthority>;
    const NAME: &'static str = "user ca list";

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Vec<CertificateAuthority>>, CommandError> {
        Ok(control.registry().authorities.clone().into())
    }
}

/// The request to trust a certificate authority no longer.
#[derive(Debug)]
pub struct AuthorityRemove {
    /// The name of the authority.
    pub name: UserName,
}

impl Request for AuthorityRemove {
    type View = AuthorityChanged;
    const NAME: &'static str = "user ca remove";
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    fn detail(&self) -> Option<String> {
        Some(self.name.to_string())
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<AuthorityChanged>, CommandError> {
        let name = self.name;
        let remove = |registry: &mut Registry| {
            let known = authority_mut(registry, &name)?.fingerprint.clone();
            registry.authorities.retain(|authority| authority.name != name);
            Ok(known)
        };
        let fingerprint = control.change(remove).await?;
        Ok(AuthorityChanged { name, fingerprint }.into())
    }
}

/// The certificates that a request revokes.
#[derive(Debug, Clone)]
pub enum Revoked {
    /// The certificate with this serial number, which is not 0.
    Serial(u64),
    /// All certificates with this key ID.
    Id(String),
}

/// The request to revoke certificates of an authority, or to take a revocation back.
#[derive(Debug)]
pub struct AuthorityRevoke {
    /// The name of the authority.
    pub name: UserName,
    /// The certificates.
    pub revoked: Revoked,
    /// True to accept the certificates again.
    pub undo: bool,
}

/// The revoked certificates of an authority.
#[derive(Debug, Serialize)]
pub struct AuthorityRevoked {
    /// The name of the authority.
    pub name: UserName,
    /// The number of revoked serial numbers.
    pub serials: usize,
    /// The number of revoked key IDs.
    pub ids: usize,
}

impl Request for AuthorityRevoke {
    type View = AuthorityRevoked;
    const NAME: &'static str = "user ca revoke";
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    fn detail(&self) -> Option<String> {
        let what = match &self.revoked {
            Revoked::Serial(serial) => format!("serial {serial}"),
            Revoked::Id(id) => format!("key ID {id:?}"),
        };
        Some(format!("{} {what}{}", self.name, if self.undo { ", undone" } else { "" }))
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<AuthorityRevoked>, CommandError> {
        let AuthorityRevoke { name, revoked, undo } = self;
        let revoke = |registry: &mut Registry| {
            let authority = authority_mut(registry, &name)?;
            let changed = match (revoked, undo) {
                (Revoked::Serial(serial), false) => authority.revoked_serials.insert(serial),
                (Revoked::Serial(serial), true) => authority.revoked_serials.remove(&serial),
                (Revoked::Id(id), false) => authority.revoked_ids.insert(id),
                (Revoked::Id(id), true) => authority.revoked_ids.remove(&id),
            };
            if undo && !changed {
                return Err(not_found(format!("the authority {name} has not revoked this certificate"))
                    .hint("list the revoked certificates with `larder user ca list --json`"));
            }
            let (serials, ids) = (authority.revoked_serials.len(), authority.revoked_ids.len());
            if serials.saturating_add(ids) > MAX_REVOKED {
                return Err(refused(format!(
                    "cannot revoke another certificate of {name}: {MAX_REVOKED} are revoked (the limit)"
                ))
                .hint("replace the authority: add one with another key, then remove this one"));
            }
            Ok((serials, ids))
        };
        let (serials, ids) = control.change(revoke).await?;
        Ok(AuthorityRevoked { name, serials, ids }.into())
    }
}

fn authority_mut<'a>(registry: &'a mut Registry, name: &UserName) -> Result<&'a mut CertificateAuthority, CommandError> {
    let error = not_found(format!("there is no certificate authority {name}"));
    let error = match similar(name.as_str(), registry.authorities.iter().map(|authority| authority.name.as_str())) {
        Some(other) => error.hint(format!("did you mean {other}?")),
        None => error.hint("list all authorities with `larder user ca list`"),
    };
    registry.authorities.iter_mut().find(|authority| authority.name == *name).ok_or(error)
}
