//! The job: sealed by the server; and the worker's side of it, with the report, further descriptors, and where things are.

use std::{
    env,
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::PathBuf,
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::{Serialize, de::DeserializeOwned};

use super::{inherited, wire::MAX_JOB};

/// A memory file with `bytes` that nobody can change any more.
pub(super) fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    if bytes.len() as u64 > MAX_JOB {
        return Err(io::Error::other(format!("the job has {} bytes; at most {} are allowed", bytes.len(), MAX_JOB)));
    }
    let mut file = File::from(memfd_create("job", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}

/// The job that these bytes hold.
pub fn read_job<J: DeserializeOwned>(from: &mut impl Read) -> io::Result<J> {
    let mut bytes = Vec::new();
    from.take(MAX_JOB).read_to_end(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

/// Writes the report.
pub fn write_report<R: Serialize>(to: &mut impl Write, report: &R) -> io::Result<()> {
    to.write_all(&postcard::to_stdvec(report).map_err(io::Error::other)?)
}

/// What a worker was started with; take it before anything else, so that no child inherits it.
#[derive(Debug)]
pub struct Errand {
    /// The sealed job; for [`read_job`].
    pub job: File,
    /// Where the report goes; for [`write_report`].
    pub report: File,
    /// Descriptors 5 and up, as given at the launch.
    pub extra: Vec<OwnedFd>,
}

impl Errand {
    /// Takes over descriptors 3, 4 and the further ones that `LARDER_EXTRA` counts.
    pub fn take() -> io::Result<Errand> {
        let job = File::from(inherited::take(3)?);
        let report = File::from(inherited::take(4)?);
        let count: i32 = env::var("LARDER_EXTRA").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        let extra = (0..count.clamp(0, 8)).map(|at| inherited::take(5 + at)).collect::<io::Result<_>>()?;
        Ok(Errand { job, report, extra })
    }
}

/// The place that the keeper named in the environment variable `LARDER_<what>`, valid for this worker.
pub fn place(what: &str) -> io::Result<PathBuf> {
    let name = format!("LARDER_{what}");
    env::var_os(&name)
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other(format!("{name} is not set; only larder itself starts workers")))
}
