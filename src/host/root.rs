//! The paths of all files and directories below larder's root.

use std::path::{Path, PathBuf};

use crate::model::{DeploymentId, EnvironmentName, ProjectName, ReleaseId, Slot};

/// The root directory of a larder server, which the option `--root` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// Creates the root for the directory `path`. The path must be absolute, because processes with different working directories use the
    /// path.
    pub fn new(path: impl Into<PathBuf>) -> Root {
        Root(path.into())
    }

    /// Returns the root directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the path of the server file, which the operator writes.
    pub fn server_file(&self) -> PathBuf {
        self.0.join("larder.yml")
    }

    /// Returns the path of the control socket, to which the command line connects.
    pub fn control_socket(&self) -> PathBuf {
        self.state().join("control.sock")
    }

    /// Returns the path of the socket to which git hooks connect. Processes of the git user can connect to this socket.
    pub fn hook_socket(&self) -> PathBuf {
        self.0.join("hooks").join("hook.sock")
    }

    /// Returns the directory of the server's own state, such as the host key and the registry of users and projects.
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// Returns the directory of the audit log.
    pub fn audit(&self) -> PathBuf {
        self.state().join("audit")
    }

    /// Returns the path of the registry of users, keys, projects, environments and trusted signers.
    pub fn registry_file(&self) -> PathBuf {
        self.state().join("registry.json")
    }

    /// Returns the path of the file with the last build number of each project.
    pub fn build_numbers(&self) -> PathBuf {
        self.state().join("builds.json")
    }

    /// Returns the path of the record of daily disk usage.
    pub fn disk_history(&self) -> PathBuf {
        self.state().join("disk.json")
    }

    /// Returns the path of the file that holds disk space for larder.
    pub fn ballast(&self) -> PathBuf {
        self.state().join("ballast")
    }

    /// Returns the directory of the messages of notifications.
    pub fn messages(&self) -> PathBuf {
        self.state().join("notify")
    }

    /// Returns the path of the SSH host key, with which clients authenticate this server.
    pub fn host_key(&self) -> PathBuf {
        self.state().join("ssh_host_ed25519_key")
    }

    /// Returns the path of the key with which this server signs its deliverables.
    pub fn signing_key(&self) -> PathBuf {
        self.state().join("signing_ed25519_key")
    }

    /// Returns the path of the key with which this server encrypts configuration snapshots.
    pub fn configuration_key(&self) -> PathBuf {
        self.state().join("config_age_key")
    }

    /// Returns the path of the SSH key with which this server pulls from other servers.
    pub fn pull_key(&self) -> PathBuf {
        self.state().join("pull_ed25519_key")
    }

    /// Returns the directory of the deploy keys of projects, with which builds read private repositories.
    pub fn deploy_keys(&self) -> PathBuf {
        self.state().join("deploy_keys")
    }

    /// Returns the directory of the keeper's own state, which only the keeper's user can read.
    pub fn keeper(&self) -> PathBuf {
        self.0.join("keeper")
    }

    /// Returns the directory to which this version of larder unpacks the `hooks/` and `buildpacks/` from its binary.
    pub fn lib(&self) -> PathBuf {
        self.0.join("lib").join(env!("CARGO_PKG_VERSION"))
    }

    /// Returns the directory of the built-in buildpacks of this version.
    pub fn buildpacks(&self) -> PathBuf {
        self.lib().join("buildpacks")
    }

    /// Returns the directory of the operator's own files. A buildpack in `buildpacks/<name>` replaces the built-in buildpack with the same
    /// name.
    pub fn etc(&self) -> PathBuf {
        self.0.join("etc")
    }

    /// Returns the directory of a project.
    pub fn project(&self, project: &ProjectName) -> PathBuf {
        self.0.join("projects").join(project.as_str())
    }

    /// Returns the repository of a project, to which clients push.
    pub fn repository(&self, project: &ProjectName) -> PathBuf {
        self.project(project).join("git").join("project.git")
    }

    /// Returns the paths of an environment.
    pub fn environment(&self, project: &ProjectName, environment: &EnvironmentName) -> EnvironmentPaths {
        EnvironmentPaths(self.project(project).join(environment.as_str()))
    }
}

/// The paths of one environment. Their owners and modes are in `layouts/standard.yaml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentPaths(PathBuf);

impl EnvironmentPaths {
    /// Returns the paths of the environment whose directory is `path`.
    pub fn at(path: &Path) -> EnvironmentPaths {
        EnvironmentPaths(path.to_owned())
    }

    /// Returns the directory of the environment.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the directory of the exported source of the last exported commit.
    pub fn source(&self) -> PathBuf {
        self.0.join("project")
    }

    /// Returns the scratch layer of a build: `upper/` and `work/` of the overlay over [`Self::source`].
    pub fn build(&self) -> PathBuf {
        self.0.join("build")
    }

    /// Returns the directory of the buildpacks' caches.
    pub fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// Returns the directory of the release archives and their manifests.
    pub fn releases(&self) -> PathBuf {
        self.0.join("releases")
    }

    /// Returns the path of the archive of a release.
    pub fn archive(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.tar.zst"))
    }

    /// Returns the path of the manifest of a release.
    pub fn manifest(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.manifest.json"))
    }

    /// Returns the path of the index of a release, which is a copy of the manifest in a format that is read quickly. The file may be
    /// missing.
    pub fn index(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.index"))
    }

    /// Returns the path of the health record that was received with a release from another server or a sibling environment.
    pub fn health(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.health.json"))
    }

    /// Returns the path of the health record that this environment last reported for a release to another server.
    pub fn ran(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.ran.json"))
    }

    /// Returns the directory of deliverables that are being received, one directory for each release.
    pub fn incoming(&self) -> PathBuf {
        self.releases().join(".incoming")
    }

    /// Returns the path of the file with the newest accepted build of each signer.
    pub fn accepted(&self) -> PathBuf {
        self.0.join("accepted.json")
    }

    /// Returns the path of the delta from an installed release to `release`. The file exists while the archive of `release` is not rebuilt
    /// yet.
    pub fn delta(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.delta"))
    }

    /// Returns the directory of deltas for other servers. The files are called `<from>..<to>` and can be recreated.
    pub fn deltas(&self) -> PathBuf {
        self.releases().join(".delta")
    }

    /// Returns the directory of the installed trees.
    pub fn deploy(&self) -> PathBuf {
        self.0.join("deploy")
    }

    /// Returns the path of the installed tree of a release.
    pub fn tree(&self, release: ReleaseId) -> PathBuf {
        self.deploy().join(release.to_string())
    }

    /// Returns the path of the symlink to the live release's tree.
    pub fn current(&self) -> PathBuf {
        self.deploy().join("current")
    }

    /// Returns the path of the symlink to the live slot.
    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Returns the directory of a slot: `upper/` and `work/` of the overlay over the release's tree. In the slot `in-place`, `upper/` is the
    /// whole tree.
    pub fn slot(&self, slot: Slot) -> PathBuf {
        self.0.join("slots").join(slot.as_str())
    }

    /// Returns the directory whose files a slot shows besides its own: the tree of the release. The slot `in-place` shows its own directory only.
    pub fn lower(&self, release: ReleaseId, slot: Slot) -> PathBuf {
        if slot.is_directory() { self.slot(slot).join("upper") } else { self.tree(release) }
    }

    /// Returns the directory of the persistent data, which is `/data` in the sandbox.
    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// Returns the directory of saved patches, restore points and restored copies.
    pub fn archives(&self) -> PathBuf {
        self.0.join("archives")
    }

    /// Returns the store of the restore points. Processes of the application do not see the store.
    pub fn points(&self) -> PathBuf {
        self.archives().join("points")
    }

    /// Returns the directory of replaced and failed workspaces of the slot `in-place`.
    pub fn archived_runs(&self) -> PathBuf {
        self.archives().join("run")
    }

    /// Returns the directory of the workspace of an earlier deployment.
    pub fn archived_run(&self, deployment: DeploymentId) -> PathBuf {
        self.archived_runs().join(deployment.to_string())
    }

    /// Returns the directory of copies that were restored beside the live data.
    pub fn restored(&self) -> PathBuf {
        self.archives().join("restored")
    }

    /// Returns the directory in which the data of a restore point is completed before it is exchanged with [`Self::data`]. Both directories
    /// have the same parent, so the server can exchange them without a permission for their content.
    pub fn restoring(&self) -> PathBuf {
        self.0.join("restoring")
    }

    /// Returns the directory with the data of a restore point on which a command of `larder run --restore-point` works.
    pub fn data_copy(&self) -> PathBuf {
        self.0.join("data-copy")
    }

    /// Returns the path of the file that exists while [`Self::data_copy`] may have files.
    pub fn data_copy_note(&self) -> PathBuf {
        self.0.join("data-copy.note")
    }

    /// Returns the path of the record of the copies of databases on their servers.
    pub fn copies(&self) -> PathBuf {
        self.0.join("copies.json")
    }

    /// Returns the directory that the project's scripts `.larder/backup` and `.larder/restore` write and read.
    pub fn custom(&self) -> PathBuf {
        self.0.join("custom")
    }

    /// Returns the directory of the caches of builds in a checkout.
    pub fn editing(&self) -> PathBuf {
        self.0.join("editing")
    }

    /// Returns the path of the record of the last restore of the live data.
    pub fn restore_record(&self) -> PathBuf {
        self.0.join("restore.json")
    }

    /// Returns the path of the record of the durations of restore points and holds.
    pub fn durations(&self) -> PathBuf {
        self.0.join("durations.json")
    }

    /// Returns the path of the record of the scheduled restore points.
    pub fn backup_record(&self) -> PathBuf {
        self.0.join("backups.json")
    }

    /// Returns the directory of the records of all deployments.
    pub fn deployments(&self) -> PathBuf {
        self.0.join("deployments")
    }

    /// Returns the directory of the record of one deployment: `journal.jsonl` and `log`.
    pub fn deployment(&self, deployment: DeploymentId) -> PathBuf {
        self.deployments().join(deployment.to_string())
    }

    /// Returns the directory of the logs of processes.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Returns the path of the record of unexpected exits of processes.
    pub fn restarts(&self) -> PathBuf {
        self.0.join("restarts.jsonl")
    }

    /// Returns the path of the file with the values that larder generated for `generator: "secret"` in `app.json`, and with the URL of the
    /// database that `larder db create` created.
    pub fn secrets(&self) -> PathBuf {
        self.0.join("generated.json")
    }

    /// Returns the directory of the configuration snapshots.
    pub fn configuration(&self) -> PathBuf {
        self.0.join("config")
    }

    /// Returns the path of the file with the releases that are never pruned.
    pub fn pins(&self) -> PathBuf {
        self.0.join("pins.json")
    }

    /// Returns the path of the record of the use of both slots.
    pub fn slots_record(&self) -> PathBuf {
        self.0.join("slots.json")
    }

    /// Returns the path of the record of the last sync of a slot's directory.
    pub fn sync_record(&self, slot: Slot) -> PathBuf {
        self.0.join(format!("{}.sync", slot.as_str()))
    }

    /// Returns the path of the record of the start and the success of the postdeploy script.
    pub fn postdeploy(&self) -> PathBuf {
        self.0.join("postdeploy.json")
    }

    /// Returns the path of the list of changes that deployments themselves made in the slots of the last two releases.
    pub fn expected_drift(&self) -> PathBuf {
        self.0.join("expected-drift.json")
    }

    /// Returns the path of a file for people and tools, with project, environment, active slot and live release.
    pub fn metadata(&self) -> PathBuf {
        self.0.join("metadata.yml")
    }
}
