//! What a release consists of, file by file.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeStruct};

use super::{CommitId, Digest, EnvironmentName, Mode, ProcessType, ProjectName, ReleaseId, Signature, bounded};

/// The description that stands beside a release archive, `<id>.manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this format; a reader refuses a newer one.
    pub format: u32,
    /// The project that the release belongs to.
    pub project: ProjectName,
    /// The environment that made it.
    pub environment: EnvironmentName,
    /// The release.
    pub release: ReleaseId,
    /// The commit that it was built from.
    pub commit: CommitId,
    /// The git tree of that commit, an object name like a commit's: other commits with the same tree are the same source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<CommitId>,
    /// Rises with every build of the project.
    pub build: u64,
    /// The version tag of the commit, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The mode of the environment that made it.
    pub mode: Mode,
    /// The buildpacks that took part, in order.
    pub buildpacks: Vec<BuildpackUse>,
    /// Process types that the buildpacks gave, used where the Procfile has none.
    pub processes: Vec<(ProcessType, String)>,
    /// When it was made, RFC 3339.
    pub created: jiff::Timestamp,
    /// The digest of the tree: equal trees have equal digests, whatever built them.
    pub tree: Digest,
    /// The archive that holds the files.
    pub archive: ArchiveInfo,
    /// Every entry of the tree, sorted by path, directories before what they hold.
    #[serde(deserialize_with = "bounded::entries")]
    pub entries: Vec<Entry>,
    /// Who made it, over [`Manifest::statement`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// A buildpack and exactly which version of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildpackUse {
    /// Its name, or the address it came from.
    pub name: String,
    /// The commit of a buildpack from git, or larder's version for one of ours.
    pub version: String,
}

/// The archive of a release: independent zstd frames, each with whole tar entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveInfo {
    /// Names the whole file: the digest over the concatenated raw digests of its frames, in file order. With every frame checked
    /// as it is read, and everything behind the frames following from their sizes, no byte escapes it; and a file that shares
    /// frames with an older one gets its digest without being read again.
    pub digest: Digest,
    /// The size of the whole file in bytes.
    pub bytes: u64,
    /// By which settings it was compressed: other ones give other bytes for the same tree. 0 for those from before they had numbers.
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
    /// Where it starts, in bytes.
    pub offset: u64,
    /// Its compressed size in bytes.
    pub bytes: u64,
    /// Its size in bytes after decompression.
    pub raw: u64,
    /// How many entries of the manifest it holds; frames and entries have the same order.
    pub entries: u32,
    /// The digest of its compressed bytes.
    pub digest: Digest,
}

/// A file, directory or symbolic link of a release. In text a row of named fields, in other formats the path and what stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative path with `/`, without `.`, `..`, empty or trailing parts; UTF-8.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Entry { path, kind } = self;
        if !to.is_human_readable() {
            return (path, Plain::from(kind)).serialize(to);
        }
        // By hand for the same reason as below.
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

/// What an entry is, for formats without names.
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

/// As a row of fields in any order: serde would keep the fields of a flattened enum in a buffer of their own first, and a manifest is
/// nearly all entries.
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

/// What an entry is. Owners, times and all mode bits but "executable" are normalised away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory, mode 0755.
    Dir,
    /// A regular file, mode 0644 or, if executable, 0755.
    File {
        /// Size in bytes.
        size: u64,
        /// Digest of the content.
        digest: Digest,
        /// Whether it may be executed.
        executable: bool,
    },
    /// A symbolic link.
    Link {
        /// Where it points to, as it is.
        target: String,
    },
}

impl Manifest {
    /// The version that this code writes, and the newest that it reads.
    pub const FORMAT: u32 = 1;

    /// The same manifest without its lists of entries and frames, which are nearly all of it.
    pub fn without_entries(&self) -> Manifest {
        Manifest {
            format: self.format,
            project: self.project.clone(),
            environment: self.environment.clone(),
            release: self.release,
            commit: self.commit.clone(),
            source: self.source.clone(),
            build: self.build,
            tag: self.tag.clone(),
            mode: self.mode,
            buildpacks: self.buildpacks.clone(),
            processes: self.processes.clone(),
            created: self.created,
            tree: self.tree,
            archive: ArchiveInfo { frames: Vec::new(), ..self.archive },
            entries: Vec::new(),
            signature: self.signature,
        }
    }

    /// What a signature is over: everything that this manifest says, in one spelling. The entries stand in it by the digest of the
    /// tree, which follows from them, and the frames by the digest of the archive, which follows from them; whoever checks a
    /// signature has compared those two first. So a manifest keeps its signature where its frames are not known (yet).
    pub fn statement(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Statement<'a> {
            larder: &'static str,
            format: u32,
            project: &'a ProjectName,
            environment: &'a EnvironmentName,
            release: ReleaseId,
            commit: &'a CommitId,
            source: &'a Option<CommitId>,
            build: u64,
            tag: &'a Option<String>,
            mode: Mode,
            buildpacks: &'a [BuildpackUse],
            processes: &'a [(ProcessType, String)],
            created: jiff::Timestamp,
            tree: Digest,
            archive: Digest,
            archive_bytes: u64,
            #[serde(skip_serializing_if = "is_zero")]
            archive_settings: u32,
        }
        let statement = Statement {
            larder: "release manifest",
            format: self.format,
            project: &self.project,
            environment: &self.environment,
            release: self.release,
            commit: &self.commit,
            source: &self.source,
            build: self.build,
            tag: &self.tag,
            mode: self.mode,
            buildpacks: &self.buildpacks,
            processes: &self.processes,
            created: self.created,
            tree: self.tree,
            archive: self.archive.digest,
            archive_bytes: self.archive.bytes,
            archive_settings: self.archive.settings,
        };
        // Strings and numbers only: nothing in it can fail to become text.
        serde_json::to_vec(&statement).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_are_written() {
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
