//! The effect of saved files: the build, and the restart of the processes. The caller holds the lock of deployments and restarts.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    build,
    restart::{self, Started},
    session::{Session, SessionEnd},
};
use crate::{
    model::ProcessType,
    pipeline::{context::Deployment, facts::BuildInputs, failure::Failure},
    watch::{SavedFiles, SavedPaths},
};

/// The time between two looks for a push while the processes start.
const LOOK: Duration = Duration::from_millis(50);

/// The end of a wait for the processes.
enum Waited {
    /// The processes run.
    Healthy,
    /// A process does not run; the reason.
    Broken(String),
    /// A further file was saved, so that the processes start once more.
    Saved,
    /// A deployment waits, which starts the processes again.
    Deploying,
}

impl Session<'_> {
    /// Lets the waiting files take effect.
    pub(super) async fn act(&mut self) -> Result<(), SessionEnd> {
        let saved = std::mem::take(&mut self.waiting);
        let environment = self.queue.environment();
        if let Some(recipe) = &saved.recipe {
            let target = environment.target();
            let how = format!("`larder edits {target} commit --message TEXT`, or a push");
            self.pipeline.tell(&environment, &format!("{recipe} was saved; it takes effect with {how}"));
        }
        let is_content = saved.build || !saved.restart.is_empty();
        let must_build = saved.build || (self.is_stale && is_content);
        if !must_build && saved.restart.is_empty() {
            return Ok(());
        }
        let deployment = match self.pipeline.live_deployment_of(self.queue) {
            Ok(deployment) => deployment,
            Err(failure) => {
                self.problem(&saved, "cannot restart", &failure);
                return Ok(());
            }
        };
        let mut kinds: BTreeSet<ProcessType> = saved.restart.iter().cloned().collect();
        if must_build {
            if !self.build(&deployment, &saved).await? {
                return Ok(());
            }
            let all = self.job.processes.iter().filter(|process| process.watch.as_ref().is_none_or(|list| !list.is_empty()));
            kinds.extend(all.map(|process| process.kind.clone()));
        }
        self.restart(&deployment, saved, &kinds).await
    }

    /// Runs the build. Returns false if the processes must not restart.
    async fn build(&mut self, deployment: &Deployment, saved: &SavedFiles) -> Result<bool, SessionEnd> {
        self.is_stale = true;
        let environment = self.queue.environment();
        let began = Instant::now();
        let mut during = SavedPaths::default();
        let built = {
            let cancel = deployment.memory.cancelled.clone();
            let mut building = std::pin::pin!(build::run(self.pipeline, deployment));
            loop {
                tokio::select! {
                    built = &mut building => break built,
                    event = self.watch.next() => match event {
                        Some(crate::watch::WatchEvent::Saved(saved)) => during.merge(saved.saved),
                        other => {
                            cancel.cancel();
                            self.receive(other)?;
                        }
                    },
                    () = tokio::time::sleep(LOOK) => if self.queue.state.lock().running.is_some() {
                        cancel.cancel();
                    },
                }
            }
        };
        if self.is_deploying() {
            // The deployment builds itself. If it fails, the files count again.
            self.put_aside(saved.saved.clone());
            self.put_aside(during);
            return Ok(false);
        }
        during.merge(self.flush().await?);
        let meanwhile = self.saved_during_build(during).await;
        let built = match built {
            Ok(built) => built,
            Err(failure) => {
                self.problem(saved, "the build failed, and the processes keep running", &failure);
                self.report_again(meanwhile).await;
                return Ok(false);
            }
        };
        self.is_stale = false;
        self.inputs = Some(BuildInputs::from(built.inputs));
        self.replace_job().await;
        self.report_again(meanwhile).await;
        let took = began.elapsed().as_secs_f64();
        self.pipeline.tell(&environment, &format!("{}; the build took {took:.1} s", was_saved(&saved.saved)));
        Ok(true)
    }

    /// Returns the files that a person saved during a build. Git does not track most results of a build. A tracked file that two builds in a row
    /// changed is a result, too.
    async fn saved_during_build(&mut self, during: SavedPaths) -> SavedPaths {
        let changed = self.changed_by_person(during, SavedPaths::default()).await;
        let new: BTreeSet<_> = changed.paths.iter().filter(|path| !self.outputs.contains(*path)).cloned().collect();
        let (again, new): (BTreeSet<_>, BTreeSet<_>) = new.into_iter().partition(|path| self.rebuilt_for.contains(path));
        for path in &again {
            let text = format!("the build changes {path}, which git tracks; this change starts no further build");
            self.pipeline.tell(&self.queue.environment(), &text);
        }
        self.outputs.extend(again);
        self.rebuilt_for = new.clone();
        SavedPaths { paths: new.into_iter().collect(), more: changed.more, are_lost: changed.are_lost }
    }

    /// Restarts the processes of some types, and waits until they run.
    async fn restart(
        &mut self,
        deployment: &Deployment,
        saved: SavedFiles,
        kinds: &BTreeSet<ProcessType>,
    ) -> Result<(), SessionEnd> {
        let environment = self.queue.environment();
        self.restarts.push_back(Instant::now());
        if self.hold.is_none() && kinds.iter().any(ProcessType::is_web) {
            self.hold = Some(restart::hold(deployment).await);
        }
        let started = match restart::start(deployment, kinds).await {
            Ok(started) => started,
            Err(failure) => {
                restart::route_failed(deployment, &failure);
                self.hold = None;
                self.problem(&saved, "the processes did not start", &failure);
                return Ok(());
            }
        };
        let waited = self.wait(deployment, &started, kinds).await?;
        // Requests reach processes that are not healthy, too: they may become healthy later, and until then visitors get an error page.
        restart::route(deployment);
        let names = started.names();
        let what = was_saved(&saved.saved);
        match waited {
            Waited::Saved => {
                // The requests wait until the processes run that know the last saved file.
                let at = saved.at;
                self.add(saved);
                self.waiting.at = at;
                return Ok(());
            }
            Waited::Deploying => self.put_aside(saved.saved),
            Waited::Healthy if names.is_empty() => {}
            Waited::Healthy => {
                let took = Timestamp::now().as_millisecond().saturating_sub(saved.at).max(0);
                let seconds = took as f64 / 1000.0;
                self.pipeline.tell(&environment, &format!("{what}; {names} restarted after {seconds:.2} s"));
            }
            Waited::Broken(why) => {
                self.pipeline.tell(&environment, &format!("{what}; {why}; save a file to try again"));
            }
        }
        self.hold = None;
        Ok(())
    }

    async fn wait(
        &mut self,
        deployment: &Deployment,
        started: &Started,
        kinds: &BTreeSet<ProcessType>,
    ) -> Result<Waited, SessionEnd> {
        let mut healthy = std::pin::pin!(restart::healthy(deployment, started));
        loop {
            tokio::select! {
                biased;
                ended = &mut healthy => return Ok(match ended {
                    Ok(()) => Waited::Healthy,
                    Err(failure) => Waited::Broken(deployment.transcript.redacted(&failure.why)),
                }),
                event = self.watch.next() => {
                    self.receive(event)?;
                    if self.waiting.build || self.waiting.restart.iter().any(|kind| kinds.contains(kind)) {
                        return Ok(Waited::Saved);
                    }
                }
                () = tokio::time::sleep(LOOK) => if self.is_deploying() {
                    return Ok(Waited::Deploying);
                },
            }
        }
    }

    /// Shows why saved files have no effect.
    fn problem(&self, saved: &SavedFiles, what: &str, failure: &Failure) {
        let environment = self.queue.environment();
        self.pipeline.tell(&environment, &format!("{}; {what}: {}", was_saved(&saved.saved), failure.why));
        for hint in &failure.hints {
            self.pipeline.tell(&environment, &format!("hint: {hint}"));
        }
    }
}

/// Returns the clause that names the saved files.
fn was_saved(saved: &SavedPaths) -> String {
    let count = saved.paths.len().saturating_add(saved.more);
    match (saved.paths.first(), count) {
        (None, _) => String::from("files were saved"),
        (Some(first), 1) => format!("{first} was saved"),
        (Some(first), 2) => format!("{first} and 1 more file were saved"),
        (Some(first), count) => format!("{first} and {} more files were saved", count.saturating_sub(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_files_are_named_and_counted() {
        let saved = |paths: &[&str], more| {
            let paths = paths.iter().map(|path| (*path).to_owned()).collect();
            was_saved(&SavedPaths { paths, more, are_lost: false })
        };
        assert_eq!(saved(&["app.py"], 0), "app.py was saved");
        assert_eq!(saved(&["app.py", "b.py"], 0), "app.py and 1 more file were saved");
        assert_eq!(saved(&["app.py", "b.py"], 9), "app.py and 10 more files were saved");
        assert_eq!(saved(&[], 0), "files were saved");
    }
}
