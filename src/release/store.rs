//! Lists the releases in the store of an environment, and removes their deltas.

use std::path::{Path, PathBuf};

pub use super::manifest::{from_bytes, head, parse, parse_known, read};
use super::{
    ReleaseError,
    manifest::{Head, SUFFIX},
};
use crate::{
    host::{
        files::{Confined, remove_if_present},
        root::EnvironmentPaths,
    },
    model::ReleaseId,
};

/// Returns the releases in a `releases/` directory, oldest first. A release counts as stored if its manifest exists.
pub fn list(releases: &Path) -> Result<Vec<ReleaseId>, ReleaseError> {
    let names = match Confined::open(releases).and_then(|dir| dir.names()) {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let mut found: Vec<ReleaseId> = names.iter().filter_map(|name| name.to_str()?.strip_suffix(SUFFIX)?.parse().ok()).collect();
    found.sort_unstable();
    Ok(found)
}

/// Returns the manifest heads of all releases in a `releases/` directory, oldest first. A manifest is logged and skipped if it cannot be
/// read, or if it names a release other than the release in its file name.
pub fn heads(releases: &Path) -> Result<Vec<Head>, ReleaseError> {
    let mut heads = Vec::new();
    for id in list(releases)? {
        let path = releases.join(format!("{id}{SUFFIX}"));
        match head(&path) {
            Ok(head) if head.release == id => heads.push(head),
            Ok(head) => {
                tracing::warn!(path = %path.display(), release = %head.release, "manifest skipped: it names another release")
            }
            Err(error) => tracing::warn!(path = %path.display(), %error, "manifest skipped"),
        }
    }
    Ok(heads)
}

/// Returns the path of the cached delta between two releases.
pub fn cached_delta(paths: &EnvironmentPaths, from: ReleaseId, to: ReleaseId) -> PathBuf {
    paths.deltas().join(format!("{from}..{to}"))
}

/// Removes all deltas that start from `release` or lead to it. The removal of a release calls this function.
pub fn forget_deltas(paths: &EnvironmentPaths, release: ReleaseId) -> Result<(), ReleaseError> {
    remove_if_present(&paths.delta(release))?;
    let directory = paths.deltas();
    let names = match Confined::open(&directory).and_then(|dir| dir.names()) {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let release = release.to_string();
    let concerned = |name: &str| name.split_once("..").is_some_and(|(from, to)| from == release || to == release);
    for name in names.iter().filter_map(|name| name.to_str()).filter(|name| concerned(name)) {
        remove_if_present(&directory.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(second: i64) -> ReleaseId {
        ReleaseId::new(jiff::Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn list_returns_releases_with_a_manifest_oldest_first() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (id(1000), id(2000));
        for name in [format!("{new}.manifest.json"), format!("{old}.manifest.json"), format!("{old}.tar.zst")] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        for name in [format!(".new-{}.manifest.json", id(1)), format!("{}.tar.zst", id(1)), "x.manifest.json".to_owned()] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(list(dir.path()).unwrap(), [old, new]);
        assert_eq!(list(&dir.path().join("none")).unwrap(), []);
    }

    #[test]
    fn forget_deltas_removes_deltas_from_and_to_a_release() {
        let dir = tempfile::tempdir().unwrap();
        let paths =
            crate::host::root::Root::new(dir.path()).environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
        forget_deltas(&paths, id(1)).unwrap();
        std::fs::create_dir_all(paths.deltas()).unwrap();
        let (a, b, c) = (id(1), id(2), id(3));
        let kept = [cached_delta(&paths, a, c), paths.delta(c)];
        let gone = [cached_delta(&paths, a, b), cached_delta(&paths, b, c), paths.delta(b)];
        for path in kept.iter().chain(&gone) {
            std::fs::write(path, "").unwrap();
        }
        forget_deltas(&paths, b).unwrap();
        assert!(kept.iter().all(|path| path.exists()) && gone.iter().all(|path| !path.exists()));
    }
}
