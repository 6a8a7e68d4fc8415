//! What the server may ask the keeper to start. Ids and enums only: the keeper derives every path, user and mount from them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{EnvId, ProjectId, ReleaseId, Slot};

/// A kind of worker. It decides the user, the view of the file system and the limits; the work itself is described in a sealed
/// job that the keeper passes on unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Git's own programs and reads and writes of refs, on the repositories of one project; as the git user.
    Git,
    /// Checks a commit and exports it to the environment's `project/`; as the git user.
    Source,
    /// Buildpacks and phase scripts at `/app`, over the exported source; as the environment's build user.
    Build,
    /// Reads the built `/app`, without changing it, into an archive; as the environment's build user.
    Bundle,
    /// Unpacks an archive to `deploy/<release>`; as the environment's unpack user.
    Unpack,
    /// Reads an archive from elsewhere to see whether it is what its manifest says; as the environment's unpack user, who sees no
    /// directory at all.
    Verify,
    /// An application process at `/app` in a slot; as the environment's run user.
    Run,
    /// A single command at `/app` in a slot (release command, `larder run`); as the environment's run user.
    Task,
    /// Compares the live `/app` of a slot, or without a slot an installed tree, with its release, and changes nothing; as the
    /// environment's run user.
    Drift,
    /// Puts a patch onto the release in a slot; as the environment's run user.
    Patch,
    /// Deletes what one of the environment's users left in an area; as that user.
    Sweep(Area),
    /// Reads installed trees, without changing any, into archives and deltas; as the environment's unpack user.
    Pack,
}

impl Role {
    /// Whether it holds whole frames of archives in memory.
    pub fn packs(self) -> bool {
        matches!(self, Role::Bundle | Role::Unpack | Role::Verify | Role::Pack)
    }
}

/// A part of an environment's directory that belongs to one of its own users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Area {
    /// The scratch layer of a build; build user.
    Build,
    /// What buildpacks keep between builds; build user.
    Cache,
    /// One installed release, the one in [`Launch::release`]; unpack user.
    Tree,
    /// The scratch layer of a slot, the one in [`Launch::slot`]; run user.
    Slot,
    /// The exported source; git user.
    Source,
}

/// A limit class; the keeper knows the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LimitClass {
    /// Builds: low processor and disk priority, bounded memory, processes and file sizes.
    Build {
        /// Bytes that the project asks for; nothing, or more than the operator allows: what the operator allows.
        memory: Option<u64>,
    },
    /// Applications and their commands.
    Application {
        /// The same for one process.
        memory: Option<u64>,
    },
    /// larder's own work on hostile bytes: little memory.
    Service,
}

/// What happens when the process ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Supervision {
    /// Its end is reported and that is all. It dies when the server that asked for it goes away.
    Once,
    /// It outlives the server and is started again when it ends, with growing pauses. `label` comes back in listings and means
    /// nothing to the keeper; at most 1 KiB.
    Keep {
        /// Chosen by the server to recognise the process after a restart.
        label: Vec<u8>,
        /// What it is sent, with all that it started, when it is to end.
        stop: StopSignal,
    },
}

/// A signal that asks a process to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // They are the kernel's names.
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
    /// Every signal with its word.
    pub const WORDS: [(&'static str, StopSignal); 7] = [
        ("TERM", StopSignal::Term),
        ("INT", StopSignal::Int),
        ("QUIT", StopSignal::Quit),
        ("HUP", StopSignal::Hup),
        ("USR1", StopSignal::Usr1),
        ("USR2", StopSignal::Usr2),
        ("WINCH", StopSignal::Winch),
    ];

    /// The word of the file, such as `TERM`.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.into_iter().find(|(_, signal)| *signal == self).map_or("TERM", |(word, _)| word)
    }
}

/// A request to start one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// What it is.
    pub role: Role,
    /// The project.
    pub project: ProjectId,
    /// The environment; every role but [`Role::Git`] needs one.
    pub environment: Option<EnvId>,
    /// The release whose tree is seen or written ([`Role::Unpack`], [`Role::Run`], [`Role::Task`], [`Role::Drift`], [`Role::Patch`],
    /// [`Area::Tree`]).
    pub release: Option<ReleaseId>,
    /// The slot ([`Role::Run`], [`Role::Task`], [`Role::Drift`], [`Role::Patch`], [`Area::Slot`]).
    pub slot: Option<Slot>,
    /// Its limits.
    pub limits: LimitClass,
    /// What happens when it ends.
    pub supervision: Supervision,
}

/// The keeper's number for a process; never given out twice in the life of a keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessId(pub u64);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit status, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it, or something that it started, ran into its memory limit.
    pub out_of_memory: bool,
}

impl Exit {
    /// Whether it ended by itself with status 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exited {code}")?,
            (None, Some(signal)) => write!(f, "was killed by signal {signal}")?,
            (None, None) => write!(f, "ended")?,
        }
        if self.out_of_memory {
            write!(f, " (it ran out of memory)")?;
        }
        Ok(())
    }
}
