//! The names of projects and environments by their numbers. The keeper takes names only from this registry.

use std::{
    collections::BTreeMap,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    host::{
        files::{remove_unfinished, write_atomic},
        launch::Registration,
    },
    model::{EnvId, EnvironmentName, ProjectId, ProjectName},
};

/// The contents of `registry.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Names {
    projects: BTreeMap<ProjectId, ProjectName>,
    environments: BTreeMap<EnvId, (ProjectId, EnvironmentName)>,
}

/// The names of projects and environments by number, stored in a file.
#[derive(Debug)]
pub struct NameRegistry {
    file: PathBuf,
    names: Names,
}

impl NameRegistry {
    /// Reads `directory/registry.json`; a missing file counts as empty.
    pub fn open(directory: &Path) -> io::Result<NameRegistry> {
        let file = directory.join("registry.json");
        remove_unfinished(directory).map_err(io::Error::other)?;
        let names = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Names::default(),
            Err(error) => return Err(error),
        };
        Ok(NameRegistry { file, names })
    }

    /// Returns the name of a project.
    pub fn project(&self, project: ProjectId) -> Result<&ProjectName, String> {
        self.names.projects.get(&project).ok_or_else(|| format!("project {} is not registered", project.0))
    }

    /// Returns the number and the name of the project of an environment, and the name of the environment.
    pub fn environment(&self, env: EnvId) -> Result<(ProjectId, &ProjectName, &EnvironmentName), String> {
        let (project, name) =
            self.names.environments.get(&env).ok_or_else(|| format!("environment {} is not registered", env.0))?;
        Ok((*project, self.project(*project)?, name))
    }

    /// Returns all environments of a project.
    pub fn environments(&self, project: ProjectId) -> Vec<EnvId> {
        self.names.environments.iter().filter(|(_, (of, _))| *of == project).map(|(env, _)| *env).collect()
    }

    /// Returns the largest number of an environment, or 0 if there is no environment.
    pub fn last_environment(&self) -> EnvId {
        self.names.environments.last_key_value().map_or(EnvId(0), |(env, _)| *env)
    }

    /// Adds names. Returns an error if a number has a different name, or if a name has a different number. Known names are not written
    /// again: a server registers all names when it starts, and must be able to start while the disk is full.
    pub fn add(&mut self, registration: &Registration) -> Result<(), String> {
        let (project, name) = &registration.project;
        let has = |env: &EnvId, name: &EnvironmentName| {
            self.names.environments.get(env).is_some_and(|(of, had)| of == project && had == name)
        };
        let known = self.names.projects.get(project) == Some(name);
        if known && registration.environment.as_ref().is_none_or(|(env, name)| has(env, name)) {
            return Ok(());
        }
        for (other, taken) in &self.names.projects {
            if (other == project) != (taken == name) {
                return Err(format!("cannot register project {name} as {}: project {taken} is {}", project.0, other.0));
            }
        }
        if let Some((env, name)) = &registration.environment {
            for (other, (of, taken)) in &self.names.environments {
                if (other == env) != (of == project && taken == name) {
                    return Err(format!(
                        "cannot register environment {name} as {}: environment {taken} of project {} is {}",
                        env.0, of.0, other.0
                    ));
                }
            }
        }
        let mut next = self.names.clone();
        if let Some((env, name)) = &registration.environment {
            next.environments.insert(*env, (*project, name.clone()));
        }
        next.projects.insert(*project, name.clone());
        self.replace(next)
    }

    /// Removes an environment, or a project with all its environments.
    pub fn remove(&mut self, project: ProjectId, environment: Option<EnvId>) -> Result<(), String> {
        let mut next = self.names.clone();
        match environment {
            Some(env) => drop(next.environments.remove(&env)),
            None => {
                next.environments.retain(|_, (of, _)| *of != project);
                next.projects.remove(&project);
            }
        }
        self.replace(next)
    }

    /// Writes the file before the names in memory are changed, so that a failed change can be retried.
    fn replace(&mut self, next: Names) -> Result<(), String> {
        let bytes = serde_json::to_vec_pretty(&next).map_err(|error| error.to_string())?;
        write_atomic(&self.file, &bytes, 0o600).map_err(|error| {
            let cause = error.source().map(|cause| format!(": {cause}"));
            format!("{error}{}", cause.unwrap_or_default())
        })?;
        self.names = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(project: u32, name: &str, env: u32, environment: &str) -> Registration {
        Registration {
            project: (ProjectId(project), name.parse().unwrap()),
            environment: Some((EnvId(env), environment.parse().unwrap())),
            storage: None,
        }
    }

    #[test]
    fn numbers_keep_their_names_across_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut registry = NameRegistry::open(directory.path()).unwrap();
        registry.add(&registration(1, "shop", 7, "staging")).unwrap();
        registry.add(&registration(1, "shop", 7, "staging")).unwrap();
        let mut registry = NameRegistry::open(directory.path()).unwrap();
        assert_eq!(registry.environment(EnvId(7)).unwrap().1.as_str(), "shop");
        for (project, name, env, environment) in
            [(1, "other", 8, "staging"), (2, "shop", 8, "staging"), (1, "shop", 7, "live"), (1, "shop", 8, "staging")]
        {
            assert!(
                registry.add(&registration(project, name, env, environment)).is_err(),
                "{project} {name} {env} {environment}"
            );
        }
        registry.remove(ProjectId(1), None).unwrap();
        assert!(registry.environment(EnvId(7)).is_err() && registry.project(ProjectId(1)).is_err());
    }

    #[test]
    fn failed_write_changes_nothing_in_memory() {
        let directory = tempfile::tempdir().unwrap();
        let mut registry = NameRegistry::open(directory.path()).unwrap();
        registry.add(&registration(1, "shop", 7, "staging")).unwrap();
        let (path, aside) = (directory.path().to_owned(), directory.path().with_extension("aside"));
        fs::rename(&path, &aside).unwrap();
        assert!(registry.add(&registration(2, "blog", 8, "staging")).unwrap_err().contains("cannot"));
        assert!(registry.project(ProjectId(2)).is_err());
        assert!(registry.remove(ProjectId(1), None).is_err() && registry.project(ProjectId(1)).is_ok());
        fs::rename(&aside, &path).unwrap();
        registry.add(&registration(3, "blog", 9, "staging")).unwrap();
        registry.remove(ProjectId(1), None).unwrap();
        assert!(NameRegistry::open(directory.path()).unwrap().project(ProjectId(1)).is_err());
    }
}
