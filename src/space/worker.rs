//! The measure worker, which counts the files of one user in the directory of an environment.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    SpaceKind,
    walk::{Measured, SpaceWalk},
};

/// The niceness of the worker (nice(2)). The kernel derives the priority of disk accesses from the niceness (ionice(1)), so this value gives
/// the lowest priority for both.
const NICE: i32 = 19;

/// The job of the measure worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasureJob {
    /// The directories to count, relative to the directory of the environment.
    pub directories: Vec<(SpaceKind, PathBuf)>,
    /// True to count the repository of the project as well.
    pub repository: bool,
}

/// The report of the measure worker: the space of each kind.
pub type MeasureReport = Vec<(SpaceKind, Measured)>;

/// Runs the measure worker. A directory that cannot be counted is part of the report.
pub fn work(job: &MeasureJob) -> io::Result<MeasureReport> {
    let area = variable("LARDER_AREA")?;
    let _ = rustix::process::nice(NICE);
    let mut walk = SpaceWalk::default();
    let mut report = Vec::new();
    if job.repository {
        report.push((SpaceKind::Git, count(&mut walk, &variable("LARDER_REPO")?)));
    }
    for (kind, path) in &job.directories {
        report.push((*kind, count(&mut walk, &area.join(path))));
    }
    Ok(report)
}

fn count(walk: &mut SpaceWalk, path: &Path) -> Measured {
    walk.count(path, &mut |_| false).unwrap_or(Measured { uncounted: 1, ..Measured::default() })
}

fn variable(name: &str) -> io::Result<PathBuf> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| io::Error::other(format!("{name} is not set")))
}
