//! The values of a file of secrets as text for an editor. The text exists in memory, and on a tmpfs of the person who edits it.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::{
    error::SecretError,
    key::ProjectKey,
    secrets_file::{SecretKey, SecretsFile},
    text::EncryptedText,
};
use crate::config::{
    ConfigError,
    pillar::{PillarLevel, PillarNode, PillarText, PillarValue},
};

/// The first lines of the text.
const HEADER: &str = "# The secrets of {FILE} as plain text. Save and leave the editor to encrypt them; leave without a change to keep them.\n# A variable of the processes is a key below env. Lines that begin with # are not kept.\n";

/// The decrypted values of a file of secrets. `Debug` shows names only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PlainSecrets(BTreeMap<SecretKey, Zeroizing<String>>);

impl std::fmt::Debug for PlainSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A change of one secret: its value before and after; `None` stands for no secret.
pub struct PlainChange {
    pub key: SecretKey,
    pub before: Option<Zeroizing<String>>,
    pub after: Option<Zeroizing<String>>,
}

impl PlainSecrets {
    /// Decrypts all values of a file.
    ///
    /// # Errors
    /// The first key whose value cannot be decrypted, with the reason.
    pub fn decrypted(file: &SecretsFile, own: &ProjectKey) -> Result<PlainSecrets, (SecretKey, SecretError)> {
        let mut all = BTreeMap::new();
        for (key, text) in file.iter() {
            let value = EncryptedText::parse(text).and_then(|value| match value {
                Some(value) => value.decrypt(own),
                None => Err(SecretError::Damaged(String::from("the text is not in the format of age"))),
            });
            all.insert(key.clone(), value.map_err(|error| (key.clone(), error))?);
        }
        Ok(PlainSecrets(all))
    }

    /// Reads an edited text. `file` is the name of the file for errors.
    ///
    /// # Errors
    /// The first line that is no YAML, or no value of a secret. The error contains no value.
    pub fn parse(file: &str, text: &[u8]) -> Result<PlainSecrets, ConfigError> {
        // An encrypted text that was pasted is kept as it is, so that it cannot be taken for a value by mistake.
        let resolve = |text: &str| match EncryptedText::parse(text) {
            Ok(None) => Ok(PillarText::Plain),
            _ => Err(String::from("the value is encrypted already")),
        };
        let level = PillarLevel::parse(file, text, &resolve)?;
        let mut all = PlainSecrets::default();
        all.collect(file, &level.root, &mut Vec::new())?;
        Ok(all)
    }

    fn collect(&mut self, file: &str, node: &PillarNode, path: &mut Vec<String>) -> Result<(), ConfigError> {
        let wrong = |path: &[String], why: &str| ConfigError::new(file, format!("{} {why}", path.join("."))).at_line(node.line);
        let text = match &node.value {
            PillarValue::Map(pairs) => {
                for (key, inner) in pairs {
                    path.push(key.clone());
                    self.collect(file, inner, path)?;
                    path.pop();
                }
                return Ok(());
            }
            PillarValue::Text(text) | PillarValue::Literal(text) | PillarValue::Number(text) => text.clone(),
            PillarValue::Bool(value) => value.to_string(),
            PillarValue::Null => return Err(wrong(path, "has no value").hint("remove the key, or write a value")),
            PillarValue::List(_) => return Err(wrong(path, "is a list").hint("write one text for each secret")),
        };
        if text.is_empty() {
            return Err(wrong(path, "is empty").hint("remove the key, or write a value"));
        }
        let key = match path.as_slice() {
            // The name without a dot would be a variable.
            [only] => SecretKey::at_top(only),
            path => path.join(".").parse(),
        };
        let key = key.map_err(|error| ConfigError::new(file, error.to_string()).at_line(node.line))?;
        self.0.insert(key, Zeroizing::new(text));
        Ok(())
    }

    /// Returns the text for an editor.
    pub fn to_text(&self, file: &str) -> Zeroizing<String> {
        let mut text = Zeroizing::new(HEADER.replace("{FILE}", file));
        let mut above: &[String] = &[];
        for (key, value) in &self.0 {
            let Some((last, parents)) = key.parts().split_last() else { continue };
            let common = above.iter().zip(parents).take_while(|(one, other)| one == other).count();
            for (depth, part) in parents.iter().enumerate().skip(common) {
                text.push_str(&format!("{}{}:\n", "  ".repeat(depth), super::secrets_file::quoted(part)));
            }
            let indent = "  ".repeat(parents.len());
            text.push_str(&format!("{indent}{}: ", super::secrets_file::quoted(last)));
            push_value(&mut text, value, &indent);
            above = parents;
        }
        text
    }

    /// Returns the value of a secret.
    pub fn get(&self, key: &SecretKey) -> Option<&Zeroizing<String>> {
        self.0.get(key)
    }

    /// Returns the secrets that differ between two texts of the same person.
    pub fn changes(&self, after: &PlainSecrets) -> Vec<PlainChange> {
        let keys: std::collections::BTreeSet<_> = self.0.keys().chain(after.0.keys()).collect();
        let differing = keys.into_iter().filter(|key| self.0.get(key) != after.0.get(key));
        differing
            .map(|key| PlainChange { key: key.clone(), before: self.0.get(key).cloned(), after: after.0.get(key).cloned() })
            .collect()
    }
}

/// Appends a value in a form that YAML reads as the same text.
fn push_value(text: &mut String, value: &str, indent: &str) {
    let is_printable = |c: char| !c.is_control() && !matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}');
    let body = value.strip_suffix('\n');
    // Texts with several lines, such as keys, stay readable as a block. The indentation of a block is that of its first line.
    let is_block = value.contains('\n')
        && !value.starts_with([' ', '\n'])
        && !body.unwrap_or(value).ends_with('\n')
        && value.chars().all(|c| c == '\n' || is_printable(c));
    if !is_block {
        // A text of JSON is a text of YAML (YAML 1.2, section 1.3).
        text.push_str(&serde_json::Value::from(value).to_string());
        text.push('\n');
        return;
    }
    text.push_str(if body.is_some() { "|\n" } else { "|-\n" });
    for line in body.unwrap_or(value).split('\n') {
        match line.is_empty() {
            true => text.push('\n'),
            false => text.push_str(&format!("{indent}  {line}\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{RecipientList, key::key, text::encrypted},
        *,
    };

    #[test]
    fn text_of_any_value_is_read_back() {
        let mut file = SecretsFile::default();
        let values = [
            ("API_TOKEN", "hunter2"),
            ("database.password", "true"),
            ("database.port", "5432"),
            ("tls.key", "-----BEGIN KEY-----\nAAAA\n\nBBBB\n-----END KEY-----\n"),
            ("tls.chain", "one\n  two\nthree"),
            ("odd.lines", "\n\nx\n\n"),
            ("odd.spaces", "  x \n y"),
            ("odd.tab", "a\tb\nc"),
            ("odd.quotes", "\"'#: {}[]&*!|>%@`\\"),
            ("odd.unicode", "\u{e4}\u{1f600}\u{2028}\u{feff}x"),
            ("odd.crlf", "a\r\nb\r\n"),
            ("odd.space", " "),
            ("odd.reference", "${database.password}"),
        ];
        for (name, value) in values {
            let text = encrypted(value.as_bytes(), &key(1), &RecipientList::default()).unwrap();
            file.set(name.parse().unwrap(), text).unwrap();
        }
        let plain = PlainSecrets::decrypted(&file, &key(1)).unwrap();
        let text = plain.to_text("init.secrets.yml");
        let again = PlainSecrets::parse("init.secrets.yml", text.as_bytes()).unwrap();
        assert!(again == plain, "{}", *text);
        assert!(text.contains("  key: |\n    -----BEGIN KEY-----\n    AAAA\n\n    BBBB\n"), "{}", *text);
        assert!(plain.changes(&again).is_empty());
        let (name, error) = PlainSecrets::decrypted(&file, &key(2)).unwrap_err();
        assert!(name.to_string() == "database.password" && matches!(error, SecretError::OtherRecipient { .. }), "{name}");
    }

    #[test]
    fn changes_are_found_by_key() {
        let parse = |text: &str| PlainSecrets::parse("x.secrets.yml", text.as_bytes()).unwrap();
        let before = parse("env: {A: one, B: two}\ntop: x\n");
        let after = parse("env:\n  A: one\n  C: 5\ntop: y\n");
        let changes = before.changes(&after);
        let shown: Vec<_> = changes
            .iter()
            .map(|change| (change.key.to_string(), change.before.is_some(), change.after.as_ref().map(|value| value.to_string())))
            .collect();
        let expected = [("env.B", true, None), ("env.C", false, Some("5")), ("top", true, Some("y"))];
        assert_eq!(shown, expected.map(|(key, before, after)| (key.to_owned(), before, after.map(str::to_owned))));
    }

    #[test]
    fn text_that_is_no_list_of_secrets_is_refused_without_its_values() {
        for (text, why) in [
            ("a:\n  b: [hunter2]\n", "x:2: a.b is a list"),
            ("a:\n  b:\n", "x:2: a.b has no value"),
            ("a: ''\n", "x:1: a is empty"),
            ("a: hunter2\na: hunter2\n", "repeated"),
            ("a: 'hunter2\n", "not YAML"),
            ("hunter2\n", "the file is a text"),
            ("a b: hunter2\n", "is not the name of a secret"),
            ("a: age:AAAA\n", "encrypted already"),
        ] {
            let error = PlainSecrets::parse("x", text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
        let shown = format!("{:?}", PlainSecrets::parse("x", b"a: {b: hunter2}").unwrap());
        assert!(!shown.contains("hunter2") && shown.contains('b'), "{shown}");
    }
}
