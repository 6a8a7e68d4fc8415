//! The command `larder run`, which runs a command in the live release.

use super::super::command::{Command, Shown};
use crate::{
    control::{self, CommandError, ErrorKind},
    model::Target,
};

/// Run a command in the live release
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The command runs with the live release at /app, and with the environment variables of this release. Files that the command changes at /app are visible to the processes of the slot, and are discarded with the slot. larder exits with the exit status of the command, or with 128 and the number of the signal that ended the command. If the standard input and output are a terminal, the command has a terminal of its own: its size follows the window, keys such as Ctrl-C go to the command, and a connection that ends hangs up the terminal. The command is stopped when its slot is needed: by a restart, by a change of scale, or by the second deployment from now.\n\nWith --restore-point, the files in data/ are a copy of the restore point, /app is read-only, and variables with the URL of a database are not set. The copy is deleted when the command has ended. One command at a time works on a copy.\n\nExamples:\n  larder run shop bash\n  larder run shop -- python manage.py migrate\n  larder run --restore-point latest shop -- ls -l /data"
)]
pub struct RunArgs {
    /// Project, or PROJECT/ENVIRONMENT
    #[arg(long, short = 'a', value_name = "PROJECT")]
    app: Option<Target>,
    /// Run on a copy of this restore point's data, which is deleted afterwards, instead of the live data
    #[arg(long, value_name = "POINT")]
    restore_point: Option<String>,
    /// Run without a terminal, also if the standard input is one
    #[arg(long)]
    no_tty: bool,
    /// Project (unless --app names it), then the command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "PROJECT COMMAND")]
    words: Vec<String>,
}

impl RunArgs {
    /// Returns true if the command may run in a terminal.
    pub(super) fn is_interactive(&self) -> bool {
        !self.no_tty
    }
}

impl Command for RunArgs {
    type Request = control::Run;

    fn request(self) -> Result<control::Run, CommandError> {
        let usage =
            |message: String| CommandError::new(ErrorKind::Usage, message).hint("write `larder run shop -- COMMAND ARGUMENT...`");
        let mut words = self.words.into_iter().peekable();
        let target = match self.app {
            Some(target) => target,
            None => words.next().unwrap_or_default().parse().map_err(|error| usage(format!("{error}")))?,
        };
        words.next_if_eq("--");
        let command: Vec<_> = words.collect();
        if command.is_empty() {
            return Err(usage(String::from("no command is given")));
        }
        Ok(control::Run { target, command, point: self.restore_point })
    }

    // The answer to this request is a stream of the command's output, so there is no view to show.
    fn show((): &()) -> Shown {
        Shown::Page(String::new())
    }
}
