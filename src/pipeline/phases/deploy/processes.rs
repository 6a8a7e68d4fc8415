//! The processes of a release in its slot, their environment variables, and single tasks.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    host::launch::{LaunchError, Stdio},
    model::{Environment, Exit, ProcessType},
    pipeline::{
        context::Deployment,
        facts::Facts,
        output::{self, Cause},
        step::Failure,
    },
    runtime::{Boot, Process, RunJob},
};

/// The maximum size of the variables that a task returns, in bytes.
const MAX_VARIABLES: usize = 512 * 1024;

/// Returns the variables of the recipe and the server file, as phase scripts have changed them. The configuration snapshot is not among these
/// variables, because facts are written to the journal.
pub fn configured(deployment: &Deployment) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    if let Some(Value::Object(scripted)) = deployment.facts.variables.get("env") {
        for (name, value) in scripted {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            // Scripts can write any names and values. Names and values that are not valid in an environment are left out.
            if !name.is_empty() && !name.contains(['=', '\0']) && !text.contains('\0') {
                env.insert(name.clone(), text);
            }
        }
    }
    env
}

/// Returns the environment variables of every process of the release, without `PORT` and without the configuration snapshot, which takes
/// precedence.
pub fn environment(deployment: &Deployment) -> BTreeMap<String, String> {
    let spec = &deployment.spec;
    let mut env = configured(deployment);
    let own = [
        ("LARDER_PROJECT", deployment.environment.project.to_string()),
        ("LARDER_ENVIRONMENT", deployment.environment.name.to_string()),
        ("LARDER_MODE", deployment.environment.mode.to_string()),
        ("LARDER_RELEASE", spec.number.to_string()),
        ("LARDER_RELEASE_ID", spec.release.to_string()),
        ("LARDER_SLOT", spec.slot.to_string()),
        ("SOURCE_VERSION", spec.commit.to_string()),
    ];
    env.extend(own.map(|(name, value)| (name.to_owned(), value)));
    env
}

/// Returns the processes of the release with the operator's scale. The recipe and the Procfile define the processes; the buildpacks add
/// the processes that these files do not define.
pub fn processes(deployment: &Deployment) -> Result<Vec<Process>, Failure> {
    let defaults = deployment.facts.buildpack_processes.iter();
    let defaults = defaults.filter_map(|(process, command)| Some((process.clone(), command.parse().ok()?)));
    let settings = deployment.settings().with_defaults(defaults.collect());
    let scale = &deployment.environment.scale;
    let processes: Vec<_> = settings
        .processes
        .iter()
        .map(|(process, spec)| {
            let count = scale.get(process.as_str()).copied().unwrap_or_else(|| u32::from(spec.scale));
            Process {
                kind: process.clone(),
                count,
                command: spec.command.to_string(),
                env: spec.env.iter().map(|(name, value)| (name.to_string(), value.clone())).collect(),
                memory: spec.memory.map(|memory| memory.bytes()),
                stop: spec.stop.unwrap_or(settings.stop).signal,
            }
        })
        .collect();
    if processes.is_empty() {
        return Err(Failure::pusher("cannot start the release: there is no Procfile, and the buildpack defines no process")
            .hint("add a file named Procfile with a line such as `web: ./server --port $PORT`"));
    }
    if let Some(process) = settings.without_command() {
        return Err(Failure::pusher(format!("the process {process} has no command"))
            .hint(format!("add a line `{process}: command` to the Procfile")));
    }
    Ok(processes)
}

/// Applies the operator's current scale to the processes of an earlier release.
pub fn rescale(facts: &mut Facts, environment: &Environment) {
    for process in &mut facts.processes {
        if let Some(wanted) = environment.scale.get(process.kind.as_str()) {
            process.count = *wanted;
        }
    }
}

/// Returns the boot request for those processes of the release for whose types `which` returns true.
pub fn boot(deployment: &Deployment, which: impl Fn(&ProcessType) -> bool) -> Result<Boot, Failure> {
    Ok(Boot {
        processes: deployment.facts.processes.iter().filter(|process| which(&process.kind)).cloned().collect(),
        env: deployment.facts.env.clone().into_iter().collect(),
        configuration: deployment.run_configuration()?,
        secret_files: deployment.secret_files()?,
        ..boot_of_tasks(deployment)
    })
}

/// Returns the boot request for tasks, which have their command and their variables in a [`RunJob`].
pub fn boot_of_tasks(deployment: &Deployment) -> Boot {
    let spec = &deployment.spec;
    Boot::for_tasks(deployment.environment.clone(), spec.slot, spec.release, deployment.paths.log())
}

/// Returns true if the release has a `web` process that is not scaled to zero.
pub fn any_web(deployment: &Deployment) -> bool {
    deployment.facts.processes.iter().any(|process| process.kind.is_web() && process.count > 0)
}

/// Returns a job with the environment variables of the release. The caller adds the command.
pub fn job(deployment: &Deployment) -> Result<RunJob, Failure> {
    let (configuration, secret_files) = (deployment.run_configuration()?, deployment.secret_files()?);
    Ok(RunJob { env: deployment.facts.env.clone().into_iter().collect(), configuration, secret_files, ..RunJob::default() })
}

/// The end of a task: its exit and its results.
pub struct TaskEnd {
    pub exit: Exit,
    /// The variables that the task returned, if [`RunJob::variables`] is set.
    pub variables: Option<String>,
    /// The cause of a failure, taken from the output of the task.
    pub cause: Cause,
}

impl TaskEnd {
    /// Returns the variables if the task succeeded, or else a failure that names the task `what`.
    pub fn success(self, what: &str) -> Result<Option<String>, Failure> {
        match self.exit.success() {
            true => Ok(self.variables),
            false => {
                let failure = Failure::pusher(self.cause.after(&format!("{what} {}", self.exit)));
                Err(self.cause.hint.into_iter().fold(failure, Failure::hint))
            }
        }
    }
}

/// Runs a command of the release in its slot, and copies the output to the transcript. Returns a failure if the command fails.
pub async fn run(deployment: &Deployment, what: &str, command: String) -> Result<(), Failure> {
    run_to_end(deployment, what, command).await?.success(what).map(drop)
}

/// Runs a command of the release in its slot, copies the output to the transcript, and returns the end of the command.
pub async fn run_to_end(deployment: &Deployment, what: &str, command: String) -> Result<TaskEnd, Failure> {
    deployment.transcript.title(&format!("Running {what}"));
    let job = RunJob { command, ..job(deployment)? };
    task(deployment, &job).await
}

/// Runs a single task of the release in its slot, copies the output to the transcript, and returns the end of the task.
pub async fn task(deployment: &Deployment, job: &RunJob) -> Result<TaskEnd, Failure> {
    let failed = |error: LaunchError| Failure::host(&error);
    let (stdout, stderr, copying) = output::descriptors(&deployment.transcript).map_err(|error| Failure::host(&error))?;
    let stdio = Stdio { stdout: Some(stdout), stderr: Some(stderr), ..Stdio::default() };
    let started = deployment.services.runtime.task(&boot_of_tasks(deployment), job, stdio).await;
    let mut child = started.map_err(|error| Failure::host(&error))?;
    let variables = match &job.variables {
        Some(_) => child.report(MAX_VARIABLES).await.map_err(failed)?,
        None => None,
    };
    let exit = child.wait().await.map_err(failed)?;
    let lines = copying.await.unwrap_or_default();
    Ok(TaskEnd { exit, variables, cause: output::cause(lines.iter().map(String::as_str)) })
}
