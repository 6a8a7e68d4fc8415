//! The connection between the server and the keeper, and the jobs of workers. [`Launcher`] is the server's client of the keeper: it
//! launches processes and reports their exits. [`KeeperEnd`] is the keeper's side of the connection. [`WorkerInput`] is the worker's side
//! of a job. Read [`Launcher`] first.
//!
//! A worker starts with these descriptors: 0, 1 and 2 from [`Stdio`]; 3, the sealed job; 4, the write end of the report pipe; from 5 on,
//! the descriptors in [`Stdio::extra`]. Environment variables `LARDER_*` contain the paths of the worker's directories.

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
pub use types::{Capabilities, Cgroups, LaunchError, Registration, Stdio, SupervisedProcess, signal_of};
pub use wire::{MAX_GRACE, ProcessEvent};

/// The name and the value of the environment variable with which glibc allocates memory in large pages. The keeper sets this variable for
/// workers with buffers of many megabytes. Large pages cause fewer page faults, and on a virtual machine one page fault takes about as long
/// as the compression of a kilobyte. Other C libraries ignore the variable.
pub const LARGE_PAGES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
