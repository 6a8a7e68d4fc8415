//! Builds the checkout in place, in a child process that runs the worker of `buildpack`.

use std::{
    fs::File,
    io::{self, Read as _},
    process::{ExitCode, Stdio},
};

use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{
    checkout::Checkout,
    output::MergedLog,
    plan::{self, LocalPlan},
};
use crate::{
    buildpack::{self, BuildJob, BuildReport, BuildStep, LocalPaths},
    config::Settings,
    model::{Phase, ProcessType},
    watch::FilePatterns,
};

/// The command of the child, which a person does not run.
pub const BUILD_COMMAND: &str = "dev-build";

/// The message to the child.
#[derive(Serialize, Deserialize)]
struct LocalBuild {
    job: BuildJob,
    paths: LocalPaths,
    /// The file for the report.
    report: std::path::PathBuf,
}

/// The result of a build.
#[derive(Debug, Clone)]
pub(super) struct LocalBuilt {
    /// The process types that the buildpacks suggest.
    pub suggested: Vec<(ProcessType, String)>,
    /// The files from which the build is made.
    pub inputs: FilePatterns,
}

/// Runs `larder dev-build`: reads the message from the standard input, builds, and writes the report.
pub fn main() -> ExitCode {
    // Without its parent, the build has no reader. Its scripts end with their pipes.
    let _ = set_parent_process_death_signal(Some(Signal::TERM));
    match child() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = io::Write::write_all(&mut io::stderr(), format!("cannot build: {error}\n").as_bytes());
            ExitCode::from(70)
        }
    }
}

fn child() -> io::Result<()> {
    let mut message = Vec::new();
    io::stdin().read_to_end(&mut message)?;
    let build: LocalBuild = postcard::from_bytes(&message).map_err(io::Error::other)?;
    // Two sessions may run different processes of one checkout.
    let lock = File::create(build.paths.cache.join("lock"))?;
    lock.lock()?;
    let report = buildpack::work_locally(build.job, build.paths);
    std::fs::write(&build.report, postcard::to_stdvec(&report).map_err(io::Error::other)?)
}

/// Builds the checkout. The error is one line for each problem.
pub(super) async fn build(checkout: &Checkout, plan: &LocalPlan, log: &MergedLog) -> Result<LocalBuilt, Vec<String>> {
    let failed = |error: &dyn std::fmt::Display| vec![format!("cannot start the build: {error}")];
    let directory = tempfile::tempdir().map_err(|error| failed(&error))?;
    let report = directory.path().join("report");
    let build = LocalBuild { job: job(checkout, plan), paths: plan::build_paths(checkout), report: report.clone() };
    let message = postcard::to_stdvec(&build).map_err(|error| failed(&error))?;
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let (reader, writer) = io::pipe().map_err(|error| failed(&error))?;
    let mut command = Command::new(program);
    command.arg(BUILD_COMMAND).current_dir(&checkout.root).process_group(0).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(writer.try_clone().map_err(|error| failed(&error))?).stderr(writer);
    let mut child = command.spawn().map_err(|error| failed(&error))?;
    // The command holds the write ends of the pipe, whose end the reader awaits.
    drop(command);
    let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).map_err(|error| failed(&error))?;
    let mut input = child.stdin.take();
    let send = async {
        if let Some(input) = &mut input {
            // If the child does not read, its exit status says so.
            let _ = input.write_all(&message).await;
        }
        input = None;
    };
    let ((), (), status) = tokio::join!(send, log.copy("build", 4, reader), child.wait());
    let status = status.map_err(|error| failed(&error))?;
    let bytes = std::fs::read(&report).map_err(|_| vec![format!("the build ended without a report: {status}")])?;
    let report: BuildReport = postcard::from_bytes(&bytes).map_err(|error| failed(&error))?;
    if let Some(failure) = report.failure {
        let hint = (!failure.hint.is_empty()).then(|| format!("hint: {}", failure.hint));
        return Err(std::iter::once(failure.to_string()).chain(hint).collect());
    }
    let inputs =
        FilePatterns::new(report.inputs.as_deref()).map_err(|why| vec![format!("a buildpack names invalid inputs: {why}")])?;
    Ok(LocalBuilt { suggested: report.processes, inputs })
}

/// Returns the job of a build, with the scripts of the phases configure and build.
fn job(checkout: &Checkout, plan: &LocalPlan) -> BuildJob {
    let Settings { env, build, buildpacks, .. } = &plan.settings;
    let defaults = plan::defaults().map(|(name, value)| (name.to_owned(), value.into()));
    let recipe = env.iter().chain(&build.env).map(|(name, value)| (name.to_string(), value.into()));
    let local = plan.variables.iter().map(|(name, value)| {
        let value = std::os::unix::ffi::OsStringExt::from_vec(value.to_vec());
        (name.to_owned(), value)
    });
    let mut environment = plan.fixed(checkout);
    environment.push((String::from("SOURCE_VERSION"), checkout.commit()));
    BuildJob {
        steps: vec![
            BuildStep::Script(Phase::Configure),
            BuildStep::Detect,
            BuildStep::Compile,
            BuildStep::Release,
            BuildStep::Inputs,
            BuildStep::Script(Phase::Build),
        ],
        buildpacks: buildpacks.clone(),
        configuration: defaults.chain(recipe).chain(local).collect(),
        environment,
        variables: String::from("{}"),
        memory: None,
        // On a developer's machine, git uses the developer's own keys.
        deploy_key: None,
    }
}
