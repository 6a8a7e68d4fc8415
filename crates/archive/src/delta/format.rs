//! The outline at the start of a delta, and the reading of its sections.

use std::{fs::File, os::unix::fs::FileExt};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{DeltaEndpoint, DeltaError, refused};
use crate::{
    ArchiveError, Digest, FileError,
    patch::{self, unpack},
};

/// The first bytes of every delta.
const MAGIC: [u8; 8] = *b"larder\x00\xdd";

/// The version of the format that is written and read.
pub(super) const FORMAT: u32 = 2;

/// The size of the fields before the outline, in bytes: magic, format, and the length and the digest of the outline.
const HEAD: usize = 8 + 4 + 4 + 32;

/// The maximum size of an outline, in bytes. An outline usually has a few hundred bytes.
const MAX_OUTLINE: usize = 4096;

/// The maximum size of a section after decompression, in bytes: enough for the lists of a million entries.
const MAX_SECTION: u64 = 120 << 20;

/// A section of the file. Each section is read as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeltaSection {
    /// The size in the file, in bytes.
    #[serde(with = "postcard::fixint::le")]
    pub bytes: u64,
    /// The size after decompression, in bytes. For a section that is not compressed, this size equals the size in the file.
    #[serde(with = "postcard::fixint::le")]
    pub raw: u64,
    /// The digest of the bytes in the file.
    pub digest: [u8; 32],
}

/// The outline of a delta. The length of an outline does not depend on the sizes in the outline, so that the patches can be written
/// before the outline is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outline {
    /// The id of the release that the delta starts from.
    pub base: String,
    pub base_tree: [u8; 32],
    /// The id of the release that the delta leads to.
    pub target: String,
    pub target_tree: [u8; 32],
    /// The changed entries, and the head of the new release, packed with the head of the old release as reference.
    pub columns: DeltaSection,
    /// The digests of changed files. This section is not compressed.
    pub digests: DeltaSection,
    /// The size of all patches together. The patches follow the digests.
    #[serde(with = "postcard::fixint::le")]
    pub patches: u64,
    /// The list of groups, packed. The packed list is the last section of the file.
    pub groups: DeltaSection,
    /// The offset of the first section. The outline in the file does not contain this offset.
    #[serde(skip)]
    start: u64,
}

impl Outline {
    /// Creates the outline of a delta that has no patches yet.
    pub fn new(old: &DeltaEndpoint<'_>, new: &DeltaEndpoint<'_>, columns: DeltaSection, digests: DeltaSection) -> Outline {
        let (base, base_tree) = (old.id.clone(), *old.tree.as_bytes());
        let (target, target_tree) = (new.id.clone(), *new.tree.as_bytes());
        let groups = DeltaSection { bytes: 0, raw: 0, digest: [0; 32] };
        Outline { base, base_tree, target, target_tree, columns, digests, patches: 0, groups, start: 0 }
    }

    /// Encodes the outline and the fields before it: the first bytes of the file.
    pub fn bytes(&self) -> Result<Vec<u8>, DeltaError> {
        let outline = postcard::to_stdvec(self).map_err(|e| refused(e.to_string()))?;
        let length = u32::try_from(outline.len()).unwrap_or(u32::MAX);
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(Digest::of(&outline).as_bytes());
        bytes.extend_from_slice(&outline);
        Ok(bytes)
    }

    /// Reads and checks the outline. Also checks that the file has exactly the size that follows from the outline.
    pub fn read(file: &File) -> Result<Outline, DeltaError> {
        let outline = Outline::begin(file)?;
        let found = file.metadata().map_err(|e| failed("read the metadata of", e))?.len();
        let expected = outline.end().ok_or_else(|| refused("its sizes exceed the maximum size of a file"))?;
        match found {
            _ if found < expected => Err(refused(format!("it is cut off: it has {found} bytes (expected {expected})"))),
            _ if found > expected => Err(refused(format!("it has bytes after its end: {found} bytes (expected {expected})"))),
            _ => Ok(outline),
        }
    }

    /// Reads and checks the outline of a file whose end may still be missing.
    fn begin(file: &File) -> Result<Outline, DeltaError> {
        let head = read(file, 0, HEAD)?;
        let (magic, head) = head.split_at_checked(8).unwrap_or_default();
        if magic != MAGIC {
            return Err(refused("it is not a delta of larder"));
        }
        let (format, head) = head.split_at_checked(4).unwrap_or_default();
        let format = u32::from_le_bytes(format.try_into().unwrap_or_default());
        if format != FORMAT {
            let remedy = if format > FORMAT { "update larder" } else { "update larder on the server that wrote it" };
            return Err(refused(format!("it has the format {format}, but this larder reads the format {FORMAT}; {remedy}")));
        }
        let (length, digest) = head.split_at_checked(4).unwrap_or_default();
        let length = u32::from_le_bytes(length.try_into().unwrap_or_default()) as usize;
        if length > MAX_OUTLINE {
            return Err(refused(format!("its outline has {length} bytes (expected at most {MAX_OUTLINE})")));
        }
        let bytes = read(file, HEAD as u64, length)?;
        if Digest::of(&bytes).as_bytes() != digest {
            return Err(refused("its outline is damaged"));
        }
        let mut outline: Outline = decode(&bytes, "outline")?;
        outline.start = (HEAD + length) as u64;
        Ok(outline)
    }

    /// Checks that the delta starts from the release with this id and tree digest.
    pub fn starts_from(&self, id: &str, tree: &Digest) -> Result<(), DeltaError> {
        if (self.base.as_str(), &self.base_tree) == (id, tree.as_bytes()) {
            return Ok(());
        }
        Err(refused(format!("it starts from release {} (expected {id} with the tree {tree})", self.base)))
    }

    /// Returns the offset of the patches.
    pub fn patches_at(&self) -> u64 {
        self.start.saturating_add(self.columns.bytes).saturating_add(self.digests.bytes)
    }

    fn end(&self) -> Option<u64> {
        let sections = self.columns.bytes.checked_add(self.digests.bytes)?.checked_add(self.groups.bytes)?;
        self.start.checked_add(sections)?.checked_add(self.patches)
    }

    /// Returns the changed entries, unpacked.
    pub fn read_columns(&self, file: &File, reference: &[u8]) -> Result<Vec<u8>, DeltaError> {
        packed_section(file, self.start, &self.columns, reference, "entries")
    }

    /// Returns the digests of changed files.
    pub fn read_digests(&self, file: &File) -> Result<Vec<u8>, DeltaError> {
        section(file, self.start.saturating_add(self.columns.bytes), &self.digests, "digests")
    }

    /// Returns the list of groups, unpacked.
    pub fn read_groups(&self, file: &File) -> Result<Vec<u8>, DeltaError> {
        packed_section(file, self.patches_at().saturating_add(self.patches), &self.groups, &[], "groups")
    }
}

/// Returns the ids of the older and the newer release of a delta. The file may still be in transfer, since only its first bytes are read.
pub fn endpoints(delta: &File) -> Result<(String, String), DeltaError> {
    Outline::begin(delta).map(|outline| (outline.base, outline.target))
}

/// Packs a section and returns it with its outline entry.
pub(super) fn pack(raw: Vec<u8>, reference: &[u8]) -> Result<(Vec<u8>, DeltaSection), DeltaError> {
    // The level is the highest level that takes little time for a section of this size.
    let level = match raw.len() {
        0..=0x8000 => 19,
        0x8001..=0x4_0000 => 9,
        _ => 6,
    };
    let text = raw.len() as u64;
    if text > MAX_SECTION {
        return Err(refused(format!(
            "its lists of changes have {text} bytes (expected at most {MAX_SECTION}); fetch the whole archive instead"
        )));
    }
    let mut both = reference.to_vec();
    both.extend_from_slice(&raw);
    drop(raw);
    let packed = patch::pack(&both, reference.len(), level).map_err(written)?;
    let section = DeltaSection { raw: text, ..plain(&packed) };
    Ok((packed, section))
}

/// Returns the outline entry of a section that is not packed.
pub(super) fn plain(bytes: &[u8]) -> DeltaSection {
    DeltaSection { bytes: bytes.len() as u64, raw: bytes.len() as u64, digest: *Digest::of(bytes).as_bytes() }
}

fn packed_section(file: &File, at: u64, section: &DeltaSection, reference: &[u8], what: &str) -> Result<Vec<u8>, DeltaError> {
    if section.raw > MAX_SECTION {
        let size = section.raw;
        return Err(refused(format!("its list of {what} has {size} bytes (expected at most {MAX_SECTION})")));
    }
    let packed = self::section(file, at, section, what)?;
    let mut raw = Vec::new();
    unpack(reference, &packed, section.raw as usize, &mut raw).map_err(accepted)?;
    Ok(raw)
}

fn section(file: &File, at: u64, section: &DeltaSection, what: &str) -> Result<Vec<u8>, DeltaError> {
    if section.bytes > MAX_SECTION {
        let size = section.bytes;
        return Err(refused(format!("its list of {what} has {size} bytes (expected at most {MAX_SECTION})")));
    }
    let bytes = read(file, at, section.bytes as usize)?;
    if *Digest::of(&bytes).as_bytes() == section.digest {
        Ok(bytes)
    } else {
        Err(refused(format!("its list of {what} is damaged")))
    }
}

/// Reads exactly `length` bytes. Memory is allocated only if the file has that many bytes.
fn read(file: &File, at: u64, length: usize) -> Result<Vec<u8>, DeltaError> {
    let size = file.metadata().map_err(|e| failed("read the metadata of", e))?.len();
    if size.saturating_sub(at) < length as u64 {
        let expected = at.saturating_add(length as u64);
        return Err(refused(format!("it is cut off: it has {size} bytes (expected at least {expected})")));
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at).map_err(|e| failed("read", e))?;
    Ok(bytes)
}

/// Decodes the outline or a list. Bytes after the end are an error.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, DeltaError> {
    match postcard::take_from_bytes(bytes) {
        Ok((decoded, [])) => Ok(decoded),
        Ok(_) => Err(refused(format!("it has bytes after its {what}"))),
        Err(e) => Err(refused(format!("its {what} cannot be read: {e}"))),
    }
}

/// Returns the error of an operation on the delta file.
pub(super) fn failed(doing: &'static str, source: std::io::Error) -> DeltaError {
    FileError::Io { doing, path: "the delta".into(), source }.into()
}

pub(super) fn accepted(source: ArchiveError) -> DeltaError {
    DeltaError::Archive { doing: "accept", source }
}

pub(super) fn written(source: ArchiveError) -> DeltaError {
    DeltaError::Archive { doing: "write", source }
}
