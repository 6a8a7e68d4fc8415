//! The signing key of the server, and the verification of signatures.

use std::{fmt, path::Path, sync::Arc};

use data_encoding::BASE64;
use ring::{
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};

use crate::{
    host::files::{PrivateError, make_private, read_private},
    model::{PublicKey, Signature, SignatureBytes},
};

/// The maximum size of a key file, in bytes.
const MAX_FILE: u64 = 4096;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";

/// The reason why the signing key cannot be loaded or created. Without a key, the server does not start, because other environments refuse
/// unsigned releases.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// The file cannot be read or written, or other users can read the file.
    #[error("cannot use the signing key")]
    File(#[from] PrivateError),
    /// The file is not an ed25519 key in PKCS #8.
    #[error("cannot use the signing key {path}: it is not an ed25519 key in PKCS #8")]
    Content {
        /// The path of the file.
        path: String,
    },
    /// A new key cannot be created.
    #[error("cannot create a signing key: the system provides no random bytes")]
    Generate,
}

impl SigningKeyError {
    /// Returns the remedy, as an imperative.
    pub fn hint(&self) -> Option<String> {
        match self {
            SigningKeyError::File(error) => error.hint(),
            SigningKeyError::Content { .. } => Some(String::from(
                "restore the file from a backup, or move it away so that larder creates a new key (servers that trust the old key \
                 must then trust the new key)",
            )),
            SigningKeyError::Generate => None,
        }
    }
}

/// The private key that signs releases. The key never leaves the server. A clone is cheap.
#[derive(Clone)]
pub struct SigningKey {
    pair: Arc<Ed25519KeyPair>,
    public: PublicKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

impl SigningKey {
    /// Loads the key at `path`, or creates the file. An existing file is never changed.
    pub fn load_or_make(path: &Path) -> Result<SigningKey, SigningKeyError> {
        if let Some(key) = SigningKey::load(path)? {
            return Ok(key);
        }
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| SigningKeyError::Generate)?;
        // The file has the form of PEM, so that people and secret scanners recognise it.
        let mut text = format!("{BEGIN}\n");
        let mut encoded = BASE64.encode(document.as_ref());
        while encoded.len() > 64 {
            let rest = encoded.split_off(64);
            text.push_str(&encoded);
            text.push('\n');
            encoded = rest;
        }
        text.push_str(&format!("{encoded}\n{END}\n"));
        make_private(path, text.as_bytes())?;
        SigningKey::load(path)?.ok_or_else(|| SigningKeyError::Content { path: path.display().to_string() })
    }

    fn load(path: &Path) -> Result<Option<SigningKey>, SigningKeyError> {
        let Some(bytes) = read_private(path, MAX_FILE)? else { return Ok(None) };
        let key = decode(&bytes).ok_or_else(|| SigningKeyError::Content { path: path.display().to_string() })?;
        Ok(Some(key))
    }

    /// Returns a key that exists only in this process, for tests and tools.
    pub fn ephemeral() -> Result<SigningKey, SigningKeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| SigningKeyError::Generate)?;
        SigningKey::of(document.as_ref()).ok_or(SigningKeyError::Generate)
    }

    fn of(document: &[u8]) -> Option<SigningKey> {
        let pair = Arc::new(Ed25519KeyPair::from_pkcs8(document).ok()?);
        let public = PublicKey::new(pair.public_key().as_ref().try_into().ok()?);
        Some(SigningKey { pair, public })
    }

    /// Returns the public key.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs `statement`.
    pub fn sign(&self, statement: &[u8]) -> Signature {
        let mut value = [0; 64];
        for (to, from) in value.iter_mut().zip(self.pair.sign(statement).as_ref()) {
            *to = *from;
        }
        Signature { key: self.public, value: SignatureBytes(value) }
    }
}

fn decode(bytes: &[u8]) -> Option<SigningKey> {
    let text = std::str::from_utf8(bytes).ok()?;
    let inner = text.trim().strip_prefix(BEGIN)?.strip_suffix(END)?;
    let encoded: String = inner.split_ascii_whitespace().collect();
    SigningKey::of(&BASE64.decode(encoded.as_bytes()).ok()?)
}

/// Returns true if `signature` is valid for `statement`. The caller must check that the key of the signature is trusted.
pub fn verify_signature(signature: &Signature, statement: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, signature.key.as_bytes()).verify(statement, &signature.value.0).is_ok()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt},
    };

    use super::*;

    #[test]
    fn signing_key_is_created_once_with_mode_0600() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let first = SigningKey::load_or_make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(BEGIN) && text.lines().all(|line| line.len() <= 64), "{text}");
        let second = SigningKey::load_or_make(&path).unwrap();
        assert_eq!(first.public(), second.public());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
        assert!(!format!("{second:?}").contains(text.lines().nth(1).unwrap()), "the secret is not shown");
        let elsewhere = SigningKey::load_or_make(&dir.path().join("other")).unwrap();
        assert_ne!(elsewhere.public(), first.public());
    }

    #[test]
    fn exposed_or_invalid_signing_key_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        SigningKey::load_or_make(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = SigningKey::load_or_make(&path).unwrap_err();
        let hint = error.hint().unwrap();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("0640"), "{error}");
        assert!(hint.contains("chmod 600"), "{hint}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "not a key").unwrap();
        assert!(matches!(SigningKey::load_or_make(&path), Err(SigningKeyError::Content { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "not a key");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(SigningKey::load_or_make(&link), Err(SigningKeyError::File(_))));
    }

    #[test]
    fn signature_is_valid_only_for_its_bytes_and_key() {
        let (one, other) = (SigningKey::ephemeral().unwrap(), SigningKey::ephemeral().unwrap());
        let signature = one.sign(b"v42");
        assert!(verify_signature(&signature, b"v42"));
        assert!(!verify_signature(&signature, b"v43"));
        assert!(!verify_signature(&Signature { key: other.public(), ..signature }, b"v42"));
        for bit in 0..512 {
            let mut value = signature.value;
            value.0[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify_signature(&Signature { value, ..signature }, b"v42"), "bit {bit}");
        }
    }
}
