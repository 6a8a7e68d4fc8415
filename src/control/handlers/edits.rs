//! Requests about files that people changed by hand in the checkout of an editable environment.

use serde::Serialize;

use super::deployments::{deployment, of_pipeline, submit};
use crate::{
    control::{
        authz::Needs,
        error::{CommandError, not_found, refused},
        request::{Context, Reply, Request},
    },
    git::checkout::{CheckoutAnswer, CheckoutJob, CheckoutState, EditedFile},
    model::{Access, CommitId, Target, Trigger},
    pipeline::{EditsError, Goal},
};

/// The request to show, commit or drop changes by hand.
#[derive(Debug)]
pub struct Edits {
    /// The environment.
    pub target: Target,
    /// The action.
    pub action: EditsAction,
}

/// An action of [`Edits`].
#[derive(Debug)]
pub enum EditsAction {
    /// Shows the changes.
    Show,
    /// Commits all changes, and deploys the commit.
    Commit {
        /// The message of the commit.
        message: String,
    },
    /// Puts all changes into git's stash.
    Drop,
}

/// The answer to [`Edits`].
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum EditsView {
    /// The state of the checkout.
    State(EditsState),
    /// Nothing was changed by hand, so there is nothing to commit or to drop.
    Nothing {
        /// The environment, as `project/environment`.
        environment: String,
    },
    /// The changes are in git's stash.
    Dropped {
        /// The environment, as `project/environment`.
        environment: String,
        /// The files.
        dropped: Vec<EditedFile>,
    },
}

/// The state of a checkout.
#[derive(Debug, Serialize)]
pub struct EditsState {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The commit that is checked out.
    pub commit: Option<CommitId>,
    /// The live commit.
    pub live: Option<CommitId>,
    /// The files that were changed by hand.
    pub edits: Vec<EditedFile>,
    /// The number of files that were changed by hand; `edits` may have fewer.
    pub count: usize,
    /// The entries of git's stash, newest first.
    pub stash: Vec<String>,
    /// The branches that keep commits which a person made in the checkout while a push failed.
    pub kept: Vec<String>,
}

impl Request for Edits {
    type View = EditsView;
    const NAME: &'static str = "edits";

    fn needs(&self) -> Needs {
        let needed = match self.action {
            EditsAction::Show => Access::View,
            EditsAction::Commit { .. } => Access::Deploy,
            EditsAction::Drop => Access::Operate,
        };
        Needs::environment(&self.target, needed)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<EditsView>, CommandError> {
        let environment = control.environment(&self.target)?;
        let pipeline = control.pipeline();
        let wrong = |error: EditsError| of_edits(&error, &self.target);
        let state = pipeline.edits(&environment).await.map_err(wrong)?;
        let live = pipeline.live(environment.id).map(|live| live.commit);
        let title = environment.title();
        match self.action {
            EditsAction::Show => {
                let CheckoutState { head, edits, count, stashes, kept, .. } = state;
                Ok(EditsView::State(EditsState { environment: title, commit: head, live, edits, count, stash: stashes, kept })
                    .into())
            }
            EditsAction::Commit { .. } if state.count == 0 && state.head == live => {
                Ok(EditsView::Nothing { environment: title }.into())
            }
            EditsAction::Commit { message } => {
                let author = caller.name().to_string();
                let job = CheckoutJob::Commit { message, author, branch: environment.branch.clone() };
                let answer = pipeline.change_edits(&environment, &job).await.map_err(wrong)?;
                let CheckoutAnswer::Committed(commit) = answer else { return Err(wrong(EditsError::Confused)) };
                pipeline.import_edits(&environment, &commit).await.map_err(wrong)?;
                submit(control, deployment(Trigger::Redeploy { by: caller.name() }, environment, commit, Goal::Cook))
            }
            EditsAction::Drop if state.count == 0 => Ok(EditsView::Nothing { environment: title }.into()),
            EditsAction::Drop => match pipeline.change_edits(&environment, &CheckoutJob::Drop).await.map_err(wrong)? {
                CheckoutAnswer::Dropped(dropped) => Ok(EditsView::Dropped { environment: title, dropped }.into()),
                _ => Err(wrong(EditsError::Confused)),
            },
        }
    }
}

fn of_edits(error: &EditsError, target: &Target) -> CommandError {
    match error {
        EditsError::NoCheckout { .. } => {
            refused(error.to_string()).hint(format!("show changes by hand with `larder drift {target}`"))
        }
        EditsError::Empty(_) => not_found(error.to_string()).hint("push a commit first"),
        EditsError::Busy(busy) => of_pipeline(busy),
        EditsError::Objection { hint, .. } => refused(error.to_string()).hint(hint.clone()),
        EditsError::Git(_) | EditsError::Confused => CommandError::internal(error),
    }
}
