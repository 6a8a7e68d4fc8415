//! Other larder servers: a client that runs words of the closed grammar there, with a key of this server's own.

mod client;
mod keyfile;

use std::{path::Path, sync::Arc};

use russh::keys::{HashAlg, PrivateKey, PublicKey};

pub use client::{Exec, Output, Server};
pub use keyfile::{KeyFileError, load_or_create};

/// The key by which other servers know this one.
#[derive(Clone)]
pub struct PullKey(Arc<PrivateKey>);

impl std::fmt::Debug for PullKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PullKey({})", self.fingerprint())
    }
}

impl PullKey {
    /// The key at `path`, made there if there is none.
    pub fn load_or_make(path: &Path) -> Result<PullKey, KeyFileError> {
        let (key, _) = load_or_create("pull key", path)?;
        Ok(PullKey(Arc::new(key)))
    }

    /// The public half as one line, for `larder user add --key` on the other server.
    pub fn line(&self) -> String {
        line_of(self.0.public_key())
    }

    /// `SHA256:...`, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }
}

/// A public key as one line, without a comment.
pub fn line_of(key: &PublicKey) -> String {
    PublicKey::new(key.key_data().clone(), "").to_openssh().map(|line| line.trim_end().to_owned()).unwrap_or_default()
}

/// A host key as people give it, `ssh-ed25519 AAAA...`, in its one spelling.
pub fn host_key(text: &str) -> Result<String, String> {
    let key = PublicKey::from_openssh(text.trim())
        .map_err(|error| format!("{:?} is not a host key ({error})", text.chars().take(80).collect::<String>()))?;
    Ok(line_of(&key))
}

/// The fingerprint of a host key line; the line itself where it is not one.
pub fn fingerprint(line: &str) -> String {
    PublicKey::from_openssh(line).map_or_else(|_| line.to_owned(), |key| key.fingerprint(HashAlg::Sha256).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_key_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let key = PullKey::load_or_make(&path).unwrap();
        assert_eq!(PullKey::load_or_make(&path).unwrap().line(), key.line());
        assert!(key.line().starts_with("ssh-ed25519 AAAA") && !key.line().contains("larder"), "{}", key.line());
        assert_eq!(host_key(&format!("{} somebody@host\n", key.line())).unwrap(), key.line());
        assert_eq!(fingerprint(&key.line()), key.fingerprint());
        assert!(host_key("SHA256:abc").is_err());
    }
}
