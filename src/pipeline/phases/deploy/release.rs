//! The project's `release:` command, before anything of the new release serves.

use super::processes;
use crate::{
    model::Phase,
    pipeline::{
        context::Deployment,
        step::{Failure, Step, Work},
    },
    runtime::RunJob,
};

/// Runs it once, in the slot; if it fails, the release never serves.
pub struct Release;

impl Step for Release {
    fn name(&self) -> &'static str {
        "deploy.release"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "run the release command, if there is one"
    }

    fn lasts(&self, deployment: &Deployment) -> bool {
        command(deployment).is_some()
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let Some(command) = command(deployment) else { return Ok(()) };
            run(deployment, "the release command", command).await
        })
    }
}

/// Runs a command of the release in its slot, its output in the transcript.
pub async fn run(deployment: &Deployment, what: &str, command: String) -> Result<(), Failure> {
    deployment.transcript.title(&format!("Running {what}"));
    let job = RunJob { command, ..processes::job(deployment) };
    let (exit, _) = processes::task(deployment, &job).await?;
    if exit.success() { Ok(()) } else { Err(Failure::pusher(format!("{what} {exit}"))) }
}

/// The recipe's or the Procfile's, else the buildpack's.
fn command(deployment: &Deployment) -> Option<String> {
    let given = || {
        let mut defaults = deployment.facts.buildpack_processes.iter();
        defaults.find(|(process, _)| process.is_release()).map(|(_, command)| command.clone())
    };
    deployment.settings().release.map(|command| command.to_string()).or_else(given)
}
