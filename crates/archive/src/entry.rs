//! The entries of a release and the frames of its archive, as manifests list them.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeStruct};

use super::{Digest, bounded};

/// The archive of a release: independent zstd frames, each with whole tar entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveInfo {
    /// The digest of the archive: the digest of the concatenated digests of its frames, in file order. Every frame is checked when the
    /// frame is read, and the bytes after the frames follow from the sizes of the frames, so this digest covers every byte.
    pub digest: Digest,
    /// The size of the whole file in bytes.
    pub bytes: u64,
    /// The number of the compression settings. Different settings give different bytes for one tree. The number is 0 for archives that were
    /// written before settings had numbers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub settings: u32,
    /// The frames in file order.
    #[serde(deserialize_with = "bounded::entries")]
    pub frames: Vec<Frame>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A part of an archive that can be read by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The offset of the first byte in the archive.
    pub offset: u64,
    /// The compressed size in bytes.
    pub bytes: u64,
    /// The size after decompression, in bytes.
    pub raw: u64,
    /// The number of entries in the frame. Frames and entries have the same order.
    pub entries: u32,
    /// The digest of the compressed bytes.
    pub digest: Digest,
}

/// A file, directory or symbolic link of a release. Text formats contain named fields. Binary formats contain the path and the kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The relative path in UTF-8, with `/`, and without empty parts, `.` and `..`.
    pub path: String,
    /// The kind of the entry.
    pub kind: EntryKind,
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Entry { path, kind } = self;
        if !to.is_human_readable() {
            return (path, Plain::from(kind)).serialize(to);
        }
        // The fields are written one by one, because a flattened enum would be slower; see [`Row`].
        let mut row = to.serialize_struct("Entry", 5)?;
        row.serialize_field("path", path)?;
        match kind {
            EntryKind::Dir => row.serialize_field("type", "dir")?,
            EntryKind::File { size, digest, executable } => {
                row.serialize_field("type", "file")?;
                row.serialize_field("size", size)?;
                row.serialize_field("digest", digest)?;
                if *executable {
                    row.serialize_field("executable", executable)?;
                }
            }
            EntryKind::Link { target } => {
                row.serialize_field("type", "link")?;
                row.serialize_field("target", target)?;
            }
        }
        row.end()
    }
}

/// The kind of an entry in binary formats.
#[derive(Serialize, Deserialize)]
enum Plain<'a> {
    Dir,
    File(u64, Digest, bool),
    Link(Cow<'a, str>),
}

impl<'a> From<&'a EntryKind> for Plain<'a> {
    fn from(kind: &'a EntryKind) -> Plain<'a> {
        match kind {
            EntryKind::Dir => Plain::Dir,
            EntryKind::File { size, digest, executable } => Plain::File(*size, *digest, *executable),
            EntryKind::Link { target } => Plain::Link(Cow::Borrowed(target)),
        }
    }
}

/// An entry in text formats: named fields in any order. With a flattened enum, serde would first buffer all fields, which would slow down
/// the reading of manifests.
#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    size: Option<u64>,
    digest: Option<Digest>,
    #[serde(default)]
    executable: bool,
    #[serde(borrow)]
    target: Option<Cow<'a, str>>,
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Entry, D::Error> {
        if !from.is_human_readable() {
            let (path, kind) = <(String, Plain)>::deserialize(from)?;
            let kind = match kind {
                Plain::Dir => EntryKind::Dir,
                Plain::File(size, digest, executable) => EntryKind::File { size, digest, executable },
                Plain::Link(target) => EntryKind::Link { target: target.into_owned() },
            };
            return Ok(Entry { path, kind });
        }
        let row = Row::deserialize(from)?;
        let missing = de::Error::missing_field;
        let kind = match row.kind.as_ref() {
            "dir" => EntryKind::Dir,
            "file" => EntryKind::File {
                size: row.size.ok_or_else(|| missing("size"))?,
                digest: row.digest.ok_or_else(|| missing("digest"))?,
                executable: row.executable,
            },
            "link" => EntryKind::Link { target: row.target.ok_or_else(|| missing("target"))?.into_owned() },
            other => return Err(de::Error::unknown_variant(other, &["dir", "file", "link"])),
        };
        Ok(Entry { path: row.path.into_owned(), kind })
    }
}

/// The kind of an entry. A release keeps only one bit of the metadata of a file: the executable bit.
///
/// Saved drift contains the derived serialisation. [`Entry`] has its own serialisation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A directory, mode 0755.
    Dir,
    /// A regular file, mode 0644 or, if executable, 0755.
    File {
        /// The size in bytes.
        size: u64,
        /// The digest of the content.
        digest: Digest,
        /// True if the file is executable.
        executable: bool,
    },
    /// A symbolic link.
    Link {
        /// The target, verbatim.
        target: String,
    },
}

impl EntryKind {
    /// Returns the size of a file in bytes, or `None` for other entries.
    pub fn size(&self) -> Option<u64> {
        if let EntryKind::File { size, .. } = self { Some(*size) } else { None }
    }
}

/// Returns the digest of a tree: BLAKE3 of the concatenated entries, in the order of their paths' bytes. An entry is one letter (`d` for
/// a directory, `f` for a file, `x` for an executable file, `l` for a link), the length of the path (u32, little-endian) and the path.
/// The entry of a file continues with the size (u64, little-endian) and the 32 bytes of the digest. The entry of a link continues with
/// the length (u32, little-endian) and the bytes of the target.
pub fn tree_digest(entries: &[Entry]) -> Digest {
    // The hasher gets large pieces, because it processes many chunks of a piece at a time.
    const PIECE: usize = 64 << 10;
    let (mut hasher, mut piece) = (blake3::Hasher::new(), Vec::with_capacity(2 * PIECE));
    let length = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
    for Entry { path, kind } in entries {
        if piece.len() >= PIECE {
            hasher.update(&piece);
            piece.clear();
        }
        let letter = match kind {
            EntryKind::Dir => b"d",
            EntryKind::File { executable: false, .. } => b"f",
            EntryKind::File { executable: true, .. } => b"x",
            EntryKind::Link { .. } => b"l",
        };
        piece.extend_from_slice(letter);
        piece.extend_from_slice(&length(path));
        piece.extend_from_slice(path.as_bytes());
        match kind {
            EntryKind::Dir => {}
            EntryKind::File { size, digest, .. } => {
                piece.extend_from_slice(&size.to_le_bytes());
                piece.extend_from_slice(digest.as_bytes());
            }
            EntryKind::Link { target } => {
                piece.extend_from_slice(&length(target));
                piece.extend_from_slice(target.as_bytes());
            }
        }
    }
    hasher.update(&piece).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_round_trips_and_invalid_text_is_refused() {
        let digest = Digest::of(b"x");
        let entries = [
            Entry { path: "a/\"b\" ä".into(), kind: EntryKind::Dir },
            Entry { path: "f".into(), kind: EntryKind::File { size: 7, digest, executable: false } },
            Entry { path: "x".into(), kind: EntryKind::File { size: u64::MAX, digest, executable: true } },
            Entry { path: "l".into(), kind: EntryKind::Link { target: "../\\".into() } },
        ];
        for entry in entries {
            let text = serde_json::to_string(&entry).unwrap();
            assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry, "{text}");
            assert_eq!(serde_json::from_reader::<_, Entry>(text.as_bytes()).unwrap(), entry, "{text}");
            let bytes = postcard::to_stdvec(&entry).unwrap();
            assert_eq!(postcard::from_bytes::<Entry>(&bytes).unwrap(), entry);
            assert!(bytes.len() < 64, "{bytes:?}");
            assert!(postcard::from_bytes::<Entry>(&bytes[..bytes.len() - 1]).is_err());
        }
        let any_order = r#"{"target":"t","later":[1],"type":"link","path":"p"}"#;
        assert_eq!(serde_json::from_str::<Entry>(any_order).unwrap().kind, EntryKind::Link { target: "t".into() });
        for (text, why) in [
            (r#"{"path":"p","type":"file","size":1}"#, "missing field `digest`"),
            (r#"{"path":"p","type":"file","size":1,"digest":"xy"}"#, "64 hexadecimal digits"),
            (r#"{"path":"p","type":"link"}"#, "missing field `target`"),
            (r#"{"path":"p","type":"fifo"}"#, "unknown variant `fifo`"),
            (r#"{"path":"p"}"#, "missing field `type`"),
            (r#"{"path":"p","path":"q","type":"dir"}"#, "duplicate field `path`"),
        ] {
            let refused = serde_json::from_str::<Entry>(text).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
