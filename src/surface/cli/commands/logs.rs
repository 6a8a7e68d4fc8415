//! The command `larder logs`, which shows the output of processes.

use super::{
    super::command::{Command, Shown},
    arguments::On,
};
use crate::control::{self, CommandError};

/// Show the output of processes
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  larder logs shop\n  larder logs shop --follow --process worker")]
pub struct LogsArgs {
    #[command(flatten)]
    on: On,
    /// Continue with new lines until Ctrl-C
    #[arg(long, short = 'f', visible_short_alias = 't', visible_alias = "tail")]
    follow: bool,
    /// Number of past lines
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u16).range(0..=10_000))]
    lines: u16,
    /// Only this process, such as `web` or `web.1`
    #[arg(long, short = 'p', value_name = "PROCESS")]
    process: Option<String>,
}

impl Command for LogsArgs {
    type Request = control::LogsRead;

    fn request(self) -> Result<control::LogsRead, CommandError> {
        let target = self.on.target()?;
        Ok(control::LogsRead { target, process: self.process, lines: self.lines.into(), follow: self.follow })
    }

    fn show(lines: &Vec<String>) -> Shown {
        Shown::Page(lines.iter().map(|line| format!("{line}\n")).collect())
    }
}
