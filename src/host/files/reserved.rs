//! Small records that can be replaced on a full disk. Beside such a record, a second file of the same size holds the space for the next
//! content: its inode and its block. A replacement overwrites the second file and exchanges the names of both files, so that neither an inode
//! nor a block is allocated.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, OFlags, RenameFlags};

use super::{BLOCK, FileError, parent, remove_if_present, sync_dir, write_atomic};

/// Creates the file that holds the space for the next content of the record at `path`. Does nothing if the file exists. [`release`] removes the
/// file; [`remove_unfinished`](super::remove_unfinished) removes the file of a killed process.
pub fn reserve(path: &Path, mode: u32) -> Result<(), FileError> {
    let spare = spare_of(path);
    if opened(&spare).is_some() {
        return Ok(());
    }
    remove_if_present(&spare)?;
    let file = super::create_new(&spare, mode)?;
    let written = file.write_all_at(&padded(b""), 0).and_then(|()| file.sync_all());
    written.map_err(|error| {
        let _ = std::fs::remove_file(&spare);
        FileError::io("reserve space for", path, error)
    })
}

/// Replaces the record at `path` like [`write_atomic`]. The content is followed by spaces up to 4096 bytes. If the space for the content is
/// [reserved](reserve), and the record was written by this function, no space is allocated. Content of more than 4096 bytes needs new space.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let block = padded(content);
    let spare = spare_of(path);
    if block.len() == BLOCK
        && opened(path).is_some()
        && let Some(file) = opened(&spare)
        && overwrite(&file, &block, mode).is_ok()
        && rustix::fs::renameat_with(CWD, &spare, CWD, path, RenameFlags::EXCHANGE).is_ok()
    {
        return sync_dir(parent(path));
    }
    write_atomic(path, &block, mode)
}

/// Removes the file that [`reserve`] has created.
pub fn release(path: &Path) -> Result<(), FileError> {
    remove_if_present(&spare_of(path))
}

/// Returns the path of the file that holds the space.
fn spare_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(".new-");
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// Opens a regular file with the size of a block for writing.
fn opened(path: &Path) -> Option<File> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).ok()?;
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path).ok()?;
    file.metadata().is_ok_and(|found| found.is_file() && found.len() == BLOCK as u64).then_some(file)
}

fn overwrite(file: &File, block: &[u8], mode: u32) -> io::Result<()> {
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.write_all_at(block, 0)?;
    file.sync_all()
}

fn padded(content: &[u8]) -> Vec<u8> {
    let mut block = content.to_vec();
    block.resize(content.len().max(BLOCK), b' ');
    block
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn inode(path: &Path) -> u64 {
        std::fs::metadata(path).unwrap().ino()
    }

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap().trim_end().to_owned()
    }

    #[test]
    fn replacement_of_a_reserved_record_uses_the_two_existing_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        std::fs::write(&path, "of an earlier version").unwrap();
        replace(&path, b"0", 0o600).unwrap();
        reserve(&path, 0o600).unwrap();
        let (first, spare) = (inode(&path), inode(&spare_of(&path)));
        reserve(&path, 0o600).unwrap();
        for (number, expected) in [(1, spare), (2, first), (3, spare)] {
            replace(&path, number.to_string().as_bytes(), 0o600).unwrap();
            assert_eq!((text(&path), inode(&path)), (number.to_string(), expected));
        }
        release(&path).unwrap();
        release(&path).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        replace(&path, b"4", 0o640).unwrap();
        assert_eq!((text(&path), std::fs::metadata(&path).unwrap().mode() & 0o777), (String::from("4"), 0o640));
    }

    #[test]
    fn content_of_more_than_a_block_is_replaced_without_the_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let long = "x".repeat(BLOCK + 1);
        for content in ["short", &long, "short", &long] {
            reserve(&path, 0o600).unwrap();
            replace(&path, content.as_bytes(), 0o600).unwrap();
            assert_eq!(text(&path), content);
        }
    }

    #[test]
    fn unusable_reserve_is_replaced_and_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("record"), dir.path().join("other"));
        std::fs::write(&other, padded(b"other")).unwrap();
        replace(&path, b"1", 0o600).unwrap();
        std::os::unix::fs::symlink(&other, spare_of(&path)).unwrap();
        replace(&path, b"2", 0o600).unwrap();
        reserve(&path, 0o600).unwrap();
        replace(&path, b"3", 0o600).unwrap();
        assert_eq!((text(&path), text(&other)), (String::from("3"), String::from("other")));
    }
}
