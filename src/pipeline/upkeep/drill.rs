//! Drills: rehearsals of a restore. A drill writes a restore point into a scratch directory, compares each restored file with the restore
//! point, loads each dump into a scratch database, and starts the live release on both (`rehearsal.rs`). Then everything is removed.
//!
//! A drill uses no live data: the copy is in `data-copy/`, and the note beside it makes the next server remove the copy and the scratch databases
//! of a killed drill.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::state::{DrillRecord, DrilledDatabase};
use crate::{
    backup::{
        self, BackupError, BackupFailure, DatabaseAt, DatabaseJob, DatabaseUrl, DumpInfo, FailureKind, Filled, PointInfo,
        RestoreJob, is_separate,
    },
    model::{Environment, sanitise_line},
    pipeline::{
        core::Pipeline,
        error::PipelineError,
        fault,
        observe::BackupNews,
        points::{PointsError, owner},
        queue::Queue,
        util::chain,
    },
};

/// The time limit of a whole drill, without the wait for permits and without the removal of the copy.
const MAX_DRILL: Duration = Duration::from_secs(6 * 3600);

/// The pause between two looks at the environment's queue.
const POLL: Duration = Duration::from_millis(200);

/// The number of attempts to remove the copy. A killed worker may use the copy for a moment.
const REMOVALS: u32 = 20;

/// A database of the copy: the live database, and the scratch database with its dump if there is one.
pub(super) type ScratchPair = (DatabaseJob, Option<DatabaseUrl>);

/// The reason why a drill has no good result.
#[derive(Debug)]
pub(super) enum DrillEnd {
    /// The restore, or the release on the restored data, failed.
    Failed(String),
    /// The drill could not be carried out, which says nothing about the restore point.
    Stopped(PointsError),
}

impl From<PointsError> for DrillEnd {
    fn from(error: PointsError) -> DrillEnd {
        DrillEnd::Stopped(error)
    }
}

impl Pipeline {
    /// Carries out a drill, and records the result. An unknown restore point, a lack of disk space, or a deployment that arrives is an error
    /// and not a result. The drill continues if the caller drops the returned future.
    pub async fn drill(&self, environment: &Environment, point: String) -> Result<DrillRecord, PointsError> {
        let (this, environment) = (self.clone(), environment.clone());
        let drill = async move {
            let _permit = this.0.upkeep.permit().await;
            this.drill_with_permit(&environment, point).await
        };
        self.0.tasks.spawn(drill).await.map_err(|_| PipelineError::Stopping)?
    }

    /// Starts a drill of a restore point if the last drill is older than `backup.drill`. The caller holds the permit for scheduled work.
    pub(super) async fn drill_if_due(&self, environment: &Environment, point: &str) {
        let Some(age) = self.services().config.backup.drill else { return };
        let last = self.backup_record(environment).ok().and_then(|record| record.drill).map(|drill| drill.begun);
        if last.is_some_and(|last| Timestamp::now().duration_since(last).unsigned_abs() < age.get()) {
            return;
        }
        match self.drill_with_permit(environment, point.to_owned()).await {
            Ok(_) => {}
            // The next run repeats the drill.
            Err(PointsError::NotNow(why)) => tracing::info!(environment = environment.title(), %why, "no drill"),
            Err(error) => {
                let news = BackupNews::DrillFailed {
                    point: point.to_owned(),
                    why: format!("cannot start the drill: {}", chain(&error)),
                };
                self.announce_backup(environment, format!("backup.{point}.drill"), news);
            }
        }
    }

    async fn drill_with_permit(&self, environment: &Environment, point: String) -> Result<DrillRecord, PointsError> {
        let point = self.point(environment, point).await?;
        let (queue, _locked) = self.lock_points(environment)?;
        let busy = |doing: &str| PipelineError::Busy { environment: environment.title(), doing: doing.to_owned() };
        let copy = queue.copy.clone().try_lock_owned().map_err(|_| busy("used by another command on a copy of its data"))?;
        if is_in_use(&queue) {
            return Err(busy("being deployed, restarted or restored").into());
        }
        let space = self.measure(environment, Some(point.id.clone())).await?;
        space.without_capture().check("restore for a drill", 0).map_err(BackupError::from)?;
        let (begun, clock) = (Timestamp::now(), Instant::now());
        let mut record = DrillRecord::begin(point.id.clone(), begun);
        let used = async {
            while !is_in_use(&queue) {
                tokio::time::sleep(POLL).await;
            }
        };
        let mut scratch = Vec::new();
        let ended = tokio::select! {
            ended = self.drill_steps(&queue, environment, &point, &mut record, &mut scratch) => ended,
            () = used => Err(DrillEnd::Stopped(busy("being deployed, restarted or restored: this interrupted the drill").into())),
            () = self.0.stopping.cancelled() => Err(DrillEnd::Stopped(PipelineError::Stopping.into())),
            () = tokio::time::sleep(MAX_DRILL) => {
                Err(DrillEnd::Failed(format!("the drill took longer than {} hours", MAX_DRILL.as_secs() / 3600)))
            }
        };
        fault::in_drill("stopped");
        if point.label.as_ref().is_some_and(|label| label.custom) {
            self.clear_custom(environment).await;
        }
        self.remove_copy(&queue, environment, REMOVALS).await;
        drop(copy);
        fault::in_drill("removed");
        record.failure = match ended {
            Ok(()) => None,
            Err(DrillEnd::Failed(why)) => Some(sanitise_line(&why)),
            Err(DrillEnd::Stopped(error)) => return Err(error),
        };
        record.millis = millis(clock);
        self.change_record(environment, |known| known.drill = Some(record.clone()));
        let point = record.point.clone();
        let news = match &record.failure {
            None => BackupNews::Drilled { point, millis: record.millis },
            Some(why) => BackupNews::DrillFailed { point, why: why.clone() },
        };
        self.announce_backup(environment, format!("backup.{}.drill.{begun}", environment.id.0), news);
        Ok(record)
    }

    /// Restores files and databases, and checks the release on them.
    async fn drill_steps(
        &self,
        queue: &Queue,
        environment: &Environment,
        point: &PointInfo,
        record: &mut DrillRecord,
        scratch: &mut Vec<ScratchPair>,
    ) -> Result<(), DrillEnd> {
        let note = self.services().root.environment(&environment.project, &environment.name).data_copy_note();
        // From here on, the next server removes the copy and the scratch databases of a killed drill.
        let noted = crate::host::files::write_atomic(&note, DRILL_NOTE, 0o600);
        noted.map_err(|error| PointsError::refused(format!("cannot prepare a drill: {}", chain(&error))))?;
        let databases = self.databases(queue, environment)?;
        for database in &databases {
            let dropped = backup::restore(&self.backup(environment), &RestoreJob::DropScratch(database.clone())).await;
            if let Err(error) = dropped {
                tracing::debug!(environment = environment.title(), error = chain(&error), "no scratch database was dropped");
            }
        }
        fault::in_drill("begun");
        let job = RestoreJob::Drill { point: point.id.clone(), owner: owner(environment) };
        let filled = backup::restore(&self.backup(environment), &job).await.map_err(|error| result(error, String::new()))?;
        (record.files, record.bytes) = (filled.files, filled.bytes);
        fault::in_drill("filled");
        for dump in point.label.iter().flat_map(|label| &label.databases) {
            if !is_separate(dump) {
                record.databases.push(DrilledDatabase {
                    name: dump.name.clone(),
                    engine: dump.engine,
                    bytes: dump.bytes,
                    millis: 0,
                });
                continue;
            }
            let live = databases.iter().find(|job| (&job.name, job.engine) == (&dump.name, dump.engine));
            let Some(live) = live else {
                let (name, engine) = (&dump.name, dump.engine.title());
                record.unproven.push(format!(
                    "the dump of {name} was read but not loaded: the live release has no {engine} database {name}"
                ));
                continue;
            };
            let loaded = self.drill_database(environment, &point.id, live, dump, record).await?;
            scratch.push((live.clone(), loaded));
        }
        for live in databases.iter().filter(|live| matches!(live.at, DatabaseAt::Url(_))) {
            if !scratch.iter().any(|(known, _)| known == live) {
                scratch.push((live.clone(), None));
            }
        }
        fault::in_drill("loaded");
        self.rehearse(queue, environment, point, scratch, record).await
    }

    /// Loads a dump into a scratch database, and returns the URL of this database. Returns `None` if no scratch database can be made.
    async fn drill_database(
        &self,
        environment: &Environment,
        point: &str,
        live: &DatabaseJob,
        dump: &DumpInfo,
        record: &mut DrillRecord,
    ) -> Result<Option<DatabaseUrl>, DrillEnd> {
        let (context, name) = (self.backup(environment), &live.name);
        self.create_scratch_as_administrator(environment, live);
        let created = match backup::restore(&context, &RestoreJob::CreateScratch(live.clone())).await {
            Ok(Filled { scratch: Some(url), .. }) => url,
            Ok(_) => return Err(PointsError::from(BackupError::Confused { role: "restore" }).into()),
            Err(BackupError::Failed(BackupFailure { kind: FailureKind::Refused, why, hint })) => {
                let hint = hint.map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
                record.unproven.push(sanitise_line(&format!("the dump of {name} was read but not loaded: {why}{hint}")));
                return Ok(None);
            }
            Err(error) => return Err(result(error, format!("database {name}: "))),
        };
        fault::in_drill("created");
        let (clock, owner) = (Instant::now(), owner(environment));
        let job = RestoreJob::LoadScratch { point: point.to_owned(), owner, database: live.clone(), scratch: created.clone() };
        let loaded =
            backup::restore(&context, &job).await.map_err(|error| result(error, format!("cannot load the dump of {name}: ")))?;
        record.unproven.extend(loaded.left_out);
        let (name, engine, bytes) = (dump.name.clone(), dump.engine, dump.bytes);
        record.databases.push(DrilledDatabase { name, engine, bytes, millis: millis(clock) });
        Ok(Some(created))
    }

    /// Creates the scratch database of a PostgreSQL database that `larder db create` created, whose role may not create databases. The worker
    /// reports the lack of a scratch database, so an error is only logged.
    fn create_scratch_as_administrator(&self, environment: &Environment, live: &DatabaseJob) {
        let (services, engine) = (self.services(), live.engine);
        let Some(file) = services.config.databases.postgres.as_ref().filter(|_| engine == crate::model::DatabaseEngine::Postgres)
        else {
            return;
        };
        let stored = self.stored_database_url(environment).ok().flatten();
        let Some(url) = stored.filter(|url| live.at == DatabaseAt::Url(url.clone())) else { return };
        let create = || backup::DatabaseServer::open(engine, file)?.create_scratch(&backup::DatabaseAccount::of_url(&url)?);
        if let Err(failure) = crate::pipeline::util::run_blocking(create) {
            tracing::warn!(environment = environment.title(), why = failure.why, "cannot create a scratch database");
        }
    }

    /// Drops the scratch databases of drills, and empties the copy of the data. The note stays if something is left, so that the next server
    /// or the next drill repeats the removal.
    pub(in crate::pipeline) async fn remove_copy(&self, queue: &Queue, environment: &Environment, attempts: u32) -> bool {
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let is_drill = std::fs::read(paths.data_copy_note()).is_ok_and(|note| note == DRILL_NOTE);
        let mut left = None;
        for attempt in 0..attempts.max(1) {
            if attempt > 0 {
                tokio::time::sleep(POLL).await;
            }
            let databases = if is_drill { self.databases(queue, environment).unwrap_or_default() } else { Vec::new() };
            let drops = databases.into_iter().map(RestoreJob::DropScratch).chain([RestoreJob::ClearCopy]);
            left = None;
            for job in drops {
                if let Err(error) = backup::restore(&self.backup(environment), &job).await {
                    left = Some(chain(&error));
                }
            }
            if left.is_none() {
                drop(std::fs::remove_file(paths.data_copy_note()));
                return true;
            }
        }
        let error = left.unwrap_or_default();
        tracing::warn!(
            environment = environment.title(),
            error,
            "cannot remove a copy of the data; the removal is repeated later"
        );
        false
    }
}

/// The content of the note beside the copy of a drill.
const DRILL_NOTE: &[u8] = b"drill\n";

impl DrillRecord {
    fn begin(point: String, begun: Timestamp) -> DrillRecord {
        DrillRecord {
            point,
            begun,
            millis: 0,
            files: 0,
            bytes: 0,
            failure: None,
            databases: Vec::new(),
            release: None,
            checks: Vec::new(),
            unproven: Vec::new(),
        }
    }
}

/// Returns true if a deployment, a restart or a restore uses the environment.
fn is_in_use(queue: &Queue) -> bool {
    let state = queue.state.lock();
    state.closed || state.running.is_some() || queue.work.try_lock().is_err()
}

fn millis(clock: Instant) -> u64 {
    u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Returns the end of a drill after the failure of a worker. A lack of disk space says nothing about the restore point.
fn result(error: BackupError, doing: String) -> DrillEnd {
    match error {
        BackupError::Failed(BackupFailure { kind: FailureKind::NoSpace | FailureKind::NotFound, .. }) => {
            DrillEnd::Stopped(error.into())
        }
        error => DrillEnd::Failed(format!("{doing}{}", chain(&error))),
    }
}
