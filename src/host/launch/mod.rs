//! The client of the keeper: launches processes and follows them; and the worker's side of a job. Read [`Launcher`] first.
//!
//! A worker starts with these descriptors: 0, 1, 2 as the server chose them; 3, the sealed job; 4, the write end of its report; from 5
//! on those of [`Stdio::extra`]. `LARDER_*` variables hold the paths of its directories.

mod child;
mod client;
mod connection;
mod inherited;
mod job;
mod types;
pub mod wire;

pub use child::Child;
pub use client::Launcher;
pub use inherited::take as take_inherited;
pub use job::{WorkerInput, read_job, write_report};
pub use types::{Capabilities, Cgroups, LaunchError, Registration, Stdio, SupervisedProcess};
pub use wire::{MAX_GRACE, ProcessEvent};

/// A variable and its value that make glibc ask for large pages, for workers with buffers of many megabytes. On a virtual machine, a
/// page fault costs about as much as compressing a kilobyte. Other C libraries ignore the variable.
pub const LARGE_PAGES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
