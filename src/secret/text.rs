//! Encrypted texts inside of the files of a pillar.
//!
//! The form that larder writes is `age:` and the encrypted file in base64, on one line. The armored form of the program age, from
//! `-----BEGIN AGE ENCRYPTED FILE-----` on, is read as well.

use std::{io::Write as _, ops::Range};

use age::Encryptor;
use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::{MAX_SECRET, error::SecretError, key::ProjectKey, recipients::RecipientList};

/// The beginning of an encrypted value.
const PREFIX: &str = "age:";
/// The first line of the armored form (the specification of age, section "ASCII armor").
const BEGIN: &str = "-----BEGIN AGE ENCRYPTED FILE-----";
const END: &str = "-----END AGE ENCRYPTED FILE-----";

/// An encrypted value of a pillar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptedText(Vec<u8>);

impl EncryptedText {
    /// Returns the encrypted value of a text; `None` if the text is not encrypted.
    ///
    /// # Errors
    /// The text begins like an encrypted value and is damaged.
    pub fn parse(text: &str) -> Result<Option<EncryptedText>, SecretError> {
        let text = text.trim();
        if text.starts_with(BEGIN) {
            return Ok(Some(EncryptedText(text.as_bytes().to_vec())));
        }
        let Some(encoded) = text.strip_prefix(PREFIX) else { return Ok(None) };
        let compact: Vec<u8> = encoded.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let decoded = BASE64.decode(&compact);
        decoded.map(EncryptedText).map(Some).map_err(|_| SecretError::Damaged(String::from("the text after age: is not base64")))
    }

    /// Decrypts the value.
    pub fn decrypt(&self, key: &ProjectKey) -> Result<Zeroizing<String>, SecretError> {
        let bytes = key.decrypt(&self.0)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| SecretError::NotText)?;
        Ok(Zeroizing::new(text.to_owned()))
    }
}

/// Encrypts a value for the project and all recipients. Returns the text for a file of the pillar.
///
/// # Errors
/// The value is too large, not text, or has a NUL byte, which no process could get.
pub fn encrypted(value: &[u8], key: &ProjectKey, recipients: &RecipientList) -> Result<String, SecretError> {
    Ok(format!("{PREFIX}{}", BASE64.encode(&encrypted_bytes(value, key, recipients)?)))
}

/// Returns a value as text, if a process can get it.
pub(super) fn checked(value: &[u8]) -> Result<&str, SecretError> {
    if value.len() > MAX_SECRET {
        return Err(SecretError::TooLarge { limit: MAX_SECRET });
    }
    if value.contains(&0) {
        return Err(SecretError::Nul);
    }
    std::str::from_utf8(value).map_err(|_| SecretError::NotText)
}

/// Encrypts a value like [`encrypted`]. Returns the bytes of an encrypted file.
pub(super) fn encrypted_bytes(value: &[u8], key: &ProjectKey, recipients: &RecipientList) -> Result<Vec<u8>, SecretError> {
    checked(value)?;
    let own = key.public();
    let all = std::iter::once(&own as &dyn age::Recipient).chain(recipients.keys());
    let wrong = |error: String| SecretError::Encrypt(error);
    let encryptor = Encryptor::with_recipients(all).map_err(|error| wrong(error.to_string()))?;
    let mut bytes = Vec::new();
    let mut writer = encryptor.wrap_output(&mut bytes).map_err(|error| wrong(error.to_string()))?;
    writer.write_all(value).map_err(|error| wrong(error.to_string()))?;
    writer.finish().map_err(|error| wrong(error.to_string()))?;
    Ok(bytes)
}

/// Encrypts each encrypted value of a file of a pillar anew, for `recipients`. Everything else stays as it is. Returns the text and the number
/// of values.
///
/// # Errors
/// The line of the first value that cannot be decrypted.
pub fn reencrypted(text: &str, key: &ProjectKey, recipients: &RecipientList) -> Result<(String, usize), (usize, SecretError)> {
    let (mut result, mut done, mut count) = (String::new(), 0, 0_usize);
    for range in places(text) {
        let line = text.get(..range.start).unwrap_or_default().matches('\n').count().saturating_add(1);
        let old = text.get(range.clone()).unwrap_or_default();
        let unindented: String = old.lines().map(str::trim).collect::<Vec<_>>().join("\n");
        let value = EncryptedText::parse(&unindented).and_then(|value| match value {
            Some(value) => value.decrypt(key),
            None => Err(SecretError::Damaged(String::from("the text is not in the format of age"))),
        });
        let new = value.and_then(|value| encrypted(value.as_bytes(), key, recipients)).map_err(|error| (line, error))?;
        result.push_str(text.get(done..range.start).unwrap_or_default());
        result.push_str(&new);
        done = range.end;
        count = count.saturating_add(1);
    }
    result.push_str(text.get(done..).unwrap_or_default());
    Ok((result, count))
}

/// Returns the places of all encrypted values in a file.
fn places(text: &str) -> Vec<Range<usize>> {
    let is_encoded = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..) {
        let next = |pattern: &str| rest.find(pattern).map(|offset| at.saturating_add(offset));
        let (start, end) = match (next(PREFIX), next(BEGIN)) {
            (Some(short), armored) if armored.is_none_or(|armored| short < armored) => {
                let body = text.as_bytes().get(short.saturating_add(PREFIX.len())..).unwrap_or_default();
                let length = body.iter().take_while(|byte| is_encoded(**byte)).count();
                (short, short.saturating_add(PREFIX.len()).saturating_add(length))
            }
            (_, Some(armored)) => {
                let end = text.get(armored..).and_then(|body| body.find(END)).map(|offset| armored.saturating_add(offset));
                (armored, end.map_or(text.len(), |end| end.saturating_add(END.len())))
            }
            _ => break,
        };
        // `age:` inside of a word, or with a short rest, is ordinary text. The shortest encrypted file has more than 150 bytes.
        let before = text.get(..start).and_then(|text| text.chars().next_back());
        if end.saturating_sub(start) > 150 && before.is_none_or(|before| !before.is_alphanumeric()) {
            found.push(start..end);
        }
        at = end.max(start.saturating_add(1));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{super::key::key, *};

    fn plain(text: &str, key: &ProjectKey) -> Result<String, SecretError> {
        EncryptedText::parse(text).and_then(|value| value.unwrap().decrypt(key)).map(|value| value.to_string())
    }

    #[test]
    fn value_is_read_with_the_key_of_its_project_only() {
        let none = RecipientList::default();
        let text = encrypted(b"hunter2 \xc3\xa4\n", &key(1), &none).unwrap();
        assert!(text.starts_with("age:") && !text.contains('\n') && !text.contains("hunter2"), "{text}");
        assert_eq!(plain(&text, &key(1)).unwrap(), "hunter2 \u{e4}\n");
        let error = plain(&text, &key(2)).unwrap_err();
        assert_eq!(error, SecretError::OtherRecipient { recipient: key(2).recipient() });
        assert_ne!(encrypted(b"hunter2", &key(1), &none).unwrap(), encrypted(b"hunter2", &key(1), &none).unwrap());
        assert_eq!(EncryptedText::parse("hunter2").unwrap(), None);
    }

    #[test]
    fn value_that_no_process_can_get_is_refused() {
        let none = RecipientList::default();
        assert_eq!(encrypted(b"a\0b", &key(1), &none), Err(SecretError::Nul));
        assert_eq!(encrypted(b"\xff", &key(1), &none), Err(SecretError::NotText));
        assert_eq!(encrypted(&vec![b'x'; 10 << 20], &key(1), &none), Err(SecretError::TooLarge { limit: MAX_SECRET }));
        assert!(encrypted(&vec![b'x'; MAX_SECRET], &key(1), &none).is_ok());
        let text = encrypted(b"hunter2", &key(1), &none).unwrap();
        for damaged in [text.get(..text.len() - 8).unwrap().to_owned(), text.replace("age:Y", "age:Z"), String::from("age:!")] {
            assert!(matches!(plain(&damaged, &key(1)), Err(SecretError::Damaged(_))), "{damaged}");
        }
    }

    #[test]
    fn reencryption_changes_encrypted_values_only() {
        let none = RecipientList::default();
        let value = |text: &str| encrypted(text.as_bytes(), &key(1), &none).unwrap();
        let (first, second) = (value("one"), value("two"));
        let armored = age::encrypt_and_armor(&key(1).public(), b"three").unwrap();
        let block: String = armored.lines().map(|line| format!("    {line}\n")).collect();
        let text = format!("# image:x and age: text\na: {first}\nb: {{c: \"{second}\"}}\nd: |\n{block}page: 5 # end\n");
        let (again, count) = reencrypted(&text, &key(1), &none).unwrap();
        assert_eq!(count, 3, "{again}");
        assert!(!again.contains(&first) && again.contains("# image:x and age: text\na: age:"), "{again}");
        assert!(again.ends_with("page: 5 # end\n"), "{again}");
        let found: Vec<_> = places(&again).into_iter().map(|range| plain(&again[range], &key(1)).unwrap()).collect();
        assert_eq!(found, ["one", "two", "three"]);
        let (line, error) = reencrypted(&text, &key(2), &none).unwrap_err();
        assert!(line == 2 && matches!(error, SecretError::OtherRecipient { .. }), "{line} {error}");
    }
}
