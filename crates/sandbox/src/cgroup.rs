//! Control groups, which limit the memory, the number and the CPU share of processes. This module uses cgroup v2, or v1 if v2 is not
//! usable.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::sys;

/// The version of the control groups that this process can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// The unified hierarchy.
    V2,
    /// The older hierarchies of memory, processes and processor time.
    V1,
    /// No usable hierarchy.
    None,
}

/// The limits of a process and its descendants.
#[derive(Debug, Clone, Copy)]
pub struct ResourceLimits {
    /// The maximum memory, in bytes.
    pub memory: Option<u64>,
    /// The maximum number of processes and threads.
    pub processes: u64,
    /// The CPU weight. The kernel's default is 100.
    pub weight: u64,
    /// The maximum size of a file, in bytes.
    pub file: Option<u64>,
    /// True if the process has low CPU and disk priority, and is killed before other processes when memory runs out.
    pub background: bool,
}

/// The hierarchy in which groups are created.
#[derive(Debug)]
pub struct CgroupHierarchy {
    version: CgroupVersion,
    /// One directory (v2), or one directory for each of memory, pids and cpu (v1).
    directories: Vec<PathBuf>,
    /// Groups that could not be removed yet.
    leftover: Vec<PathBuf>,
}

/// The group of one process.
#[derive(Debug)]
pub struct ControlGroup {
    version: CgroupVersion,
    directories: Vec<PathBuf>,
}

impl CgroupHierarchy {
    /// Finds a hierarchy that this process may use. Creates the group `name` in the hierarchy; the groups of processes are created below
    /// `name`. Removes groups that an earlier process left below `name`. If the present group of this process cannot have limited groups
    /// below it, this process moves to the group `own_group`.
    pub fn find(name: &str, own_group: &str) -> CgroupHierarchy {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let (version, directories) = if let Some(directory) =
            unified(&own, &mounts).and_then(|own| prepare_unified(&own, name, own_group).ok())
        {
            (CgroupVersion::V2, vec![directory])
        } else {
            let all = ["memory", "pids", "cpu"].map(|controller| separate(&own, &mounts, controller).map(|own| own.join(name)));
            let directories: Vec<_> = all.into_iter().flatten().filter(|path| make(path).is_ok()).collect();
            (if directories.is_empty() { CgroupVersion::None } else { CgroupVersion::V1 }, directories)
        };
        let mut leftover = Vec::new();
        for directory in &directories {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            leftover.extend(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
        }
        // Groups that are in use are removed by later calls of `group`.
        leftover.retain(|path| fs::remove_dir(path).is_err());
        CgroupHierarchy { version, directories, leftover }
    }

    /// Returns the version of the hierarchy.
    pub fn version(&self) -> CgroupVersion {
        self.version
    }

    /// Creates the group `name` with `limits`. A limit that cannot be set is skipped, so that the process starts nevertheless.
    pub fn group(&mut self, name: &str, limits: &ResourceLimits) -> ControlGroup {
        // The process id distinguishes the name from groups that an earlier process left.
        let name = format!("{}.{name}", std::process::id());
        self.leftover.retain(|path| fs::remove_dir(path).is_err_and(|error| error.kind() != io::ErrorKind::NotFound));
        let directories: Vec<_> =
            self.directories.iter().map(|base| base.join(&name)).filter(|path| make(path).is_ok()).collect();
        let group = ControlGroup { version: self.version, directories };
        let memory = limits.memory.map_or("max".to_owned(), |bytes| bytes.to_string());
        let (processes, weight) = (limits.processes.to_string(), limits.weight.to_string());
        match self.version {
            CgroupVersion::V2 => {
                group.set("memory.max", &memory);
                if limits.memory.is_some() {
                    group.set("memory.swap.max", "0");
                }
                group.set("memory.oom.group", "1");
                group.set("pids.max", &processes);
                group.set("cpu.weight", &weight);
            }
            CgroupVersion::V1 => {
                if let Some(bytes) = limits.memory {
                    group.set("memory.limit_in_bytes", &bytes.to_string());
                    group.set("memory.memsw.limit_in_bytes", &bytes.to_string());
                }
                group.set("pids.max", &processes);
                group.set("cpu.shares", &(limits.weight.saturating_mul(1024) / 100).to_string());
            }
            CgroupVersion::None => {}
        }
        group
    }

    /// Removes a group. A group that still has processes is removed by a later call of [`CgroupHierarchy::group`].
    pub fn remove(&mut self, group: ControlGroup) {
        self.leftover.extend(group.directories.into_iter().filter(|path| fs::remove_dir(path).is_err()));
    }
}

impl Drop for CgroupHierarchy {
    fn drop(&mut self) {
        for path in self.leftover.iter().chain(&self.directories) {
            let _ = fs::remove_dir(path);
        }
    }
}

impl ControlGroup {
    /// Moves a process into the group.
    pub fn add(&self, pid: i32) {
        self.set("cgroup.procs", &pid.to_string());
    }

    /// Removes the group, which must be empty.
    pub fn discard(self) {
        for path in self.directories {
            let _ = fs::remove_dir(path);
        }
    }

    /// Opens `cgroup.procs` of the group in the first hierarchy in which this process may write the file. A process that writes `0` to
    /// the file moves itself into the group.
    pub fn open_procs(&self) -> Option<fs::File> {
        self.directories.iter().find_map(|path| fs::OpenOptions::new().write(true).open(path.join("cgroup.procs")).ok())
    }

    /// Returns true if a process of the group was killed for lack of memory.
    pub fn out_of_memory(&self) -> bool {
        self.directories.iter().any(|directory| {
            ["memory.events", "memory.oom_control"].iter().any(|file| {
                let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
                text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
            })
        })
    }

    /// Returns true if the group limits memory.
    pub fn limits_memory(&self) -> bool {
        self.directories
            .iter()
            .any(|directory| directory.join("memory.max").exists() || directory.join("memory.limit_in_bytes").exists())
    }

    /// Returns true if the group limits processes.
    pub fn limits_processes(&self) -> bool {
        self.directories.iter().any(|directory| directory.join("pids.max").exists())
    }

    /// Kills all processes of the group. The kernel kills the processes of a PID namespace with its first process, but processes without
    /// a PID namespace need this call.
    pub fn kill(&self) {
        if self.version == CgroupVersion::V2 {
            self.set("cgroup.kill", "1");
        }
        for directory in &self.directories {
            let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            for pid in members.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1) {
                sys::signal(pid, libc::SIGKILL);
            }
        }
    }

    fn set(&self, file: &str, value: &str) {
        for directory in &self.directories {
            let path = directory.join(file);
            // With v1, only one of the three directories has the file.
            if let Err(error) = fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::debug!(path = %path.display(), value, %error, "cannot set a limit");
            }
        }
    }
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Returns the directory of the group `own` below the first mount whose file system type and options satisfy `matches`.
fn shown(mounts: &str, own: &str, matches: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let (mut before, mut after) = (before.split(' ').skip(3), after.split(' '));
        let (root, point) = (before.next()?, before.next()?);
        let (kind, options) = (after.next()?, after.nth(1)?);
        let below = Path::new(own).strip_prefix(root).ok()?;
        matches(kind, options).then(|| Path::new(point).join(below))
    })
}

fn separate(own: &str, mounts: &str, controller: &str) -> Option<PathBuf> {
    let group = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then_some(group)
    })?;
    shown(mounts, group, |kind, options| kind == "cgroup" && options.split(',').any(|name| name == controller))
}

fn unified(own: &str, mounts: &str) -> Option<PathBuf> {
    shown(mounts, own.lines().find_map(|line| line.strip_prefix("0::"))?, |kind, _| kind == "cgroup2")
}

/// Creates the group `name` below `own`, the group of this process in the unified hierarchy. The kernel may refuse limited groups below a
/// group that has processes. In this case, this process moves to the group `own_group` below `own`.
fn prepare_unified(own: &Path, name: &str, own_group: &str) -> io::Result<PathBuf> {
    let available = fs::read_to_string(own.join("cgroup.controllers"))?;
    let wanted: Vec<&str> =
        ["memory", "pids", "cpu"].into_iter().filter(|name| available.split_whitespace().any(|has| has == *name)).collect();
    if !wanted.contains(&"memory") || !wanted.contains(&"pids") {
        return Err(io::Error::other("the memory and pids controllers are not available"));
    }
    if enable(own, &wanted).is_err() {
        let leaf = own.join(own_group);
        make(&leaf)?;
        fs::write(leaf.join("cgroup.procs"), std::process::id().to_string())?;
        enable(own, &wanted)?;
    }
    let directory = own.join(name);
    make(&directory)?;
    enable(&directory, &wanted)?;
    Ok(directory)
}

/// Enables controllers for the groups below `group`. Each controller needs a separate write: if the group has real-time processes, the
/// kernel refuses `cpu`, and accepts the remaining controllers.
fn enable(group: &Path, controllers: &[&str]) -> io::Result<()> {
    for controller in controllers {
        match fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")) {
            Err(error) if *controller != "cpu" => return Err(error),
            Err(error) => tracing::warn!(%error, "cannot set CPU weights; all processes get equal shares"),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Returns half of the memory of this machine, in bytes.
pub fn half_of_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit)) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_group_is_found_in_both_hierarchies() {
        let own = "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/user/x\n";
        let mounts = "30 20 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 20 0:2 / /sys/fs/cgroup/cpu rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
                      32 20 0:3 /user /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(separate(own, mounts, "memory"), Some("/sys/fs/cgroup/memory/a/b".into()));
        assert_eq!(separate(own, mounts, "cpu"), Some("/sys/fs/cgroup/cpu/".into()));
        assert_eq!(separate(own, mounts, "pids"), None);
        assert_eq!(unified(own, mounts), Some("/sys/fs/cgroup/unified/x".into()));
    }
}
