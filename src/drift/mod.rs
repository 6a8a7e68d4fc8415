//! Drift: changes to the files of a live release, and the patches that save them.
//!
//! `/app` is an overlay of the immutable release and the scratch layer of the slot, so a live file differs only if the scratch layer has an
//! entry for the file. [`look`] compares only these entries. [`verify_tree`] compares the installed tree with its manifest, byte by byte.
//! Both functions start a worker with read-only access to the files of the application. A patch ([`save`], [`patches`]) consists of a diff
//! for `patch -p1` and `git apply`, an archive of whole files, and a list of the changes. [`apply`] applies a patch to the release in a
//! slot.

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
    model::{ArchiveInfo, Entry, EntryKind},
    release::{ChangeKind, ReleaseError, WorkerAnswer, store, verify},
};

/// The maximum number of listed changes. Further changes are only counted.
const MAX_CHANGES: usize = 5000;

/// A change: a path at which the entry of the live tree differs from the entry of the release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drifted {
    /// The path, relative to `/app`.
    pub path: String,
    /// The kind of the change.
    pub change: ChangeKind,
    /// The entry of the release; `None` if the release has no entry at this path.
    pub was: Option<EntryKind>,
    /// The entry of the live tree. `None` if the entry was removed, or if the entry cannot be saved (see `odd`).
    pub now: Option<EntryKind>,
    /// The reason why the change can be listed but not saved, such as `a device`. `None` if the change can be saved.
    pub odd: Option<String>,
    /// The reason why the change is expected, such as `a cache` or `a log`. `None` for an unexpected change. Expected changes are listed
    /// and never saved.
    pub noise: Option<String>,
    /// The form in which a patch contains the change.
    pub kept: SavedAs,
}

/// The form in which a patch contains a change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SavedAs {
    /// The patch does not contain the change, because saving was not requested, the change is expected, or the change cannot be saved.
    #[default]
    No,
    /// The list of the patch describes the change completely: a directory, a symlink, a removal or a change of the mode.
    Listed,
    /// The change is a part of the diff.
    Text {
        /// The offset of this part in the diff file, in bytes.
        at: u64,
        /// The length of this part, in bytes.
        length: u64,
    },
    /// The archive contains the changed file as a whole.
    Whole,
}

/// The drift of a slot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// The listed changes, sorted by path.
    pub changes: Vec<Drifted>,
    /// The number of changes that are not listed, because [`MAX_CHANGES`] changes are listed.
    pub left_out: u64,
}

impl Drift {
    /// Returns the listed changes that are not expected.
    pub fn real(&self) -> impl Iterator<Item = &Drifted> {
        self.changes.iter().filter(|change| change.noise.is_none())
    }

    /// Returns the numbers of unexpected and of expected changes. Changes that are not listed count as unexpected.
    pub fn counts(&self) -> (u64, u64) {
        let noise = self.changes.iter().filter(|change| change.noise.is_some()).count() as u64;
        ((self.changes.len() as u64).saturating_sub(noise).saturating_add(self.left_out), noise)
    }
}

/// The job of the drift worker. Descriptor 5 is the manifest. For a job that writes a patch, descriptors 6 and 7 are the files for the diff
/// and the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LookJob {
    /// Compares the live `/app` with the manifest.
    Slot {
        /// Persistent paths, which are not part of a release.
        data: Vec<String>,
        /// Patterns of expected changes, as in `.gitignore`.
        ignore: Vec<String>,
        /// Expected changes, each with the path and the exact content.
        known: Vec<KnownEntry>,
        /// True to write a patch.
        save: bool,
    },
    /// Compares the installed tree with the manifest.
    Tree,
}

/// An expected change: a path and the live entry at this path, or `None` if the deployment removed the entry.
pub type KnownEntry = (String, Option<EntryKind>);

/// The report of the drift worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LookReport {
    /// The drift of the slot, and the frames of the archive. The frames are `None` if no archive was written.
    Slot(Drift, Option<ArchiveInfo>),
    /// The differences of the tree, as pairs of path and description, and the number of differences that are not listed.
    Tree(Vec<(String, String)>, u64),
}

/// The paths at which the drift worker and the patch worker find their directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriftPaths {
    /// The live tree.
    pub app: PathBuf,
    /// The scratch layer, if `app` is an overlay.
    pub upper: Option<PathBuf>,
    /// The installed tree.
    pub tree: PathBuf,
}

impl DriftPaths {
    /// Reads the paths from the environment variables `LARDER_APP`, `LARDER_UPPER` and `LARDER_TREE`. The keeper sets `LARDER_LOWER` if
    /// `/app` is not an overlay; the scratch layer is then ignored.
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

/// Performs the job of the drift worker. `save` contains the files for the diff and the archive of a patch.
pub fn look_work(job: &LookJob, places: &DriftPaths, manifest: &File, save: Option<(&File, &File)>) -> WorkerAnswer<LookReport> {
    let done = || -> Result<LookReport, ReleaseError> {
        let manifest = store::parse_known(manifest, std::path::Path::new("the manifest"))?;
        match job {
            LookJob::Tree => {
                let found = verify(&places.tree, &manifest)?;
                let more = found.len().saturating_sub(MAX_CHANGES) as u64;
                Ok(LookReport::Tree(found.iter().take(MAX_CHANGES).map(|one| one.parts()).collect(), more))
            }
            LookJob::Slot { data, ignore, known, .. } => {
                let app = Confined::open(&places.app)?;
                let upper = places.upper.as_deref().map(Confined::open).transpose()?;
                let rules = noise::Rules::new(data, ignore)?;
                let mut drift = look::look(&app, upper.as_ref(), &manifest.entries, &rules)?;
                let known: std::collections::HashMap<&str, &Option<EntryKind>> =
                    known.iter().map(|(path, thing)| (path.as_str(), thing)).collect();
                for change in drift.changes.iter_mut().filter(|change| change.noise.is_none()) {
                    if known.get(change.path.as_str()) == Some(&&change.now) {
                        change.noise = Some(String::from("unchanged since the release went live"));
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

/// Returns the entries of the archive of whole files, with their parent directories.
fn whole(changes: &[Drifted]) -> Vec<Entry> {
    let mut all = std::collections::BTreeMap::new();
    for change in changes.iter().filter(|change| change.kept == SavedAs::Whole) {
        if let Some(file @ EntryKind::File { .. }) = &change.now {
            for (at, _) in change.path.match_indices('/') {
                all.insert(change.path.get(..at).unwrap_or_default().to_owned(), EntryKind::Dir);
            }
            all.insert(change.path.clone(), file.clone());
        }
    }
    all.into_iter().map(|(path, kind)| Entry { path, kind }).collect()
}
