//! The privileged role, which starts every other process in its sandbox and keeps applications running.
//!
//! The keeper has one thread and one `poll`. The keeper owns the listening sockets, the mounts, the control groups and the user numbers,
//! and takes requests only from the server that it has started itself: small messages with numbers, enums, names and labels
//! (`host::launch::wire`), never a path, a command or a user. The keeper parses nothing that comes from the network or from a project, and
//! runs no program except larder and, in a process that prepares the file system of a project, the tools of file systems.
//!
//! Reading order: [`supervisor`] (the loop and the requests) → [`lifecycle`] (states of the server process) → [`table`] (processes, from
//! start to exit) → [`assignment`] (user, directories and variables of a role), [`limits`] and [`views`] → [`directories`] (directories
//! and owners) → [`users`]. The mechanisms (fork, mounts, control groups, operations below a directory) are in the crate
//! [`larder_sandbox`], which decides nothing.

mod assignment;
mod config;
mod directories;
mod lifecycle;
mod limits;
mod registry;
mod server;
mod supervisor;
mod table;
mod users;
mod views;

use std::{path::Path, process::ExitCode};

use larder_sandbox::{collect_children, enter_namespace, first_closed_ancestor, keep_capabilities, listen, unpack};
use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

pub use config::{EmbeddedFile, KeeperConfig, KeeperError};

use directories::Directories;
use users::{SystemUser, Users};

/// Runs the keeper until a stop request. Returns the exit code of the process. The calling process must have one thread.
pub fn run(config: KeeperConfig) -> Result<ExitCode, KeeperError> {
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(1);
    if threads != 1 {
        return Err(KeeperError::Setup(format!("start the keeper in a process with {threads} threads (expected 1)")));
    }
    if !config.root.is_absolute() {
        return Err(KeeperError::Setup(format!("use {}: the root must be an absolute path", config.root.display())));
    }
    // The parent process may have set another umask and other signal dispositions.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    collect_children();
    let users = Users::new(&config.root)?;
    let namespaces = match config.namespaces {
        true => enter_namespace(!users.system()).map_err(|error| error.to_string()),
        false => Err("namespaces are switched off".to_owned()),
    };
    let in_root = |source| KeeperError::Root { path: config.root.clone(), source };
    if users.system()
        && let Some((closed, mode)) = first_closed_ancestor(&config.root, users.numbers(SystemUser::Server)).map_err(in_root)?
    {
        return Err(KeeperError::Closed { root: config.root.clone(), closed, mode });
    }
    let directories = Directories::open_root(&config.root, users)?;
    let locked = directories.root.lock(Path::new("keeper/lock")).map_err(in_root)?;
    let _lock = locked.ok_or_else(|| KeeperError::Taken(config.root.clone()))?;
    // The files are unpacked only under the lock, because another keeper may use its hooks and buildpacks.
    unpack(&config.root.join(directories::relative().lib()), &config.lib).map_err(in_root)?;
    users.save(&config.root).map_err(in_root)?;
    let nofile = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: nofile.maximum, maximum: nofile.maximum });
    if users.system() {
        let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    }
    let mut listeners = Vec::new();
    for (name, addresses) in [("ssh", &config.ssh_listen), ("http", &config.http_listen)] {
        for address in addresses {
            // If an IPv4 address with the same port is listed, the IPv6 listener does not accept IPv4 connections.
            let both = !addresses.iter().any(|other| other.is_ipv4() && other.port() == address.port() && address.port() != 0);
            let listener = listen(*address, both).map_err(|source| KeeperError::Listen { address: *address, source })?;
            listeners.push((name, listener));
        }
    }
    let base = namespaces.and_then(|()| views::prepare(&config).map_err(|error| error.to_string()));
    if let Err(why) = &base {
        tracing::warn!(
            why,
            hint = "allow user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns) or, in a \
                    container, grant CAP_SYS_ADMIN",
            "namespaces are not available: builds and processes see this machine's files and each other's, at their real paths, and \
             releases are not relocatable"
        );
    }
    if users.system() {
        keep_capabilities().map_err(|error| KeeperError::Setup(format!("drop capabilities: {error}")))?;
    }
    supervisor::Supervisor::new(config, users, directories, listeners, base)?.run()
}
