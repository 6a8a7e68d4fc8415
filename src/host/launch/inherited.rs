//! Descriptors that a process was started with. The one place of this room that must trust a number.
#![allow(unsafe_code)]

use std::{
    collections::BTreeSet,
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use parking_lot::Mutex;
use rustix::io::{FdFlags, fcntl_setfd};

static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes over inherited descriptor `number`, once, and keeps it from this process's own children.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 || !TAKEN.lock().insert(number) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {number} cannot be taken over twice")));
    }
    // SAFETY: fcntl on any number is harmless; it fails where nothing is open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        TAKEN.lock().remove(&number);
        return Err(io::Error::other(format!("descriptor {number} was not handed over; only larder itself starts this")));
    }
    // SAFETY: it is open, was opened by whoever started this process, and `TAKEN` gives it out once only.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor)
}
