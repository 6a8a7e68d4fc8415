//! Secrets: values of a pillar that are encrypted in the format of [age](https://age-encryption.org).
//!
//! A secret is encrypted for the key of its project, which this server derives from the key of the configuration snapshots, and for the keys of
//! people, which the file [`RECIPIENTS_FILE`] of the pillar lists. This module encrypts and decrypts texts and rewrites the files of a pillar in
//! memory. It neither reads repositories nor decides who may read a value. [`ProjectKey`] is the type to read first.

mod age_file;
mod error;
mod history;
mod key;
mod plain_secrets;
mod recipients;
mod secrets_file;
mod sops;
mod text;

pub use self::{
    age_file::{AGE_SUFFIX, age_level, key_of_age_file, reencrypted_file},
    error::SecretError,
    history::{ReadableSecret, readable},
    key::ProjectKey,
    plain_secrets::{PlainChange, PlainSecrets},
    recipients::{NamedRecipient, RECIPIENTS_FILE, RecipientList, SERVER_NAME},
    secrets_file::{SECRETS_SUFFIX, SecretKey, SecretsFile},
    sops::{is_sops, is_sops_file, sops_level},
    text::{EncryptedText, encrypted, reencrypted},
};

/// The maximum size of a secret, in bytes.
pub const MAX_SECRET: usize = crate::config::pillar::MAX_PILLAR_VALUE;
