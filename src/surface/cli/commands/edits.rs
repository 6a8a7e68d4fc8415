//! The command `larder edits`, which shows, commits or drops changes in the checkout of an editable environment.

use super::super::{
    command::{Command, Shown},
    text,
};
use crate::{
    control::{self, CommandError, EditsAction, EditsState, EditsView, ErrorKind},
    git::checkout::EditedFile,
    model::{Target, sanitise_line},
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The environment has the mode editable, so it runs a checkout in which people may work. `commit` commits all changed and new files in your name, and deploys the commit; then `git fetch` brings it to your clone. `drop` puts the files into git's stash; `git stash pop` in the checkout brings them back.\n\nExamples:\n  larder edits shop\n  larder edits shop commit --message \"Correct the address\"\n  larder edits shop drop"
)]
/// Show, commit or drop files that were changed by hand in an editable environment
pub struct EditsArgs {
    /// Project, or PROJECT/ENVIRONMENT
    #[arg(value_name = "PROJECT")]
    target: Target,
    /// Action
    #[arg(value_name = "ACTION", value_enum, default_value_t = ActionWord::Show)]
    action: ActionWord,
    /// Message of the commit
    #[arg(long, short = 'm', value_name = "TEXT")]
    message: Option<String>,
}

/// The action of `larder edits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ActionWord {
    /// Lists the files
    Show,
    /// Commits all files, and deploys the commit
    Commit,
    /// Puts all files into git's stash
    Drop,
}

impl Command for EditsArgs {
    type Request = control::Edits;

    fn request(self) -> Result<control::Edits, CommandError> {
        let action = match (self.action, self.message) {
            (ActionWord::Commit, Some(message)) if !message.trim().is_empty() => EditsAction::Commit { message },
            (ActionWord::Commit, _) => {
                return Err(CommandError::new(ErrorKind::Usage, "the commit has no message")
                    .hint("give a message, as in `larder edits shop commit --message \"Correct the address\"`"));
            }
            (_, Some(_)) => return Err(CommandError::new(ErrorKind::Usage, "a message is only for commit")),
            (ActionWord::Show, None) => EditsAction::Show,
            (ActionWord::Drop, None) => EditsAction::Drop,
        };
        Ok(control::Edits { target: self.target, action })
    }

    fn show(view: &EditsView) -> Shown {
        match view {
            EditsView::State(state) => Shown::Page(page(state)),
            EditsView::Nothing { environment } => Shown::Done(format!("nothing was changed by hand in {environment}")),
            EditsView::Dropped { environment, dropped } => {
                let count = text::count(dropped.len(), "file");
                Shown::Done(format!(
                    "{count} of {environment} moved to git's stash; `git stash pop` in the checkout brings them back"
                ))
            }
        }
    }
}

fn page(state: &EditsState) -> String {
    let name = &state.environment;
    let mut text = match state.count {
        0 => format!("Nothing was changed by hand in {name}.\n"),
        count => format!("{} changed by hand in {name}:\n", text::count(count, "file")),
    };
    for EditedFile { path, edit } in &state.edits {
        text.push_str(&format!("  {:<8} {}\n", edit.as_str(), sanitise_line(path)));
    }
    let more = state.count.saturating_sub(state.edits.len());
    if more > 0 {
        text.push_str(&format!("  ... and {more} more\n"));
    }
    if let (Some(commit), Some(live)) = (&state.commit, &state.live)
        && commit != live
    {
        text.push_str(&format!("The checkout has the commit {}; {} is live.\n", commit.short(), live.short()));
    }
    if !state.stash.is_empty() {
        let entries = if state.stash.len() == 1 { String::from("1 entry") } else { format!("{} entries", state.stash.len()) };
        text.push_str(&format!("git's stash has {entries}:\n"));
        for entry in &state.stash {
            text.push_str(&format!("  {}\n", sanitise_line(entry)));
        }
    }
    if !state.kept.is_empty() {
        text.push_str(&format!("Commits that were made during a push are on {}.\n", sanitise_line(&state.kept.join(", "))));
    }
    text
}
