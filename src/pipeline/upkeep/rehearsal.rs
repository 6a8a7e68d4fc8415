//! The start of the live release on the copy of a drill: the project's script `.larder/restore`, one web process with a port of its own and
//! without a route, its health check, the smoke pages of the recipe, and the project's script `.larder/drill`.

use std::{collections::BTreeMap, time::Duration};

use tokio::task::JoinHandle;

use super::{
    drill::{DrillEnd, ScratchPair},
    state::DrillRecord,
};
use crate::{
    backup::{self, DatabaseAt, PointInfo, RestoreJob},
    config::{HealthCheck, Settings},
    model::{Environment, Exit, Live, Phase},
    pipeline::{
        core::Pipeline,
        data_copy::names_a_database,
        failure::Failure,
        fault,
        hooks::{DIRECTORY, RESTORE, last_lines, piped},
        permits::Resource,
        phases::{
            deploy::health::{HealthAnswer, HealthTarget},
            post_deploy::smoke_pages,
        },
        points::{PointsError, owner},
        queue::Queue,
        util::{chain, seconds},
    },
    runtime::{Boot, ProbedWeb, RunJob},
};

/// The name of the project's own check of a drill, below `.larder/`.
const SCRIPT: &str = "drill";

/// The time limit for the end of a process that was killed.
const KILLED: Duration = Duration::from_secs(10);

/// A web process on the copy, with the last lines of its output.
struct Web {
    process: ProbedWeb,
    lines: JoinHandle<std::collections::VecDeque<String>>,
}

impl Pipeline {
    /// Starts and checks the live release on the copy, and stops it.
    pub(super) async fn rehearse(
        &self,
        queue: &Queue,
        environment: &Environment,
        point: &PointInfo,
        scratch: &[ScratchPair],
        record: &mut DrillRecord,
    ) -> Result<(), DrillEnd> {
        let services = self.services();
        let Some(live) = queue.state.lock().live.clone() else {
            record.unproven.push(String::from("no release was started: no release is live"));
            return Ok(());
        };
        let refused = |why: String| PointsError::refused(format!("cannot start the release on the copy: {why}"));
        let able = services.launcher.capabilities().await.map_err(|error| refused(chain(&error)))?;
        if let Err(why) = able.namespaces {
            // The links at `/app` would lead to the live data.
            record.unproven.push(format!("no release was started: a release on a copy needs namespaces: {why}"));
            return Ok(());
        }
        if let Some((database, _)) = scratch.iter().find(|(_, new)| new.is_none()) {
            // Without its database, the release would fail, although the restore point is possibly good.
            record.unproven.push(format!("no release was started: its database {} has no scratch database", database.name));
            return Ok(());
        }
        let facts = self.facts(environment, live.release).map_err(|error| refused(chain(&error)))?;
        let settings = facts.settings.clone().unwrap_or_default();
        let web = facts.processes.iter().find(|process| process.kind.is_web());
        let configuration = self.configuration_of(environment, live.release).map_err(|error| refused(chain(&error)))?;
        // The configuration takes precedence over the variables of single processes. Values that are not text name no database.
        let mut of_web: BTreeMap<_, _> = web.map(|web| web.env.iter().cloned().collect()).unwrap_or_default();
        of_web.retain(|name, _| configuration.get(name).is_none());
        let (texts, configuration) = configuration.split_text();
        let mut all = facts.env.clone();
        all.extend(texts);
        let (mut env, mut removed) = variables(&all, scratch);
        let (of_web, also) = variables(&of_web, scratch);
        removed.extend(also);
        env.push((String::from("LARDER_RESTORE_POINT"), point.id.clone()));
        record.unproven.extend(removed.into_iter().map(|name| {
            format!("the release ran without the variable {name}, which leads to a database that the drill did not restore")
        }));
        if let Some(number) = point.label.as_ref().and_then(|label| label.number).filter(|number| *number != live.number) {
            record
                .unproven
                .push(format!("{number} was live when the restore point was taken; the drill started {}", live.number));
        }
        let _permit = services.permits.acquire_quietly(Resource::Boot).await;
        let boot = boot(self, environment, &live);
        let job = RunJob { env, configuration, ..RunJob::default() };
        if let Some(label) = point.label.as_ref().filter(|label| label.custom) {
            let obstacle = if label.release != Some(live.release) {
                Some("its release is not live")
            } else if !facts.scripts.iter().any(|name| name == RESTORE) {
                Some("the release has no such script")
            } else if !settings.drill_restore {
                // A script that does not distinguish a drill from a restore would replace the data of live systems.
                Some("the recipe does not set `drill_restore: true`")
            } else {
                None
            };
            match obstacle {
                Some(why) => {
                    let files = "the files of .larder/backup were compared, but .larder/restore was not run";
                    record.unproven.push(format!("{files}: {why}"));
                }
                None => self.restore_custom_on_copy(&boot, &settings, &job, point, record).await?,
            }
        }
        let mut started = None;
        match web {
            None => record.unproven.push(String::from("no web process was started: the release has none")),
            Some(web) => {
                let mut job = RunJob { command: web.command.clone(), ..job.clone() };
                job.env.extend(of_web);
                let (stdio, reader) = piped().map_err(|error| refused(error.to_string()))?;
                let process = services.runtime.probe_web(&boot, job, web.memory, stdio).await;
                let process = process.map_err(|error| refused(chain(&error)))?;
                record.release = Some(live.number);
                started = Some(Web { process, lines: tokio::spawn(last_lines(reader)) });
            }
        }
        fault::in_drill("started");
        let checked =
            self.checks(&boot, &settings, &job, facts.scripts.iter().any(|name| name == SCRIPT), &mut started, record).await;
        fault::in_drill("checked");
        if let Some(web) = started {
            let lines = end(web).await;
            return checked.map_err(|failure| {
                DrillEnd::Failed(format!("{} started on the restored data: {}{lines}", live.number, failure.why))
            });
        }
        checked.map_err(|failure| DrillEnd::Failed(failure.why))
    }

    /// Writes the files of `.larder/backup` into `custom/`, and runs `.larder/restore` on the copy. The drill empties `custom/` at its end.
    async fn restore_custom_on_copy(
        &self,
        boot: &Boot,
        settings: &Settings,
        job: &RunJob,
        point: &PointInfo,
        record: &mut DrillRecord,
    ) -> Result<(), DrillEnd> {
        let environment = &boot.environment;
        let custom = RestoreJob::Custom { point: point.id.clone(), owner: owner(environment) };
        let filled = backup::restore_again(&self.backup(environment), &custom).await;
        filled.map_err(|error| DrillEnd::Failed(format!("cannot write the files of .larder/backup: {}", chain(&error))))?;
        let mut env = job.env.clone();
        env.retain(|(name, _)| name != "LARDER_RESTORE_POINT");
        env.extend(
            [("LARDER_RESTORE_POINT", DIRECTORY), ("LARDER_DRILL", "1")].map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let job = RunJob { command: format!(".larder/{RESTORE}"), env, ..job.clone() };
        let ran = self.probe_script(boot, &job, RESTORE, settings.timeout(Phase::Deploy).get()).await;
        ran.map_err(|failure| DrillEnd::Failed(failure.why))?;
        record.checks.push(String::from("restore script"));
        fault::in_drill("custom");
        Ok(())
    }

    /// Runs a script of the project on the copy. The error shows the last lines of the script.
    async fn probe_script(&self, boot: &Boot, job: &RunJob, name: &str, limit: Duration) -> Result<(), Failure> {
        let (stdio, reader) = piped().map_err(|error| Failure::host(&error))?;
        let mut child = self.services().runtime.probe(boot, job, stdio).await.map_err(|error| Failure::host(&error))?;
        let lines = tokio::spawn(last_lines(reader));
        // After a timeout, the dropped handle kills the script.
        let late = |_| Failure::pusher(format!(".larder/{name} did not exit within {}", seconds(limit)));
        let exit = tokio::time::timeout(limit, child.wait()).await.map_err(late)?.map_err(|error| Failure::host(&error))?;
        if exit.success() {
            return Ok(());
        }
        let shown = joined(&lines.await.unwrap_or_default());
        Err(Failure::pusher(format!(".larder/{name} {exit}{shown}")))
    }

    async fn checks(
        &self,
        boot: &Boot,
        settings: &Settings,
        job: &RunJob,
        has_script: bool,
        started: &mut Option<Web>,
        record: &mut DrillRecord,
    ) -> Result<(), Failure> {
        let services = self.services();
        let environment = &boot.environment;
        let mut port = None;
        if let Some(web) = started {
            let address = web.process.address();
            port = Some(address.port());
            let name = String::from("web.1");
            let target = HealthTarget { name, address, services, settings, boot, job, on_copy: true };
            let (limit, mut last) = (settings.health_timeout().get(), HealthAnswer::default());
            tokio::select! {
                biased;
                exit = web.process.child.wait() => return Err(exited(exit.ok())),
                () = target.until_healthy(&mut last) => {}
                () = tokio::time::sleep(limit) => return Err(target.unhealthy(&last, limit)),
            }
            match settings.health.check {
                HealthCheck::None => record.unproven.push(String::from("the recipe has no health check")),
                _ => record.checks.push(String::from("health")),
            }
            let domain = services.config.domain.as_str();
            smoke_pages(settings, environment, domain, &*services.connector(environment), address).await?;
            if !settings.smoke.is_empty() {
                record.checks.push(String::from("smoke"));
            }
        }
        if !has_script {
            return Ok(());
        }
        let mut job = RunJob { command: format!(".larder/{SCRIPT}"), ..job.clone() };
        job.env.extend(port.map(|port| (String::from("PORT"), port.to_string())));
        self.probe_script(boot, &job, SCRIPT, settings.timeout(Phase::PostDeploy).get()).await?;
        record.checks.push(String::from("script"));
        Ok(())
    }
}

fn exited(exit: Option<Exit>) -> Failure {
    let how = exit.map_or_else(|| String::from("exited"), |exit| exit.to_string());
    Failure::pusher(format!("web.1 {how} before it was healthy"))
}

fn boot(pipeline: &Pipeline, environment: &Environment, live: &Live) -> Boot {
    let logs = pipeline.services().root.environment(&environment.project, &environment.name).log();
    Boot::for_tasks(environment.clone(), live.slot, live.release, logs)
}

/// Kills the web process, waits for its end, and returns the last lines of its output as the end of a reason.
async fn end(web: Web) -> String {
    let Web { mut process, lines } = web;
    let _ = process.child.kill().await;
    let _ = tokio::time::timeout(KILLED, process.child.wait()).await;
    let lines = tokio::time::timeout(KILLED, lines).await;
    joined(&lines.ok().and_then(Result::ok).unwrap_or_default())
}

/// Returns the last lines of an output as the end of a reason; empty without output.
fn joined(lines: &std::collections::VecDeque<String>) -> String {
    let shown: Vec<&str> = lines.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
    if shown.is_empty() { String::new() } else { format!("; last output: {}", shown.join("; ")) }
}

/// Returns the variables of a release on the copy, and the names of the variables that were removed. The URL of a live database becomes the
/// URL of its scratch database. Without a scratch database, the variable is removed, as is every other variable with the URL or the password
/// of a database.
fn variables(env: &BTreeMap<String, String>, scratch: &[ScratchPair]) -> (Vec<(String, String)>, Vec<String>) {
    let (mut kept, mut removed) = (Vec::new(), Vec::new());
    for (name, value) in env {
        let urls = scratch.iter().filter_map(|(job, new)| match &job.at {
            DatabaseAt::Url(live) => Some((live, new)),
            DatabaseAt::File(_) => None,
        });
        let same = urls.clone().find(|(live, _)| live.expose() == value);
        match same {
            Some((_, Some(new))) => kept.push((name.clone(), new.expose().to_owned())),
            Some((_, None)) => removed.push(name.clone()),
            None if names_a_database(value) || urls.clone().any(|(live, _)| live.reveals_password(value)) => {
                removed.push(name.clone())
            }
            None => kept.push((name.clone(), value.clone())),
        }
    }
    (kept, removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backup::{DatabaseJob, DatabaseUrl},
        model::DatabaseEngine,
    };

    #[test]
    fn release_on_the_copy_gets_no_url_and_no_password_of_a_live_database() {
        let job = |name: &str, url: &str| DatabaseJob {
            name: name.parse().unwrap(),
            engine: DatabaseEngine::Postgres,
            at: DatabaseAt::Url(DatabaseUrl::new(url)),
            is_declared: true,
        };
        let (main, other) = ("postgres://shop:p%40ssword@h/shop", "redis://:another-one@h/0");
        let scratch = [(job("main", main), Some(DatabaseUrl::new("postgres://scratch"))), (job("other", other), None)];
        let env = [
            ("DATABASE_URL", main),
            ("REDIS_URL", other),
            ("REPORTS", "mysql://u:p@h/reports"),
            ("PGPASSWORD", "p@ssword"),
            ("DSN", "host=h password=p%40ssword"),
            ("LANGUAGE", "en"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let (kept, removed) = variables(&env, &scratch);
        let kept: Vec<_> = kept.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(kept, [("DATABASE_URL", "postgres://scratch"), ("LANGUAGE", "en")]);
        assert_eq!(removed, ["DSN", "PGPASSWORD", "REDIS_URL", "REPORTS"]);
    }
}
