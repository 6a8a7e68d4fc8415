//! System calls without a safe wrapper, and the operations that follow a fork. Only this file of the crate has `unsafe` code.
#![allow(unsafe_code)]

use std::{
    ffi::{CString, c_char, c_int, c_long},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

/// The two sides of a fork.
pub enum Forked {
    /// This process is the new process.
    Child,
    /// This process is the calling process.
    Parent {
        /// The child's process id.
        pid: i32,
        /// The child's pidfd.
        pidfd: OwnedFd,
    },
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks into the new namespaces of `flags` (`CLONE_NEW*`).
///
/// The calling process must have a single thread. The child may then call any function, including functions that allocate memory.
pub fn fork(flags: c_int) -> io::Result<Forked> {
    let mut pidfd: c_int = -1;
    let flags = c_long::from(flags | libc::CLONE_PIDFD | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and without a stack, this call is fork(2). The kernel writes the descriptor to `pidfd`, the third argument on
    // x86-64, aarch64, arm and riscv. The process has one thread, so no other thread holds a lock.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0 as c_long, &raw mut pidfd, 0 as c_long, 0 as c_long) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel has just opened the descriptor for this process.
    Ok(Forked::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// Exits at once, without destructors or exit handlers.
pub fn exit_now(code: c_int) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Moves `descriptors` to the numbers 0, 1, 2, ... and closes all other descriptors. Numbers from `private` on are close-on-exec.
///
/// This function is only for a process that has just been forked: all existing `OwnedFd` values become invalid, and must be neither used
/// nor dropped.
pub fn arrange(descriptors: &[RawFd], private: usize) -> io::Result<()> {
    // All descriptors are first duplicated to high numbers, so that no target overwrites a source that is still needed.
    let mut aside = Vec::with_capacity(descriptors.len());
    for &descriptor in descriptors {
        // SAFETY: fcntl takes a number, and fails if no descriptor with this number is open.
        aside.push(check(unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 64) }.into())? as RawFd);
    }
    for (target, &source) in aside.iter().enumerate() {
        let flags = if target < private { 0 } else { libc::O_CLOEXEC };
        // SAFETY: source is open; target is below 64, where no needed descriptor is left.
        check(unsafe { libc::dup3(source, target as RawFd, flags) }.into())?;
    }
    close_from(descriptors.len() as u32)
}

/// Closes `descriptor` without dropping its owner. This function is only for a process that has just been forked.
pub fn forget(descriptor: &OwnedFd) {
    // SAFETY: the object is never used or dropped again in this process.
    unsafe { libc::close(descriptor.as_raw_fd()) };
}

/// Closes every descriptor from `first` on. This function is only for a process that has just been forked.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the owners of the closed descriptors are never used or dropped again in this process.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Returns a descriptor by its number, after [`arrange`].
pub fn arranged(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: `arrange` has moved a descriptor to this number, and nothing closes it before exec or exit.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Resets all signals to their default dispositions, and unblocks them.
pub fn reset_signals() {
    // SAFETY: setting dispositions to default and emptying the mask access no memory of this program except `set`.
    unsafe {
        for signal in 1..=64 {
            if signal != libc::SIGKILL && signal != libc::SIGSTOP {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
}

/// Makes the kernel keep the status of exited children until `wait`, even if the parent process has set SIGCHLD to be ignored.
pub fn collect_children() {
    // SAFETY: setting a disposition to default accesses no memory of this program.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Blocks `signals` and returns a descriptor that becomes readable when one of these signals arrives.
pub fn signal_descriptor(signals: &[rustix::process::Signal]) -> io::Result<OwnedFd> {
    // SAFETY: `set` is a local that the calls fill and read.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, signal.as_raw());
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()).into())?;
        let descriptor = check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())?;
        Ok(OwnedFd::from_raw_fd(descriptor as RawFd))
    }
}

/// Executes the program whose file is open as `program`. Returns only on failure.
pub fn exec(program: BorrowedFd<'_>, argv: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, environment) = (pointers(argv), pointers(environment));
    // SAFETY: both lists end with null and their strings outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// Sets attributes of a detached mount, and of the mounts below it if `recursive` is true. `idmap` maps the owners of the mount's files.
pub fn mount_attributes(tree: BorrowedFd<'_>, set: u64, idmap: Option<BorrowedFd<'_>>, recursive: bool) -> io::Result<()> {
    let userns_fd = idmap.map_or(0, |idmap| idmap.as_raw_fd() as u64);
    let idmapped = if idmap.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 };
    let attributes = libc::mount_attr { attr_set: set | idmapped, attr_clr: 0, propagation: 0, userns_fd };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the attributes outlive the call and their size is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Lets this process use the disk only while no other process uses the disk.
pub fn idle_disk_priority() -> io::Result<()> {
    const WHO_PROCESS: c_int = 1;
    const CLASS_IDLE: c_int = 3 << 13;
    // SAFETY: all arguments are plain numbers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) }).map(drop)
}

/// Sends a signal to the process `pid`. This process must not have been reaped, because the kernel may give the number of a reaped process
/// to a new process. If `pid` is negative, the signal goes to the process group. If `pid` is -1, the signal goes to all processes of the
/// namespace.
pub fn signal(pid: i32, signal: c_int) {
    // SAFETY: both arguments are plain numbers.
    unsafe { libc::kill(pid, signal) };
}

/// Moves this process to new namespaces.
pub fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: the call is unsafe because threads share descriptors and memory; this process has one thread.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// The structure `loop_config` of the kernel (linux/loop.h).
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// The structure `loop_info64` of the kernel (linux/loop.h).
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// The structure `xfs_growfs_data` of the kernel (fs/xfs/libxfs/xfs_fs.h).
#[repr(C)]
struct GrowXfs {
    blocks: u64,
    percent: u32,
}

const LOOP_CTL_GET_FREE: u64 = 0x4C82;
const LOOP_SET_CAPACITY: u64 = 0x4C07;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: u64 = 0x4008_6610;
/// `_IOW('X', 110, struct xfs_growfs_data)`.
const XFS_IOC_FSGROWFSDATA: u64 = 0x4010_586e;

/// Returns the number of a free loop device. `control` is `/dev/loop-control`.
pub fn free_loop_device(control: BorrowedFd<'_>) -> io::Result<c_long> {
    // SAFETY: the request has no argument.
    check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) }.into())
}

/// Makes a loop device show the file `image`. The kernel frees the device after its last use.
pub fn configure_loop_device(device: BorrowedFd<'_>, image: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all fields of the structure are numbers, for which zero is a valid value.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = image.as_raw_fd() as u32;
    config.info.flags = LO_FLAGS_AUTOCLEAR;
    // SAFETY: the structure has the layout that the kernel reads, and outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) }.into()).map(drop)
}

/// Makes a loop device show the new size of its file.
pub fn update_loop_capacity(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request has no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY as _) }.into()).map(drop)
}

/// Enlarges a mounted ext4 file system to `blocks` blocks. A file system of this size stays unchanged.
pub fn grow_ext4(mounted: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    // SAFETY: the number outlives the call.
    check(unsafe { libc::ioctl(mounted.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) }.into()).map(drop)
}

/// Enlarges a mounted XFS file system to `blocks` blocks of the file system. A file system of this size stays unchanged.
pub fn grow_xfs(mounted: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    let data = GrowXfs { blocks, percent: 25 };
    // SAFETY: the structure has the layout that the kernel reads, and outlives the call.
    check(unsafe { libc::ioctl(mounted.as_raw_fd(), XFS_IOC_FSGROWFSDATA as _, &raw const data) }.into()).map(drop)
}

/// The structure `fsxattr` of the kernel (linux/fs.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct FileAttributes {
    pub flags: u32,
    pub extent_size: u32,
    pub extents: u32,
    pub project: u32,
    pub cow_extent_size: u32,
    pub padding: [u8; 8],
}

/// `_IOR('X', 31, struct fsxattr)`.
const FS_IOC_FSGETXATTR: u64 = 0x801c_581f;
/// `_IOW('X', 32, struct fsxattr)`.
pub const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;
/// The type of quotas by project number (linux/quota.h).
const PRJQUOTA: u32 = 2;
const Q_GETQUOTA: u32 = 0x80_0007;
const Q_SETQUOTA: u32 = 0x80_0008;
/// `XQM_CMD(8)` (linux/dqblk_xfs.h). The kernel answers this command for all file systems with quotas, and to all users.
const Q_XGETQSTATV: u32 = 0x5808;
/// The flag of [`libc::dqblk`] for limits of space.
const QIF_BLIMITS: u32 = 1;

/// Returns the attributes of a file.
pub fn file_attributes(file: BorrowedFd<'_>) -> io::Result<FileAttributes> {
    let mut attributes = FileAttributes::default();
    // SAFETY: the kernel fills the structure, which has the size in the number of the request.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR as _, &raw mut attributes) }.into())?;
    Ok(attributes)
}

/// Sets the attributes of a file.
pub fn set_file_attributes(file: BorrowedFd<'_>, attributes: &FileAttributes) -> io::Result<()> {
    // SAFETY: the kernel reads the structure, which has the size in the number of the request and outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSSETXATTR as _, &raw const *attributes) }.into()).map(drop)
}

/// Performs a quota command for project numbers on the file system of `directory`. `argument` must point to the structure of the command.
fn quota_command(directory: BorrowedFd<'_>, command: u32, id: u32, argument: *mut libc::c_void) -> io::Result<()> {
    let command = command << 8 | PRJQUOTA;
    // SAFETY: the callers pass a pointer to the structure of the command, which outlives the call.
    check(unsafe { libc::syscall(libc::SYS_quotactl_fd, directory.as_raw_fd(), command, id, argument) }).map(drop)
}

/// Returns the quota flags of a file system (`XFS_QUOTA_*`, linux/dqblk_xfs.h).
pub fn quota_flags(directory: BorrowedFd<'_>) -> io::Result<u16> {
    // The structure `fs_quota_statv` has 160 bytes. The version is the first byte, and the flags are the third and fourth byte.
    let mut state = [0_u16; 128];
    if let Some(version) = state.first_mut() {
        *version = u16::from_ne_bytes([1, 0]);
    }
    quota_command(directory, Q_XGETQSTATV, 0, state.as_mut_ptr().cast())?;
    Ok(state.get(1).copied().unwrap_or_default())
}

/// Returns a record without limits and use.
pub fn no_quota() -> libc::dqblk {
    // SAFETY: all fields of the structure are numbers, for which zero is a valid value.
    unsafe { std::mem::zeroed() }
}

/// Returns the limits and the use of a project number.
pub fn project_quota(directory: BorrowedFd<'_>, id: u32) -> io::Result<libc::dqblk> {
    let mut quota = no_quota();
    match quota_command(directory, Q_GETQUOTA, id, (&raw mut quota).cast()) {
        // XFS has no record of a number that was never used.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(quota),
        other => other.map(|()| quota),
    }
}

/// Limits the space of the files with a project number to `kibibytes`. Zero stands for no limit.
pub fn limit_project(directory: BorrowedFd<'_>, id: u32, kibibytes: u64) -> io::Result<()> {
    let mut quota = no_quota();
    (quota.dqb_bhardlimit, quota.dqb_valid) = (kibibytes, QIF_BLIMITS);
    quota_command(directory, Q_SETQUOTA, id, (&raw mut quota).cast())
}

/// Adds a filter of system calls to this process and its descendants. The process must not be able to gain privileges.
pub fn add_seccomp_filter(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program outlives the call, and the kernel only reads the program.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) }.into()).map(drop)
}
