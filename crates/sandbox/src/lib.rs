//! Mechanisms for running processes in a sandbox, for a single-threaded supervisor. Read [`ChildSpec`] and [`RootView`] first.
//!
//! This crate knows no project, no environment, no role and no network. It receives typed values: open descriptors, user numbers
//! ([`UnixUser`]), and paths that its caller has chosen. The decisions (users, directories, limits) are the caller's.
//!
//! - [`process`](ChildSpec): from fork to exec, with namespaces, limits, and no privilege left. A guard, the first process of the
//!   namespace, reports the end of the program.
//! - [`view`](RootView): a root directory of read-only parts of the host and of the directories of one process.
//! - [`overlay`](Overlays): a tree below a scratch layer, shared by the processes that use it.
//! - [`cgroup`](CgroupHierarchy): limits of memory, processes and processor time.
//! - [`restart`](RestartSchedule): the times of restarts and kills, without any action.
//! - [`directory`](RootDirectory): operations below an open directory that follow no symlink and do not leave it.
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
mod restart;
mod sys;
mod user;
mod view;
mod wait;

pub use cgroup::{CgroupHierarchy, CgroupVersion, ControlGroup, ResourceLimits};
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
pub use restart::{Backoff, RestartSchedule};
pub use sys::collect_children;
pub use user::{UnixUser, hand_over_pipe, keep_capabilities};
pub use view::{BaseSpec, BaseView, BindMount, BindSource, RootView, SkippedDirectory};
pub use wait::{Readiness, SignalReceiver};
