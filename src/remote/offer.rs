//! What a place offers, and how people name one of it.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{CommitId, Digest, EnvironmentName, ProjectName, ReleaseId, ReleaseNumber, sanitise_reason};

/// A file whose content is known before it is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its size in bytes.
    pub bytes: u64,
    /// The digest of its bytes.
    pub digest: Digest,
}

/// A release that a place has, with what is needed to choose one. It is a hint only: what is true stands in the signed manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The project.
    pub project: ProjectName,
    /// The environment that it was made for.
    pub environment: EnvironmentName,
    /// The release.
    pub release: ReleaseId,
    /// Its number in that environment; nothing where it never ran there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<ReleaseNumber>,
    /// The number of its build.
    pub build: u64,
    /// Its commit.
    pub commit: CommitId,
    /// The git tree of its commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<CommitId>,
    /// The version tag of its commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The digest of its tree.
    pub tree: Digest,
    /// When it was made.
    pub created: Timestamp,
    /// The size of its archive in bytes.
    pub archive_bytes: u64,
    /// Its manifest, as a file.
    pub manifest: Blob,
    /// Whether it serves there now.
    #[serde(default)]
    pub live: bool,
    /// When it became healthy there, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_since: Option<Timestamp>,
}

impl Offer {
    /// `v42 (1a2b3c4d5e)`, or without a number the commit alone; for people.
    pub fn title(&self) -> String {
        // Another server's words.
        let tag = self.tag.as_deref().map(sanitise_reason);
        match (&self.number, &tag) {
            (Some(number), Some(tag)) => format!("{number} {tag} ({})", self.commit.short()),
            (Some(number), None) => format!("{number} ({})", self.commit.short()),
            (None, Some(tag)) => format!("{tag} ({})", self.commit.short()),
            (None, None) => self.commit.short().to_owned(),
        }
    }
}

/// A file of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// `<id>.manifest.json`.
    Manifest,
    /// `<id>.tar.zst`.
    Archive,
    /// `<id>.health.json`.
    Health,
    /// What turns an older release into this one.
    Delta {
        /// The older release.
        from: ReleaseId,
    },
    /// The commit and what it consists of, as a pack of git.
    Pack,
}

impl Object {
    /// The word of the command line.
    pub fn word(&self) -> &'static str {
        match self {
            Object::Manifest => "manifest",
            Object::Archive => "archive",
            Object::Health => "health",
            Object::Delta { .. } => Object::DELTA,
            Object::Pack => "pack",
        }
    }

    /// The word for a delta.
    pub(super) const DELTA: &'static str = "delta";
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What [`find`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<'a> {
    /// This one.
    One(&'a Offer),
    /// None.
    None,
    /// Several commits or releases begin with what was given.
    Ambiguous,
}

/// The shortest beginning of a commit that names it.
const SHORTEST: usize = 7;

/// The offer that somebody means with `text`: a release id, `v42`, a tag, or a commit or its beginning. Of several releases of one
/// commit it is the newest. `offers` are sorted newest first.
pub fn find<'a>(offers: &'a [Offer], text: &str) -> Found<'a> {
    if let Ok(id) = text.parse::<ReleaseId>() {
        return offers.iter().find(|offer| offer.release == id).map_or(Found::None, Found::One);
    }
    if let Some(tagged) = offers.iter().find(|offer| offer.tag.as_deref() == Some(text)) {
        return Found::One(tagged);
    }
    if let Some(number) = text.strip_prefix('v').and_then(|_| text.parse::<ReleaseNumber>().ok()) {
        let mut numbered = offers.iter().filter(|offer| offer.number == Some(number));
        return match (numbered.next(), numbered.next()) {
            (Some(one), None) => Found::One(one),
            (Some(_), Some(_)) => Found::Ambiguous,
            (None, _) => Found::None,
        };
    }
    if text.len() < SHORTEST {
        return Found::None;
    }
    let mut begin = offers.iter().filter(|offer| offer.commit.as_str().starts_with(text));
    match begin.next() {
        Some(newest) if begin.all(|other| other.commit == newest.commit) => Found::One(newest),
        Some(_) => Found::Ambiguous,
        None => Found::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(number: u32, commit: &str, tag: Option<&str>) -> Offer {
        Offer {
            project: "shop".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            release: ReleaseId::new(Timestamp::from_second(1_700_000_000 + i64::from(number)).unwrap()),
            number: Some(ReleaseNumber(number)),
            build: u64::from(number),
            commit: commit.repeat(40).get(..40).unwrap().parse().unwrap(),
            source: None,
            tag: tag.map(str::to_owned),
            tree: Digest::of(b""),
            created: Timestamp::UNIX_EPOCH,
            archive_bytes: 1,
            manifest: Blob { bytes: 1, digest: Digest::of(b"") },
            live: false,
            healthy_since: None,
        }
    }

    #[test]
    fn a_title_is_fit_for_a_terminal_whatever_the_place_says() {
        assert_eq!(offer(2, "cd", Some("v1\u{1b}[2J\n\u{1b}[31m.4")).title(), "v2 v1 .4 (cdcdcdcdcd)");
    }

    #[test]
    fn a_release_has_many_names() {
        let offers = [offer(3, "ab", None), offer(2, "cd", Some("v1.4.0")), offer(1, "ab", None)];
        let found = |text: &str| match find(&offers, text) {
            Found::One(offer) => offer.number.map(|number| number.0),
            Found::None => None,
            Found::Ambiguous => Some(0),
        };
        assert_eq!(found("v2"), Some(2));
        assert_eq!(found("v1.4.0"), Some(2));
        assert_eq!(found(&offers[2].release.to_string()), Some(1));
        // Of two releases of one commit the newer.
        assert_eq!(found("abababab"), Some(3));
        assert_eq!(found(offers[1].commit.as_str()), Some(2));
        for missing in ["v9", "ab", "", "deadbeef", "v", "2"] {
            assert_eq!(found(missing), None, "{missing}");
        }
        let near = [offer(1, "abababab1", None), offer(2, "abababab2", None)];
        assert_eq!(find(&near, "abababab"), Found::Ambiguous);
        assert_eq!(find(&near, "abababab2"), Found::One(&near[1]));
    }

    #[test]
    fn an_offer_of_a_newer_larder_can_be_read() {
        let text = serde_json::to_string(&offer(1, "ab", None)).unwrap();
        let more = text.replacen('{', "{\"moon\":\"full\",", 1);
        assert_eq!(serde_json::from_str::<Offer>(&more).unwrap().number, Some(ReleaseNumber(1)));
    }
}
