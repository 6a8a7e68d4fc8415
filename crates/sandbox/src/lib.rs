//! Mechanisms for running processes in a sandbox, for a single-threaded supervisor. Read [`ChildSpec`] and [`RootView`] first.
//!
//! This crate does not depend on projects, environments, roles or the network. Its functions take typed values: open descriptors, user
//! numbers ([`UnixUser`]) and paths. The caller decides on users, directories and limits.
//!
//! - [`process`](ChildSpec): starts a program (fork, namespaces, limits, dropped privileges, exec). If requested, a guard between the
//!   supervisor and the program reports the end of the program.
//! - [`view`](RootView): the root directory of a process, made of read-only parts of the host and of the process's own directories.
//! - [`overlay`](Overlays): overlay file systems, each with a lower tree and a scratch layer. Processes with the same tree and the same
//!   layer share one overlay.
//! - [`space_limit`](SpaceLimits): limits of the space of a directory, by a file system in an image file or by a project quota.
//! - [`cgroup`](CgroupHierarchy): limits of memory, processes and processor time.
//! - [`restart`](RestartSchedule): computes the times of restarts and kills. The caller restarts and kills.
//! - [`directory`](RootDirectory): operations below an open directory, which follow no symlink and do not leave the directory.
//!
//! Nearly all functions fork, or run after a fork. The calling process must therefore have one thread.

mod cgroup;
mod cgroup_warmer;
mod directory;
mod embedded;
mod guard;
mod listen;
mod namespace;
mod numbers;
mod overlay;
mod probe;
mod process;
mod project_filter;
mod quota;
mod restart;
mod space_limit;
mod sys;
mod trash;
mod user;
mod view;
mod volume;
mod wait;

pub use cgroup::{CgroupHierarchy, CgroupVersion, ControlGroup, ResourceLimits, half_of_memory};
pub use cgroup_warmer::CgroupWarmer;
pub use directory::{Moved, RootDirectory, ScratchDirectories, UnsafeDirectory, replaceable_ancestors};
pub use embedded::{EmbeddedFile, unpack};
pub use guard::{GuardEvent, ProcessEnd};
pub use listen::listen;
pub use namespace::enter_namespace;
pub use numbers::{NumberConflict, account, find_conflict, has_numbers};
pub use overlay::{OverlayId, OverlaySpec, Overlays};
pub use probe::first_closed_ancestor;
pub use process::{ChildProcess, ChildSpec, Received};
pub use quota::{quota_support, quota_usage};
pub use restart::{Backoff, RestartSchedule};
pub use space_limit::{SpaceLimit, SpaceLimits};
pub use sys::collect_children;
pub use trash::{DiscardedDirectory, Trash};
pub use user::{UnixUser, hand_over_pipe, keep_capabilities};
pub use view::{BaseSpec, BaseView, BindMount, BindSource, RootView, SkippedDirectory, user_database};
pub use volume::VolumeKind;
pub use wait::{Readiness, SignalReceiver};
