//! The privileged role: starts every other process in its sandbox and keeps applications running.
//!
//! One thread, one `poll`. It owns the listening sockets, the mounts, the groups and the users' numbers, and takes orders only
//! from the server that it has started itself: small messages with numbers and enums (`host::launch::wire`), never a path, a
//! command or a user. It parses nothing that comes from the network or from a project, and runs nothing but larder.
//!
//! Reading order: [`desk`] (the loop and the orders) → [`server`] → [`table`] (processes, from start to end) → [`assignment`]
//! (what a role comes to) → [`spawn`] and [`guard`] (from fork to the end) → [`sandbox`] and [`layers`] (mounts) → [`place`]
//! (directories and owners). [`sweep`] and [`fill`] are workers of its own, [`trial`] asks the kernel what it allows.

mod assignment;
mod cgroup;
mod desk;
pub mod fill;
mod guard;
mod layers;
mod pace;
mod pause;
mod place;
mod registry;
mod sandbox;
mod server;
mod spawn;
pub mod sweep;
mod sys;
mod table;
mod trial;
mod users;

use std::{
    ffi::OsString,
    fs::File,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::ExitCode,
};

use rustix::{
    fs::{FlockOperation, Mode, flock},
    net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CapabilitySet, CapabilitySets, UnshareFlags, capabilities, set_capabilities},
};

use place::Places;
use users::{User, Users};

/// What a keeper is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server's directory; absolute.
    pub root: PathBuf,
    /// Where SSH is listened for; port 0 picks one.
    pub ssh_listen: Vec<SocketAddr>,
    /// Where HTTP is listened for.
    pub http_listen: Vec<SocketAddr>,
    /// Arguments of the server role, after `server`.
    pub server_args: Vec<OsString>,
    /// Environment of the server role, beside `LARDER_ROOT` and `LARDER_LISTENERS`.
    pub server_env: Vec<(OsString, OsString)>,
    /// The binary that all processes are; normally [`Config::own_program`].
    pub exe: PathBuf,
    /// The binary of the server role, if that is another one.
    pub server_exe: Option<PathBuf>,
    /// What is unpacked to `lib/<version>/`.
    pub lib: Vec<LibFile>,
    /// Directories of the host that builds and applications see beside `/usr`, `/opt` and their like; those that are called `bin`
    /// or have a `bin` join their `PATH`. Never from the network.
    pub host_paths: Vec<PathBuf>,
    /// Environment of builds and applications, such as `RUSTUP_HOME`.
    pub host_env: Vec<(OsString, OsString)>,
    /// The most memory of one application process, in bytes.
    pub application_memory: Option<u64>,
    /// The most memory of one build, in bytes; without it, half of the machine's, between 256 MiB and 2 GiB.
    pub build_memory: Option<u64>,
    /// Processes and threads of one build.
    pub build_processes: u64,
    /// Whether workers get namespaces of their own where the machine allows it.
    pub namespaces: bool,
    /// Whether `/app` is an overlay where the machine allows it; otherwise it is a copy.
    pub overlays: bool,
    /// Bytes that fit into a worker's `/tmp`; memory, and counted as the worker's.
    pub temporary: u64,
}

impl Config {
    /// A configuration for `root` with nothing else in it.
    pub fn new(root: PathBuf) -> Config {
        Config {
            root,
            ssh_listen: Vec::new(),
            http_listen: Vec::new(),
            server_args: Vec::new(),
            server_env: Vec::new(),
            exe: Config::own_program(),
            server_exe: None,
            lib: Vec::new(),
            host_paths: Vec::new(),
            host_env: Vec::new(),
            application_memory: None,
            build_memory: None,
            build_processes: 2048,
            namespaces: true,
            overlays: true,
            temporary: 2 * 1024 * 1024 * 1024,
        }
    }

    /// The path of this program.
    pub fn own_program() -> PathBuf {
        std::fs::read_link("/proc/self/exe").ok().filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
    }
}

/// A file that the binary brings along.
#[derive(Debug, Clone)]
pub struct LibFile {
    /// Where, below `lib/<version>/`: `hooks/...` or `buildpacks/...`.
    pub path: PathBuf,
    /// What is in it.
    pub bytes: &'static [u8],
    /// Whether it is a program.
    pub executable: bool,
}

/// Why the keeper could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another keeper has the root.
    #[error("{0} is in use by another larder; stop that one first, or choose another --root")]
    Taken(PathBuf),
    /// A socket could not be bound.
    #[error("cannot listen on {address}; choose another address, or stop what uses it")]
    Listen {
        /// Where.
        address: SocketAddr,
        #[source]
        /// Why not.
        source: io::Error,
    },
    /// Something about the root.
    #[error("cannot use {path} as larder's directory")]
    Root {
        /// The root.
        path: PathBuf,
        #[source]
        /// Why not.
        source: io::Error,
    },
    /// Something about this machine.
    #[error("cannot {0}")]
    Setup(String),
    /// The loop cannot go on.
    #[error("the keeper cannot wait for its processes")]
    Wait(#[source] io::Error),
}

/// Runs the keeper until it is asked to stop, and gives the exit code for the process. To be called in the first process while
/// it still has one thread.
pub fn run(config: Config) -> Result<ExitCode, KeeperError> {
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(1);
    if threads != 1 {
        return Err(KeeperError::Setup(format!("start the keeper beside other threads; there are {threads}")));
    }
    if !config.root.is_absolute() {
        return Err(KeeperError::Setup(format!("use {}: the root must be an absolute path", config.root.display())));
    }
    // Whoever starts us may have set what suits a person's shell: nothing below depends on it.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::collect_children();
    let users = Users::new(&config.root)?;
    let namespaces = if config.namespaces { own_namespace(users) } else { Err("namespaces are switched off".to_owned()) };
    let in_root = |source| KeeperError::Root { path: config.root.clone(), source };
    let places = Places::open_root(&config.root, users).map_err(in_root)?;
    let _lock = lock(&config.root)?;
    // Not before: another keeper's hooks and buildpacks may be in use.
    places.bring_along(&config.lib).map_err(in_root)?;
    users.remember(&config.root).map_err(in_root)?;
    let nofile = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: nofile.maximum, maximum: nofile.maximum });
    if users.system() {
        let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    }
    let mut listeners = Vec::new();
    for (name, addresses) in [("ssh", &config.ssh_listen), ("http", &config.http_listen)] {
        for address in addresses {
            // Who wants IPv4 on the same port differently says so.
            let both = !addresses.iter().any(|other| other.is_ipv4() && other.port() == address.port() && address.port() != 0);
            let listener = listener(*address, both).map_err(|source| KeeperError::Listen { address: *address, source })?;
            listeners.push((name, listener));
        }
    }
    let base = namespaces.and_then(|()| {
        sandbox::Base::prepare(&config.root.join("keeper/base"), &config.root, &config.host_paths)
            .and_then(|base| trial::of_a_view(&base, &config).map(|()| base))
            .map_err(|error| error.to_string())
    });
    if let Err(why) = &base {
        tracing::warn!(
            why,
            "no namespaces: builds and processes see this machine's files and each other's, at their real paths, and releases are \
             not relocatable; allow user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns) \
             or, in a container, grant CAP_SYS_ADMIN"
        );
    }
    if users.system() {
        keep_what_is_needed().map_err(|error| KeeperError::Setup(format!("give up privileges: {error}")))?;
    }
    desk::Desk::open(config, users, places, listeners, base)?.serve()
}

/// A mount namespace for all that is mounted later; without root inside a user namespace in which nobody else exists.
///
/// Some kernels allow the user namespace and then not the map, and there is no way back out of it: so a child goes first.
fn own_namespace(users: Users) -> Result<(), String> {
    trial::of(|| enter_namespace(users).map_err(io::Error::other)).map_err(|error| error.to_string())?;
    enter_namespace(users)
}

fn enter_namespace(users: Users) -> Result<(), String> {
    use rustix::process::{getegid, geteuid};
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let flags = if users.system() { UnshareFlags::NEWNS } else { UnshareFlags::NEWNS | UnshareFlags::NEWUSER };
    sys::unshare(flags).map_err(|error| format!("unshare: {error}"))?;
    if !users.system() {
        let write = |file: &str, text: String| std::fs::write(file, text).map_err(|error| format!("{file}: {error}"));
        write("/proc/self/setgroups", "deny".into())?;
        write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    Ok(())
}

/// Root's powers, but for those over the network, other processes' memory, modules, clocks and hardware. The rest is for users,
/// mounts and limits.
fn keep_what_is_needed() -> io::Result<()> {
    let needed = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::KILL
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SETPCAP
        | CapabilitySet::SETFCAP
        | CapabilitySet::MKNOD
        | CapabilitySet::SYS_ADMIN
        | CapabilitySet::SYS_RESOURCE;
    let kept = capabilities(None)?.permitted & needed;
    Ok(set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })?)
}

fn lock(root: &Path) -> Result<OwnedFd, KeeperError> {
    let in_root = |source| KeeperError::Root { path: root.to_owned(), source };
    let file = File::options().write(true).create(true).truncate(false).open(root.join("keeper/lock")).map_err(in_root)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file.into()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(KeeperError::Taken(root.to_owned())),
        Err(error) => Err(in_root(error.into())),
    }
}

/// `[::]` takes IPv4 connections as well if `both`, as people expect from other servers.
fn listener(address: SocketAddr, both: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !both)?;
    }
    bind(&socket, &address)?;
    listen(&socket, 1024)?;
    Ok(socket)
}

/// Who may have left something in what was put aside, in the order in which they delete it.
fn cleanup_users(env: crate::model::EnvId, users: &Users) -> Vec<User> {
    match users.system() {
        true => vec![User::Build(env), User::Unpack(env), User::Run(env), User::Git, User::Server],
        false => vec![User::Keeper],
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    #[test]
    fn an_address_of_both_kinds_takes_both() {
        for both in [true, false] {
            let Ok(socket) = listener("[::]:0".parse().unwrap(), both) else {
                eprintln!("SKIPPED: there is no IPv6 here");
                return;
            };
            let port = std::net::TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap().port();
            assert_eq!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(), both);
        }
    }
}
