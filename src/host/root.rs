//! Every path below the server's directory, in one place.

use std::path::{Path, PathBuf};

use crate::model::{DeploymentId, EnvironmentName, ProjectName, ReleaseId, Slot};

/// The server's directory, `--root`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// The directory `path`, which must be absolute: processes with other working directories use it.
    pub fn new(path: impl Into<PathBuf>) -> Root {
        Root(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The server file, written by the operator.
    pub fn server_file(&self) -> PathBuf {
        self.0.join("larder.yml")
    }

    /// The socket of the one desk.
    pub fn control_socket(&self) -> PathBuf {
        self.state().join("control.sock")
    }

    /// The socket that git hooks talk to; the git user may reach it.
    pub fn hook_socket(&self) -> PathBuf {
        self.0.join("hooks").join("hook.sock")
    }

    /// The server's own state: host key, users, keys, list of projects.
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// Users, keys, projects and environments.
    pub fn registry_file(&self) -> PathBuf {
        self.state().join("registry.json")
    }

    /// The last build number of each project.
    pub fn build_numbers(&self) -> PathBuf {
        self.state().join("builds.json")
    }

    /// The key by which clients know this server.
    pub fn host_key(&self) -> PathBuf {
        self.state().join("ssh_host_ed25519_key")
    }

    /// The key that this server signs its deliverables with.
    pub fn signing_key(&self) -> PathBuf {
        self.state().join("signing_ed25519_key")
    }

    /// The key by which other servers know this one when it pulls from them.
    pub fn pull_key(&self) -> PathBuf {
        self.state().join("pull_ed25519_key")
    }

    /// The keeper's own state; root alone.
    pub fn keeper(&self) -> PathBuf {
        self.0.join("keeper")
    }

    /// What the binary brings along, unpacked: `hooks/` and `buildpacks/` of this version.
    pub fn lib(&self) -> PathBuf {
        self.0.join("lib").join(env!("CARGO_PKG_VERSION"))
    }

    /// What the operator overrides: `buildpacks/<name>` and `layouts/<name>.yaml`.
    pub fn etc(&self) -> PathBuf {
        self.0.join("etc")
    }

    /// The directory of a project.
    pub fn project(&self, project: &ProjectName) -> PathBuf {
        self.0.join("projects").join(project.as_str())
    }

    /// The repository that is pushed to.
    pub fn repository(&self, project: &ProjectName) -> PathBuf {
        self.project(project).join("git").join("project.git")
    }

    /// The directory of an environment.
    pub fn environment(&self, project: &ProjectName, environment: &EnvironmentName) -> EnvironmentPaths {
        EnvironmentPaths(self.project(project).join(environment.as_str()))
    }
}

/// Every path of one environment; ARCHITECTURE.md, "On disk", says who owns which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentPaths(PathBuf);

impl EnvironmentPaths {
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The exported source of the last deployed commit.
    pub fn source(&self) -> PathBuf {
        self.0.join("project")
    }

    /// The scratch layer of a build: `upper/` and `work/` of the overlay over [`Self::source`].
    pub fn build(&self) -> PathBuf {
        self.0.join("build")
    }

    /// What buildpacks keep between builds.
    pub fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// The release archives and their manifests.
    pub fn releases(&self) -> PathBuf {
        self.0.join("releases")
    }

    /// The archive of a release.
    pub fn archive(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.tar.zst"))
    }

    /// The manifest of a release.
    pub fn manifest(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.manifest.json"))
    }

    /// What is in the manifest of a release, once more, to be read quickly; there may be none.
    pub fn index(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.index"))
    }

    /// What is known of how a release ran elsewhere.
    pub fn health(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.health.json"))
    }

    /// How a release ran here, as it was said last to somebody who asked.
    pub fn ran(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.ran.json"))
    }

    /// Deliverables on their way here, one directory for each release.
    pub fn incoming(&self) -> PathBuf {
        self.releases().join(".incoming")
    }

    /// The newest build that was accepted from each server elsewhere.
    pub fn accepted(&self) -> PathBuf {
        self.0.join("accepted.json")
    }

    /// What a release is made of that has no archive here yet: the difference to an installed one.
    pub fn delta(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.delta"))
    }

    /// Deltas that were made for other servers, `<from>..<to>`. They can be made again.
    pub fn deltas(&self) -> PathBuf {
        self.releases().join(".delta")
    }

    /// The installed trees.
    pub fn deploy(&self) -> PathBuf {
        self.0.join("deploy")
    }

    /// One installed tree.
    pub fn tree(&self, release: ReleaseId) -> PathBuf {
        self.deploy().join(release.to_string())
    }

    /// The link to the live release's tree.
    pub fn current(&self) -> PathBuf {
        self.deploy().join("current")
    }

    /// The link to the active slot.
    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// A slot: `upper/` and `work/` of the overlay over the release's tree.
    pub fn slot(&self, slot: Slot) -> PathBuf {
        self.0.join("slots").join(slot.as_str())
    }

    /// Everything that persists; `/data` inside the sandbox.
    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// Restore points and failed trees.
    pub fn archives(&self) -> PathBuf {
        self.0.join("archives")
    }

    /// The records of all deployments.
    pub fn deployments(&self) -> PathBuf {
        self.0.join("deployments")
    }

    /// The record of one deployment: `journal.jsonl` and `log`.
    pub fn deployment(&self, deployment: DeploymentId) -> PathBuf {
        self.deployments().join(deployment.to_string())
    }

    /// Process logs.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Which processes ended by themselves.
    pub fn restarts(&self) -> PathBuf {
        self.0.join("restarts.jsonl")
    }

    /// Values that larder made up because `app.json` asked for them.
    pub fn secrets(&self) -> PathBuf {
        self.0.join("generated.json")
    }

    /// The releases that are never pruned.
    pub fn pins(&self) -> PathBuf {
        self.0.join("pins.json")
    }

    /// The record of the postdeploy script.
    pub fn postdeploy(&self) -> PathBuf {
        self.0.join("postdeploy.json")
    }

    /// What the deployments of the last releases have written into their slots themselves.
    pub fn expected_drift(&self) -> PathBuf {
        self.0.join("expected-drift.json")
    }

    /// For people and other tools: project, environment, active slot, live release.
    pub fn metadata(&self) -> PathBuf {
        self.0.join("metadata.yml")
    }
}
