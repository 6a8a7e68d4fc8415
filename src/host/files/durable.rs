//! Makes many files and names durable with a single wait for the disk.
//!
//! On file systems with one journal (ext4, xfs), changes of names and sizes reach the disk in the order in which they were made. When the
//! last change is on the disk, all earlier changes of all processes are on the disk. A caller therefore writes the content of each file to
//! the disk with [`write_out`], and makes all names durable with one [`commit`] at the end. On other file systems, [`commit`] syncs the
//! whole file system.
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

/// The file system types ext4 and xfs, as statfs(2) reports them.
const EXT4: u64 = 0xef53;
const XFS: u64 = 0x5846_5342;

/// The devices that [`has_journal`] has checked, each with the result.
static JOURNALS: Mutex<Vec<(u64, bool)>> = Mutex::new(Vec::new());

/// Returns true if the file system of `file` writes changes of names and sizes to the disk in the order in which they were made.
pub fn is_ordered(file: impl AsFd) -> bool {
    match fstatfs(&file).map(|found| u64::try_from(found.f_type)) {
        Ok(Ok(XFS)) => true,
        // statfs(2) reports this type also for ext2 and for ext4 without a journal. Changes on a file system without a journal are not
        // ordered.
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

/// Returns the name of a block device from the text of `/proc/partitions`.
fn device_name(partitions: &str, major: u32, minor: u32) -> Option<&str> {
    partitions.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let found = words.next()?.parse() == Ok(major) && words.next()?.parse() == Ok(minor);
        words.nth(1).filter(|_| found)
    })
}

/// Starts to write a file's content to the disk. The function does not wait for the disk, but a later sync takes less time.
pub fn begin(file: &File) {
    let _ = write_range(file, libc::SYNC_FILE_RANGE_WRITE);
}

/// Writes a file's content to the disk, and waits for the disk. The file's name, size and other metadata are durable only after a later
/// [`commit`].
pub fn write_out(file: &File) -> io::Result<()> {
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    if is_ordered(file) && write_range(file, all).is_ok() { Ok(()) } else { file.sync_data() }
}

fn write_range(file: &File, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the arguments are an open descriptor and numbers, no pointers.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until all earlier changes of names, sizes and metadata on the file system of `directory` are durable. The content of a file is
/// durable only if the content was synced or [written out](write_out) before. The caller needs write permission for the directory.
pub fn commit(directory: impl AsFd) -> io::Result<()> {
    let directory = directory.as_fd();
    if !is_ordered(directory) {
        return Ok(syncfs(directory)?);
    }
    // The directory is created and removed so that this process makes the last change, for which fsync waits. If a killed process has left
    // the directory, the removal alone is the last change.
    let name = c".commit";
    match mkdirat(directory, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    match unlinkat(directory, name, AtFlags::REMOVEDIR) {
        // If another process has removed the directory, fsync waits for that removal, which came after all changes that this call must make
        // durable.
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
    fn device_name_of_listed_numbers_is_found() {
        let list = "major minor  #blocks  name\n\n 254        0  268435456 vda\n   8        1  1024 sda1\n";
        assert_eq!(device_name(list, 254, 0), Some("vda"));
        assert_eq!(device_name(list, 8, 1), Some("sda1"));
        assert_eq!(device_name(list, 8, 0), None);
    }

    #[test]
    fn commit_after_a_killed_commit_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(dir.path().join("f")).unwrap();
        file.write_all(b"x").unwrap();
        begin(&file);
        write_out(&file).unwrap();
        let opened = File::open(dir.path()).unwrap();
        commit(&opened).unwrap();
        std::fs::create_dir(dir.path().join(".commit")).unwrap();
        commit(&opened).unwrap();
        // On a file system that does not order changes, commit does not touch the directory of a killed process.
        let left = if is_ordered(&opened) { 1 } else { 2 };
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), left);
    }
}
