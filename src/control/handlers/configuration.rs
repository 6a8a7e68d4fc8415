//! Requests that change the configuration of an environment.

use std::{fs::File, io::Read as _, os::fd::OwnedFd};

use futures_util::future::BoxFuture;
use serde::Serialize;

use super::deployments::{deployment, of_pipeline, submit};
use crate::{
    config::{VariableName, parse_dotenv},
    control::{
        authz::Needs,
        error::{CommandError, ErrorKind, refused, run_blocking, usage},
        request::{Context, Reply, Request},
        state::Control,
    },
    model::{Access, ConfigChange, ConfigVariables, Environment, SnapshotNumber, Target, Trigger, UserName},
    pipeline::{ChangeError, EnvironmentConfiguration, Goal, PillarGoal, chain},
    snapshots::{MAX_TOTAL, MAX_VALUE, SnapshotError, check_limits},
};

/// The maximum size of a file with variables, in bytes: the largest configuration, in which each byte is escaped with four characters.
const MAX_FILE: usize = 4 * MAX_TOTAL;

/// The request to change the configuration.
#[derive(Debug)]
pub struct ConfigSet {
    /// The environment.
    pub target: Target,
    /// The change.
    pub change: ConfigInput,
    /// False if the change waits for the next deployment.
    pub restart: bool,
}

/// The source of a change.
#[derive(Debug)]
pub enum ConfigInput {
    /// The command line.
    Words(ConfigChange),
    /// The caller's input is the value of this variable.
    Value(String),
    /// The caller's input is a file with variables.
    File,
}

/// The result of a change that started no deployment.
#[derive(Debug, Serialize)]
pub struct ConfigChanged {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The new snapshot; absent if the configuration had these values already.
    pub configuration: Option<SnapshotNumber>,
    /// The names of the variables that got a value.
    pub set: Vec<String>,
    /// The names of the variables that were removed.
    pub unset: Vec<String>,
    /// True if a release is live, which still runs with its old configuration.
    pub live: bool,
}

impl Request for ConfigSet {
    type View = ConfigChanged;
    const NAME: &'static str = "config set";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    fn detail(&self) -> Option<String> {
        Some(match &self.change {
            ConfigInput::Words(change) => {
                let set = change.set.iter().map(|(name, _)| format!("set {name}"));
                set.chain(change.unset.iter().map(|name| format!("unset {name}"))).collect::<Vec<_>>().join(", ")
            }
            ConfigInput::Value(name) => format!("set {name}"),
            ConfigInput::File => String::from("import"),
        })
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<ConfigChanged>, CommandError> {
        let environment = control.environment(&self.target)?;
        let current = control.pipeline().configuration(&environment).map_err(|error| of_snapshots(&error))?;
        let work = Change { control: Control::clone(control), environment, by: caller.name(), current, restart: self.restart };
        match self.change {
            ConfigInput::Words(change) => work.make(change).await,
            input => {
                let read = move |from: OwnedFd| -> BoxFuture<'static, _> {
                    Box::pin(async move {
                        let change = run_blocking(move || read_change(input, from)).await?;
                        work.make(change).await
                    })
                };
                Ok(Reply::Input(Box::new(read)))
            }
        }
    }
}

/// Reads a change from the caller's input.
fn read_change(input: ConfigInput, from: OwnedFd) -> Result<ConfigChange, CommandError> {
    let limit = match input {
        ConfigInput::Value(_) => MAX_VALUE,
        _ => MAX_FILE,
    };
    let mut bytes = Vec::new();
    let read = File::from(from).take(u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| CommandError::internal(&error))?;
    if bytes.len() > limit {
        return Err(usage(format!("cannot read the input: it has more than {limit} bytes (limit {limit})")));
    }
    let set: ConfigVariables = match input {
        ConfigInput::Words(change) => return Ok(change),
        ConfigInput::Value(name) => [(name, bytes)].into_iter().collect(),
        ConfigInput::File => {
            let variables = parse_dotenv(&bytes).map_err(|mut error| {
                let hint = error.hint.take();
                hint.into_iter().fold(CommandError::new(ErrorKind::Configuration, error.to_string()), CommandError::hint)
            })?;
            variables.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
        }
    };
    Ok(ConfigChange { set, ..ConfigChange::default() })
}

/// A change that is checked and then made.
struct Change {
    control: Control,
    environment: Environment,
    by: UserName,
    current: EnvironmentConfiguration,
    restart: bool,
}

impl Change {
    async fn make(self, change: ConfigChange) -> Result<Reply<ConfigChanged>, CommandError> {
        check(&change)?;
        let Change { control, environment, by, current, restart } = self;
        let after = change.applied(&current.variables);
        check_limits(&after).map_err(|error| of_snapshots(&error))?;
        let differences = current.variables.differences(&after);
        let names = |is_set: bool| {
            let wanted = differences.iter().filter(|(name, _)| after.get(name).is_some() == is_set);
            wanted.map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>()
        };
        let mut view = ConfigChanged {
            environment: environment.title(),
            configuration: None,
            set: names(true),
            unset: names(false),
            live: current.release.is_some(),
        };
        // A change that was staged before becomes live with a change that changes nothing more.
        let staged = current.next.map(|next| next.number) != current.live.map(|live| live.number);
        if differences.is_empty() && !(staged && restart && view.live) {
            return Ok(view.into());
        }
        match current.release.filter(|_| restart) {
            Some(live) => {
                let goal = Goal::Configure { change, seen: current.next, pillar: PillarGoal::Usual };
                submit(&control, deployment(Trigger::Configure { by }, environment, live.commit, goal))
            }
            None => {
                let staged = control.pipeline().stage_configuration(&environment, by, &change, current.next).await;
                view.configuration = Some(staged.map_err(|error| of_change(&error))?.number);
                Ok(view.into())
            }
        }
    }
}

/// Returns an error for names that larder sets itself, and for values that no process can get.
fn check(change: &ConfigChange) -> Result<(), CommandError> {
    for (name, value) in change.set.iter() {
        check_name(name)?;
        if value.contains(&0) {
            return Err(usage(format!("cannot set {name}: the value has a NUL byte"))
                .hint("encode the value, for example in base64: a variable of a process cannot contain NUL"));
        }
        if value.len() > MAX_VALUE {
            return Err(usage(format!("cannot set {name}: the value has {} bytes (limit {MAX_VALUE})", value.len()))
                .hint("store the value in a file below data/, and set its path"));
        }
    }
    Ok(())
}

pub(super) fn check_name(name: &str) -> Result<(), CommandError> {
    match (name.parse::<VariableName>(), VariableName::remedy(name)) {
        (Ok(_), None) => Ok(()),
        (parsed, remedy) => {
            let why = parsed.err().unwrap_or_else(|| format!("the variable {name} is set by larder itself"));
            Err(usage(format!("cannot set the variable: {why}")).hint(remedy.unwrap_or("choose another name")))
        }
    }
}

fn of_change(error: &ChangeError) -> CommandError {
    let shown = match error {
        ChangeError::Snapshot(error) => return of_snapshots(error),
        ChangeError::NotNow(error) => return of_pipeline(error),
        ChangeError::Conflict { .. } | ChangeError::Unchanged => refused(error.to_string()),
    };
    error.hint().into_iter().fold(shown, CommandError::hint)
}

/// Returns the error of a snapshot that cannot be read or created.
pub(super) fn of_snapshots(error: &SnapshotError) -> CommandError {
    let kind = match error {
        SnapshotError::Missing { .. } => ErrorKind::NotFound,
        SnapshotError::TooLarge { .. } => ErrorKind::Usage,
        _ => ErrorKind::Internal,
    };
    error.hint().into_iter().fold(CommandError::new(kind, chain(error)), CommandError::hint)
}
