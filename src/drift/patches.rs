//! The patches of an environment. The directory `archives/patches/<id>/` of a patch contains `patch.json`, `changes.diff` and, for whole
//! files, `files.tar.zst`. The id is derived from the tree of the release and the changes, so the same drift is saved only once.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Drift, Drifted};
use crate::{
    host::{
        files::{FileError, create_new, open_regular, read_limited, rename_new, sync_dir, write_atomic},
        root::EnvironmentPaths,
    },
    model::{ArchiveInfo, CommitId, Digest, ReleaseId, UserName},
    release::ReleaseError,
};

/// The name of the file with the list of changes.
const LIST: &str = "patch.json";
/// The name of the file with the diff.
const TEXT: &str = "changes.diff";
/// The name of the archive of whole files.
const FILES: &str = "files.tar.zst";
/// The maximum size of a list, in bytes.
const MAX_BYTES: u64 = 64 << 20;
/// The maximum number of automatic patches. Patches that a stored release needs are not counted.
const MAX_AUTOMATIC: usize = 20;

/// A saved patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// The version of the format.
    pub format: u32,
    /// The id of the patch.
    pub id: String,
    /// The release that was changed.
    pub release: ReleaseId,
    /// The commit of the changed release.
    pub commit: CommitId,
    /// The digest of the tree of the changed release.
    pub tree: Digest,
    /// The time when the patch was saved.
    pub created: Timestamp,
    /// The user who saved the patch. `None` for an automatic patch, which larder saves before a slot is emptied.
    pub by: Option<UserName>,
    /// The changes.
    pub changes: Vec<Drifted>,
    /// The frames of the archive; `None` if the patch has no archive.
    pub archive: Option<ArchiveInfo>,
    /// The releases to which the patch was applied. A rollback to such a release applies the patch again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_by: Vec<ReleaseId>,
}

impl Patch {
    /// The version of the format that this version of larder writes and reads.
    pub const FORMAT: u32 = 1;
}

/// A patch that is being written, in a temporary directory.
#[derive(Debug)]
pub struct New {
    directory: tempfile::TempDir,
    /// The file for the diff.
    pub text: File,
    /// The file for the archive of whole files.
    pub files: File,
}

/// The patches of an environment.
#[derive(Debug, Clone)]
pub struct Patches(PathBuf);

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> ReleaseError {
    FileError::Io { doing, path: path.to_owned(), source }.into()
}

impl Patches {
    /// Returns the patches of an environment. `archives` is the directory [`EnvironmentPaths::archives`].
    ///
    /// [`EnvironmentPaths::archives`]: crate::host::root::EnvironmentPaths::archives
    pub fn of(archives: &Path) -> Patches {
        Patches(archives.join("patches"))
    }

    /// Creates the files of a new patch in a temporary directory.
    pub fn begin(&self) -> Result<New, ReleaseError> {
        match fs::DirBuilder::new().mode(0o700).create(&self.0) {
            Ok(()) => sync_dir(self.0.parent().unwrap_or(&self.0))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_error("create", &self.0, error)),
        }
        let directory = tempfile::Builder::new().prefix(".new-").tempdir_in(&self.0);
        let directory = directory.map_err(|error| io_error("create a directory in", &self.0, error))?;
        let (text, files) = (create_new(&directory.path().join(TEXT), 0o600)?, create_new(&directory.path().join(FILES), 0o600)?);
        Ok(New { directory, text, files })
    }

    /// Writes the list of a new patch, and renames the temporary directory to the id of the patch. The patch is durable afterwards. If a
    /// patch with the same changes exists, the existing patch is returned, and `by` becomes the user of an automatic patch.
    pub fn finish(
        &self,
        new: New,
        about: (ReleaseId, CommitId, Digest),
        drift: Drift,
        archive: Option<ArchiveInfo>,
        by: Option<UserName>,
    ) -> Result<Patch, ReleaseError> {
        let (release, commit, tree) = about;
        let changes: Vec<Drifted> = drift.changes.into_iter().filter(|change| change.noise.is_none()).collect();
        let id = id(&tree, &changes)?;
        if let Ok(known) = self.read(&id) {
            let claimed = Patch { by: known.by.clone().or(by), ..known.clone() };
            if claimed != known {
                self.write(&self.0.join(&id).join(LIST), &claimed)?;
            }
            return Ok(claimed);
        }
        let patch = Patch {
            format: Patch::FORMAT,
            id,
            release,
            commit,
            tree,
            created: Timestamp::now(),
            by,
            changes,
            archive,
            used_by: Vec::new(),
        };
        let directory = new.directory.path();
        if patch.archive.is_none() {
            fs::remove_file(directory.join(FILES)).map_err(|error| io_error("remove", directory, error))?;
        }
        for file in [&new.text, &new.files] {
            file.sync_all().map_err(|error| io_error("sync", directory, error))?;
        }
        self.write(&directory.join(LIST), &patch)?;
        let made = new.directory.keep();
        rename_new(&made, &self.0.join(&patch.id))?;
        self.prune()?;
        Ok(patch)
    }

    fn write(&self, path: &Path, patch: &Patch) -> Result<(), ReleaseError> {
        let mut bytes = serde_json::to_vec_pretty(patch).map_err(|e| io_error("write", path, e.into()))?;
        bytes.push(b'\n');
        Ok(write_atomic(path, &bytes, 0o600)?)
    }

    /// Returns all patches, newest first. Unreadable patches are logged and skipped.
    pub fn list(&self) -> Vec<Patch> {
        let names =
            fs::read_dir(&self.0).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let read = names.filter(|name| !name.starts_with('.')).filter_map(|name| match self.read(&name) {
            Ok(patch) => Some(patch),
            Err(error) => {
                tracing::error!(patch = name, %error, "unreadable patch skipped");
                None
            }
        });
        let mut all: Vec<Patch> = read.collect();
        all.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
        all
    }

    /// Returns the patch whose id begins with `name`. Returns `None` if no id or several ids begin with `name`, or if `name` has fewer than
    /// 4 characters.
    pub fn find(&self, name: &str) -> Option<Patch> {
        let mut found = self.list().into_iter().filter(|patch| name.len() >= 4 && patch.id.starts_with(name));
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    fn read(&self, id: &str) -> Result<Patch, ReleaseError> {
        let path = self.0.join(id).join(LIST);
        let bytes = read_limited(&path, MAX_BYTES)?;
        let wrong = |why: String| ReleaseError::Manifest { path: path.clone(), why };
        let patch: Patch = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        if patch.format != Patch::FORMAT || patch.id != id {
            let (found, format) = (&patch.id, patch.format);
            return Err(wrong(format!(
                "the file contains patch {found} in format {format} (expected patch {id} in format {})",
                Patch::FORMAT
            )));
        }
        Ok(patch)
    }

    /// Records that a patch is applied to a release. The patch is not pruned while the release is stored.
    pub fn mark_used(&self, patch: &Patch, release: ReleaseId) -> Result<(), ReleaseError> {
        let mut patch = self.read(&patch.id)?;
        if patch.used_by.contains(&release) {
            return Ok(());
        }
        patch.used_by.retain(|release| self.is_stored(*release));
        patch.used_by.push(release);
        self.write(&self.0.join(&patch.id).join(LIST), &patch)
    }

    /// Returns true if the environment still contains the installed tree or the manifest of a release.
    fn is_stored(&self, release: ReleaseId) -> bool {
        let environment = self.0.parent().and_then(Path::parent).map(EnvironmentPaths::at);
        environment.is_some_and(|paths| paths.tree(release).exists() || paths.manifest(release).exists())
    }

    /// Opens the diff of a patch, and the archive of whole files, if the patch has one.
    pub fn open(&self, patch: &Patch) -> Result<(File, Option<File>), ReleaseError> {
        let directory = self.0.join(&patch.id);
        let files = patch.archive.as_ref().map(|_| open_regular(&directory.join(FILES))).transpose()?;
        Ok((open_regular(&directory.join(TEXT))?, files))
    }

    /// Returns the diff of a patch, cut off after `most` bytes. Invalid UTF-8 is replaced.
    pub fn text(&self, patch: &Patch, most: u64) -> Result<String, ReleaseError> {
        let path = self.0.join(&patch.id).join(TEXT);
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(open_regular(&path)?, most), &mut bytes)
            .map_err(|e| io_error("read", &path, e))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Removes a patch permanently.
    pub fn drop(&self, patch: &Patch) -> Result<(), ReleaseError> {
        let directory = self.0.join(&patch.id);
        // The directory is renamed first, so that a crash leaves either the complete patch or no patch.
        let gone = self.0.join(format!(".gone-{}", patch.id));
        let _ = fs::remove_dir_all(&gone);
        fs::rename(&directory, &gone).map_err(|error| io_error("remove", &directory, error))?;
        sync_dir(&self.0)?;
        fs::remove_dir_all(&gone).map_err(|error| io_error("remove", &gone, error))
    }

    /// Removes old automatic patches, and the directories of patches that were written or removed incompletely. An automatic patch is kept
    /// if a stored release needs the patch. Of the automatic patches that no stored release needs, the newest [`MAX_AUTOMATIC`] are kept.
    fn prune(&self) -> Result<(), ReleaseError> {
        let is_free = |patch: &&Patch| patch.by.is_none() && !patch.used_by.iter().any(|release| self.is_stored(*release));
        for old in self.list().iter().filter(is_free).skip(MAX_AUTOMATIC) {
            self.drop(old)?;
        }
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }
}

/// Returns the id of a patch: the first 10 digits of a digest of the tree and the changes.
fn id(tree: &Digest, changes: &[Drifted]) -> Result<String, ReleaseError> {
    let plain: Vec<_> = changes.iter().map(|change| (&change.path, &change.was, &change.now)).collect();
    let bytes =
        serde_json::to_vec(&(tree, plain)).map_err(|e| io_error("determine the id of", Path::new("a patch"), e.into()))?;
    Ok(blake3::hash(&bytes).to_hex().as_str().get(..10).unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{drift::SavedAs, release::ChangeKind};

    fn drift(path: &str) -> Drift {
        let change = Drifted {
            path: path.to_owned(),
            change: ChangeKind::Removed,
            was: Some(crate::model::EntryKind::Dir),
            now: None,
            odd: None,
            noise: None,
            kept: SavedAs::Listed,
        };
        let noise = Drifted { path: String::from("x.log"), noise: Some(String::from("a log")), ..change.clone() };
        Drift { changes: vec![change, noise], left_out: 0 }
    }

    #[test]
    fn patch_of_a_stored_release_is_not_pruned() {
        let environment = tempfile::tempdir().unwrap();
        fs::create_dir(environment.path().join("archives")).unwrap();
        let patches = Patches::of(&environment.path().join("archives"));
        let release = ReleaseId::new(Timestamp::now());
        let keep = |path: &str| {
            let about = (release, "a".repeat(40).parse().unwrap(), Digest::of(b"tree"));
            patches.finish(patches.begin().unwrap(), about, drift(path), None, None).unwrap()
        };
        let tree = environment.path().join("deploy").join(release.to_string());
        fs::create_dir_all(&tree).unwrap();
        let needed = keep("needed");
        patches.mark_used(&needed, release).unwrap();
        patches.mark_used(&needed, release).unwrap();
        let fill = |round: &str| (0..=MAX_AUTOMATIC).for_each(|number| drop(keep(&format!("{round}{number}"))));
        fill("first");
        assert_eq!(patches.find(&needed.id).unwrap().used_by, [release]);
        fs::remove_dir(&tree).unwrap();
        fill("second");
        assert_eq!(patches.find(&needed.id), None);
    }

    #[test]
    fn patch_with_saved_changes_is_not_saved_again() {
        let archives = tempfile::tempdir().unwrap();
        let patches = Patches::of(archives.path());
        let about = || (ReleaseId::new(Timestamp::now()), "a".repeat(40).parse().unwrap(), Digest::of(b"tree"));
        let keep = |path: &str, by: Option<&str>| {
            let new = patches.begin().unwrap();
            (&new.text).write_all(b"text").unwrap();
            patches.finish(new, about(), drift(path), None, by.map(|by| by.parse().unwrap())).unwrap()
        };
        let first = keep("a", None);
        assert_eq!(
            (first.changes.len(), patches.text(&first, 10).unwrap().as_str()),
            (1, "text"),
            "expected changes are not saved"
        );
        // The same changes have the same id. A patch that a user has saved is never pruned.
        let again = keep("a", Some("ann"));
        assert_eq!((again.id.as_str(), again.by.unwrap().as_str()), (first.id.as_str(), "ann"));
        assert_eq!(keep("a", None).by.unwrap().as_str(), "ann");
        for number in 0..MAX_AUTOMATIC + 3 {
            keep(&number.to_string(), None);
        }
        assert_eq!(patches.list().len(), MAX_AUTOMATIC + 1);
        let found = patches.find(first.id.get(..6).unwrap()).unwrap();
        assert_eq!(found.by.as_ref().unwrap().as_str(), "ann");
        patches.drop(&found).unwrap();
        assert!(patches.find(&first.id).is_none() && patches.find("").is_none());
        assert!(
            fs::read_dir(archives.path().join("patches")).unwrap().flatten().all(|entry| !entry
                .file_name()
                .to_str()
                .unwrap()
                .starts_with('.'))
        );
    }
}
