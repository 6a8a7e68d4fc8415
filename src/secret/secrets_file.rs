//! The files of a pillar that larder writes: `init.secrets.yml` and `ENVIRONMENT.secrets.yml`, whose values are all encrypted.
//!
//! A file of this kind takes precedence over the file without `.secrets`. larder rewrites the whole file, so people write their values and
//! comments into the other files.

use std::collections::BTreeMap;

use super::{error::SecretError, text::EncryptedText};
use crate::{
    config::{
        ConfigError,
        pillar::{PillarLevel, PillarNode, PillarText, PillarValue},
    },
    model::{EnvironmentName, sanitise_reason},
};

/// The end of the name of a file whose values are all encrypted.
pub const SECRETS_SUFFIX: &str = ".secrets.yml";

const HEADER: &str = "# Written by `larder secret`. All values are encrypted for the keys in the file recipients.\n";

/// The maximum number of parts of a name.
const MAX_PARTS: usize = 8;

/// The name of a secret: the path of a key of the pillar, such as `database.password`. A name without a dot is a variable of the processes,
/// so that `API_TOKEN` is the key `env.API_TOKEN`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretKey(Vec<String>);

impl std::str::FromStr for SecretKey {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<SecretKey, SecretError> {
        let is_part =
            |part: &str| (1..=128).contains(&part.len()) && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"_-".contains(&c));
        let parts: Vec<&str> = text.split('.').collect();
        if !parts.iter().all(|part| is_part(part)) || parts.len() > MAX_PARTS {
            return Err(SecretError::Name(sanitise_reason(&text.chars().take(60).collect::<String>())));
        }
        let env = (parts.len() == 1).then_some("env");
        Ok(SecretKey(env.into_iter().chain(parts).map(str::to_owned).collect()))
    }
}

impl std::fmt::Display for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl SecretKey {
    /// Returns the name of the variable of the processes; `None` for another key.
    pub fn variable(&self) -> Option<&str> {
        match self.0.as_slice() {
            [env, name] if env == "env" => Some(name),
            _ => None,
        }
    }

    /// Returns the name of a key that is in no section.
    pub(super) fn at_top(name: &str) -> Result<SecretKey, SecretError> {
        let mut key: SecretKey = name.parse()?;
        key.0.drain(..key.0.len().saturating_sub(1));
        Ok(key)
    }

    pub(super) fn parts(&self) -> &[String] {
        &self.0
    }

    /// Returns the value of this key in a file of a pillar.
    pub fn find<'l>(&self, level: &'l PillarLevel) -> Option<&'l PillarNode> {
        self.0.iter().try_fold(&level.root, |node, part| node.child(part))
    }
}

/// The encrypted values of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretsFile(BTreeMap<SecretKey, String>);

impl SecretsFile {
    /// Returns the name of the file for an environment, or for all environments.
    pub fn name(environment: Option<&EnvironmentName>) -> String {
        format!("{}{SECRETS_SUFFIX}", environment.map_or("init", EnvironmentName::as_str))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The first value that is not encrypted, or that is a list.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<SecretsFile, ConfigError> {
        let level = PillarLevel::parse(file, bytes, &|_| Ok(PillarText::Plain))?;
        let mut found = SecretsFile::default();
        found.collect(file, &level.root, &mut Vec::new())?;
        Ok(found)
    }

    fn collect(&mut self, file: &str, node: &PillarNode, path: &mut Vec<String>) -> Result<(), ConfigError> {
        let wrong = |path: &[String], why: &str| {
            ConfigError::new(file, format!("{} {why}", path.join(".")))
                .at_line(node.line)
                .hint("set the value with `larder secret set`, or write it into the file without .secrets in its name")
        };
        match &node.value {
            PillarValue::Map(pairs) => {
                for (key, inner) in pairs {
                    if key.contains('.') {
                        return Err(wrong(path, "has a key with a dot"));
                    }
                    path.push(key.clone());
                    self.collect(file, inner, path)?;
                    path.pop();
                }
            }
            PillarValue::Text(text) if matches!(EncryptedText::parse(text), Ok(Some(_))) => {
                self.0.insert(SecretKey(path.clone()), text.trim().to_owned());
            }
            PillarValue::List(_) => return Err(wrong(path, "is a list")),
            _ => return Err(wrong(path, "is not encrypted")),
        }
        Ok(())
    }

    /// Returns the keys with their encrypted values.
    pub fn iter(&self) -> impl Iterator<Item = (&SecretKey, &str)> {
        self.0.iter().map(|(key, value)| (key, value.as_str()))
    }

    /// Returns the encrypted value of a key.
    pub fn get(&self, key: &SecretKey) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Sets the encrypted value of a key.
    ///
    /// # Errors
    /// The key is inside of another key, or has keys inside.
    pub fn set(&mut self, key: SecretKey, value: String) -> Result<(), SecretError> {
        let overlaps = |known: &&SecretKey| **known != key && (known.0.starts_with(&key.0) || key.0.starts_with(&known.0));
        if let Some(other) = self.0.keys().find(overlaps) {
            return Err(SecretError::File(format!(
                "{key} cannot be set: {other} is a secret, and one key is inside of the other"
            )));
        }
        self.0.insert(key, value);
        Ok(())
    }

    /// Removes a key. Returns false if the file does not have the key.
    pub fn unset(&mut self, key: &SecretKey) -> bool {
        self.0.remove(key).is_some()
    }

    /// Returns the text of the file.
    pub fn to_text(&self) -> String {
        let mut text = HEADER.to_owned();
        let mut above: &[String] = &[];
        for (key, value) in &self.0 {
            let Some((last, parents)) = key.0.split_last() else { continue };
            let common = above.iter().zip(parents).take_while(|(one, other)| one == other).count();
            for (depth, part) in parents.iter().enumerate().skip(common) {
                text.push_str(&format!("{}{}:\n", "  ".repeat(depth), quoted(part)));
            }
            let indent = "  ".repeat(parents.len());
            match value.contains('\n') {
                false => text.push_str(&format!("{indent}{}: {value}\n", quoted(last))),
                true => {
                    text.push_str(&format!("{indent}{}: |\n", quoted(last)));
                    value.lines().for_each(|line| text.push_str(&format!("{indent}  {line}\n")));
                }
            }
            above = parents;
        }
        text
    }
}

/// Returns a key of YAML. Keys such as `true` and `1` would not be texts without quotes.
pub(super) fn quoted(key: &str) -> String {
    let is_plain = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.bytes().all(|c| c.is_ascii_alphanumeric() || b"_-".contains(&c))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&key.to_ascii_lowercase().as_str());
    match is_plain {
        true => key.to_owned(),
        false => serde_json::Value::from(key).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{RecipientList, key::key, text::encrypted},
        *,
    };

    fn name(text: &str) -> SecretKey {
        text.parse().unwrap()
    }

    #[test]
    fn file_survives_a_round_trip_with_nested_and_odd_keys() {
        let mut file = SecretsFile::default();
        for text in ["API_TOKEN", "database.password", "database.replica.password", "true", "database.1", "z.y.x"] {
            let value = encrypted(text.as_bytes(), &key(1), &RecipientList::default()).unwrap();
            file.set(name(text), value).unwrap();
        }
        let armored = age::encrypt_and_armor(&key(1).public(), b"three").unwrap();
        file.set(name("tls.key"), armored.trim().to_owned()).unwrap();
        let text = file.to_text();
        assert_eq!(SecretsFile::parse("init.secrets.yml", text.as_bytes()).unwrap(), file, "{text}");
        assert!(text.contains("\nenv:\n  API_TOKEN: age:") && text.matches("\ndatabase:\n").count() == 1, "{text}");
        assert!(file.unset(&name("API_TOKEN")) && !file.unset(&name("API_TOKEN")));
        let value = file.get(&name("z.y.x")).unwrap().to_owned();
        assert!(file.set(name("z.y"), value.clone()).is_err() && file.set(name("z.y.x.w"), value).is_err());
    }

    #[test]
    fn value_that_is_not_encrypted_is_refused_with_its_line() {
        for (text, why) in [
            ("a:\n  b: hunter2\n", "x.secrets.yml:2: a.b is not encrypted"),
            ("a: 5\n", "a is not encrypted"),
            ("a: [x]\n", "a is a list"),
            ("a: age:hunter2\n", "a is not encrypted"),
        ] {
            let error = SecretsFile::parse("x.secrets.yml", text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
        for wrong in ["", "a..b", "a b", "a/b", "a.b.c.d.e.f.g.h.i", "A=B"] {
            assert!(wrong.parse::<SecretKey>().is_err(), "{wrong}");
        }
        assert_eq!((name("A").to_string().as_str(), name("A").variable()), ("env.A", Some("A")));
        assert_eq!(name("a.b").variable(), None);
    }
}
