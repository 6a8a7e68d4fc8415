//! Restores files into a new directory, or in place of live files by atomic exchange. Live files change only after the new files are
//! complete, durable, and compared with their digests.

mod back;
mod build;
mod state;

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    sync::{PoisonError, atomic::AtomicBool},
};

use rustix::{
    fs::{FileType, Gid, Mode, Uid, fchmod, fchown, fsync, renameat, syncfs},
    io::Errno,
};

use self::{
    build::{Builder, Place},
    state::{Exchange, Inode, Phase, State, inode_at},
};
use crate::{
    Entry, Limits, Point, PointError, Result, SourceKind, SourceRecord, Store,
    capture::create_parents,
    entry::{is_within, path_fault},
    index, step, store, sys,
};

/// The options and limits of a restore.
#[derive(Debug, Clone)]
pub struct RestoreOptions<'a> {
    /// The fields that the label of the restore point must have with the same values, such as project and environment. If `expect` is not
    /// an object, the whole label must equal `expect`.
    pub expect: serde_json::Value,
    /// True to restore even if stored files are damaged. The report lists the damaged files. A file whose stored content is missing or
    /// unreadable is not restored.
    pub force: bool,
    /// True to restore setuid and setgid bits of files.
    pub set_ids: bool,
    /// True to restore file capabilities.
    pub capabilities: bool,
    /// True to clone files (reflink) if the file system can.
    pub clone: bool,
    /// The number of threads.
    pub threads: usize,
    /// The limits; `free_bytes` applies to the file system of the target.
    pub limits: Limits,
    /// The path of the only source that [`Point::restore_into`] restores; `None` to restore all sources.
    pub only: Option<&'a str>,
    /// A flag that stops the restore. The flag has no effect after the first live file has changed.
    pub cancel: Option<&'a AtomicBool>,
}

impl Default for RestoreOptions<'_> {
    fn default() -> Self {
        RestoreOptions {
            expect: serde_json::Value::Object(serde_json::Map::new()),
            force: false,
            set_ids: false,
            capabilities: false,
            clone: true,
            threads: 4,
            limits: Limits::default(),
            only: None,
            cancel: None,
        }
    }
}

/// A finished restore.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// True if an earlier call with the same ticket had built all files. In this case, the call only finished the exchanges or had
    /// nothing to do.
    pub was_complete: bool,
    /// The number of files. Further hard links to a file are not counted.
    pub files: u64,
    /// The total size of these files, in bytes.
    pub bytes: u64,
    /// The number of entries whose owner or group could not be set, because only root can set them.
    pub lost_owners: u64,
    /// The paths of damaged files, if `force` was set.
    pub damaged: Vec<String>,
}

impl Store {
    /// Restores all sources of a restore point in place of the live files below `base`. Sources that were absent at the capture are
    /// removed.
    ///
    /// The new trees are built beside the live trees and then exchanged with them, so that a kill leaves each source either unchanged or
    /// restored. The store records `ticket`: after a kill, the same call or [`Store::recover_restores`] continues the restore. A further
    /// call after the end of the restore does nothing. The caller must stop all writers first. The replaced files are moved to the
    /// directory `keep` below `base`; without `keep`, the replaced files are removed before this function returns. The removal can take
    /// longer than the restore. To avoid this wait, pass `keep`, and call [`remove_kept`] later.
    ///
    /// A database file and its side files (`-wal`, `-shm`, `-journal`) are exchanged one after the other. After a kill between two
    /// exchanges, the next call completes the exchanges. Until then, no side file is beside a database to which the side file does not
    /// belong.
    pub fn restore(
        &self,
        point: &Point,
        base: BorrowedFd<'_>,
        ticket: &str,
        keep: Option<&str>,
        options: &RestoreOptions<'_>,
    ) -> Result<RestoreReport> {
        store::check_name(ticket)?;
        check_label(point, &options.expect)?;
        let base_inode = Inode::from(sys::stat_fd(base).map_err(|e| PointError::io("look at", "the target", e))?);
        for mut other in State::all(self, base_inode)? {
            match (other.phase, other.ticket == ticket) {
                (Phase::Done, true) => return Ok(RestoreReport { was_complete: true, ..RestoreReport::default() }),
                (Phase::Exchanging, true) => {
                    other.finish(self, base)?;
                    return Ok(RestoreReport { was_complete: true, ..RestoreReport::default() });
                }
                (Phase::Building, _) => other.abandon(self, base)?,
                (Phase::Exchanging, false) => {
                    other.finish(self, base)?;
                    other.forget(self)?;
                }
                (Phase::Done, false) => other.forget(self)?,
            }
        }
        check_keep(point, base, keep)?;
        let entries = point.entries()?;
        for record in &point.manifest.sources {
            create_parents(base, record.source.path.as_bytes(), 0o755)?;
        }
        let mut state = State {
            version: state::VERSION,
            ticket: ticket.to_owned(),
            point: point.id().to_owned(),
            base: base_inode,
            keep: keep.map(str::to_owned),
            phase: Phase::Building,
            exchanges: exchanges(point, &entries, ticket),
        };
        // The state is saved before the first file is created, so that the files of a killed restore can be removed.
        state.save(self)?;
        step();
        let builder = Builder::new(point, &entries, base, options)?;
        let built = build_all(&builder, base, &mut state).and_then(|()| {
            step();
            syncfs(base).map_err(|e| PointError::io("sync the file system of", "the target", e))?;
            step();
            state.phase = Phase::Exchanging;
            state.save(self)
        });
        if let Err(error) = built {
            // The first error is returned. If this removal fails, too, the next restore removes the incomplete files.
            state.phase = Phase::Building;
            let _ = state.abandon(self, base);
            return Err(error);
        }
        step();
        state.finish(self, base)?;
        Ok(report(builder))
    }

    /// Finishes or reverts the restores of `base` that were killed. Returns the tickets of the restores that this call finished.
    pub fn recover_restores(&self, base: BorrowedFd<'_>) -> Result<Vec<String>> {
        let inode = Inode::from(sys::stat_fd(base).map_err(|e| PointError::io("look at", "the target", e))?);
        let mut finished = Vec::new();
        for mut state in State::all(self, inode)? {
            match state.phase {
                Phase::Building => state.abandon(self, base)?,
                Phase::Exchanging => {
                    state.finish(self, base)?;
                    finished.push(state.ticket);
                }
                Phase::Done => {}
            }
        }
        Ok(finished)
    }
}

impl Point {
    /// Restores all sources, or only the source [`RestoreOptions::only`], into the directory `name` in `parent`. The directory must be
    /// empty or absent. After a kill, the directory is unchanged, and the same call can be repeated. No live file changes.
    pub fn restore_into(&self, parent: BorrowedFd<'_>, name: &OsStr, options: &RestoreOptions<'_>) -> Result<RestoreReport> {
        check_label(self, &options.expect)?;
        let wrong = |e: Errno| PointError::io("restore into", name, e);
        let before = match sys::stat_at(parent, name) {
            Ok(stat) if stat.kind == FileType::Directory => Some(stat),
            Ok(_) => return Err(wrong(Errno::NOTDIR)),
            Err(Errno::NOENT) => None,
            Err(other) => return Err(wrong(other)),
        };
        if before.is_some() {
            let target = sys::open_dir(parent, name.as_bytes(), false).map_err(wrong)?;
            if !sys::is_empty(target.as_fd()).map_err(wrong)? {
                return Err(PointError::NotEmpty { path: name.into() });
            }
        }
        let entries = self.entries()?;
        let staged = format!(".larder-into-{}", self.id());
        let staged = OsStr::new(&staged);
        sys::remove_tree(parent, staged).map_err(wrong)?;
        sys::create_dir(parent, staged).map_err(wrong)?;
        step();
        let filled = sys::open_dir(parent, staged.as_bytes(), false).map_err(wrong).and_then(|dir| {
            let builder = Builder::new(self, &entries, parent, options)?;
            let is_wanted = |record: &&SourceRecord| options.only.is_none_or(|only| only == record.source.path);
            for record in self.manifest.sources.iter().filter(is_wanted) {
                create_parents(dir.as_fd(), record.source.path.as_bytes(), 0o755)?;
                for root in record.source.roots() {
                    let (above, name) = sys::split(&root);
                    let above = sys::open_dir(dir.as_fd(), above, false).map_err(wrong)?;
                    builder.build(&Place { dir: above.as_fd(), name, path: &root })?;
                }
            }
            if let Some(before) = before {
                // The directory keeps its mode, and also its owner if this user may set the owner.
                let _ = fchown(&dir, Some(Uid::from_raw(before.uid)), Some(Gid::from_raw(before.gid)));
                fchmod(&dir, Mode::from_raw_mode(before.mode)).map_err(wrong)?;
            }
            step();
            syncfs(parent).map_err(wrong)?;
            Ok(report(builder))
        });
        let placed = filled.and_then(|report| {
            step();
            match renameat(parent, staged, parent, name) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => return Err(PointError::NotEmpty { path: name.into() }),
                other => other.map_err(wrong)?,
            }
            fsync(parent).map_err(wrong)?;
            Ok(report)
        });
        if placed.is_err() {
            // The first error is returned. If this removal fails, too, the next call removes the incomplete files.
            let _ = sys::remove_tree(parent, staged);
        }
        placed
    }
}

/// Removes the directory in which a restore kept the replaced files. Succeeds if the directory does not exist. After a kill, the next call
/// removes the remaining files.
pub fn remove_kept(base: BorrowedFd<'_>, keep: &str) -> Result<()> {
    if let Some(why) = path_fault(keep.as_bytes()) {
        return Err(PointError::Source { source_path: keep.to_owned(), why });
    }
    let (parent, name) = sys::split(keep.as_bytes());
    match sys::open_dir(base, parent, false).and_then(|dir| sys::remove_tree(dir.as_fd(), name)) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(other) => Err(PointError::io("remove", keep, other)),
    }
}

fn report(builder: Builder<'_>) -> RestoreReport {
    let damaged = builder.damaged.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut damaged: Vec<_> = damaged.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
    damaged.sort_unstable();
    RestoreReport {
        was_complete: false,
        files: builder.restored_files.into_inner(),
        bytes: builder.restored_bytes.into_inner(),
        lost_owners: builder.lost_owners.into_inner(),
        damaged,
    }
}

/// Checks that the restore point has the label that the caller expects.
fn check_label(point: &Point, expect: &serde_json::Value) -> Result<()> {
    let label = &point.manifest.label;
    let is_expected = match expect {
        serde_json::Value::Object(fields) => fields.iter().all(|(name, value)| label.get(name) == Some(value)),
        whole => label == whole,
    };
    if is_expected {
        return Ok(());
    }
    Err(PointError::Label { id: point.id().to_owned(), found: label.to_string(), expected: expect.to_string() })
}

/// Checks the path of the directory for the replaced files. The directory must not exist yet, and must be below `base` and outside of all
/// sources.
fn check_keep(point: &Point, base: BorrowedFd<'_>, keep: Option<&str>) -> Result<()> {
    let Some(keep) = keep else { return Ok(()) };
    let bad = |why| Err(PointError::Source { source_path: keep.to_owned(), why });
    if let Some(why) = path_fault(keep.as_bytes()) {
        return bad(why);
    }
    let overlaps = |root: &Vec<u8>| is_within(root, keep.as_bytes()) || is_within(keep.as_bytes(), root);
    if point.manifest.sources.iter().flat_map(|record| record.source.roots()).any(|root| overlaps(&root)) {
        return bad("replaced files cannot be kept inside of a source");
    }
    let (parent, name) = sys::split(keep.as_bytes());
    let found = sys::open_dir(base, parent, false).and_then(|dir| sys::stat_at(dir.as_fd(), name));
    match found {
        Ok(_) => bad("the directory for replaced files already exists"),
        Err(Errno::NOENT) => Ok(()),
        Err(other) => Err(PointError::io("look at", keep, other)),
    }
}

/// Returns the exchanges of a restore, in the order in which they are made. For a database file, the live side files are removed first, and
/// the restored side files are placed last. Otherwise SQLite could apply the log of one database to another database.
fn exchanges(point: &Point, entries: &[Entry], ticket: &str) -> Vec<Exchange> {
    let mut steps: Vec<String> = Vec::new();
    for record in &point.manifest.sources {
        let mut roots = record.source.roots().into_iter().filter_map(|root| String::from_utf8(root).ok());
        let main = roots.next();
        let sides: Vec<String> = if record.source.kind == SourceKind::File { roots.collect() } else { Vec::new() };
        let restored: Vec<String> =
            sides.iter().filter(|side| index::find(entries, side.as_bytes()).is_some()).cloned().collect();
        steps.extend(sides.into_iter().chain(main).chain(restored));
    }
    let name = |(at, path): (usize, String)| Exchange { path, staged: format!(".larder-{ticket}-{at}"), new: None, old: None };
    steps.into_iter().enumerate().map(name).collect()
}

/// Builds the new trees beside the live trees, and records the inodes of both trees of each exchange.
fn build_all(builder: &Builder<'_>, base: BorrowedFd<'_>, state: &mut State) -> Result<()> {
    let mut seen = Vec::new();
    let mut last: Vec<String> = Vec::new();
    // If a path occurs in two exchanges, the first exchange removes the live file and the last exchange places the restored file.
    for exchange in &state.exchanges {
        let is_last = !state.exchanges.iter().skip(last.len() + 1).any(|later| later.path == exchange.path);
        seen.push(is_last);
        last.push(exchange.path.clone());
    }
    for (exchange, is_last) in state.exchanges.iter_mut().zip(seen) {
        let wrong = |e: Errno| PointError::io("open the directory of", exchange.path.as_str(), e);
        let (parent, name) = sys::split(exchange.path.as_bytes());
        let dir = sys::open_dir(base, parent, false).map_err(wrong)?;
        let live = sys::stat_at(dir.as_fd(), name);
        if live.is_ok_and(|stat| stat.is_mount) {
            return Err(PointError::Source { source_path: exchange.path.clone(), why: "it is a mount point" });
        }
        exchange.old = inode_at(dir.as_fd(), name, &exchange.path)?;
        let staged = OsStr::new(&exchange.staged);
        sys::remove_tree(dir.as_fd(), staged).map_err(wrong)?;
        if is_last && builder.build(&Place { dir: dir.as_fd(), name: staged, path: exchange.path.as_bytes() })? {
            exchange.new = inode_at(dir.as_fd(), staged, &exchange.path)?;
        }
    }
    Ok(())
}
