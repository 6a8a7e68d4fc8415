//! User and group numbers of processes, and their privileges.

use std::{io, os::fd::OwnedFd};

use rustix::{
    fs::{FileType, Gid, Uid, fchown, fstat},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid, set_thread_uid,
    },
};

use super::project_filter;

/// A user number and the number of its only group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UnixUser {
    pub uid: u32,
    pub gid: u32,
}

impl UnixUser {
    /// Returns the user of this process.
    pub fn current() -> UnixUser {
        UnixUser { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// Returns the user with this number and the group with the same number.
    pub fn same(number: u32) -> UnixUser {
        UnixUser { uid: number, gid: number }
    }
}

/// The capabilities of root that a supervisor needs for users, mounts and limits.
const SUPERVISOR_CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_RESOURCE);

/// Drops every capability of this process that a supervisor does not need: those that concern the network, other processes' memory, modules,
/// clocks and hardware.
pub fn keep_capabilities() -> io::Result<()> {
    let kept = capabilities(None)?.permitted & SUPERVISOR_CAPABILITIES;
    Ok(set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })?)
}

/// Drops every privilege of this process, which has just been forked, and changes to `user`, if there is one.
pub(crate) fn drop_privileges(user: Option<UnixUser>) -> io::Result<()> {
    // With an empty bounding set, no later exec can gain a capability. The removal fails for numbers that are not capabilities of this
    // kernel; these errors are ignored.
    for capability in 0..64 {
        let _ = remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << capability));
    }
    if let Some(UnixUser { uid, gid }) = user {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    set_no_new_privs(true)?;
    project_filter::restrict()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot protect project numbers: {error}")))?;
    if user.is_some_and(|user| user.uid != 0) && set_thread_uid(Uid::ROOT).is_ok() {
        return Err(io::Error::other("the process can become root again"));
    }
    Ok(())
}

/// Changes the owner of a pipe from `from` to `to`, so that the process of `to` can reopen its standard descriptors, for example as
/// `/dev/stdout`. The owner of a regular file is never changed.
pub fn hand_over_pipe(descriptor: &OwnedFd, from: UnixUser, to: UnixUser) {
    let is_pipe = |mode| FileType::from_raw_mode(mode) == FileType::Fifo;
    if fstat(descriptor).is_ok_and(|found| is_pipe(found.st_mode) && found.st_uid == from.uid) {
        // If the change fails, the process can still use the descriptor, but cannot reopen it.
        let _ = fchown(descriptor, Some(Uid::from_raw(to.uid)), Some(Gid::from_raw(to.gid)));
    }
}
