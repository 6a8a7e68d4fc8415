//! The index of a release: a copy of its manifest in a binary form. An index is read ten times as fast as the JSON text.
//!
//! Deliveries and installations mostly compare two manifests, and most of the time would be spent on parsing JSON. An index is written
//! right after its manifest was checked. A missing index is no error. An index contains the identity of the manifest file with its change
//! time, so an index of a replaced manifest is ignored. An index also contains the digest of its own content, so an index need not be
//! synced to the disk.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    host::files::{FileError, open_regular, place_unsynced},
    model::{Digest, Entry, Frame, Manifest, bounded},
    release::ReleaseError,
};

/// The first bytes of an index, which end with a version number. The number is raised when the rules for manifests become stricter, so that
/// older indices are ignored.
const MAGIC: &[u8] = b"larder-1";

/// The identity of a manifest file: inode, size, mtime and ctime, the times in seconds and nanoseconds. Every change of the file changes
/// its ctime, and no process can set a ctime.
pub type ManifestIdentity = [u8; 48];

/// The maximum size of a manifest, in bytes: enough for a million entries with long names.
pub const MAX_MANIFEST: u64 = 512 << 20;

/// The suffix of the file name of a manifest; the id of the release comes before it.
pub const SUFFIX: &str = ".manifest.json";

/// Reads a whole file from its first byte. The position of the descriptor is ignored, because other processes with the same descriptor may
/// move it.
pub(in crate::release) fn read_at_start(file: &File, path: &Path) -> Result<Vec<u8>, ReleaseError> {
    let failed = |e: std::io::Error| FileError::Io { doing: "read", path: path.to_owned(), source: e };
    let size = file.metadata().map_err(failed)?.len();
    if size > MAX_MANIFEST {
        return Err(FileError::TooLarge { path: path.to_owned(), limit: MAX_MANIFEST }.into());
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    Ok(bytes)
}

/// Returns the identity of a manifest file. Callers must take the identity before they read the file, or after they rename a new file to
/// its final name.
pub fn identity(manifest: &File) -> io::Result<ManifestIdentity> {
    let found = manifest.metadata()?;
    let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()].map(i64::cast_unsigned);
    let mut identity = [0; 48];
    let numbers = [found.ino(), found.size()].into_iter().chain(times);
    for (place, number) in identity.as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
        *place = number.to_le_bytes();
    }
    Ok(identity)
}

/// The content of an index. In the file, the content follows [`MAGIC`], the identity of the manifest file, and the digest of the content.
#[derive(Serialize)]
struct Content<'a> {
    head: Vec<u8>,
    frames: &'a [Frame],
    entries: &'a [Entry],
}

#[derive(Deserialize)]
struct Parsed<'a> {
    /// The manifest without entries and frames, as JSON.
    head: &'a [u8],
    #[serde(deserialize_with = "bounded::entries")]
    frames: Vec<Frame>,
    #[serde(deserialize_with = "bounded::entries")]
    entries: Vec<Entry>,
}

/// Returns the path of the index for the manifest at `path`.
pub fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    path.with_file_name(format!("{}.index", name.strip_suffix(SUFFIX).unwrap_or(name)))
}

/// Writes the index of the checked `manifest`, whose file is at `path` and has the identity `file`. An error is only logged, since readers
/// can parse the manifest instead. Renaming the manifest file, or changing its owner or mode, invalidates the index.
pub fn keep(path: &Path, file: io::Result<ManifestIdentity>, manifest: &Manifest) {
    keep_content(path, file, content_of(manifest));
}

/// Writes an index with content from [`content_of`]; see [`keep`].
pub(super) fn keep_content(path: &Path, file: io::Result<ManifestIdentity>, content: Result<Vec<u8>, ReleaseError>) {
    if let Err(error) = content.and_then(|content| write(path, file, &content)) {
        tracing::warn!(path = %path.display(), %error, "index not written");
    }
}

/// Returns the serialised content of an index.
pub(super) fn content_of(manifest: &Manifest) -> Result<Vec<u8>, ReleaseError> {
    let wrong = |why: String| ReleaseError::Manifest { path: "the new manifest".into(), why };
    let head = serde_json::to_vec(&manifest.without_entries()).map_err(|e| wrong(e.to_string()))?;
    let content = Content { head, frames: &manifest.archive.frames, entries: &manifest.entries };
    postcard::to_stdvec(&content).map_err(|e| wrong(e.to_string()))
}

fn write(path: &Path, file: io::Result<ManifestIdentity>, content: &[u8]) -> Result<(), ReleaseError> {
    let file = file.map_err(|e| ReleaseError::Manifest { path: path.to_owned(), why: e.to_string() })?;
    let digest = Digest::of(content);
    let parts = [MAGIC, &file, digest.as_bytes(), content];
    Ok(place_unsynced(&beside(path), &parts, 0o640)?)
}

/// Opens the index of the manifest at `path` if the index is valid; otherwise opens the manifest. [`parse_known`](super::parse_known) reads
/// both kinds of files.
pub fn open(path: &Path) -> Result<File, FileError> {
    let manifest = open_regular(path)?;
    let index = || {
        let (index, bytes) = found(path)?;
        content(&bytes, Some(&manifest))?;
        Some(index)
    };
    Ok(index().unwrap_or(manifest))
}

/// Reads the manifest at `path` from its index. Returns `None` if no index belongs to the open file `manifest`, or if the index is damaged.
pub(super) fn of(path: &Path, manifest: &File) -> Option<Manifest> {
    decode(content(&found(path)?.1, Some(manifest))?)
}

fn found(path: &Path) -> Option<(File, Vec<u8>)> {
    let index = open_regular(&beside(path)).ok()?;
    let bytes = read_at_start(&index, path).ok()?;
    Some((index, bytes))
}

/// Returns true if `bytes` are the content of an index file, not of a manifest file.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Reads a manifest from the bytes of its index. The entries are not checked again: the manifest was checked before its index was written.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Manifest, ReleaseError> {
    let damaged = || ReleaseError::Manifest { path: path.to_owned(), why: "its index is damaged".to_owned() };
    content(bytes, None).and_then(decode).ok_or_else(damaged)
}

/// Returns the content of an index if the digest of the content is right. If `manifest` is given, the index must also have been made from
/// this file.
fn content<'a>(bytes: &'a [u8], manifest: Option<&File>) -> Option<&'a [u8]> {
    let (file, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<48>()?;
    let (digest, content) = rest.split_first_chunk::<32>()?;
    let fits = manifest.is_none_or(|manifest| identity(manifest).is_ok_and(|found| found == *file));
    (fits && Digest::of(content).as_bytes() == digest).then_some(content)
}

fn decode(content: &[u8]) -> Option<Manifest> {
    let Parsed { head, frames, entries } = postcard::from_bytes(content).ok()?;
    let mut manifest: Manifest = serde_json::from_slice(head).ok()?;
    manifest.archive.frames = frames;
    manifest.entries = entries;
    Some(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::EntryKind, release::manifest};

    /// Writes a manifest to a new directory. Returns the text of the manifest, the parsed manifest, the directory, and the path of the
    /// manifest.
    fn placed() -> (&'static [u8], Manifest, tempfile::TempDir, PathBuf) {
        let text = include_bytes!("../../../fuzz/seeds/manifest/small");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("x{SUFFIX}"));
        std::fs::write(&path, text).unwrap();
        (text, manifest::from_bytes(text, Path::new("m")).unwrap(), dir, path)
    }

    fn known(path: &Path) -> Option<Manifest> {
        of(path, &File::open(path).unwrap())
    }

    #[test]
    fn index_gives_the_manifest_that_it_was_built_from() {
        let (_, expected, dir, path) = placed();
        assert!(known(&path).is_none());
        // Reading a manifest writes its index.
        assert_eq!(manifest::read(&path).unwrap(), expected);
        assert!(dir.path().join("x.index").is_file());
        assert_eq!(known(&path), Some(expected.clone()));
        assert_eq!(manifest::read(&path).unwrap(), expected);
        let bytes = read_at_start(&open(&path).unwrap(), &path).unwrap();
        assert!(is_one(&bytes));
        assert_eq!(manifest::parse_known(&open(&path).unwrap(), &path).unwrap(), expected);
        // A received manifest must not be an index.
        assert!(manifest::parse(&open(&path).unwrap(), &path).is_err());
        // An index without its manifest is not a release.
        std::fs::remove_file(&path).unwrap();
        assert!(open(&path).is_err() && manifest::read(&path).is_err());
    }

    #[test]
    fn index_of_another_manifest_is_ignored() {
        let (text, mut other, _dir, path) = placed();
        let right = other.clone();
        other.entries.push(Entry { path: "zzz".into(), kind: EntryKind::Dir });
        let changes: [&dyn Fn(); 3] = [
            &|| std::fs::write(&path, text).unwrap(),
            &|| {
                std::fs::copy(&path, path.with_extension("new")).unwrap();
                std::fs::rename(path.with_extension("new"), &path).unwrap();
            },
            &|| {
                let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
                std::fs::write(&path, text).unwrap();
                File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
            },
        ];
        for change in changes {
            write(&path, identity(&File::open(&path).unwrap()), &content_of(&other).unwrap()).unwrap();
            assert_eq!(known(&path).as_ref(), Some(&other));
            // The clock of file systems advances in steps of some milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change();
            assert_eq!(manifest::read(&path).unwrap(), right);
        }
    }

    #[test]
    fn damaged_index_is_ignored() {
        let (text, right, _dir, path) = placed();
        write(&path, identity(&File::open(&path).unwrap()), &content_of(&right).unwrap()).unwrap();
        let good = std::fs::read(beside(&path)).unwrap();
        let bad = [0, 7, 8, 55, 56, 87, 88, good.len() / 2, good.len() - 1].map(|at| {
            let mut bad = good.clone();
            bad[at] ^= 1;
            bad
        });
        let cut = [0, 8, 88, good.len() - 1].map(|length| good[..length].to_vec());
        for bad in bad.iter().chain(&cut) {
            std::fs::write(beside(&path), bad).unwrap();
            assert_eq!(read_at_start(&open(&path).unwrap(), &path).unwrap(), text);
            let in_worker = manifest::parse_known(&File::open(beside(&path)).unwrap(), &path);
            assert!(in_worker.is_err() || bad[8..56] != good[8..56]);
            assert_eq!(manifest::read(&path).unwrap(), right);
        }
    }
}
