//! Persistent paths: `/app/<path>` becomes a symlink to `/data/<path>`, so that the files at the path outlive the release.
//!
//! This code runs as the environment's run user inside the sandbox. A malicious symlink of the project therefore leads only to files
//! that the application can access anyway.
//!
//! A path without data is *seeded*: the release's file or directory at the path is copied to the data directory. If the release has no file
//! or directory at the path, the path becomes an empty directory. The exception is a path whose name has a file extension: no directory is
//! created, and the application creates the file through the symlink. A slash at the end of a path always means a directory. Existing data
//! is never changed.
//!
//! The note `.larder-seed` in the data directory lists the paths that a deployment seeded, so that the undo removes exactly these
//! paths. The note is written before the first path is seeded, so the list is complete even if the worker is killed.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::model::DeploymentId;

/// Work on the persistent paths of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataJob {
    /// Seeds and links paths for a deployment.
    Link {
        /// Paths relative to `/app`. A slash at the end of a path means a directory.
        paths: Vec<String>,
        /// The deployment that is recorded in the note.
        deployment: DeploymentId,
    },
    /// Removes the paths that a deployment seeded. The note lists these paths.
    Unseed {
        /// The deployment. Nothing happens if the note belongs to another deployment.
        deployment: DeploymentId,
        /// The content that is removed.
        removal: SeedRemoval,
    },
}

/// The content of seeded paths that an undo removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeedRemoval {
    /// All content.
    All,
    /// The files that have not changed since the deployment seeded the paths.
    Unchanged,
    /// Like `Unchanged`, after the data was restored. A restore changes the change time of a file, and keeps the modification time.
    Restored,
}

impl SeedRemoval {
    /// Returns true if a file is removed. `until` is the time at which the last path was seeded.
    fn removes(self, found: &Metadata, until: ChangeTime) -> bool {
        match self {
            SeedRemoval::All => true,
            SeedRemoval::Unchanged => changed(found) <= until,
            SeedRemoval::Restored => changed(found).min((found.mtime(), found.mtime_nsec())) <= until,
        }
    }
}

/// Performs a job. The call may be repeated.
pub fn work(job: &DataJob, app: &Path, data: &Path) -> io::Result<()> {
    match job {
        DataJob::Link { paths, deployment } => link(app, data, paths, *deployment),
        DataJob::Unseed { deployment, removal } => unseed(data, *deployment, *removal),
    }
}

/// The suffixes of the files that SQLite keeps beside a database. If the path of the database is a symlink, SQLite keeps these files beside
/// the symlink's target.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The name of the note in the data directory.
const NOTE: &str = ".larder-seed";
/// The name of the note while it is written. The name is fixed, so that the note of a killed worker can be removed.
const NEW_NOTE: &str = ".larder-seed-new";

/// The maximum size of a note, in bytes. The rest of a larger file is ignored.
const MAX_NOTE: u64 = 1 << 20;

/// A change time of the file system: seconds and nanoseconds.
type ChangeTime = (i64, i64);

/// The paths that a deployment seeded.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    deployment: DeploymentId,
    paths: Vec<String>,
    /// The change time of the note after the last path was seeded; `None` while paths are being seeded. The application starts after this
    /// time.
    until: Option<ChangeTime>,
}

impl Note {
    fn read(data: &Path) -> io::Result<Option<Note>> {
        // The application can also write to this directory. A FIFO with the name of the note must not block the worker, so only a regular
        // file is read.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::open(data.join(NOTE), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut text = Vec::new();
        if file.metadata()?.is_file() {
            file.take(MAX_NOTE).read_to_end(&mut text)?;
        }
        Ok(serde_json::from_slice(&text).ok())
    }

    /// Writes the note atomically and returns its change time.
    fn write(&self, data: &Path) -> io::Result<ChangeTime> {
        let new = data.join(NEW_NOTE);
        remove(&new)?;
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&new, data.join(NOTE))?;
        Ok(changed(&file.metadata()?))
    }
}

fn changed(found: &Metadata) -> ChangeTime {
    (found.ctime(), found.ctime_nsec())
}

/// Seeds and links `paths`.
fn link(app: &Path, data: &Path, paths: &[String], deployment: DeploymentId) -> io::Result<()> {
    let note = Note::read(data)?;
    // A failed deployment starts the old release before its own seeded paths are removed.
    let is_of_later = note.as_ref().is_some_and(|note| note.deployment > deployment);
    if note.as_ref().is_some_and(|note| note.deployment < deployment) {
        // The note belongs to an earlier deployment, which is no longer in progress.
        remove(&data.join(NOTE))?;
    }
    let mut note = note.filter(|note| note.deployment == deployment);
    let missing = paths.iter().filter(|path| fs::symlink_metadata(data.join(plain(path))).is_err());
    let mut new = Vec::new();
    for path in missing.filter(|path| note.as_ref().is_none_or(|note| !note.paths.contains(path))) {
        // The paths in the note are removed by the undo, with their companions. Companions without a note are existing data.
        match companion_without_database(&data.join(plain(path))) {
            None => new.push(path.clone()),
            Some(found) if app.join(plain(path)).is_file() => return Err(not_seeded(path, &found)),
            Some(_) => {}
        }
    }
    // Without this time, the paths in the note were being seeded when the worker was killed. Their companions are copies of the release's
    // files, and the application has not started since.
    let interrupted = note.as_ref().filter(|note| note.until.is_none());
    let seeded: Vec<String> = interrupted.iter().flat_map(|note| &note.paths).chain(&new).cloned().collect();
    // Paths that the old release seeds meanwhile stay, so they need no note.
    if !new.is_empty() && !is_of_later {
        let mut begun = note.take().unwrap_or(Note { deployment, paths: Vec::new(), until: None });
        begun.paths.extend(new);
        begun.until = None;
        begun.write(data)?;
        note = Some(begun);
    }
    for path in paths {
        let there = data.join(plain(path));
        if !seeded.contains(path)
            && app.join(plain(path)).is_file()
            && fs::symlink_metadata(&there).is_err()
            && let Some(found) = companion_without_database(&there)
        {
            return Err(not_seeded(path, &found));
        }
        let linked = link_one(&app.join(plain(path)), &there, path);
        linked.map_err(|error| io::Error::other(format!("cannot link {path} to the persistent data: {error}")))?;
    }
    if !seeded.is_empty() {
        sync(data)?;
    }
    if let Some(mut note) = note.filter(|note| note.until.is_none()) {
        // The first write determines the change time, and the second write stores it.
        note.until = Some(note.write(data)?);
        note.write(data)?;
        // Change times have the resolution of the kernel's clock tick. After the pause, all writes of the application have later change
        // times than the note.
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Returns the first file beside the missing database `there` that has changes of the database: a write-ahead log or a rollback journal. The
/// file with the suffix `-shm` has no changes.
fn companion_without_database(there: &Path) -> Option<PathBuf> {
    COMPANIONS.iter().filter(|suffix| **suffix != "-shm").map(|suffix| with_suffix(there, suffix)).find(|path| path.exists())
}

fn not_seeded(path: &str, found: &Path) -> io::Error {
    let name = found.file_name().unwrap_or_default().to_string_lossy();
    io::Error::other(format!(
        "cannot copy {path} of the release to the persistent data: the data has {name} without its database; \
         restore the database, or move {name} away"
    ))
}

/// Waits until the content of the data directory's file system is on the disk. A seeded path gets its name only after this call, because a
/// power cut could otherwise leave an empty file at the path.
fn sync(data: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(data)?)?)
}

/// Returns a path without the slash that marks a directory. With this slash, system calls would follow a symlink at the path.
fn plain(path: &str) -> &str {
    path.trim_end_matches('/')
}

/// Seeds the path `there` if it does not exist, and replaces the path `here` in the application by a symlink to `there`.
fn link_one(here: &Path, there: &Path, path: &str) -> io::Result<()> {
    let brought = fs::symlink_metadata(here).ok();
    if fs::symlink_metadata(there).is_err() {
        seed(here, there, path, brought.as_ref())?;
    }
    match brought {
        Some(found) if found.is_symlink() && fs::read_link(here)? == there => return Ok(()),
        Some(found) if found.is_dir() => fs::remove_dir_all(here)?,
        Some(_) => fs::remove_file(here)?,
        None => fs::create_dir_all(here.parent().unwrap_or(here))?,
    }
    symlink(there, here)
}

/// Creates the first content of a path under a temporary name. The complete content is then renamed, so that a killed worker leaves no
/// partial copy at the path.
fn seed(here: &Path, there: &Path, path: &str, brought: Option<&Metadata>) -> io::Result<()> {
    fs::create_dir_all(there.parent().unwrap_or(there))?;
    let half = half_name(there);
    remove(&half)?;
    match brought {
        Some(found) if found.is_dir() => {
            copy_directory(here, &half)?;
            sync(&half)?;
        }
        Some(found) if found.is_file() && path.ends_with('/') => {
            return Err(io::Error::other("the release has a file at this path (expected a directory)"));
        }
        Some(found) if found.is_file() => {
            for companion in COMPANIONS {
                let source = with_suffix(here, companion);
                if source.is_file() {
                    fs::copy(source, with_suffix(there, companion))?;
                }
            }
            fs::copy(here, &half)?;
            sync(there.parent().unwrap_or(there))?;
        }
        // The application creates the file through the symlink.
        _ if is_file_name(path) => return Ok(()),
        _ => fs::create_dir(&half)?,
    }
    fs::rename(&half, there)
}

/// Returns true if a path that does not exist yet stands for a file, because its last part has an extension with a letter. The extension
/// `d` is excluded, because names such as `conf.d` are usual for directories.
fn is_file_name(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default().trim_start_matches('.');
    name.rsplit_once('.').is_some_and(|(stem, extension)| {
        !stem.is_empty()
            && extension != "d"
            && (1..=10).contains(&extension.len())
            && extension.bytes().all(|c| c.is_ascii_alphanumeric())
            && extension.bytes().any(|c| c.is_ascii_alphabetic())
    })
}

/// Returns the temporary name of a copy that will be renamed to `there`.
fn half_name(there: &Path) -> PathBuf {
    let mut name = OsString::from(".larder-new-");
    name.push(there.file_name().unwrap_or_default());
    there.with_file_name(name)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Copies a directory with the modes of its entries. Symlinks are copied as symlinks.
fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_directory(&source, &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
        }
    }
    let mode = fs::metadata(from)?.permissions().mode() & 0o777;
    fs::set_permissions(to, fs::Permissions::from_mode(mode | 0o700))
}

/// Removes the paths that `deployment` seeded.
fn unseed(data: &Path, deployment: DeploymentId, removal: SeedRemoval) -> io::Result<()> {
    // A worker that was killed while it wrote the first note leaves an incomplete note, and no complete note.
    remove(&data.join(NEW_NOTE))?;
    let Some(note) = Note::read(data)?.filter(|note| note.deployment == deployment) else { return Ok(()) };
    for path in note.paths.iter().rev() {
        // The application may have changed the note, so paths outside the data directory are ignored.
        let inside = Path::new(plain(path)).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !inside {
            continue;
        }
        let there = data.join(plain(path));
        let companions = COMPANIONS.map(|companion| with_suffix(&there, companion));
        remove(&half_name(&there))?;
        for path in companions.iter().filter(|path| path.is_file()).chain([&there]) {
            match note.until.filter(|_| removal != SeedRemoval::All) {
                None => remove(path)?,
                Some(until) => remove_unchanged(path, until, removal)?,
            }
        }
        // Empty parent directories are also removed. A parent directory with other content stays.
        for parent in there.ancestors().skip(1).take_while(|parent| *parent != data) {
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
    }
    fs::remove_file(data.join(NOTE))?;
    sync(data)
}

/// Removes a file, or a directory with its content, if it exists.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the files that have not changed since `until`, and then the empty directories. An application cannot set the change time of a
/// file to an earlier time.
fn remove_unchanged(path: &Path, until: ChangeTime, removal: SeedRemoval) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.is_dir() {
        return if removal.removes(&found, until) { fs::remove_file(path) } else { Ok(()) };
    }
    for entry in fs::read_dir(path)? {
        remove_unchanged(&entry?.path(), until, removal)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        _world: tempfile::TempDir,
        app: PathBuf,
        data: PathBuf,
    }

    fn place() -> Place {
        let world = tempfile::tempdir().unwrap();
        let (app, data) = (world.path().join("app"), world.path().join("data"));
        fs::create_dir(&app).unwrap();
        fs::create_dir(&data).unwrap();
        Place { _world: world, app, data }
    }

    fn id() -> DeploymentId {
        DeploymentId::new(jiff::Timestamp::now())
    }

    fn paths<const N: usize>(paths: [&str; N]) -> Vec<String> {
        paths.map(str::to_owned).into()
    }

    fn names(directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != NOTE).collect();
        names.sort();
        names
    }

    #[test]
    fn path_without_data_is_seeded_and_then_stays() {
        let Place { app, data, _world } = place();
        fs::create_dir_all(app.join("uploads/deep")).unwrap();
        fs::write(app.join("uploads/deep/a.txt"), "brought").unwrap();
        symlink("nowhere", app.join("uploads/dangling")).unwrap();
        let wanted = paths(["uploads", "var/cache"]);
        for _ in 0..2 {
            link(&app, &data, &wanted, id()).unwrap();
            assert_eq!(fs::read_link(app.join("uploads")).unwrap(), data.join("uploads"));
            assert_eq!(fs::read_to_string(app.join("uploads/deep/a.txt")).unwrap(), "brought");
            assert_eq!(fs::read_link(app.join("uploads/dangling")).unwrap(), Path::new("nowhere"));
            assert!(app.join("var/cache").is_dir());
        }
        fs::write(data.join("uploads/deep/a.txt"), "changed by users").unwrap();
        let next = app.with_file_name("next");
        fs::create_dir_all(next.join("uploads/deep")).unwrap();
        fs::write(next.join("uploads/deep/a.txt"), "brought again").unwrap();
        link(&next, &data, &wanted, id()).unwrap();
        assert_eq!(fs::read_to_string(next.join("uploads/deep/a.txt")).unwrap(), "changed by users");
    }

    #[test]
    fn incomplete_note_of_a_killed_worker_is_removed() {
        let Place { app, data, _world } = place();
        let deployment = id();
        fs::write(data.join(NEW_NOTE), "{\"deploy").unwrap();
        unseed(&data, deployment, SeedRemoval::All).unwrap();
        assert_eq!(names(&data), [""; 0], "there is no complete note");
        fs::write(data.join(NEW_NOTE), "{\"deploy").unwrap();
        link(&app, &data, &paths(["uploads/"]), deployment).unwrap();
        assert_eq!(names(&data), ["uploads"]);
        fs::write(data.join(NEW_NOTE), "{\"deploy").unwrap();
        unseed(&data, deployment, SeedRemoval::All).unwrap();
        assert_eq!(names(&data), [""; 0]);
    }

    #[test]
    fn file_created_by_the_application_survives_the_next_release() {
        let Place { app, data, _world } = place();
        let wanted = paths(["db.sqlite3", "photos.old/"]);
        link(&app, &data, &wanted, id()).unwrap();
        assert!(!app.join("db.sqlite3").exists() && app.join("photos.old").is_dir());
        fs::write(app.join("db.sqlite3"), "rows").unwrap();
        assert!(fs::symlink_metadata(data.join("db.sqlite3")).unwrap().is_file());
        let next = app.with_file_name("next");
        fs::create_dir(&next).unwrap();
        fs::write(next.join("db.sqlite3"), "brought").unwrap();
        link(&next, &data, &wanted, id()).unwrap();
        assert_eq!(fs::read_to_string(next.join("db.sqlite3")).unwrap(), "rows");
    }

    #[test]
    fn database_of_the_release_is_seeded_with_its_companions() {
        let Place { app, data, _world } = place();
        for name in ["db.sqlite3", "db.sqlite3-wal"] {
            fs::write(app.join(name), name).unwrap();
        }
        link(&app, &data, &paths(["db.sqlite3"]), id()).unwrap();
        assert_eq!(names(&data), ["db.sqlite3", "db.sqlite3-wal"]);
        let Place { app, data, _world } = place();
        fs::write(app.join("media"), "a file").unwrap();
        let wrong = link(&app, &data, &paths(["media/"]), id()).unwrap_err();
        assert!(wrong.to_string().contains("(expected a directory)"), "{wrong}");
    }

    /// The database was lost or moved away, and its log has the last writes of the application.
    #[test]
    fn log_without_its_database_is_never_replaced() {
        let Place { app, data, _world } = place();
        for name in ["db.sqlite3", "db.sqlite3-wal"] {
            fs::write(app.join(name), "of the release").unwrap();
        }
        fs::write(data.join("db.sqlite3-wal"), "of users").unwrap();
        let (wanted, deployment) = (paths(["db.sqlite3"]), id());
        let is_kept = || {
            assert_eq!(names(&data), ["db.sqlite3-wal"]);
            assert_eq!(fs::read_to_string(data.join("db.sqlite3-wal")).unwrap(), "of users");
        };
        for _ in 0..2 {
            let refused = link(&app, &data, &wanted, deployment).unwrap_err().to_string();
            assert!(refused.contains("the data has db.sqlite3-wal without its database"), "{refused}");
            is_kept();
        }
        unseed(&data, deployment, SeedRemoval::All).unwrap();
        is_kept();
        // A release without a database has nothing to copy. The undo does not remove the log.
        fs::remove_file(app.join("db.sqlite3")).unwrap();
        link(&app, &data, &wanted, deployment).unwrap();
        unseed(&data, deployment, SeedRemoval::All).unwrap();
        is_kept();
    }

    #[test]
    fn database_seeded_by_a_killed_worker_is_seeded_again() {
        let Place { app, data, _world } = place();
        for name in ["db.sqlite3", "db.sqlite3-wal"] {
            fs::write(app.join(name), name).unwrap();
        }
        let (wanted, deployment) = (paths(["db.sqlite3"]), id());
        Note { deployment, paths: wanted.clone(), until: None }.write(&data).unwrap();
        fs::write(data.join("db.sqlite3-wal"), "db.sq").unwrap();
        link(&app, &data, &wanted, deployment).unwrap();
        assert_eq!(fs::read_to_string(data.join("db.sqlite3-wal")).unwrap(), "db.sqlite3-wal");
        // The application deletes the database. A second link of the same deployment, as after a restart, leaves the log alone.
        fs::write(data.join("db.sqlite3-wal"), "of users").unwrap();
        fs::remove_file(data.join("db.sqlite3")).unwrap();
        let next = app.with_file_name("next");
        fs::create_dir(&next).unwrap();
        fs::write(next.join("db.sqlite3"), "brought").unwrap();
        link(&next, &data, &wanted, deployment).unwrap_err();
        assert_eq!(fs::read_to_string(data.join("db.sqlite3-wal")).unwrap(), "of users");
    }

    #[test]
    fn name_with_extension_stands_for_a_file() {
        for name in ["db.sqlite3", "var/state.json", "a.b.txt", ".hidden.db"] {
            assert!(is_file_name(name), "{name}");
        }
        for name in ["media", "var/v1.2", "conf.d", ".cache", "x.", "uploads.old/", "a.verylongending"] {
            assert!(!is_file_name(name), "{name}");
        }
    }

    #[test]
    fn undo_of_a_deployment_removes_only_its_seeded_paths() {
        let Place { app, data, _world } = place();
        fs::create_dir_all(app.join("media")).unwrap();
        fs::write(app.join("media/seed"), "seed").unwrap();
        fs::create_dir(data.join("kept")).unwrap();
        fs::write(data.join("kept/a"), "mine").unwrap();
        let (wanted, deployment) = (paths(["kept", "media", "deep/er", "db.sqlite3"]), id());
        for _ in 0..2 {
            link(&app, &data, &wanted, deployment).unwrap();
        }
        fs::write(app.join("db.sqlite3"), "rows").unwrap();
        fs::write(data.join("db.sqlite3-wal"), "rows").unwrap();
        unseed(&data, id(), SeedRemoval::All).unwrap();
        assert_eq!(names(&data), ["db.sqlite3", "db.sqlite3-wal", "deep", "kept", "media"]);
        for _ in 0..2 {
            unseed(&data, deployment, SeedRemoval::All).unwrap();
            assert_eq!(names(&data), ["kept"]);
        }
        assert_eq!(fs::read_to_string(data.join("kept/a")).unwrap(), "mine");
        assert!(!data.join(NOTE).exists());
    }

    #[test]
    fn undo_after_a_change_keeps_the_changed_files() {
        let Place { app, data, _world } = place();
        fs::create_dir_all(app.join("media/deep")).unwrap();
        for name in ["a", "b", "deep/c"] {
            fs::write(app.join("media").join(name), "seed").unwrap();
        }
        let deployment = id();
        link(&app, &data, &paths(["media"]), deployment).unwrap();
        fs::write(data.join("media/b"), "changed").unwrap();
        fs::write(data.join("media/new"), "new").unwrap();
        // A second link by the same deployment, as after a restart, does not change the recorded time. Files that changed after this time
        // therefore stay.
        link(&app.with_file_name("next"), &data, &paths(["media"]), deployment).unwrap();
        unseed(&data, deployment, SeedRemoval::Unchanged).unwrap();
        assert_eq!(names(&data.join("media")), ["b", "new"]);
    }

    #[test]
    fn start_of_the_old_release_keeps_the_note_of_a_later_deployment() {
        let Place { app, data, _world } = place();
        let (old, failed) = (DeploymentId::new(jiff::Timestamp::UNIX_EPOCH), id());
        fs::create_dir(app.join("media")).unwrap();
        link(&app, &data, &paths(["media", "new"]), failed).unwrap();
        link(&app.with_file_name("old"), &data, &paths(["kept"]), old).unwrap();
        assert_eq!(names(&data), ["kept", "media", "new"]);
        unseed(&data, failed, SeedRemoval::Unchanged).unwrap();
        assert_eq!(names(&data), ["kept"]);
    }

    #[test]
    fn undo_after_a_restore_removes_the_restored_files() {
        let Place { app, data, _world } = place();
        fs::create_dir_all(app.join("media")).unwrap();
        fs::write(app.join("media/a"), "seed").unwrap();
        let deployment = id();
        link(&app, &data, &paths(["media"]), deployment).unwrap();
        let seeded = fs::metadata(data.join("media/a")).unwrap().modified().unwrap();
        fs::write(data.join("media/a"), "changed").unwrap();
        fs::write(data.join("media/new"), "new").unwrap();
        // A restore writes the old content with its modification time.
        fs::write(data.join("media/a"), "seed").unwrap();
        File::options().write(true).open(data.join("media/a")).unwrap().set_modified(seeded).unwrap();
        unseed(&data, deployment, SeedRemoval::Restored).unwrap();
        assert_eq!(names(&data.join("media")), ["new"]);
    }

    #[test]
    fn undo_of_interrupted_seeding_removes_all_its_paths() {
        let Place { app, data, _world } = place();
        let deployment = id();
        Note { deployment, paths: paths(["media", "../outside"]), until: None }.write(&data).unwrap();
        fs::create_dir(data.join("media")).unwrap();
        fs::create_dir(data.join(".larder-new-media")).unwrap();
        fs::create_dir(data.with_file_name("outside")).unwrap();
        unseed(&data, deployment, SeedRemoval::Unchanged).unwrap();
        assert_eq!(names(&data), Vec::<String>::new());
        assert!(data.with_file_name("outside").exists());
        drop(app);
    }
}
