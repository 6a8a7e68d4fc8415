//! Identifiers that larder assigns.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The number of a project on this server, which is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProjectId(pub u32);

/// The number of an environment on this server, which is never reused. [`UserNumbers::of`] computes the uids of the environment's users
/// from this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EnvId(pub u32);

/// The number from which the uids of all environments are counted, if larder runs as root. [`UserNumbers::of`] computes a uid from this
/// number, the number of an environment and the number of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserNumbers(pub u32);

impl UserNumbers {
    /// The number of uids of each environment.
    pub const EACH: u32 = 4;

    /// Returns the uid of one of the users of an environment. `which` is the number of the user, below [`UserNumbers::EACH`].
    pub fn of(self, environment: EnvId, which: u32) -> u32 {
        self.0.saturating_add(environment.0.saturating_mul(Self::EACH)).saturating_add(which)
    }

    /// Returns the uid of the applications of an environment.
    pub fn run(self, environment: EnvId) -> u32 {
        self.of(environment, 2)
    }
}

macro_rules! moment_id {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type {
            seconds: i64,
            uuid: Uuid,
        }

        impl $type {
            /// Creates a new id for the time `now`.
            pub fn new(now: Timestamp) -> Self {
                // UUIDs of version 7 begin with the time in milliseconds, so ids that were created in one second are sorted by time, too.
                let seconds = u64::try_from(now.as_second()).unwrap_or_default();
                let nanoseconds = u32::try_from(now.subsec_nanosecond()).unwrap_or_default();
                let moment = uuid::Timestamp::from_unix(uuid::ContextV7::new(), seconds, nanoseconds);
                Self { seconds: now.as_second(), uuid: Uuid::new_v7(moment) }
            }

            /// Returns the time in the id, with a precision of one second.
            pub fn created(&self) -> Timestamp {
                Timestamp::from_second(self.seconds).unwrap_or(Timestamp::UNIX_EPOCH)
            }

            /// Returns the unique part of the id.
            pub fn uuid(&self) -> Uuid {
                self.uuid
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let moment = self.created().to_zoned(TimeZone::UTC);
                write!(f, "{}-{}", moment.strftime("%Y%m%dT%H%M%SZ"), self.uuid.hyphenated())
            }
        }

        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                let wrong = || format!(concat!("{:?} is not a ", $what, " id"), text);
                let (moment, uuid) = text.split_once('-').ok_or_else(wrong)?;
                let moment = moment.strip_suffix('Z').ok_or_else(wrong)?;
                let moment = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%S", moment).map_err(|_| wrong())?;
                let moment = moment.to_zoned(TimeZone::UTC).map_err(|_| wrong())?;
                let id = Self {
                    seconds: moment.timestamp().as_second(),
                    uuid: Uuid::try_parse(uuid).map_err(|_| wrong())?,
                };
                // Ids are names of directories, so each id has exactly one valid spelling.
                if id.to_string() == text { Ok(id) } else { Err(wrong()) }
            }
        }

        impl TryFrom<String> for $type {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.to_string()
            }
        }
    };
}

moment_id!(
    /// The id of a release, `<DATETIME>-<UUID>`. The names of the release's directory and archive contain the id.
    ReleaseId,
    "release"
);
moment_id!(
    /// The id of a deployment, `<DATETIME>-<UUID>`.
    DeploymentId,
    "deployment"
);

impl From<DeploymentId> for ReleaseId {
    /// Returns the release id with the same text. Requests to the keeper name the workspace of a deployment in this form.
    fn from(id: DeploymentId) -> ReleaseId {
        ReleaseId { seconds: id.seconds, uuid: id.uuid }
    }
}
moment_id!(
    /// The id of a restore point, `<DATETIME>-<UUID>`, with the time at which the restore point was requested.
    PointId,
    "restore point"
);

/// The number of a release within its environment: `v1`, `v2`, ...
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReleaseNumber(pub u32);

impl fmt::Display for ReleaseNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl FromStr for ReleaseNumber {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix('v').unwrap_or(text);
        match digits.parse() {
            Ok(number) if number > 0 && digits.bytes().all(|c| c.is_ascii_digit()) => Ok(ReleaseNumber(number)),
            _ => Err(format!("{text:?} is not the number of a release (expected v1, v2, ...)")),
        }
    }
}

/// The full id of a git object, usually a commit: 40 (SHA-1) or 64 (SHA-256) hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitId(String);

impl CommitId {
    /// Returns all digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the first ten digits, which messages show.
    pub fn short(&self) -> &str {
        self.0.get(..10).unwrap_or(&self.0)
    }

    /// The minimum length of the beginning of an id that names the id.
    const MIN_LENGTH: usize = 4;

    /// Returns true if a user's text names this id: its first four or more digits, in upper or lower case.
    pub fn begins_with(&self, text: &str) -> bool {
        text.len() >= CommitId::MIN_LENGTH && self.0.get(..text.len()).is_some_and(|digits| digits.eq_ignore_ascii_case(text))
    }

    /// Returns true for git's null id, which stands for the missing side of a created or deleted ref.
    pub fn is_zero(&self) -> bool {
        self.0.bytes().all(|c| c == b'0')
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CommitId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if matches!(text.len(), 40 | 64) && text.bytes().all(digits) {
            Ok(CommitId(text.to_owned()))
        } else {
            Err(format!(
                "{:?} is not a full commit id (expected 40 or 64 hexadecimal digits)",
                text.chars().take(80).collect::<String>()
            ))
        }
    }
}

impl TryFrom<String> for CommitId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<CommitId> for String {
    fn from(id: CommitId) -> String {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_in_any_case_name_a_commit() {
        let commit: CommitId = format!("{:0<40}", "abcd1").parse().unwrap();
        for text in ["abcd", "ABCD1", commit.as_str()] {
            assert!(commit.begins_with(text), "{text}");
        }
        for text in ["", "abc", "abcd2", "zbcd", "abcdé", &format!("{commit}0")] {
            assert!(!commit.begins_with(text), "{text}");
        }
    }

    #[test]
    fn release_ids_round_trip_and_sort_by_time() {
        let early = ReleaseId::new(Timestamp::from_second(1_700_000_000).unwrap());
        let late = ReleaseId::new(Timestamp::from_second(1_700_000_001).unwrap());
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(early.to_string().parse(), Ok(early));
        assert!(early.to_string().starts_with("20231114T221320Z-"));
    }

    #[test]
    fn ids_of_one_second_sort_by_creation() {
        let second = Timestamp::from_second(1_700_000_000).unwrap();
        let at = |milliseconds| ReleaseId::new(second + jiff::SignedDuration::from_millis(milliseconds));
        let ids: Vec<_> = (0..1000).step_by(7).map(at).collect();
        assert!(ids.is_sorted());
        assert_ne!(at(3), at(3));
    }

    #[test]
    fn id_in_a_non_canonical_spelling_is_rejected() {
        let id = ReleaseId::new(Timestamp::from_second(1_700_000_000).unwrap()).to_string();
        for bad in [id.to_uppercase(), format!("{id}/.."), id.replace('Z', ""), String::from("current"), String::from("..")] {
            assert!(bad.parse::<ReleaseId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn release_number_is_read_with_and_without_v() {
        assert_eq!("v41".parse(), Ok(ReleaseNumber(41)));
        assert_eq!("41".parse(), Ok(ReleaseNumber(41)));
        assert!("v0".parse::<ReleaseNumber>().is_err() && "v+1".parse::<ReleaseNumber>().is_err());
    }
}
