//! Texts that a client of git gets besides git's own: the reason of a refusal before git runs, and advice after git has refused a push.

use std::{fs::File, io::Write as _, os::fd::OwnedFd};

use super::Pushes;
use crate::host::files;

/// The advice for a push from a shallow clone. Git itself refuses such a push, with the words "shallow update not allowed".
pub(super) const SHALLOW: &str = " !     Git on the server refused this push, and larder did not check its refs.\n \
                       !     If git reports \"shallow update not allowed\": your clone is shallow; run `git fetch --unshallow` and push again.\n";

/// Refuses a client of git before git runs, by an error packet in place of the list of refs (gitprotocol-pack(5)).
pub(super) async fn refuse_client(stdout: Option<OwnedFd>, why: &str) {
    let line = format!("ERR {why}\n");
    explain(stdout, &format!("{:04x}{line}", line.len().saturating_add(4))).await;
}

/// Writes a text to a descriptor of the client.
pub(super) async fn explain(output: Option<OwnedFd>, text: &str) {
    let Some(output) = output else { return };
    let text = text.to_owned();
    let written = tokio::task::spawn_blocking(move || File::from(output).write_all(text.as_bytes()));
    if !matches!(written.await, Ok(Ok(()))) {
        tracing::debug!("cannot write advice to the client");
    }
}

impl Pushes {
    /// Returns the reason to refuse a push if the disk has less free space than the server file reserves.
    pub(super) fn full_disk(&self) -> Option<String> {
        let services = self.control.pipeline().services();
        let reserve = services.config.limits.disk_reserve.bytes();
        let free = files::free_space(services.root.path()).map_or(u64::MAX, |free| free.bytes);
        let (free_mib, reserve_mib) = (free >> 20, reserve >> 20);
        (free < reserve).then(|| {
            format!("the server's disk is nearly full: {free_mib} MiB free, {reserve_mib} MiB reserved; ask the server's operator to free space")
        })
    }
}
