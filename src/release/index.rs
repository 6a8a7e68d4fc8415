//! The index of a release: its manifest once more, in a form that is read ten times as fast.
//!
//! Deliveries and installations are mostly a matter of comparing two manifests, and most of that would be reading their text. An index
//! is nothing but a copy, made where a manifest has just been checked. It names the file that it was made of, down to the time of its
//! last change, so that one whose manifest was exchanged since is passed over; and the digest of its own content, so that nobody needs
//! to wait until it is on the disk. There may be none.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    ReleaseError,
    store::{self, SUFFIX},
};
use crate::{
    host::files::{FileError, open_regular, place_unsynced},
    model::{Digest, Entry, Frame, Manifest, bounded},
};

/// How an index begins. Another last character says that older ones are not to be believed, because their manifests were checked by
/// other rules.
const MAGIC: &[u8] = b"larder-1";

/// The file of a manifest: inode, size, and the times of the last changes to its content and to itself, in seconds and nanoseconds.
/// The last cannot be chosen, and changes with everything else.
pub type Identity = [u8; 48];

/// Says which file a manifest is, before it is read or after it has got its name.
pub fn identity(manifest: &File) -> io::Result<Identity> {
    let found = manifest.metadata()?;
    let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()].map(i64::cast_unsigned);
    let mut identity = [0; 48];
    let numbers = [found.ino(), found.size()].into_iter().chain(times);
    for (place, number) in identity.as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
        *place = number.to_le_bytes();
    }
    Ok(identity)
}

/// Stands behind [`MAGIC`], the identity of the manifest's file and the digest of this.
#[derive(Serialize)]
struct Content<'a> {
    head: Vec<u8>,
    frames: &'a [Frame],
    entries: &'a [Entry],
}

#[derive(Deserialize)]
struct Parsed<'a> {
    /// The manifest without its lists, as JSON.
    head: &'a [u8],
    #[serde(deserialize_with = "bounded::entries")]
    frames: Vec<Frame>,
    #[serde(deserialize_with = "bounded::entries")]
    entries: Vec<Entry>,
}

/// Where the index to the manifest at `path` is.
pub fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    path.with_file_name(format!("{}.index", name.strip_suffix(SUFFIX).unwrap_or(name)))
}

/// Writes the index of `manifest`, which has been read from that file and checked, beside its name `path`. That it cannot be written costs
/// time later, nothing else. Whoever gives the file another name, owner or mode afterwards makes it worthless.
pub fn keep(path: &Path, file: io::Result<Identity>, manifest: &Manifest) {
    keep_content(path, file, content_of(manifest));
}

/// The same, where [`content_of`] was called before.
pub(super) fn keep_content(path: &Path, file: io::Result<Identity>, content: Result<Vec<u8>, ReleaseError>) {
    if let Err(error) = content.and_then(|content| write(path, file, &content)) {
        tracing::warn!(path = %path.display(), %error, "a manifest stays without an index");
    }
}

/// What stands behind the digest of an index.
pub(super) fn content_of(manifest: &Manifest) -> Result<Vec<u8>, ReleaseError> {
    let wrong = |why: String| ReleaseError::Manifest { path: "the new manifest".into(), why };
    let head = serde_json::to_vec(&manifest.without_entries()).map_err(|e| wrong(e.to_string()))?;
    let content = Content { head, frames: &manifest.archive.frames, entries: &manifest.entries };
    postcard::to_stdvec(&content).map_err(|e| wrong(e.to_string()))
}

fn write(path: &Path, file: io::Result<Identity>, content: &[u8]) -> Result<(), ReleaseError> {
    let file = file.map_err(|e| ReleaseError::Manifest { path: path.to_owned(), why: e.to_string() })?;
    let digest = Digest::of(content);
    let parts = [MAGIC, &file, digest.as_bytes(), content];
    Ok(place_unsynced(&beside(path), &parts, 0o640)?)
}

/// Opens what is quickest to read of the release whose manifest is at `path`: its index if that belongs to it, else the manifest.
/// [`store::parse_known`] reads both.
pub fn open(path: &Path) -> Result<File, FileError> {
    let manifest = open_regular(path)?;
    let index = || {
        let (index, bytes) = found(path)?;
        content(&bytes, Some(&manifest))?;
        Some(index)
    };
    Ok(index().unwrap_or(manifest))
}

/// The manifest at `path`, which is open as `manifest`, from the index beside it, if there is one that belongs to it.
pub(super) fn of(path: &Path, manifest: &File) -> Option<Manifest> {
    decode(content(&found(path)?.1, Some(manifest))?)
}

fn found(path: &Path) -> Option<(File, Vec<u8>)> {
    let index = open_regular(&beside(path)).ok()?;
    let bytes = store::read_at_start(&index, path).ok()?;
    Some((index, bytes))
}

/// Whether these bytes are an index and not a manifest.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Reads a manifest from its index. What was checked when that was written is not checked again.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Manifest, ReleaseError> {
    let damaged = || ReleaseError::Manifest { path: path.to_owned(), why: "its index is damaged".to_owned() };
    content(bytes, None).and_then(decode).ok_or_else(damaged)
}

/// The content of an index, if that is whole, and made of this manifest where that is known.
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
    use crate::model::EntryKind;

    /// The text of a manifest, what it says, and a place where it is.
    fn placed() -> (&'static [u8], Manifest, tempfile::TempDir, PathBuf) {
        let text = include_bytes!("../../fuzz/seeds/manifest/small");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("x{SUFFIX}"));
        std::fs::write(&path, text).unwrap();
        (text, store::from_bytes(text, Path::new("m")).unwrap(), dir, path)
    }

    fn known(path: &Path) -> Option<Manifest> {
        of(path, &File::open(path).unwrap())
    }

    #[test]
    fn an_index_gives_the_manifest_that_it_was_made_of() {
        let (_, manifest, dir, path) = placed();
        assert!(known(&path).is_none());
        // Whoever reads a manifest leaves one.
        assert_eq!(store::read(&path).unwrap(), manifest);
        assert!(dir.path().join("x.index").is_file());
        assert_eq!(known(&path), Some(manifest.clone()));
        assert_eq!(store::read(&path).unwrap(), manifest);
        let bytes = store::read_at_start(&open(&path).unwrap(), &path).unwrap();
        assert!(is_one(&bytes));
        assert_eq!(store::parse_known(&open(&path).unwrap(), &path).unwrap(), manifest);
        // For somebody else's manifest, that would be too much trust.
        assert!(store::parse(&open(&path).unwrap(), &path).is_err());
        // One without its manifest is no release.
        std::fs::remove_file(&path).unwrap();
        assert!(open(&path).is_err() && store::read(&path).is_err());
    }

    #[test]
    fn an_index_of_another_manifest_is_passed_over() {
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
            // File systems count time in steps.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change();
            assert_eq!(store::read(&path).unwrap(), right);
        }
    }

    #[test]
    fn a_damaged_index_is_passed_over() {
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
            assert_eq!(store::read_at_start(&open(&path).unwrap(), &path).unwrap(), text);
            let in_worker = store::parse_known(&File::open(beside(&path)).unwrap(), &path);
            assert!(in_worker.is_err() || bad[8..56] != good[8..56]);
            assert_eq!(store::read(&path).unwrap(), right);
        }
    }
}
