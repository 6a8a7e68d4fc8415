//! Access to repositories through libgit2: opens repositories, sets libgit2's process-wide options, and converts its errors and ids.

use std::{path::Path, sync::Once};

use git2::{Oid, Repository, RepositoryOpenFlags};

use super::job::GitFailure;
use crate::model::CommitId;

/// Opens the repository at `path`. Parent directories, environment variables and the host's configuration are ignored.
pub(super) fn open(path: &Path) -> Result<Repository, git2::Error> {
    prepare();
    Repository::open_ext(path, RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::BARE, None::<&Path>)
}

/// Sets libgit2's options before its first use. libgit2 then ignores the host's configuration, and its cache of objects has a size limit.
// The setters are unsafe because they are not synchronised with the use of libgit2.
#[allow(unsafe_code)]
fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        use git2::ConfigLevel::{Global, ProgramData, System, XDG};
        for level in [ProgramData, System, XDG, Global] {
            // SAFETY: `Once` makes these calls the first use of libgit2 in this process. Every use of libgit2 starts with `open`, and
            // concurrent callers of `open` wait until these calls are done.
            let _ = unsafe { git2::opts::set_search_path(level, "/nonexistent") };
        }
        // SAFETY: `Once` makes this call safe, as for `set_search_path`. The check of a repository's owner is disabled, because the keeper
        // chooses the user of each worker, and because the owner is possibly not mapped in a user namespace.
        let _ = unsafe { git2::opts::set_verify_owner_validation(false) };
        // SAFETY: `Once` makes this call safe, as for `set_search_path`. The size is in bytes, for the whole process.
        let _ = unsafe { git2::opts::set_cache_max_size(32 << 20) };
    });
}

/// Converts an error of libgit2 to the failure of the operation `doing`.
pub(super) fn failed(doing: impl Into<String>) -> impl FnOnce(git2::Error) -> GitFailure {
    let doing = doing.into();
    move |error| GitFailure::Failed { doing, why: error.message().to_owned() }
}

/// Converts a system error to the failure of the operation `doing`.
pub(super) fn failed_io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> GitFailure {
    let doing = doing.into();
    move |error| GitFailure::Failed { doing, why: error.to_string() }
}

pub(super) fn commit_id(oid: Oid) -> Result<CommitId, GitFailure> {
    oid.to_string().parse().map_err(|why| GitFailure::Failed { doing: String::from("read an object id"), why })
}

/// Returns true if `name` is of the form `tmp_objdir-incoming-AbCd12`, or `incoming-AbCd12` before git 2.35. git gives such a name to a
/// quarantine, the directory that contains the objects of a push until pre-receive has accepted the push.
pub(super) fn is_quarantine(name: &str) -> bool {
    let random = name.strip_prefix("tmp_objdir-").unwrap_or(name).strip_prefix("incoming-");
    random.is_some_and(|random| (1..=16).contains(&random.len()) && random.bytes().all(|c| c.is_ascii_alphanumeric()))
}

/// Makes the objects in the quarantine `name` visible in `repository`, which was opened at `path`.
pub(super) fn add_quarantine(repository: &Repository, path: &Path, name: &str) -> Result<(), GitFailure> {
    let failed =
        |why: &str| GitFailure::Failed { doing: String::from("read the objects of a push in progress"), why: why.to_owned() };
    if !is_quarantine(name) {
        return Err(failed("the directory is not a quarantine of git"));
    }
    let objects = path.join("objects").join(name);
    let objects = objects.to_str().ok_or_else(|| failed("the path of the repository is not UTF-8"))?;
    repository.odb().and_then(|odb| odb.add_disk_alternate(objects)).map_err(|error| failed(error.message()))
}
