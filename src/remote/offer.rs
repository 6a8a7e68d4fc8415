//! The releases that a remote offers, the search for the release that a user names, and the limits of everything that a remote sends.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{CommitId, Digest, EnvironmentName, ProjectName, ReleaseId, ReleaseNameForm, ReleaseNumber, sanitise_reason};

/// The maximum size of a list of offers, in bytes.
pub(super) const MAX_LIST_BYTES: u64 = 4 << 20;
/// The maximum number of offers that are read from one remote.
pub(super) const MAX_OFFERS: usize = 1000;
/// The maximum size of a health record or of the description of an object, in bytes.
pub(super) const MAX_SMALL_BYTES: u64 = 1 << 20;
/// The number of chunks of a transfer that may wait for the disk. A chunk is the result of one read from the network: at most 32 KiB over
/// ssh.
pub(crate) const MAX_QUEUE: usize = 16;

/// The maximum sizes of transfers from a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferLimits {
    /// The maximum size of an archive or a delta, in bytes.
    pub archive_bytes: u64,
    /// The maximum size of a manifest, in bytes.
    pub manifest_bytes: u64,
    /// The maximum size of a git pack, in bytes.
    pub pack_bytes: u64,
}

impl Default for TransferLimits {
    fn default() -> TransferLimits {
        TransferLimits { archive_bytes: 4 << 30, manifest_bytes: 256 << 20, pack_bytes: 512 << 20 }
    }
}

/// The size and digest of a file, which are known before the file is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// The size in bytes.
    pub bytes: u64,
    /// The digest of the content.
    pub digest: Digest,
}

/// A release that a remote offers, with the data by which a release is chosen. An offer is not signed and proves nothing. The manifest of
/// the release is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The project of the release.
    pub project: ProjectName,
    /// The environment for which the release was built.
    pub environment: EnvironmentName,
    /// The id of the release.
    pub release: ReleaseId,
    /// The number of the release in the environment that offers it; `None` if the release never went live in this environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<ReleaseNumber>,
    /// The build number.
    pub build: u64,
    /// The commit of the release.
    pub commit: CommitId,
    /// The git tree of the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<CommitId>,
    /// The version tag of the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The digest of the installed tree.
    pub tree: Digest,
    /// The time of the build.
    pub created: Timestamp,
    /// The size of the archive in bytes.
    pub archive_bytes: u64,
    /// The size and digest of the manifest file.
    pub manifest: Blob,
    /// True if the release is live in the environment that offers it.
    #[serde(default)]
    pub live: bool,
    /// The time at which the release last became healthy in the environment that offers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_since: Option<Timestamp>,
}

impl Offer {
    /// Returns a title for users, such as `v42 (1a2b3c4d5e)`. Without a number and a tag, the title is the commit alone.
    pub fn title(&self) -> String {
        // The tag comes from another server, so it may contain control characters.
        let tag = self.tag.as_deref().map(sanitise_reason);
        match (&self.number, &tag) {
            (Some(number), Some(tag)) => format!("{number} {tag} ({})", self.commit.short()),
            (Some(number), None) => format!("{number} ({})", self.commit.short()),
            (None, Some(tag)) => format!("{tag} ({})", self.commit.short()),
            (None, None) => self.commit.short().to_owned(),
        }
    }
}

/// A file of a release that a remote can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// The manifest, `<id>.manifest.json`.
    Manifest,
    /// The archive, `<id>.tar.zst`.
    Archive,
    /// The health record, `<id>.health.json`.
    Health,
    /// The delta that starts from an older release.
    Delta {
        /// The older release.
        from: ReleaseId,
    },
    /// The commit and all objects that are reachable from the commit, as a git pack.
    Pack,
}

impl Object {
    /// Returns the word for this file in the command `deliverable get`.
    pub fn word(&self) -> &'static str {
        match self {
            Object::Manifest => "manifest",
            Object::Archive => "archive",
            Object::Health => "health",
            Object::Delta { .. } => Object::DELTA,
            Object::Pack => "pack",
        }
    }

    /// The word for a delta in the command `deliverable get`.
    pub(super) const DELTA: &'static str = "delta";
    /// The name of the description of a delta, in error messages.
    pub(super) const DELTA_NOTE: &'static str = "description of a delta";
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The result of [`find`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<'a> {
    /// The offer that the text names.
    One(&'a Offer),
    /// The text names no offer.
    None,
    /// The text names several releases: several environments have a release with this number, or several commits begin with these digits.
    /// The value has the newest release of each commit, or all releases with the number.
    Ambiguous(Vec<&'a Offer>),
}

/// Finds the offer that `text` names: a release id, `v42`, a tag, a commit id, or the first four or more digits of a commit id. If several
/// releases have the same commit, returns the newest of these releases. `offers` must be sorted newest first.
pub fn find<'a>(offers: &'a [Offer], text: &str) -> Found<'a> {
    if let Ok(id) = text.parse::<ReleaseId>() {
        return offers.iter().find(|offer| offer.release == id).map_or(Found::None, Found::One);
    }
    let form = ReleaseNameForm::of(text);
    if let Some(tag) = form.tag()
        && let Some(tagged) = offers.iter().find(|offer| offer.tag.as_deref() == Some(tag))
    {
        return Found::One(tagged);
    }
    if let ReleaseNameForm::Number(number) = form {
        return one_of(offers.iter().filter(|offer| number.is_some() && offer.number == number).collect());
    }
    let mut matching: Vec<&Offer> = Vec::new();
    for offer in offers.iter().filter(|offer| offer.commit.begins_with(text)) {
        if matching.iter().all(|known| known.commit != offer.commit) {
            matching.push(offer);
        }
    }
    one_of(matching)
}

fn one_of(matching: Vec<&Offer>) -> Found<'_> {
    match matching.as_slice() {
        [] => Found::None,
        [one] => Found::One(one),
        _ => Found::Ambiguous(matching),
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
    fn title_is_sanitised() {
        assert_eq!(offer(2, "cd", Some("v1\u{1b}[2J\n\u{1b}[31m.4")).title(), "v2 v1 .4 (cdcdcdcdcd)");
    }

    #[test]
    fn release_is_found_by_id_number_tag_and_commit() {
        let offers = [offer(3, "ab", None), offer(2, "cd", Some("v1.4.0")), offer(1, "ab", None)];
        let found = |text: &str| match find(&offers, text) {
            Found::One(offer) => offer.number.map(|number| number.0),
            Found::None => None,
            Found::Ambiguous(_) => Some(0),
        };
        assert_eq!(found("v2"), Some(2));
        assert_eq!(found("v1.4.0"), Some(2));
        assert_eq!(found(&offers[2].release.to_string()), Some(1));
        // Two releases have this commit; the newer release is found.
        assert_eq!(found("abababab"), Some(3));
        assert_eq!(found(offers[1].commit.as_str()), Some(2));
        for (text, number) in [("abab", 3), ("ABABab", 3), ("CDCD", 2)] {
            assert_eq!(found(text), Some(number), "{text}");
        }
        for missing in ["v9", "aba", "", "deadbeef", "v", "2"] {
            assert_eq!(found(missing), None, "{missing}");
        }
        // A tag with the form of a number is found only below refs/tags/.
        let tagged = [offer(3, "ab", Some("v2")), offer(2, "cd", None)];
        assert_eq!(find(&tagged, "v2"), Found::One(&tagged[1]));
        assert_eq!(find(&tagged, "refs/tags/v2"), Found::One(&tagged[0]));
        let near = [offer(2, "abababab2", None), offer(1, "abababab1", None)];
        assert_eq!(find(&near, "ABABABAB"), Found::Ambiguous(vec![&near[0], &near[1]]));
        assert_eq!(find(&near, "abababab2"), Found::One(&near[0]));
    }

    #[test]
    fn offer_with_unknown_fields_is_read() {
        let text = serde_json::to_string(&offer(1, "ab", None)).unwrap();
        let more = text.replacen('{', "{\"moon\":\"full\",", 1);
        assert_eq!(serde_json::from_str::<Offer>(&more).unwrap().number, Some(ReleaseNumber(1)));
    }
}
