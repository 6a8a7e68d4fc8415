//! What lies where in an environment, as data: `layouts/*.yaml`. The keeper makes the directories by code of its own, because it
//! parses nothing; here their place, kind, owner and mode are compared with what the layout says.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Component, Path},
};

use serde::Deserialize;

use crate::config::{
    ConfigError,
    yaml::{self, Limits},
};

/// The layout that this version brings along.
const STANDARD: &str = include_str!("../../layouts/standard.yaml");

/// A layout.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Its name.
    pub layout: String,
    /// Its places, each below the ones that hold it.
    pub places: Vec<Place>,
}

/// A place in an environment's directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// What it is for; unique in its layout.
    pub role: String,
    /// Where it is, below the environment's directory.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Whose it is.
    pub owner: Owner,
    /// Its permission bits, in octal; a link has none.
    #[serde(default)]
    mode: Option<String>,
    /// Since when it is there.
    pub made: Made,
}

/// What a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // The words of the file system.
pub enum Kind {
    Directory,
    Link,
    File,
}

/// Whose a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // The words of ARCHITECTURE.md.
pub enum Owner {
    Server,
    Keeper,
    Git,
    Build,
    Run,
}

/// When a place is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Made {
    /// Together with its environment.
    Environment,
    /// By a deployment: it may be missing.
    Deployment,
}

/// Whom a comparison runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Viewer {
    /// The server's own user.
    pub uid: u32,
    /// Whether there are several users: system mode.
    pub system: bool,
}

impl Layout {
    /// The standard layout.
    pub fn standard() -> Result<Layout, ConfigError> {
        Layout::parse("layouts/standard.yaml", STANDARD.as_bytes())
    }

    /// Reads a layout; `file` is its name for errors.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Layout, ConfigError> {
        let layout: Layout = yaml::parse(file, bytes, Limits::SERVER)?;
        let mut roles = std::collections::BTreeSet::new();
        for place in &layout.places {
            let wrong = |why: &str| Err(ConfigError::new(file, format!("the place {:?} {why}", place.role)));
            if !roles.insert(&place.role) {
                return wrong("is there twice");
            }
            let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
            if place.path.is_empty() || !Path::new(&place.path).components().all(inside) {
                return wrong("has a path that is not below the environment's directory");
            }
            match (place.kind, &place.mode) {
                (Kind::Link, None) => {}
                (Kind::Link, Some(_)) => return wrong("is a link, and links have no mode"),
                _ if place.bits().is_none() => return wrong("needs a mode such as \"0755\""),
                _ => {}
            }
        }
        Ok(layout)
    }

    /// What in `environment` is not as the layout says, one line each with what to do. Looks at names and never through links.
    pub fn findings(&self, environment: &Path, viewer: Viewer) -> Vec<String> {
        self.places.iter().filter_map(|place| place.finding(environment, viewer)).collect()
    }
}

impl Place {
    /// Its permission bits.
    pub fn bits(&self) -> Option<u32> {
        let bits = u32::from_str_radix(self.mode.as_ref()?, 8).ok()?;
        (bits <= 0o7777).then_some(bits)
    }

    fn finding(&self, environment: &Path, viewer: Viewer) -> Option<String> {
        let path = environment.join(&self.path);
        let shown = path.display();
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.made == Made::Deployment => return None,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Some(format!("{shown} is missing; a restart of the server makes it again, empty"));
            }
            // Inside what is another user's alone.
            Err(_) => return None,
        };
        let found = meta.file_type();
        let fits = match self.kind {
            Kind::Directory => found.is_dir(),
            Kind::Link => found.is_symlink(),
            Kind::File => found.is_file(),
        };
        if !fits {
            return Some(format!("{shown} should be a {}", format!("{:?}", self.kind).to_lowercase()));
        }
        let owner = format!("{:?}", self.owner).to_lowercase();
        let other = match (viewer.system, self.owner) {
            (false, _) | (true, Owner::Server) => meta.uid() != viewer.uid,
            (true, Owner::Keeper) => meta.uid() != 0,
            (true, _) => meta.uid() == 0 || meta.uid() == viewer.uid,
        };
        if other {
            return Some(format!("{shown} belongs to user {}, who is not the {owner} user", meta.uid()));
        }
        let mode = meta.mode() & 0o7777;
        let wanted = self.bits().filter(|wanted| *wanted != mode)?;
        Some(format!("{shown} has the mode {mode:04o}; run: chmod {wanted:04o} {shown}"))
    }
}

#[cfg(test)]
mod tests;
