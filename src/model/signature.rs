//! Public keys and signatures of deliverables.

use std::{fmt, str::FromStr};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

/// The prefix of a public key in text.
const PREFIX: &str = "ed25519:";
/// The maximum length of a rejected key in its error, in characters.
const MAX_SHOWN: usize = 80;

/// The public key of a server that signs deliverables, written as `ed25519:` and 44 characters of base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Creates a key from its bytes.
    pub fn new(bytes: [u8; 32]) -> PublicKey {
        PublicKey(bytes)
    }

    /// Returns the raw 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE64.encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = text.strip_prefix(PREFIX).and_then(|rest| BASE64.decode(rest.as_bytes()).ok());
        bytes.and_then(|bytes| bytes.try_into().ok()).map(PublicKey).ok_or_else(|| {
            let given: String = text.chars().take(MAX_SHOWN).collect();
            format!("{given:?} is not a signing key; `larder key show` on the server that signs prints the key as {PREFIX}...")
        })
    }
}

impl TryFrom<String> for PublicKey {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

/// An ed25519 signature with its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The key that made the signature.
    pub key: PublicKey,
    pub value: SignatureBytes,
}

/// The 64 bytes of an ed25519 signature, which are written as base64.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SignatureBytes(pub [u8; 64]);

impl fmt::Debug for SignatureBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignatureBytes({})", String::from(*self))
    }
}

impl TryFrom<String> for SignatureBytes {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bytes = BASE64.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(SignatureBytes).ok_or_else(|| String::from("the text is not a signature (expected 64 bytes in base64)"))
    }
}

impl From<SignatureBytes> for String {
    fn from(bytes: SignatureBytes) -> String {
        BASE64.encode(&bytes.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_or_signature_in_a_wrong_form_is_rejected() {
        let key = PublicKey::new([7; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        for bad in ["", "ed25519:", "ed25519:AAAA", &key.to_string().replace("ed25519", "rsa"), &format!("{key} ")] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
        let signature = Signature { key, value: SignatureBytes([9; 64]) };
        let text = serde_json::to_string(&signature).unwrap();
        assert_eq!(serde_json::from_str::<Signature>(&text).unwrap(), signature);
        assert!(serde_json::from_str::<Signature>(&text.replace("CQkJ", "CQk")).is_err());
    }
}
