//! Requests that read the configuration of an environment. Names need the right to view, and values need the right to operate, as does
//! `larder run`, which can print every variable.

use std::{fs::File, io::Write as _, os::fd::OwnedFd};

use data_encoding::BASE64;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;

use super::configuration::of_snapshots;
use crate::{
    config::render_dotenv,
    control::{
        authz::Needs,
        error::{CommandError, not_found, refused, run_blocking, similar},
        request::{Context, Reply, Request, Stream},
    },
    model::{Access, CommitId, ConfigVariables, ReleaseNumber, SnapshotNumber, Target, UserName, VariableChange},
};

/// The request to show the configuration, or a single value.
#[derive(Debug)]
pub struct ConfigShow {
    /// The environment.
    pub target: Target,
    /// The variable; all variables if absent.
    pub name: Option<String>,
}

/// A variable with its value, if the caller may see the value.
#[derive(Debug, Clone, Serialize)]
pub struct VariableView {
    /// The name.
    pub name: String,
    /// The value; absent if the caller may not see the value, or if the value is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The value in base64, if the value is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// The size of the value in bytes; absent if the caller may not see the value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,
}

/// The configuration that the next deployment uses.
#[derive(Debug, Serialize)]
pub struct ConfigView {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The number of the configuration; absent if there is none.
    pub configuration: Option<SnapshotNumber>,
    /// The number of the configuration with which the live release runs; absent if there is none.
    pub live: Option<SnapshotNumber>,
    /// True if the values are shown.
    pub values: bool,
    /// True if the caller asked for a single value.
    pub single: bool,
    /// The variables, sorted by name.
    pub variables: Vec<VariableView>,
}

impl VariableView {
    fn new(name: &str, value: Option<&[u8]>) -> VariableView {
        let text = value.and_then(|value| std::str::from_utf8(value).ok()).map(str::to_owned);
        VariableView {
            name: name.to_owned(),
            base64: value.filter(|_| text.is_none()).map(|value| BASE64.encode(value)),
            value: text,
            bytes: value.map(<[u8]>::len),
        }
    }
}

impl Request for ConfigShow {
    type View = ConfigView;
    const NAME: &'static str = "config show";

    fn needs(&self) -> Needs {
        let needed = if self.name.is_some() { Access::Operate } else { Access::View };
        Needs::environment(&self.target, needed)
    }

    fn detail(&self) -> Option<String> {
        self.name.clone()
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<ConfigView>, CommandError> {
        let environment = control.environment(&self.target)?;
        let found = control.pipeline().configuration(&environment).map_err(|error| of_snapshots(&error))?;
        let values = control.right_on(caller, &environment) >= Access::Operate;
        let single = self.name.is_some();
        let variables = match self.name {
            Some(name) => match found.variables.get(&name) {
                // The value may have any bytes, so it does not become text.
                Some(value) if std::str::from_utf8(value).is_err() => return Ok(bytes(value.to_vec())),
                Some(value) => vec![VariableView::new(&name, Some(value))],
                None => return Err(unset(&environment.title(), &name, &found.variables)),
            },
            None => found.variables.iter().map(|(name, value)| VariableView::new(name, Some(value).filter(|_| values))).collect(),
        };
        Ok(ConfigView {
            environment: environment.title(),
            configuration: found.next.map(|next| next.number),
            live: found.live.map(|live| live.number),
            values,
            single,
            variables,
        }
        .into())
    }
}

fn unset(environment: &str, name: &str, variables: &ConfigVariables) -> CommandError {
    let shown = crate::model::sanitise_reason(name);
    let error = not_found(format!("the configuration of {environment} has no variable {shown}"));
    match similar(name, variables.iter().map(|(name, _)| name)) {
        Some(other) => error.hint(format!("did you mean {other}?")),
        None => error.hint("list the names with `larder config show`; variables of larder.yml are not listed there"),
    }
}

/// Returns the reply that writes bytes unchanged.
fn bytes<V>(bytes: Vec<u8>) -> Reply<V> {
    let send = move |to: OwnedFd| -> BoxFuture<'static, _> {
        let written = move || File::from(to).write_all(&bytes).map_err(|error| CommandError::internal(&error));
        Box::pin(run_blocking(written))
    };
    Reply::Stream(Stream::Bytes(Box::new(send)))
}

/// The request to write all variables in the format that `config import` reads.
#[derive(Debug)]
pub struct ConfigExport {
    /// The environment.
    pub target: Target,
    /// The configuration; the configuration that the next deployment uses if absent.
    pub number: Option<SnapshotNumber>,
}

/// All variables as text.
#[derive(Debug, Serialize)]
pub struct ConfigFile {
    /// The text, in the format that `config import` reads.
    pub text: String,
}

impl Request for ConfigExport {
    type View = ConfigFile;
    const NAME: &'static str = "config export";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<ConfigFile>, CommandError> {
        let environment = control.environment(&self.target)?;
        let pipeline = control.pipeline();
        let variables = match self.number {
            Some(number) => pipeline.configuration_numbered(&environment, number).map(|snapshot| snapshot.variables),
            None => pipeline.configuration(&environment).map(|current| current.variables),
        };
        let variables = variables.map_err(|error| of_snapshots(&error))?;
        Ok(ConfigFile { text: render_dotenv(variables.iter()) }.into())
    }
}

/// The request to list the configurations of an environment.
#[derive(Debug)]
pub struct ConfigHistory {
    /// The environment.
    pub target: Target,
}

/// A configuration in the list.
#[derive(Debug, Serialize)]
pub struct ConfigRow {
    /// The number.
    pub configuration: SnapshotNumber,
    /// The moment at which the configuration was created.
    pub at: Timestamp,
    /// The author of the change.
    pub by: UserName,
    /// The configuration that was changed.
    pub based_on: Option<SnapshotNumber>,
    /// The names of the variables that got a value.
    pub set: Vec<String>,
    /// The names of the variables that were removed.
    pub unset: Vec<String>,
    /// The commit of the pillar whose values the configuration has; absent without a pillar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pillar: Option<CommitId>,
    /// The releases that went live with the configuration, newest first.
    pub releases: Vec<ReleaseNumber>,
    /// True if the live release runs with the configuration.
    pub live: bool,
    /// True if the next deployment uses the configuration.
    pub next: bool,
}

impl Request for ConfigHistory {
    type View = Vec<ConfigRow>;
    const NAME: &'static str = "config history";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::View)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Vec<ConfigRow>>, CommandError> {
        let environment = control.environment(&self.target)?;
        let pipeline = control.pipeline().clone();
        let rows = run_blocking(move || {
            let of = |error| of_snapshots(&error);
            let current = pipeline.configuration(&environment).map_err(of)?;
            let history = pipeline.history(environment.id);
            let row = |(reference, snapshot): (crate::model::SnapshotRef, crate::snapshots::Snapshot)| ConfigRow {
                configuration: reference.number,
                at: snapshot.at,
                by: snapshot.by,
                based_on: snapshot.based_on,
                set: snapshot.set,
                unset: snapshot.unset,
                pillar: snapshot.pillar.map(|pillar| pillar.commit),
                releases: {
                    let with = history.releases().rev().filter(|made| made.configuration == Some(reference));
                    with.map(|made| made.number).collect()
                },
                live: current.live == Some(reference),
                next: current.next == Some(reference),
            };
            Ok(pipeline.configurations(&environment).map_err(of)?.into_iter().map(row).collect::<Vec<_>>())
        });
        Ok(rows.await?.into())
    }
}

/// The request to compare two configurations.
#[derive(Debug)]
pub struct ConfigDiff {
    /// The environment.
    pub target: Target,
    /// The earlier configuration.
    pub from: SnapshotNumber,
    /// The later configuration; the configuration that the next deployment uses if absent.
    pub to: Option<SnapshotNumber>,
    /// True to show the values.
    pub values: bool,
}

/// The differences of two configurations.
#[derive(Debug, Serialize)]
pub struct ConfigDifferences {
    /// The earlier configuration.
    pub from: SnapshotNumber,
    /// The later configuration.
    pub to: SnapshotNumber,
    /// The variables that differ, sorted by name.
    pub changes: Vec<VariableDifference>,
}

/// A variable that differs between two configurations.
#[derive(Debug, Serialize)]
pub struct VariableDifference {
    /// The name.
    pub name: String,
    /// The kind of difference.
    pub change: VariableChange,
    /// The earlier value, if values are shown and the earlier configuration has the variable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<VariableView>,
    /// The later value, if values are shown and the later configuration has the variable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<VariableView>,
}

impl Request for ConfigDiff {
    type View = ConfigDifferences;
    const NAME: &'static str = "config diff";

    fn needs(&self) -> Needs {
        let needed = if self.values { Access::Operate } else { Access::View };
        Needs::environment(&self.target, needed)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<ConfigDifferences>, CommandError> {
        let environment = control.environment(&self.target)?;
        let of = |error| of_snapshots(&error);
        let to = match self.to {
            Some(to) => to,
            None => {
                let current = control.pipeline().configuration(&environment).map_err(of)?;
                let next = current.next.ok_or_else(|| refused(format!("{} has no configuration yet", environment.title())))?;
                next.number
            }
        };
        let read = |number| control.pipeline().variables_numbered(&environment, number);
        let (before, after) = (read(self.from).map_err(of)?, read(to).map_err(of)?);
        let shown = |variables: &ConfigVariables, name: &str| {
            variables.get(name).filter(|_| self.values).map(|value| VariableView::new(name, Some(value)))
        };
        let row = |(name, change): (&str, VariableChange)| VariableDifference {
            name: name.to_owned(),
            change,
            before: shown(&before, name),
            after: shown(&after, name),
        };
        let changes = before.differences(&after).into_iter().map(row).collect();
        Ok(ConfigDifferences { from: self.from, to, changes }.into())
    }
}
