//! The contents of files: cloned if the file system can, or else copied with preserved holes, and digested.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{Advice, SeekFrom, fadvise, ftruncate, ioctl_ficlone, seek},
    io::{Errno, pread, pwrite},
};

use crate::{
    PointError, Result,
    entry::Digest,
    pool::{Cancel, check_cancel},
    sys::stat_fd,
};

/// The number of bytes that are read at once.
const CHUNK: usize = 256 << 10;

/// Zeros, for the digests of holes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The copier of contents from one tree to another. The copier remembers if the file systems can clone.
#[derive(Debug)]
pub(crate) struct Copier<'a> {
    /// False if the caller forbids clones, or after the file systems have refused a clone.
    can_clone: AtomicBool,
    cancel: Cancel<'a>,
}

/// The result of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copied {
    pub digest: Digest,
    pub size: u64,
    pub is_clone: bool,
}

impl<'a> Copier<'a> {
    pub(crate) fn new(clone: bool, cancel: Cancel<'a>) -> Copier<'a> {
        Copier { can_clone: AtomicBool::new(clone), cancel }
    }

    /// Clones `from`, the file at `path`, to the empty file `to`. If a clone is not possible, calls `reserve`, and copies at most `size`
    /// bytes. `is_unchanged` returns true only if `from` is certain to have had the same content during the whole call.
    pub(crate) fn copy(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        size: u64,
        path: &[u8],
        reserve: impl FnOnce() -> Result<()>,
        is_unchanged: impl FnOnce() -> Result<bool>,
    ) -> Result<Copied> {
        if size > 0 && self.can_clone.load(Ordering::Relaxed) {
            match ioctl_ficlone(to, from) {
                Ok(()) => {
                    let size = stat_fd(to).map_err(|e| failed("look at the copy of", path, e))?.size;
                    // The page cache often has the content of a file that was written recently, but never the content of a new clone.
                    let (digest, read) = self.digest(from, size, path)?;
                    if read == size && is_unchanged()? {
                        return Ok(Copied { digest, size, is_clone: true });
                    }
                    let digest = self.digest(to, size, path)?.0;
                    return Ok(Copied { digest, size, is_clone: true });
                }
                Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => {
                    self.can_clone.store(false, Ordering::Relaxed)
                }
                // Single files can refuse a clone: swap files, files without copy on write, limits of quotas.
                Err(Errno::INVAL | Errno::PERM | Errno::TXTBSY) => {}
                Err(other) => return Err(failed("clone", path, other)),
            }
        }
        reserve()?;
        let (digest, size) = self.scan(from, size, path, |at, bytes| write_all(to, at, bytes, path))?;
        if stat_fd(to).map_err(|e| failed("look at the copy of", path, e))?.size != size {
            // The file ends in a hole.
            ftruncate(to, size).map_err(|e| failed("set the size of the copy of", path, e))?;
        }
        Ok(Copied { digest, size, is_clone: false })
    }

    /// Returns the digest of at most `size` bytes, and the number of bytes that were read.
    pub(crate) fn digest(&self, file: BorrowedFd<'_>, size: u64, path: &[u8]) -> Result<(Digest, u64)> {
        self.scan(file, size, path, |_, _| Ok(()))
    }

    /// Computes the digest of a file, and passes its data, without the holes, to `each`.
    fn scan(
        &self,
        file: BorrowedFd<'_>,
        size: u64,
        path: &[u8],
        mut each: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<(Digest, u64)> {
        let wrong = |e: Errno| failed("read", path, e);
        let stat = stat_fd(file).map_err(wrong)?;
        let is_sparse = stat.allocated < stat.size;
        let size = size.min(stat.size);
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))];
        let mut at = 0_u64;
        let mut data_end = if is_sparse { 0 } else { size };
        while at < size {
            check_cancel(self.cancel)?;
            if at == data_end {
                let data = match seek(file, SeekFrom::Data(at)) {
                    Ok(data) => data.min(size),
                    Err(Errno::NXIO) => size,
                    // The file system does not report holes.
                    Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
                    Err(other) => return Err(wrong(other)),
                };
                while at < data {
                    check_cancel(self.cancel)?;
                    let length = ZEROS.len().min(usize::try_from(data - at).unwrap_or(ZEROS.len()));
                    hasher.update(ZEROS.get(..length).unwrap_or(&ZEROS));
                    at += length as u64;
                }
                data_end = if at < size { seek(file, SeekFrom::Hole(at)).map_or(size, |hole| hole.min(size)) } else { size };
                // If another program has just made a hole at this position, the rest of the file is read as data.
                data_end = if data_end <= at { size } else { data_end };
                continue;
            }
            let length = buffer.len().min(usize::try_from(data_end - at).unwrap_or(buffer.len()));
            let read = loop {
                match pread(file, buffer.get_mut(..length).unwrap_or_default(), at) {
                    Err(Errno::INTR) => {}
                    other => break other.map_err(wrong)?,
                }
            };
            if read == 0 {
                break;
            }
            let bytes = buffer.get(..read).unwrap_or_default();
            hasher.update(bytes);
            each(at, bytes)?;
            at += read as u64;
        }
        Ok((Digest(hasher.finalize().into()), at))
    }
}

/// Asks the kernel to drop the cached content, so that the next read comes from the disk.
pub(crate) fn forget_cache(file: impl AsFd) {
    // This call is only advice: if it has no effect, the content is still compared.
    let _ = fadvise(file, 0, None, Advice::DontNeed);
}

fn write_all(to: BorrowedFd<'_>, mut at: u64, mut bytes: &[u8], path: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match pwrite(to, bytes, at) {
            Ok(0) => return Err(failed("write the copy of", path, Errno::IO)),
            Ok(written) => {
                bytes = bytes.get(written..).unwrap_or_default();
                at += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(other) => return Err(failed("write the copy of", path, other)),
        }
    }
    Ok(())
}

fn failed(doing: &'static str, path: &[u8], source: Errno) -> PointError {
    PointError::io(doing, OsStr::from_bytes(path), source)
}
