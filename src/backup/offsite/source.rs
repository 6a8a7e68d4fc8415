//! A restore point as the source of a snapshot.

use std::{
    ffi::OsStr,
    io::{Cursor, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use larder_points::{Digest, Entry, Kind, Time};
use rustic_core::{
    ReadSource, ReadSourceEntry, RusticResult,
    repofile::{Metadata, Node, NodeType},
};

use super::exchange::{ContentReader, RemotePoint};

/// The directory of a snapshot that has larder's own description of the restore point. The name sorts after the names of the sources.
pub(super) const OWN: &str = "larder";
/// The manifest in [`OWN`].
pub(super) const MANIFEST: &str = "point.json";
/// The index in [`OWN`].
pub(super) const INDEX: &str = "index";

/// The bits of Go's `os.FileMode`, which restic stores.
const GO_DIRECTORY: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_STICKY: u32 = 1 << 20;

/// The device number of all files in a snapshot. restic finds hard links by device and inode.
const DEVICE: u64 = 1;

/// The source of a snapshot.
pub(super) struct PointSource(pub Arc<RemotePoint>);

/// The content of a file of the source.
pub(super) enum SourceReader {
    Own(Cursor<Vec<u8>>),
    Content(Box<ContentReader>),
}

impl Read for SourceReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            SourceReader::Own(bytes) => bytes.read(buffer),
            SourceReader::Content(content) => content.read(buffer),
        }
    }
}

impl PointSource {
    /// Returns the number of files, links included, that the snapshot must have.
    pub(super) fn expected_files(&self) -> u64 {
        let entries = &self.0.parts.entries;
        entries.iter().filter(|entry| entry.kind != Kind::Directory).count() as u64 + 2
    }
}

impl ReadSource for PointSource {
    type Open = SourceReader;
    type Iter = Box<dyn Iterator<Item = RusticResult<ReadSourceEntry<SourceReader>>> + Send>;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(Some(self.0.parts.manifest.totals.bytes))
    }

    fn entries(&self) -> Self::Iter {
        let point = self.0.clone();
        let mut names = vec![1_u64; point.parts.entries.len()];
        for entry in &point.parts.entries {
            if let Kind::HardLink { to } = entry.kind
                && let Some(count) = names.get_mut(to as usize)
            {
                *count += 1;
            }
        }
        let own = own_entries(&point);
        let captured = (0..point.parts.entries.len()).filter_map(move |number| {
            let entry = point.parts.entries.get(number)?;
            // Of a hard link, the content and the inode are those of its file.
            let file = match entry.kind {
                Kind::HardLink { to } => to as usize,
                _ => number,
            };
            let node = node_of(entry, point.parts.entries.get(file)?, file as u64 + 1, *names.get(file)?);
            let content =
                || SourceReader::Content(Box::new(ContentReader::new(point.clone(), u32::try_from(file).unwrap_or(u32::MAX))));
            let open = node.is_file().then(content);
            Some(Ok(ReadSourceEntry { path: PathBuf::from(OsStr::from_bytes(&entry.path)), node, open }))
        });
        Box::new(captured.chain(own))
    }
}

fn own_entries(point: &RemotePoint) -> Vec<RusticResult<ReadSourceEntry<SourceReader>>> {
    let parts = &point.parts;
    let time = timestamp(Time { seconds: parts.manifest.taken, nanos: 0 });
    let files = [(INDEX, &parts.index_bytes), (MANIFEST, &parts.manifest_bytes)];
    let files = files.map(|(name, bytes)| {
        let meta = Metadata { mode: Some(0o600), mtime: time, size: bytes.len() as u64, links: 1, ..Metadata::default() };
        Ok(ReadSourceEntry {
            path: Path::new(OWN).join(name),
            node: Node::new_node(OsStr::new(name), NodeType::File, meta),
            open: Some(SourceReader::Own(Cursor::new(bytes.clone()))),
        })
    });
    files.into()
}

/// Returns the node of an entry. `file` is the entry with the content.
fn node_of(entry: &Entry, file: &Entry, inode: u64, links: u64) -> Node {
    let mode = entry.mode & 0o777
        | if entry.mode & 0o4000 != 0 { GO_SETUID } else { 0 }
        | if entry.mode & 0o2000 != 0 { GO_SETGID } else { 0 }
        | if entry.mode & 0o1000 != 0 { GO_STICKY } else { 0 };
    let time = timestamp(entry.mtime);
    // The inode only connects hard links. The number of an entry changes with each new file, so other files have none.
    let inode = if links > 1 { inode } else { 0 };
    let attribute = |xattr: &larder_points::Xattr| {
        // restic knows only names in UTF-8. The index of larder has every name.
        let name = String::from_utf8(xattr.name.clone()).ok()?;
        serde_json::from_value(serde_json::json!({ "name": name, "value": data_encoding::BASE64.encode(&xattr.value) })).ok()
    };
    let meta = Metadata {
        mtime: time,
        atime: time,
        uid: Some(entry.uid),
        gid: Some(entry.gid),
        inode,
        device_id: DEVICE,
        links: 1,
        extended_attributes: entry.xattrs.iter().filter_map(attribute).collect(),
        ..Metadata::default()
    };
    let (kind, meta) = match (&entry.kind, &file.kind) {
        (Kind::Directory, _) => (NodeType::Dir, Metadata { mode: Some(mode | GO_DIRECTORY), ..meta }),
        (Kind::Symlink { target }, _) => {
            let kind = NodeType::from_link(Path::new(OsStr::from_bytes(target)));
            (kind, Metadata { mode: Some(mode | GO_SYMLINK), ..meta })
        }
        (_, Kind::File { size, digest, .. }) => {
            // The archiver finds an unchanged file in the previous snapshot by name, size, mtime and ctime. The ctime of the file would not be
            // enough: a file that changed at about the time of the capture can have the times of its old content. No program restores a
            // ctime, so the digest takes its place.
            (NodeType::File, Metadata { mode: Some(mode), size: *size, links, ctime: Some(mark(digest)), ..meta })
        }
        _ => (NodeType::File, Metadata { mode: Some(mode), ..meta }),
    };
    Node::new_node(entry.path.rsplit(|byte| *byte == b'/').next().map(OsStr::from_bytes).unwrap_or_default(), kind, meta)
}

/// Returns a time between 1970 and 2554 that depends on the digest of a content.
fn mark(digest: &Digest) -> Timestamp {
    let nanos = digest.0.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default()
}

fn timestamp(time: Time) -> Option<Timestamp> {
    Timestamp::new(time.seconds, i32::try_from(time.nanos).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_that_changed_without_a_new_time_has_another_mark() {
        let at = timestamp(Time { seconds: 1_700_000_000, nanos: 5 }).unwrap();
        let marks = [b"one", b"two"].map(|content| mark(&Digest::of(content)));
        assert_ne!(marks[0], marks[1]);
        assert_eq!(marks[0], mark(&Digest::of(b"one")));
        // The first and the last time that a mark can have.
        for (byte, year) in [(0, 1970), (255, 2554)] {
            assert_eq!(mark(&Digest([byte; 32])).to_zoned(jiff::tz::TimeZone::UTC).year(), year);
        }
        assert!(marks.iter().all(|mark| *mark != at));
    }
}
