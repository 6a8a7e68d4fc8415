//! Portable archives of files with all their metadata: pax tar in one zstd frame, which `tar --zstd -x` opens. Unlike a release archive, a
//! portable archive keeps owners, times, extended attributes, hard links and holes, and larder does not read it again. Read
//! [`PortableWriter`].
//!
//! The pax records are those of POSIX.1-2001 and of GNU tar: `SCHILY.xattr.*` for extended attributes, and the sparse format 1.0
//! (`GNU.sparse.*`), in which a map of the data precedes the data.

use std::io::{self, Write};

use tar::{EntryType, Header};
use zstd::stream::write::Encoder;

use crate::{
    LEVEL,
    header::{BLOCK, END},
};

/// The largest number in an octal field of 7 digits: owner and group.
const MAX_ID: u32 = 0o7_777_777;

/// The largest number in an octal field of 11 digits: size and time.
const MAX_LONG: u64 = 0o77_777_777_777;

/// The maximum length of a name in a header, in bytes. A longer name is in a pax record.
const MAX_NAME: usize = 100;

/// The kind of an entry.
#[derive(Debug, Clone, Copy)]
pub enum PortableKind<'a> {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// The size in bytes, holes included.
        size: u64,
        /// The offset and the length of each piece of data, sorted by offset. All other parts of the file are holes.
        data: &'a [(u64, u64)],
    },
    /// A symbolic link with its target.
    Symlink(&'a [u8]),
    /// A further name of a file, with the path of the file, whose entry is earlier in the archive.
    HardLink(&'a [u8]),
}

/// An entry of a portable archive.
#[derive(Debug, Clone, Copy)]
pub struct PortableEntry<'a> {
    /// The relative path.
    pub path: &'a [u8],
    /// The kind.
    pub kind: PortableKind<'a>,
    /// The permission bits.
    pub mode: u32,
    /// The numeric owner.
    pub uid: u32,
    /// The numeric group.
    pub gid: u32,
    /// The time of the last write: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// The names and values of the extended attributes.
    pub xattrs: &'a [(&'a [u8], &'a [u8])],
}

/// A writer of a portable archive. An archive that was not finished has no end, so that `tar` reports an error.
pub struct PortableWriter<W: Write> {
    out: Encoder<'static, W>,
    /// The number of bytes that are missing in the data of the current file.
    expected: u64,
    /// The number of zeros that follow the data of the current file.
    padding: u64,
}

impl<W: Write> std::fmt::Debug for PortableWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortableWriter").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl<W: Write> PortableWriter<W> {
    /// Begins an archive.
    pub fn new(out: W) -> io::Result<PortableWriter<W>> {
        let mut out = Encoder::new(out, LEVEL)?;
        out.include_checksum(true)?;
        Ok(PortableWriter { out, expected: 0, padding: 0 })
    }

    /// Writes the headers of an entry. The data of a file must follow with [`PortableWriter::data`].
    pub fn begin(&mut self, entry: &PortableEntry<'_>) -> io::Result<()> {
        self.is_complete()?;
        let mut records = Vec::new();
        let mut map = Vec::new();
        let (kind, target, size) = match entry.kind {
            PortableKind::Directory => (EntryType::Directory, None, 0),
            PortableKind::Symlink(target) => (EntryType::Symlink, Some(target), 0),
            PortableKind::HardLink(target) => (EntryType::Link, Some(target), 0),
            PortableKind::File { size, data } => {
                let length: u64 = data.iter().map(|(_, length)| length).sum();
                if length != size {
                    map = sparse_map(size, data);
                    record(b"GNU.sparse.major", b"1", &mut records);
                    record(b"GNU.sparse.minor", b"0", &mut records);
                    record(b"GNU.sparse.name", entry.path, &mut records);
                    record(b"GNU.sparse.realsize", size.to_string().as_bytes(), &mut records);
                }
                self.expected = length;
                (EntryType::Regular, None, length + map.len() as u64)
            }
        };
        let mut name = entry.path.to_vec();
        if matches!(entry.kind, PortableKind::Directory) {
            name.push(b'/');
        }
        if !map.is_empty() {
            name = b"GNUSparseFile.0".to_vec();
        } else if name.len() > MAX_NAME || !name.is_ascii() {
            record(b"path", &name, &mut records);
        }
        if let Some(target) = target.filter(|target| target.len() > MAX_NAME || !target.is_ascii()) {
            record(b"linkpath", target, &mut records);
        }
        let (seconds, nanos) = entry.mtime;
        if nanos != 0 || !(0..=MAX_LONG as i64).contains(&seconds) {
            record(b"mtime", time(seconds, nanos).as_bytes(), &mut records);
        }
        if size > MAX_LONG {
            record(b"size", size.to_string().as_bytes(), &mut records);
        }
        for (key, id) in [(&b"uid"[..], entry.uid), (b"gid", entry.gid)] {
            if id > MAX_ID {
                record(key, id.to_string().as_bytes(), &mut records);
            }
        }
        for (key, value) in entry.xattrs {
            record(&[b"SCHILY.xattr.", escaped(key).as_slice()].concat(), value, &mut records);
        }
        if !records.is_empty() {
            let length = records.len() as u64;
            self.header(b"larder/pax", b"", EntryType::XHeader, length, &PortableEntry { mode: 0o644, mtime: (0, 0), ..*entry })?;
            self.out.write_all(&records)?;
            self.zeros(padding(length))?;
        }
        self.header(&name, target.unwrap_or_default(), kind, size, entry)?;
        self.out.write_all(&map)?;
        self.padding = padding(size);
        if self.expected == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.zeros(padding)?;
        }
        Ok(())
    }

    /// Writes the next data of the current file, without its holes.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        if length > self.expected {
            return Err(io::Error::other("a file has more data than its header says"));
        }
        self.out.write_all(bytes)?;
        self.expected -= length;
        if self.expected == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.zeros(padding)?;
        }
        Ok(())
    }

    /// Ends the archive, and returns the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.is_complete()?;
        self.zeros(END as u64)?;
        self.out.finish()
    }

    fn is_complete(&self) -> io::Result<()> {
        match self.expected {
            0 => Ok(()),
            missing => Err(io::Error::other(format!("{missing} bytes of a file are missing"))),
        }
    }

    fn header(&mut self, name: &[u8], target: &[u8], kind: EntryType, size: u64, entry: &PortableEntry<'_>) -> io::Result<()> {
        let mut header = Header::new_ustar();
        let old = header.as_old_mut();
        copy(name, &mut old.name);
        copy(target, &mut old.linkname);
        header.set_entry_type(kind);
        header.set_mode(entry.mode & 0o7777);
        header.set_uid(u64::from(entry.uid.min(MAX_ID)));
        header.set_gid(u64::from(entry.gid.min(MAX_ID)));
        header.set_mtime(u64::try_from(entry.mtime.0).unwrap_or(0).min(MAX_LONG));
        header.set_size(size.min(MAX_LONG));
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        let zeros = [0; END];
        self.out.write_all(zeros.get(..usize::try_from(count).unwrap_or(END)).unwrap_or(&zeros))
    }
}

/// Copies `from` to the beginning of `to`. Bytes that do not fit are left out.
fn copy(from: &[u8], to: &mut [u8]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

/// Returns the number of zeros that complete the last block.
fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK) - size
}

/// Returns the map of a sparse file: the number of pieces, then offset and length of each, one number per line, padded to whole blocks. The
/// last piece is empty and ends at the size of the file.
fn sparse_map(size: u64, data: &[(u64, u64)]) -> Vec<u8> {
    let mut map = format!("{}\n", data.len() + 1).into_bytes();
    for (offset, length) in data.iter().chain([&(size, 0)]) {
        map.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK as usize), 0);
    map
}

/// Appends a pax record: its own length, a space, `key=value`, a newline.
fn record(key: &[u8], value: &[u8], into: &mut Vec<u8>) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest > length {
        length += 1;
    }
    into.extend_from_slice(format!("{length} ").as_bytes());
    into.extend_from_slice(key);
    into.push(b'=');
    into.extend_from_slice(value);
    into.push(b'\n');
}

/// Escapes the name of an attribute as GNU tar does, because a key ends at the first `=`.
fn escaped(name: &[u8]) -> Vec<u8> {
    let escape = |byte: &u8| match byte {
        b'%' => b"%25".to_vec(),
        b'=' => b"%3D".to_vec(),
        other => vec![*other],
    };
    name.iter().flat_map(escape).collect()
}

/// Renders a time as a decimal number of seconds. The nanoseconds count forwards, also before 1970.
fn time(seconds: i64, nanos: u32) -> String {
    match (seconds, nanos) {
        (seconds, 0) => seconds.to_string(),
        (seconds, nanos) if seconds >= 0 => format!("{seconds}.{nanos:09}"),
        (seconds, nanos) => {
            let (whole, rest) = (seconds.saturating_add(1).unsigned_abs(), 1_000_000_000_u32.saturating_sub(nanos));
            format!("-{whole}.{rest:09}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_counts_its_own_length() {
        for length in [0, 1, 80, 88, 89, 90, 91, 980, 990, 991, 9_990] {
            let mut bytes = Vec::new();
            record(b"path", &vec![b'x'; length], &mut bytes);
            let text = String::from_utf8(bytes.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), bytes.len(), "{length}");
        }
    }

    #[test]
    fn times_are_decimal_numbers() {
        assert_eq!(time(5, 0), "5");
        assert_eq!(time(5, 7), "5.000000007");
        assert_eq!(time(-5, 0), "-5");
        // This time is a quarter of a second after second -5.
        assert_eq!(time(-5, 250_000_000), "-4.750000000");
        assert_eq!(time(-1, 999_999_999), "-0.000000001");
    }

    #[test]
    fn archive_that_is_cut_or_overfull_is_an_error() {
        let entry = PortableEntry {
            path: b"file",
            kind: PortableKind::File { size: 3, data: &[(0, 3)] },
            mode: 0o644,
            uid: 1,
            gid: 1,
            mtime: (0, 0),
            xattrs: &[],
        };
        let mut writer = PortableWriter::new(Vec::new()).unwrap();
        writer.begin(&entry).unwrap();
        writer.data(b"ab").unwrap();
        assert!(writer.begin(&entry).is_err());
        assert!(writer.data(b"cd").is_err());
        assert!(writer.finish().is_err());
    }

    #[test]
    fn metadata_is_read_back_by_another_reader() {
        let long = [&b"d/"[..], &[b'n'; 120]].concat();
        let xattrs: &[(&[u8], &[u8])] = &[(b"user.a=b", b"one")];
        let file = PortableEntry {
            path: &long,
            kind: PortableKind::File { size: 5, data: &[(0, 5)] },
            mode: 0o4751,
            uid: 4_000_000_000,
            gid: 7,
            mtime: (1_000, 500),
            xattrs,
        };
        let mut writer = PortableWriter::new(Vec::new()).unwrap();
        writer.begin(&PortableEntry { path: b"d", kind: PortableKind::Directory, xattrs: &[], ..file }).unwrap();
        writer.begin(&file).unwrap();
        writer.data(b"hello").unwrap();
        writer.begin(&PortableEntry { path: b"d/h", kind: PortableKind::HardLink(&long), xattrs: &[], ..file }).unwrap();
        writer.begin(&PortableEntry { path: b"d/s", kind: PortableKind::Symlink(b"/etc/shadow"), ..file }).unwrap();
        let bytes = writer.finish().unwrap();
        let tar = zstd::stream::decode_all(&bytes[..]).unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            io::Read::read_to_string(&mut entry, &mut content).unwrap();
            let link = entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
            let records: Vec<_> = match entry.pax_extensions().unwrap() {
                Some(records) => records.map(|record| record.unwrap().key_bytes().to_vec()).collect(),
                None => Vec::new(),
            };
            seen.push((entry.path_bytes().into_owned(), content, link, entry.header().mode().unwrap(), records));
        }
        assert_eq!(seen[0].0, b"d/");
        assert_eq!((&seen[1].0, seen[1].1.as_str(), seen[1].3), (&long, "hello", 0o4751));
        assert!(seen[1].4.contains(&b"SCHILY.xattr.user.a%3Db".to_vec()) && seen[1].4.contains(&b"uid".to_vec()));
        assert_eq!((&seen[2].2, seen[3].2.as_slice()), (&long, &b"/etc/shadow"[..]));
    }
}
