//! Durable writes of many files and names with a single wait for the disk.
//!
//! On file systems with one journal (ext4, xfs), changes of names and sizes reach the disk in the order in which they were made. When
//! the last change is on the disk, all earlier changes of all processes are, too. It is therefore sufficient to start writing contents as
//! they are created, and to wait once at the end. On other file systems, the whole file system is synced.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
};

use parking_lot::Mutex;
use rustix::{
    fs::{AtFlags, Mode, fstat, fstatfs, fsync, major, minor, mkdirat, syncfs, unlinkat},
    io::Errno,
};

const EXT4: u64 = 0xef53;
const XFS: u64 = 0x5846_5342;

/// Devices that were checked before, with the result.
static JOURNALS: Mutex<Vec<(u64, bool)>> = Mutex::new(Vec::new());

/// Returns true if changes reach the disk in order.
pub fn is_ordered(file: impl AsFd) -> bool {
    match fstatfs(&file).map(|found| u64::try_from(found.f_type)) {
        Ok(Ok(XFS)) => true,
        // Without a journal (ext2, or ext4 with `^has_journal`), changes are not ordered.
        Ok(Ok(EXT4)) => fstat(&file).is_ok_and(|found| has_journal(found.st_dev)),
        _ => false,
    }
}

fn has_journal(device: u64) -> bool {
    let mut known = JOURNALS.lock();
    if let Some((_, answer)) = known.iter().find(|(seen, _)| *seen == device) {
        return *answer;
    }
    let partitions = std::fs::read_to_string("/proc/partitions").unwrap_or_default();
    let answer = device_name(&partitions, major(device), minor(device)).is_some_and(|name| {
        let journals = std::fs::read_dir("/proc/fs/jbd2").into_iter().flatten().flatten();
        let names = journals.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|journal| journal.rsplit_once('-').map(|(of, _)| of.to_owned())).any(|of| of == name)
    });
    known.push((device, answer));
    answer
}

/// The name of a block device, from the kernel's list of them.
fn device_name(partitions: &str, major: u32, minor: u32) -> Option<&str> {
    partitions.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let found = words.next()?.parse() == Ok(major) && words.next()?.parse() == Ok(minor);
        words.nth(1).filter(|_| found)
    })
}

/// Begins to write a file's content out without waiting, so that a later sync has less to do.
pub fn begin(file: &File) {
    let _ = write_range(file, libc::SYNC_FILE_RANGE_WRITE);
}

/// Writes a file's content out. Its name, size and other metadata are durable only after a later [`commit`].
pub fn write_out(file: &File) -> io::Result<()> {
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    if is_ordered(file) && write_range(file, all).is_ok() { Ok(()) } else { file.sync_data() }
}

fn write_range(file: &File, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: plain numbers and an open descriptor.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until all earlier changes on the file system of `directory` are durable; contents only of files that were synced or
/// [written out](write_out) before. The caller needs write permission for the directory.
pub fn commit(directory: impl AsFd) -> io::Result<()> {
    let directory = directory.as_fd();
    if !is_ordered(directory) {
        return Ok(syncfs(directory)?);
    }
    // Creates a directory as the last change, and waits for it. A directory that a killed process has left serves the same purpose.
    let name = c".commit";
    match mkdirat(directory, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    match unlinkat(directory, name, AtFlags::REMOVEDIR) {
        // Another process removed the directory; waiting for that change serves the same purpose.
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(fsync(directory)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn device_is_found_by_its_numbers() {
        let list = "major minor  #blocks  name\n\n 254        0  268435456 vda\n   8        1  1024 sda1\n";
        assert_eq!(device_name(list, 254, 0), Some("vda"));
        assert_eq!(device_name(list, 8, 1), Some("sda1"));
        assert_eq!(device_name(list, 8, 0), None);
    }

    #[test]
    fn commit_leaves_no_file_and_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(dir.path().join("f")).unwrap();
        file.write_all(b"x").unwrap();
        begin(&file);
        write_out(&file).unwrap();
        let opened = File::open(dir.path()).unwrap();
        commit(&opened).unwrap();
        std::fs::create_dir(dir.path().join(".commit")).unwrap();
        commit(&opened).unwrap();
        // Without ordering, the whole file system was synced, and the directory of a killed process stays.
        let left = if is_ordered(&opened) { 1 } else { 2 };
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), left);
    }
}
