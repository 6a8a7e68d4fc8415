//! The process of the off-site worker. Descriptor 0 is a socket to the server: job and report. Descriptor 1 is a socket to the dump worker.

use std::{
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    super::error::{BackupFailure, FailureKind},
    OffsiteJob, OffsiteReport, OffsiteStore, check, copy, fetch, repair,
    repository::OpenRepository,
    retain,
};
use crate::model::sanitise_line;

/// The maximum size of a job or report, in bytes.
pub(super) const MAX_FRAME: u64 = 64 << 20;

/// The niceness of the worker (nice(2)).
const NICE: i32 = 15;

/// Runs the off-site worker. Returns the exit code.
pub fn main() -> u8 {
    match run() {
        Ok(()) => 0,
        Err(error) => {
            let _ = io::stderr().write_all(format!("larder: the off-site worker: {error}\n").as_bytes());
            70
        }
    }
}

fn run() -> io::Result<()> {
    let _ = rustix::process::nice(NICE);
    let mut control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let socket = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    // The other ends close when these processes exit, so no duplicate may stay open.
    close_standard()?;
    let job: (OffsiteStore, OffsiteJob) = postcard::from_bytes(&read_frame(&mut control)?).map_err(io::Error::other)?;
    let mut watched = control.try_clone()?;
    // The server sends nothing after the job. The end of the stream means that the server has exited or has given up.
    std::thread::spawn(move || {
        let _ = watched.read(&mut [0]);
        std::process::exit(75);
    });
    // A panic of the library is a failure of this job, with a report.
    let place: Arc<Mutex<String>> = Arc::default();
    let found = place.clone();
    std::panic::set_hook(Box::new(move |panic| *found.lock() = panic.to_string()));
    let report = catch_unwind(AssertUnwindSafe(|| work(&job.0, &job.1, socket)));
    let report = report.unwrap_or_else(|_| {
        let why = format!("the off-site worker failed unexpectedly: {}", sanitise_line(&place.lock()));
        Err(BackupFailure::new(FailureKind::Machine, why))
    });
    write_frame(&mut control, &postcard::to_stdvec(&report).map_err(io::Error::other)?)?;
    std::process::exit(0);
}

fn close_standard() -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

pub(super) fn read_frame(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn write_frame(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&(bytes.len() as u64).to_le_bytes())?;
    to.write_all(bytes)
}

fn work(store: &OffsiteStore, job: &OffsiteJob, socket: UnixStream) -> Result<OffsiteReport, BackupFailure> {
    Ok(match job {
        OffsiteJob::List => {
            let points = match OpenRepository::open(store, false)? {
                Some(opened) => opened.points()?,
                None => Vec::new(),
            };
            OffsiteReport::List(points.into_iter().map(|(point, _)| point).collect())
        }
        OffsiteJob::Copy => OffsiteReport::Copied(copy::copy(store, socket)?),
        OffsiteJob::Check { read, budget, expected, retention } => {
            let mut report = check::check(store, read, *budget, expected)?;
            let may_remove = report.is_sound && report.interrupted.is_none();
            if let Some(retention) = retention.as_ref().filter(|_| may_remove) {
                let removed = retain::retain(store, retention, report.damaged_points.is_empty())?;
                if !removed.is_empty() {
                    // The removal may have written new files, which are read back as well.
                    let expected: Vec<String> = expected.iter().filter(|id| !removed.contains(id)).cloned().collect();
                    let before = report;
                    report = check::check(store, &before.read, 0, &expected)?;
                    report.bytes = report.bytes.saturating_add(before.bytes);
                    report.bytes_again = before.bytes_again;
                    report.removed = removed;
                }
            }
            OffsiteReport::Checked(report)
        }
        OffsiteJob::Repair { damaged, replaceable } => {
            repair::repair(store, damaged, replaceable)?;
            OffsiteReport::Repaired
        }
        OffsiteJob::Fetch { point } => OffsiteReport::Fetched(fetch::fetch(store, point, socket)?),
    })
}
