//! The content of a configuration snapshot, and its text form inside of the encrypted file.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::SnapshotError;
use crate::{
    config::pillar::PillarLevel,
    model::{CommitId, ConfigVariables, SnapshotNumber, UserName},
};

/// The maximum number of variables of a snapshot.
pub const MAX_VARIABLES: usize = 1000;
/// The maximum size of a value in bytes. The kernel accepts at most 128 KiB for one variable.
pub const MAX_VALUE: usize = 64 * 1024;
/// The maximum size of all names and values of a snapshot in bytes. The kernel accepts about 2 MiB for all variables and arguments of a
/// program.
pub const MAX_TOTAL: usize = 1024 * 1024;

/// The version of the text form with a pillar. A snapshot without a pillar is written in version 1, which earlier versions of larder read.
const VERSION: u64 = 2;
/// The version of the text form without a pillar.
const FIRST_VERSION: u64 = 1;

/// The values of a pillar that a snapshot contains: the files of one commit that concern the environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PillarContent {
    /// The commit of the pillar.
    pub commit: CommitId,
    /// The files, in rising order of precedence.
    pub levels: Vec<PillarLevel>,
}

/// A configuration snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub number: SnapshotNumber,
    /// The moment at which the snapshot was created.
    pub at: Timestamp,
    /// The author of the change.
    pub by: UserName,
    /// The snapshot that was changed; `None` if there was no configuration before.
    pub based_on: Option<SnapshotNumber>,
    /// The names of the variables to which the change gave a value.
    pub set: Vec<String>,
    /// The names of the variables that the change removed.
    pub unset: Vec<String>,
    /// All variables after the change, without the variables of the pillar.
    pub variables: ConfigVariables,
    /// The values of the pillar; `None` if nothing was pushed to the pillar yet.
    pub pillar: Option<PillarContent>,
}

/// The text form of a snapshot, as JSON. Values are in base64, because a value may have any bytes.
#[derive(Serialize, Deserialize)]
struct Text {
    version: u64,
    number: SnapshotNumber,
    at: Timestamp,
    by: UserName,
    based_on: Option<SnapshotNumber>,
    set: Vec<String>,
    unset: Vec<String>,
    variables: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pillar: Option<PillarContent>,
}

impl Snapshot {
    /// Returns an error if the snapshot exceeds a limit.
    pub(super) fn check(&self) -> Result<(), SnapshotError> {
        check_limits(&self.variables)
    }

    /// Returns the text form.
    pub(super) fn to_text(&self) -> Result<Vec<u8>, SnapshotError> {
        let text = Text {
            version: if self.pillar.is_some() { VERSION } else { FIRST_VERSION },
            number: self.number,
            at: self.at,
            by: self.by.clone(),
            based_on: self.based_on,
            set: self.set.clone(),
            unset: self.unset.clone(),
            variables: self.variables.iter().map(|(name, value)| (name.to_owned(), BASE64.encode(value))).collect(),
            pillar: self.pillar.clone(),
        };
        let wrong = |error: serde_json::Error| SnapshotError::Content { number: self.number, why: error.to_string() };
        serde_json::to_vec(&text).map_err(wrong)
    }

    /// Reads the text form of the snapshot `number`. Errors contain no values.
    pub(super) fn from_text(number: SnapshotNumber, text: &[u8]) -> Result<Snapshot, SnapshotError> {
        let wrong = |why: String| SnapshotError::Content { number, why };
        // An error of the parser can quote a value, so the error only names the position.
        let position =
            |error: &serde_json::Error| wrong(format!("invalid text at line {}, column {}", error.line(), error.column()));
        let value: serde_json::Value = serde_json::from_slice(text).map_err(|error| position(&error))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(FIRST_VERSION | VERSION) => {}
            seen => {
                let seen = seen.map_or_else(|| String::from("none"), |seen| seen.to_string());
                return Err(wrong(format!("format version {seen} (this larder reads versions {FIRST_VERSION} to {VERSION})")));
            }
        }
        let text: Text = serde_json::from_value(value).map_err(|error| position(&error))?;
        if text.number != number {
            return Err(wrong(format!("the file contains configuration {}", text.number)));
        }
        let decode = |(name, value): (String, String)| match BASE64.decode(value.as_bytes()) {
            Ok(value) => Ok((name, value)),
            Err(_) => Err(wrong(format!("the value of {name} is not base64"))),
        };
        let variables: Result<ConfigVariables, _> = text.variables.into_iter().map(decode).collect();
        Ok(Snapshot {
            number,
            at: text.at,
            by: text.by,
            based_on: text.based_on,
            set: text.set,
            unset: text.unset,
            variables: variables?,
            pillar: text.pillar,
        })
    }

    /// Returns all values of the snapshot with their names, for a redactor: the variables, and the values of the pillar as they are written.
    pub fn all_values(&self) -> ConfigVariables {
        let mut all: Vec<(String, Vec<u8>)> = Vec::new();
        for level in self.pillar.iter().flat_map(|pillar| &pillar.levels) {
            level.root.texts("", &mut |path, text| all.push((path.to_owned(), text.as_bytes().to_vec())));
        }
        all.extend(self.variables.iter().map(|(name, value)| (name.to_owned(), value.to_vec())));
        all.into_iter().collect()
    }
}

/// Returns an error if variables exceed a limit of snapshots.
pub fn check_limits(variables: &ConfigVariables) -> Result<(), SnapshotError> {
    let largest = variables.iter().map(|(_, value)| value.len()).max().unwrap_or(0);
    let limits = [
        ("variables", variables.len(), MAX_VARIABLES),
        ("bytes in one value", largest, MAX_VALUE),
        ("bytes in all names and values", variables.size(), MAX_TOTAL),
    ];
    match limits.into_iter().find(|(_, seen, limit)| seen > limit) {
        Some((what, seen, limit)) => Err(SnapshotError::TooLarge { what, seen, limit }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let every: Vec<u8> = (1..=255).collect();
        Snapshot {
            number: SnapshotNumber(7),
            at: Timestamp::UNIX_EPOCH,
            by: "ann".parse().unwrap(),
            based_on: Some(SnapshotNumber(5)),
            set: vec![String::from("A")],
            unset: vec![String::from("B")],
            variables: [(String::from("A"), every), (String::from("_E"), Vec::new())].into_iter().collect(),
            pillar: None,
        }
    }

    #[test]
    fn snapshot_survives_a_round_trip() {
        let text = snapshot().to_text().unwrap();
        assert_eq!(Snapshot::from_text(SnapshotNumber(7), &text).unwrap(), snapshot());
    }

    #[test]
    fn pillar_survives_a_round_trip_and_its_deepest_nesting() {
        let deep = format!("a: {}x{}", "[".repeat(15), "]".repeat(15));
        let plain = |_: &str| Ok(crate::config::pillar::PillarText::Plain);
        let level = |file: &str, text: &str| PillarLevel::parse(file, text.as_bytes(), &plain).unwrap();
        let levels = vec![level("init.yml", &deep), level("production.yml", "b: {c: [1, true, ~, \"5\"]}\nd: hunter22\n")];
        let pillar = PillarContent { commit: "a".repeat(40).parse().unwrap(), levels };
        let with = Snapshot { pillar: Some(pillar), ..snapshot() };
        let text = with.to_text().unwrap();
        assert!(String::from_utf8_lossy(&text).contains("\"version\":2"));
        assert_eq!(Snapshot::from_text(SnapshotNumber(7), &text).unwrap(), with);
        assert_eq!(with.all_values().get("d"), Some(&b"hunter22"[..]));
        assert!(String::from_utf8_lossy(&snapshot().to_text().unwrap()).contains("\"version\":1"));
    }

    #[test]
    fn text_of_another_version_or_number_is_refused_without_values() {
        let text = String::from_utf8(snapshot().to_text().unwrap()).unwrap();
        for (changed, expected) in [
            (text.replace("\"version\":1", "\"version\":3"), "format version 3"),
            (text.replace("\"version\":1,", ""), "format version none"),
            (text.replace("\"number\":7", "\"number\":8"), "the file contains configuration 8"),
            (text.replace("\"_E\":\"\"", "\"_E\":\"%\""), "the value of _E is not base64"),
            (text.replace("\"_E\":\"\"", "\"_E\":123456"), "invalid text"),
            (String::from("{"), "invalid text"),
        ] {
            let error = Snapshot::from_text(SnapshotNumber(7), changed.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("123456"), "{error}");
        }
    }

    #[test]
    fn snapshot_over_a_limit_is_refused() {
        assert!(snapshot().check().is_ok());
        let with = |variables: Vec<(String, Vec<u8>)>| Snapshot { variables: variables.into_iter().collect(), ..snapshot() };
        let named = |count: usize, size: usize| (0..count).map(|at| (format!("V{at}"), vec![b'x'; size])).collect::<Vec<_>>();
        assert!(with(named(1, MAX_VALUE)).check().is_ok());
        for (large, expected) in [
            (named(1, MAX_VALUE + 1), "bytes in one value"),
            (named(1001, 1), "1001 variables"),
            (named(17, 63_000), "all names"),
        ] {
            let error = with(large).check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
