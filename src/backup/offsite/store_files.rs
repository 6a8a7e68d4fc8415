//! The operations on the files of a store. `directory.rs`, `sftp.rs` and `bucket.rs` implement the operations.

use std::io;

use jiff::Timestamp;

/// The prefix of a file that is being written.
pub(super) const TEMPORARY: &str = ".new-";

/// Returns true if a temporary file with this time of the last write was left by a killed worker. No worker writes a file for two days.
pub(super) fn is_leftover(modified: i64, now: Timestamp) -> bool {
    now.as_second().saturating_sub(modified) > 2 * 24 * 3600
}

/// The files of a store. A path is relative to the address of the store, has `/` between its parts, and has no `.` or `..`.
pub(super) trait StoreFiles: Send + Sync + 'static {
    /// Returns the names and sizes of the files in a directory. A missing directory is empty.
    fn list(&self, directory: &str) -> io::Result<Vec<(String, u64)>>;

    /// Returns the names and sizes of all packs. restic distributes packs over 256 directories below `data`.
    fn list_packs(&self) -> io::Result<Vec<(String, u64)>> {
        let mut all = Vec::new();
        for part in 0..=255 {
            all.append(&mut self.list(&format!("data/{part:02x}"))?);
        }
        Ok(all)
    }

    /// Reads a file, or a part of a file: the offset and the length. A part that is shorter than its length is an error.
    fn read(&self, path: &str, part: Option<(u64, u64)>) -> io::Result<Vec<u8>>;

    /// Creates or replaces a file. After a failure or a kill, the file has its old content, or is missing.
    fn write(&self, path: &str, content: &[&[u8]]) -> io::Result<()>;

    /// Creates a file. An existing file stays as it is, and is an error of the kind `AlreadyExists`.
    fn create(&self, path: &str, content: &[&[u8]]) -> io::Result<()>;

    /// Removes a file. A missing file is not an error.
    fn remove(&self, path: &str) -> io::Result<()>;
}

/// Returns the error of a file or a part that is shorter than expected.
pub(super) fn too_short(path: &str, seen: u64, expected: u64) -> io::Error {
    let why = format!("{path} has {seen} bytes (expected {expected})");
    io::Error::new(io::ErrorKind::UnexpectedEof, why)
}
