//! Descriptors that this process inherited from its parent. No other file converts the number of a descriptor into an owned descriptor.
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

/// Takes over the inherited descriptor `number`, and marks the descriptor close-on-exec, so that children do not inherit the descriptor.
/// Fails if `number` is below 3, or if the descriptor is not open or was already taken over.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    if number < 3 {
        return Err(invalid(format!("cannot take over descriptor {number} (expected an inherited descriptor, 3 or higher)")));
    }
    if !TAKEN.lock().insert(number) {
        return Err(invalid(format!("cannot take over descriptor {number}: the descriptor was already taken over")));
    }
    // SAFETY: F_GETFD changes nothing, and fails if the number is not an open descriptor.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        TAKEN.lock().remove(&number);
        return Err(io::Error::other(format!(
            "cannot take over descriptor {number}: the descriptor is not open (only larder itself starts this command)"
        )));
    }
    // SAFETY: the descriptor is open and was opened by the parent process. `TAKEN` ensures that the descriptor has only one owner.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn descriptor_that_cannot_be_taken_is_refused_with_its_reason() {
        let refusal = |number| take(number).unwrap_err().to_string();
        assert!(refusal(2).contains("3 or higher"), "{}", refusal(2));
        assert!(refusal(-1).contains("3 or higher"), "{}", refusal(-1));
        // No process of the tests has this many files open.
        assert!(refusal(900_000).contains("is not open"), "{}", refusal(900_000));
        let number = tempfile::tempfile().unwrap().into_raw_fd();
        let _taken = take(number).unwrap();
        assert!(refusal(number).contains("already taken over"), "{}", refusal(number));
    }
}
