//! The client of the keeper, which launches processes and reports their exits; the queue of the keeper's messages; and the worker's side
//! of a job. Read [`Launcher`] first.
//!
//! A worker starts with these descriptors: 0, 1 and 2 are those of [`Stdio`]; 3 is the sealed job; 4 is the write end of the report pipe;
//! from 5 on follow those of [`Stdio::extra`]. `LARDER_*` variables hold the paths of the worker's directories.

mod child;
mod client;
mod connection;
mod inherited;
mod job;
mod keeper_end;
mod types;
pub mod wire;

pub use child::Child;
pub use client::Launcher;
pub use inherited::take as take_inherited;
pub use job::{WorkerInput, check_sealed, read_job, write_report};
pub use keeper_end::{KeeperEnd, RequestReceived};
pub use types::{Capabilities, Cgroups, LaunchError, Registration, Stdio, SupervisedProcess};
pub use wire::{MAX_GRACE, ProcessEvent};

/// The variable, and its value, with which glibc allocates memory in large pages. Workers with buffers of many megabytes are started with
/// this variable, because on a virtual machine a page fault takes about as long as compressing a kilobyte. Other C libraries ignore it.
pub const LARGE_PAGES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
