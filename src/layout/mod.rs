//! Layouts: descriptions of all files and directories below larder's root directory, in `layouts/*.yaml`. This module compares paths,
//! kinds, owners and modes on the disk with a layout. The keeper creates the directories without a layout, because the keeper parses no
//! YAML.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use crate::config::{
    ConfigError,
    yaml::{self, FileLimits},
};

/// The layout that is embedded in the program.
const STANDARD: &str = include_str!("../../layouts/standard.yaml");

/// A description of the files and directories below larder's root directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The name of the layout.
    pub layout: String,
    /// The entries of the root directory, without the content of the projects' directories.
    #[serde(default)]
    pub root: Vec<LayoutEntry>,
    /// The entries of a project's directory.
    #[serde(default)]
    pub project: Vec<LayoutEntry>,
    /// The entries of an environment's directory. A directory precedes the entries inside of it.
    #[serde(rename = "places")]
    pub entries: Vec<LayoutEntry>,
}

/// A file, directory or link of a layout.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutEntry {
    /// The purpose of the entry, which is unique in the layout.
    pub role: String,
    /// The path relative to the directory of the list (`root`, `project` or `places`); `*` stands for any characters within one name.
    pub path: String,
    pub kind: LayoutKind,
    pub owner: Owner,
    /// The permission bits, in octal. A link has no permission bits; an entry of the operator may have none.
    #[serde(default)]
    mode: Option<String>,
    pub made: CreationTime,
}

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayoutKind {
    Directory,
    Link,
    File,
    Socket,
    /// A directory whose content has the same owner and is not described further.
    Tree,
}

/// The role of the user that owns an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    Server,
    Keeper,
    Git,
    Build,
    Unpack,
    Run,
    /// The administrator. The owner of such an entry is not checked, and its mode is checked only if the layout has a mode.
    Operator,
}

/// The moment at which an entry is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CreationTime {
    /// The creation of the environment, or the first start of the server.
    Environment,
    /// A deployment after the creation of the environment. The entry can therefore be missing.
    Deployment,
}

/// The user as whom larder runs during a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Viewer {
    /// The uid of the server.
    pub uid: u32,
    /// True if larder runs as root. Otherwise, the server's user owns all entries.
    pub system: bool,
}

impl Layout {
    /// Returns the standard layout.
    pub fn standard() -> Result<Layout, ConfigError> {
        Layout::parse("layouts/standard.yaml", STANDARD.as_bytes())
    }

    /// Parses a layout. `file` is the name of the layout file in errors.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Layout, ConfigError> {
        let layout: Layout = yaml::parse(file, bytes, FileLimits::SERVER)?;
        let mut roles = std::collections::BTreeSet::new();
        let levels = [
            ("root directory", &layout.root),
            ("project's directory", &layout.project),
            ("environment's directory", &layout.entries),
        ];
        for (level, entry) in levels.into_iter().flat_map(|(level, entries)| entries.iter().map(move |entry| (level, entry))) {
            let wrong = |why: &str| Err(ConfigError::new(file, format!("the entry {:?} {why}", entry.role)));
            if !roles.insert(&entry.role) {
                return wrong("is defined twice");
            }
            let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
            if entry.path.is_empty() || !Path::new(&entry.path).components().all(inside) {
                return wrong(&format!("has a path that is not below the {level}"));
            }
            match (entry.kind, &entry.mode) {
                (LayoutKind::Link, None) => {}
                (LayoutKind::Link, Some(_)) => return wrong("is a link with a mode; links have no mode"),
                (_, None) if entry.owner == Owner::Operator => {}
                _ if entry.bits().is_none() => {
                    return wrong("has no valid mode; expected up to four octal digits, such as \"0755\"");
                }
                _ => {}
            }
        }
        Ok(layout)
    }

    /// Returns the differences between the directory `environment` and the layout, one line each. Entries whose path contains `*` are not
    /// compared, and links are not followed.
    pub fn findings(&self, environment: &Path, viewer: Viewer) -> Vec<String> {
        let named = self.entries.iter().filter(|entry| !entry.path.contains('*'));
        named.filter_map(|entry| entry.finding(environment, viewer)).collect()
    }

    /// Returns the entry for `path`, which is relative to the root directory. The flag is false if `path` is the entry itself, and true if
    /// the entry is a tree and `path` is inside of the tree.
    pub fn entry(&self, path: &Path) -> Option<(&LayoutEntry, bool)> {
        let mut names = path.components();
        let (entries, below) = match (names.next(), names.next(), names.next()) {
            (Some(first), Some(_), third) if first.as_os_str() == "projects" => match third {
                Some(third) if third.as_os_str() != "git" => (&self.entries, path.components().skip(3).collect()),
                _ => (&self.project, path.components().skip(2).collect::<PathBuf>()),
            },
            _ => (&self.root, path.to_owned()),
        };
        let exact = entries.iter().find(|entry| entry.position(&below) == Some(false)).map(|entry| (entry, false));
        exact.or_else(|| entries.iter().find(|entry| entry.position(&below) == Some(true)).map(|entry| (entry, true)))
    }
}

impl LayoutEntry {
    /// Returns the permission bits; `None` if the entry has no valid mode.
    pub fn bits(&self) -> Option<u32> {
        let bits = u32::from_str_radix(self.mode.as_ref()?, 8).ok()?;
        (bits <= 0o7777).then_some(bits)
    }

    /// Returns `Some(false)` if `path` is this entry, `Some(true)` if this entry is a tree that contains `path`, and `None` otherwise.
    fn position(&self, path: &Path) -> Option<bool> {
        let mut names = path.components().map(|name| name.as_os_str().to_string_lossy());
        for pattern in Path::new(&self.path).components().filter(|name| *name != Component::CurDir) {
            let (pattern, name) = (pattern.as_os_str().to_string_lossy(), names.next()?);
            let fits = match pattern.split_once('*') {
                None => name == pattern,
                Some((start, end)) => {
                    name.len() >= start.len().saturating_add(end.len()) && name.starts_with(start) && name.ends_with(end)
                }
            };
            if !fits {
                return None;
            }
        }
        match (names.next(), self.kind) {
            (None, _) => Some(false),
            (Some(_), LayoutKind::Tree) => Some(true),
            (Some(_), _) => None,
        }
    }

    fn finding(&self, environment: &Path, viewer: Viewer) -> Option<String> {
        let path = environment.join(&self.path);
        let shown = path.display();
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.made == CreationTime::Deployment => return None,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Some(format!("{shown} is missing; restart the server to create it"));
            }
            // This process cannot read the entry, usually because another user owns a parent directory. The entry is not compared.
            Err(_) => return None,
        };
        let found = meta.file_type();
        let fits = match self.kind {
            LayoutKind::Directory | LayoutKind::Tree => found.is_dir(),
            LayoutKind::Link => found.is_symlink(),
            LayoutKind::File => found.is_file(),
            LayoutKind::Socket => std::os::unix::fs::FileTypeExt::is_socket(&found),
        };
        if !fits {
            let kind = if self.kind == LayoutKind::Tree { LayoutKind::Directory } else { self.kind };
            return Some(format!("{shown} is not a {}", format!("{kind:?}").to_lowercase()));
        }
        let owner = format!("{:?}", self.owner).to_lowercase();
        let other = match (viewer.system, self.owner) {
            (_, Owner::Operator) => false,
            (false, _) | (true, Owner::Server) => meta.uid() != viewer.uid,
            (true, Owner::Keeper) => meta.uid() != 0,
            (true, _) => meta.uid() == 0 || meta.uid() == viewer.uid,
        };
        if other {
            return Some(format!("{shown} belongs to user {} (expected the {owner} user)", meta.uid()));
        }
        let mode = meta.mode() & 0o7777;
        let wanted = self.bits().filter(|wanted| *wanted != mode)?;
        Some(format!("{shown} has the mode {mode:04o} (expected {wanted:04o}); run: chmod {wanted:04o} {shown}"))
    }
}

#[cfg(test)]
mod tests;
