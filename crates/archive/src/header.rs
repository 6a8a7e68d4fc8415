//! Encodes the tar header of an entry. The bytes depend only on the entry, so that a reader can compare a header instead of trusting it.

use std::{borrow::Cow, sync::LazyLock};

use tar::{EntryType, Header};

use super::{ItemKind, MTIME};
use crate::EntryKind;

/// The size of a block of a tar, in bytes.
pub(super) const BLOCK: u64 = 512;

/// The size of the two empty blocks at the end of a tar, in bytes.
pub(super) const END: usize = 1024;

/// The fields of a header besides the path.
#[derive(Clone, Copy)]
pub(super) enum Shape<'a> {
    Dir,
    File { size: u64, executable: bool },
    Link { target: &'a str },
}

impl<'a> From<&'a ItemKind> for Shape<'a> {
    fn from(kind: &'a ItemKind) -> Shape<'a> {
        match kind {
            ItemKind::Dir => Shape::Dir,
            ItemKind::File { size, executable, .. } => Shape::File { size: *size, executable: *executable },
            ItemKind::Link { target } => Shape::Link { target },
        }
    }
}

impl<'a> From<&'a EntryKind> for Shape<'a> {
    fn from(kind: &'a EntryKind) -> Shape<'a> {
        match kind {
            EntryKind::Dir => Shape::Dir,
            EntryKind::File { size, executable, .. } => Shape::File { size: *size, executable: *executable },
            EntryKind::Link { target } => Shape::Link { target },
        }
    }
}

/// Appends the header blocks of an entry to `into`. A PAX header precedes the normal header if the path or the target does not fit into the
/// normal header.
pub(super) fn encode<'a>(path: &str, shape: impl Into<Shape<'a>>, into: &mut Vec<u8>) {
    let (name, base, size, target) = match shape.into() {
        Shape::Dir => (Cow::Owned(format!("{path}/")), &BASES.dir, 0, None),
        Shape::File { size, executable } => (path.into(), if executable { &BASES.executable } else { &BASES.file }, size, None),
        Shape::Link { target } => (path.into(), &BASES.link, 0, Some(target)),
    };
    let place = place(&name);
    let long_target = target.filter(|t| t.len() > 100);
    let mut records = Vec::new();
    if place.is_none() {
        record("path", &name, &mut records);
    }
    if let Some(target) = long_target {
        record("linkpath", target, &mut records);
    }
    if !records.is_empty() {
        put(into, ("", "pax"), &BASES.pax, records.len() as u64, "");
        into.extend_from_slice(&records);
        pad(into, records.len() as u64);
    }
    let short_target = if long_target.is_some() { "" } else { target.unwrap_or("") };
    put(into, place.unwrap_or(("", "long")), base, size, short_target);
}

/// Returns the number of bytes that an entry takes in the tar: headers, content and padding.
pub(super) fn span<'a>(path: &str, shape: impl Into<Shape<'a>>) -> u64 {
    let shape = shape.into();
    let name = path.len() + usize::from(matches!(shape, Shape::Dir));
    let (size, target) = match shape {
        Shape::Dir => (0, 0),
        Shape::File { size, .. } => (size, 0),
        Shape::Link { target } => (0, target.len()),
    };
    if name <= 100 && target <= 100 {
        return BLOCK + padded(size);
    }
    let mut header = Vec::new();
    encode(path, shape, &mut header);
    header.len() as u64 + padded(size)
}

/// Returns `size`, rounded up to whole blocks.
pub(super) fn padded(size: u64) -> u64 {
    size.div_ceil(BLOCK) * BLOCK
}

/// Appends the zeros that fill the last block of a content of `size` bytes.
pub(super) fn pad(into: &mut Vec<u8>, size: u64) {
    into.resize(into.len() + (padded(size) - size) as usize, 0);
}

/// Splits a path into the prefix and the name of USTAR. Returns `None` if the parts do not fit.
fn place(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    // The '/' between prefix and name is not stored.
    let start = path.len().saturating_sub(101);
    let bytes = path.as_bytes();
    let cut = (start..path.len().min(156)).find(|i| bytes.get(*i) == Some(&b'/') && *i + 1 < path.len())?;
    Some((path.get(..cut)?, path.get(cut + 1..)?)).filter(|(prefix, name)| !prefix.is_empty() && !name.is_empty())
}

/// Appends a PAX record. A record begins with its own length in decimal, which includes the digits of the length.
fn record(key: &str, value: &str, into: &mut Vec<u8>) {
    let rest = key.len() + value.len() + 3;
    let mut digits = 1;
    while (rest + digits).to_string().len() > digits {
        digits += 1;
    }
    into.extend_from_slice(format!("{} {key}={value}\n", rest + digits).as_bytes());
}

/// The templates of headers, one for each kind. The templates are made once, since a release has many headers.
struct Bases {
    dir: Header,
    file: Header,
    executable: Header,
    link: Header,
    pax: Header,
}

static BASES: LazyLock<Bases> = LazyLock::new(|| {
    let base = |entry_type, mode| {
        let mut header = Header::new_ustar();
        header.set_entry_type(entry_type);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mtime(MTIME);
        header
    };
    Bases {
        dir: base(EntryType::Directory, 0o755),
        file: base(EntryType::Regular, 0o644),
        executable: base(EntryType::Regular, 0o755),
        link: base(EntryType::Symlink, 0o777),
        pax: base(EntryType::XHeader, 0o644),
    }
});

fn put(into: &mut Vec<u8>, (prefix, name): (&str, &str), base: &Header, size: u64, target: &str) {
    let mut header = base.clone();
    if let Some(ustar) = header.as_ustar_mut() {
        copy(&mut ustar.prefix, prefix);
        copy(&mut ustar.name, name);
        copy(&mut ustar.linkname, target);
        octal(&mut ustar.size, size);
        // The checksum is computed as if its own field contained spaces.
        ustar.cksum = [b' '; 8];
    }
    let sum = header.as_bytes().iter().map(|byte| u64::from(*byte)).sum();
    if let Some(ustar) = header.as_ustar_mut() {
        octal(&mut ustar.cksum, sum);
    }
    into.extend_from_slice(header.as_bytes());
}

/// Writes a number as octal digits into all bytes of a field except the last, which is zero.
fn octal(field: &mut [u8], mut number: u64) {
    let Some((end, digits)) = field.split_last_mut() else { return };
    *end = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number & 7) as u8;
        number >>= 3;
    }
}

fn copy(field: &mut [u8], text: &str) {
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(path: &str, kind: &ItemKind) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(path, kind, &mut bytes);
        assert_eq!(bytes.len() % 512, 0);
        bytes
    }

    #[test]
    fn header_span_equals_its_encoding_and_is_read_by_tar() {
        let part = "abcdefghi/".repeat(40);
        let mut paths: Vec<String> = (1..=part.len()).map(|n| part[..n].trim_end_matches('/').to_owned()).collect();
        paths.extend([
            "x".repeat(99),
            "x".repeat(100),
            "x".repeat(101),
            "ä".repeat(70),
            format!("{}/{}", "a".repeat(155), "b".repeat(99)),
        ]);
        for path in &paths {
            for kind in [
                ItemKind::Dir,
                ItemKind::File { size: 0, digest: None, executable: true },
                ItemKind::Link { target: "../x".into() },
                ItemKind::Link { target: format!("/{path}") },
            ] {
                let mut bytes = header(path, &kind);
                assert_eq!(bytes.len() as u64, span(path, &kind));
                bytes.resize(bytes.len() + END, 0);
                let mut archive = tar::Archive::new(&bytes[..]);
                let mut entries = archive.entries().unwrap();
                let entry = entries.next().unwrap().unwrap();
                assert_eq!(entry.path_bytes().strip_suffix(b"/").unwrap_or(&entry.path_bytes()), path.as_bytes());
                if let ItemKind::Link { target } = &kind {
                    assert_eq!(entry.link_name_bytes().unwrap(), target.as_bytes());
                }
                drop(entry);
                assert!(entries.next().is_none());
            }
        }
    }
}
