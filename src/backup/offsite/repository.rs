//! Opens and creates the repository of an environment, and lists its restore points.

use std::sync::Arc;

use jiff::{Timestamp, tz::TimeZone};
use rustic_core::{
    ConfigOptions, Credentials, FileType, Id, KeyOptions, OpenStatus, Repository, RepositoryBackends, RepositoryOptions,
    RusticError, WriteBackend,
    repofile::{KeyId, SnapshotFile, StringList},
};

use super::{
    super::error::{BackupFailure, FailureKind},
    OffsitePoint, OffsiteStore,
    backend::{BackendState, RepositoryFiles, path_of},
    bucket::BucketFiles,
    directory::DirectoryFiles,
    failure::of_rustic,
    sftp::{SftpFiles, SftpServer},
    store_files::StoreFiles,
};
use crate::config::OffsiteAddress;

/// The host of all snapshots. The snapshots of a repository belong to one environment, and a project may move to another machine.
const HOST: &str = "larder";

/// The path of all snapshots.
pub(super) const TOP: &str = "/";

/// A repository that is being opened or created.
pub(super) struct OpenRepository {
    pub repository: Repository<OpenStatus>,
    pub state: Arc<BackendState>,
    pub files: Arc<dyn StoreFiles>,
    name: String,
}

impl OpenRepository {
    /// Opens the repository. `create` decides if a missing repository is created. Returns `None` if the repository is missing.
    pub(super) fn open(store: &OffsiteStore, create: bool) -> Result<Option<OpenRepository>, BackupFailure> {
        let name = format!("{}/{}", store.address, store.below);
        let opening = |e: std::io::Error| {
            let why = format!("cannot open {}: {e}", store.address);
            match why.split_once("\nhint: ") {
                Some((why, hint)) => {
                    BackupFailure { hint: Some(hint.to_owned()), ..BackupFailure::new(FailureKind::Refused, why) }
                }
                None => BackupFailure::new(FailureKind::Machine, why),
            }
        };
        let files: Arc<dyn StoreFiles> = match &store.address {
            OffsiteAddress::Directory(path) => Arc::new(DirectoryFiles::open(path, &store.below).map_err(opening)?),
            OffsiteAddress::Sftp { login, host, port, path } => {
                let server =
                    SftpServer { login, host, port: *port, key: store.key.as_deref(), known_hosts: store.known_hosts.as_deref() };
                Arc::new(SftpFiles::connect(&server, &format!("{path}/{}", store.below)).map_err(opening)?)
            }
            OffsiteAddress::Bucket { endpoint, bucket, prefix } => {
                let prefix = if prefix.is_empty() { store.below.clone() } else { format!("{prefix}/{}", store.below) };
                Arc::new(BucketFiles::open(endpoint.as_deref(), bucket, &prefix, &store.settings).map_err(opening)?)
            }
        };
        OpenRepository::of_files(files, name, store, create)
    }

    fn of_files(
        files: Arc<dyn StoreFiles>,
        name: String,
        store: &OffsiteStore,
        create: bool,
    ) -> Result<Option<OpenRepository>, BackupFailure> {
        let state = Arc::new(BackendState::default());
        let backend: Arc<dyn WriteBackend> = Arc::new(RepositoryFiles::new(files.clone(), name.clone(), state.clone()));
        let doing = format!("open the repository {name}");
        let failed = |error: Box<RusticError>| of_rustic(&doing, &error, state.failure());
        let options = RepositoryOptions::default().no_cache(true);
        let closed = Repository::new(&options, &RepositoryBackends::new(backend.clone(), None)).map_err(failed)?;
        let credentials = Credentials::password(&store.password);
        let has_config = closed.config_id().map_err(failed)?.is_some();
        let repository = match (has_config, create) {
            (true, _) => closed.open(&credentials).map_err(|error| unopened(&*files, &doing, failed(error)))?,
            (false, false) => return Ok(None),
            (false, true) => {
                for kind in [FileType::Snapshot, FileType::Index, FileType::Pack] {
                    if !backend.list_with_size(kind).map_err(failed)?.is_empty() {
                        return Err(unusable(&doing, "the file `config` is missing"));
                    }
                }
                // The key is written before the file `config`. If another server has created `config` meanwhile, the key fits no repository.
                let created = closed.init(&credentials, &KeyOptions::default(), &ConfigOptions::default());
                let own = state.own_key();
                let repository = created.map_err(|error| {
                    own.as_ref().map(|path| files.remove(path));
                    failed(error)
                })?;
                // All other keys are those of killed or slower servers. A program that opens the repository must not find them.
                for key in repository.list::<KeyId>().map_err(failed)?.collect::<Vec<_>>() {
                    let path = path_of(FileType::Key, &key);
                    if Some(&path) != own.as_ref() {
                        files.remove(&path).map_err(|e| BackupFailure::io(&format!("remove {name}/{path}"), &e))?;
                    }
                }
                repository
            }
        };
        Ok(Some(OpenRepository { repository, state, files, name }))
    }

    /// Opens an existing repository.
    pub(super) fn existing(store: &OffsiteStore) -> Result<OpenRepository, BackupFailure> {
        OpenRepository::open(store, false)?.ok_or_else(|| {
            let why = format!("there is no repository at {}/{}", store.address, store.below);
            BackupFailure::new(FailureKind::NotFound, why)
        })
    }

    /// Returns the function that converts an error of rustic.
    pub(super) fn failed(&self, doing: &str) -> impl Fn(Box<RusticError>) -> BackupFailure + use<> {
        let (state, doing) = (self.state.clone(), format!("{doing} in {}", self.name));
        move |error| of_rustic(&doing, &error, state.failure())
    }

    /// Returns the snapshots of restore points with their descriptions, newest first. A damaged snapshot is left out.
    pub(super) fn points(&self) -> Result<Vec<(OffsitePoint, SnapshotFile)>, BackupFailure> {
        let failed = self.failed("list the snapshots");
        let mut points = Vec::new();
        for read in self.repository.stream_files::<SnapshotFile>().map_err(&failed)? {
            match read {
                Ok((id, snapshot)) => {
                    let snapshot = SnapshotFile { id, ..snapshot };
                    points.extend(described(&snapshot).map(|point| (point, snapshot)));
                }
                Err(error) if self.state.failure().is_some() => return Err(failed(error)),
                Err(_) => {}
            }
        }
        points.sort_by(|(a, _), (b, _)| (b.taken, &b.id).cmp(&(a.taken, &a.id)));
        Ok(points)
    }
}

/// Returns the failure of a repository that is damaged beyond repair.
fn unusable(doing: &str, why: &str) -> BackupFailure {
    let hint = "restore the named file from a copy of the store. If there is no copy, move the directory of the repository away: larder then \
                creates a new repository, and copies the restore points of this machine again";
    BackupFailure { hint: Some(String::from(hint)), ..BackupFailure::new(FailureKind::Damaged, format!("cannot {doing}: {why}")) }
}

/// Finds the cause of a repository that cannot be opened. A damaged key looks like a wrong password.
fn unopened(files: &dyn StoreFiles, doing: &str, failure: BackupFailure) -> BackupFailure {
    let keys = files.list("keys").unwrap_or_default();
    if keys.is_empty() {
        return unusable(doing, "the directory `keys` has no key");
    }
    for (name, _) in keys {
        let path = format!("keys/{name}");
        let (Ok(id), Ok(bytes)) = (name.parse::<Id>(), files.read(&path, None)) else { continue };
        if !is_content_of(&id, &bytes) {
            return unusable(doing, &format!("the file `{path}` is damaged"));
        }
    }
    failure
}

/// Returns true if a file has the digest of its name, as each file of a repository except `config`.
pub(super) fn is_content_of(id: &Id, bytes: &[u8]) -> bool {
    let mut content = bytes;
    id.blob_matches_reader(bytes.len() as u64, &mut content)
}

/// Returns the name of a file of the repository. The `Display` of an id has only the first eight digits, which two files may share.
pub(super) fn full_name(id: &Id) -> String {
    id.to_hex().as_str().to_owned()
}

/// Returns the restore point of a snapshot; `None` if larder did not make the snapshot.
pub(super) fn described(snapshot: &SnapshotFile) -> Option<OffsitePoint> {
    let id = snapshot.tags.iter().find_map(|tag| tag.strip_prefix("point="))?.to_owned();
    Some(OffsitePoint {
        id,
        taken: snapshot.time.timestamp().as_second(),
        copied: snapshot.summary.as_ref().map_or(0, |summary| summary.backup_start.timestamp().as_second()),
        snapshot: full_name(&snapshot.id),
        added: snapshot.summary.as_ref().map_or(0, |summary| summary.data_added_packed),
        writer: snapshot.tags.iter().find_map(|tag| tag.strip_prefix("server=")).map(str::to_owned),
    })
}

/// Returns a snapshot without content.
pub(super) fn new_snapshot(id: &str, taken: i64, store: &OffsiteStore) -> Result<SnapshotFile, BackupFailure> {
    let (project, environment) = store.below.split_once('/').unwrap_or((&store.below, ""));
    let tags: StringList = format!("project={project},environment={environment},point={id},server={}", store.writer)
        .parse()
        .map_err(|_| BackupFailure::new(FailureKind::Machine, "cannot name the snapshot"))?;
    let time = Timestamp::from_second(taken).unwrap_or_default().to_zoned(TimeZone::UTC);
    Ok(SnapshotFile {
        time,
        hostname: HOST.to_owned(),
        username: HOST.to_owned(),
        program_version: format!("larder {}", env!("CARGO_PKG_VERSION")),
        tags,
        ..SnapshotFile::default()
    })
}

#[cfg(test)]
mod tests {
    use rustic_core::repofile::ConfigFile;

    use super::*;

    fn store(top: &std::path::Path) -> OffsiteStore {
        OffsiteStore {
            address: OffsiteAddress::Directory(top.display().to_string()),
            below: String::from("shop/production"),
            password: String::from("secret"),
            settings: Vec::new(),
            key: None,
            known_hosts: None,
            writer: String::from("me"),
        }
    }

    #[test]
    fn repository_of_a_newer_format_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let store = store(top.path());
        let files = Arc::new(DirectoryFiles::open(top.path().to_str().unwrap(), &store.below).unwrap());
        let backend = RepositoryFiles::new(files, String::from("here"), Arc::default());
        let options = RepositoryOptions::default().no_cache(true);
        let closed = Repository::new(&options, &RepositoryBackends::new(Arc::new(backend), None)).unwrap();
        let config = ConfigFile::new(3, Id::random().into(), 0x003d_a335_8b4d_c173);
        let credentials = Credentials::password(&store.password);
        assert!(closed.init_with_config(&credentials, &KeyOptions::default(), config).is_err());
        let before = std::fs::read_dir(top.path().join("shop/production")).unwrap().count();
        for create in [true, false] {
            let failure = OpenRepository::open(&store, create).err().unwrap();
            assert_eq!(failure.kind, FailureKind::Refused, "{failure:?}");
            assert!(failure.why.contains("newer format") && failure.hint.is_some(), "{failure:?}");
        }
        assert_eq!(std::fs::read_dir(top.path().join("shop/production")).unwrap().count(), before);
    }

    #[test]
    fn slower_server_removes_its_key_and_uses_the_repository_of_the_faster_server() {
        let top = tempfile::tempdir().unwrap();
        let store = store(top.path());
        let directory: Arc<dyn StoreFiles> = Arc::new(DirectoryFiles::open(top.path().to_str().unwrap(), &store.below).unwrap());
        /// A store whose file `config` appears only after the look for it.
        struct Late(Arc<dyn StoreFiles>, OffsiteStore);
        impl StoreFiles for Late {
            fn list(&self, directory: &str) -> std::io::Result<Vec<(String, u64)>> {
                self.0.list(directory)
            }
            fn read(&self, path: &str, part: Option<(u64, u64)>) -> std::io::Result<Vec<u8>> {
                self.0.read(path, part)
            }
            fn write(&self, path: &str, content: &[&[u8]]) -> std::io::Result<()> {
                self.0.write(path, content)?;
                if path.starts_with("keys/") {
                    OpenRepository::of_files(self.0.clone(), String::from("faster"), &self.1, true).unwrap();
                    // The faster server has removed the key. The slower server writes it again.
                    self.0.write(path, content)?;
                }
                Ok(())
            }
            fn create(&self, path: &str, content: &[&[u8]]) -> std::io::Result<()> {
                self.0.create(path, content)
            }
            fn remove(&self, path: &str) -> std::io::Result<()> {
                self.0.remove(path)
            }
        }
        let slower = Arc::new(Late(directory.clone(), store.clone()));
        let failure = OpenRepository::of_files(slower, String::from("slower"), &store, true).err().unwrap();
        assert!(failure.why.contains("exist"), "{failure:?}");
        assert_eq!(directory.list("keys").unwrap().len(), 1);
        OpenRepository::existing(&store).unwrap();
    }
}
