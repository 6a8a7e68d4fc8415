//! Requests that list, scale and restart processes, and run single commands.

use indexmap::IndexMap;
use serde::Serialize;

use super::{
    backup::{of_points, point_name},
    configuration::of_snapshots,
    deployments::of_pipeline,
};
use crate::{
    control::{
        authz::Needs,
        error::{CommandError, ErrorKind, not_found, refused, usage},
        request::{Context, Reply, Request, RunningCommand, Stream},
        state::Control,
    },
    host::launch::Stdio,
    model::{Access, Environment, ReleaseId, ReleaseNumber, Slot, SlotUse, Target},
    pipeline::{PipelineError, RestartError, names_a_database},
    runtime::{Boot, RunJob},
};

/// The maximum number of processes of one type.
const MAX_SCALE: u32 = 100;

/// The request to list the processes of an environment.
#[derive(Debug)]
pub struct Ps {
    /// The environment.
    pub target: Target,
}

/// A process in a list.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessRow {
    /// The name, such as `web.1`.
    pub process: String,
    /// The slot that the process runs in.
    pub slot: Slot,
    /// The release that the process runs.
    pub release: ReleaseId,
    /// The number of the release that the process runs.
    pub number: Option<ReleaseNumber>,
    /// The port that the process should listen on.
    pub port: Option<u16>,
    /// The number of exits since this server started the process, or found the process running at its own start. The keeper restarts the
    /// process after each exit.
    pub restarts: u32,
    /// The last exit status or signal.
    pub last_exit: Option<String>,
    /// True if the slot is live.
    pub active: bool,
}

impl Request for Ps {
    type View = Vec<ProcessRow>;
    const NAME: &'static str = "ps";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::View)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Vec<ProcessRow>>, CommandError> {
        let environment = control.environment(&self.target)?;
        let slots = control.pipeline().slots(environment.id);
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
                active: matches!(slots.get(instance.label.slot), SlotUse::Live(_)),
            }
        });
        Ok(rows.collect::<Vec<_>>().into())
    }
}

/// The request to set the number of processes of some types.
#[derive(Debug)]
pub struct Scale {
    /// The environment.
    pub target: Target,
    /// The process types, each with its number of processes.
    pub scale: Vec<(String, u32)>,
}

/// The numbers of processes that a [`Scale`] request has set.
#[derive(Debug, Serialize)]
pub struct Scaled {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The process types of the request, each with its number of processes.
    pub scale: IndexMap<String, u32>,
}

impl Request for Scale {
    type View = Scaled;
    const NAME: &'static str = "scale";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Scaled>, CommandError> {
        let Scale { target, scale } = self;
        let environment = control.environment(&target)?;
        if let Some((process, count)) = scale.iter().find(|(_, count)| *count > MAX_SCALE) {
            return Err(usage(format!("cannot run {count} processes of type {process}: at most {MAX_SCALE} are allowed")));
        }
        if let Some(live) = control.pipeline().live(environment.id) {
            let known = process_types(control, &environment, live.release)?;
            if let Some((process, _)) = scale.iter().find(|(process, _)| !known.contains(process)) {
                return Err(not_found(format!("cannot scale {process}: the live release has no such process"))
                    .hint(format!("name a process of the live release: {}", known.join(", "))));
            }
        }
        let set = |known: &mut Environment| {
            known.scale.extend(scale.iter().cloned());
            Ok(())
        };
        let changed = control.change_environment(&environment, set).await?;
        // The new numbers are stored before the restart. A deployment in progress has the old numbers and prevents the restart. The next
        // deployment applies the new numbers.
        control.pipeline().restart(&changed).await.map_err(|error| match error {
            RestartError::NotNow(why @ PipelineError::Busy { .. }) => {
                of_pipeline(&why).hint("deploy to apply the new process numbers")
            }
            other => of_restart(other),
        })?;
        Ok(Scaled { environment: changed.title(), scale: scale.into_iter().collect() }.into())
    }
}

fn process_types(control: &Control, environment: &Environment, release: ReleaseId) -> Result<Vec<String>, CommandError> {
    let facts = control.pipeline().facts(environment, release).map_err(|error| CommandError::internal(&error))?;
    Ok(facts.processes.iter().map(|process| process.kind.to_string()).collect())
}

/// The request to restart all processes of an environment.
#[derive(Debug)]
pub struct Restart {
    /// The environment.
    pub target: Target,
}

/// An environment that was restarted.
#[derive(Debug, Serialize)]
pub struct Restarted {
    /// The environment, as `project/environment`.
    pub environment: String,
}

impl Request for Restart {
    type View = Restarted;
    const NAME: &'static str = "restart";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Restarted>, CommandError> {
        let environment = control.environment(&self.target)?;
        if control.pipeline().live(environment.id).is_none() {
            return Err(not_found(format!("cannot restart {}: nothing is live", environment.title())));
        }
        control.pipeline().restart(&environment).await.map_err(of_restart)?;
        Ok(Restarted { environment: environment.title() }.into())
    }
}

fn of_restart(error: RestartError) -> CommandError {
    match error {
        RestartError::NotNow(why) => of_pipeline(&why),
        RestartError::Failed(why) => CommandError::new(ErrorKind::Deployment, why),
    }
}

/// The request to run a command in the live release.
#[derive(Debug)]
pub struct Run {
    /// The environment.
    pub target: Target,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// The restore point on a copy of which the command works, instead of the live data.
    pub point: Option<String>,
}

impl Request for Run {
    type View = ();
    const NAME: &'static str = "run";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<()>, CommandError> {
        let environment = control.environment(&self.target)?;
        let live = control.pipeline().live(environment.id);
        let live = live.ok_or_else(|| not_found(format!("cannot run a command: nothing is live in {}", environment.title())))?;
        let history = control.pipeline().history(environment.id);
        if history.of_release(live.release).is_none() {
            return Err(not_found(format!("cannot run a command: there is no record of the live release {}", live.number)));
        }
        let facts = control.pipeline().facts(&environment, live.release).map_err(|error| CommandError::internal(&error))?;
        let secrets = control.pipeline().secrets_of(&environment, live.release);
        let (configuration, secret_files) = secrets.map_err(|error| of_snapshots(&error))?;
        let mut job = RunJob {
            // The words are passed as arguments, so no shell parses them.
            arguments: self.command,
            env: facts.env.clone().into_iter().collect(),
            configuration,
            secret_files,
            ..RunJob::default()
        };
        let copy = match self.point {
            None => None,
            Some(point) => {
                point_name(&point)?;
                let namespaces = control.pipeline().services().launcher.capabilities().await;
                if let Err(why) = namespaces.map_err(|error| CommandError::internal(&error))?.namespaces {
                    // The links at `/app` would lead to the live data.
                    return Err(refused(format!("cannot run a command on a copy of the data without namespaces: {why}")));
                }
                let copy = control.pipeline().copy_data(&environment, point).await.map_err(|error| of_points(&error))?;
                job.env.retain(|(_, value)| !names_a_database(value));
                job.configuration.retain(|_, value| !std::str::from_utf8(value).is_ok_and(names_a_database));
                job.env.push((String::from("LARDER_RESTORE_POINT"), copy.point.clone()));
                Some(copy)
            }
        };
        let logs = control.root().environment(&environment.project, &environment.name).log();
        let boot = Boot::for_tasks(environment, live.slot, live.release, logs);
        let runtime = control.pipeline().services().runtime.clone();
        let start = move |stdio: Stdio| -> futures_util::future::BoxFuture<'static, _> {
            Box::pin(async move {
                let child = match copy {
                    None => runtime.task(&boot, &job, stdio).await,
                    Some(_) => runtime.probe(&boot, &job, stdio).await,
                };
                Ok(RunningCommand { child: child.map_err(|error| CommandError::internal(&error))?, copy, locked: None })
            })
        };
        Ok(Reply::Stream(Stream::Interactive(Box::new(start))))
    }
}
