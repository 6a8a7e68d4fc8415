//! The secrets that a person could read, from the history of a pillar.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    key::ProjectKey,
    recipients::{RECIPIENTS_FILE, RecipientList},
    sops::is_sops,
    text::EncryptedText,
};
use crate::config::pillar::{PillarLevel, PillarText};

/// The digest of a value, so that no value stays in memory.
type ValueDigest = [u8; 32];

/// The encrypted values of a file with their keys; `None` for a value that cannot be decrypted.
type Values = Vec<(String, Option<ValueDigest>)>;

/// A secret that a person could read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ReadableSecret {
    /// The file of the pillar.
    pub file: String,
    /// The key in the file.
    pub key: String,
    /// True if the present value is one that the person could read, so that the value must be replaced.
    pub is_current: bool,
}

/// Returns the secrets that were encrypted while one of `keys` was a recipient. `commits` has the files of each commit, newest first.
///
/// The program age does not record which age keys can read a file, so the list of recipients in the same commit counts.
pub fn readable<'f>(
    commits: impl IntoIterator<Item = Vec<(&'f str, &'f [u8])>>,
    keys: &BTreeSet<String>,
    own: &ProjectKey,
) -> Vec<ReadableSecret> {
    let mut seen: BTreeMap<(String, String), BTreeSet<Option<ValueDigest>>> = BTreeMap::new();
    let mut current: Option<BTreeMap<(String, String), Option<ValueDigest>>> = None;
    // Most commits change one file, so that the other files are parsed once.
    let mut parsed: BTreeMap<(&str, &[u8]), Values> = BTreeMap::new();
    for files in commits {
        let list = files.iter().find(|(name, _)| *name == RECIPIENTS_FILE);
        let list = list.and_then(|(_, bytes)| RecipientList::parse(bytes, own).ok()).unwrap_or_default();
        let could_read = list.iter().any(|known| keys.contains(&known.key));
        let is_newest = current.is_none();
        if !could_read && !is_newest {
            continue;
        }
        for (name, bytes) in files.into_iter().filter(|(name, _)| name.ends_with(".yml")) {
            let values = parsed.entry((name, bytes)).or_insert_with(|| values(name, bytes, own));
            for (key, value) in values.iter() {
                let place = (name.to_owned(), key.clone());
                if is_newest {
                    current.get_or_insert_default().insert(place.clone(), *value);
                }
                if could_read {
                    seen.entry(place).or_default().insert(*value);
                }
            }
        }
        current.get_or_insert_default();
    }
    let current = current.unwrap_or_default();
    let of = |((file, key), values): ((String, String), BTreeSet<Option<ValueDigest>>)| {
        let place = (file, key);
        let is_current = current.get(&place).is_some_and(|now| now.is_none() || values.contains(now));
        ReadableSecret { file: place.0, key: place.1, is_current }
    };
    seen.into_iter().map(of).collect()
}

/// Returns the encrypted values of a file.
fn values(name: &str, bytes: &[u8], own: &ProjectKey) -> Values {
    let Ok(level) = PillarLevel::parse(name, bytes, &|_| Ok(PillarText::Plain)) else { return Vec::new() };
    let mut found = Vec::new();
    // The recipients of a file of SOPS are in the file itself, and only the program sops changes them.
    if is_sops(&level) {
        return found;
    }
    level.root.texts("", &mut |key, text| {
        if let Ok(Some(value)) = EncryptedText::parse(text) {
            found.push((key.to_owned(), value.decrypt(own).ok().map(|value| *blake3::hash(value.as_bytes()).as_bytes())));
        }
    });
    found
}

#[cfg(test)]
mod tests {
    use super::{
        super::{key::key, text::encrypted},
        *,
    };

    #[test]
    fn secrets_of_the_time_as_recipient_are_listed() {
        let own = key(1);
        let bob = key(7).recipient();
        let list = RecipientList::parse(format!("# bob\n{bob}\n").as_bytes(), &own).unwrap();
        let value = |text: &str| encrypted(text.as_bytes(), &own, &list).unwrap();
        let with_bob = list.to_text(&own);
        let before = format!("old: {}\n", value("gone"));
        let during = format!("env: {{A: \"{}\", B: \"{}\"}}\n", value("a one"), value("b one"));
        let after = format!("env: {{A: \"{}\", B: \"{}\", C: \"{}\"}}\n", value("a two"), value("b one"), value("c"));
        let commits = vec![
            vec![("init.yml", after.as_bytes())],
            vec![("init.yml", during.as_bytes()), (RECIPIENTS_FILE, with_bob.as_bytes())],
            vec![("init.yml", before.as_bytes())],
        ];
        let found = readable(commits, &BTreeSet::from([bob]), &own);
        let shown: Vec<_> = found.iter().map(|one| (one.key.as_str(), one.is_current)).collect();
        assert_eq!(shown, [("env.A", false), ("env.B", true)]);
    }
}
