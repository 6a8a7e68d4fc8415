//! The command `larder ps`, which lists processes, or sets their number.

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text,
    },
    arguments::On,
};
use crate::{
    control::{self, CommandError, ProcessRow, Scaled},
    model::ProcessType,
};

/// List processes, or set the number of processes of each type
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A * marks the live slot. Scaling restarts all processes of the environment.\n\nExamples:\n  larder ps shop\n  larder ps shop --scale web=2 --scale worker=1"
)]
pub struct PsArgs {
    #[command(flatten)]
    on: On,
    /// Number of processes of a type, for this and later releases; may be repeated
    #[arg(long, value_name = "TYPE=NUMBER", value_parser = pair)]
    scale: Vec<(String, u32)>,
}

fn pair(text: &str) -> Result<(String, u32), String> {
    let (process, count) = text.split_once('=').ok_or("expected TYPE=NUMBER, such as web=2")?;
    let process = process.parse::<ProcessType>().map_err(|error| error.to_string())?;
    let count = count.parse().map_err(|_| format!("{count:?} is not a number"))?;
    Ok((process.to_string(), count))
}

impl PsArgs {
    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        let PsArgs { on, scale } = self;
        if scale.is_empty() { asking.ask(PsListArgs { on }).await } else { asking.ask(PsScaleArgs { on, scale }).await }
    }
}

struct PsListArgs {
    on: On,
}

impl Command for PsListArgs {
    type Request = control::Ps;

    fn request(self) -> Result<control::Ps, CommandError> {
        Ok(control::Ps { target: self.on.target()? })
    }

    fn show(rows: &Vec<ProcessRow>) -> Shown {
        let line = |row: &ProcessRow| {
            vec![
                row.process.clone(),
                row.number.map_or_else(|| String::from("?"), |number| number.to_string()),
                format!("{}{}", row.slot, if row.active { " *" } else { "" }),
                row.port.map(|port| port.to_string()).unwrap_or_default(),
                row.restarts.to_string(),
                row.last_exit.clone().unwrap_or_default(),
            ]
        };
        let header = ["PROCESS", "RELEASE", "SLOT", "PORT", "RESTARTS", "LAST EXIT"];
        Shown::Page(text::table(&header, rows.iter().map(line).collect()))
    }
}

struct PsScaleArgs {
    on: On,
    scale: Vec<(String, u32)>,
}

impl Command for PsScaleArgs {
    type Request = control::Scale;

    fn request(self) -> Result<control::Scale, CommandError> {
        Ok(control::Scale { target: self.on.target()?, scale: self.scale })
    }

    fn show(view: &Scaled) -> Shown {
        let numbers: Vec<_> = view.scale.iter().map(|(process, count)| format!("{process}={count}")).collect();
        Shown::Done(format!("{} runs {}", view.environment, numbers.join(" ")))
    }
}
