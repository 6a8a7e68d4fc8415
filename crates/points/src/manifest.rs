//! The manifest of a restore point, `point.json`, and the record of its last verification, `verified.json`.

use serde::{Deserialize, Serialize};

use crate::{Digest, Entry, Kind, PointError, Result, Skipped, SourceRecord, Time, source};

/// The version that this program writes. The manifests of versions 1 and 2 have the same fields; see [`FIRST_SHARED_VERSION`].
///
/// [`FIRST_SHARED_VERSION`]: crate::store::FIRST_SHARED_VERSION
pub(crate) const VERSION: u64 = 2;

/// The maximum size of a manifest that is read, in bytes.
pub(crate) const MAX_BYTES: u64 = 16 << 20;

/// The description of a restore point. The manifest never changes after the capture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the format.
    pub version: u64,
    /// The id, which is also the name of the directory.
    pub id: String,
    /// The time at which the capture began, in seconds since 1970.
    pub taken: i64,
    /// Data of the caller, such as project, environment and release. A restore compares this data.
    pub label: serde_json::Value,
    /// The captured sources.
    pub sources: Vec<SourceRecord>,
    /// The numbers of entries and bytes.
    pub totals: Totals,
    /// The length of the index in bytes.
    pub index_bytes: u64,
    /// The digest of the index, in hexadecimal.
    pub index_digest: String,
    /// The restore point with which files are shared.
    pub previous: Option<String>,
    /// At most 1000 of the live files that were not captured, sorted by path. `totals.skipped` is the number of all files that were not
    /// captured.
    pub skipped: Vec<Skipped>,
}

/// The numbers of entries and bytes of a restore point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// The number of all entries.
    pub entries: u64,
    /// The number of directories.
    pub directories: u64,
    /// The number of regular files. Further names of a file do not count.
    pub files: u64,
    /// The number of symbolic links.
    pub symlinks: u64,
    /// The number of further names of files.
    pub hard_links: u64,
    /// The bytes of all files, holes included.
    pub bytes: u64,
    /// The number of files that are shared with the previous restore point.
    pub shared_files: u64,
    /// The bytes of files that were copied or cloned.
    pub copied_bytes: u64,
    /// The number of files that changed each time they were read.
    pub torn: u64,
    /// The number of live files that were left out.
    pub skipped: u64,
}

impl Totals {
    /// Counts entries. The numbers that only a capture provides stay zero.
    pub(crate) fn of(entries: &[Entry]) -> Totals {
        let mut totals = Totals { entries: entries.len() as u64, ..Totals::default() };
        for entry in entries {
            match entry.kind {
                Kind::Directory => totals.directories += 1,
                Kind::Symlink { .. } => totals.symlinks += 1,
                Kind::HardLink { .. } => totals.hard_links += 1,
                Kind::File { size, is_torn, .. } => {
                    totals.files += 1;
                    totals.bytes = totals.bytes.saturating_add(size);
                    totals.torn += u64::from(is_torn);
                }
            }
        }
        totals
    }

    fn counts(&self) -> [u64; 7] {
        [self.entries, self.directories, self.files, self.symlinks, self.hard_links, self.bytes, self.torn]
    }
}

impl Manifest {
    /// Returns the bytes of `point.json`.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|e| PointError::io("encode", "point.json", e))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads `point.json` of the restore point `id`.
    pub(crate) fn decode(bytes: &[u8], id: &str) -> Result<Manifest> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let wrong = |why: String| PointError::Malformed { what: "the manifest", id: id.to_owned(), why };
        let Version { version } = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
        if version > VERSION {
            return Err(PointError::Version { what: "the manifest", id: id.to_owned(), found: version, supported: VERSION });
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
        if version == 0 || manifest.id != id {
            return Err(wrong(format!("it is of restore point {}, version {version}", manifest.id)));
        }
        source::check(manifest.sources.iter().map(|record| &record.source)).map_err(|e| wrong(e.to_string()))?;
        Ok(manifest)
    }

    /// Checks that the numbers of entries agree with the manifest. Also checks that exactly the sources that the capture found have
    /// entries, and that these entries have the right kind.
    pub(crate) fn check_entries(&self, entries: &[Entry]) -> Result<()> {
        let wrong = |why: String| Err(PointError::Malformed { what: "the index", id: self.id.clone(), why });
        let (counted, expected) = (Totals::of(entries).counts(), self.totals.counts());
        if counted != expected {
            return wrong(format!("its totals are {counted:?} (expected {expected:?})"));
        }
        for record in &self.sources {
            let root = crate::index::find(entries, record.source.path.as_bytes());
            if root.is_some() != record.is_present {
                return wrong(format!(
                    "source {:?} is present: {} (expected {})",
                    record.source.path,
                    root.is_some(),
                    record.is_present
                ));
            }
            let is_directory = root.is_some_and(|root| root.kind == Kind::Directory);
            if root.is_some() && is_directory != (record.source.kind == source::SourceKind::Directory) {
                return wrong(format!("source {:?} is of another kind", record.source.path));
            }
        }
        Ok(())
    }
}

/// The record of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// The time at which the verification began.
    pub at: Time,
    /// The digest of the manifest that was verified.
    pub point: Digest,
    /// The number of damaged files. The restore point is intact only if this number is zero.
    pub damaged: u64,
}
