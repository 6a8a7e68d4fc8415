//! Files that contain a secret of the server, such as a private key. Each secret file is created once, is readable only by the server's
//! user, and is never replaced.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::{FileError, parent, sync_dir};

/// The reason why a secret could not be read or created.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// The file system refused an operation.
    #[error(transparent)]
    File(#[from] FileError),
    /// The secret is not a regular file, or does not belong to the server's user.
    #[error("cannot use {}: it has an unexpected type or owner (expected a regular file of uid {uid}, the server's user)", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// The expected owner.
        uid: u32,
    },
    /// The group or other users have a permission for the file.
    #[error("cannot use {}: it has mode {mode:04o} (expected 0600)", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
}

impl PrivateError {
    /// Returns the remedy, as an imperative.
    pub fn hint(&self) -> Option<String> {
        match self {
            PrivateError::File(_) => None,
            PrivateError::Owner { .. } => Some(String::from("correct the owner, or restore the file from a backup")),
            PrivateError::Mode { path, .. } => Some(format!("run: chmod 600 {}", path.display())),
        }
    }
}

/// Reads a secret of at most `max` bytes. Returns `None` if the file does not exist. Fails if the group or other users have a permission
/// for the file, because the content may then no longer be a secret.
pub fn read_private(path: &Path, max: u64) -> Result<Option<Vec<u8>>, PrivateError> {
    // With these flags, `open` does not follow a symlink and does not block on a FIFO.
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io("open", path, error).into()),
    };
    let metadata = file.metadata().map_err(|error| FileError::io("read the metadata of", path, error))?;
    let uid = rustix::process::geteuid().as_raw();
    if !metadata.is_file() || metadata.uid() != uid {
        return Err(PrivateError::Owner { path: path.to_owned(), uid });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PrivateError::Mode { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| FileError::io("read", path, error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max {
        return Err(FileError::TooLarge { path: path.to_owned(), limit: max }.into());
    }
    Ok(Some(bytes))
}

/// Creates a durable file with a new secret. Returns `false` and changes nothing if the file exists: another process may have created the
/// file since the caller looked for it.
pub fn make_private(path: &Path, bytes: &[u8]) -> Result<bool, PrivateError> {
    // The temporary file gets its final name only after the content is complete. Temporary files have mode 0600.
    let mut draft = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(parent(path))
        .map_err(|error| FileError::io("create a temporary file beside", path, error))?;
    draft.write_all(bytes).map_err(|error| FileError::io("write", path, error))?;
    draft.as_file().sync_all().map_err(|error| FileError::io("sync", path, error))?;
    match draft.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(FileError::io("create", path, error.error).into()),
    }
    sync_dir(parent(path))?;
    Ok(true)
}
