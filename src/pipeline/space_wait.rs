//! The wait of a deployment on a full disk. The deployment stays open until a person or another program has freed space. A deployment that is
//! killed meanwhile is finished or unwound by the next server.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{
    context::Deployment,
    failure::Failure,
    reserve::{self, FULL, figures, free_figures},
    util::run_blocking,
};
use crate::{
    host::files::{self, FreeSpace},
    space::shown,
};

/// The maximum pause between two attempts on a full disk.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// The wait of one operation for space on a full disk.
pub(super) struct SpaceWait {
    since: Instant,
    pause: Duration,
    attempts: u32,
}

impl SpaceWait {
    pub fn new() -> SpaceWait {
        SpaceWait { since: Instant::now(), pause: Duration::from_millis(100), attempts: 0 }
    }

    /// Prepares the next attempt of the operation `doing`, such as "revert deploy.switch". Before the second attempt, larder releases the space
    /// that it holds itself. Before each later attempt, the call waits. Returns false if the wait has reached its limit.
    pub async fn goes_on(&mut self, deployment: &Deployment, doing: &str) -> bool {
        self.attempts = self.attempts.saturating_add(1);
        let services = &deployment.services;
        if self.attempts == 1 {
            run_blocking(|| {
                reserve::release(&deployment.paths.deployment(deployment.spec.id));
                let _ = fs::remove_file(services.root.ballast());
            });
            return true;
        }
        if self.attempts == 2 {
            let free = free(deployment).map_or_else(String::new, |free| format!(" ({})", figures(free)));
            deployment.transcript.error(&format!("cannot {doing}: the server's disk is full{free}"));
            deployment.transcript.error("This deployment waits until the disk has space.");
            tracing::error!(
                environment = deployment.environment.title(),
                doing,
                "the disk is full; a deployment waits for space"
            );
        }
        if self.since.elapsed() > deployment.memory.space_timeout {
            return false;
        }
        tokio::time::sleep(self.pause).await;
        self.pause = self.pause.saturating_mul(2).min(MAX_PAUSE);
        true
    }
}

fn free(deployment: &Deployment) -> Option<FreeSpace> {
    run_blocking(|| files::free_space(deployment.paths.path())).ok()
}

/// Returns true if a failure of a deployment may have the full disk as its cause.
pub(super) fn is_out_of_space(deployment: &Deployment, failure: &Failure) -> bool {
    may_be_out_of_space(deployment.paths.path(), failure)
}

/// Returns true if a failure may have the full disk at `path` as its cause.
pub(super) fn may_be_out_of_space(path: &Path, failure: &Failure) -> bool {
    let is_full = |free: FreeSpace| free.bytes < FULL.bytes || free.inodes < FULL.inodes;
    names_full_disk(&failure.why) || run_blocking(|| files::free_space(path)).is_ok_and(is_full)
}

/// Adds the free space to a reason that names a full disk without a figure.
pub fn with_figures(path: &Path, why: String) -> String {
    match why.contains("are free") || !names_full_disk(&why) {
        true => why,
        false => format!("{why} ({})", free_figures(path)),
    }
}

/// Returns true if a reason contains the system's error for a full disk or an exhausted quota.
pub fn names_full_disk(why: &str) -> bool {
    [Errno::NOSPC, Errno::DQUOT].iter().any(|errno| why.contains(&format!("(os error {})", errno.raw_os_error())))
}

/// Adds the free space to the reason of a failed step if the disk is full, and a hint if the disk has less than the space that must stay free.
/// The transcript of a deployment cannot be written on a full disk, so git shows only the reason.
pub(super) fn explain(deployment: &Deployment, failure: &mut Failure) {
    let reserve = deployment.services.config.limits.disk_reserve.bytes();
    let Some(found) = free(deployment) else { return };
    let is_full = is_out_of_space(deployment, failure);
    if is_full && !failure.why.contains("are free") {
        failure.why = format!("{} ({})", failure.why, figures(found));
    }
    if is_full || found.bytes < reserve || found.inodes < 1000 {
        failure.hints.push(format!(
            "the server's disk is nearly full: {}, of which {} must stay free; ask the server's operator to free space",
            figures(found),
            shown(reserve)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_that_names_a_full_disk_gets_one_figure() {
        let directory = tempfile::tempdir().unwrap();
        let explained = |why: &str| with_figures(directory.path(), why.to_owned());
        let full = explained("cannot reset a directory: No space left on device (os error 28)");
        assert!(full.contains("(os error 28) (") && full.contains("are free)"), "{full}");
        assert_eq!(explained(&full), full);
        assert!(explained("Disk quota exceeded (os error 122)").contains("are free)"));
        assert_eq!(explained("Permission denied (os error 13)"), "Permission denied (os error 13)");
    }
}
