//! Ends processes: process groups while `larder dev` runs, and every descendant at its end.

use std::{collections::BTreeMap, fs, time::Duration};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, set_child_subreaper, waitpid};

/// The number of attempts to kill descendants. A process that forks all the time could otherwise keep `larder dev` alive.
const ATTEMPTS: u32 = 200;

/// Makes orphans of processes children of this process, so that [`kill_descendants`] finds them.
pub(super) fn adopt_orphans() {
    // Without this feature of the kernel (Linux 3.4), orphans outlive this process.
    let _ = set_child_subreaper(Some(getpid()));
}

/// Sends a signal to the group of a process.
pub(super) fn signal_group(process: u32, signal: Signal) {
    if let Some(group) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, signal);
    }
}

/// Kills all descendants of this process, also those that left their process group or their session, and waits until they are gone.
pub(super) fn kill_descendants() {
    for _ in 0..ATTEMPTS {
        let found = descendants();
        if found.is_empty() {
            return;
        }
        for pid in &found {
            let _ = kill_process(*pid, Signal::KILL);
        }
        for pid in found {
            // The wait fails for a process that is not a child yet. The process becomes a child when its parent is gone.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the descendants of this process, without processes that have ended and been waited for.
fn descendants() -> Vec<Pid> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut waiting = vec![getpid().as_raw_nonzero().get()];
    while let Some(parent) = waiting.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            found.extend(Pid::from_raw(child));
            waiting.push(child);
        }
    }
    found
}

/// Returns the parent of a process: the fourth field of `/proc/PID/stat` (proc(5)). The second field, the name, may contain any character.
fn parent_of(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_in_another_session_is_a_descendant() {
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", "setsid sleep 1000 & wait"]);
        let mut child = command.spawn().unwrap();
        let id = i32::try_from(child.id()).unwrap();
        // The shell needs time to start its child.
        let all = (0..2000).find_map(|_| {
            std::thread::sleep(Duration::from_millis(5));
            let all = descendants();
            let grandchild = all.iter().find(|pid| parent_of(pid.as_raw_nonzero().get()) == Some(id)).copied();
            grandchild.map(|grandchild| (all, grandchild))
        });
        let (all, grandchild) = all.unwrap();
        assert!(all.iter().any(|pid| pid.as_raw_nonzero().get() == id));
        kill_process(grandchild, Signal::KILL).unwrap();
        assert!(child.wait().unwrap().success());
    }
}
