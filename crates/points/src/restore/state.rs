//! The state of a restore that replaces live files. The state is saved in the store, so that the restore can be finished after a
//! kill or a power failure.

use std::{
    ffi::OsStr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{RenameFlags, fsync, renameat_with},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{PointError, Result, Store, Time, capture::create_parents, step, store, sys};

const PREFIX: &str = ".restore-";
const SUFFIX: &str = ".json";
const MAX_STATE: u64 = 1 << 20;

/// The version that this program writes.
pub(super) const VERSION: u64 = 1;

/// The identity of a file or directory. The time of creation distinguishes files that use the same inode number one after the
/// other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inode {
    ino: u64,
    born: Time,
}

impl From<sys::Stat> for Inode {
    fn from(stat: sys::Stat) -> Inode {
        Inode { ino: stat.ino, born: stat.born }
    }
}

/// The progress of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// New trees are being built. No live file has changed.
    Building,
    /// All new trees are complete and durable, and are exchanged with the live trees one by one.
    Exchanging,
    /// All exchanges are finished.
    Done,
}

/// The exchange of one root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exchange {
    /// The path of the root.
    pub path: String,
    /// The name beside the root: the name of the new tree before the exchange, and of the old tree after the exchange.
    pub staged: String,
    /// The new tree; `None` if the root is only removed.
    pub new: Option<Inode>,
    /// The live tree before the restore; `None` if the root did not exist.
    pub old: Option<Inode>,
}

/// The state of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub version: u64,
    pub ticket: String,
    pub point: String,
    pub base: Inode,
    pub keep: Option<String>,
    pub phase: Phase,
    pub exchanges: Vec<Exchange>,
}

/// Returns the directory above a root, and the last part of the root's path.
fn above<'p>(base: BorrowedFd<'_>, path: &'p str) -> Result<(OwnedFd, &'p OsStr)> {
    let (parent, name) = sys::split(path.as_bytes());
    let dir = sys::open_dir(base, parent, false).map_err(|e| PointError::io("open the directory of", path, e))?;
    Ok((dir, name))
}

pub(super) fn inode_at(dir: BorrowedFd<'_>, name: &OsStr, path: &str) -> Result<Option<Inode>> {
    match sys::stat_at(dir, name) {
        Ok(stat) => Ok(Some(stat.into())),
        Err(Errno::NOENT) => Ok(None),
        Err(other) => Err(PointError::io("look at", path, other)),
    }
}

impl State {
    fn file(ticket: &str) -> String {
        format!("{PREFIX}{ticket}{SUFFIX}")
    }

    pub(super) fn save(&self, store: &Store) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(|e| PointError::io("encode", State::file(&self.ticket), e))?;
        store::replace(store.fd.as_fd(), &State::file(&self.ticket), &bytes, store.path())
    }

    pub(super) fn load(store: &Store, ticket: &str) -> Result<Option<State>> {
        let bytes = match store::read(store.fd.as_fd(), &State::file(ticket), MAX_STATE, store.path()) {
            Err(PointError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let what = "the state of a restore";
        let wrong = |e: serde_json::Error| PointError::Malformed { what, id: ticket.to_owned(), why: e.to_string() };
        let state: State = serde_json::from_slice(&bytes).map_err(wrong)?;
        if state.version > VERSION {
            return Err(PointError::Version { what, id: ticket.to_owned(), found: state.version, supported: VERSION });
        }
        Ok(Some(state))
    }

    /// Returns the recorded states of all restores of this base.
    pub(super) fn all(store: &Store, base: Inode) -> Result<Vec<State>> {
        let mut states = Vec::new();
        for name in store.names()? {
            let ticket = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|name| name.strip_suffix(SUFFIX));
            if let Some(ticket) = ticket
                && let Some(state) = State::load(store, ticket)?
                && state.base == base
            {
                states.push(state);
            }
        }
        Ok(states)
    }

    pub(super) fn forget(&self, store: &Store) -> Result<()> {
        let file = State::file(&self.ticket);
        sys::remove_tree(store.fd.as_fd(), OsStr::new(&file))
            .and_then(|()| fsync(&store.fd))
            .map_err(|e| PointError::io("remove", store.path().join(file), e))
    }

    /// Removes the new trees that were not exchanged, then the state.
    pub(super) fn abandon(&self, store: &Store, base: BorrowedFd<'_>) -> Result<()> {
        for exchange in &self.exchanges {
            let dir = match above(base, &exchange.path) {
                Err(PointError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => continue,
                other => other?.0,
            };
            sys::remove_tree(dir.as_fd(), OsStr::new(&exchange.staged))
                .map_err(|e| PointError::io("remove the incomplete copy of", exchange.path.as_str(), e))?;
        }
        self.forget(store)
    }

    /// Makes the remaining exchanges, then keeps or removes the replaced trees. After a kill at any instruction, the next call
    /// continues, because each step inspects the present files.
    pub(super) fn finish(&mut self, store: &Store, base: BorrowedFd<'_>) -> Result<()> {
        for exchange in &self.exchanges {
            self.exchange(base, exchange)?;
            step();
        }
        for exchange in &self.exchanges {
            self.put_away(base, exchange)?;
            step();
        }
        self.phase = Phase::Done;
        self.save(store)
    }

    fn exchange(&self, base: BorrowedFd<'_>, exchange: &Exchange) -> Result<()> {
        let (dir, name) = above(base, &exchange.path)?;
        let staged = OsStr::new(&exchange.staged);
        let live = inode_at(dir.as_fd(), name, &exchange.path)?;
        let beside = inode_at(dir.as_fd(), staged, &exchange.path)?;
        let wrong = |e: Errno| PointError::io("exchange", exchange.path.as_str(), e);
        let rename = |from: &OsStr, to: &OsStr, how| renameat_with(&dir, from, &dir, to, how).map_err(wrong);
        match exchange.new {
            Some(new) if live == Some(new) => {}
            Some(new) if beside == Some(new) && live.is_some() => rename(staged, name, RenameFlags::EXCHANGE)?,
            Some(new) if beside == Some(new) => rename(staged, name, RenameFlags::NOREPLACE)?,
            Some(_) => {
                return Err(PointError::Interfered { ticket: self.ticket.clone(), path: exchange.path.clone().into() });
            }
            // The live tree was removed before. A tree that the application has created since then stays.
            None if live.is_none() || live != exchange.old => {}
            None => rename(name, staged, RenameFlags::NOREPLACE)?,
        }
        fsync(&dir).map_err(wrong)
    }

    /// Moves the replaced tree to the directory `keep`, or removes the replaced tree.
    fn put_away(&self, base: BorrowedFd<'_>, exchange: &Exchange) -> Result<()> {
        let (dir, _) = above(base, &exchange.path)?;
        let staged = OsStr::new(&exchange.staged);
        let Some(keep) = &self.keep else {
            return sys::remove_tree(dir.as_fd(), staged)
                .map_err(|e| PointError::io("remove the replaced files of", exchange.path.as_str(), e));
        };
        if inode_at(dir.as_fd(), staged, &exchange.path)?.is_none() {
            return Ok(());
        }
        let kept = format!("{keep}/{}", exchange.path);
        let wrong = |e: Errno| PointError::io("move the replaced files to", kept.as_str(), e);
        create_parents(base, kept.as_bytes(), 0o700)?;
        let (parent, name) = sys::split(kept.as_bytes());
        let to = sys::open_dir(base, parent, false).map_err(wrong)?;
        renameat_with(&dir, staged, &to, name, RenameFlags::NOREPLACE).map_err(wrong)?;
        fsync(&to).and_then(|()| fsync(&dir)).map_err(wrong)
    }
}
