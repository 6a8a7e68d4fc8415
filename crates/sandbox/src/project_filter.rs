//! A filter of system calls that keeps processes from changing the project numbers of their files, which would evade a
//! [quota](super::quota).

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use super::sys::{self, FS_IOC_FSSETXATTR};

/// True if this process uses project numbers.
static IN_USE: AtomicBool = AtomicBool::new(false);

/// Returns true if the kernel has filters for this architecture.
pub fn is_available() -> bool {
    !IOCTL.is_empty() && Path::new("/proc/sys/kernel/seccomp").exists()
}

/// Makes [`restrict`] add the filter to each process that is started from now on.
pub fn use_filter() {
    IN_USE.store(true, Ordering::Relaxed);
}

/// Forbids this process and its descendants to change project numbers, if quotas are in use.
pub fn restrict() -> io::Result<()> {
    if IN_USE.load(Ordering::Relaxed) { sys::add_seccomp_filter(&filter()) } else { Ok(()) }
}

/// The architecture numbers (linux/audit.h) of this machine's processes, each with its numbers of ioctl(2).
#[cfg(target_arch = "x86_64")]
const IOCTL: &[(u32, u32)] = &[(0xC000_003E, 16), (0xC000_003E, 0x4000_0202), (0x4000_0003, 54)];
#[cfg(target_arch = "aarch64")]
const IOCTL: &[(u32, u32)] = &[(0xC000_00B7, 29), (0x4000_0028, 54)];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const IOCTL: &[(u32, u32)] = &[];

/// The number of file_setattr(2), on all architectures, and the bit of the x32 numbers.
const FILE_SETATTR: u32 = 469;
const X32: u32 = 0x4000_0000;
/// The requests that change the project number of a file, or the inheritance flag of a directory: `FS_IOC_FSSETXATTR`,
/// `FS_IOC_SETFLAGS` and `FS_IOC32_SETFLAGS`.
const REQUESTS: [u32; 3] = [FS_IOC_FSSETXATTR as u32, 0x4008_6602, 0x4004_6602];

/// Returns the filter of system calls (seccomp(2)), or no instructions for an unknown architecture.
///
/// The requests fail with EPERM. file_setattr(2) fails with ENOSYS, so that programs fall back to the requests.
fn filter() -> Vec<libc::sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUALS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    /// The offsets in `seccomp_data` of the number of the call, of the architecture, and of the lower half of the second argument.
    const CALL: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    const REQUEST: u32 = if cfg!(target_endian = "little") { 24 } else { 28 };
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let fails = |errno: i32| step(RETURN, libc::SECCOMP_RET_ERRNO | errno as u32, 0, 0);
    let allowed = step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);
    if IOCTL.is_empty() {
        return Vec::new();
    }
    let mut filter = vec![step(LOAD, CALL, 0, 0)];
    for number in [FILE_SETATTR, FILE_SETATTR | X32] {
        filter.extend([step(EQUALS, number, 0, 1), fails(libc::ENOSYS)]);
    }
    for (architecture, ioctl) in IOCTL {
        filter.extend([
            step(LOAD, ARCHITECTURE, 0, 0),
            step(EQUALS, *architecture, 0, 7),
            step(LOAD, CALL, 0, 0),
            step(EQUALS, *ioctl, 0, 5),
            step(LOAD, REQUEST, 0, 0),
        ]);
        let [first, second, third] = REQUESTS;
        filter.extend([step(EQUALS, first, 2, 0), step(EQUALS, second, 1, 0), step(EQUALS, third, 0, 1), fails(libc::EPERM)]);
    }
    filter.push(allowed);
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the verdict of the filter, as the kernel computes the verdict.
    fn verdict(architecture: u32, call: u32, request: u32) -> u32 {
        let filter = filter();
        let (mut at, mut value) = (0, 0);
        loop {
            let libc::sock_filter { code, jt, jf, k } = filter[at];
            at += 1;
            match u32::from(code) {
                code if code == libc::BPF_RET | libc::BPF_K => return k,
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => {
                    at += usize::from(if value == k { jt } else { jf })
                }
                _ => {
                    value = [(0, call), (4, architecture), (24, request)].into_iter().find(|(offset, _)| *offset == k).unwrap().1
                }
            }
        }
    }

    #[test]
    fn filter_forbids_only_requests_that_change_project_numbers() {
        let (denied, absent) = (libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        for (architecture, ioctl) in IOCTL {
            for request in REQUESTS {
                assert_eq!(verdict(*architecture, *ioctl, request), denied, "{architecture:x} {ioctl} {request:x}");
                assert_eq!(verdict(*architecture, ioctl + 1, request), libc::SECCOMP_RET_ALLOW);
            }
            // FS_IOC_FSGETXATTR, FICLONE and TCGETS
            for request in [0x801c_581f, 0x4004_9409, 0x5401] {
                assert_eq!(verdict(*architecture, *ioctl, request), libc::SECCOMP_RET_ALLOW, "{request:x}");
            }
            assert_eq!(verdict(*architecture, FILE_SETATTR, 0), absent);
        }
        assert_eq!(verdict(1, 16, REQUESTS[0]), libc::SECCOMP_RET_ALLOW);
    }
}
