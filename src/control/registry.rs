//! Users, keys, projects and environments of this server; `state/registry.json`, written whole and atomically.

use std::{collections::BTreeMap, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    host::files,
    model::{Access, EnvId, Project, ProjectId, ProjectName, PublicKey, RemoteName, UserName},
};

/// A public key that may log in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// `SHA256:...`, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// The key as in an `authorized_keys` file, without options.
    pub line: String,
}

/// Somebody who may log in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name.
    pub name: UserName,
    /// Whether all rights on everything.
    pub admin: bool,
    /// The keys.
    pub keys: Vec<Key>,
    /// Rights on single projects.
    #[serde(default)]
    pub access: BTreeMap<ProjectName, Access>,
}

/// A key whose deliverables a project accepts, wherever they come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedKey {
    /// For which project.
    pub project: ProjectName,
    /// The key.
    pub key: PublicKey,
    /// What people call it.
    pub name: RemoteName,
}

/// Everything that the operator has set up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    /// The users.
    #[serde(default)]
    pub users: Vec<User>,
    /// The projects.
    #[serde(default)]
    pub projects: Vec<Project>,
    /// Whose deliverables are accepted, besides those of remotes.
    #[serde(default)]
    pub trusted: Vec<TrustedKey>,
    /// The last number that a project got.
    #[serde(default)]
    pub last_project: u32,
    /// The last number that an environment got.
    #[serde(default)]
    pub last_environment: u32,
}

/// A registry above this size is not ours.
const BYTES_MAX: u64 = 16 * 1024 * 1024;

impl Registry {
    /// Reads the registry at `path`; an empty one where there is none yet.
    pub fn load(path: &Path) -> io::Result<Registry> {
        let bytes = match files::read_limited(path, BYTES_MAX) {
            Ok(bytes) => bytes,
            // This and nothing else: one that cannot be read now must not be replaced by an empty one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Registry::default()),
            Err(error) => return Err(io::Error::other(error)),
        };
        serde_json::from_slice(&bytes).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
    }

    /// Writes it to `path`; when this returns, it survives a power failure.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        bytes.push(b'\n');
        // The next start would not read it.
        if bytes.len() as u64 > BYTES_MAX {
            return Err(io::Error::other(format!(
                "{} would have {} bytes, and {BYTES_MAX} are allowed; remove users, keys or projects that nobody needs",
                path.display(),
                bytes.len()
            )));
        }
        files::write_atomic(path, &bytes, 0o600).map_err(io::Error::other)
    }

    /// A user.
    pub fn user(&self, name: &UserName) -> Option<&User> {
        self.users.iter().find(|user| &user.name == name)
    }

    /// A user, to change.
    pub fn user_mut(&mut self, name: &UserName) -> Option<&mut User> {
        self.users.iter_mut().find(|user| &user.name == name)
    }

    /// The user of a key.
    pub fn user_of_key(&self, fingerprint: &str) -> Option<UserName> {
        let holds = |user: &&User| user.keys.iter().any(|key| key.fingerprint == fingerprint);
        self.users.iter().find(holds).map(|user| user.name.clone())
    }

    /// A project.
    pub fn project(&self, name: &ProjectName) -> Option<&Project> {
        self.projects.iter().find(|project| &project.name == name)
    }

    /// A number that no project ever had.
    pub fn next_project(&mut self) -> ProjectId {
        self.last_project = self.last_project.saturating_add(1);
        ProjectId(self.last_project)
    }

    /// A number that no environment ever had.
    pub fn next_environment(&mut self) -> EnvId {
        self.last_environment = self.last_environment.saturating_add(1);
        EnvId(self.last_environment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_survives_and_numbers_are_not_used_again() {
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
    fn what_cannot_be_looked_at_is_not_empty() {
        let directory = tempfile::tempdir().unwrap();
        let loop_ = directory.path().join("loop");
        std::os::unix::fs::symlink(&loop_, &loop_).unwrap();
        assert!(Registry::load(&loop_.join("registry.json")).is_err());
        std::fs::write(directory.path().join("file"), "").unwrap();
        assert!(Registry::load(&directory.path().join("file/registry.json")).is_err());
    }

    #[test]
    fn nothing_is_written_that_would_not_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registry.json");
        let key = Key { fingerprint: String::from("SHA256:x"), line: "x".repeat(BYTES_MAX as usize) };
        let user = User { name: "alice".parse().unwrap(), admin: true, keys: vec![key], access: BTreeMap::new() };
        let large = Registry { users: vec![user], ..Registry::default() };
        assert!(large.save(&path).unwrap_err().to_string().contains("16777216 are allowed"));
        assert!(!path.exists());
    }
}
