//! The recipients of a project's secrets: the keys of people, which a file of the pillar lists.
//!
//! The file has one key on each line, as the option `-R` of the program age reads it (age(1)). A line `# NAME` names the keys that follow.

use age::{ssh, x25519};

use super::{error::SecretError, key::ProjectKey};
use crate::model::sanitise_reason;

/// The file of the pillar with the recipients.
pub const RECIPIENTS_FILE: &str = "recipients";

/// The name of the server's own key in the file.
pub const SERVER_NAME: &str = "larder";

/// The maximum number of keys. Each key adds about 100 bytes to each encrypted value.
const MAX_KEYS: usize = 100;

/// The maximum size of a name in bytes.
const MAX_NAME: usize = 64;

/// The first lines of a file that larder writes.
const HEADER: &str = "# The keys for which the secrets of this project are encrypted. `larder secret recipients` changes this file, and\n# `age -R recipients` reads it.\n";

/// A key with the name of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedRecipient {
    pub name: String,
    /// The key as text, without a comment.
    pub key: String,
}

/// The recipients of a project besides the server.
#[derive(Default)]
pub struct RecipientList(Vec<(NamedRecipient, Box<dyn age::Recipient + Send + Sync>)>);

impl std::fmt::Debug for RecipientList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl RecipientList {
    /// Reads a file. The key of the project itself is left out.
    ///
    /// # Errors
    /// The first line that is not a key.
    pub fn parse(bytes: &[u8], own: &ProjectKey) -> Result<RecipientList, SecretError> {
        let text = std::str::from_utf8(bytes);
        let text = text.map_err(|_| SecretError::Recipient { line: 1, why: String::from("the file is not UTF-8") })?;
        let (mut list, mut name) = (RecipientList::default(), None);
        for (line, content) in (1..).zip(text.lines().map(str::trim)) {
            if let Some(comment) = content.strip_prefix('#') {
                name = Some(comment.trim()).filter(|name| is_name(name)).or(name);
                continue;
            }
            if content.is_empty() {
                continue;
            }
            let comment = content.split_whitespace().nth(2).filter(|comment| is_name(comment));
            let holder = name.or(comment).unwrap_or("unnamed");
            list.add(holder, content, own).map_err(|why| SecretError::Recipient { line, why })?;
        }
        Ok(list)
    }

    /// Adds a key. Returns false if the list has the key already, or if the key is the project's own. The error is the reason.
    pub fn add(&mut self, name: &str, key: &str, own: &ProjectKey) -> Result<bool, String> {
        if !is_name(name) {
            return Err(format!("{} cannot be the name of a recipient", sanitise_reason(name)));
        }
        let words: Vec<&str> = key.split_whitespace().collect();
        let (text, parsed): (String, Box<dyn age::Recipient + Send + Sync>) = match words.as_slice() {
            [kind, key, ..] if kind.starts_with("ssh-") || kind.contains('@') || kind.starts_with("ecdsa-") => {
                let text = format!("{kind} {key}");
                let parsed = text.parse::<ssh::Recipient>().map_err(|error| of_ssh(kind, &error))?;
                (text, Box::new(parsed))
            }
            [key] => {
                let parsed = key.parse::<x25519::Recipient>();
                // The text is not part of the reason, because it may be a private key.
                let why = match key.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
                    true => "this is a private key; the public key begins with age1",
                    false => "this is neither an age key nor an ssh key",
                };
                ((*key).to_owned(), Box::new(parsed.map_err(|_| why)?))
            }
            _ => return Err(String::from("this is neither an age key nor an ssh key")),
        };
        if text == own.recipient() || self.iter().any(|known| known.key == text) {
            return Ok(false);
        }
        if self.0.len() >= MAX_KEYS {
            return Err(format!("there are more than {MAX_KEYS} keys"));
        }
        self.0.push((NamedRecipient { name: name.to_owned(), key: text }, parsed));
        Ok(true)
    }

    /// Removes all keys of a holder, or one key. Returns the removed keys.
    pub fn remove(&mut self, name: &str) -> Vec<NamedRecipient> {
        let is_gone = |known: &NamedRecipient| known.name == name || known.key == name;
        let removed = self.iter().filter(|known| is_gone(known)).cloned().collect();
        self.0.retain(|(known, _)| !is_gone(known));
        removed
    }

    /// Returns the recipients in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &NamedRecipient> {
        self.0.iter().map(|(known, _)| known)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &dyn age::Recipient> {
        self.0.iter().map(|(_, key)| key.as_ref() as &dyn age::Recipient)
    }

    /// Returns the text of the file, with the key of the project.
    pub fn to_text(&self, own: &ProjectKey) -> String {
        let mut text = format!("{HEADER}# {SERVER_NAME}\n{}\n", own.recipient());
        let mut last = "";
        for known in self.iter() {
            if known.name != last {
                text.push_str(&format!("# {}\n", known.name));
                last = &known.name;
            }
            text.push_str(&format!("{}\n", known.key));
        }
        text
    }
}

/// Returns true for a word that can name the holder of a key.
fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(|c| c.is_alphanumeric() || ".-_@+".contains(c))
}

fn of_ssh(kind: &str, error: &ssh::ParseRecipientKeyError) -> String {
    use ssh::ParseRecipientKeyError::{Ignore, Invalid, RsaModulusTooLarge, RsaModulusTooSmall, Unsupported};
    match error {
        RsaModulusTooSmall => String::from("the ssh-rsa key has less than 2048 bits"),
        RsaModulusTooLarge => String::from("the ssh-rsa key has more than 4096 bits"),
        Unsupported(_) | Ignore => format!("age cannot encrypt for keys of the kind {}", sanitise_reason(kind)),
        Invalid(_) => match kind {
            "ssh-ed25519" | "ssh-rsa" => String::from("the ssh key is damaged"),
            _ => format!("age cannot encrypt for keys of the kind {}", sanitise_reason(kind)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{key::key, text::encrypted},
        *,
    };

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAeKiWfWZ9XHrRnxEb4dDm+qqz0vZx6CwAjKlrMpMJXe";

    #[test]
    fn file_names_holders_and_survives_a_round_trip() {
        let own = key(1);
        let age = key(9).recipient();
        let text = format!("# A file with a comment\n# bob\n{ED25519} bob@laptop\n\n{age}\n# ann\n{}\n", own.recipient());
        let list = RecipientList::parse(text.as_bytes(), &own).unwrap();
        let found: Vec<_> = list.iter().map(|known| (known.name.as_str(), known.key.as_str())).collect();
        assert_eq!(found, [("bob", ED25519), ("bob", age.as_str())]);
        let again = RecipientList::parse(list.to_text(&own).as_bytes(), &own).unwrap();
        assert!(again.iter().eq(list.iter()), "{}", list.to_text(&own));
        let mut list = again;
        assert_eq!(list.remove("bob").len(), 2);
        assert_eq!(list.iter().count(), 0);
        // A comment of the key names the holder, too.
        let list = RecipientList::parse(format!("{ED25519} carl@laptop\n").as_bytes(), &own).unwrap();
        assert_eq!(list.iter().next().unwrap().name, "carl@laptop");
    }

    #[test]
    fn key_that_age_cannot_use_is_refused_with_its_line() {
        let own = key(1);
        for (line, why) in [
            ("ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBA==", "ecdsa-sha2-nistp256"),
            ("sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIA==", "sk-ssh-ed25519@openssh.com"),
            ("ssh-ed25519 AAAA", "damaged"),
            ("age1nonsense", "neither an age key nor an ssh key"),
            ("AGE-SECRET-KEY-1QQQ", "this is a private key"),
        ] {
            let error = RecipientList::parse(format!("# bob\n{line}\n").as_bytes(), &own).unwrap_err().to_string();
            assert!(error.starts_with("recipients line 2: ") && error.contains(why), "{line}: {error}");
        }
        let mut list = RecipientList::default();
        assert!(list.add("two words", ED25519, &own).is_err());
        assert_eq!((list.add("bob", ED25519, &own), list.add("bob", ED25519, &own)), (Ok(true), Ok(false)));
        assert_eq!(list.add("x", &own.recipient(), &own), Ok(false));
        assert!(encrypted(b"for two", &own, &list).is_ok());
    }
}
