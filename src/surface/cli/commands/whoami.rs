//! The command `larder whoami`, which shows the caller's name and rights.

use super::super::{
    command::{Command, Shown},
    text,
};
use crate::control::{self, CommandError, WhoamiView};

/// Show your user name and your rights on projects and environments
#[derive(Debug, clap::Args)]
pub struct WhoamiArgs {}

impl Command for WhoamiArgs {
    type Request = control::Whoami;

    fn request(self) -> Result<control::Whoami, CommandError> {
        Ok(control::Whoami)
    }

    fn show(view: &WhoamiView) -> Shown {
        let rights = view.access.iter().map(|(target, access)| vec![target.to_string(), access.to_string()]);
        Shown::Page(format!("{}\n{}", view.name, text::table(&["PROJECT", "RIGHT"], rights.collect())))
    }
}
