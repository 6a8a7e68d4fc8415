//! The snapshots of environments on the disk, and the record of the snapshot that waits for the next deployment.

use std::{collections::BTreeSet, fs, io, path::Path};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{
    error::SnapshotError,
    key::SnapshotKey,
    snapshot::{PillarContent, Snapshot},
};
use crate::{
    host::files::{self, FileError, make_private, read_private},
    model::{ConfigChange, ConfigVariables, Digest, ProjectId, Redactor, SnapshotNumber, SnapshotRef, UserName},
    secret::{ProjectKey, SecretError},
};

/// The maximum size of an encrypted file in bytes: the largest configuration in base64, with names twice, and the largest pillar, whose short
/// values have their lines and kinds.
const MAX_FILE: u64 = 64 << 20;

/// The number of snapshots whose values [`SnapshotStore::redactor`] removes.
const MAX_REDACTED: usize = 20;

/// The extension of snapshot files.
const EXTENSION: &str = "age";

/// The file with the number of the snapshot that waits for the next deployment.
const STAGED: &str = "staged.json";

/// The configuration snapshots of this server. Each method takes the directory `config/` of an environment.
#[derive(Debug)]
pub struct SnapshotStore {
    key: SnapshotKey,
    /// The lock of the creation of a snapshot, so that a number is used once.
    creating: Mutex<()>,
}

/// A snapshot that is about to be created.
#[derive(Debug, Clone)]
pub struct SnapshotDraft {
    /// The author of the change.
    pub by: UserName,
    /// The snapshot that is changed, with its variables; `None` if there is no configuration yet.
    pub base: Option<(SnapshotRef, ConfigVariables)>,
    /// The change.
    pub change: ConfigChange,
    /// The values of the pillar.
    pub pillar: Option<PillarContent>,
}

/// A snapshot that the next deployment uses, if the live configuration is still the one on which the snapshot is based.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedSnapshot {
    /// The snapshot.
    pub snapshot: SnapshotRef,
    /// The live configuration when the snapshot was created; `None` without a live configuration.
    pub live: Option<SnapshotNumber>,
}

impl SnapshotStore {
    /// Opens the store with the key at `key`, which is created if the file does not exist.
    pub fn open(key: &Path) -> Result<SnapshotStore, SnapshotError> {
        Ok(SnapshotStore { key: SnapshotKey::load_or_make(key)?, creating: Mutex::default() })
    }

    /// Returns the key with which the secrets of a project are encrypted. The key depends on the key of this server and on the project only.
    pub fn project_key(&self, project: ProjectId) -> Result<ProjectKey, SecretError> {
        self.key.of_project(project)
    }

    /// Returns the numbers of the snapshots in a directory, in rising order. If the directory does not exist, there are none.
    pub fn numbers(&self, directory: &Path) -> Result<Vec<SnapshotNumber>, SnapshotError> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| FileError::io("list", directory, error))?,
        };
        let number = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_suffix(EXTENSION)?.strip_suffix('.')?;
            let parsed = number.parse().ok().map(SnapshotNumber)?;
            // A name such as `07.age` is not a snapshot.
            (parsed.to_string() == number).then_some(parsed)
        };
        let mut numbers: Vec<_> = entries.flatten().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Reads a snapshot. The digest must be the recorded one.
    pub fn read(&self, directory: &Path, wanted: &SnapshotRef) -> Result<Snapshot, SnapshotError> {
        let (found, snapshot) = self.find(directory, wanted.number)?;
        match found.digest == wanted.digest {
            true => Ok(snapshot),
            false => Err(SnapshotError::Changed { number: wanted.number }),
        }
    }

    /// Reads the snapshot with a number.
    pub fn find(&self, directory: &Path, number: SnapshotNumber) -> Result<(SnapshotRef, Snapshot), SnapshotError> {
        let bytes = self.bytes(directory, number)?;
        let digest = Digest::of(&bytes);
        let text = self.key.decrypt(&bytes).map_err(|why| SnapshotError::Decrypt { number, why })?;
        Ok((SnapshotRef { number, digest }, Snapshot::from_text(number, &text)?))
    }

    /// Returns the encrypted bytes of a snapshot.
    pub fn bytes(&self, directory: &Path, number: SnapshotNumber) -> Result<Vec<u8>, SnapshotError> {
        let found = read_private(&path(directory, number), MAX_FILE)?;
        found.ok_or(SnapshotError::Missing { number })
    }

    /// Creates a snapshot with the next number. Returns after the file is on the disk.
    pub fn create(&self, directory: &Path, draft: SnapshotDraft) -> Result<SnapshotRef, SnapshotError> {
        let SnapshotDraft { by, base, change, pillar } = draft;
        let (based_on, before) = match base {
            Some((reference, variables)) => (Some(reference.number), variables),
            None => (None, ConfigVariables::default()),
        };
        let _creating = self.creating.lock();
        ensure_directory(directory)?;
        loop {
            let last = self.numbers(directory)?.last().map_or(0, |number| number.0);
            let number = SnapshotNumber(last.saturating_add(1));
            let snapshot = Snapshot {
                number,
                at: Timestamp::now(),
                by: by.clone(),
                based_on,
                set: change.set.iter().map(|(name, _)| name.to_owned()).collect(),
                unset: change.unset.iter().filter(|name| before.get(name).is_some()).cloned().collect(),
                variables: change.applied(&before),
                pillar: pillar.clone(),
            };
            snapshot.check()?;
            let bytes = self.key.encrypt(&snapshot.to_text()?)?;
            if make_private(&path(directory, number), &bytes)? {
                return Ok(SnapshotRef { number, digest: Digest::of(&bytes) });
            }
        }
    }

    /// Returns a redactor for the values of the newest snapshots. Snapshots that cannot be read are left out.
    pub fn redactor(&self, directory: &Path) -> Redactor {
        let numbers = self.numbers(directory).unwrap_or_default();
        let newest = numbers.into_iter().rev().take(MAX_REDACTED).filter_map(|number| self.find(directory, number).ok());
        let newest: Vec<_> = newest.map(|(_, snapshot)| snapshot.all_values()).collect();
        Redactor::of_all(&newest)
    }

    /// Removes the snapshots before `oldest`, except those in `used` and the staged snapshot. Returns the number of removed snapshots. Numbers are not used
    /// again, because the snapshot `oldest` stays.
    pub fn prune(
        &self,
        directory: &Path,
        oldest: SnapshotNumber,
        used: &BTreeSet<SnapshotNumber>,
    ) -> Result<usize, SnapshotError> {
        let staged = self.staged(directory)?.map(|staged| staged.snapshot.number);
        let _creating = self.creating.lock();
        let is_kept = |number: &SnapshotNumber| *number >= oldest || used.contains(number) || Some(*number) == staged;
        let doomed = self.numbers(directory)?.into_iter().filter(|number| !is_kept(number));
        let mut removed = 0;
        for number in doomed {
            files::remove_if_present(&path(directory, number))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Writes a snapshot of a restore point, if the directory no longer has the snapshot. The bytes must have the recorded digest.
    pub fn put_back(&self, directory: &Path, wanted: &SnapshotRef, bytes: &[u8]) -> Result<(), SnapshotError> {
        if Digest::of(bytes) != wanted.digest {
            return Err(SnapshotError::Changed { number: wanted.number });
        }
        let _creating = self.creating.lock();
        ensure_directory(directory)?;
        make_private(&path(directory, wanted.number), bytes)?;
        Ok(())
    }

    /// Returns the snapshot that the next deployment uses if it changes nothing: the staged snapshot, or else the live one.
    pub fn head(&self, directory: &Path, live: Option<&SnapshotRef>) -> Result<Option<SnapshotRef>, SnapshotError> {
        let staged = self.staged(directory)?.filter(|staged| staged.live == live.map(|live| live.number));
        Ok(staged.map(|staged| staged.snapshot).or(live.copied()))
    }

    /// Returns the record of the staged snapshot.
    pub fn staged(&self, directory: &Path) -> Result<Option<StagedSnapshot>, SnapshotError> {
        let path = directory.join(STAGED);
        let Some(bytes) = read_private(&path, MAX_FILE)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|error| SnapshotError::Staged { path, why: error.to_string() })
    }

    /// Removes the record of a staged snapshot that is not based on the live configuration: a deployment has used the snapshot, or another
    /// configuration has become live.
    pub fn settle(&self, directory: &Path, live: Option<&SnapshotRef>) -> Result<(), SnapshotError> {
        match self.staged(directory)? {
            Some(staged) if staged.live != live.map(|live| live.number) => Ok(files::remove_if_present(&directory.join(STAGED))?),
            _ => Ok(()),
        }
    }

    /// Records the snapshot that the next deployment uses. Returns after the record is on the disk.
    pub fn stage(&self, directory: &Path, staged: &StagedSnapshot) -> Result<(), SnapshotError> {
        let path = directory.join(STAGED);
        let bytes =
            serde_json::to_vec(staged).map_err(|error| SnapshotError::Staged { path: path.clone(), why: error.to_string() })?;
        Ok(files::write_atomic(&path, &bytes, 0o600)?)
    }
}

fn path(directory: &Path, number: SnapshotNumber) -> std::path::PathBuf {
    directory.join(format!("{number}.{EXTENSION}"))
}

/// Creates the directory with mode 0700, and makes its name durable.
fn ensure_directory(directory: &Path) -> Result<(), SnapshotError> {
    use std::os::unix::fs::DirBuilderExt as _;
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => Ok(files::sync_dir(directory.parent().unwrap_or(directory))?),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(FileError::io("create", directory, error).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    fn change(name: &str, value: &str) -> ConfigChange {
        ConfigChange { set: [(name.to_owned(), value.as_bytes().to_vec())].into_iter().collect(), ..ConfigChange::default() }
    }

    fn draft(base: Option<(SnapshotRef, ConfigVariables)>, change: ConfigChange) -> SnapshotDraft {
        SnapshotDraft { by: "ann".parse().unwrap(), base, change, pillar: None }
    }

    #[test]
    fn snapshots_are_numbered_private_and_never_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let (key, directory) = (temp.path().join("key"), temp.path().join("config"));
        let store = SnapshotStore::open(&key).unwrap();
        assert_eq!(store.numbers(&directory).unwrap(), []);
        let first = store.create(&directory, draft(None, change("TOKEN", "hunter2"))).unwrap();
        let before = store.read(&directory, &first).unwrap();
        assert_eq!(
            (first.number, before.based_on, before.set.as_slice()),
            (SnapshotNumber(1), None, &[String::from("TOKEN")][..])
        );
        let second = store.create(&directory, draft(Some((first, before.variables)), change("B", "2"))).unwrap();
        let after = store.read(&directory, &second).unwrap();
        assert_eq!((after.number, after.based_on, after.variables.len()), (SnapshotNumber(2), Some(SnapshotNumber(1)), 2));
        assert_eq!(after.variables.get("TOKEN"), Some(&b"hunter2"[..]));
        for path in [directory.join("1.age"), directory.join("2.age"), key.clone()] {
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!(metadata.mode() & 0o777, 0o600, "{}", path.display());
            let bytes = fs::read(&path).unwrap();
            assert!(!bytes.windows(7).any(|window| window == b"hunter2" || window == b"aHVudGV"), "{}", path.display());
        }
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        // The next server has the same key.
        assert_eq!(SnapshotStore::open(&key).unwrap().read(&directory, &first).unwrap().number, first.number);
    }

    #[test]
    fn changed_missing_and_foreign_snapshots_are_refused_with_the_remedy() {
        let temp = tempfile::tempdir().unwrap();
        let directory = temp.path().join("config");
        let store = SnapshotStore::open(&temp.path().join("key")).unwrap();
        let first = store.create(&directory, draft(None, change("A", "1"))).unwrap();
        let second = store.create(&directory, draft(None, change("A", "2"))).unwrap();
        let bytes = store.bytes(&directory, second.number).unwrap();
        fs::remove_file(directory.join("2.age")).unwrap();
        let missing = store.read(&directory, &second).unwrap_err();
        assert_eq!(missing.to_string(), "there is no configuration 2");
        store.put_back(&directory, &second, &bytes).unwrap();
        assert_eq!(store.read(&directory, &second).unwrap().variables.get("A"), Some(&b"2"[..]));
        assert!(store.put_back(&directory, &first, &bytes).is_err());
        // A file that was replaced by another snapshot of the same server.
        fs::remove_file(directory.join("1.age")).unwrap();
        fs::rename(directory.join("2.age"), directory.join("1.age")).unwrap();
        let error = store.read(&directory, &first).unwrap_err();
        assert!(error.to_string().contains("contains configuration 2") && error.hint().is_some(), "{error}");
        let other = SnapshotStore::open(&temp.path().join("other")).unwrap();
        let error = other.read(&directory, &first).unwrap_err();
        assert!(error.to_string().starts_with("cannot decrypt configuration 1"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("state/config_age_key")));
        fs::set_permissions(temp.path().join("key"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(SnapshotStore::open(&temp.path().join("key")).unwrap_err().hint().is_some_and(|hint| hint.contains("chmod 600")));
        fs::write(temp.path().join("other"), "nonsense\n").unwrap();
        assert!(SnapshotStore::open(&temp.path().join("other")).is_err());
    }

    #[test]
    fn old_snapshots_that_nothing_uses_are_removed() {
        let temp = tempfile::tempdir().unwrap();
        let directory = temp.path().join("config");
        let store = SnapshotStore::open(&temp.path().join("key")).unwrap();
        let all: Vec<_> =
            (1..=6).map(|value: u8| store.create(&directory, draft(None, change("A", &value.to_string()))).unwrap()).collect();
        store.stage(&directory, &StagedSnapshot { snapshot: all[2], live: Some(all[5].number) }).unwrap();
        let used = BTreeSet::from([SnapshotNumber(1)]);
        assert_eq!(store.prune(&directory, SnapshotNumber(5), &used).unwrap(), 2);
        let left = store.numbers(&directory).unwrap();
        assert_eq!(left.iter().map(|number| number.0).collect::<Vec<_>>(), [1, 3, 5, 6]);
        assert_eq!(store.prune(&directory, SnapshotNumber(5), &used).unwrap(), 0);
        assert_eq!(store.create(&directory, draft(None, change("A", "7"))).unwrap().number, SnapshotNumber(7));
    }

    #[test]
    fn staged_snapshot_counts_while_the_live_configuration_is_unchanged() {
        let temp = tempfile::tempdir().unwrap();
        let directory = temp.path().join("config");
        let store = SnapshotStore::open(&temp.path().join("key")).unwrap();
        let [live, staged, other] =
            ["1", "2", "3"].map(|value| store.create(&directory, draft(None, change("A", value))).unwrap());
        assert_eq!(store.head(&directory, None).unwrap(), None);
        assert_eq!(store.head(&directory, Some(&live)).unwrap(), Some(live));
        store.stage(&directory, &StagedSnapshot { snapshot: staged, live: Some(live.number) }).unwrap();
        assert_eq!(store.head(&directory, Some(&live)).unwrap(), Some(staged));
        // After a deployment with the staged snapshot, and after a rollback to another configuration, the live one counts.
        assert_eq!(store.head(&directory, Some(&staged)).unwrap(), Some(staged));
        assert_eq!(store.head(&directory, Some(&other)).unwrap(), Some(other));
        assert_eq!(store.head(&directory, None).unwrap(), None);
        store.settle(&directory, Some(&live)).unwrap();
        assert!(store.staged(&directory).unwrap().is_some());
        store.settle(&directory, Some(&other)).unwrap();
        assert_eq!(store.head(&directory, Some(&live)).unwrap(), Some(live));
        fs::write(directory.join(STAGED), "{").unwrap();
        assert!(store.head(&directory, Some(&live)).is_err());
    }
}
