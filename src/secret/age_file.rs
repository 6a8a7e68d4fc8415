//! Files of a pillar that are encrypted as a whole by the program age: `tls.key.age` is the value of the key `tls.key`.

use super::{
    error::SecretError,
    key::ProjectKey,
    recipients::RecipientList,
    secrets_file::SecretKey,
    text::{checked, encrypted_bytes},
};
use crate::config::{
    ConfigError,
    pillar::{PillarLevel, PillarNode, PillarValue},
};

/// The end of the name of a file that is encrypted as a whole.
pub const AGE_SUFFIX: &str = ".age";

/// Returns the key whose value a file is; `None` for a file of another kind.
pub fn key_of_age_file(file: &str) -> Option<Result<SecretKey, SecretError>> {
    file.strip_suffix(AGE_SUFFIX).map(str::parse)
}

/// Decrypts a file, with or without the armor, as one value of a pillar.
///
/// # Errors
/// The file cannot be decrypted, is no text, or its name is no key.
pub fn age_level(file: &str, bytes: &[u8], own: &ProjectKey) -> Result<PillarLevel, ConfigError> {
    let problem = |error: SecretError| {
        let shown = ConfigError::new(file, error.to_string()).at_line(1);
        error.hint().into_iter().fold(shown, ConfigError::hint)
    };
    let key = key_of_age_file(file).unwrap_or_else(|| Err(SecretError::Name(file.to_owned()))).map_err(problem)?;
    let plain = own.decrypt(bytes).and_then(|plain| checked(&plain).map(str::to_owned)).map_err(problem)?;
    let leaf = PillarNode { line: 1, value: PillarValue::Literal(plain) };
    let root = key
        .parts()
        .iter()
        .rev()
        .fold(leaf, |inner, part| PillarNode { line: 1, value: PillarValue::Map(vec![(part.clone(), inner)]) });
    Ok(PillarLevel { file: file.to_owned(), root })
}

/// Encrypts a file anew, for `recipients`.
pub fn reencrypted_file(bytes: &[u8], own: &ProjectKey, recipients: &RecipientList) -> Result<Vec<u8>, SecretError> {
    encrypted_bytes(&own.decrypt(bytes)?, own, recipients)
}

#[cfg(test)]
mod tests {
    use super::{super::key::key, *};

    #[test]
    fn file_of_age_is_one_value() {
        let own = key(1);
        let binary = encrypted_bytes(b"one\ntwo\n", &own, &RecipientList::default()).unwrap();
        let armored = age::encrypt_and_armor(&own.public(), b"one\ntwo\n").unwrap();
        for bytes in [binary.clone(), armored.into_bytes()] {
            let level = age_level("tls.key.age", &bytes, &own).unwrap();
            let value = &level.root.child("tls").unwrap().child("key").unwrap().value;
            assert_eq!(*value, PillarValue::Literal("one\ntwo\n".into()));
        }
        let level = age_level("TOKEN.age", &binary, &own).unwrap();
        assert!(level.root.child("env").unwrap().child("TOKEN").is_some());
        let again = reencrypted_file(&binary, &own, &RecipientList::default()).unwrap();
        assert!(again != binary && *own.decrypt(&again).unwrap() == b"one\ntwo\n");
        for (file, bytes, why) in [
            ("tls.key.age", b"hunter2".to_vec(), "tls.key.age:1: the encrypted value cannot be read"),
            ("a b.age", binary.clone(), "is not the name of a secret"),
            ("x.age", age::encrypt(&key(2).public(), b"hunter2").unwrap(), "for other recipients than this project"),
            ("x.age", age::encrypt(&own.public(), b"\xff").unwrap(), "not UTF-8"),
            ("x.age", age::encrypt(&own.public(), b"a\0b").unwrap(), "NUL"),
        ] {
            let error = age_level(file, &bytes, &own).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
        assert!(key_of_age_file("init.yml").is_none());
    }
}
