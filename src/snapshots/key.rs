//! The key of this server, with which configuration snapshots are encrypted: an age identity in a file of mode 0600.

use std::path::Path;

use age::{DecryptError, EncryptError, secrecy::ExposeSecret, x25519::Identity};

use super::error::SnapshotError;
use crate::{
    host::files::{make_private, read_private},
    model::ProjectId,
    secret::{ProjectKey, SecretError},
};

/// The maximum size of the key file in bytes. The file of `age-keygen` has less than 200 bytes.
const MAX_FILE: u64 = 4096;

/// The key of this server. `Debug` shows the public key only.
pub(super) struct SnapshotKey(Identity);

impl SnapshotKey {
    /// Reads the key, or creates the file. An existing file is never changed. The file has the format of `age-keygen`, so that the program
    /// age can open a snapshot without larder.
    pub fn load_or_make(path: &Path) -> Result<SnapshotKey, SnapshotError> {
        if let Some(key) = SnapshotKey::load(path)? {
            return Ok(key);
        }
        let identity = Identity::generate();
        let (public, secret) = (identity.to_public(), identity.to_string());
        let text = format!("# public key: {public}\n{}\n", secret.expose_secret());
        make_private(path, text.as_bytes())?;
        SnapshotKey::load(path)?.ok_or_else(|| SnapshotError::Key(path.to_owned()))
    }

    fn load(path: &Path) -> Result<Option<SnapshotKey>, SnapshotError> {
        let Some(bytes) = read_private(path, MAX_FILE)? else { return Ok(None) };
        let wrong = || SnapshotError::Key(path.to_owned());
        let text = String::from_utf8(bytes).map_err(|_| wrong())?;
        let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        let identity = line.and_then(|line| line.parse().ok()).ok_or_else(wrong)?;
        Ok(Some(SnapshotKey(identity)))
    }

    /// Derives the key with which the secrets of a project are encrypted.
    pub fn of_project(&self, project: ProjectId) -> Result<ProjectKey, SecretError> {
        ProjectKey::derive(self.0.to_string().expose_secret().as_bytes(), project)
    }

    /// Encrypts `text` for this key.
    pub fn encrypt(&self, text: &[u8]) -> Result<Vec<u8>, SnapshotError> {
        age::encrypt(&self.0.to_public(), text).map_err(|error| {
            SnapshotError::Encrypt(match error {
                EncryptError::Io(error) => error.to_string(),
                _ => String::from("the key of this server cannot encrypt"),
            })
        })
    }

    /// Decrypts a file. The error is the reason as text.
    pub fn decrypt(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        age::decrypt(&self.0, bytes).map_err(|error| reason(&error))
    }
}

/// Returns the reason why a file cannot be decrypted. The library's own texts are translated, and their files are not part of a debug build.
fn reason(error: &DecryptError) -> String {
    match error {
        DecryptError::NoMatchingKeys => String::from("the file was encrypted for another key"),
        DecryptError::DecryptionFailed | DecryptError::InvalidMac => String::from("the file was changed or damaged"),
        DecryptError::InvalidHeader | DecryptError::UnknownFormat => String::from("the file is not in the format of age"),
        DecryptError::Io(error) => format!("the file was changed or damaged ({error})"),
        _ => String::from("the file needs another kind of key"),
    }
}

impl std::fmt::Debug for SnapshotKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SnapshotKey({})", self.0.to_public())
    }
}
