//! [`Target`], the project and environment that a person or a file names.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Environment, EnvironmentName, NameError, ProjectName};

/// The project and environment that a person or a file names: `shop`, or `shop/staging`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target {
    /// The project.
    pub project: ProjectName,
    /// The environment. If absent, most requests use the project's default environment.
    pub environment: Option<EnvironmentName>,
}

impl FromStr for Target {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Target, NameError> {
        let (project, environment) = match text.split_once('/') {
            Some((project, environment)) => (project, Some(environment.parse()?)),
            None => (text, None),
        };
        Ok(Target { project: project.parse()?, environment })
    }
}

impl TryFrom<String> for Target {
    type Error = NameError;
    fn try_from(text: String) -> Result<Target, NameError> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> String {
        target.to_string()
    }
}

impl From<&Environment> for Target {
    fn from(environment: &Environment) -> Target {
        Target { project: environment.project.clone(), environment: Some(environment.name.clone()) }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.environment {
            Some(environment) => write!(f, "{}/{environment}", self.project),
            None => self.project.fmt(f),
        }
    }
}
