//! The configuration of a keeper, and the errors that stop a keeper.

use std::{ffi::OsString, io, net::SocketAddr, path::PathBuf};

pub use larder_sandbox::EmbeddedFile;
use larder_sandbox::{NumberConflict, UnsafeDirectory};

use crate::model::{ProjectName, UnitName};

/// A unit of systemd that a project may stop and start.
pub type ProjectUnit = (ProjectName, UnitName);

/// The configuration of a keeper.
#[derive(Debug, Clone, Default)]
pub struct KeeperConfig {
    /// The absolute path of larder's directory.
    pub root: PathBuf,
    /// Addresses to listen on for SSH; port 0 picks a free port.
    pub ssh_listen: Vec<SocketAddr>,
    /// Addresses to listen on for HTTP.
    pub http_listen: Vec<SocketAddr>,
    /// Arguments of the server role, after `server`.
    pub server_args: Vec<OsString>,
    /// Arguments with which the installed program checks the configuration before a reload; `None` disables the check.
    pub check_args: Option<Vec<OsString>>,
    /// Environment variables of the server role, in addition to `LARDER_ROOT`, `LARDER_KEEPER` and `LARDER_LISTENERS`.
    pub server_env: Vec<(OsString, OsString)>,
    /// The installed program, which the server and all workers run; normally [`KeeperConfig::own_program`].
    pub exe: PathBuf,
    /// The program of the server role, if it differs from `exe`.
    pub server_exe: Option<PathBuf>,
    /// The files that are unpacked to `lib/<version>/`, below `hooks` and `buildpacks`.
    pub lib: Vec<EmbeddedFile>,
    /// Directories of the host that builds and applications see in addition to `/usr`, `/opt` and the like. For each directory, the `PATH`
    /// of builds and applications contains the directory itself if its name is `bin`, or else its subdirectory `bin`.
    pub host_paths: Vec<PathBuf>,
    /// Environment variables of builds and applications, such as `RUSTUP_HOME`.
    pub host_env: Vec<(OsString, OsString)>,
    /// The maximum memory of one application process, in bytes.
    pub application_memory: Option<u64>,
    /// The maximum memory of one build, in bytes; by default half of the machine's memory, between 256 MiB and 2 GiB.
    pub build_memory: Option<u64>,
    /// The maximum number of processes and threads of one build.
    pub build_processes: u64,
    /// False if workers run without namespaces, even on a machine that allows namespaces.
    pub namespaces: bool,
    /// False if `/app` is a copy of its tree, even on a machine that allows overlays.
    pub overlays: bool,
    /// The program that stops and starts units of systemd, and the units of each project.
    pub units: (PathBuf, Vec<ProjectUnit>),
    /// The size of `/tmp` and of `/var/tmp` of a process, in bytes. Files in these directories count towards the memory limit.
    pub temporary: u64,
}

impl KeeperConfig {
    /// Returns a configuration for `root` with defaults and without listeners.
    pub fn new(root: PathBuf) -> KeeperConfig {
        KeeperConfig {
            root,
            exe: KeeperConfig::own_program(),
            build_processes: 2048,
            namespaces: true,
            overlays: true,
            temporary: 2 * 1024 * 1024 * 1024,
            ..KeeperConfig::default()
        }
    }

    /// Returns the path of the running program.
    pub fn own_program() -> PathBuf {
        std::fs::read_link("/proc/self/exe").ok().filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
    }
}

/// An error that stops the keeper.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another keeper uses the root.
    #[error("cannot use {}: another larder is running there", .0.display())]
    Taken(PathBuf),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot use {path} as larder's directory")]
    Root { path: PathBuf, source: io::Error },
    /// The owner or the mode of the root is wrong, or cannot be read.
    #[error("cannot use {path} as larder's directory")]
    UnsafeRoot { path: PathBuf, source: UnsafeDirectory },
    /// A directory above the root cannot be entered by the server's user.
    #[error("cannot use {} as larder's directory: {} has mode {mode:04o}, so larder's own users cannot enter it", root.display(), closed.display())]
    Closed { root: PathBuf, closed: PathBuf, mode: u32 },
    /// An account of this machine has numbers of larder's users. The numbers of larder's users begin with `first`.
    #[error("cannot use the user numbers from {first} on: {} assigns some of them to another account: {:?}", conflict.file, conflict.line)]
    Numbers { first: u32, conflict: NumberConflict },
    /// The machine does not allow a necessary operation; the text is a verb phrase with its cause.
    #[error("cannot {0}")]
    Setup(String),
    #[error("cannot wait for processes")]
    Wait(#[source] io::Error),
}

impl KeeperError {
    /// Returns the hint for the operator, if there is a hint.
    pub fn hint(&self) -> Option<String> {
        match self {
            KeeperError::Taken(_) => Some("stop the other larder first, or choose another --root".to_owned()),
            KeeperError::Listen { .. } => Some("choose another address, or stop the program that listens there".to_owned()),
            KeeperError::UnsafeRoot { path, source } => match source {
                UnsafeDirectory::Owner { .. } => Some("change the owner of the directory, or choose another --root".to_owned()),
                UnsafeDirectory::Writable { .. } | UnsafeDirectory::Closed { .. } => {
                    Some(format!("run: chmod 755 {}", path.display()))
                }
                UnsafeDirectory::Io(_) => None,
            },
            KeeperError::Closed { closed, .. } => {
                let closed = closed.display();
                Some(format!("choose a --root that is not below {closed}, such as /srv/larder, or run: chmod o+x {closed}"))
            }
            KeeperError::Numbers { conflict, .. } => Some(match conflict.subordinate {
                true => "give that account other numbers: usermod --del-subuids, --add-subuids, --del-subgids, --add-subgids"
                    .to_owned(),
                false => "give that account another number".to_owned(),
            }),
            KeeperError::Root { .. } | KeeperError::Setup(_) | KeeperError::Wait(_) => None,
        }
    }

    /// Returns the error with its hint on the next line.
    pub fn with_hint(&self) -> String {
        self.hint().map_or_else(|| self.to_string(), |hint| format!("{self}\nhint: {hint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_has_its_hint_on_the_next_line() {
        let path = PathBuf::from("/srv/larder");
        let line = "bob:1900000000:65536".to_owned();
        let conflict = NumberConflict { file: "/etc/subuid", line, subordinate: true };
        for (error, hint) in [
            (KeeperError::Taken(path.clone()), "stop the other larder"),
            (
                KeeperError::UnsafeRoot { path: path.clone(), source: UnsafeDirectory::Writable { mode: 0o777 } },
                "run: chmod 755 /srv/larder",
            ),
            (KeeperError::UnsafeRoot { path, source: UnsafeDirectory::Owner { found: 7, expected: 0 } }, "change the owner"),
            (KeeperError::Numbers { first: 1_900_000_000, conflict }, "give that account other numbers: usermod"),
        ] {
            let text = error.with_hint();
            let (first, second) = text.split_once('\n').unwrap();
            assert!(first.starts_with("cannot use ") && !first.contains("hint"), "{text}");
            assert!(second.starts_with(&format!("hint: {hint}")), "{text}");
        }
    }
}
