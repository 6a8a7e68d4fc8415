//! What each request does, once the gate has let it through.

mod deliverables;
mod deployments;
mod drift;
mod exports;
mod insight;
mod keys;
mod processes;
mod projects;
mod promotion;
mod releases;
mod remotes;
mod users;

pub(super) use deliverables::Heads;

use super::{Caller, CommandError, Control, Kind, Registry, Reply, Request};
use crate::model::Remote;

/// Does what is asked.
pub(super) async fn handle(control: &Control, caller: &Caller, request: Request) -> Result<Reply, CommandError> {
    match request {
        Request::Whoami => Ok(users::whoami(control, caller)),
        Request::UserAdd { name, admin, keys } => users::add(control, name, admin, keys).await,
        Request::UserList => Ok(users::list(control)),
        Request::UserRemove { name } => users::remove(control, name).await,
        Request::UserGrant { name, project, access } => users::grant(control, name, project, access).await,
        Request::KeyAdd { name, key } => users::add_key(control, name, key).await,
        Request::KeyRemove { fingerprint } => users::remove_key(control, fingerprint).await,
        Request::KeyShow => Ok(Reply::Keys(control.0.keys.clone())),
        Request::KeyTrust { project, key, name } => keys::trust(control, project, key, name).await,
        Request::KeyUntrust { project, key } => keys::untrust(control, project, key).await,
        Request::ProjectCreate(spec) => projects::create(control, spec).await,
        Request::ProjectList => Ok(projects::list(control, caller)),
        Request::ProjectInfo { project } => projects::info(control, &project).await,
        Request::ProjectDestroy { project, confirm } => projects::destroy(control, project, confirm).await,
        Request::Deploy { target, action } => deployments::deploy(control, caller, &target, action).await,
        Request::Rollback { target, release } => deployments::rollback(control, caller, &target, release).await,
        Request::Pull { target, release, from, overriding } => {
            promotion::pull(control, caller, target, release.as_deref(), from.as_ref(), overriding).await
        }
        Request::Promote { target, release, to, overriding } => {
            promotion::promote(control, caller, target, release.as_deref(), &to, overriding).await
        }
        Request::Plan { target, reference, only } => deployments::plan(control, &target, reference, &only).await,
        Request::Releases { target } => releases::list(control, &target).await,
        Request::ReleaseShow { target, release } => releases::show(control, &target, release.as_deref()).await,
        Request::ReleaseDiff { target, from, to } => releases::diff(control, &target, &from, to.as_deref()).await,
        Request::ReleaseExport { target, release } => exports::export(control, &target, &release).await,
        Request::ReleaseImport { target } => exports::import(control, &target).await,
        Request::ReleasePin { target, release, pinned } => releases::pin(control, caller, &target, &release, pinned).await,
        Request::Drift { target, action } => drift::drift(control, caller, &target, action).await,
        Request::Ps { target } => processes::ps(control, &target),
        Request::Scale { target, scale } => processes::scale(control, &target, scale).await,
        Request::Restart { target } => processes::restart(control, &target).await,
        Request::Logs { target, process, lines, follow } => processes::logs(control, &target, process, lines, follow),
        Request::Run { target, command } => processes::run(control, &target, command),
        Request::DeliverableList { target } => deliverables::list(control, &target).await,
        Request::DeliverableInfo { target, release, object } => deliverables::info(control, &target, &release, object).await,
        Request::DeliverableGet { target, release, object, parts, haves } => {
            deliverables::get(control, &target, &release, object, parts, haves).await
        }
        Request::RemoteAdd { target, name, url, host_key, trust, publish } => {
            remotes::add(control, &target, Remote { name, url, host_key, trust, publish }).await
        }
        Request::RemoteList { target } => remotes::list(control, &target),
        Request::RemoteRemove { target, name } => remotes::remove(control, &target, &name).await,
        Request::RemoteCheck { target, name } => remotes::check(control, &target, &name).await,
        Request::Status => insight::status(control, caller).await,
        Request::Doctor => insight::doctor(control).await,
    }
}

impl Control {
    /// Changes the registry: what `change` makes of it is on the disk before anybody else sees it.
    async fn change<T>(&self, change: impl FnOnce(&mut Registry) -> Result<T, CommandError>) -> Result<T, CommandError> {
        let _one_at_a_time = self.0.change.lock().await;
        let mut next = self.0.registry.read().clone();
        let result = change(&mut next)?;
        let saved = next.save(&self.0.root.registry_file());
        saved.map_err(|error| CommandError::internal(&error))?;
        *self.0.registry.write() = next;
        self.0.changed.send_replace(());
        Ok(result)
    }
}

fn not_found(message: String) -> CommandError {
    CommandError::new(Kind::NotFound, message)
}

fn refused(message: impl Into<String>) -> CommandError {
    CommandError::new(Kind::Refused, message)
}
