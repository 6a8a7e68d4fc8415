//! The registry: users, keys, projects and environments of this server, stored as a whole in `state/registry.json`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    login::{Key, KeyLimits},
    protect::Protection,
};
use crate::{
    host::files,
    model::{Access, EnvId, Environment, Mode, Project, ProjectId, ProjectName, PublicKey, RemoteName, Target, UserName},
};

/// A person or machine that may log in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name, unique on this server.
    pub name: UserName,
    /// True if the user has every right on the server and on every project.
    pub admin: bool,
    /// The SSH keys of the user.
    pub keys: Vec<Key>,
    /// Rights on single projects and environments. The right on an environment counts instead of the right on its project.
    #[serde(default)]
    pub access: BTreeMap<Target, Access>,
    /// The right on the pillar of projects and environments: true if the user has the right, false if the right was taken away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pillar: BTreeMap<Target, bool>,
}

/// Users who have rights together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The name, unique among the groups of this server.
    pub name: UserName,
    /// The users, sorted.
    pub members: Vec<UserName>,
    /// The rights of each member that has no right of its own on the object.
    #[serde(default)]
    pub access: BTreeMap<Target, Access>,
    /// The right of each member on the pillar, if the member has no right of its own there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pillar: BTreeMap<Target, bool>,
}

/// A key whose owner signs certificates with which users may log in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateAuthority {
    /// The name, unique among the authorities of this server.
    pub name: UserName,
    /// `SHA256:...`, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// The public key of the authority, without options.
    pub line: String,
    /// The only user that the authority may certify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserName>,
    /// The group whose members the authority may certify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<UserName>,
    /// The limits of logins with certificates of the authority.
    #[serde(flatten)]
    pub limits: KeyLimits,
    /// The serial numbers of revoked certificates.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub revoked_serials: BTreeSet<u64>,
    /// The key IDs of revoked certificates.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub revoked_ids: BTreeSet<String>,
}

/// A signing key whose deliverables a project accepts from any source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedKey {
    /// The project that accepts the deliverables.
    pub project: ProjectName,
    /// The public half of the signing key.
    pub key: PublicKey,
    /// The name of the key, unique in the project.
    pub name: RemoteName,
}

/// Users, projects and trusted keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    /// The users, in the order in which they were added.
    #[serde(default)]
    pub users: Vec<User>,
    /// The groups of users, in the order in which they were added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// The certificate authorities that may certify users, in the order in which they were added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<CertificateAuthority>,
    /// The projects with their environments, in the order in which they were created.
    #[serde(default)]
    pub projects: Vec<Project>,
    /// The signing keys that projects trust, besides the keys of their remotes.
    #[serde(default)]
    pub trusted: Vec<TrustedKey>,
    /// The protections of projects and environments against deployments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub protections: BTreeMap<Target, Protection>,
    /// The highest project number that was ever assigned. Numbers are never reused.
    #[serde(default)]
    pub last_project: u32,
    /// The highest environment number that was ever assigned. Numbers are never reused.
    #[serde(default)]
    pub last_environment: u32,
}

impl Registry {
    /// Returns the login keys and the certificate authorities that expire after `from` and not after `until`, each as a sentence without a
    /// full stop.
    pub(super) fn expiring(&self, from: Timestamp, until: Timestamp) -> Vec<String> {
        let day = |limits: &KeyLimits| {
            let at = limits.expires.filter(|at| *at > from && *at <= until)?;
            Some(at.strftime("%Y-%m-%d %H:%M UTC").to_string())
        };
        let keys = self.users.iter().flat_map(|user| user.keys.iter().map(move |key| (user, key))).filter_map(|(user, key)| {
            let name = key.limits.name.as_ref().unwrap_or(&key.fingerprint);
            Some(format!("the login key {name} of {} expires at {}", user.name, day(&key.limits)?))
        });
        let authorities = self.authorities.iter().filter_map(|authority| {
            Some(format!("the certificate authority {} expires at {}", authority.name, day(&authority.limits)?))
        });
        keys.chain(authorities).collect()
    }
}

/// The version of the registry's format. Version 1 has no version number, no rights on environments and no right `deploy`.
const FORMAT: u32 = 2;

/// The registry as a file.
#[derive(Debug, Serialize, Deserialize)]
struct RegistryFile {
    #[serde(default = "first_format")]
    format: u32,
    #[serde(flatten)]
    registry: Registry,
}

fn first_format() -> u32 {
    1
}

/// The maximum size of a registry that is read or written, in bytes.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

impl Registry {
    /// Reads the registry at `path`. Returns an empty registry if the file does not exist.
    pub fn load(path: &Path) -> io::Result<Registry> {
        let bytes = match files::read_limited(path, MAX_BYTES) {
            Ok(bytes) => bytes,
            // Only a missing file means an empty registry. After any other error, the next save of an empty registry would delete all users
            // and projects.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Registry::default()),
            Err(error) => return Err(io::Error::other(error)),
        };
        #[derive(Deserialize)]
        struct Version {
            #[serde(default = "first_format")]
            format: u32,
        }
        let wrong = |error| io::Error::other(format!("cannot parse {}: {error}", path.display()));
        // The version is read first, because the content of a later version may not be readable.
        let Version { format } = serde_json::from_slice(&bytes).map_err(wrong)?;
        if format > FORMAT {
            let path = path.display();
            return Err(io::Error::other(format!(
                "cannot read {path}: it has the format {format} (expected at most {FORMAT}); start the version of larder that wrote it"
            )));
        }
        let RegistryFile { mut registry, .. } = serde_json::from_slice(&bytes).map_err(wrong)?;
        if format < 2 {
            registry.widen_push();
        }
        Ok(registry)
    }

    /// Replaces each right `push` by the right `deploy`. In version 1, `push` included the actions that need `deploy` now.
    fn widen_push(&mut self) {
        let rights = self.users.iter_mut().flat_map(|user| user.access.values_mut());
        rights.filter(|right| **right == Access::Push).for_each(|right| *right = Access::Deploy);
    }

    /// Replaces the file at `path` atomically. The new registry survives a power failure after this function has returned.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let file = RegistryFile { format: FORMAT, registry: self.clone() };
        let mut bytes = serde_json::to_vec_pretty(&file).map_err(io::Error::other)?;
        bytes.push(b'\n');
        // The next start could not read a larger file.
        if bytes.len() as u64 > MAX_BYTES {
            return Err(io::Error::other(format!(
                "cannot write {}: the registry has {} bytes (expected at most {MAX_BYTES}); remove unused users, keys or projects",
                path.display(),
                bytes.len()
            )));
        }
        files::write_atomic(path, &bytes, 0o600).map_err(io::Error::other)
    }

    /// Returns the user with this name.
    pub fn user(&self, name: &UserName) -> Option<&User> {
        self.users.iter().find(|user| &user.name == name)
    }

    /// Returns a mutable reference to the user with this name.
    pub fn user_mut(&mut self, name: &UserName) -> Option<&mut User> {
        self.users.iter_mut().find(|user| &user.name == name)
    }

    /// Returns a mutable reference to the group with this name.
    pub fn group_mut(&mut self, name: &UserName) -> Option<&mut Group> {
        self.groups.iter_mut().find(|group| &group.name == name)
    }

    /// Returns the user that has the key with this fingerprint, and the key.
    pub fn key(&self, fingerprint: &str) -> Option<(&User, &Key)> {
        let keys = self.users.iter().flat_map(|user| user.keys.iter().map(move |key| (user, key)));
        keys.into_iter().find(|(_, key)| key.fingerprint == fingerprint)
    }

    /// Returns the project with this name.
    pub fn project(&self, name: &ProjectName) -> Option<&Project> {
        self.projects.iter().find(|project| &project.name == name)
    }

    /// Returns the environment that a target names, or the project's default environment if the target names none.
    pub fn environment(&self, target: &Target) -> Option<&Environment> {
        let project = self.project(&target.project)?;
        match &target.environment {
            Some(name) => project.environments.iter().find(|environment| &environment.name == name),
            None => project.environments.iter().find(|environment| environment.default).or(project.environments.first()),
        }
    }

    /// Returns the environments that a target may mean if the target prefers environments of mode `mode`: the named environment; without a
    /// name, the default environment if the mode of the default environment is `mode`, or else all environments of this mode, or else the
    /// default environment.
    pub fn environments_of_mode(&self, target: &Target, mode: Mode) -> Vec<&Environment> {
        let Some(usual) = self.environment(target) else { return Vec::new() };
        if target.environment.is_some() || usual.mode == mode {
            return vec![usual];
        }
        let environments = self.project(&target.project).into_iter().flat_map(|project| &project.environments);
        let fitting: Vec<_> = environments.filter(|environment| environment.mode == mode).collect();
        if fitting.is_empty() { vec![usual] } else { fitting }
    }

    /// Returns a project number that was never used before, and records this number as used.
    pub fn next_project(&mut self) -> ProjectId {
        self.last_project = self.last_project.saturating_add(1);
        ProjectId(self.last_project)
    }

    /// Returns an environment number that was never used before, and records this number as used.
    pub fn next_environment(&mut self) -> EnvId {
        self.last_environment = self.last_environment.saturating_add(1);
        EnvId(self.last_environment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_registry_loads_and_does_not_reuse_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registry.json");
        let mut registry = Registry::load(&path).unwrap();
        assert_eq!(registry.next_project(), ProjectId(1));
        assert_eq!(registry.next_environment(), EnvId(1));
        registry.save(&path).unwrap();
        let mut again = Registry::load(&path).unwrap();
        assert_eq!(again, registry);
        assert_eq!(again.next_project(), ProjectId(2));
        std::fs::write(&path, "{").unwrap();
        assert!(Registry::load(&path).unwrap_err().to_string().contains("registry.json"));
    }

    #[test]
    fn keys_that_expire_within_a_period_are_found() {
        let moment = |hour: i64| Timestamp::from_second(hour * 3600).unwrap();
        let key = |name: &str, expires: Option<i64>| Key {
            fingerprint: format!("SHA256:{name}"),
            line: String::new(),
            limits: KeyLimits { name: Some(name.to_owned()), expires: expires.map(moment), ..KeyLimits::default() },
        };
        let keys =
            vec![key("past", Some(1)), key("now", Some(2)), key("soon", Some(3)), key("later", Some(5)), key("never", None)];
        let (access, pillar) = (BTreeMap::new(), BTreeMap::new());
        let user = User { name: "ann".parse().unwrap(), admin: false, keys, access, pillar };
        let registry = Registry { users: vec![user], ..Registry::default() };
        assert_eq!(registry.expiring(moment(2), moment(4)), ["the login key soon of ann expires at 1970-01-01 03:00 UTC"]);
    }

    #[test]
    fn registry_of_version_1_keeps_the_meaning_of_its_rights() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registry.json");
        std::fs::write(&path, include_str!("../../tests/fixtures/registries/1.json")).unwrap();
        let registry = Registry::load(&path).unwrap();
        let rights = |name: &str| {
            let user = registry.user(&name.parse().unwrap()).unwrap();
            user.access.iter().map(|(target, access)| format!("{target}:{access}")).collect::<Vec<_>>().join(" ")
        };
        // In version 1, `push` included roll back, pull, promote and restore points.
        assert_eq!(rights("bob"), "blog:view shop:deploy");
        assert_eq!(rights("ops"), "shop:operate");
        assert!(registry.user(&"alice".parse().unwrap()).unwrap().admin);
        assert_eq!(registry.projects.len(), 2);
        // A registry that this version has written keeps its rights.
        let mut registry = registry;
        registry.users[1].access.insert("shop/staging".parse().unwrap(), Access::Push);
        registry.save(&path).unwrap();
        assert_eq!(Registry::load(&path).unwrap(), registry);
        let text = std::fs::read_to_string(&path).unwrap().replace("\"format\": 2", "\"format\": 3");
        std::fs::write(&path, text).unwrap();
        let error = Registry::load(&path).unwrap_err().to_string();
        assert!(error.contains("has the format 3 (expected at most 2)"), "{error}");
    }

    #[test]
    fn unreadable_registry_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let loop_ = directory.path().join("loop");
        std::os::unix::fs::symlink(&loop_, &loop_).unwrap();
        assert!(Registry::load(&loop_.join("registry.json")).is_err());
        std::fs::write(directory.path().join("file"), "").unwrap();
        assert!(Registry::load(&directory.path().join("file/registry.json")).is_err());
    }

    #[test]
    fn oversized_registry_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registry.json");
        let key =
            Key { fingerprint: String::from("SHA256:x"), line: "x".repeat(MAX_BYTES as usize), limits: KeyLimits::default() };
        let user = User {
            name: "alice".parse().unwrap(),
            admin: true,
            keys: vec![key],
            access: BTreeMap::new(),
            pillar: BTreeMap::new(),
        };
        let large = Registry { users: vec![user], ..Registry::default() };
        assert!(large.save(&path).unwrap_err().to_string().contains("expected at most 16777216"));
        assert!(!path.exists());
    }
}
