//! The index file: magic, version, number of entries, then the entries in the order of `entry::order`, each in postcard's encoding.
//! The digest of the index is in the manifest. The reader checks every field: a restore from a damaged or forged index creates no file
//! outside of its target.

use crate::{
    PointError, Result,
    entry::{Entry, Kind, MAX_PATH, is_within, order, path_fault},
    meta::is_kept,
    source::Source,
    sys::split,
};

const MAGIC: &[u8; 20] = b"larder points index\n";

/// The version that this program writes.
pub(crate) const VERSION: u32 = 1;

/// The maximum size of an index that is read, in bytes.
pub(crate) const MAX_BYTES: u64 = 1 << 30;

/// The maximum number of entries for which memory is reserved before they are read.
const MAX_RESERVED: usize = 1 << 17;

/// The minimum size of an encoded entry, in bytes: two bytes for the path, and one each for kind, mode, owner, group, the two parts of the
/// time, and the number of attributes.
const MIN_ENTRY: u64 = 9;

/// Returns the bytes of an index. The entries must be sorted by `entry::order`.
pub fn encode(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(entries.len().saturating_mul(128).saturating_add(32));
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    for entry in entries {
        bytes = postcard::to_extend(entry, bytes)
            .map_err(|e| PointError::io("encode the index entry of", entry.shown(), std::io::Error::other(e)))?;
    }
    Ok(bytes)
}

/// Reads an index. Refuses an index that no capture of `sources` can have written.
pub fn decode(bytes: &[u8], id: &str, sources: &[Source]) -> Result<Vec<Entry>> {
    let entries = parse(bytes, id)?;
    check(&entries, id, sources)?;
    Ok(entries)
}

pub(crate) fn malformed(id: &str, why: String) -> PointError {
    PointError::Malformed { what: "the index", id: id.to_owned(), why }
}

/// Refuses the version 0 and versions that are newer than `supported`.
pub(crate) fn check_version(version: u32, supported: u32, id: &str) -> Result<()> {
    if version > supported {
        let (found, supported) = (version.into(), supported.into());
        return Err(PointError::Version { what: "the index", id: id.to_owned(), found, supported });
    }
    if version == 0 { Err(malformed(id, "it has version 0".into())) } else { Ok(()) }
}

/// Reads the entries of a whole index without a check of the entries.
pub(crate) fn parse(bytes: &[u8], id: &str) -> Result<Vec<Entry>> {
    let wrong = |why: String| malformed(id, why);
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| wrong("it does not start like an index".into()))?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(|| wrong("it ends in its header".into()))?;
    check_version(u32::from_le_bytes(*version), VERSION, id)?;
    let (count, mut rest) = rest.split_first_chunk::<8>().ok_or_else(|| wrong("it ends in its header".into()))?;
    let count = u64::from_le_bytes(*count);
    if count > rest.len() as u64 / MIN_ENTRY || u32::try_from(count).is_err() {
        return Err(wrong(format!("{count} entries cannot be in {} bytes", rest.len())));
    }
    // The number is limited by the bytes of the index, but a forged index could still reserve much memory.
    let mut entries = Vec::with_capacity(usize::try_from(count).unwrap_or(0).min(MAX_RESERVED));
    for position in 0..count {
        let (entry, after) = postcard::take_from_bytes::<Entry>(rest).map_err(|e| wrong(format!("entry {position}: {e}")))?;
        rest = after;
        entries.push(entry);
    }
    if !rest.is_empty() {
        return Err(wrong(format!("{} bytes follow the last entry", rest.len())));
    }
    Ok(entries)
}

/// Checks that a capture of `sources` can have written these entries.
pub(crate) fn check(entries: &[Entry], id: &str, sources: &[Source]) -> Result<()> {
    let wrong = |why: String| malformed(id, why);
    let roots: Vec<Vec<Vec<u8>>> = sources.iter().map(Source::roots).collect();
    // `above` contains the positions of the directories above the current entry.
    let mut above: Vec<usize> = Vec::new();
    let mut last: Option<&Entry> = None;
    for (position, entry) in entries.iter().enumerate() {
        let bad = |why: &str| wrong(format!("entry {position}, {:?}: {why}", entry.shown()));
        if let Some(why) = fault(entry) {
            return Err(bad(why));
        }
        if last.is_some_and(|last| order(&last.path, &entry.path).is_ge()) {
            return Err(bad("it is out of order or listed twice"));
        }
        let source = sources.iter().position(|source| source.holds(&entry.path)).ok_or_else(|| bad("it is in no source"))?;
        let is_root = roots.get(source).is_some_and(|roots| roots.contains(&entry.path));
        above.retain(|parent| entries.get(*parent).is_some_and(|parent| is_within(&entry.path, &parent.path)));
        let parent = above.last().and_then(|parent| entries.get(*parent));
        if !is_root && parent.is_none_or(|parent| parent.path != split(&entry.path).0) {
            return Err(bad("its parent is not a directory of the index"));
        }
        match entry.kind {
            Kind::HardLink { to } => {
                let earlier = entries.get(..position).and_then(|earlier| earlier.get(to as usize));
                let target = earlier.filter(|target| matches!(target.kind, Kind::File { .. }));
                let target = target.ok_or_else(|| bad("it is a hard link to an entry that is not an earlier file"))?;
                if !sources.get(source).is_some_and(|source| source.holds(&target.path)) {
                    return Err(bad("it is a hard link to a file of another source"));
                }
            }
            Kind::Directory => above.push(position),
            Kind::File { .. } | Kind::Symlink { .. } => {}
        }
        last = Some(entry);
    }
    Ok(())
}

/// Returns the fault of a single entry, if there is one. Other entries are not considered.
fn fault(entry: &Entry) -> Option<&'static str> {
    if let Some(why) = path_fault(&entry.path) {
        return Some(why);
    }
    if entry.mode > 0o7777 {
        return Some("the mode has bits of a file type");
    }
    if entry.uid == u32::MAX || entry.gid == u32::MAX {
        return Some("the owner or the group is not a valid number");
    }
    if entry.mtime.nanos >= 1_000_000_000 {
        return Some("the time has 1000000000 or more nanoseconds");
    }
    if let Kind::Symlink { target } = &entry.kind
        && (target.is_empty() || target.len() > MAX_PATH || target.contains(&0))
    {
        return Some("the target of the link is empty, too long or contains a byte 0");
    }
    if let Kind::File { size, .. } = entry.kind
        && i64::try_from(size).is_err()
    {
        return Some("the size is larger than a file can be");
    }
    let is_bad = |name: &[u8], value: &[u8]| !is_kept(name) || name.contains(&0) || name.len() > 255 || value.len() > 64 << 10;
    if entry.xattrs.iter().any(|xattr| is_bad(&xattr.name, &xattr.value)) {
        return Some("it has an extended attribute that no capture keeps");
    }
    if !entry.xattrs.is_sorted_by(|a, b| a.name < b.name) {
        return Some("its extended attributes are out of order or listed twice");
    }
    None
}

/// Returns the entry that has the size, digest and stamp of a file: `entry` itself, or the target of a hard link. Returns `None` for
/// directories and symlinks.
pub(crate) fn file_of<'a>(entries: &'a [Entry], entry: &'a Entry) -> Option<&'a Entry> {
    match entry.kind {
        Kind::File { .. } => Some(entry),
        Kind::HardLink { to } => entries.get(to as usize),
        Kind::Directory | Kind::Symlink { .. } => None,
    }
}

/// Finds entries by paths that are usually looked up in the order of the index.
#[derive(Debug, Default)]
pub(crate) struct Finder {
    /// The position after the last entry that was found.
    next: usize,
}

impl Finder {
    /// Returns the entry with a path.
    pub(crate) fn find<'a>(&mut self, entries: &'a [Entry], path: &[u8]) -> Option<&'a Entry> {
        let at = match entries.get(self.next) {
            Some(entry) if entry.path == path => self.next,
            _ => entries.binary_search_by(|entry| order(&entry.path, path)).ok()?,
        };
        self.next = at + 1;
        entries.get(at)
    }
}

/// Returns the entry with a path.
pub(crate) fn find<'a>(entries: &'a [Entry], path: &[u8]) -> Option<&'a Entry> {
    entries.binary_search_by(|entry| order(&entry.path, path)).ok().and_then(|at| entries.get(at))
}
