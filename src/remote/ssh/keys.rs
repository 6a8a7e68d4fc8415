//! Loads and creates the ssh key files of this server, and formats public keys. A key file is created once, and only the server's user may
//! read the file.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use russh::keys::{
    HashAlg, PrivateKey, PublicKey,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};

use crate::host::{
    files::{FileError, PrivateError, make_private, read_private},
    random,
};

/// The maximum size of a key file, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// The reason why a key cannot be loaded or created. An existing file is never replaced, because its key identifies this server to clients
/// and other servers.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read or written, or is not private to the server's user.
    #[error("cannot use the {what}")]
    File {
        /// The purpose of the key, such as `host key`.
        what: &'static str,
        /// The cause, with the path of the file.
        #[source]
        source: PrivateError,
    },
    /// The file does not contain an unencrypted ed25519 key in OpenSSH's format.
    #[error("cannot use the {what} {}: it is not an unencrypted ed25519 key in OpenSSH's format", path.display())]
    Content {
        /// The purpose of the key, such as `host key`.
        what: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The decoder's error, if decoding failed.
        #[source]
        source: Option<russh::keys::ssh_key::Error>,
    },
    /// The system provides no random bytes.
    #[error("cannot get random bytes for a new {what}")]
    Random {
        /// The purpose of the key.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A new key could not be generated.
    #[error("cannot generate a new {what}")]
    Generate {
        /// The purpose of the key.
        what: &'static str,
        /// The generator's error.
        #[source]
        source: russh::keys::ssh_key::Error,
    },
}

impl KeyFileError {
    /// Returns the remedy, as an imperative.
    pub fn hint(&self) -> Option<String> {
        match self {
            KeyFileError::File { source, .. } => source.hint(),
            KeyFileError::Content { .. } => Some(String::from(
                "restore the file from a backup, or move it away so that larder creates a new key (clients and servers that trust \
                 the old key must then trust the new key)",
            )),
            KeyFileError::Random { .. } | KeyFileError::Generate { .. } => None,
        }
    }
}

/// A key file and its purpose.
#[derive(Clone, Copy)]
struct KeyFile<'a> {
    what: &'static str,
    path: &'a Path,
}

/// Loads the key at `path`, or creates the file with a new key. Returns the key and its fingerprint. `what` is the purpose of the key, such
/// as `host key`.
pub fn load_or_create(what: &'static str, path: &Path) -> Result<(PrivateKey, String), KeyFileError> {
    let key_file = KeyFile { what, path };
    let key = match key_file.load()? {
        Some(key) => key,
        None => key_file.create()?,
    };
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    Ok((key, fingerprint))
}

impl KeyFile<'_> {
    fn load(self) -> Result<Option<PrivateKey>, KeyFileError> {
        let KeyFile { what, path } = self;
        let Some(bytes) = read_private(path, MAX_FILE).map_err(|source| KeyFileError::File { what, source })? else {
            return Ok(None);
        };
        let content = |source| KeyFileError::Content { what, path: path.to_owned(), source };
        let key = PrivateKey::from_openssh(&bytes).map_err(|source| content(Some(source)))?;
        if key.is_encrypted() || key.key_data().ed25519().is_none() {
            return Err(content(None));
        }
        Ok(Some(key))
    }

    fn create(self) -> Result<PrivateKey, KeyFileError> {
        let KeyFile { what, path } = self;
        let seed = random().map_err(|source| KeyFileError::Random { what, source })?;
        let generate = |source| KeyFileError::Generate { what, source };
        let key = PrivateKey::new(Ed25519Keypair::from_seed(&seed).into(), format!("larder {what}")).map_err(generate)?;
        let text = key.to_openssh(LineEnding::LF).map_err(generate)?;
        match make_private(path, text.as_bytes()).map_err(|source| KeyFileError::File { what, source })? {
            true => Ok(key),
            // Another process has created the file in the meantime.
            false => self.load()?.ok_or_else(|| {
                let gone = FileError::io("read", path, io::Error::from(io::ErrorKind::NotFound));
                KeyFileError::File { what, source: gone.into() }
            }),
        }
    }
}

/// The key that identifies this server to other servers.
#[derive(Clone)]
pub struct PullKey(pub(super) Arc<PrivateKey>);

impl std::fmt::Debug for PullKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PullKey({})", self.fingerprint())
    }
}

impl PullKey {
    /// Loads the key at `path`, or creates the file with a new key.
    pub fn load_or_make(path: &Path) -> Result<PullKey, KeyFileError> {
        let (key, _) = load_or_create("pull key", path)?;
        Ok(PullKey(Arc::new(key)))
    }

    /// Returns the public key as one line, for `larder user add --key` on a remote server.
    pub fn line(&self) -> String {
        line_of(self.0.public_key())
    }

    /// Returns the fingerprint `SHA256:...`, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }
}

/// Formats a public key as one line, without a comment.
pub fn line_of(key: &PublicKey) -> String {
    PublicKey::new(key.key_data().clone(), "").to_openssh().map(|line| line.trim_end().to_owned()).unwrap_or_default()
}

/// Parses a host key such as `ssh-ed25519 AAAA...` and returns its normal form.
pub fn host_key(text: &str) -> Result<String, String> {
    let key = PublicKey::from_openssh(text.trim())
        .map_err(|error| format!("cannot read the host key {:?}: {error}", text.chars().take(80).collect::<String>()))?;
    Ok(line_of(&key))
}

/// Returns the fingerprint of the host key in `line`. If `line` is not a key, `line` is returned unchanged.
pub fn fingerprint(line: &str) -> String {
    PublicKey::from_openssh(line).map_or_else(|_| line.to_owned(), |key| key.fingerprint(HashAlg::Sha256).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        error::Error as _,
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt, symlink},
    };

    #[test]
    fn key_is_created_once_with_mode_0600() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ssh_host_ed25519_key");
        let (_, first) = load_or_create("host key", &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let (_, second) = load_or_create("host key", &path).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft must be left");
    }

    #[test]
    fn key_readable_by_others_is_rejected_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        load_or_create("host key", &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_or_create("host key", &path).unwrap_err();
        let (cause, hint) = (error.source().unwrap().to_string(), error.hint().unwrap());
        assert!(cause.contains("0640") && hint.contains("chmod 600"), "{cause}; {hint}");
    }

    #[test]
    fn symlink_directory_and_invalid_content_are_rejected_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real");
        load_or_create("host key", &real).unwrap();
        let link = directory.path().join("link");
        symlink(&real, &link).unwrap();
        assert!(matches!(load_or_create("host key", &link), Err(KeyFileError::File { source: PrivateError::File(_), .. })));
        assert!(matches!(
            load_or_create("host key", directory.path()),
            Err(KeyFileError::File { source: PrivateError::Owner { .. }, .. })
        ));
        fs::write(&real, "not a key").unwrap();
        assert!(matches!(load_or_create("host key", &real), Err(KeyFileError::Content { .. })));
        assert_eq!(fs::read_to_string(&real).unwrap(), "not a key");
    }

    #[test]
    fn pull_key_is_created_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let key = PullKey::load_or_make(&path).unwrap();
        assert_eq!(PullKey::load_or_make(&path).unwrap().line(), key.line());
        assert!(key.line().starts_with("ssh-ed25519 AAAA") && !key.line().contains("larder"), "{}", key.line());
        assert_eq!(host_key(&format!("{} comment@host\n", key.line())).unwrap(), key.line());
        assert_eq!(fingerprint(&key.line()), key.fingerprint());
        assert!(host_key("SHA256:abc").is_err());
    }
}
