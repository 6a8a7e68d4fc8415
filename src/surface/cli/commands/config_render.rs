//! The command `larder config render`, which shows the rendered templates of the live release.

use super::{
    super::command::{Command, Shown},
    arguments::Words,
};
use crate::control::{CommandError, ConfigRender, ErrorKind};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The files are rendered in the sandbox of the live release, with the values that the next deployment uses, and are printed, not written. FILE is the path of a template or of its rendered file; without FILE, all files are shown. The output contains secrets.\n\nExamples:\n  larder config render shop\n  larder config render shop config/database.yml"
)]
/// Show the files that the templates of the live release become
pub struct RenderArgs {
    #[command(flatten)]
    words: Words,
}

impl Command for RenderArgs {
    type Request = ConfigRender;

    fn request(self) -> Result<ConfigRender, CommandError> {
        let (target, words) = self.words.target_and_rest()?;
        let mut words = words.into_iter();
        match (words.next(), words.next()) {
            (file, None) => Ok(ConfigRender { target, file }),
            _ => {
                let error = CommandError::new(ErrorKind::Usage, "more than one file is named");
                Err(error.hint("name one file, or none to show all files"))
            }
        }
    }

    // The answer to this request is a stream of the rendered files, so there is no view to show.
    fn show((): &()) -> Shown {
        Shown::Page(String::new())
    }
}
