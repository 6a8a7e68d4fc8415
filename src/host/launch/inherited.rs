//! Descriptors that this process inherited from its parent. Only this file turns a number into a descriptor.
#![allow(unsafe_code)]

use std::{
    collections::BTreeSet,
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use parking_lot::Mutex;
use rustix::io::{FdFlags, fcntl_setfd};

/// The numbers that [`take`] has returned.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes over inherited descriptor `number`, once, and marks it close-on-exec, so that children do not inherit it.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 || !TAKEN.lock().insert(number) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("cannot use descriptor {number}: it is a standard descriptor or was used before"),
        ));
    }
    // SAFETY: F_GETFD changes nothing, and fails if the number is not an open descriptor.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        TAKEN.lock().remove(&number);
        return Err(io::Error::other(format!(
            "cannot use descriptor {number}: it is not open; only larder itself starts this command"
        )));
    }
    // SAFETY: the descriptor is open, was opened by the parent process, and `TAKEN` gives it out only once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor)
}
