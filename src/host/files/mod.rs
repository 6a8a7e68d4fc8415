//! Functions that write files durably, and functions that read files with a size limit. A file is written under a temporary name, synced,
//! and renamed atomically, so that a power cut leaves either the old file or the new file.
//!
//! The module [`durable`] makes many files durable with a single wait for the disk.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, OFlags, RenameFlags};

pub mod durable;
mod private;
pub mod reserved;

pub use larder_archive::{Confined, Cursor, FileError};
pub use private::{PrivateError, make_private, read_private};

/// Replaces the file at `path` by a file with the content `bytes` and the mode `mode`. After a crash at any point, `path` names either the
/// complete old file or the complete new file.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    place(path, &[bytes], mode, File::sync_all)?;
    sync_dir(parent(path))
}

/// Replaces a file like [`write_atomic`], but does not make the new name durable. The caller must [commit](durable::commit) the directory
/// later. A crash before the commit leaves either the complete old file or the complete new file.
pub fn place_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    place(path, &[bytes], mode, durable::write_out)
}

/// Replaces a file like [`write_atomic`], without any sync. After a power cut, the content is undefined. Use this function only for files
/// that can be recreated, and whose readers notice damage.
pub fn place_unsynced(path: &Path, parts: &[&[u8]], mode: u32) -> Result<(), FileError> {
    place(path, parts, mode, |_| Ok(()))
}

/// The size of a file that [`place_block`] overwrites, in bytes. The kernel copies a write of this size into one page, so that the end of
/// the process leaves either the old content or the new content.
const BLOCK: usize = 4096;

/// Replaces the content of a small text file without any sync, like [`place_unsynced`], but overwrites a file of the size [`BLOCK`]. The
/// content is followed by spaces up to this size. ext4 writes the data out when a file is renamed over another file; this function saves
/// that write, which takes longer than everything else here. Content of more than [`BLOCK`] bytes replaces the file.
pub fn place_block(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let Some(spaces) = BLOCK.checked_sub(content.len()) else { return place_unsynced(path, &[content], mode) };
    let block = [content, &vec![b' '; spaces]].concat();
    let opened = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path);
    let is_whole = match opened {
        Ok(file) if file.metadata().is_ok_and(|found| found.is_file() && found.len() == BLOCK as u64) => {
            file.write_at(&block, 0).is_ok_and(|written| written == BLOCK)
        }
        _ => false,
    };
    if is_whole { Ok(()) } else { place_unsynced(path, &[&block], mode) }
}

fn place(path: &Path, parts: &[&[u8]], mode: u32, sync: impl Fn(&File) -> io::Result<()>) -> Result<(), FileError> {
    let directory = parent(path);
    let mut temporary = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(directory)
        .map_err(|e| FileError::io("create a temporary file beside", path, e))?;
    for part in parts {
        temporary.write_all(part).map_err(|e| FileError::io("write", path, e))?;
    }
    let permissions = std::fs::Permissions::from_mode(mode);
    temporary.as_file().set_permissions(permissions).map_err(|e| FileError::io("set the mode of", path, e))?;
    sync(temporary.as_file()).map_err(|e| FileError::io("sync", path, e))?;
    temporary.persist(path).map_err(|e| FileError::io("replace", path, e.error))?;
    Ok(())
}

/// Appends `bytes` to the file at `path`, and waits until they are durable. Creates the file with the mode `mode` if it does not exist. After
/// a crash, a part of `bytes` may be at the end of the file.
pub fn append_durable(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let created = !path.exists();
    let opened = OpenOptions::new().append(true).create(true).mode(mode).open(path);
    let mut file = opened.map_err(|error| FileError::io("open", path, error))?;
    file.write_all(bytes).map_err(|error| FileError::io("write", path, error))?;
    file.sync_data().map_err(|error| FileError::io("sync", path, error))?;
    if created { sync_dir(parent(path)) } else { Ok(()) }
}

/// Syncs a directory, so that the names in it are durable.
pub fn sync_dir(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| FileError::io("sync the directory", path, e))
}

/// Creates `link` as a symlink to `target`. A file or symlink at `link` is replaced atomically. The change is durable afterwards.
pub fn replace_symlink(link: &Path, target: &Path) -> Result<(), FileError> {
    place_symlink(link, target)?;
    sync_dir(parent(link))
}

/// Replaces a symlink like [`replace_symlink`], without waiting for the disk. The change is durable once the directory is synced.
pub fn place_symlink(link: &Path, target: &Path) -> Result<(), FileError> {
    let made = tempfile::Builder::new()
        .prefix(".new-")
        .make_in(parent(link), |name| std::os::unix::fs::symlink(target, name))
        .map_err(|e| FileError::io("create a temporary symlink beside", link, e))?;
    made.into_temp_path().persist(link).map_err(|e| FileError::io("replace the symlink", link, e.error))
}

/// Atomically exchanges the names of two files or directories of one file system. The change is durable afterwards.
pub fn exchange(one: &Path, other: &Path) -> Result<(), FileError> {
    rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).map_err(|e| FileError::io("exchange", one, e))?;
    sync_dir(parent(one))?;
    if parent(one) != parent(other) { sync_dir(parent(other)) } else { Ok(()) }
}

/// Renames a file. Fails if `to` exists. The change is durable afterwards.
pub fn rename_new(from: &Path, to: &Path) -> Result<(), FileError> {
    rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(|e| FileError::io("rename", from, e))?;
    sync_dir(parent(to))?;
    if parent(from) != parent(to) { sync_dir(parent(from)) } else { Ok(()) }
}

/// Renames a file to `to`, and replaces an existing file at `to`. The new name is durable afterwards. The caller must sync the content
/// before the call.
pub fn rename_over(from: &Path, to: &Path) -> Result<(), FileError> {
    std::fs::rename(from, to).map_err(|e| FileError::io("rename", from, e))?;
    sync_dir(parent(to))?;
    if parent(from) != parent(to) { sync_dir(parent(from)) } else { Ok(()) }
}

/// Opens a regular file for reading. Fails if the last part of the path is a symlink or a special file; a FIFO does not block the call.
pub fn open_regular(path: &Path) -> Result<File, FileError> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let flags = i32::try_from(flags).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| FileError::io("open", path, e))?;
    let metadata = file.metadata().map_err(|e| FileError::io("read the metadata of", path, e))?;
    if metadata.is_file() { Ok(file) } else { Err(FileError::NotRegular { path: path.to_owned() }) }
}

/// Creates a directory and its missing parents with `mode`. A directory that exists keeps its mode.
pub fn ensure_dir(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Opens a file for appending. A missing file is created with `mode`.
pub fn append(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(mode).open(path)
}

/// Creates a file with `mode` and opens the file for reading and writing. Fails if the path exists.
pub fn create_new(path: &Path, mode: u32) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(mode);
    options.open(path).map_err(|e| FileError::io("create", path, e))
}

/// Reads a regular file. Fails with [`FileError::TooLarge`] if the file has more than `max` bytes.
pub fn read_limited(path: &Path, max: u64) -> Result<Vec<u8>, FileError> {
    read_file_limited(&open_regular(path)?, path, max)
}

/// Reads an open file from its current position to the end. Fails with [`FileError::TooLarge`] if more than `max` bytes follow. `path` is
/// used only in messages.
pub fn read_file_limited(file: &File, path: &Path, max: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| FileError::io("read", path, e))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max {
        return Err(FileError::TooLarge { path: path.to_owned(), limit: max });
    }
    Ok(bytes)
}

/// Removes a file if it exists. The removal is durable afterwards.
pub fn remove_if_present(path: &Path) -> Result<(), FileError> {
    match rustix::fs::unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) => sync_dir(parent(path)),
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(FileError::io("remove", path, e)),
    }
}

/// Removes the temporary files of killed processes in `directory`: files and symlinks whose names begin with `.new-`. No other process may
/// write files in `directory` at the same time, because the function would also remove the temporary files of that process.
pub fn remove_unfinished(directory: &Path) -> Result<(), FileError> {
    let unreadable = |source| FileError::io("read", directory, source);
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !directory && entry.file_name().as_encoded_bytes().starts_with(b".new-") {
            remove_if_present(&entry.path())?;
        }
    }
    Ok(())
}

/// The part of a file system's free space that unprivileged users can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeSpace {
    /// The number of free bytes.
    pub bytes: u64,
    /// The number of free inodes; `u64::MAX` if the file system has no fixed number of inodes.
    pub inodes: u64,
}

/// Returns the free space of the file system that contains `path`.
pub fn free_space(path: &Path) -> Result<FreeSpace, FileError> {
    let stat = rustix::fs::statvfs(path).map_err(|e| FileError::io("determine the free space of", path, e))?;
    let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
    Ok(FreeSpace { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), inodes })
}

/// The size of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSize {
    /// All bytes.
    pub total: u64,
    /// The used bytes.
    pub used: u64,
    /// The free bytes that unprivileged users can use.
    pub free: u64,
}

/// Returns the size of the file system that contains `path`.
pub fn disk_size(path: &Path) -> Result<DiskSize, FileError> {
    let stat = rustix::fs::statvfs(path).map_err(|e| FileError::io("determine the size of the file system of", path, e))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    Ok(DiskSize { total: bytes(stat.f_blocks), used: bytes(used), free: bytes(stat.f_bavail) })
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_write_replaces_the_file_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write_atomic(&path, b"one", 0o600).unwrap();
        write_atomic(&path, b"two", 0o640).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let missing = write_atomic(&dir.path().join("no/where"), b"", 0o600).unwrap_err();
        assert!(missing.to_string().contains("no/where"), "{missing}");
    }

    #[test]
    fn block_is_overwritten_in_place_and_other_files_are_replaced() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let inode = || std::fs::symlink_metadata(&path).unwrap().ino();
        let content = || String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
        place_block(&path, b"a longer text\n", 0o600).unwrap();
        let first = inode();
        place_block(&path, b"two\n", 0o600).unwrap();
        assert_eq!((content().trim_end(), content().len(), inode()), ("two", BLOCK, first));
        // A file of another size and a symlink are replaced; the target of the symlink stays as it is.
        let long = "x".repeat(BLOCK + 1);
        place_block(&path, long.as_bytes(), 0o600).unwrap();
        assert_eq!(content(), long);
        let target = dir.path().join("target");
        std::fs::write(&target, [b'y'; BLOCK]).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        place_block(&path, b"three\n", 0o600).unwrap();
        assert_eq!(content().trim_end(), "three");
        assert_eq!(std::fs::read(&target).unwrap(), [b'y'; BLOCK]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn temporary_files_are_removed_and_other_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".new-a1b2c3", "manifest", "new-"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("v1", dir.path().join(".new-link")).unwrap();
        std::fs::create_dir(dir.path().join(".new-directory")).unwrap();
        remove_unfinished(dir.path()).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".new-directory", "manifest", "new-"]);
    }

    #[test]
    fn symlink_is_replaced_atomically_even_if_it_dangles() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("current");
        replace_symlink(&link, Path::new("v1")).unwrap();
        replace_symlink(&link, Path::new("v2")).unwrap();
        assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("v2"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn exchange_swaps_two_directories() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::create_dir(&a).unwrap();
        std::fs::create_dir(&b).unwrap();
        std::fs::write(a.join("x"), "").unwrap();
        exchange(&a, &b).unwrap();
        assert!(b.join("x").exists() && !a.join("x").exists());
        assert!(rename_new(&a, &b).is_err());
        rename_new(&a, &dir.path().join("c")).unwrap();
    }

    #[test]
    fn limited_read_refuses_large_files_symlinks_and_fifos() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_limited(&path, 5).unwrap(), b"12345");
        assert!(matches!(read_limited(&path, 4), Err(FileError::TooLarge { limit: 4, .. })));
        std::os::unix::fs::symlink("f", dir.path().join("l")).unwrap();
        assert!(read_limited(&dir.path().join("l"), 5).is_err());
        rustix::fs::mknodat(CWD, dir.path().join("p"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(matches!(read_limited(&dir.path().join("p"), 5), Err(FileError::NotRegular { .. })));
        assert!(free_space(dir.path()).unwrap().bytes > 0);
        remove_if_present(&path).unwrap();
        remove_if_present(&path).unwrap();
    }
}
