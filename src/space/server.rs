//! The server side of the measurement. These functions start one worker for each user of an environment, and count the server's own files.

use std::{collections::BTreeMap, path::Path, time::Duration};

use super::{
    SpaceKind,
    walk::{Measured, SpaceWalk},
    worker::{MeasureJob, MeasureReport},
};
use crate::{
    host::{
        launch::{LaunchError, Launcher, Stdio},
        root::EnvironmentPaths,
    },
    model::{EnvId, Exit, Launch, LimitClass, MeasuredUser, ProjectId, Role, Slot, Supervision},
};

/// The maximum size of a worker's report, in bytes.
const MAX_REPORT: usize = 1 << 16;

/// The time limit of one worker.
const LIMIT: Duration = Duration::from_secs(1800);

/// A failed measurement.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    /// A worker could not be started, or its report could not be read.
    #[error("cannot measure the disk space of {title}")]
    Launch {
        /// The environment.
        title: String,
        /// The cause.
        #[source]
        source: LaunchError,
    },
    /// A worker exited without a report.
    #[error("cannot measure the disk space of {title}: the worker {exit}")]
    Died {
        /// The environment.
        title: String,
        /// The exit.
        exit: Exit,
    },
    /// A worker did not finish in time.
    #[error("cannot measure the disk space of {title}: the worker took more than {} seconds", LIMIT.as_secs())]
    Late {
        /// The environment.
        title: String,
    },
}

/// The environment to measure, and the means to start workers.
#[derive(Debug, Clone)]
pub struct SpaceContext<'a> {
    /// The launcher that starts the workers.
    pub launcher: &'a Launcher,
    /// The project.
    pub project: ProjectId,
    /// The environment.
    pub environment: EnvId,
    /// The name of the environment, for errors.
    pub title: String,
    /// The paths of the environment.
    pub paths: EnvironmentPaths,
    /// True to count the repository of the project with this environment.
    pub repository: bool,
}

/// The space that an environment uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnvironmentUsage {
    /// The space of each kind that has files.
    pub kinds: BTreeMap<SpaceKind, Measured>,
}

impl EnvironmentUsage {
    /// Returns the space of all kinds.
    pub fn total(&self) -> Measured {
        let mut total = Measured::default();
        self.kinds.values().for_each(|measured| total.add(*measured));
        total
    }

    fn add(&mut self, kind: SpaceKind, measured: Measured) {
        self.kinds.entry(kind).or_default().add(measured);
    }
}

/// Returns the directories of an environment whose files belong to a user other than the server's, relative to the environment.
fn directories(paths: &EnvironmentPaths) -> [(MeasuredUser, Vec<(SpaceKind, std::path::PathBuf)>); 4] {
    let relative =
        |kind, path: std::path::PathBuf| (kind, path.strip_prefix(paths.path()).map_or_else(|_| path.clone(), Path::to_owned));
    let slots = Slot::ALL.map(|slot| relative(SpaceKind::Slots, paths.slot(slot).join("upper")));
    let mut run = vec![
        relative(SpaceKind::Data, paths.data()),
        relative(SpaceKind::Points, paths.points()),
        relative(SpaceKind::Restored, paths.restored()),
        relative(SpaceKind::Restored, paths.restoring()),
        relative(SpaceKind::Restored, paths.archived_runs()),
        relative(SpaceKind::Restored, paths.data_copy()),
    ];
    run.extend(slots);
    [
        (MeasuredUser::Git, vec![relative(SpaceKind::Build, paths.source())]),
        (
            MeasuredUser::Build,
            vec![relative(SpaceKind::Build, paths.build().join("upper")), relative(SpaceKind::Cache, paths.cache())],
        ),
        (MeasuredUser::Unpack, vec![relative(SpaceKind::Trees, paths.deploy())]),
        (MeasuredUser::Run, run),
    ]
}

/// Measures the space that an environment uses. The workers run one after the other, with the lowest priority.
pub async fn measure(context: &SpaceContext<'_>) -> Result<EnvironmentUsage, SpaceError> {
    let mut usage = EnvironmentUsage::default();
    let others = directories(&context.paths);
    let left_out: Vec<_> = others.iter().flat_map(|(_, paths)| paths).map(|(_, path)| path.clone()).collect();
    let paths = context.paths.clone();
    let own = tokio::task::spawn_blocking(move || count_own(&paths, &left_out)).await.unwrap_or_default();
    own.into_iter().for_each(|(kind, measured)| usage.add(kind, measured));
    for (user, directories) in others {
        let job = MeasureJob { directories, repository: context.repository && user == MeasuredUser::Git };
        run(context, user, &job).await?.into_iter().for_each(|(kind, measured)| usage.add(kind, measured));
    }
    Ok(usage)
}

/// Measures only the scratch layers of an environment, which an application fills by writing to `/app`.
pub async fn measure_scratch(context: &SpaceContext<'_>) -> Result<u64, SpaceError> {
    let [.., (_, mut paths)] = directories(&context.paths);
    // In the slot `in-place`, the directory is the whole tree of the release.
    let whole = context.paths.slot(Slot::InPlace);
    paths.retain(|(kind, path)| *kind == SpaceKind::Slots && !context.paths.path().join(path).starts_with(&whole));
    let report = run(context, MeasuredUser::Run, &MeasureJob { directories: paths, repository: false }).await?;
    Ok(report.iter().map(|(_, measured)| measured.bytes).sum())
}

/// Counts the files of the server.
fn count_own(paths: &EnvironmentPaths, left_out: &[std::path::PathBuf]) -> MeasureReport {
    let kinds = [
        (SpaceKind::Releases, paths.releases()),
        (SpaceKind::Logs, paths.log()),
        (SpaceKind::Logs, paths.deployments()),
        (SpaceKind::Drift, paths.archives().join("patches")),
    ];
    let mut walk = SpaceWalk::default();
    let mut count = |path: &Path, leave_out: &mut dyn FnMut(&Path) -> bool| {
        walk.count(path, leave_out).unwrap_or(Measured { uncounted: 1, ..Measured::default() })
    };
    let mut report: MeasureReport = kinds.iter().map(|(kind, path)| (*kind, count(path, &mut |_| false))).collect();
    let mut elsewhere = |path: &Path| {
        left_out.iter().any(|left| left == path) || kinds.iter().any(|(_, own)| own.strip_prefix(paths.path()) == Ok(path))
    };
    report.push((SpaceKind::Records, count(paths.path(), &mut elsewhere)));
    report
}

async fn run(context: &SpaceContext<'_>, user: MeasuredUser, job: &MeasureJob) -> Result<MeasureReport, SpaceError> {
    let failed = |source| SpaceError::Launch { title: context.title.clone(), source };
    let launch = Launch {
        role: Role::Measure(user),
        project: context.project,
        environment: Some(context.environment),
        release: None,
        slot: None,
        limits: LimitClass::Service,
        supervision: Supervision::Once,
    };
    let mut child = context.launcher.launch(launch, job, Stdio::default()).await.map_err(failed)?;
    let ended = async {
        match child.report(MAX_REPORT).await.map_err(failed)? {
            Some(report) => Ok(report),
            None => Err(SpaceError::Died { title: context.title.clone(), exit: child.wait().await.map_err(failed)? }),
        }
    };
    // After a timeout, the dropped handle kills the worker.
    tokio::time::timeout(LIMIT, ended).await.map_err(|_| SpaceError::Late { title: context.title.clone() })?
}
