//! The releases that an environment has, and which of them may go.

use std::{
    collections::BTreeSet,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use larder_archive::{Limits, check_entries, pool::both, tree_digest};

use super::{ReleaseError, bundle::Head, index};
use crate::{
    host::{
        files::{Confined, FileError, open_regular, remove_if_present},
        root::EnvironmentPaths,
    },
    model::{Manifest, ReleaseId},
};

/// The largest manifest that is read, in bytes: a million entries with long names.
pub const MAX_MANIFEST: u64 = 512 << 20;

pub(super) const SUFFIX: &str = ".manifest.json";

/// The releases in a `releases/` directory, oldest first. A release is there when its manifest is.
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

/// Reads and checks the manifest at `path`; quickly the next time, by the index that is left beside it.
pub fn read(path: &Path) -> Result<Manifest, ReleaseError> {
    let file = open_regular(path)?;
    if let Some(manifest) = index::of(path, &file) {
        return Ok(manifest);
    }
    let known = index::identity(&file);
    let manifest = parse(&file, path)?;
    index::keep(path, known, &manifest);
    Ok(manifest)
}

/// Reads what a manifest says besides its files, without checking those: for lists, where nothing follows from it.
pub fn head(path: &Path) -> Result<Head, ReleaseError> {
    let bytes = read_at_start(&open_regular(path)?, path)?;
    serde_json::from_slice(&bytes).map_err(|e| ReleaseError::Manifest { path: path.to_owned(), why: e.to_string() })
}

/// Reads and checks a manifest that is open; `path` is for messages.
pub fn parse(file: &File, path: &Path) -> Result<Manifest, ReleaseError> {
    from_bytes(&read_at_start(file, path)?, path)
}

/// The same of what [`index::open`] gave. Not for what somebody else may have written: an index is believed to be checked.
pub fn parse_known(file: &File, path: &Path) -> Result<Manifest, ReleaseError> {
    let bytes = read_at_start(file, path)?;
    if index::is_one(&bytes) { index::parse(&bytes, path) } else { from_bytes(&bytes, path) }
}

/// [`parse_known`] of two at a time, since each takes a while.
pub(super) fn parse_both<'a>(
    (one, of_one): (&File, &'a Path),
    (other, of_other): (&File, &'a Path),
) -> (Result<Manifest, ReleaseError>, Result<Manifest, ReleaseError>) {
    both(|| parse_known(one, of_one), || parse_known(other, of_other))
}

/// Reads from the first byte wherever the descriptor stands: descriptors that travel between processes share their position.
pub(super) fn read_at_start(file: &File, path: &Path) -> Result<Vec<u8>, ReleaseError> {
    let failed = |e: std::io::Error| FileError::Io { doing: "read", path: path.to_owned(), source: e };
    let size = file.metadata().map_err(failed)?.len();
    if size > MAX_MANIFEST {
        return Err(FileError::TooLarge { path: path.to_owned(), limit: MAX_MANIFEST }.into());
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    Ok(bytes)
}

/// Checks the bytes of a manifest; `path` is for messages.
pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Manifest, ReleaseError> {
    let wrong = |why: String| ReleaseError::Manifest { path: path.to_owned(), why };
    #[derive(serde::Deserialize)]
    struct Format {
        format: u32,
    }
    let other = |format| wrong(format!("it has the format {format}, this larder reads {}; update larder", Manifest::FORMAT));
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| match serde_json::from_slice::<Format>(bytes) {
        // What a newer one holds may not parse at all.
        Ok(Format { format }) if format != Manifest::FORMAT => other(format),
        _ => wrong(e.to_string()),
    })?;
    if manifest.format != Manifest::FORMAT {
        return Err(other(manifest.format));
    }
    check_entries(&manifest.entries, &Limits::default()).map_err(|source| ReleaseError::Archive { doing: "accepted", source })?;
    if tree_digest(&manifest.entries) != manifest.tree {
        return Err(wrong("its tree digest is not that of its entries".to_owned()));
    }
    Ok(manifest)
}

/// The heads of all releases in a `releases/` directory, oldest first. Manifests that cannot be read are passed over.
pub fn heads(releases: &Path) -> Result<Vec<Head>, ReleaseError> {
    let mut heads = Vec::new();
    for id in list(releases)? {
        let path = releases.join(format!("{id}{SUFFIX}"));
        match head(&path) {
            Ok(head) if head.release == id => heads.push(head),
            Ok(head) => tracing::warn!(path = %path.display(), release = %head.release, "a manifest under another's name"),
            Err(error) => tracing::warn!(path = %path.display(), %error, "a manifest is passed over"),
        }
    }
    Ok(heads)
}

/// Where the delta between two releases is kept.
pub fn cached_delta(paths: &EnvironmentPaths, from: ReleaseId, to: ReleaseId) -> PathBuf {
    paths.deltas().join(format!("{from}..{to}"))
}

/// Removes the deltas that lead from a release that is gone, or to it.
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

/// What retention needs to know of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// The release.
    pub id: ReleaseId,
    /// Whether it has ever been live. Failed ones fill no place.
    pub good: bool,
    /// The size of its archive.
    pub bytes: u64,
}

/// How much is kept. Each rule by itself makes a release go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// So many good ones.
    pub releases: usize,
    /// None that is older than this, as seen from `now`.
    pub age: Option<Duration>,
    /// Only as many as fit into so many bytes, newest first.
    pub bytes: Option<u64>,
    /// The time.
    pub now: Timestamp,
}

/// Which releases may go: all good ones that a rule of `keep` lets go, but never the live one, its predecessor and the pinned ones.
/// Failed releases go as soon as a newer good one is there, and count for nothing. `releases` may be in any order; the result is
/// oldest first.
pub fn prune_plan(
    releases: &[Info],
    live: Option<ReleaseId>,
    previous: Option<ReleaseId>,
    pinned: &[ReleaseId],
    keep: &Keep,
) -> Vec<ReleaseId> {
    let mut newest_first: Vec<Info> = releases.to_vec();
    newest_first.sort_unstable_by_key(|info| std::cmp::Reverse(info.id));
    let newest_good = newest_first.iter().find(|info| info.good).map(|info| info.id);
    let safe: BTreeSet<ReleaseId> = pinned.iter().copied().chain(live).chain(previous).collect();
    // What must stay takes its room first, however old it is.
    let mut room = keep.bytes.map(|bytes| {
        let taken =
            newest_first.iter().filter(|info| safe.contains(&info.id)).map(|info| info.bytes).fold(0, u64::saturating_add);
        bytes.saturating_sub(taken)
    });
    let mut full = false;
    let mut fits = |info: &Info| {
        let Some(room) = room.as_mut().filter(|_| !safe.contains(&info.id)) else { return true };
        // A small old one does not stay where a newer one had to go.
        full |= info.bytes > *room;
        *room = if full { 0 } else { room.saturating_sub(info.bytes) };
        !full
    };
    let young = |info: &Info| {
        let age = keep.now.duration_since(info.id.created());
        keep.age.is_none_or(|most| age <= SignedDuration::try_from(most).unwrap_or(SignedDuration::MAX))
    };
    let mut kept = safe.clone();
    let good = newest_first.iter().filter(|info| info.good).take(keep.releases);
    kept.extend(good.filter(|info| young(info) && fits(info)).map(|info| info.id));
    // Nobody knows yet what becomes of the newest; and people want to look at what has just failed.
    kept.extend(
        newest_first.iter().filter(|info| !info.good && newest_good.is_none_or(|good| info.id > good)).map(|info| info.id),
    );
    newest_first.iter().rev().map(|info| info.id).filter(|id| !kept.contains(id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(second: i64) -> ReleaseId {
        ReleaseId::new(jiff::Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_list_is_sorted_and_holds_whole_releases_only() {
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

    fn keep(releases: usize) -> Keep {
        Keep { releases, age: None, bytes: None, now: Timestamp::from_second(11_000).unwrap() }
    }

    /// Ten releases, one every thousand seconds, of 100 bytes each; those of `good` went live.
    fn ten(good: &[usize]) -> (Vec<ReleaseId>, Vec<Info>) {
        let ids: Vec<ReleaseId> = (1..=10).map(|n| id(n * 1000)).collect();
        let infos = ids.iter().enumerate().map(|(n, id)| Info { id: *id, good: good.contains(&n), bytes: 100 });
        (ids.clone(), infos.collect())
    }

    const ALL: [usize; 10] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

    #[test]
    fn deltas_go_with_either_end() {
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

    #[test]
    fn retention_keeps_what_is_needed_and_failed_releases_fill_no_place() {
        let (ids, all) = ten(&ALL);
        assert_eq!(prune_plan(&all, Some(ids[9]), Some(ids[8]), &[], &keep(3)), ids[..7]);
        // The live one is old after a rollback; its predecessor and a pinned one stay as well.
        let gone = prune_plan(&all, Some(ids[2]), Some(ids[9]), &[ids[0]], &keep(2));
        assert_eq!(gone, [ids[1], ids[3], ids[4], ids[5], ids[6], ids[7]]);
        // Nine failures in a row push nothing out; the one that failed before a good one goes.
        let (ids, some) = ten(&[0, 2]);
        assert_eq!(prune_plan(&some, Some(ids[2]), Some(ids[0]), &[], &keep(2)), [ids[1]]);
        assert_eq!(prune_plan(&ten(&[]).1, None, None, &[], &keep(1)), []);
        assert_eq!(prune_plan(&[], Some(ids[0]), None, &[], &keep(0)), []);
    }

    #[test]
    fn old_releases_go_but_for_those_that_are_needed() {
        let (ids, all) = ten(&ALL);
        let rule = Keep { age: Some(Duration::from_secs(3500)), ..keep(100) };
        assert_eq!(prune_plan(&all, Some(ids[9]), Some(ids[8]), &[], &rule), ids[..7]);
        assert_eq!(prune_plan(&all, Some(ids[0]), Some(ids[3]), &[ids[1]], &rule), [ids[2], ids[4], ids[5], ids[6]]);
        // A clock that was put back makes nothing older.
        let rule = Keep { age: Some(Duration::from_secs(1)), now: Timestamp::from_second(1).unwrap(), ..keep(100) };
        assert_eq!(prune_plan(&all, Some(ids[9]), None, &[], &rule), []);
    }

    #[test]
    fn releases_that_do_not_fit_go_oldest_first() {
        let (ids, mut all) = ten(&ALL);
        let rule = Keep { bytes: Some(450), ..keep(100) };
        assert_eq!(prune_plan(&all, Some(ids[9]), Some(ids[8]), &[], &rule), ids[..6]);
        // What must stay is counted before all others, whatever its age, and stays where there is no room at all.
        assert_eq!(prune_plan(&all, Some(ids[0]), Some(ids[1]), &[ids[2]], &rule), ids[3..9]);
        let nothing = Keep { bytes: Some(0), ..keep(100) };
        assert_eq!(prune_plan(&all, Some(ids[9]), Some(ids[8]), &[ids[0]], &nothing), ids[1..8]);
        // One that is too large takes those before it along: no gaps.
        all[6].bytes = 1000;
        assert_eq!(prune_plan(&all, Some(ids[9]), Some(ids[8]), &[], &rule), ids[..7]);
        // Failed ones take no room.
        let (ids, some) = ten(&[7, 8, 9]);
        let rule = Keep { bytes: Some(300), ..keep(100) };
        assert_eq!(prune_plan(&some, Some(ids[9]), Some(ids[8]), &[], &rule), ids[..7]);
    }
}
