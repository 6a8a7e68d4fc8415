//! `drift`.

use super::On;
use crate::control::{CommandError, DriftAction, Request};

/// Show what was changed by hand in what runs, and keep it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Compared are the files of the live release with what its processes see at /app, and the installed tree with its manifest. What lies in data/ is no part of a release. Caches, logs and the like are shown as such; `drift: {ignore: [...]}` in larder.yml names more.\n\nWhat is found is kept by itself before a slot is emptied; the last 20 such patches stay. `drift:` in larder.yml says what a deployment does about it.\n\nExamples:\n  larder drift shop\n  larder drift shop --save\n  larder drift shop --show 3f9a1c > hotfix.diff"
)]
pub struct Drift {
    #[command(flatten)]
    on: On,
    #[command(flatten)]
    action: Action,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Action {
    /// Look at the slot only, not at every byte of the installed tree
    #[arg(long)]
    quick: bool,
    /// Keep what was changed by hand as a patch, until it is dropped
    #[arg(long)]
    save: bool,
    /// List the patches that were kept
    #[arg(long)]
    patches: bool,
    /// Show a patch: its text is what `git apply` takes
    #[arg(long, value_name = "ID")]
    show: Option<String>,
    /// Remove a patch for good
    #[arg(long, value_name = "ID")]
    drop: Option<String>,
}

impl Drift {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        let action = match self.action {
            Action { save: true, .. } => DriftAction::Save,
            Action { patches: true, .. } => DriftAction::Patches,
            Action { show: Some(patch), .. } => DriftAction::Show { patch },
            Action { drop: Some(patch), .. } => DriftAction::Drop { patch },
            Action { quick, .. } => DriftAction::Look { quick },
        };
        Ok(Request::Drift { target: self.on.get()?, action })
    }
}
