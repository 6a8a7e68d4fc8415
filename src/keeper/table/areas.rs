//! Creates, resets and discards the directories of projects and environments on request, and deletes them in the background.

use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use larder_sandbox::{DiscardedDirectory, quota_usage};

use super::{
    super::{assignment::area_path, directories::relative, users::SystemUser},
    ProcessTable,
    entry::ProcessEntry,
};
use crate::{
    host::launch::{Registration, wire::LaunchReply},
    model::{Area, EnvId, Launch, ProjectId, ReleaseId, Role, Slot, TreeName},
};

fn text(error: io::Error) -> String {
    error.to_string()
}

impl ProcessTable {
    /// Returns the bytes that the kernel counts for a project with a quota.
    pub fn quota_usage(&self, project: ProjectId) -> Result<LaunchReply, String> {
        let target = relative().project(self.registry.project(project)?);
        quota_usage(&self.directories.root, &target).map(LaunchReply::QuotaUsage).map_err(text)
    }

    /// Creates the directories of a project or an environment. Returns [`LaunchReply::Busy`] while a file system is being prepared.
    pub fn register(&mut self, registration: &Registration) -> Result<LaunchReply, String> {
        if let Some((env, _)) = &registration.environment {
            let last = self.users.last_environment();
            if *env > last {
                return Err(format!("no user numbers are left for environment number {} (expected at most {})", env.0, last.0));
            }
            if *env > self.registry.last_environment() {
                self.users.check_unshared(*env).map_err(|error| error.with_hint())?;
            }
        }
        self.registry.add(registration)?;
        let Some(discarded) = self.directories.limit(registration).map_err(text)? else {
            return Ok(LaunchReply::Busy { why: "a file system is being prepared".into(), left: None });
        };
        self.discarded.extend(discarded);
        self.directories.register(registration).map_err(text).map(|()| LaunchReply::Done)
    }

    /// Discards the directory of an area, except of a directory workspace. Creates a missing directory, unless the area is a tree. If the area
    /// is a slot, kills the tasks in the slot. Returns [`LaunchReply::Busy`] while processes use the area; the caller repeats the request.
    pub fn reset_area(
        &mut self,
        env: EnvId,
        area: Area,
        release: Option<ReleaseId>,
        slot: Option<Slot>,
    ) -> Result<LaunchReply, String> {
        self.requested = Instant::now();
        let (path, user) = area_path(&self.registry, env, area, release, slot)?;
        let uses = |launch: &Launch| match (area, launch.role) {
            (Area::Build, Role::Build | Role::Bundle) | (Area::Source, Role::Build | Role::Bundle | Role::Source) => true,
            (Area::Cache, Role::Build) => true,
            (Area::Slot, role) if role.uses_slot() => launch.slot == slot,
            (Area::Tree, Role::Unpack | Role::Pack) => launch.release == release,
            (Area::Tree, role) if role.uses_slot() => launch.release == release,
            (_, Role::Sweep(swept)) => swept == area,
            _ => false,
        };
        if area == Area::Slot {
            self.end_tasks(env, slot);
        }
        // A killed process may use the renamed directory until it exits. In a slot, such a process counts as a user: its overlay stays
        // mounted until it has exited, and the next process in the slot would get this overlay with the discarded files.
        let going = |entry: &ProcessEntry| !entry.supervised() && entry.schedule.is_stopping() && area != Area::Slot;
        let is_user = |entry: &&ProcessEntry| {
            entry.cleanup.is_none() && !going(entry) && entry.launch.environment == Some(env) && uses(&entry.launch)
        };
        let mut users: Vec<_> = self.entries.iter().filter(|(_, entry)| is_user(entry)).collect();
        // The reason names a process that is not being stopped, if there is one, because this process keeps the area in use longer.
        users.sort_by_key(|(_, entry)| entry.schedule.kill_at());
        if let Some((id, entry)) = users.first() {
            let why = format!("process {} ({}) still uses the directory", id.0, entry.launch.role.as_str());
            let last = users.iter().map(|(_, entry)| entry.schedule.kill_at()).collect::<Option<Vec<_>>>();
            let left = last.and_then(|ends| ends.into_iter().max()).map(|end| end.saturating_duration_since(Instant::now()));
            let left = left.map(|left| u32::try_from(left.as_millis()).unwrap_or(u32::MAX));
            return Ok(LaunchReply::Busy { why, left });
        }
        if area != Area::Slot || !slot.is_some_and(Slot::is_directory) {
            self.discarded.extend(self.directories.discard(&path, env).map_err(text)?);
        }
        // A process that is about to exit may still use an overlay of the discarded directory. Retired overlays get no new processes.
        self.overlays.retire(&path);
        match area {
            Area::Build | Area::Slot => self.directories.make_scratch(&path, user).map_err(text)?,
            Area::Cache | Area::Source => self.directories.make(&path, user, 0o755).map_err(text)?,
            Area::Tree | Area::Archive => {}
        }
        Ok(LaunchReply::Done)
    }

    /// Kills the tasks in a slot. A task such as a `larder run` session could otherwise use the slot for an unlimited time.
    fn end_tasks(&mut self, env: EnvId, slot: Option<Slot>) {
        let tasks = self.entries.values_mut().filter(|entry| {
            let launch = &entry.launch;
            entry.cleanup.is_none() && launch.role.is_command() && launch.environment == Some(env) && launch.slot == slot
        });
        tasks.filter(|entry| !entry.schedule.is_stopping()).for_each(ProcessEntry::kill);
    }

    /// Moves an installed tree, or the tree of the slot `in-place`. The server has stopped all processes that use the tree.
    pub fn move_tree(&mut self, env: EnvId, from: TreeName, to: TreeName) -> Result<(), String> {
        let path = |name: TreeName| area_path(&self.registry, env, name.area, name.id, Some(Slot::InPlace));
        self.directories.root.relocate(&path(from)?.0, &path(to)?.0).map_err(text)
    }

    /// Kills all processes of an environment or a project and removes its directories.
    /// A missing project or environment counts as removed, so that a server that crashed before it recorded the removal can repeat the
    /// request.
    pub fn unregister(&mut self, project: ProjectId, environment: Option<EnvId>) -> Result<(), String> {
        let Ok(name) = self.registry.project(project).cloned() else { return Ok(()) };
        let envs = match environment {
            Some(env) => match self.registry.environment(env) {
                Ok((of, ..)) if of != project => return Err("the environment belongs to another project".into()),
                Ok(_) => vec![env],
                Err(_) => return Ok(()),
            },
            None => self.registry.environments(project),
        };
        let ids: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.cleanup.is_none() && entry.launch.project == project)
            .filter(|(_, entry)| environment.is_none() || entry.launch.environment == environment)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.stop(id, Duration::ZERO)?;
        }
        self.tick();
        if environment.is_none() {
            self.directories.remove_limit(project, &name).map_err(text)?;
        }
        for env in envs {
            let (_, project, name) = self.registry.environment(env)?;
            let path = relative().environment(project, name).path().to_owned();
            self.discarded.extend(self.directories.discard(&path, env).map_err(text)?);
        }
        if environment.is_none() {
            self.discarded.extend(self.directories.discard(&relative().project(&name), EnvId(0)).map_err(text)?);
        }
        self.registry.remove(project, environment)
    }

    /// Removes a discarded directory if the directory is empty. Otherwise starts a worker as the next of `cleanup_users`; the worker deletes
    /// the files of this user in the directory.
    pub(super) fn cleanup(&mut self, discarded: DiscardedDirectory, cleanup_users: VecDeque<SystemUser>) {
        if self.directories.remove_discarded(&discarded).is_ok() {
            return;
        }
        let path = discarded.path.clone();
        let Ok(null) = self.null.try_clone() else { return };
        let Some(entry) = ProcessEntry::cleanup(discarded, cleanup_users, null) else {
            return tracing::warn!(path = %path.display(), "cannot delete a discarded directory; the next start of larder tries again");
        };
        if let Err(why) = self.begin(entry) {
            tracing::warn!(path = %path.display(), why, "cannot delete a discarded directory");
        }
    }
}
