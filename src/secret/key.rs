//! The key of a project: an age identity that exists in the memory of the server only.

use age::{DecryptError, x25519::Identity};
use bech32::{ToBase32 as _, Variant};
use zeroize::Zeroizing;

use super::error::SecretError;
use crate::model::ProjectId;

/// The context of the derivation (BLAKE3, section 2.3). A change of this text makes all secrets unreadable.
const CONTEXT: &str = "larder 2026-12-01 age identity of a project";

/// The prefix of an age identity in text form (age-keygen(1)).
const PREFIX: &str = "age-secret-key-";

/// The key with which the server reads the secrets of one project. `Debug` shows the public key only.
///
/// Each project has a key of its own. With one key for the whole server, a user who may push one pillar could copy the encrypted values of
/// another project there and have the server decrypt them.
#[derive(Clone)]
pub struct ProjectKey(Identity);

impl ProjectKey {
    /// Derives the key of a project from the secret key of this server.
    pub fn derive(server: &[u8], project: ProjectId) -> Result<ProjectKey, SecretError> {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(server);
        hasher.update(&project.0.to_le_bytes());
        let mut secret = Zeroizing::new([0_u8; 32]);
        hasher.finalize_xof().fill(secret.as_mut());
        let text = bech32::encode(PREFIX, secret.to_base32(), Variant::Bech32);
        let text = Zeroizing::new(text.map_err(|error| SecretError::Key(error.to_string()))?.to_uppercase());
        text.parse().map(ProjectKey).map_err(|error: &str| SecretError::Key(error.to_owned()))
    }

    /// Returns the public key, as `age1...`.
    pub fn recipient(&self) -> String {
        self.0.to_public().to_string()
    }

    pub(super) fn public(&self) -> age::x25519::Recipient {
        self.0.to_public()
    }

    /// Decrypts a file in the format of age, without or with the armor.
    pub fn decrypt(&self, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let mut plain = Zeroizing::new(Vec::new());
        let armor = age::armor::ArmoredReader::new(bytes);
        let decryptor = age::Decryptor::new_buffered(armor).map_err(|error| self.reason(&error))?;
        let reader = decryptor.decrypt(std::iter::once(&self.0 as &dyn age::Identity)).map_err(|error| self.reason(&error))?;
        let limit = u64::try_from(super::MAX_SECRET).unwrap_or(u64::MAX).saturating_add(1);
        std::io::Read::read_to_end(&mut std::io::Read::take(reader, limit), &mut plain)
            .map_err(|_| SecretError::Damaged(String::from("the text was changed or cut off")))?;
        match plain.len() > super::MAX_SECRET {
            true => Err(SecretError::TooLarge { limit: super::MAX_SECRET }),
            false => Ok(plain),
        }
    }

    fn reason(&self, error: &DecryptError) -> SecretError {
        match error {
            DecryptError::NoMatchingKeys => SecretError::OtherRecipient { recipient: self.recipient() },
            DecryptError::DecryptionFailed | DecryptError::InvalidMac => {
                SecretError::Damaged(String::from("the text was changed"))
            }
            _ => SecretError::Damaged(String::from("the text is not in the format of age")),
        }
    }
}

impl std::fmt::Debug for ProjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProjectKey({})", self.recipient())
    }
}

#[cfg(test)]
pub(super) fn key(project: u32) -> ProjectKey {
    ProjectKey::derive(b"AGE-SECRET-KEY-1TEST", ProjectId(project)).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_depends_on_the_server_and_the_project_only() {
        assert_eq!(key(1).recipient(), key(1).recipient());
        assert_ne!(key(1).recipient(), key(2).recipient());
        let other = ProjectKey::derive(b"AGE-SECRET-KEY-1OTHER", ProjectId(1)).unwrap();
        assert_ne!(key(1).recipient(), other.recipient());
        // The derivation never changes, because it is the only way to read the secrets.
        assert_eq!(key(1).recipient(), "age19q0za5qg798hszmdx2gn5fs7emf3zmhxdelhwplr8a0jtna5295sd798xu");
        assert!(!format!("{:?}", key(1)).contains("SECRET"));
    }
}
