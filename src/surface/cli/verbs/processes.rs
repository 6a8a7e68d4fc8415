//! `ps`, `logs` and `run`.

use super::On;
use crate::control::{CommandError, Kind, Request, Target};

/// List processes, or set how many of each there are.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The slot with a * is the one that serves. Scaling starts all processes of the environment again.\n\nExamples:\n  larder ps shop\n  larder ps shop --scale web=2 --scale worker=1"
)]
pub struct Ps {
    #[command(flatten)]
    on: On,
    /// How many of a process type; may be repeated, and holds for later releases too
    #[arg(long, value_name = "TYPE=NUMBER", value_parser = pair)]
    scale: Vec<(String, u32)>,
}

fn pair(text: &str) -> Result<(String, u32), String> {
    let (process, count) = text.split_once('=').ok_or("write TYPE=NUMBER, such as web=2")?;
    let process = process.parse::<crate::model::ProcessType>().map_err(|error| error.to_string())?;
    let count = count.parse().map_err(|_| format!("{count:?} is not a number"))?;
    Ok((process.to_string(), count))
}

impl Ps {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        let target = self.on.get()?;
        Ok(if self.scale.is_empty() { Request::Ps { target } } else { Request::Scale { target, scale: self.scale } })
    }
}

/// Show what processes print.
#[derive(Debug, clap::Args)]
pub struct Logs {
    #[command(flatten)]
    on: On,
    /// Go on with what comes, until Ctrl-C
    #[arg(long, short = 'f', visible_short_alias = 't', visible_alias = "tail")]
    follow: bool,
    /// How many lines of the past
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u16).range(0..=10_000))]
    lines: u16,
    /// Only this process, such as `web` or `web.1`
    #[arg(long, short = 'p', value_name = "PROCESS")]
    process: Option<String>,
}

impl Logs {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        Ok(Request::Logs { target: self.on.get()?, process: self.process, lines: self.lines.into(), follow: self.follow })
    }
}

/// Run a command in the live release.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The command sees the live release at /app with its configuration; what it changes there is seen by the processes of the slot, and gone with the next release. Its exit status is that of the command. One that is left open is ended when its slot is needed: by a restart, a change of scale, or the second deployment from now.\n\nExample: larder run shop -- python manage.py migrate"
)]
pub struct Run {
    /// The project, or PROJECT/ENVIRONMENT
    #[arg(long, short = 'a', value_name = "PROJECT")]
    app: Option<Target>,
    /// The project (unless --app names it), then the command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "PROJECT COMMAND")]
    words: Vec<String>,
}

impl Run {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        let usage = |message: String| CommandError::new(Kind::Usage, message).hint("`larder run shop -- COMMAND ARGUMENT...`");
        let mut words = self.words.into_iter().peekable();
        let target = match self.app {
            Some(target) => target,
            None => words.next().unwrap_or_default().parse().map_err(|error| usage(format!("{error}")))?,
        };
        words.next_if_eq("--");
        let command: Vec<_> = words.collect();
        if command.is_empty() {
            return Err(usage(String::from("which command?")));
        }
        Ok(Request::Run { target, command })
    }
}
