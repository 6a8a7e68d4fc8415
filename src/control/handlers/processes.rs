//! Processes: listing, scaling, restarting, logs, and single commands.

use super::not_found;
use crate::{
    control::{CommandError, Control, Kind, ProcessRow, Reply, Target, reply::LogFollower},
    host::launch::Stdio,
    model::Environment,
    pipeline::{PipelineError, RestartError, Summary},
    runtime::{Boot, LogLine, Logs, RunJob, tail},
};

/// The most of one process type.
const SCALE_MAX: u32 = 100;

pub(super) fn ps(control: &Control, target: &Target) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    let live = control.pipeline().live(environment.id);
    let history = control.pipeline().history(environment.id);
    let instances = control.pipeline().services().runtime.instances(environment.id, None);
    let rows = instances.into_iter().map(|instance| {
        let exits = *instance.exits.borrow();
        let made = history.deployments.iter().find(|summary| summary.release == instance.label.release);
        ProcessRow {
            process: instance.label.name(),
            slot: instance.label.slot,
            release: instance.label.release,
            number: made.map(|summary| summary.number),
            port: instance.label.port,
            restarts: exits.count,
            last_exit: exits.last.map(|exit| exit.to_string()),
            active: live.as_ref().is_some_and(|live| live.slot == instance.label.slot),
        }
    });
    Ok(Reply::Processes(rows.collect()))
}

pub(super) async fn scale(control: &Control, target: &Target, scale: Vec<(String, u32)>) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    if let Some((process, count)) = scale.iter().find(|(_, count)| *count > SCALE_MAX) {
        return Err(CommandError::new(Kind::Usage, format!("{process}={count}: at most {SCALE_MAX} of one type")));
    }
    if let Some(live) = control.pipeline().live(environment.id) {
        let known = known_processes(control, &environment, live.release)?;
        if let Some((process, _)) = scale.iter().find(|(process, _)| !known.contains(process)) {
            return Err(
                not_found(format!("the live release has no process {process}")).hint(format!("it has {}", known.join(", ")))
            );
        }
    }
    let changed = control
        .change(|registry| {
            let environments = registry.projects.iter_mut().flat_map(|project| &mut project.environments);
            let found = environments.into_iter().find(|known| known.id == environment.id);
            let found = found.ok_or_else(|| not_found(format!("there is no environment {target}")))?;
            found.scale.extend(scale.iter().cloned());
            Ok(found.clone())
        })
        .await?;
    apply(control, &changed).await?;
    let words: Vec<_> = scale.iter().map(|(process, count)| format!("{process}={count}")).collect();
    Ok(Reply::Done(format!("{} runs {}", changed.title(), words.join(" "))))
}

fn known_processes(
    control: &Control,
    environment: &Environment,
    release: crate::model::ReleaseId,
) -> Result<Vec<String>, CommandError> {
    let facts = control.pipeline().facts(environment, release).map_err(|error| CommandError::internal(&error))?;
    Ok(facts.processes.iter().map(|process| process.kind.to_string()).collect())
}

pub(super) async fn restart(control: &Control, target: &Target) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    if control.pipeline().live(environment.id).is_none() {
        return Err(not_found(format!("nothing is live in {}", environment.title())));
    }
    apply(control, &environment).await?;
    Ok(Reply::Done(format!("{} was restarted", environment.title())))
}

async fn apply(control: &Control, environment: &Environment) -> Result<(), CommandError> {
    control.pipeline().restart(environment).await.map_err(|error| match error {
        RestartError::NotNow(why @ PipelineError::Busy { .. }) => {
            super::deployments::of_pipeline(&why).hint("the new numbers count from the next deployment on")
        }
        RestartError::NotNow(why) => super::deployments::of_pipeline(&why),
        RestartError::Failed(why) => CommandError::new(Kind::Deployment, why),
    })
}

pub(super) fn logs(
    control: &Control,
    target: &Target,
    process: Option<String>,
    count: usize,
    follow: bool,
) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    let runtime = &control.pipeline().services().runtime;
    // Subscribed before the past is read, so that no line falls between the two.
    let coming = follow.then(|| runtime.logs().subscribe());
    let paths = control.0.root.environment(&environment.project, &environment.name);
    let wanted =
        move |name: &str| process.as_deref().is_none_or(|process| name == process || name.split('.').next() == Some(process));
    let mut lines = Vec::new();
    for name in log_names(&paths.log()).into_iter().filter(|name| wanted(name)) {
        lines.extend(tail(&Logs::file(&paths.log(), &name), count).unwrap_or_default());
    }
    // Every line begins with its moment.
    lines.sort();
    let surplus = lines.len().saturating_sub(count);
    lines.drain(..surplus);
    let follower = coming.map(|coming| {
        let id = environment.id;
        let wanted = Box::new(move |line: &LogLine| line.environment == id && wanted(&line.process));
        Box::new(LogFollower { lines: coming, wanted })
    });
    Ok(Reply::Logs { lines, follow: follower })
}

fn log_names(directory: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_suffix(".log").map(str::to_owned)).collect()
}

pub(super) fn run(control: &Control, target: &Target, command: Vec<String>) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    let live = control.pipeline().live(environment.id);
    let live =
        live.ok_or_else(|| not_found(format!("nothing is live in {}, so there is nothing to run in", environment.title())))?;
    let history = control.pipeline().history(environment.id);
    let made: Option<&Summary> = history.of_release(live.release);
    made.ok_or_else(|| not_found(format!("there is no record of {}", live.number)))?;
    let facts = control.pipeline().facts(&environment, live.release).map_err(|error| CommandError::internal(&error))?;
    let mut words = command.into_iter();
    let job = RunJob {
        // The words are arguments; no shell reads them as a line.
        command: String::new(),
        arguments: words.by_ref().collect(),
        env: facts.env.clone().into_iter().collect(),
        variables: None,
        links: Vec::new(),
    };
    let paths = control.0.root.environment(&environment.project, &environment.name);
    let boot =
        Boot { environment, slot: live.slot, release: live.release, processes: Vec::new(), env: Vec::new(), logs: paths.log() };
    let runtime = control.pipeline().services().runtime.clone();
    Ok(Reply::Run(Box::new(move |stdio: Stdio| {
        Box::pin(async move { runtime.task(&boot, &job, stdio).await.map_err(|error| CommandError::internal(&error)) })
    })))
}
