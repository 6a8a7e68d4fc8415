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
    sftp::SftpFiles,
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
        let opening = |e: std::io::Error| BackupFailure::new(FailureKind::Machine, format!("cannot open {}: {e}", store.address));
        let files: Arc<dyn StoreFiles> = match &store.address {
            OffsiteAddress::Directory(path) => Arc::new(DirectoryFiles::open(path, &store.below).map_err(opening)?),
            OffsiteAddress::Sftp { login, host, port, path } => {
                let key = store.key_file.as_deref();
                Arc::new(SftpFiles::connect(login, host, *port, &format!("{path}/{}", store.below), key).map_err(opening)?)
            }
            OffsiteAddress::Bucket { endpoint, bucket, prefix } => {
                let prefix = if prefix.is_empty() { store.below.clone() } else { format!("{prefix}/{}", store.below) };
                Arc::new(BucketFiles::open(endpoint.as_deref(), bucket, &prefix, &store.settings).map_err(opening)?)
            }
        };
        let state = Arc::new(BackendState::default());
        let backend: Arc<dyn WriteBackend> = Arc::new(RepositoryFiles::new(files.clone(), name.clone(), state.clone()));
        let failed = |error: Box<RusticError>| of_rustic("open the repository", &error, state.failure());
        let options = RepositoryOptions::default().no_cache(true);
        let closed = Repository::new(&options, &RepositoryBackends::new(backend.clone(), None)).map_err(failed)?;
        let credentials = Credentials::password(&store.password);
        let has_config = closed.config_id().map_err(failed)?.is_some();
        let repository = match (has_config, create) {
            (true, _) => closed.open(&credentials).map_err(failed)?,
            (false, false) => return Ok(None),
            (false, true) => {
                for kind in [FileType::Snapshot, FileType::Index, FileType::Pack] {
                    if !backend.list_with_size(kind).map_err(failed)?.is_empty() {
                        let why =
                            format!("cannot use {name}: its file `config` is missing, and it has other files of a repository");
                        return Err(BackupFailure::new(FailureKind::Damaged, why));
                    }
                }
                // A kill before the file `config` was written leaves a key that fits no repository.
                for key in closed.list::<KeyId>().map_err(failed)?.collect::<Vec<_>>() {
                    let path = path_of(FileType::Key, &key);
                    files.remove(&path).map_err(|e| BackupFailure::io(&format!("remove {name}/{path}"), &e))?;
                }
                closed.init(&credentials, &KeyOptions::default(), &ConfigOptions::default()).map_err(failed)?
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

    /// Returns the snapshots of restore points with their descriptions, newest first.
    pub(super) fn points(&self) -> Result<Vec<(OffsitePoint, SnapshotFile)>, BackupFailure> {
        let snapshots = self.repository.get_all_snapshots().map_err(self.failed("list the snapshots"))?;
        let mut points: Vec<_> = snapshots.into_iter().filter_map(|snapshot| Some((described(&snapshot)?, snapshot))).collect();
        points.sort_by(|(a, _), (b, _)| (b.taken, &b.id).cmp(&(a.taken, &a.id)));
        Ok(points)
    }
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
        snapshot: full_name(&snapshot.id),
        added: snapshot.summary.as_ref().map_or(0, |summary| summary.data_added_packed),
    })
}

/// Returns a snapshot without content.
pub(super) fn new_snapshot(id: &str, taken: i64, below: &str) -> Result<SnapshotFile, BackupFailure> {
    let (project, environment) = below.split_once('/').unwrap_or((below, ""));
    let tags: StringList = format!("project={project},environment={environment},point={id}")
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
