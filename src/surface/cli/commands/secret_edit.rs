//! The command `larder secret edit`. The client opens the editor; the server prints the text and makes the change.

use super::{
    super::command::{Asked, Asking, Command, Shown},
    arguments::On,
};
use crate::{
    control::{CommandError, ErrorKind, SecretEdit, SecretText, SecretTextView, SecretUnchanged},
    model::Target,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The editor of VISUAL or EDITOR opens on your own machine. Meanwhile the plain text is in a file on a tmpfs that only you can read, and that is removed at the end. Some editors copy texts elsewhere: start vim with EDITOR='vim -n -i NONE'.\n\nWithout a change, nothing is committed. If the text is not valid, the editor opens again with the error. If another person has changed the same secret meanwhile, nothing is changed. With PROJECT alone, the values are those for all environments; with PROJECT/ENVIRONMENT, those of one.\n\nExamples:\n  larder secret edit shop\n  larder -r prod secret edit shop/production"
)]
/// Edit the secrets of one file in your editor
pub struct SecretEditArgs {
    #[command(flatten)]
    on: On,
    /// Print the plain text, and open no editor
    #[arg(long, conflicts_with = "apply")]
    print: bool,
    /// Make the change that the standard input describes: a JSON object with the texts `base` and `text`
    #[arg(long)]
    apply: bool,
    /// Keep the processes running with the old values until the next deployment
    #[arg(long)]
    no_restart: bool,
}

impl SecretEditArgs {
    pub(super) fn opens_editor(&self) -> bool {
        !self.print && !self.apply
    }

    pub(super) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        let usage = |message: &str| CommandError::new(ErrorKind::Usage, message);
        let target = self.on.target()?;
        match (self.print, self.apply) {
            (_, true) => asking.ask(Apply(SecretEdit { target, restart: !self.no_restart })).await,
            (true, false) => asking.ask(Print(target)).await,
            (false, false) if matches!(asking, Asking::Needs) => asking.ask(Print(target)).await,
            (false, false) => Err(usage("cannot open an editor: the command runs on the server")
                .hint("let the program on your own machine open the editor: larder -r REMOTE secret edit PROJECT")),
        }
    }
}

/// The text of a file.
struct Print(Target);

impl Command for Print {
    type Request = SecretText;

    fn request(self) -> Result<SecretText, CommandError> {
        Ok(SecretText { target: self.0 })
    }

    fn show(view: &SecretTextView) -> Shown {
        Shown::Verbatim(view.text.clone())
    }
}

/// The change of a text.
struct Apply(SecretEdit);

impl Command for Apply {
    type Request = SecretEdit;

    fn request(self) -> Result<SecretEdit, CommandError> {
        Ok(self.0)
    }

    fn show(view: &SecretUnchanged) -> Shown {
        Shown::Done(format!("nothing to change in the pillar of {}", view.project))
    }
}
