//! The job of a worker. The server seals the job in a memory file; the worker reads the job and writes a report.

use std::{
    env,
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use serde::{Serialize, de::DeserializeOwned};

use super::{inherited, wire::MAX_JOB};

/// The seals of a job. The seals prevent every process from changing the job while a worker reads the job.
const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

/// Creates a memory file with `bytes`, sealed against changes.
pub(super) fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    if bytes.len() as u64 > MAX_JOB {
        return Err(io::Error::other(format!("the job has {} bytes (limit {MAX_JOB})", bytes.len())));
    }
    let mut file = File::from(memfd_create("job", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SEALS | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Checks that `job` is sealed against changes, and that `job` has at most [`MAX_JOB`] bytes.
pub fn check_sealed(job: &OwnedFd) -> Result<(), String> {
    if !fcntl_get_seals(job).is_ok_and(|found| found.contains(SEALS)) {
        return Err("the job is not sealed against changes".into());
    }
    if fstat(job).map_or(u64::MAX, |found| found.st_size as u64) > MAX_JOB {
        return Err(format!("the job is too large (limit {MAX_JOB} bytes)"));
    }
    Ok(())
}

/// Reads the job of this worker.
pub fn read_job<J: DeserializeOwned>(from: &mut impl Read) -> io::Result<J> {
    let mut bytes = Vec::new();
    from.take(MAX_JOB).read_to_end(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

/// Writes the report of this worker.
pub fn write_report<R: Serialize>(to: &mut impl Write, report: &R) -> io::Result<()> {
    to.write_all(&postcard::to_stdvec(report).map_err(io::Error::other)?)
}

/// The descriptors that a worker inherits. A worker takes these descriptors before all other work, so that no child inherits them.
#[derive(Debug)]
pub struct WorkerInput {
    /// The sealed job, which [`read_job`] reads.
    pub job: File,
    /// The write end of the report pipe, to which [`write_report`] writes.
    pub report: File,
    /// The descriptors from 5 on, in the order of [`Stdio::extra`](super::Stdio::extra).
    pub extra: Vec<OwnedFd>,
}

impl WorkerInput {
    /// Takes over the descriptors 3 and 4, and the extra descriptors from 5 on. The environment variable `LARDER_EXTRA` is the number of
    /// extra descriptors.
    pub fn take() -> io::Result<WorkerInput> {
        let job = File::from(inherited::take(3)?);
        let report = File::from(inherited::take(4)?);
        let count: i32 = env::var("LARDER_EXTRA").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        let extra = (0..count.clamp(0, 8)).map(|at| inherited::take(5 + at)).collect::<io::Result<_>>()?;
        Ok(WorkerInput { job, report, extra })
    }
}
