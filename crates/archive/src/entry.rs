//! The entries of a release and the frames of its archive, as manifests list them.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeStruct};

use super::{Digest, bounded};

/// The archive of a release: independent zstd frames, each with whole tar entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveInfo {
    /// The digest of the whole file: over the concatenated raw digests of its frames, in file order. Every frame is checked when it is
    /// read, and everything behind the frames follows from their sizes, so the digest covers every byte; and an archive that shares
    /// frames with an older one gets its digest without being read again.
    pub digest: Digest,
    /// The size of the whole file in bytes.
    pub bytes: u64,
    /// The number of the compression settings; other settings give other bytes for the same tree. 0 for archives from before there were
    /// numbers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub settings: u32,
    /// The frames in file order.
    #[serde(deserialize_with = "bounded::entries")]
    pub frames: Vec<Frame>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A part of an archive that can be read by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The offset of its first byte.
    pub offset: u64,
    /// Its compressed size in bytes.
    pub bytes: u64,
    /// Its size in bytes after decompression.
    pub raw: u64,
    /// The number of its entries; frames and entries have the same order.
    pub entries: u32,
    /// The digest of its compressed bytes.
    pub digest: Digest,
}

/// A file, directory or symbolic link of a release. In text formats a row of named fields, in binary formats the path and the kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative path with `/`, without `.`, `..`, empty or trailing parts; UTF-8.
    pub path: String,
    /// Directory, file or link.
    pub kind: EntryKind,
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Entry { path, kind } = self;
        if !to.is_human_readable() {
            return (path, Plain::from(kind)).serialize(to);
        }
        // By hand for the same reason as `Row`.
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

/// An entry as a row of fields in any order. For a flattened enum serde would buffer all fields first, and a manifest is nearly all
/// entries.
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

/// The kind of an entry. Owners, times and all mode bits but "executable" are not kept.
///
/// The derived serialisation is that of patches of changed files. An [`Entry`] has a serialisation of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A directory, mode 0755.
    Dir,
    /// A regular file, mode 0644 or, if executable, 0755.
    File {
        /// Size in bytes.
        size: u64,
        /// Digest of the content.
        digest: Digest,
        /// The file is executable.
        executable: bool,
    },
    /// A symbolic link.
    Link {
        /// The target, verbatim.
        target: String,
    },
}

impl EntryKind {
    /// Returns the size of a file in bytes.
    pub fn size(&self) -> Option<u64> {
        if let EntryKind::File { size, .. } = self { Some(*size) } else { None }
    }
}

/// The digest of a tree: BLAKE3 over its entries in the order of their paths' bytes, each as one letter (`d`, `f`, `x` for an
/// executable file, `l`), the path's length (u32, little-endian), the path, and then for a file its size (u64, little-endian) and
/// the 32 bytes of its digest, for a link the length (u32, little-endian) and bytes of its target.
pub fn tree_digest(entries: &[Entry]) -> Digest {
    // In large pieces, of which the hasher processes many chunks at a time.
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
    fn entry_round_trips_and_unknown_fields_are_refused() {
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
