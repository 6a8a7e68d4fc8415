//! The files of a store as the backend of a repository.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};

use super::store_files::{StoreFiles, too_short};

/// The number of attempts of one operation. Longer outages end the worker; the server starts the worker again later.
const ATTEMPTS: u32 = 3;

/// The state that a backend shares with its user.
#[derive(Debug, Default)]
pub(super) struct BackendState {
    /// True if a file of the source or of the repository could not be read or written. No snapshot is written then: rustic leaves files
    /// that it cannot read out of a snapshot.
    is_failed: AtomicBool,
    /// The first failure.
    first: Mutex<Option<String>>,
    /// The path of the key that this process has written.
    key: Mutex<Option<String>>,
}

impl BackendState {
    /// Records a failure. The first failure is the cause of the others.
    pub(super) fn fail(&self, why: String) {
        self.is_failed.store(true, Ordering::SeqCst);
        self.first.lock().get_or_insert(why);
    }

    /// Returns the first failure.
    pub(super) fn failure(&self) -> Option<String> {
        self.first.lock().clone()
    }

    /// Returns the path of the key that this process has written.
    pub(super) fn own_key(&self) -> Option<String> {
        self.key.lock().clone()
    }
}

/// Performs an action on a store, and repeats the action after a failure that may be temporary.
pub(super) fn attempts<T>(action: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let mut attempt = 1;
    loop {
        match action() {
            Err(error) if attempt < ATTEMPTS && is_temporary(&error) => {
                std::thread::sleep(std::time::Duration::from_millis(200 << attempt));
            }
            other => return other,
        }
        attempt += 1;
    }
}

/// The backend of a repository.
pub(super) struct RepositoryFiles {
    files: Arc<dyn StoreFiles>,
    name: String,
    state: Arc<BackendState>,
}

impl RepositoryFiles {
    pub(super) fn new(files: Arc<dyn StoreFiles>, name: String, state: Arc<BackendState>) -> RepositoryFiles {
        RepositoryFiles { files, name, state }
    }

    fn done<T>(&self, doing: &str, path: &str, action: impl Fn() -> io::Result<T>) -> RusticResult<T> {
        attempts(action).map_err(|error| {
            let why = format!("cannot {doing} {}/{path}: {error}", self.name);
            self.state.fail(why.clone());
            RusticError::new(ErrorKind::Backend, why)
        })
    }
}

/// Returns true if a repetition may succeed.
fn is_temporary(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    !matches!(
        error.kind(),
        NotFound | AlreadyExists | PermissionDenied | StorageFull | QuotaExceeded | ReadOnlyFilesystem | UnexpectedEof
    )
}

/// Returns the path of a file of a repository, as restic names it.
pub(super) fn path_of(kind: FileType, id: &Id) -> String {
    let hex = id.to_hex();
    match kind {
        FileType::Config => String::from("config"),
        FileType::Pack => format!("data/{}/{}", hex.as_str().get(..2).unwrap_or_default(), hex.as_str()),
        other => format!("{}/{}", other.dirname(), hex.as_str()),
    }
}

impl ReadBackend for RepositoryFiles {
    fn location(&self) -> String {
        self.name.clone()
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let directory = match kind {
            FileType::Config => "",
            other => other.dirname(),
        };
        let list = || match kind {
            FileType::Pack => self.files.list_packs(),
            _ => self.files.list(directory),
        };
        let found = self.done("list", directory, list)?;
        let files = found.into_iter().filter_map(|(name, size)| {
            let id = match kind {
                FileType::Config => (name == "config").then(Id::default),
                _ => name.parse().ok(),
            };
            Some((id?, u32::try_from(size).unwrap_or(u32::MAX)))
        });
        Ok(files.collect())
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        let path = path_of(kind, id);
        self.done("read", &path, || self.files.read(&path, None)).map(Bytes::from)
    }

    fn read_partial(&self, kind: FileType, id: &Id, _: bool, offset: u32, length: u32) -> RusticResult<Bytes> {
        let (path, expected) = (path_of(kind, id), u64::from(length));
        let read = || {
            let bytes = self.files.read(&path, Some((offset.into(), expected)))?;
            let seen = bytes.len() as u64;
            if seen == expected { Ok(bytes) } else { Err(too_short(&path, seen, expected)) }
        };
        self.done("read", &path, read).map(Bytes::from)
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        path_of(kind, id)
    }
}

impl WriteBackend for RepositoryFiles {
    fn write_bytes(&self, kind: FileType, id: &Id, _: bool, content: BytesList) -> RusticResult<()> {
        let path = path_of(kind, id);
        if kind == FileType::Snapshot
            && let Some(why) = self.state.failure()
        {
            return Err(RusticError::new(ErrorKind::Backend, why));
        }
        let parts: Vec<&[u8]> = content.slice().iter().map(Bytes::as_ref).collect();
        if kind == FileType::Key {
            *self.state.key.lock() = Some(path.clone());
        }
        self.done("write", &path, || match kind {
            // Of two servers that create a repository at the same time, only one may succeed. The file `config` decides.
            FileType::Config => self.files.create(&path, &parts),
            _ => self.files.write(&path, &parts),
        })
    }

    fn remove(&self, kind: FileType, id: &Id, _: bool) -> RusticResult<()> {
        let path = path_of(kind, id);
        self.done("remove", &path, || self.files.remove(&path))
    }
}
