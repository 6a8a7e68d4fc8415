//! Discarded directories. A discard is one rename, and the owners of the files delete the files later.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::directory::{Moved, RootDirectory};

/// The directory for discarded directories in the root, and the one in each [volume](super::volume) that is mounted two levels below
/// the root. A rename does not leave a file system.
const ROOT_TRASH: &str = "trash";
/// The name of the directory in a volume.
pub(crate) const VOLUME_TRASH: &str = ".trash";

/// A discarded directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscardedDirectory {
    /// The path, relative to the root.
    pub path: PathBuf,
    /// The number that the caller gave to [`Trash::discard`].
    pub owner: u32,
}

/// The names of discarded directories.
#[derive(Debug, Default)]
pub struct Trash {
    /// The number in the name of the last discarded directory.
    last: u64,
}

impl Trash {
    /// Moves a directory to the trash of its file system by one rename. Returns `None` if the directory does not exist.
    pub fn discard(&mut self, root: &RootDirectory, path: &Path, owner: u32) -> io::Result<Option<DiscardedDirectory>> {
        let own: PathBuf = path.iter().take(2).collect::<PathBuf>().join(VOLUME_TRASH);
        let trash = if root.open(&own).is_ok() { own } else { ROOT_TRASH.into() };
        loop {
            self.last += 1;
            let name = format!("{owner}.{}", self.last);
            match root.move_into(path, &trash, &name)? {
                Moved::Done => return Ok(Some(DiscardedDirectory { path: trash.join(name), owner })),
                Moved::Missing => return Ok(None),
                Moved::NameTaken => {}
            }
        }
    }

    /// Returns all discarded directories of the root, or of the volume at `volume`.
    pub fn all(root: &RootDirectory, volume: Option<&Path>) -> io::Result<Vec<DiscardedDirectory>> {
        let trash = volume.map_or_else(|| ROOT_TRASH.into(), |volume| volume.join(VOLUME_TRASH));
        let mut all = Vec::new();
        for entry in fs::read_dir(root.path().join(&trash))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(owner) = name.split_once('.').and_then(|(owner, _)| owner.parse().ok()) {
                all.push(DiscardedDirectory { path: trash.join(name), owner });
            }
        }
        Ok(all)
    }
}
