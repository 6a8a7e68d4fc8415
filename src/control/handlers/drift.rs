//! Drift and the patches that keep it.

use super::{not_found, refused};
use crate::{
    control::{
        Caller, CommandError, Control, DriftAction, DriftReport, PatchDetail, PatchRow, Reply, Target, TreeDifference, TreeReport,
    },
    model::Environment,
    pipeline::DriftError,
    release::drift::Patch,
};

/// So much of a patch's text is shown, bytes.
const TEXT: u64 = 4 << 20;

pub(super) async fn drift(
    control: &Control,
    caller: &Caller,
    target: &Target,
    action: DriftAction,
) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    match action {
        DriftAction::Look { quick } => look(control, &environment, quick).await,
        DriftAction::Save => save(control, caller, &environment).await,
        DriftAction::Patches => Ok(Reply::Patches(patches(control, environment).await?)),
        DriftAction::Show { patch } => {
            let patch = named(control, &environment, patch).await?;
            let patches = control.pipeline().patches(&environment);
            let read = aside(move || Ok((patches.text(&patch, TEXT), patch))).await?;
            let text = read.0.map_err(|error| CommandError::internal(&error))?;
            Ok(Reply::Patch(Box::new(PatchDetail { patch: read.1, text })))
        }
        DriftAction::Drop { patch } => {
            let patch = named(control, &environment, patch).await?;
            let (patches, id) = (control.pipeline().patches(&environment), patch.id.clone());
            aside(move || patches.drop(&patch).map_err(|error| CommandError::internal(&error))).await?;
            Ok(Reply::Done(format!("the patch {id} of {} is gone", environment.title())))
        }
    }
}

async fn look(control: &Control, environment: &Environment, quick: bool) -> Result<Reply, CommandError> {
    let pipeline = control.pipeline();
    let (live, drift) = pipeline.drift(environment).await.map_err(|error| of_drift(&error))?;
    let tree = match quick {
        true => None,
        false => {
            let (found, more) = pipeline.verify_live(environment).await.map_err(|error| of_drift(&error))?;
            let differences = found.into_iter().map(|(path, what)| TreeDifference { path, what }).collect();
            Some(TreeReport { differences, more })
        }
    };
    Ok(Reply::Drift(Box::new(DriftReport { environment: environment.title(), live, drift, tree, patch: None })))
}

async fn save(control: &Control, caller: &Caller, environment: &Environment) -> Result<Reply, CommandError> {
    let saved = control.pipeline().save_drift(environment, caller.name()).await;
    let (live, drift, patch) = saved.map_err(|error| of_drift(&error))?;
    let Some(patch) = patch else {
        return Err(refused(format!("nothing in {} was changed by hand; there is nothing to keep", environment.title()))
            .hint(format!("`larder drift {}` also shows what is to be expected, such as caches and logs", environment.title())));
    };
    Ok(Reply::Drift(Box::new(DriftReport { environment: environment.title(), live, drift, tree: None, patch: Some(patch.id) })))
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
    aside(move || Ok(patches.list().into_iter().map(row).collect())).await
}

async fn named(control: &Control, environment: &Environment, name: String) -> Result<Patch, CommandError> {
    let patches = control.pipeline().patches(environment);
    let title = environment.title();
    aside(move || {
        patches.find(&name).ok_or_else(|| {
            not_found(format!("there is no patch {} in {title}", crate::model::sanitise_reason(&name)))
                .hint(format!("`larder drift {title} --patches` lists them; four or more characters of an id are enough"))
        })
    })
    .await
}

async fn aside<T: Send + 'static>(act: impl FnOnce() -> Result<T, CommandError> + Send + 'static) -> Result<T, CommandError> {
    let cancelled = |error: tokio::task::JoinError| CommandError::internal(&error);
    tokio::task::spawn_blocking(act).await.map_err(cancelled)?
}

fn of_drift(error: &DriftError) -> CommandError {
    match error {
        DriftError::Nothing(_) => not_found(error.to_string()).hint("there is something to compare after the first push"),
        DriftError::Failed { .. } => CommandError::internal(error),
    }
}
