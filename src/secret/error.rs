//! Errors of secrets. No error contains a value.

/// The reason why a secret cannot be encrypted, decrypted or stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// No recipient of the text is the key of the project.
    #[error("the value is encrypted for other recipients than this project (expected the recipient {recipient})")]
    OtherRecipient {
        /// The public key of the project.
        recipient: String,
    },
    /// The encrypted text was changed or damaged.
    #[error("the encrypted value cannot be read: {0}")]
    Damaged(String),
    /// The value is not text.
    #[error("the value is not UTF-8")]
    NotText,
    /// The value cannot be a variable of a process.
    #[error("the value has a NUL byte")]
    Nul,
    /// The value is too large.
    #[error("the value has more than {limit} bytes (limit {limit})")]
    TooLarge {
        /// The maximum size in bytes.
        limit: usize,
    },
    /// The name of the secret cannot be used.
    #[error("{0} is not the name of a secret (expected a variable such as API_TOKEN, or a key such as database.password)")]
    Name(String),
    /// A line of the recipients cannot be used.
    #[error("recipients line {line}: {why}")]
    Recipient {
        /// The line, counted from 1.
        line: usize,
        /// The reason.
        why: String,
    },
    /// The value cannot be encrypted.
    #[error("cannot encrypt the value: {0}")]
    Encrypt(String),
    /// The key of this server cannot be used.
    #[error("cannot derive the key of the project: {0}")]
    Key(String),
    /// A file of secrets cannot be used.
    #[error("{0}")]
    File(String),
}

impl SecretError {
    /// Returns the remedy, as an imperative.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            SecretError::OtherRecipient { .. } | SecretError::Damaged(_) => {
                Some("set the value again with `larder secret set`, or remove the key from the file")
            }
            SecretError::NotText | SecretError::Nul => {
                Some("encode the value, for example in base64: a variable of a process cannot contain these bytes")
            }
            SecretError::TooLarge { .. } => Some("store the value in a file below data/, and encrypt only a key for this file"),
            SecretError::Recipient { .. } => Some("use a key age1..., ssh-ed25519 or ssh-rsa with at least 2048 bits"),
            SecretError::Name(_) | SecretError::Encrypt(_) | SecretError::Key(_) | SecretError::File(_) => None,
        }
    }
}
