//! The projects of a server, their environments, and the remotes of environments.

use serde::{Deserialize, Serialize};

use super::{
    BranchName, CommitId, EnvId, EnvironmentName, Mode, ProjectId, ProjectName, PublicKey, ReleaseId, ReleaseNumber, RemoteName,
    Slot,
};

/// The way in which a new release replaces the old release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The new release boots beside the old release, and receives the requests after the new release has become healthy.
    // Older journals contain the Rust names of the variants.
    #[serde(alias = "BlueGreen")]
    BlueGreen,
    /// The old release stops before the new release boots.
    #[serde(alias = "InPlace")]
    InPlace,
}

impl Strategy {
    /// Returns the word of the strategy in recipes and commands.
    pub fn as_str(self) -> &'static str {
        match self {
            Strategy::BlueGreen => "blue-green",
            Strategy::InPlace => "in-place",
        }
    }
}

/// One application on this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// The project's number, which is never reused.
    pub id: ProjectId,
    pub name: ProjectName,
    /// The environments on this server, in the order of their creation. [`Environment::default`] marks the default environment.
    pub environments: Vec<Environment>,
    /// The maximum disk space of the project in bytes; absent if the limit of the server file applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space_limit: Option<u64>,
    /// The means by which the kernel limits the project's space; absent if only larder checks the limit before a deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageKind>,
}

/// The means by which the kernel limits the disk space of a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// A file system of the project's own, which is in a file of fixed size.
    Ext4,
    Xfs,
    /// A project quota on the file system of larder's root.
    Quota,
}

impl StorageKind {
    /// Returns the name of the file system, or `quota`.
    pub fn as_str(self) -> &'static str {
        match self {
            StorageKind::Ext4 => "ext4",
            StorageKind::Xfs => "xfs",
            StorageKind::Quota => "quota",
        }
    }

    /// Returns true for a file system of the project's own.
    pub fn is_file_system(self) -> bool {
        self != StorageKind::Quota
    }
}

/// A place on this server where a project runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    pub id: EnvId,
    pub project_id: ProjectId,
    /// The name of the project.
    pub project: ProjectName,
    pub name: EnvironmentName,
    pub mode: Mode,
    /// The branch whose pushes are deployed.
    pub branch: BranchName,
    pub strategy: Strategy,
    /// The host names of the environment in addition to its host name in the server's domain.
    #[serde(default)]
    pub domains: Vec<String>,
    /// True for the project's default environment, whose host name does not contain the environment's name: `<project>.<domain>`.
    #[serde(default)]
    pub default: bool,
    /// The number of instances of each process type that was scaled with `larder ps --scale`.
    #[serde(default)]
    pub scale: std::collections::BTreeMap<String, u32>,
    /// The remotes for pulling and publishing deliverables.
    #[serde(default)]
    pub remotes: Vec<Remote>,
}

#[cfg(test)]
impl Environment {
    /// Creates a cooking environment of the project `shop` that deploys `branch`, for tests.
    pub(crate) fn of_shop(name: &str, branch: &str) -> Environment {
        Environment {
            id: EnvId(1),
            project_id: ProjectId(1),
            project: "shop".parse().unwrap(),
            name: name.parse().unwrap(),
            mode: Mode::Cooking,
            branch: branch.parse().unwrap(),
            strategy: Strategy::BlueGreen,
            domains: Vec::new(),
            default: true,
            scale: Default::default(),
            remotes: Vec::new(),
        }
    }
}

impl Environment {
    /// Returns the host names of the environment. The first host name is in `domain`, the server's domain.
    pub fn hosts(&self, domain: &str) -> Vec<String> {
        let own =
            if self.default { format!("{}.{domain}", self.project) } else { format!("{}--{}.{domain}", self.name, self.project) };
        std::iter::once(own).chain(self.domains.iter().cloned()).collect()
    }

    /// Returns the name for commands: `project` for the default environment, or else `project/environment`.
    pub fn target(&self) -> String {
        if self.default { self.project.to_string() } else { self.title() }
    }

    /// Returns `project/environment`.
    pub fn title(&self) -> String {
        format!("{}/{}", self.project, self.name)
    }
}

/// A location of deliverables that `larder remote add` has recorded: another larder server, a directory, a web server or a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    pub name: RemoteName,
    /// The address: `ssh://USER@HOST:PORT/PROJECT[/ENVIRONMENT]`, `file:///DIR`, `https://...`, `http://...` or `s3://BUCKET/PREFIX`. The
    /// address is stored unchanged, and is checked before each connection.
    pub url: String,
    /// The pinned host key of an ssh address, in the form of a line of a `known_hosts` file without the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// The public keys of the signers whose deliverables are accepted from the remote. If the list is empty, no deliverable is pulled.
    #[serde(default)]
    pub trust: Vec<PublicKey>,
    /// True if releases that this environment builds are published to the remote.
    #[serde(default)]
    pub publish: bool,
}

/// The live release of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    pub release: ReleaseId,
    pub number: ReleaseNumber,
    pub commit: CommitId,
    pub slot: Slot,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_of_default_environment_is_the_project_alone() {
        let production = Environment::of_shop("production", "main");
        assert_eq!(production.target(), "shop");
        assert_eq!(Environment { default: false, ..Environment::of_shop("staging", "next") }.target(), "shop/staging");
    }
}
