//! The command `larder restart`, which restarts the processes of an environment.

use super::{
    super::command::{Command, Shown},
    arguments::On,
};
use crate::control::{self, CommandError, Restarted};

/// Restart all processes of an environment; the application is not available meanwhile
#[derive(Debug, clap::Args)]
pub struct RestartArgs {
    #[command(flatten)]
    on: On,
}

impl Command for RestartArgs {
    type Request = control::Restart;

    fn request(self) -> Result<control::Restart, CommandError> {
        Ok(control::Restart { target: self.on.target()? })
    }

    fn show(view: &Restarted) -> Shown {
        Shown::Done(format!("{} was restarted", view.environment))
    }
}
