//! The step that runs the project's own script of a phase: `.larder/<phase>`, if it is executable.

use serde_json::{Map, Value};

use super::deploy::processes;
use crate::{
    buildpack::{self, BuildJob, BuildStep},
    model::Phase,
    pipeline::{
        context::Deployment,
        step::{self, Acquired, Failure, Resource, Step, Work},
    },
    runtime::RunJob,
};

/// The step that runs the script of one phase. Before the release is installed, the script runs in the build's sandbox, and
/// afterwards in the release's slot.
pub struct Script(pub Phase);

impl Script {
    fn is_there(&self, deployment: &Deployment) -> bool {
        deployment.facts.scripts.iter().any(|script| script == self.0.as_str())
    }
}

impl Step for Script {
    fn name(&self) -> &'static str {
        match self.0 {
            Phase::Gather => "gather.script",
            Phase::PreInstall => "pre_install.script",
            Phase::Configure => "configure.script",
            Phase::Build => "build.script",
            Phase::PostBuild => "post_build.script",
            Phase::Bundle => "bundle.script",
            Phase::Deploy => "deploy.script",
            Phase::PostDeploy => "post_deploy.script",
            Phase::PostInstall => "post_install.script",
        }
    }

    fn phase(&self) -> Phase {
        self.0
    }

    fn about(&self) -> &'static str {
        "run the project's own script of this phase from .larder/, if there is one"
    }

    fn is_durable(&self, deployment: &Deployment) -> bool {
        self.is_there(deployment)
    }

    fn acquire<'a>(&'a self, deployment: &'a Deployment) -> Acquired<'a> {
        // After the switch, a script does not wait for a permit: visitors are already served, and the old release runs until the
        // plan ends.
        let before_switch = self.0 <= Phase::Deploy;
        match self.is_there(deployment) && before_switch {
            true => step::permit(deployment, Resource::Script),
            false => Box::pin(async { Ok(Vec::new()) }),
        }
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let phase = self.0;
            if !self.is_there(deployment) {
                return Ok(());
            }
            let changed =
                if phase < Phase::Deploy { in_build(phase, deployment).await? } else { in_slot(phase, deployment).await? };
            if let Some(variables) = changed {
                deployment.facts.variables = variables;
            }
            Ok(())
        })
    }
}

async fn in_build(phase: Phase, deployment: &Deployment) -> Result<Option<Map<String, Value>>, Failure> {
    let job = BuildJob { steps: vec![BuildStep::Script(phase)], ..super::build::job(deployment)? };
    Ok(super::build::run(deployment, &job).await?.variables)
}

async fn in_slot(phase: Phase, deployment: &Deployment) -> Result<Option<Map<String, Value>>, Failure> {
    // In a build, the worker prints the title.
    deployment.transcript.title(&format!("Running .larder/{phase}"));
    let job = RunJob {
        command: format!(".larder/{phase}"),
        variables: Some(Value::Object(deployment.facts.variables.clone()).to_string()),
        ..processes::job(deployment)?
    };
    let left = processes::task(deployment, &job).await?.success(&format!(".larder/{phase}"))?;
    match left.map(|left| buildpack::parse_variables(&left)) {
        None => Ok(None),
        Some(Ok(variables)) => Ok(Some(variables)),
        Some(Err(why)) => Err(Failure::pusher(format!(".larder/{phase} wrote invalid variables: {why}"))),
    }
}
