//! Project quotas: the kernel counts and limits the space of all files with the same project number (quotactl(2), ext4 and XFS).
//!
//! A directory with a project number and the inheritance flag passes both to each new file and directory in it. The number is stored only
//! in the file system, so the number and the files cannot contradict each other after a crash. A number is free if the kernel counts no
//! file with the number, so a number is not used again while files of its former owner exist.
//!
//! The owner of a file may change the number of the file and so leave the quota. The filter of [`project_filter`] therefore forbids the
//! system calls that change numbers.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use super::{
    directory::RootDirectory,
    project_filter,
    sys::{self, FileAttributes},
};

/// The first project number that is assigned. Tools for people, such as projid(5), use small numbers.
const FIRST_NUMBER: u32 = 1_900_000_000;
/// The maximum number of project numbers that are examined.
const MAX_EXAMINED: u32 = 100_000;
/// `FS_XFLAG_PROJINHERIT` (linux/fs.h).
const INHERIT: u32 = 0x200;
/// `XFS_QUOTA_PDQ_ACCT` and `XFS_QUOTA_PDQ_ENFD` (linux/dqblk_xfs.h).
const ENFORCED: u16 = 1 << 4 | 1 << 5;

/// Returns the reason why the file system of the root does not limit the space of project numbers.
pub fn quota_support(root: &RootDirectory, projects: &Path) -> Result<(), String> {
    if !root.is_privileged() {
        return Err("project quotas need root".into());
    }
    let directory = root.open(projects).map_err(|error| error.to_string())?;
    let flags = sys::quota_flags(directory.as_fd()).unwrap_or_default();
    if flags & ENFORCED != ENFORCED {
        return Err("the file system is not mounted with project quotas (prjquota)".into());
    }
    if !project_filter::is_available() {
        return Err("the kernel has no filters of system calls (seccomp)".into());
    }
    project_filter::use_filter();
    Ok(())
}

/// Returns the project number that the files in a directory inherit.
fn number_of(directory: BorrowedFd<'_>) -> io::Result<(FileAttributes, Option<u32>)> {
    let attributes = sys::file_attributes(directory)?;
    let number = (attributes.flags & INHERIT != 0 && attributes.project != 0).then_some(attributes.project);
    Ok((attributes, number))
}

/// Gives a project number to the directory `target`, unless the directory has a number, and limits the space of this number to `bytes`.
/// Zero stands for no limit. A directory with files and without a number is refused, because its files would not count, and could not be
/// renamed. The call may be repeated after a kill.
pub fn ensure_quota(root: &RootDirectory, target: &Path, bytes: u64) -> io::Result<()> {
    let directory = root.open(target)?;
    let number = match number_of(directory.as_fd())? {
        (_, Some(number)) => number,
        (attributes, None) => {
            if std::fs::read_dir(root.path().join(target))?.next().is_some() {
                return Err(io::Error::other("its files have no project number"));
            }
            let number = free_number(directory.as_fd())?;
            let new = FileAttributes { flags: attributes.flags | INHERIT, project: number, ..attributes };
            sys::set_file_attributes(directory.as_fd(), &new)?;
            number
        }
    };
    let kibibytes = bytes.div_ceil(1024);
    if sys::project_quota(directory.as_fd(), number)?.dqb_bhardlimit == kibibytes {
        return Ok(());
    }
    sys::limit_project(directory.as_fd(), number, kibibytes)
}

/// Returns a project number without files and limits.
fn free_number(directory: BorrowedFd<'_>) -> io::Result<u32> {
    for number in FIRST_NUMBER..FIRST_NUMBER.saturating_add(MAX_EXAMINED) {
        let quota = sys::project_quota(directory, number)?;
        if is_free(&quota) {
            return Ok(number);
        }
    }
    Err(io::Error::other(format!("no project number is free (examined {MAX_EXAMINED} numbers from {FIRST_NUMBER})")))
}

fn is_free(quota: &libc::dqblk) -> bool {
    let limits = quota.dqb_bhardlimit | quota.dqb_bsoftlimit | quota.dqb_ihardlimit | quota.dqb_isoftlimit;
    (quota.dqb_curspace | quota.dqb_curinodes | limits) == 0
}

/// Returns the bytes that the kernel counts for the files with the project number of a directory.
pub fn quota_usage(root: &RootDirectory, target: &Path) -> io::Result<u64> {
    let directory = root.open(target)?;
    let number = number_of(directory.as_fd())?.1.ok_or_else(|| io::Error::other("it has no project number"))?;
    Ok(sys::project_quota(directory.as_fd(), number)?.dqb_curspace)
}

/// Removes the limit of the project number of a directory. A directory that is missing or has no number needs no change.
pub fn clear_quota(root: &RootDirectory, target: &Path) -> io::Result<()> {
    let Ok(directory) = root.open(target) else { return Ok(()) };
    match number_of(directory.as_fd()) {
        Ok((_, Some(number))) => sys::limit_project(directory.as_fd(), number, 0).or_else(|error| match error.raw_os_error() {
            // Quotas were switched off meanwhile.
            Some(libc::ESRCH | libc::ENOSYS) => Ok(()),
            _ => Err(error),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_with_files_or_limits_is_not_free() {
        let quota = |space, inodes, limit| {
            let mut quota = sys::no_quota();
            (quota.dqb_curspace, quota.dqb_curinodes, quota.dqb_bhardlimit) = (space, inodes, limit);
            quota
        };
        assert!(is_free(&quota(0, 0, 0)));
        assert!(!is_free(&quota(4096, 0, 0)) && !is_free(&quota(0, 1, 0)) && !is_free(&quota(0, 0, 8)));
    }

    #[test]
    fn root_without_privileges_has_no_quotas() {
        let directory = tempfile::tempdir().unwrap();
        let root = RootDirectory::open_root(directory.path(), false).unwrap();
        assert_eq!(quota_support(&root, Path::new("")), Err("project quotas need root".into()));
        assert!(ensure_quota(&root, Path::new("missing"), 0).is_err());
        clear_quota(&root, Path::new("missing")).unwrap();
    }
}
