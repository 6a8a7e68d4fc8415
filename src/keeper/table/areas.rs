//! Directories that come and go while processes use them: made, emptied, put aside, deleted in the background.

use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use super::{
    super::{
        assignment::area_path,
        place::{Aside, relative},
        users::User,
    },
    Table,
    entry::Entry,
};
use crate::{
    host::launch::Registration,
    model::{Area, EnvId, Launch, ProjectId, ReleaseId, Role, Slot},
};

fn text(error: io::Error) -> String {
    error.to_string()
}

impl Table {
    /// Makes directories for what has got a number.
    pub fn register(&mut self, registration: &Registration) -> Result<(), String> {
        if let Some((env, _)) = &registration.environment {
            let last = self.users.last_environment();
            if *env > last {
                return Err(format!("environment number {} is too large; there are users for {}", env.0, last.0));
            }
            if *env > self.registry.last_environment() {
                self.users.unshared(*env)?;
            }
        }
        self.registry.add(registration)?;
        self.places.register(registration).map_err(text)
    }

    /// Puts an area aside and makes a new one. Whoever keeps a slot up ends first, tasks that people have left open are ended here.
    pub fn reset_area(&mut self, env: EnvId, area: Area, release: Option<ReleaseId>, slot: Option<Slot>) -> Result<(), String> {
        self.ordered = Instant::now();
        let (path, user) = area_path(&self.registry, env, area, release, slot)?;
        let uses = |launch: &Launch| match (area, launch.role) {
            (Area::Build, Role::Build | Role::Bundle) | (Area::Source, Role::Build | Role::Bundle | Role::Source) => true,
            (Area::Cache, Role::Build) => true,
            (Area::Slot, Role::Run | Role::Task | Role::Drift | Role::Patch) => launch.slot == slot,
            (Area::Tree, Role::Run | Role::Task | Role::Drift | Role::Patch | Role::Unpack | Role::Pack) => {
                launch.release == release
            }
            (_, Role::Sweep(swept)) => swept == area,
            _ => false,
        };
        if area == Area::Slot {
            self.end_tasks(env, slot);
        }
        // One that was killed and is on its way out keeps what it had, under the new name; it is in nobody's way. But those of a
        // slot share an overlay: as long as it is mounted, whoever starts next would get it, with what was put aside.
        let going = |entry: &Entry| !entry.kept() && entry.stopping.is_some() && area != Area::Slot;
        let user_of = |entry: &&Entry| {
            entry.sweep.is_none() && !going(entry) && entry.launch.environment == Some(env) && uses(&entry.launch)
        };
        if let Some((id, entry)) = self.entries.iter().find(|(_, entry)| user_of(entry)) {
            return Err(format!("process {} ({}) still uses it", id.0, entry.role_name()));
        }
        self.sweeps.extend(self.places.put_aside(&path, env).map_err(text)?);
        // What is going still holds an overlay of what has just got another name.
        self.layers.retire(&path);
        match area {
            Area::Build | Area::Slot => self.places.make_scratch(&path, user).map_err(text),
            Area::Cache | Area::Source => self.places.make(&path, user, 0o755).map_err(text),
            Area::Tree => Ok(()),
        }
    }

    /// Kills the tasks in a slot. They are somebody's `larder run`, and would keep the slot from being emptied for as long as they
    /// please; whoever asks for that asks again until they are gone.
    fn end_tasks(&mut self, env: EnvId, slot: Option<Slot>) {
        let tasks = self.entries.values_mut().filter(|entry| {
            let launch = &entry.launch;
            entry.sweep.is_none() && launch.role == Role::Task && launch.environment == Some(env) && launch.slot == slot
        });
        for entry in tasks.filter(|entry| entry.stopping.is_none()) {
            if let Some(live) = &entry.live {
                live.process.kill();
                entry.stopping = Some(Instant::now() + Duration::from_secs(1));
            }
        }
    }

    /// Gives an installed tree another name.
    pub fn rename_tree(&mut self, env: EnvId, from: ReleaseId, to: ReleaseId) -> Result<(), String> {
        let (_, project, name) = self.registry.environment(env)?;
        let paths = relative().environment(project, name);
        self.places.rename(&paths.tree(from), &paths.tree(to)).map_err(text)
    }

    /// Ends and removes an environment or a project. One that is not there (any more) is as gone as it shall be: whoever could not
    /// write that down, or did not hear of it, asks again.
    pub fn unregister(&mut self, project: ProjectId, environment: Option<EnvId>) -> Result<(), String> {
        let Ok(name) = self.registry.project(project).cloned() else { return Ok(()) };
        let envs = match environment {
            Some(env) => match self.registry.environment(env) {
                Ok((of, ..)) if of != project => return Err("it belongs to another project".into()),
                Ok(_) => vec![env],
                Err(_) => return Ok(()),
            },
            None => self.registry.environments(project),
        };
        let ids: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.sweep.is_none() && entry.launch.project == project)
            .filter(|(_, entry)| environment.is_none() || entry.launch.environment == environment)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.stop(id, Duration::ZERO)?;
        }
        self.tick();
        let root = relative();
        for env in envs {
            let (_, project, name) = self.registry.environment(env)?;
            let path = root.environment(project, name).path().to_owned();
            self.sweeps.extend(self.places.put_aside(&path, env).map_err(text)?);
        }
        if environment.is_none() {
            self.sweeps.extend(self.places.put_aside(&root.project(&name), EnvId(0)).map_err(text)?);
        }
        self.registry.remove(project, environment)
    }

    /// Has the next heir delete what is aside; after the last one removes the rest.
    pub(super) fn sweep(&mut self, aside: Aside, cleanup_users: VecDeque<User>) {
        if self.places.remove_aside(&aside).is_ok() {
            return;
        }
        let name = aside.name.clone();
        let Ok(nothing) = self.nothing.try_clone() else { return };
        let Some(entry) = Entry::sweep(aside, cleanup_users, nothing) else {
            return tracing::warn!(name, "something put aside cannot be deleted; the next start tries again");
        };
        if let Err(why) = self.begin(entry) {
            tracing::warn!(name, why, "what was put aside cannot be deleted");
        }
    }
}
