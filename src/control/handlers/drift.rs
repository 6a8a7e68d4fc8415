//! Requests about drift and about patches, which are saved drift.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    control::{
        authz::Needs,
        error::{CommandError, not_found, refused, run_blocking},
        request::{Context, Reply, Request},
        state::Control,
    },
    drift::{self, Patch},
    model::{Access, CommitId, Environment, Live, Mode, ReleaseId, ReleaseNumber, Target, UserName, sanitise_reason},
    pipeline::DriftError,
};

/// The maximum length of the text of a patch in an answer, in bytes.
const MAX_TEXT: u64 = 4 << 20;

/// The request to compare the live files with their release, or to manage patches.
#[derive(Debug)]
pub struct DriftRequest {
    /// The environment.
    pub target: Target,
    /// The action.
    pub action: DriftAction,
}

/// An action of [`DriftRequest`].
#[derive(Debug)]
pub enum DriftAction {
    /// Shows the changes.
    Show {
        /// True to compare only the slot. The comparison of the installed tree, which reads every byte, is skipped.
        quick: bool,
    },
    /// Saves the changes as a patch.
    Save,
    /// Lists the patches.
    Patches,
    /// Shows a patch.
    ShowPatch {
        /// The id of the patch, or the first characters of the id.
        patch: String,
    },
    /// Deletes a patch.
    DropPatch {
        /// The id of the patch, or the first characters of the id.
        patch: String,
    },
}

/// The answer to [`DriftRequest`].
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum DriftView {
    /// The changes.
    Report(Box<DriftReport>),
    /// The patches, newest first.
    Patches(Vec<PatchRow>),
    /// A patch.
    Patch(Box<PatchDetail>),
    /// A patch that was deleted.
    Dropped {
        /// The environment, as `project/environment`.
        environment: String,
        /// The id of the patch.
        dropped: String,
    },
}

/// The difference between the live files and their release.
#[derive(Debug, Clone, Serialize)]
pub struct DriftReport {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The live release.
    pub live: Live,
    /// The changes in the slot.
    #[serde(flatten)]
    pub drift: drift::Drift,
    /// The difference between the installed tree and its manifest; absent if the request did not compare the installed tree.
    pub tree: Option<TreeReport>,
    /// The id of the patch that was saved by this request.
    pub patch: Option<String>,
}

/// The difference between an installed tree and its manifest.
#[derive(Debug, Clone, Serialize)]
pub struct TreeReport {
    /// The first differences.
    pub differences: Vec<TreeDifference>,
    /// The number of further differences.
    pub more: u64,
}

/// A path at which an installed tree differs from its manifest.
#[derive(Debug, Clone, Serialize)]
pub struct TreeDifference {
    /// The path in the tree.
    pub path: String,
    /// The difference as text.
    pub what: String,
}

/// A patch in a list.
#[derive(Debug, Clone, Serialize)]
pub struct PatchRow {
    /// The id.
    pub id: String,
    /// The release that was changed.
    pub release: ReleaseId,
    /// The number of the changed release; absent if there is no longer a record of this release.
    pub number: Option<ReleaseNumber>,
    /// The commit of the changed release.
    pub commit: CommitId,
    /// The time at which the patch was saved.
    pub created: Timestamp,
    /// The user who saved the patch; absent if a deployment or a restart saved it.
    pub by: Option<UserName>,
    /// The number of changes in the patch.
    pub changes: u64,
}

/// A patch with its text.
#[derive(Debug, Clone, Serialize)]
pub struct PatchDetail {
    /// The patch.
    #[serde(flatten)]
    pub patch: Patch,
    /// The changes of text files, as a unified diff.
    pub text: String,
}

impl Request for DriftRequest {
    type View = DriftView;
    const NAME: &'static str = "drift";

    fn needs(&self) -> Needs {
        let needed = match self.action {
            DriftAction::Show { .. } | DriftAction::Patches => Access::View,
            // A patch can contain data that is not in the repository, so the right to view is not enough.
            DriftAction::ShowPatch { .. } => Access::Deploy,
            DriftAction::Save | DriftAction::DropPatch { .. } => Access::Operate,
        };
        Needs::environment(&self.target, needed)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<DriftView>, CommandError> {
        let environment = control.environment(&self.target)?;
        if environment.mode == Mode::Editable {
            let why = format!("{} runs a checkout, which has no release to compare with", environment.title());
            return Err(refused(why).hint(format!("show changes by hand with `larder edits {}`", self.target)));
        }
        let view = match self.action {
            DriftAction::Show { quick } => DriftView::Report(Box::new(show(control, &environment, quick).await?)),
            DriftAction::Save => DriftView::Report(Box::new(save(control, caller.name(), &environment).await?)),
            DriftAction::Patches => DriftView::Patches(patches(control, environment).await?),
            DriftAction::ShowPatch { patch } => {
                let patch = named(control, &environment, patch).await?;
                let patches = control.pipeline().patches(&environment);
                let detail = move || {
                    let text = patches.text(&patch, MAX_TEXT).map_err(|error| CommandError::internal(&error))?;
                    Ok(PatchDetail { patch, text })
                };
                DriftView::Patch(Box::new(run_blocking(detail).await?))
            }
            DriftAction::DropPatch { patch } => {
                let patch = named(control, &environment, patch).await?;
                let (patches, dropped) = (control.pipeline().patches(&environment), patch.id.clone());
                run_blocking(move || patches.drop(&patch).map_err(|error| CommandError::internal(&error))).await?;
                DriftView::Dropped { environment: environment.title(), dropped }
            }
        };
        Ok(view.into())
    }
}

async fn show(control: &Control, environment: &Environment, quick: bool) -> Result<DriftReport, CommandError> {
    let pipeline = control.pipeline();
    let (live, drift) = pipeline.drift(environment).await.map_err(|error| of_drift(&error))?;
    let tree = if quick {
        None
    } else {
        let (found, more) = pipeline.verify_live(environment).await.map_err(|error| of_drift(&error))?;
        let differences = found.into_iter().map(|(path, what)| TreeDifference { path, what }).collect();
        Some(TreeReport { differences, more })
    };
    Ok(DriftReport { environment: environment.title(), live, drift, tree, patch: None })
}

async fn save(control: &Control, by: UserName, environment: &Environment) -> Result<DriftReport, CommandError> {
    let saved = control.pipeline().save_drift(environment, by).await;
    let (live, drift, patch) = saved.map_err(|error| of_drift(&error))?;
    let Some(patch) = patch else {
        return Err(refused(format!("cannot save a patch: nothing in {} was changed by hand", environment.title()))
            .hint(format!("see expected changes, such as caches and logs, with `larder drift {}`", environment.title())));
    };
    Ok(DriftReport { environment: environment.title(), live, drift, tree: None, patch: Some(patch.id) })
}

async fn patches(control: &Control, environment: Environment) -> Result<Vec<PatchRow>, CommandError> {
    let history = control.pipeline().history(environment.id);
    let patches = control.pipeline().patches(&environment);
    let row = move |patch: Patch| PatchRow {
        number: history.of_release(patch.release).map(|summary| summary.number),
        changes: patch.changes.len() as u64,
        id: patch.id,
        release: patch.release,
        commit: patch.commit,
        created: patch.created,
        by: patch.by,
    };
    run_blocking(move || Ok(patches.list().into_iter().map(row).collect())).await
}

async fn named(control: &Control, environment: &Environment, name: String) -> Result<Patch, CommandError> {
    let patches = control.pipeline().patches(environment);
    let title = environment.title();
    run_blocking(move || {
        patches.find(&name).ok_or_else(|| {
            not_found(format!("there is no patch {} in {title}", sanitise_reason(&name)))
                .hint(format!("list the patches with `larder drift {title} --patches`; four characters of an id are enough"))
        })
    })
    .await
}

fn of_drift(error: &DriftError) -> CommandError {
    match error {
        DriftError::Nothing(_) => not_found(error.to_string()).hint("push a release first"),
        DriftError::Failed { .. } => CommandError::internal(error),
    }
}
