//! Projects and environments as the server knows them.

use serde::{Deserialize, Serialize};

use super::{BranchName, CommitId, EnvId, EnvironmentName, Mode, ProjectId, ProjectName, ReleaseId, ReleaseNumber, Remote, Slot};

/// How a new release takes the place of the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The new release boots beside the old one and takes over when it is healthy.
    // The first word is that of older journals.
    #[serde(alias = "BlueGreen")]
    BlueGreen,
    /// The old release stops first.
    #[serde(alias = "InPlace")]
    InPlace,
}

/// One application on this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Its number; never used again after the project is gone.
    pub id: ProjectId,
    /// Its name.
    pub name: ProjectName,
    /// Its environments on this server; the first is the default one.
    pub environments: Vec<Environment>,
}

/// A place where a project runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Its number.
    pub id: EnvId,
    /// The number of its project.
    pub project_id: ProjectId,
    /// The name of its project.
    pub project: ProjectName,
    /// Its own name.
    pub name: EnvironmentName,
    /// How it deploys.
    pub mode: Mode,
    /// The branch that it deploys.
    pub branch: BranchName,
    /// How a release takes over.
    pub strategy: Strategy,
    /// Further host names that lead here.
    #[serde(default)]
    pub domains: Vec<String>,
    /// Whether its web address is the project's own name.
    #[serde(default)]
    pub default: bool,
    /// How many of each process type, where the operator has said so.
    #[serde(default)]
    pub scale: std::collections::BTreeMap<String, u32>,
    /// Where deliverables are pulled from and published to.
    #[serde(default)]
    pub remotes: Vec<Remote>,
}

#[cfg(test)]
impl Environment {
    /// An environment of the project shop, for tests: it cooks, and deploys `branch`.
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
    /// The host names that lead here, below the server's `domain`.
    pub fn hosts(&self, domain: &str) -> Vec<String> {
        let own =
            if self.default { format!("{}.{domain}", self.project) } else { format!("{}--{}.{domain}", self.name, self.project) };
        std::iter::once(own).chain(self.domains.iter().cloned()).collect()
    }

    /// The shortest words that name it in a command: the project alone where it is the default one.
    pub fn target(&self) -> String {
        if self.default { self.project.to_string() } else { self.title() }
    }

    /// `project/environment`, for people.
    pub fn title(&self) -> String {
        format!("{}/{}", self.project, self.name)
    }
}

/// What serves in an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// The release.
    pub release: ReleaseId,
    /// Its number.
    pub number: ReleaseNumber,
    /// Its commit.
    pub commit: CommitId,
    /// Where it runs.
    pub slot: Slot,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_to_name_an_environment_that_is_not_the_default_one() {
        let production = Environment::of_shop("production", "main");
        assert_eq!(production.target(), "shop");
        assert_eq!(Environment { default: false, ..Environment::of_shop("staging", "next") }.target(), "shop/staging");
    }
}
