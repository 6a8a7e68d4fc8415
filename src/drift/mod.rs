//! Drift: where what runs is no longer what was released, and patches that keep it.
//!
//! `/app` is an overlay of the immutable release and the slot's scratch layer, so a live file differs only where the scratch layer
//! has something; and the installed tree itself can be compared with its manifest. Both are read by a worker that sees what the
//! application sees and cannot change it ([`look`]). A patch is what such a look found, kept: a text that `patch -p1` and
//! `git apply` understand, an archive of whole files, and the list ([`save`], [`patches`]). [`apply`] puts it onto another release.

mod apply;
mod look;
mod noise;
pub mod patches;
mod save;
mod server;
#[cfg(test)]
mod tests;

use std::{fs::File, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use apply::{Applied, ApplyJob, work as apply_work};
pub use noise::Rules;
pub use patches::Patch;
pub use server::{DriftTarget, apply, look, save, verify_tree};

use crate::{
    host::files::Confined,
    model::{ArchiveInfo, Digest, Entry, EntryKind},
    release::{Answer, ChangeKind, ReleaseError, store, verify},
};

/// The most changes that are listed; what is beyond is counted.
const MOST: usize = 5000;

/// What is at a path, in a form that travels between our own processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TreeEntry {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Size in bytes.
        size: u64,
        /// The digest of its content.
        digest: Digest,
        /// Whether it may be executed.
        executable: bool,
    },
    /// A symbolic link.
    Link {
        /// Where it points to.
        target: String,
    },
}

impl From<&EntryKind> for TreeEntry {
    fn from(kind: &EntryKind) -> TreeEntry {
        match kind {
            EntryKind::Dir => TreeEntry::Dir,
            EntryKind::File { size, digest, executable } => {
                TreeEntry::File { size: *size, digest: *digest, executable: *executable }
            }
            EntryKind::Link { target } => TreeEntry::Link { target: target.clone() },
        }
    }
}

impl From<&TreeEntry> for EntryKind {
    fn from(thing: &TreeEntry) -> EntryKind {
        match thing {
            TreeEntry::Dir => EntryKind::Dir,
            TreeEntry::File { size, digest, executable } => {
                EntryKind::File { size: *size, digest: *digest, executable: *executable }
            }
            TreeEntry::Link { target } => EntryKind::Link { target: target.clone() },
        }
    }
}

impl TreeEntry {
    /// The size of a file.
    pub fn size(&self) -> Option<u64> {
        if let TreeEntry::File { size, .. } = self { Some(*size) } else { None }
    }
}

/// Where a live file differs from its release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drifted {
    /// Its path in `/app`.
    pub path: String,
    /// What became of it.
    pub change: ChangeKind,
    /// What the release has there.
    pub was: Option<TreeEntry>,
    /// What is there now; nothing as well where it is no file, directory or link, see `odd`.
    pub now: Option<TreeEntry>,
    /// Why it can be listed but not kept: a socket, a file that cannot be read.
    pub odd: Option<String>,
    /// Why it is to be expected: a cache, a log, `drift.ignore`. Such changes are shown and otherwise left alone.
    pub noise: Option<String>,
    /// Where a patch keeps it.
    pub kept: SavedAs,
}

/// Where the content of a change is in a patch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SavedAs {
    /// Nowhere: it was not asked for, or cannot be had.
    #[default]
    No,
    /// The list says it all: a directory, a link, a removal, a mode.
    Listed,
    /// As a difference in the text, at this place.
    Text {
        /// Where it begins, bytes.
        at: u64,
        /// How long it is, bytes.
        length: u64,
    },
    /// As a whole file in the archive.
    Whole,
}

/// All drift of a slot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// The changes by path.
    pub changes: Vec<Drifted>,
    /// How many more there are.
    pub left_out: u64,
}

impl Drift {
    /// The changes that matter.
    pub fn real(&self) -> impl Iterator<Item = &Drifted> {
        self.changes.iter().filter(|change| change.noise.is_none())
    }

    /// How many changes matter, and how many are only noise. Those that were left out count as changes that matter.
    pub fn counts(&self) -> (u64, u64) {
        let noise = self.changes.iter().filter(|change| change.noise.is_some()).count() as u64;
        ((self.changes.len() as u64).saturating_sub(noise).saturating_add(self.left_out), noise)
    }
}

/// What shall be looked at. Descriptor 5 is the manifest; where it shall be saved, 6 and 7 are the text and the archive to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LookJob {
    /// The live `/app`.
    Slot {
        /// Paths that persist and are therefore no part of a release.
        data: Vec<String>,
        /// Patterns, as in `.gitignore`, of what is to be expected.
        ignore: Vec<String>,
        /// What is to be expected exactly so: path and content.
        known: Vec<Known>,
        /// Whether to write what was found.
        save: bool,
    },
    /// The installed tree.
    Tree,
}

/// A path, and what is there.
pub type Known = (String, Option<TreeEntry>);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LookReport {
    /// In the slot; with the outline of the archive, if one was written.
    Slot(Drift, Option<ArchiveInfo>),
    /// In the tree: path and what is wrong, and how many more.
    Tree(Vec<(String, String)>, u64),
}

/// Where the worker finds things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriftPaths {
    /// The live tree.
    pub app: PathBuf,
    /// The scratch layer, where `app` is an overlay with one.
    pub upper: Option<PathBuf>,
    /// The installed tree.
    pub tree: PathBuf,
}

impl DriftPaths {
    /// From `LARDER_APP`, `LARDER_UPPER`, `LARDER_TREE`; with `LARDER_LOWER` there is no overlay.
    pub fn from_environment() -> DriftPaths {
        let place = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let overlay = place("LARDER_LOWER").is_none();
        DriftPaths {
            app: place("LARDER_APP").unwrap_or_else(|| PathBuf::from("/app")),
            upper: place("LARDER_UPPER").filter(|_| overlay),
            tree: place("LARDER_TREE").unwrap_or_else(|| PathBuf::from("/deploy")),
        }
    }
}

/// Does the work of a look.
pub fn look_work(job: &LookJob, places: &DriftPaths, manifest: &File, save: Option<(&File, &File)>) -> Answer<LookReport> {
    let done = || -> Result<LookReport, ReleaseError> {
        let manifest = store::parse_known(manifest, std::path::Path::new("the manifest"))?;
        match job {
            LookJob::Tree => {
                let found = verify(&places.tree, &manifest)?;
                let more = found.len().saturating_sub(MOST) as u64;
                Ok(LookReport::Tree(found.iter().take(MOST).map(|one| one.parts()).collect(), more))
            }
            LookJob::Slot { data, ignore, known, .. } => {
                let app = Confined::open(&places.app)?;
                let upper = places.upper.as_deref().map(Confined::open).transpose()?;
                let rules = noise::Rules::new(data, ignore)?;
                let mut drift = look::look(&app, upper.as_ref(), &manifest.entries, &rules)?;
                let known: std::collections::HashMap<&str, &Option<TreeEntry>> =
                    known.iter().map(|(path, thing)| (path.as_str(), thing)).collect();
                for change in drift.changes.iter_mut().filter(|change| change.noise.is_none()) {
                    if known.get(change.path.as_str()) == Some(&&change.now) {
                        change.noise = Some(String::from("as it was when it went live"));
                    }
                }
                let archive = match save {
                    Some((text, archive)) => save::write(&app, &Confined::open(&places.tree)?, &mut drift, text, archive)?,
                    None => None,
                };
                Ok(LookReport::Slot(drift, archive))
            }
        }
    };
    done().into()
}

/// The entries of the archive of whole files, with the directories above them.
fn whole(changes: &[Drifted]) -> Vec<Entry> {
    let mut all = std::collections::BTreeMap::new();
    for change in changes.iter().filter(|change| change.kept == SavedAs::Whole) {
        if let Some(file @ TreeEntry::File { .. }) = &change.now {
            for (at, _) in change.path.match_indices('/') {
                all.insert(change.path.get(..at).unwrap_or_default().to_owned(), EntryKind::Dir);
            }
            all.insert(change.path.clone(), file.into());
        }
    }
    all.into_iter().map(|(path, kind)| Entry { path, kind }).collect()
}
