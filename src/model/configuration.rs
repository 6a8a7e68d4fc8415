//! The configuration of an environment as values: numbers and references of snapshots, variables, and changes of variables.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::Digest;

/// The number of a configuration snapshot. Numbers rise within an environment, and no number is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotNumber(pub u32);

impl fmt::Display for SnapshotNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of a configuration snapshot in specifications and lists. The digest covers the encrypted file, so the digest says nothing
/// about the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// The number of the snapshot.
    pub number: SnapshotNumber,
    /// The digest of the encrypted file.
    pub digest: Digest,
}

/// The variables of a configuration snapshot. A value consists of any bytes except NUL. `Debug` shows names only.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConfigVariables(BTreeMap<String, Vec<u8>>);

impl ConfigVariables {
    /// Returns the variables, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// Returns the value of a variable.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// Returns the number of variables.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if there are no variables.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the total size of all names and values, in bytes.
    pub fn size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len().saturating_add(value.len())).fold(0, usize::saturating_add)
    }

    /// Splits the variables into those whose value is text, and all others.
    pub fn split_text(mut self) -> (BTreeMap<String, String>, ConfigVariables) {
        let (mut texts, mut others) = (BTreeMap::new(), BTreeMap::new());
        for (name, value) in std::mem::take(&mut self.0) {
            match String::from_utf8(value) {
                Ok(text) => drop(texts.insert(name, text)),
                Err(error) => drop(others.insert(name, error.into_bytes())),
            }
        }
        (texts, ConfigVariables(others))
    }

    /// Removes the variables for which `keep` returns false.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &[u8]) -> bool) {
        self.0.retain(|name, value| keep(name, value));
    }

    /// Returns the names of the variables that differ between `self` and `other`: added, removed or with another value.
    pub fn differences<'a>(&'a self, other: &'a ConfigVariables) -> Vec<(&'a str, VariableChange)> {
        let names: BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let change = |name: &&'a String| {
            let kind = match (self.get(name), other.get(name)) {
                (None, _) => VariableChange::Added,
                (_, None) => VariableChange::Removed,
                (Some(before), Some(after)) if before != after => VariableChange::Changed,
                _ => return None,
            };
            Some((name.as_str(), kind))
        };
        names.iter().filter_map(change).collect()
    }
}

/// Overwrites the values, so that they do not stay in freed memory.
impl Drop for ConfigVariables {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Zeroize::zeroize);
    }
}

impl fmt::Debug for ConfigVariables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl FromIterator<(String, Vec<u8>)> for ConfigVariables {
    fn from_iter<I: IntoIterator<Item = (String, Vec<u8>)>>(variables: I) -> ConfigVariables {
        ConfigVariables(variables.into_iter().collect())
    }
}

/// A difference of one variable between two snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VariableChange {
    /// Only the later snapshot has the variable.
    Added,
    /// Only the earlier snapshot has the variable.
    Removed,
    /// The values differ.
    Changed,
}

/// A change of the configuration: variables that get a value, and variables that are removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigChange {
    /// The variables that get a value.
    pub set: ConfigVariables,
    /// The names of the variables that are removed.
    pub unset: BTreeSet<String>,
}

impl ConfigChange {
    /// Returns the variables after the change of `before`.
    pub fn applied(&self, before: &ConfigVariables) -> ConfigVariables {
        let mut after = before.clone();
        after.0.retain(|name, _| !self.unset.contains(name));
        after.0.extend(self.set.0.iter().map(|(name, value)| (name.clone(), value.clone())));
        after
    }

    /// Returns the first variable of this change that another change has given another value since `seen`: its value in `now` is neither
    /// the value that the author of this change has seen, nor the value of this change.
    pub fn conflict<'a>(&'a self, seen: &ConfigVariables, now: &ConfigVariables) -> Option<&'a str> {
        let names = self.set.0.keys().chain(&self.unset).map(String::as_str);
        names.into_iter().find(|name| now.get(name) != seen.get(name) && now.get(name) != self.set.get(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(all: &[(&str, &str)]) -> ConfigVariables {
        all.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
    }

    fn change(set: &[(&str, &str)], unset: &[&str]) -> ConfigChange {
        ConfigChange { set: variables(set), unset: unset.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn change_sets_and_removes_variables() {
        let before = variables(&[("A", "1"), ("B", "2"), ("C", "3")]);
        let after = change(&[("B", "x"), ("D", "4")], &["A", "NONE"]).applied(&before);
        assert_eq!(after, variables(&[("B", "x"), ("C", "3"), ("D", "4")]));
        let differences = before.differences(&after);
        assert_eq!(differences, [("A", VariableChange::Removed), ("B", VariableChange::Changed), ("D", VariableChange::Added)]);
        assert_eq!(before.differences(&before), []);
    }

    #[test]
    fn conflict_is_another_value_since_the_author_looked() {
        let seen = variables(&[("A", "1"), ("B", "2")]);
        let now = variables(&[("A", "changed"), ("C", "3")]);
        assert_eq!(change(&[("A", "mine")], &[]).conflict(&seen, &now), Some("A"));
        assert_eq!(change(&[], &["A"]).conflict(&seen, &now), Some("A"));
        assert_eq!(change(&[("C", "mine")], &[]).conflict(&seen, &now), Some("C"));
        // The same value, the same removal, and other variables are no conflict.
        assert_eq!(change(&[("A", "changed")], &["B"]).conflict(&seen, &now), None);
        assert_eq!(change(&[("D", "4")], &[]).conflict(&seen, &now), None);
    }

    #[test]
    fn debug_output_contains_no_value() {
        let shown = format!("{:?}", change(&[("TOKEN", "hunter2")], &["OLD"]));
        assert!(shown.contains("TOKEN") && shown.contains("OLD") && !shown.contains("hunter2"), "{shown}");
        assert!(!shown.contains("104, 117"), "{shown}");
    }
}
