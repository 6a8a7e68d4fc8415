//! The command `larder config`: sets, shows, compares, imports and exports the configuration of an environment.

use std::{collections::BTreeSet, fmt::Write as _};

use clap::Subcommand;

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text::{count, moment, table},
    },
    arguments::{On, Words},
    config_render::RenderArgs,
};
use crate::{
    control::{
        CommandError, ConfigChanged, ConfigDiff, ConfigDifferences, ConfigExplain, ConfigExplanation, ConfigExport, ConfigFile,
        ConfigHistory, ConfigInput, ConfigRow, ConfigSet, ConfigShow, ConfigView, ErrorKind, VariableView,
    },
    model::{ConfigChange, SnapshotNumber, VariableChange},
};

#[derive(Debug, Subcommand)]
#[command(
    after_help = "Each change creates a configuration with a number of its own, which is encrypted on the server, and starts the live release again with this configuration: without a build, with the same checks and the same switch as a push. If the new processes fail, the old configuration stays live. `larder rollback` brings a release back together with its configuration.\n\nA variable of the configuration takes precedence over the same variable in larder.yml, app.json and the server file."
)]
/// Set, show and compare the configuration variables of an environment
pub enum ConfigVerb {
    Set(SetArgs),
    Unset(UnsetArgs),
    Show(ShowArgs),
    Diff(DiffArgs),
    Import(ImportArgs),
    Export(ExportArgs),
    History(HistoryArgs),
    Explain(ExplainArgs),
    Render(RenderArgs),
}

impl ConfigVerb {
    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            ConfigVerb::Set(command) => asking.ask(command).await,
            ConfigVerb::Unset(command) => asking.ask(command).await,
            ConfigVerb::Show(command) => asking.ask(command).await,
            ConfigVerb::Diff(command) => asking.ask(command).await,
            ConfigVerb::Import(command) => asking.ask(command).await,
            ConfigVerb::Export(command) => asking.ask(command).await,
            ConfigVerb::History(command) => asking.ask(command).await,
            ConfigVerb::Explain(command) => asking.ask(command).await,
            ConfigVerb::Render(command) => asking.ask(command).await,
        }
    }
}

fn usage(message: impl Into<String>) -> CommandError {
    CommandError::new(ErrorKind::Usage, message)
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A value is everything after the first `=`, and may have any bytes except NUL, up to 64 KiB. With --stdin, the input is the value of one variable, unchanged: a newline at its end belongs to the value. Values on a command line are visible to other users of the machine on which the command runs, so use --stdin for secrets.\n\nChanges of several people are combined. If another person has changed the same variable since the command began, the command is refused.\n\nExit status: 0 the configuration is live, stored, or has these values already; 1 the new processes failed and the old configuration stays live; 2 the variable cannot be set; 3 the change was refused.\n\nExamples:\n  larder config set shop LOG_LEVEL=debug CACHE=redis://localhost\n  larder config set shop/staging MAIL_FROM=test@example.com --no-restart\n  printf %s \"$TOKEN\" | larder config set shop API_TOKEN --stdin"
)]
/// Set variables, and start the live release again with them
pub struct SetArgs {
    #[command(flatten)]
    words: Words,
    /// Read the value of one variable from the standard input
    #[arg(long)]
    stdin: bool,
    /// Keep the processes running with the old values until the next deployment
    #[arg(long)]
    no_restart: bool,
}

impl Command for SetArgs {
    type Request = ConfigSet;

    fn request(self) -> Result<ConfigSet, CommandError> {
        let (target, words) = self.words.target_and_rest()?;
        let restart = !self.no_restart;
        if self.stdin {
            let mut words = words.into_iter();
            return match (words.next(), words.next()) {
                (Some(name), None) if !name.contains('=') => Ok(ConfigSet { target, change: ConfigInput::Value(name), restart }),
                _ => Err(usage("--stdin sets one variable")
                    .hint("name the variable without a value: larder config set shop NAME --stdin")),
            };
        }
        let mut set = Vec::new();
        for word in words {
            let Some((name, value)) = word.split_once('=') else {
                return Err(usage(format!("{} has no value", crate::model::sanitise_reason(&word)))
                    .hint("write NAME=VALUE, or give the value on the standard input with --stdin"));
            };
            set.push((name.to_owned(), value.as_bytes().to_vec()));
        }
        if set.is_empty() {
            return Err(usage("no variable is named").hint("write NAME=VALUE, as in `larder config set shop LOG_LEVEL=debug`"));
        }
        let change = ConfigChange { set: set.into_iter().collect(), unset: BTreeSet::new() };
        Ok(ConfigSet { target, change: ConfigInput::Words(change), restart })
    }

    fn show(view: &ConfigChanged) -> Shown {
        changed(view)
    }
}

/// Renders a change that started no deployment.
fn changed(view: &ConfigChanged) -> Shown {
    let environment = &view.environment;
    let Some(number) = view.configuration else {
        return Shown::Done(format!("nothing to change: the configuration of {environment} has these values already"));
    };
    let names: Vec<_> = view.set.iter().cloned().chain(view.unset.iter().map(|name| format!("-{name}"))).collect();
    let since =
        if view.live { "the live release keeps its configuration until the next deployment" } else { "the first push uses it" };
    Shown::Done(format!("configuration {number} of {environment} is stored ({}); {since}", names.join(", ")))
}

/// Remove variables, and start the live release again without them
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: larder config unset shop OLD_TOKEN LOG_LEVEL")]
pub struct UnsetArgs {
    #[command(flatten)]
    words: Words,
    /// Keep the processes running with the old values until the next deployment
    #[arg(long)]
    no_restart: bool,
}

impl Command for UnsetArgs {
    type Request = ConfigSet;

    fn request(self) -> Result<ConfigSet, CommandError> {
        let (target, words) = self.words.target_and_rest()?;
        if words.is_empty() {
            return Err(usage("no variable is named").hint("name the variables, as in `larder config unset shop LOG_LEVEL`"));
        }
        let change = ConfigChange { unset: words.into_iter().collect(), ..ConfigChange::default() };
        Ok(ConfigSet { target, change: ConfigInput::Words(change), restart: !self.no_restart })
    }

    fn show(view: &ConfigChanged) -> Shown {
        changed(view)
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Variables that the file does not name stay as they are. docs/configuration.md describes the format of the file. Nothing changes if one line has an error.\n\nExample: larder config import shop < .env"
)]
/// Set the variables of a file in the form NAME=VALUE, which is read from the standard input
pub struct ImportArgs {
    #[command(flatten)]
    on: On,
    /// Keep the processes running with the old values until the next deployment
    #[arg(long)]
    no_restart: bool,
}

impl Command for ImportArgs {
    type Request = ConfigSet;

    fn request(self) -> Result<ConfigSet, CommandError> {
        Ok(ConfigSet { target: self.on.target()?, change: ConfigInput::File, restart: !self.no_restart })
    }

    fn show(view: &ConfigChanged) -> Shown {
        changed(view)
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Values are shown to users with the right operate; with a smaller right, only the names are listed. With NAME, the value is written unchanged, without a newline at its end.\n\nThe variables of larder.yml, app.json and the server file are not listed: see `larder config explain`.\n\nExamples:\n  larder config show shop\n  larder config show shop API_TOKEN"
)]
/// Show the variables, or the value of one variable
pub struct ShowArgs {
    #[command(flatten)]
    words: Words,
}

impl Command for ShowArgs {
    type Request = ConfigShow;

    fn request(self) -> Result<ConfigShow, CommandError> {
        let (target, words) = self.words.target_and_rest()?;
        let mut words = words.into_iter();
        match (words.next(), words.next()) {
            (name, None) => Ok(ConfigShow { target, name }),
            _ => Err(usage("more than one variable is named").hint("name one variable, or none to list all")),
        }
    }

    fn show(view: &ConfigView) -> Shown {
        if let (true, [only]) = (view.single, view.variables.as_slice()) {
            return Shown::Verbatim(only.value.clone().unwrap_or_default());
        }
        let environment = &view.environment;
        let Some(number) = view.configuration else {
            return Shown::Page(format!("{environment} has no configuration\n"));
        };
        let live = match view.live {
            Some(live) if live == number => String::from("live"),
            Some(live) => format!("used by the next deployment; configuration {live} is live"),
            None => String::from("used by the next deployment"),
        };
        let mut text = format!("configuration {number} of {environment} ({live})\n");
        if !view.values && !view.variables.is_empty() {
            text.push_str("values are hidden: showing them needs the right operate\n");
        }
        let rows = view.variables.iter().map(|variable| vec![variable.name.clone(), shown(variable)]);
        match view.variables.is_empty() {
            true => text.push_str("no variable is set\n"),
            false => text.push_str(&table(&["NAME", "VALUE"], rows.collect())),
        }
        Shown::Page(text)
    }
}

/// The maximum number of characters of a value in a table.
const MAX_SHOWN: usize = 80;

/// Renders a value on one line. Values that do not fit on one line are described.
fn shown(variable: &VariableView) -> String {
    let size = || count(u64::try_from(variable.bytes.unwrap_or(0)).unwrap_or(u64::MAX), "byte");
    match (&variable.value, variable.bytes) {
        (Some(value), _) if value.chars().count() <= MAX_SHOWN && !value.chars().any(char::is_control) => value.clone(),
        (Some(value), _) => format!("({}, {})", size(), count(u64::try_from(value.lines().count()).unwrap_or(u64::MAX), "line")),
        (None, Some(_)) => format!("({}, not text)", size()),
        (None, None) => String::from("(hidden)"),
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without TO, the later configuration is the one that the next deployment uses.\n\nExamples:\n  larder config diff shop 3 5\n  larder config diff shop 3 --values"
)]
/// Show the variables that differ between two configurations
pub struct DiffArgs {
    #[command(flatten)]
    words: Words,
    /// Show the values, which needs the right operate
    #[arg(long)]
    values: bool,
}

impl Command for DiffArgs {
    type Request = ConfigDiff;

    fn request(self) -> Result<ConfigDiff, CommandError> {
        let (target, words) = self.words.target_and_rest()?;
        let number = |word: &String| {
            let parsed = word.parse().map(SnapshotNumber);
            parsed.map_err(|_| usage(format!("{} is not the number of a configuration", crate::model::sanitise_reason(word))))
        };
        let hint = "name one or two configurations, as in `larder config diff shop 3 5`; `larder config history` lists them";
        match words.as_slice() {
            [from] => Ok(ConfigDiff { target, from: number(from)?, to: None, values: self.values }),
            [from, to] => Ok(ConfigDiff { target, from: number(from)?, to: Some(number(to)?), values: self.values }),
            _ => Err(usage("no configuration is named").hint(hint)),
        }
    }

    fn show(view: &ConfigDifferences) -> Shown {
        if view.changes.is_empty() {
            return Shown::Page(format!("configurations {} and {} have the same variables\n", view.from, view.to));
        }
        let mut text = String::new();
        for change in &view.changes {
            let sign = match change.change {
                VariableChange::Added => '+',
                VariableChange::Removed => '-',
                VariableChange::Changed => '~',
            };
            let _ = write!(text, "{sign} {}", change.name);
            match (&change.before, &change.after) {
                (None, None) => {}
                (before, after) => {
                    let of = |view: &Option<VariableView>| view.as_ref().map_or_else(|| String::from("(not set)"), shown);
                    let _ = write!(text, ": {} -> {}", of(before), of(after));
                }
            }
            text.push('\n');
        }
        Shown::Page(text)
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  larder config export shop > shop.env\n  larder config export shop --number 3 | larder config import shop"
)]
/// Write all variables with their values in the format that `config import` reads
pub struct ExportArgs {
    #[command(flatten)]
    on: On,
    /// Number of an earlier configuration
    #[arg(long, value_name = "NUMBER")]
    number: Option<u32>,
}

impl Command for ExportArgs {
    type Request = ConfigExport;

    fn request(self) -> Result<ConfigExport, CommandError> {
        Ok(ConfigExport { target: self.on.target()?, number: self.number.map(SnapshotNumber) })
    }

    fn show(view: &ConfigFile) -> Shown {
        Shown::Verbatim(view.text.clone())
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A * marks the configuration of the live release, and a > the configuration that the next deployment uses if it is another one. Names with a minus were removed.\n\nExample: larder config history shop"
)]
/// List the configurations of an environment, newest first
pub struct HistoryArgs {
    #[command(flatten)]
    on: On,
}

impl Command for HistoryArgs {
    type Request = ConfigHistory;

    fn request(self) -> Result<ConfigHistory, CommandError> {
        Ok(ConfigHistory { target: self.on.target()? })
    }

    fn show(rows: &Vec<ConfigRow>) -> Shown {
        let line = |row: &ConfigRow| {
            let mark = if row.live { " *" } else { "" };
            let next = if row.next && !row.live { " >" } else { "" };
            let releases: Vec<_> = row.releases.iter().map(ToString::to_string).collect();
            let names = row.set.iter().cloned().chain(row.unset.iter().map(|name| format!("-{name}")));
            let mut names: Vec<_> = names.collect();
            // A configuration without changed variables has other values of the pillar.
            if let (true, Some(pillar)) = (names.is_empty(), &row.pillar) {
                names.push(format!("pillar {}", pillar.short()));
            }
            vec![
                format!("{}{mark}{next}", row.configuration),
                moment(row.at),
                row.by.to_string(),
                if releases.is_empty() { String::from("-") } else { releases.join(", ") },
                names.join(", "),
            ]
        };
        Shown::Page(table(&["NUMBER", "CREATED (UTC)", "BY", "RELEASES", "CHANGED"], rows.iter().map(line).collect()))
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The list is in rising order of precedence: server file, app.json, larder.yml, variables of single processes, sample of the pillar, pillar, configuration. A * marks the value that processes get. Values are shown to users with the right operate, or with the right on the pillar.\n\nExample: larder config explain shop LOG_LEVEL"
)]
/// Show every file and configuration that sets a variable, and the one that takes precedence
pub struct ExplainArgs {
    #[command(flatten)]
    words: Words,
}

impl Command for ExplainArgs {
    type Request = ConfigExplain;

    fn request(self) -> Result<ConfigExplain, CommandError> {
        let (target, words) = self.words.target_and_rest()?;
        let mut words = words.into_iter();
        match (words.next(), words.next()) {
            (Some(name), None) => Ok(ConfigExplain { target, name }),
            _ => Err(usage("no variable is named").hint("name one variable, as in `larder config explain shop LOG_LEVEL`")),
        }
    }

    fn show(view: &ConfigExplanation) -> Shown {
        let mut text = String::new();
        if view.layers.is_empty() {
            let _ = writeln!(text, "nothing sets {} in {}", view.name, view.environment);
        }
        let rows = view.layers.iter().map(|layer| {
            let line = layer.line.map(|line| format!("line {line}"));
            let place: Vec<_> = line.into_iter().chain(layer.by.as_ref().map(|by| format!("by {by}"))).collect();
            let place = if place.is_empty() { String::new() } else { format!(" ({})", place.join(", ")) };
            let value = layer.value.as_ref().map(|value| {
                let bytes = Some(value.len());
                shown(&VariableView { name: view.name.clone(), value: Some(value.clone()), base64: None, bytes })
            });
            let only = layer.only.as_ref().map(|only| format!("only {only}")).unwrap_or_default();
            let mark = if layer.wins { "*" } else { "" };
            vec![format!("{}{place}", layer.source), value.unwrap_or_default(), only, mark.to_owned()]
        });
        if !view.layers.is_empty() {
            text.push_str(&table(&["SET IN", "VALUE", "FOR", ""], rows.collect()));
        }
        for note in &view.notes {
            let _ = writeln!(text, "note: {note}");
        }
        Shown::Page(text)
    }
}
