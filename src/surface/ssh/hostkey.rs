//! The server's own key: made once, kept for ever, readable by nobody else.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use russh::keys::{
    HashAlg, PrivateKey,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};

const MAX_FILE: u64 = 64 * 1024;

/// Why there is no host key; without one nothing is served, because clients would see an impostor.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// The file system refused.
    #[error("cannot {doing} the host key {}", path.display())]
    Io {
        /// The step, as a verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Not a regular file of this user's.
    #[error("the host key {} is not a regular file that belongs to the server's user (uid {uid}); set its owner right or remove it", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Who should own it.
        uid: u32,
    },
    /// Others may read or write it.
    #[error("the host key {} has mode {mode:04o}, so that others may use it; run: chmod 600 {}", path.display(), path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not an unencrypted ed25519 key in OpenSSH's format.
    #[error("the host key {} is not an unencrypted ed25519 key in OpenSSH's format; restore it from a backup, or remove it to make a new one (clients will then warn)", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What the decoder says, if it got that far.
        #[source]
        source: Option<russh::keys::ssh_key::Error>,
    },
    /// A new key could not be made.
    #[error("cannot make a new host key")]
    Generate {
        /// What the generator says.
        #[source]
        source: russh::keys::ssh_key::Error,
    },
}

/// The key at `path`, made there if there is none, and its fingerprint.
pub fn load_or_create(path: &Path) -> Result<(PrivateKey, String), HostKeyError> {
    let key = match load(path)? {
        Some(key) => key,
        None => create(path)?,
    };
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    Ok((key, fingerprint))
}

/// The public half as in a `known_hosts` file, without the host: what a remote is pinned to.
pub fn public_line(key: &PrivateKey) -> Result<String, HostKeyError> {
    let mut public = key.public_key().clone();
    public.set_comment("");
    public.to_openssh().map_err(|source| HostKeyError::Generate { source })
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostKeyError {
    move |source| HostKeyError::Io { doing, path: path.to_owned(), source }
}

fn load(path: &Path) -> Result<Option<PrivateKey>, HostKeyError> {
    let mut options = fs::OpenOptions::new();
    // Not through a link, and not waiting for the other end of a pipe.
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path)(error)),
    };
    let metadata = file.metadata().map_err(failed("inspect", path))?;
    let uid = rustix::process::geteuid().as_raw();
    if !metadata.is_file() || metadata.uid() != uid {
        return Err(HostKeyError::Owner { path: path.to_owned(), uid });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(HostKeyError::Mode { path: path.to_owned(), mode });
    }
    let text = io::read_to_string(io::Read::take(file, MAX_FILE)).map_err(failed("read", path))?;
    let key = PrivateKey::from_openssh(&text)
        .map_err(|source| HostKeyError::Content { path: path.to_owned(), source: Some(source) })?;
    if key.is_encrypted() || key.key_data().ed25519().is_none() {
        return Err(HostKeyError::Content { path: path.to_owned(), source: None });
    }
    Ok(Some(key))
}

fn create(path: &Path) -> Result<PrivateKey, HostKeyError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut seed = [0; 32];
    let mut filled = 0;
    while let Some(rest) = seed.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let got = rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| failed("find randomness for", path)(error.into()))?;
        filled = filled.saturating_add(got);
    }
    let key = PrivateKey::new(Ed25519Keypair::from_seed(&seed).into(), "larder host key")
        .map_err(|source| HostKeyError::Generate { source })?;
    let text = key.to_openssh(LineEnding::LF).map_err(|source| HostKeyError::Generate { source })?;

    // Complete before it has its name, and never over an existing key: another start may have been faster.
    let mut draft =
        tempfile::Builder::new().prefix(".host-key-").tempfile_in(directory).map_err(failed("write a draft of", path))?;
    draft.write_all(text.as_bytes()).map_err(failed("write", path))?;
    draft.as_file().sync_all().map_err(failed("sync", path))?;
    match draft.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            return load(path)?.ok_or_else(|| failed("read", path)(io::Error::from(io::ErrorKind::NotFound)));
        }
        Err(error) => return Err(failed("name", path)(error.error)),
    }
    fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("sync the directory of", path))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn made_once_private_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ssh_host_ed25519_key");
        let (_, first) = load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let (_, second) = load_or_create(&path).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_or_create(&path).unwrap_err().to_string();
        assert!(error.contains("0640") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn links_directories_and_rubbish_are_refused_and_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real");
        load_or_create(&real).unwrap();
        let link = directory.path().join("link");
        symlink(&real, &link).unwrap();
        assert!(matches!(load_or_create(&link), Err(HostKeyError::Io { .. })));
        assert!(matches!(load_or_create(directory.path()), Err(HostKeyError::Owner { .. })));
        fs::write(&real, "not a key").unwrap();
        assert!(matches!(load_or_create(&real), Err(HostKeyError::Content { .. })));
        assert_eq!(fs::read_to_string(&real).unwrap(), "not a key");
    }
}
