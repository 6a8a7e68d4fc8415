//! The errors of requests that fail because the disk is full or a quota is exhausted. Such an error is a refusal that states the free space,
//! and not an internal error: the caller can solve the problem.

use std::path::{Path, PathBuf};

use super::{
    authz::Scope,
    error::{CommandError, ErrorKind},
};
use crate::{
    host::root::Root,
    pipeline::{names_full_disk, with_figures},
};

/// The hint for a caller who may have no right to any restore point.
const HINT: &str = "free disk space on the server, or ask its operator for more";

/// Returns the directory whose file system the objects of `scope` fill: a project can have a file system of its own.
pub(super) fn place_of(root: &Root, scope: &Scope) -> PathBuf {
    let project = match scope {
        Scope::Server => return root.path().to_owned(),
        Scope::Project(project) | Scope::Repository(project) | Scope::Pillar(project) => project,
        Scope::Environment(target) | Scope::OfMode(target, _) | Scope::Promotion { from: target, .. } => &target.project,
    };
    root.project(project)
}

/// States the free space at `place` in an error whose cause is a full disk. An internal error becomes a refusal.
pub(super) fn explained_error(place: &Path, error: CommandError) -> CommandError {
    if !names_full_disk(&error.message) {
        return error;
    }
    let CommandError { kind, message, mut hints } = error;
    if kind != ErrorKind::Internal {
        return CommandError { kind, message: with_figures(place, message), hints };
    }
    if hints.is_empty() {
        hints.push(HINT.to_owned());
    }
    CommandError { kind: ErrorKind::Refused, message: with_figures(place, message), hints }
}

#[cfg(test)]
mod tests {
    use std::{error::Error, io};

    use super::*;
    use crate::host::files::FileError;

    #[test]
    fn full_disk_is_a_refusal_with_the_free_space() {
        let directory = tempfile::tempdir().unwrap();
        let of = |errno| {
            let cause = FileError::io("write", "pins.json", io::Error::from_raw_os_error(errno));
            explained_error(directory.path(), CommandError::internal(&cause as &(dyn Error + 'static)))
        };
        for full in [28, 122] {
            let error = of(full);
            assert_eq!((error.kind, error.hints.as_slice()), (ErrorKind::Refused, &[HINT.to_owned()][..]));
            assert!(error.message.starts_with("cannot write pins.json: ") && error.message.contains("are free)"), "{error}");
        }
        assert_eq!((of(5).kind, of(5).hints.len()), (ErrorKind::Internal, 0));
        let failed = CommandError::new(ErrorKind::Deployment, "cannot start: No space left on device (os error 28)").hint("x");
        let shown = explained_error(directory.path(), failed);
        assert_eq!((shown.kind, shown.hints.len()), (ErrorKind::Deployment, 1));
        assert!(shown.message.contains("are free)"), "{shown}");
    }
}
