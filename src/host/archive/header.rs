//! The exact tar header of an entry: a pure function, so that a reader can compare instead of believing.

use tar::{EntryType, Header};

use super::{ItemKind, MTIME};

/// tar's unit.
pub(super) const BLOCK: u64 = 512;

/// The two empty blocks at the end of a tar.
pub(super) const END: usize = 1024;

/// The header blocks of an entry, with a PAX header in front where names do not fit.
pub(super) fn encode(path: &str, kind: &ItemKind, into: &mut Vec<u8>) {
    let (name, entry_type, mode, size, target) = match kind {
        ItemKind::Dir => (format!("{path}/"), EntryType::Directory, 0o755, 0, None),
        ItemKind::File { size, executable, .. } => {
            (path.to_owned(), EntryType::Regular, if *executable { 0o755 } else { 0o644 }, *size, None)
        }
        ItemKind::Link { target } => (path.to_owned(), EntryType::Symlink, 0o777, 0, Some(target.as_str())),
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
        put(into, ("", "pax"), EntryType::XHeader, 0o644, records.len() as u64, "");
        into.extend_from_slice(&records);
        pad(into, records.len() as u64);
    }
    let short_target = if long_target.is_some() { "" } else { target.unwrap_or("") };
    put(into, place.unwrap_or(("", "long")), entry_type, mode, size, short_target);
}

/// How many bytes an entry takes in the tar: headers, content and padding.
pub(super) fn span(path: &str, kind: &ItemKind) -> u64 {
    let name = path.len() + usize::from(matches!(kind, ItemKind::Dir));
    let (size, target) = match kind {
        ItemKind::Dir => (0, 0),
        ItemKind::File { size, .. } => (*size, 0),
        ItemKind::Link { target } => (0, target.len()),
    };
    if name <= 100 && target <= 100 {
        return BLOCK + padded(size);
    }
    let mut header = Vec::new();
    encode(path, kind, &mut header);
    header.len() as u64 + padded(size)
}

/// `size` rounded up to whole blocks.
pub(super) fn padded(size: u64) -> u64 {
    size.div_ceil(BLOCK) * BLOCK
}

/// Zeros up to the next block after `size` bytes.
pub(super) fn pad(into: &mut Vec<u8>, size: u64) {
    into.resize(into.len() + (padded(size) - size) as usize, 0);
}

/// USTAR's prefix and name, if the path can be cut that way.
fn place(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    // The '/' between them is not stored.
    let start = path.len().saturating_sub(101);
    let bytes = path.as_bytes();
    let cut = (start..path.len().min(156)).find(|i| bytes.get(*i) == Some(&b'/') && *i + 1 < path.len())?;
    Some((path.get(..cut)?, path.get(cut + 1..)?)).filter(|(prefix, name)| !prefix.is_empty() && !name.is_empty())
}

/// A PAX record counts its own length in decimal, that number included.
fn record(key: &str, value: &str, into: &mut Vec<u8>) {
    let rest = key.len() + value.len() + 3;
    let mut digits = 1;
    while (rest + digits).to_string().len() > digits {
        digits += 1;
    }
    into.extend_from_slice(format!("{} {key}={value}\n", rest + digits).as_bytes());
}

fn put(into: &mut Vec<u8>, (prefix, name): (&str, &str), entry_type: EntryType, mode: u32, size: u64, target: &str) {
    let mut header = Header::new_ustar();
    header.set_entry_type(entry_type);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_mtime(MTIME);
    if let Some(ustar) = header.as_ustar_mut() {
        copy(&mut ustar.prefix, prefix);
        copy(&mut ustar.name, name);
        copy(&mut ustar.linkname, target);
    }
    header.set_cksum();
    into.extend_from_slice(header.as_bytes());
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
    fn the_span_is_what_is_encoded_and_another_reader_sees_the_same() {
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
