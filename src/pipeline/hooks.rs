//! The project's scripts `.larder/backup` and `.larder/restore`, for data that larder does not know, such as a search index.
//!
//! `.larder/backup` of the live release runs before each capture and writes files into `$LARDER_RESTORE_POINT`. The capture stores these files
//! as `custom/`. `.larder/restore` runs after a restore has replaced files and databases, while all processes are stopped, and reads these
//! files. Both scripts run in the sandbox of a slot, as the run user of the environment.

use std::{collections::VecDeque, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::unix::pipe,
};

use super::{
    core::Pipeline,
    facts::Facts,
    points::{PointsError, owner},
    util::chain,
};
use crate::{
    backup::{self, PointInfo, RestoreJob},
    host::launch::Stdio,
    model::{ConfigVariables, Environment, Live, Phase, ReleaseId, Slot, sanitise_line},
    runtime::{Boot, RunJob},
};

/// The name of the script that writes files for a restore point.
const BACKUP: &str = "backup";

/// The name of the script that reads the files of a restore point.
pub(super) const RESTORE: &str = "restore";

/// The directory `custom/` in the sandbox.
pub(super) const DIRECTORY: &str = "/custom";

/// The number of last lines of a failed script that the error shows.
const SHOWN: usize = 10;

/// The maximum length of a line of a script, in bytes. A longer line is split.
const MAX_LINE: u64 = 1000;

/// A script, and the release and the slot in which the script runs.
pub(super) struct Hook {
    release: ReleaseId,
    slot: Slot,
    facts: Facts,
    configuration: ConfigVariables,
}

impl Pipeline {
    /// Runs `.larder/backup` of the live release. Returns false if the release has no such script.
    pub(super) async fn back_up_custom(&self, environment: &Environment, live: &Live) -> Result<bool, PointsError> {
        let Some(hook) = self.hook(environment, live.release, live.slot, BACKUP)? else { return Ok(false) };
        backup::restore(&self.backup(environment), &RestoreJob::ClearCustom).await?;
        let ran = Box::pin(self.run_hook(environment, &hook, BACKUP)).await;
        if ran.is_err() {
            self.clear_custom(environment).await;
        }
        ran.map(|()| true)
    }

    /// Empties `custom/`. An error is only logged, because the next script gets an empty directory in any case.
    pub(super) async fn clear_custom(&self, environment: &Environment) {
        if let Err(error) = backup::restore(&self.backup(environment), &RestoreJob::ClearCustom).await {
            tracing::warn!(environment = environment.title(), error = chain(&error), "cannot delete the files of .larder/backup");
        }
    }

    /// Returns the script that restores the files of `.larder/backup` in a restore point: that of the release of the restore point. Returns
    /// `None` if the restore point has no such files, or the release no such script. The script of a release that is not live runs in the
    /// idle slot.
    pub(super) fn restore_hook(
        &self,
        environment: &Environment,
        point: &PointInfo,
        live: Option<&Live>,
    ) -> Result<Option<Hook>, PointsError> {
        let Some(label) = point.label.as_ref().filter(|label| label.custom) else { return Ok(None) };
        let (Some(release), Some(live)) = (label.release, live) else { return Ok(None) };
        let slot = match live.slot {
            slot if live.release == release => slot,
            Slot::Blue => Slot::Green,
            Slot::Green | Slot::InPlace => Slot::Blue,
        };
        let hook = self.hook(environment, release, slot, RESTORE)?;
        let paths = self.services().root.environment(&environment.project, &environment.name);
        if hook.is_some() && !paths.tree(release).is_dir() {
            let number = label.number.map(|number| format!("{number}, ")).unwrap_or_default();
            return Err(PointsError::refused_with(
                format!(
                    "cannot restore {}: its script .larder/{RESTORE} belongs to the release {number}which is not installed",
                    point.id
                ),
                "restore beside the live data with `--into NAME`, or deploy the release first",
            ));
        }
        Ok(hook)
    }

    /// Returns the script `name` of a release, or `None` if the release has no such script.
    pub(super) fn hook(
        &self,
        environment: &Environment,
        release: ReleaseId,
        slot: Slot,
        name: &str,
    ) -> Result<Option<Hook>, PointsError> {
        let facts = self.facts(environment, release);
        let facts = facts.map_err(|error| PointsError::refused(format!("cannot find .larder/{name}: {}", chain(&error))))?;
        if !facts.scripts.iter().any(|script| script == name) {
            return Ok(None);
        }
        let configuration = self.configuration_of(environment, release);
        let configuration =
            configuration.map_err(|error| PointsError::refused(format!("cannot start .larder/{name}: {}", chain(&error))))?;
        Ok(Some(Hook { release, slot, facts, configuration }))
    }

    /// Writes the files of `.larder/backup` in a restore point into `custom/`, and runs `.larder/restore`. The call may be repeated.
    pub(super) async fn restore_custom(
        &self,
        environment: &Environment,
        point: &str,
        hook: Option<&Hook>,
    ) -> Result<(), PointsError> {
        let Some(hook) = hook else { return Ok(()) };
        let job = RestoreJob::Custom { point: point.to_owned(), owner: owner(environment) };
        Box::pin(backup::restore_again(&self.backup(environment), &job)).await?;
        // The future of a restore is large, and the undo of a deployment polls it with a deep stack.
        let ran = Box::pin(self.run_hook(environment, hook, RESTORE)).await;
        self.clear_custom(environment).await;
        ran
    }

    /// Restores the files of `.larder/backup` in a restore point with the script of a release in its own slot.
    pub(super) async fn restore_custom_with(
        &self,
        environment: &Environment,
        point: &str,
        (release, slot): (ReleaseId, Slot),
    ) -> Result<(), PointsError> {
        let described = self.point(environment, point.to_owned()).await?;
        if !described.label.is_some_and(|label| label.custom) {
            return Ok(());
        }
        let hook = self.hook(environment, release, slot, RESTORE)?;
        self.restore_custom(environment, point, hook.as_ref()).await
    }

    async fn run_hook(&self, environment: &Environment, hook: &Hook, name: &str) -> Result<(), PointsError> {
        let services = self.services();
        let paths = services.root.environment(&environment.project, &environment.name);
        let settings = hook.facts.settings.clone().unwrap_or_default();
        let failed = |why: String| PointsError::refused(format!(".larder/{name} of {}: {why}", environment.title()));
        let able = services.launcher.capabilities().await.map_err(|error| failed(chain(&error)))?;
        let directory = match able.namespaces {
            Ok(()) => DIRECTORY.to_owned(),
            Err(_) => paths.custom().display().to_string(),
        };
        let mut env: Vec<_> = hook.facts.env.clone().into_iter().collect();
        env.push((String::from("LARDER_RESTORE_POINT"), directory));
        let configuration = hook.configuration.clone();
        let job = RunJob { command: format!(".larder/{name}"), env, configuration, ..RunJob::default() };
        let boot = Boot::for_tasks(environment.clone(), hook.slot, hook.release, paths.log());
        let (stdio, reader) = piped().map_err(|error| failed(error.to_string()))?;
        let started = services.runtime.task(&boot, &job, stdio).await;
        let mut child = started.map_err(|error| failed(chain(&error)))?;
        let reading = tokio::spawn(last_lines(reader));
        let limit: Duration = settings.timeout(Phase::Deploy).get();
        // After a timeout, the dropped handle kills the script.
        let late = |_| failed(format!("the script took longer than {} seconds", limit.as_secs()));
        let exit = tokio::time::timeout(limit, child.wait()).await.map_err(late)?;
        let exit = exit.map_err(|error| failed(chain(&error)))?;
        if exit.success() {
            return Ok(());
        }
        let lines = reading.await.unwrap_or_default();
        let shown = lines.into_iter().collect::<Vec<_>>().join("; ");
        Err(failed(if shown.is_empty() { exit.to_string() } else { format!("{exit}: {shown}") }))
    }
}

/// Returns the descriptors of a process whose output and errors arrive in one pipe, and the read end of this pipe.
pub(super) fn piped() -> std::io::Result<(Stdio, pipe::Receiver)> {
    let (writer, reader) = pipe::pipe()?;
    let stdout = writer.into_blocking_fd()?;
    let stderr = stdout.try_clone()?;
    Ok((Stdio { stdout: Some(stdout), stderr: Some(stderr), ..Stdio::default() }, reader))
}

/// Reads the output of a script to its end, and returns the last lines.
pub(super) async fn last_lines(reader: pipe::Receiver) -> VecDeque<String> {
    let (mut reader, mut line, mut last) = (BufReader::new(reader), Vec::new(), VecDeque::new());
    loop {
        line.clear();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return last,
            Ok(_) => {
                if last.len() >= SHOWN {
                    last.pop_front();
                }
                last.push_back(sanitise_line(String::from_utf8_lossy(&line).trim_end()));
            }
        }
    }
}
