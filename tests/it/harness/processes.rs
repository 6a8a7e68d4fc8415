//! The processes of a world: processes whose program, working directory, arguments, environment or mounts name the world's directory.

use std::{fs, os::unix::ffi::OsStrExt, path::Path};

use rustix::process::{Pid, Signal, kill_process};

/// A process of a world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub arguments: Vec<String>,
}

/// Returns all live processes of the world in `directory`.
pub fn of(directory: &Path) -> Vec<Process> {
    let own = std::process::id() as i32;
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let pids = pids.filter(|pid| *pid != own && belongs(*pid, directory));
    let mut processes: Vec<_> = pids.filter_map(|pid| Some(Process { pid, arguments: arguments(pid)? })).collect();
    processes.sort_by_key(|process| process.pid);
    processes
}

fn belongs(pid: i32, directory: &Path) -> bool {
    let file = |name: &str| format!("/proc/{pid}/{name}");
    let link = |name: &str| fs::read_link(file(name)).is_ok_and(|target| target.starts_with(directory));
    let holds = |name: &str| fs::read(file(name)).is_ok_and(|bytes| contains(&bytes, directory.as_os_str().as_bytes()));
    link("exe") || link("cwd") || holds("cmdline") || holds("environ") || has_mount_from(pid, directory)
}

/// Returns true if a process has a mount of files below `directory` at another place. A mount below `directory` itself says nothing: the
/// processes of every world that has started since have a copy of such a mount.
fn has_mount_from(pid: i32, directory: &Path) -> bool {
    let mounts = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    String::from_utf8_lossy(&mounts).lines().any(|line| {
        let is_below = line.split(' ').nth(4).is_some_and(|point| Path::new(point).starts_with(directory));
        !is_below && contains(line.as_bytes(), directory.as_os_str().as_bytes())
    })
}

/// Returns true if `haystack` contains `needle`.
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Returns the children of a process with a single thread.
pub fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Returns the arguments of a live process; a zombie has none.
pub fn arguments(pid: i32) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let arguments: Vec<_> = text.split_terminator('\0').map(str::to_owned).collect();
    (!arguments.is_empty()).then_some(arguments)
}

/// Sends a signal. A process that has exited is no error.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Kills all processes of a world, and processes that start meanwhile.
pub fn kill_all(directory: &Path) {
    super::within(std::time::Duration::from_secs(10), || {
        let left = of(directory);
        for process in &left {
            signal(process.pid, Signal::KILL);
        }
        left.is_empty()
    });
}

/// Kills all processes of a world that run larder's program or that larder has started, and not the world's database servers.
pub fn kill_all_of_larder(directory: &Path) {
    let is_database = |process: &Process| {
        let program = |word: &String| ["postgres", "mariadbd", "redis-server"].iter().any(|name| word.contains(name));
        process.arguments.first().is_some_and(program)
    };
    super::within(std::time::Duration::from_secs(10), || {
        let left: Vec<_> = of(directory).into_iter().filter(|process| !is_database(process)).collect();
        for process in &left {
            signal(process.pid, Signal::KILL);
        }
        left.is_empty()
    });
}

/// Returns the command lines of all processes of the machine.
pub fn command_lines() -> Vec<Vec<u8>> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok()).collect()
}

/// Returns true if a path is a mount point in this process's namespace.
pub fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == path))
}

/// Returns the mounts below a directory in this process's namespace.
pub fn mounts(directory: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below = |line: &&str| line.split(' ').nth(4).is_some_and(|point| Path::new(point).starts_with(directory));
    mounts.lines().filter(below).map(str::to_owned).collect()
}
