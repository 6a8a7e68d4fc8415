//! Finds the reason to refuse a header that differs from the expected header. This code runs only after the archive was refused, so
//! no archive is accepted because of a result of this code.

use tar::Header;

use super::{ArchiveError, check_path, check_target, header};
use crate::{Entry, EntryKind};

/// Returns the reason to refuse `found`, which is in the place of the header of `expected`. `done` contains the entries before
/// `expected`. `known` returns true for the paths of the manifest.
pub(super) fn why(found: &[u8], expected: &Entry, done: &[Entry], known: impl Fn(&str) -> bool) -> ArchiveError {
    let missing = || ArchiveError::Missing { path: expected.path.clone() };
    let Some((block, rest)) = found.split_at_checked(header::BLOCK as usize) else { return missing() };
    if block.iter().all(|byte| *byte == 0) {
        return missing();
    }
    let head = Header::from_byte_slice(block);
    let mut pax_path = None;
    let mut head_in_use = head;
    if matches!(head.entry_type().as_byte(), b'x' | b'g') {
        match pax(head, rest, expected) {
            Ok((path, after)) => {
                pax_path = path;
                match after.split_at_checked(header::BLOCK as usize) {
                    Some((next, _)) => head_in_use = Header::from_byte_slice(next),
                    None => return ArchiveError::Header { path: expected.path.clone() },
                }
            }
            Err(e) => return e,
        }
    }
    let name = pax_path.unwrap_or_else(|| head_in_use.path_bytes().into_owned());
    entry(head_in_use, &name, expected, done, known)
}

fn entry(head: &Header, name: &[u8], expected: &Entry, done: &[Entry], known: impl Fn(&str) -> bool) -> ArchiveError {
    let kind = head.entry_type().as_byte();
    let bare = if kind == b'5' { name.strip_suffix(b"/").unwrap_or(name) } else { name };
    // A field of a tar header ends at its first zero byte. Another reader may treat the bytes after the zero byte as a part of the name.
    let hidden = head.as_ustar().is_some_and(|ustar| hides(&ustar.name) || hides(&ustar.prefix));
    let shown: String = String::from_utf8_lossy(bare).chars().take(300).collect();
    if hidden {
        return ArchiveError::Path { path: shown, why: super::BadPath::Nul };
    }
    let path = match check_path(bare) {
        Ok(path) => path.to_owned(),
        Err(why) => return ArchiveError::Path { path: shown, why },
    };
    match kind {
        b'0' | 0 | b'5' | b'2' => {}
        b'1' => return ArchiveError::HardLink { path },
        b'3' | b'4' => return ArchiveError::Device { path },
        b'6' => return ArchiveError::Fifo { path },
        b'S' => return ArchiveError::Sparse { path },
        other => return ArchiveError::UnknownType { path, kind: other.into() },
    }
    match head.mode() {
        Ok(mode) if mode & 0o7000 != 0 => return ArchiveError::SpecialMode { path, mode },
        _ => {}
    }
    if kind == b'2'
        && let Some(target) = head.link_name_bytes()
        && let Err(why) = check_target(&target)
    {
        return ArchiveError::Target { path, why };
    }
    if path != expected.path {
        return if done.iter().any(|entry| entry.path == path) {
            ArchiveError::Duplicate { path }
        } else if known(&path) {
            // The expected entry is missing, or follows later.
            ArchiveError::Missing { path: expected.path.clone() }
        } else {
            ArchiveError::NotInManifest { path }
        };
    }
    match (&expected.kind, kind) {
        (EntryKind::Dir, b'5') | (EntryKind::Link { .. }, b'2') => ArchiveError::Header { path },
        (EntryKind::File { size, .. }, b'0' | 0) => match head.size() {
            Ok(found) if found != *size => ArchiveError::Size { path, expected: *size, found },
            _ => ArchiveError::Header { path },
        },
        _ => ArchiveError::Kind { path },
    }
}

/// Returns true if a field has nonzero bytes after its first zero byte.
fn hides(field: &[u8]) -> bool {
    field.iter().skip_while(|byte| **byte != 0).any(|byte| *byte != 0)
}

/// The path in a PAX header, if there is one, and the bytes after the header.
type Pax<'a> = (Option<Vec<u8>>, &'a [u8]);

fn pax<'a>(head: &Header, body: &'a [u8], expected: &Entry) -> Result<Pax<'a>, ArchiveError> {
    let size = head.size().map_err(|_| ArchiveError::PaxMalformed)?;
    let size = usize::try_from(size).map_err(|_| ArchiveError::PaxMalformed)?;
    // Only the bytes that were read for the expected header are parsed. The following bytes are irrelevant, because the archive is
    // refused in any case.
    let mut records = body.get(..size.min(body.len())).unwrap_or_default();
    let mut path = None;
    while !records.is_empty() {
        let malformed = || ArchiveError::PaxMalformed;
        let space = records.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length = records.get(..space).and_then(|n| std::str::from_utf8(n).ok()).and_then(|n| n.parse::<usize>().ok());
        let length = length.ok_or_else(malformed)?;
        let record = records.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(malformed)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        let (key, value) = record.split_at_checked(equals).ok_or_else(malformed)?;
        let key: String = String::from_utf8_lossy(key).chars().take(100).collect();
        match key.as_str() {
            "path" => path = value.get(1..).map(<[u8]>::to_vec),
            "linkpath" => {}
            "size" => return Err(ArchiveError::PaxSize { path: expected.path.clone() }),
            _ if key.starts_with("SCHILY.") || key.starts_with("LIBARCHIVE.xattr") || key.starts_with("RHT.") => {
                return Err(ArchiveError::Xattr { path: expected.path.clone(), key });
            }
            _ if key.starts_with("GNU.sparse") => return Err(ArchiveError::Sparse { path: expected.path.clone() }),
            _ => return Err(ArchiveError::PaxKey { key }),
        }
        records = records.get(length..).unwrap_or_default();
    }
    let after = usize::try_from(header::padded(size as u64)).unwrap_or(usize::MAX);
    Ok((path, body.get(after..).unwrap_or_default()))
}
