//! The contents of a restore point for an export: each stored file with its holes, compared with its digest while it is read.

use std::{
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
};

use rustix::{
    fs::{FileType, SeekFrom, seek},
    io::{Errno, pread},
};

use crate::{Digest, Entry, Kind, Point, PointError, Result, sys};

/// The number of bytes that are read at once.
const CHUNK: usize = 256 << 10;

/// The maximum number of pieces of data of one file. The holes of a file with more pieces are read as zeros.
const MAX_PIECES: usize = 10_000;

/// A stored file that is open for reading.
#[derive(Debug)]
pub struct StoredFile {
    file: OwnedFd,
    path: Vec<u8>,
    id: String,
    digest: Digest,
    size: u64,
    data: Vec<(u64, u64)>,
}

impl Point {
    /// Opens the stored content of a regular file of the index. Returns an error if the content is missing or does not have the size in the
    /// index.
    pub fn stored_file(&self, entry: &Entry) -> Result<StoredFile> {
        let damaged = || PointError::Damaged { id: self.id().to_owned(), count: 1, first: entry.shown() };
        let wrong = |e: Errno| PointError::io("read", OsStr::from_bytes(&entry.path), e);
        let Kind::File { size, digest, .. } = entry.kind else { return Err(damaged()) };
        let file = match self.open_stored(entry) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(damaged()),
            other => other.map_err(wrong)?,
        };
        let stat = sys::stat_fd(&file).map_err(wrong)?;
        if stat.kind != FileType::RegularFile || stat.size != size {
            return Err(damaged());
        }
        let whole = || if size == 0 { Vec::new() } else { vec![(0, size)] };
        let data = if stat.allocated < size { pieces(&file, size).unwrap_or_else(whole) } else { whole() };
        Ok(StoredFile { file, path: entry.path.clone(), id: self.id().to_owned(), digest, size, data })
    }
}

/// Returns the offset and the length of each piece of data. Returns `None` if the file system does not report holes, or if there are too
/// many pieces.
fn pieces(file: &OwnedFd, size: u64) -> Option<Vec<(u64, u64)>> {
    let (mut pieces, mut at) = (Vec::new(), 0);
    while at < size {
        let begin = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other.ok()?.min(size),
        };
        let end = seek(file, SeekFrom::Hole(begin)).ok()?.min(size);
        if end <= begin || pieces.len() == MAX_PIECES {
            return None;
        }
        pieces.push((begin, end - begin));
        at = end;
    }
    Some(pieces)
}

impl StoredFile {
    /// Returns the offset and the length of each piece of data, sorted by offset. All other parts of the file are holes.
    pub fn data(&self) -> &[(u64, u64)] {
        &self.data
    }

    /// Passes the data to `each`, without the holes. Returns an error after the last byte if the content does not have the digest of the
    /// index.
    pub fn read(self, mut each: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; CHUNK];
        let mut at = 0;
        for (begin, length) in &self.data {
            zeros(&mut hasher, begin - at);
            at = *begin;
            while at < begin + length {
                let wanted = buffer.len().min(usize::try_from(begin + length - at).unwrap_or(buffer.len()));
                let read = loop {
                    match pread(&self.file, buffer.get_mut(..wanted).unwrap_or_default(), at) {
                        Err(Errno::INTR) => {}
                        other => break other.map_err(|e| PointError::io("read", OsStr::from_bytes(&self.path), e))?,
                    }
                };
                if read == 0 {
                    return Err(self.damaged());
                }
                let bytes = buffer.get(..read).unwrap_or_default();
                hasher.update(bytes);
                each(bytes).map_err(|e| PointError::io("send", OsStr::from_bytes(&self.path), e))?;
                at += read as u64;
            }
        }
        zeros(&mut hasher, self.size - at);
        if Digest(hasher.finalize().into()) != self.digest {
            return Err(self.damaged());
        }
        Ok(())
    }

    fn damaged(&self) -> PointError {
        PointError::Damaged { id: self.id.clone(), count: 1, first: String::from_utf8_lossy(&self.path).into_owned() }
    }
}

fn zeros(hasher: &mut blake3::Hasher, mut count: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while count > 0 {
        let length = ZEROS.len().min(usize::try_from(count).unwrap_or(ZEROS.len()));
        hasher.update(ZEROS.get(..length).unwrap_or(&ZEROS));
        count -= length as u64;
    }
}
