//! Limits of the space of directories: a [volume](super::volume) that is mounted at the directory, or a [project quota](super::quota).

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use super::{
    directory::RootDirectory,
    probe::ChildTask,
    quota::{clear_quota, ensure_quota},
    trash::{DiscardedDirectory, Trash},
    user::UnixUser,
    volume::{VolumeKind, VolumeSpec, ensure_volume, is_volume, remove_volume},
};

/// The limit of the space of a directory. Paths are relative to the root.
#[derive(Debug)]
pub struct SpaceLimit<'a> {
    /// The directory, which only this process can rename.
    pub target: &'a Path,
    /// The image file of a volume, in a directory that only this process can enter.
    pub image: &'a Path,
    /// The kind of the volume that is mounted at the directory; `None` for a project quota.
    pub volume: Option<VolumeKind>,
    /// The limit in bytes. Zero stands for no limit, for a project quota only.
    pub bytes: u64,
}

/// Sets limits. Volumes are prepared in a process of their own, one after the other, so that the caller never waits for the tools of a file
/// system.
#[derive(Debug, Default)]
pub struct SpaceLimits {
    running: Option<RunningVolume>,
    /// The sizes of the volumes that are complete, by image.
    complete: BTreeMap<PathBuf, u64>,
}

/// The volume that is being prepared.
#[derive(Debug)]
struct RunningVolume {
    image: PathBuf,
    bytes: u64,
    task: ChildTask,
    /// True if the volume was mounted before.
    mounted: bool,
}

impl SpaceLimits {
    /// Limits the space of a directory, which is created if it is missing. Returns the discarded directories in a volume that was not
    /// mounted before. Returns `None` while a process prepares this volume or another volume; the caller repeats the call. A volume never
    /// becomes smaller. The call may be repeated after a kill.
    pub fn ensure(&mut self, root: &RootDirectory, limit: &SpaceLimit<'_>) -> io::Result<Option<Vec<DiscardedDirectory>>> {
        if !root.is_privileged() {
            return Err(io::Error::other("cannot limit the space of a directory without root"));
        }
        root.make(limit.target, UnixUser::current(), 0o755)?;
        let Some(kind) = limit.volume else {
            return ensure_quota(root, limit.target, limit.bytes).map(|()| Some(Vec::new()));
        };
        root.make(limit.image.parent().unwrap_or(limit.image), UnixUser::current(), 0o700)?;
        let spec = VolumeSpec { image: limit.image, target: limit.target, kind, bytes: limit.bytes };
        let mounted = is_volume(root, spec.target);
        if mounted && self.complete.get(spec.image) == Some(&spec.bytes) {
            return Ok(Some(Vec::new()));
        }
        match self.running.take() {
            Some(running) if !running.task.has_ended() => {
                self.running = Some(running);
                return Ok(None);
            }
            Some(RunningVolume { image, bytes, task, mounted: before }) if image == spec.image => {
                task.wait()?;
                if mounted && bytes == spec.bytes {
                    self.complete.insert(image, bytes);
                    let discarded = if before { Ok(Vec::new()) } else { Trash::all(root, Some(spec.target)) };
                    return discarded.map(Some);
                }
            }
            // No caller has asked for the result of the earlier task. Its volume is prepared again when a caller asks.
            Some(running) => drop(running.task.wait()),
            None => {}
        }
        self.complete.remove(spec.image);
        let task = ChildTask::start(0, || ensure_volume(root, &spec))?;
        self.running = Some(RunningVolume { image: spec.image.to_owned(), bytes: spec.bytes, task, mounted });
        Ok(None)
    }

    /// Removes the limit of a directory: clears its quota, or unmounts its volume and deletes the image. A missing limit counts as removed.
    pub fn remove(&mut self, root: &RootDirectory, image: &Path, target: &Path) -> io::Result<()> {
        clear_quota(root, target)?;
        self.complete.remove(image);
        if let Some(running) = self.running.take_if(|running| running.image == image) {
            running.task.kill();
        }
        remove_volume(root, image, target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_without_root_is_refused_and_its_removal_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let root = RootDirectory::open_root(directory.path(), false).unwrap();
        let (target, image, mut limits) = (Path::new("shop"), Path::new("volumes/1"), SpaceLimits::default());
        for volume in [None, Some(VolumeKind::Ext4)] {
            let refused = limits.ensure(&root, &SpaceLimit { target, image, volume, bytes: 1 << 20 }).unwrap_err();
            assert_eq!(refused.to_string(), "cannot limit the space of a directory without root");
        }
        limits.remove(&root, image, target).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
