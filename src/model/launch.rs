//! The server's requests to the keeper to start processes. A request contains no path and no user. The keeper derives all paths, users and
//! mounts from the ids and the role in the request.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{EnvId, ProjectId, ReleaseId, Slot};

/// The kind of a process that the keeper starts. The role determines the user and the view of the file system. The job, which is a sealed
/// memory file, describes the work. The keeper passes the job to the process and does not read the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// A worker that runs git, and reads and writes the refs of one project, as the git user.
    Git,
    /// A worker that checks a commit and exports the commit to the environment's `project/`, as the git user.
    Source,
    /// A worker that runs buildpacks and phase scripts at `/app`, an overlay of the exported source, as the environment's build user.
    Build,
    /// A worker that packs the built `/app` into an archive, as the environment's build user. `/app` is read-only.
    Bundle,
    /// A worker that fills the tree `deploy/<release>` from an archive, a delta or an installed release, or renews the modification times
    /// of the tree's files. The worker runs as the environment's unpack user.
    Unpack,
    /// A worker that compares a received archive with its manifest. The worker runs as the environment's unpack user, without access to any
    /// directory of larder.
    Verify,
    /// An application process at `/app` in a slot, which runs as the environment's run user.
    Run,
    /// A single command at `/app` in a slot, such as a release command, a phase script or a command of `larder run`. The command runs as
    /// the environment's run user.
    Task,
    /// A single command at `/app` in a slot, on a copy of the data (`larder run --restore-point`). `/app` is read-only, because the application
    /// may serve in the same slot. The command runs as the environment's run user.
    Probe,
    /// A worker that finds changed files in `/app` of a slot, and packs these files for a patch. If the launch has no slot, the worker
    /// finds changed files in the installed tree. The worker runs as the environment's run user, and changes neither the slot nor the tree.
    Drift,
    /// A worker that applies a patch to the release in a slot, as the environment's run user.
    Patch,
    /// A worker that makes the directory of a slot equal to an installed tree, as the environment's run user.
    Sync,
    /// A worker that deletes the files in an area, as the user to whom the area belongs.
    Sweep(Area),
    /// A worker that packs installed trees into archives and deltas, as the environment's unpack user. The trees are read-only.
    Pack,
    /// A worker that captures the persistent data as a restore point, or reads, compares or removes restore points, as the environment's
    /// run user. The data is read-only.
    Dump,
    /// A worker that writes the files of a restore point beside the live data, as the environment's run user. The worker does not see the
    /// live data.
    Restore,
    /// A worker that counts the space of one user's files in an environment, as this user. The files are read-only.
    Measure(MeasuredUser),
    /// A worker that builds, changes or watches the checkout of an editable environment, which is the directory of the slot, as the environment's run user.
    Edit(EditWork),
    /// The operator's `systemctl`, which stops or starts a unit. The command runs as root without capabilities, outside of every view. The
    /// keeper takes the program and the name of the unit from the server file, and the job is not read.
    Unit(UnitRequest),
}

impl Role {
    /// Returns true if a process of this role runs in a slot, and uses the slot and the installed tree below it.
    pub fn uses_slot(self) -> bool {
        let is_edit = matches!(self, Role::Edit(EditWork::Build | EditWork::Checkout));
        is_edit || matches!(self, Role::Run | Role::Task | Role::Probe | Role::Drift | Role::Patch | Role::Sync)
    }

    /// Returns true for a command that a person runs in a slot.
    pub fn is_command(self) -> bool {
        matches!(self, Role::Task | Role::Probe)
    }

    /// Returns the worker's name on its command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Git => "git",
            Role::Source => "source",
            Role::Build => "build",
            Role::Bundle => "bundle",
            Role::Unpack => "unpack",
            Role::Verify => "verify",
            Role::Run => "run",
            Role::Task => "task",
            Role::Probe => "probe",
            Role::Drift => "drift",
            Role::Patch => "patch",
            Role::Sync => "sync",
            Role::Sweep(_) => "sweep",
            Role::Pack => "pack",
            Role::Dump => "dump",
            Role::Restore => "restore",
            Role::Measure(_) => "measure",
            Role::Edit(EditWork::Build) => "build",
            Role::Edit(EditWork::Checkout) => "checkout",
            Role::Edit(EditWork::Watch) => "watch",
            Role::Unit(_) => "unit",
        }
    }

    /// Returns true if the worker holds whole frames of archives in memory.
    pub fn packs(self) -> bool {
        matches!(self, Role::Bundle | Role::Unpack | Role::Verify | Role::Pack)
    }
}

/// The work in a checkout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EditWork {
    /// Runs buildpacks and phase scripts.
    Build,
    /// Runs git.
    Checkout,
    /// Reports saved files, and reads only. The worker runs as long as the environment, so it does not count as a user of the slot.
    Watch,
}

/// The user whose files a measure worker counts, and as whom the worker runs. Each user can enter only its own directories. The keeper has the
/// users in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MeasuredUser {
    /// The git user, to whom the repository and the exported source belong.
    Git,
    /// The build user.
    Build,
    /// The unpack user.
    Unpack,
    /// The run user.
    Run,
}

/// A request to stop or start a unit of systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UnitRequest {
    /// [`UnitName::number`] of a unit that the server file allows for the project.
    ///
    /// [`UnitName::number`]: super::UnitName::number
    pub unit: u64,
    /// True to start the unit, false to stop the unit.
    pub start: bool,
}

/// A part of an environment's directory whose files belong to one user. In a scratch layer, only `upper` contains files of the layer's user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Area {
    /// The scratch layer of a build, which belongs to the build user.
    Build,
    /// The cache of buildpacks, which belongs to the build user.
    Cache,
    /// The installed tree of [`Launch::release`], which belongs to the unpack user.
    Tree,
    /// The scratch layer of [`Launch::slot`], which belongs to the run user.
    Slot,
    /// The exported source, which belongs to the git user.
    Source,
    /// The workspace in `archives/run/` that [`Launch::release`] names by the id of its deployment. It belongs to the run user.
    Archive,
}

/// The name of a tree in an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeName {
    /// [`Area::Tree`], [`Area::Archive`], or [`Area::Slot`] for the tree of the slot `in-place`.
    pub area: Area,
    /// The id in the area; `None` for the slot.
    pub id: Option<ReleaseId>,
}

/// A class of limits. The keeper defines the limits of each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LimitClass {
    /// The limits of builds: a low priority for processor and disk, and maxima for memory, processes and file sizes.
    Build {
        /// The memory limit of the recipe in bytes, at most the operator's limit. With `None`, the operator's limit applies.
        memory: Option<u64>,
    },
    /// The limits of applications and their commands.
    Application {
        /// The memory limit of one process in bytes, at most the operator's limit. With `None`, only the operator's limit applies, if there
        /// is one.
        memory: Option<u64>,
    },
    /// The limits of larder's own workers, which process untrusted bytes with little memory.
    Service,
}

/// The reaction of the keeper to the exit of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Supervision {
    /// The keeper reports the exit to the server. The process is killed when the server that requested the process exits.
    Once,
    /// The process outlives the server. The keeper restarts the process with backoff if the process exits. The keeper returns `label`, at
    /// most 1 KiB, in lists of processes, and does not interpret the label.
    Keep {
        /// Bytes by which a restarted server recognises the process.
        label: Vec<u8>,
        /// The signal that asks the process and its children to exit.
        stop: StopSignal,
    },
}

/// A signal that asks a process to exit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StopSignal {
    #[default]
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
    Winch,
}

impl StopSignal {
    /// Every signal with its word in configuration files.
    pub const WORDS: [(&'static str, StopSignal); 7] = [
        ("TERM", StopSignal::Term),
        ("INT", StopSignal::Int),
        ("QUIT", StopSignal::Quit),
        ("HUP", StopSignal::Hup),
        ("USR1", StopSignal::Usr1),
        ("USR2", StopSignal::Usr2),
        ("WINCH", StopSignal::Winch),
    ];

    /// Returns the word in configuration files, such as `TERM`.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.into_iter().find(|(_, signal)| *signal == self).map_or("TERM", |(word, _)| word)
    }
}

/// A request to start one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The kind of process.
    pub role: Role,
    pub project: ProjectId,
    /// The environment. Every role except [`Role::Git`] needs an environment.
    pub environment: Option<EnvId>,
    /// The release whose tree the process reads or writes ([`Role::Unpack`], [`Role::Pack`], [`Role::Run`], [`Role::Task`],
    /// [`Role::Drift`], [`Role::Patch`], [`Area::Tree`]).
    pub release: Option<ReleaseId>,
    /// The slot that the process uses, or whose files the process deletes ([`Role::Run`], [`Role::Task`], [`Role::Drift`], [`Role::Patch`],
    /// [`Area::Slot`]).
    pub slot: Option<Slot>,
    pub limits: LimitClass,
    pub supervision: Supervision,
}

/// The number that the keeper assigns to a process. A keeper never reuses a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessId(pub u64);

/// The exit status of a process, or the signal that killed the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit status, if the process exited.
    pub code: Option<i32>,
    /// The signal that killed the process.
    pub signal: Option<i32>,
    /// True if the process or one of its children was killed because the memory limit was exceeded.
    pub out_of_memory: bool,
}

impl Exit {
    /// Returns true if the process exited with status 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exited {code}")?,
            (None, Some(signal)) => write!(f, "was killed by signal {signal}")?,
            (None, None) => write!(f, "exited with an unknown status")?,
        }
        if self.out_of_memory {
            write!(f, " (it ran out of memory)")?;
        }
        Ok(())
    }
}
