//! The server's own ssh keys: made once, kept for ever, readable by nobody else.

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

/// Why there is no key. One is never made anew over what is there: others know this server by it.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file system refused.
    #[error("cannot {doing} the {what} {}", path.display())]
    Io {
        /// The step, as a verb.
        doing: &'static str,
        /// What the key is for, such as `host key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Not a regular file of this user's.
    #[error("the {what} {} is not a regular file that belongs to the server's user (uid {uid}); set its owner right or remove it", path.display())]
    Owner {
        /// What the key is for, such as `host key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Who should own it.
        uid: u32,
    },
    /// Others may read or write it.
    #[error("the {what} {} has mode {mode:04o}, so that others may use it; run: chmod 600 {}", path.display(), path.display())]
    Mode {
        /// What the key is for, such as `host key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not an unencrypted ed25519 key in OpenSSH's format.
    #[error("the {what} {} is not an unencrypted ed25519 key in OpenSSH's format; restore it from a backup, or remove it to make a new one (others will then not know this server)", path.display())]
    Content {
        /// What the key is for, such as `host key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the decoder says, if it got that far.
        #[source]
        source: Option<russh::keys::ssh_key::Error>,
    },
    /// A new key could not be made.
    #[error("cannot make a new {what}")]
    Generate {
        /// What the key is for.
        what: &'static str,
        /// What the generator says.
        #[source]
        source: russh::keys::ssh_key::Error,
    },
}

/// A key and where it is kept.
#[derive(Clone, Copy)]
struct Place<'a> {
    what: &'static str,
    path: &'a Path,
}

/// The key at `path`, made there if there is none, and its fingerprint. `what` says what it is for, such as `host key`.
pub fn load_or_create(what: &'static str, path: &Path) -> Result<(PrivateKey, String), KeyFileError> {
    let place = Place { what, path };
    let key = match place.load()? {
        Some(key) => key,
        None => place.create()?,
    };
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    Ok((key, fingerprint))
}

impl Place<'_> {
    fn failed(self, doing: &'static str) -> impl FnOnce(io::Error) -> KeyFileError {
        move |source| KeyFileError::Io { doing, what: self.what, path: self.path.to_owned(), source }
    }

    fn load(self) -> Result<Option<PrivateKey>, KeyFileError> {
        let Place { what, path } = self;
        let mut options = fs::OpenOptions::new();
        // Not through a link, and not waiting for the other end of a pipe.
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("open")(error)),
        };
        let metadata = file.metadata().map_err(self.failed("inspect"))?;
        let uid = rustix::process::geteuid().as_raw();
        if !metadata.is_file() || metadata.uid() != uid {
            return Err(KeyFileError::Owner { what, path: path.to_owned(), uid });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyFileError::Mode { what, path: path.to_owned(), mode });
        }
        let text = io::read_to_string(io::Read::take(file, MAX_FILE)).map_err(self.failed("read"))?;
        let content = |source| KeyFileError::Content { what, path: path.to_owned(), source };
        let key = PrivateKey::from_openssh(&text).map_err(|source| content(Some(source)))?;
        if key.is_encrypted() || key.key_data().ed25519().is_none() {
            return Err(content(None));
        }
        Ok(Some(key))
    }

    fn create(self) -> Result<PrivateKey, KeyFileError> {
        let Place { what, path } = self;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut seed = [0; 32];
        let mut filled = 0;
        while let Some(rest) = seed.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let got = rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
                .map_err(|error| self.failed("find randomness for")(error.into()))?;
            filled = filled.saturating_add(got);
        }
        let generate = |source| KeyFileError::Generate { what, source };
        let key = PrivateKey::new(Ed25519Keypair::from_seed(&seed).into(), format!("larder {what}")).map_err(generate)?;
        let text = key.to_openssh(LineEnding::LF).map_err(generate)?;

        // Complete before it has its name, and never over an existing key: another start may have been faster.
        let mut draft =
            tempfile::Builder::new().prefix(".key-").tempfile_in(directory).map_err(self.failed("write a draft of"))?;
        draft.write_all(text.as_bytes()).map_err(self.failed("write"))?;
        draft.as_file().sync_all().map_err(self.failed("sync"))?;
        match draft.persist_noclobber(path) {
            Ok(_) => {}
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                return self.load()?.ok_or_else(|| self.failed("read")(io::Error::from(io::ErrorKind::NotFound)));
            }
            Err(error) => return Err(self.failed("name")(error.error)),
        }
        fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(self.failed("sync the directory of"))?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn made_once_private_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ssh_host_ed25519_key");
        let (_, first) = load_or_create("host key", &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let (_, second) = load_or_create("host key", &path).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        load_or_create("host key", &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_or_create("host key", &path).unwrap_err().to_string();
        assert!(error.contains("0640") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn links_directories_and_rubbish_are_refused_and_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real");
        load_or_create("host key", &real).unwrap();
        let link = directory.path().join("link");
        symlink(&real, &link).unwrap();
        assert!(matches!(load_or_create("host key", &link), Err(KeyFileError::Io { .. })));
        assert!(matches!(load_or_create("host key", directory.path()), Err(KeyFileError::Owner { .. })));
        fs::write(&real, "not a key").unwrap();
        assert!(matches!(load_or_create("host key", &real), Err(KeyFileError::Content { .. })));
        assert_eq!(fs::read_to_string(&real).unwrap(), "not a key");
    }
}
