//! Encodes manifests as text and as the content of an index. Several threads encode the text, because a release can have a hundred
//! thousand entries.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use larder_archive::pool::{self, both};

use super::index::{self, ManifestIdentity};
use crate::{model::Manifest, release::ReleaseError};

/// The number of entries that a thread encodes at a time. A manifest with at most this number of entries is encoded by one thread.
const PART: usize = 2048;

/// The text of an empty list of entries, into which the entries are inserted. A manifest contains this text only once, because JSON escapes
/// the quotes in strings.
const NO_ENTRIES: &[u8] = br#""entries":[]"#;

/// Returns the text of a manifest as it is stored beside an archive: JSON in one line.
fn text(manifest: &Manifest, threads: usize) -> Result<Vec<u8>, serde_json::Error> {
    let parts: Vec<_> = manifest.entries.chunks(PART).collect();
    if parts.len() < 2 {
        return serde_json::to_vec(manifest).map(line);
    }
    let mut head = manifest.without_entries();
    head.archive.frames.clone_from(&manifest.archive.frames);
    let head = serde_json::to_vec(&head)?;
    let place = head.windows(NO_ENTRIES.len()).position(|part| part == NO_ENTRIES);
    // Entries are inserted after the bracket that opens the list.
    let place = place.map(|place| place + NO_ENTRIES.len() - 1);
    let Some((before, behind)) = place.and_then(|place| head.split_at_checked(place)) else {
        return serde_json::to_vec(manifest).map(line);
    };
    let mut text = before.to_vec();
    let write = |entries: &mut Vec<u8>, index: usize| {
        entries.clear();
        for entry in parts.get(index).into_iter().copied().flatten() {
            entries.push(b',');
            serde_json::to_writer(&mut *entries, entry)?;
        }
        Ok(entries.clone())
    };
    pool::ordered(
        parts.len(),
        threads,
        || Ok(Vec::new()),
        write,
        |index, entries| {
            text.extend_from_slice(entries.get(usize::from(index == 0)..).unwrap_or_default());
            Ok(())
        },
    )?;
    text.extend_from_slice(behind);
    Ok(line(text))
}

/// Writes the text of a manifest to a file.
pub(in crate::release) fn write(manifest: &Manifest, threads: usize, to: &File) -> Result<(), ReleaseError> {
    let failed = |e: io::Error| ReleaseError::Manifest { path: "the new manifest".into(), why: e.to_string() };
    let text = text(manifest, threads).map_err(|e| failed(e.into()))?;
    (&mut &*to).write_all(&text).map_err(failed)
}

fn line(mut text: Vec<u8>) -> Vec<u8> {
    text.push(b'\n');
    text
}

/// The text of a manifest and the content of its index.
pub struct EncodedManifest {
    /// The text of the manifest: JSON in one line.
    pub text: Vec<u8>,
    index: Result<Vec<u8>, ReleaseError>,
}

impl EncodedManifest {
    /// Encodes the text and the index in parallel.
    pub fn of(manifest: &Manifest, threads: usize) -> Result<EncodedManifest, serde_json::Error> {
        let (index, text) = both(|| index::content_of(manifest), || text(manifest, threads));
        Ok(EncodedManifest { text: text?, index })
    }

    /// Writes the index of the manifest file at `path`, whose identity is `identity`. The caller must have checked the manifest; see
    /// [`index::keep`].
    pub fn keep_index(self, path: &Path, identity: io::Result<ManifestIdentity>) {
        index::keep_content(path, identity, self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Digest, Entry, EntryKind},
        release::manifest,
    };

    #[test]
    fn manifest_text_does_not_depend_on_threads() {
        let mut manifest =
            manifest::from_bytes(include_bytes!("../../../fuzz/seeds/manifest/small"), Path::new("small")).unwrap();
        manifest.tag = Some(r#"v1 "entries":[] \"entries\":[]"#.into());
        for count in [0, 1, PART, PART + 1, 5 * PART + 7] {
            let entry = |n: usize| match n % 3 {
                0 => Entry { path: format!("{n:06} \"ä\\"), kind: EntryKind::Dir },
                1 => {
                    let digest = Digest::of(&n.to_le_bytes());
                    Entry {
                        path: format!("{n:06}"),
                        kind: EntryKind::File { size: n as u64, digest, executable: n.is_multiple_of(2) },
                    }
                }
                _ => Entry { path: format!("{n:06}"), kind: EntryKind::Link { target: "\"entries\":[]".into() } },
            };
            manifest.entries = (0..count).map(entry).collect();
            let expected = line(serde_json::to_vec(&manifest).unwrap());
            for threads in [1, 2, 5] {
                assert!(text(&manifest, threads).unwrap() == expected, "{count} entries by {threads}");
            }
            manifest.signature = None;
        }
    }
}
