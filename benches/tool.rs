//! Runs the functions of larder's workers on trees and archives without a server, for comparison with `tar` and `rsync`.
//!
//! ```text
//! tool bundle TREE ARCHIVE [PREVIOUS-ARCHIVE]           also writes the manifest, ARCHIVE.json
//! tool accept ARCHIVE                                   checks the manifest and writes its index, as the server does for its releases
//! tool unpack ARCHIVE DEPLOY NAME [PREVIOUS-ARCHIVE PREVIOUS-NAME]   installs into DEPLOY/NAME: a new directory or a spare tree
//! tool delta OLD-ARCHIVE OLD-TREE ARCHIVE TREE DELTA    reads manifests and trees; the archives may be missing
//! tool patch DELTA DEPLOY NAME OLD-ARCHIVE OLD-NAME     like unpack, from a delta; also writes the new manifest, DELTA.json
//! tool capture POINTS ID BASE [PREVIOUS-ID]             takes a restore point of BASE/data, which shares files with PREVIOUS-ID
//! tool restore POINTS ID PARENT NAME                    writes the files of a restore point into PARENT/NAME
//! tool directory ARCHIVE TREE TARGET RECORD             makes the directory TARGET equal to TREE; RECORD is the record of the last sync
//! tool export REPOSITORIES DIRECTORY COMMIT             exports a commit of REPOSITORIES/project.git
//! ```

use std::{
    error::Error,
    ffi::OsString,
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use larder::{
    git::{
        WorkerPaths,
        source::{self, SourceJob, SourceLimits, SourceReport},
    },
    host::{files::FileError, launch::LARGE_PAGES},
    model::{Digest, Mode, ReleaseId},
    release::{
        bundle::{self, BundleJob},
        delta,
        install::{self, ContentSource, UnpackJob},
        manifest::{Head, encode::EncodedManifest, index},
        pack::{self, DeltaJob, PackSource},
        store,
        sync::{self, SyncJob, SyncPaths, SyncPolicy},
    },
};
use larder_points::{CaptureOptions, RestoreOptions, Source, Store};

type Outcome = Result<String, Box<dyn Error>>;

fn main() -> ExitCode {
    if let Err(error) = as_a_worker() {
        let _ = writeln!(io::stderr(), "tool: {error}");
        return ExitCode::FAILURE;
    }
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&Path> = words.iter().map(Path::new).collect();
    let outcome = match words.as_slice() {
        [verb, tree, archive] if verb.as_os_str() == "bundle" => bundle(tree, archive, None),
        [verb, tree, archive, previous] if verb.as_os_str() == "bundle" => bundle(tree, archive, Some(previous)),
        [verb, archive] if verb.as_os_str() == "accept" => accept(archive),
        [verb, archive, deploy, name] if verb.as_os_str() == "unpack" => unpack(archive, deploy, name, None),
        [verb, archive, deploy, name, previous, older] if verb.as_os_str() == "unpack" => {
            unpack(archive, deploy, name, Some((previous, older)))
        }
        [verb, older, old, newer, new, out] if verb.as_os_str() == "delta" => delta((older, old), (newer, new), out),
        [verb, delta, deploy, name, older, old] if verb.as_os_str() == "patch" => patch(delta, deploy, name, older, old),
        [verb, repositories, place, commit] if verb.as_os_str() == "export" => export(repositories, place, commit),
        [verb, archive, tree, target, record] if verb.as_os_str() == "directory" => directory(archive, tree, target, record),
        [verb, points, id, base] if verb.as_os_str() == "capture" => capture(points, id, base, None),
        [verb, points, id, base, previous] if verb.as_os_str() == "capture" => capture(points, id, base, Some(previous)),
        [verb, points, id, parent, name] if verb.as_os_str() == "restore" => restore(points, id, parent, name),
        _ => Err("usage: tool bundle TREE ARCHIVE [PREVIOUS] | accept ARCHIVE | unpack ARCHIVE DEPLOY NAME [PREVIOUS OLDER] | delta OLDER OLD NEWER NEW DELTA | patch DELTA DEPLOY NAME OLDER OLD | capture POINTS ID BASE [PREVIOUS] | restore POINTS ID PARENT NAME | directory ARCHIVE TREE TARGET RECORD | export REPOSITORIES DIRECTORY COMMIT".into()),
    };
    match outcome {
        Ok(line) => {
            let _ = writeln!(io::stdout(), "{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "tool: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Restarts this program with the environment variable that the keeper gives to workers. The C library reads the variable only at the
/// start of a program.
fn as_a_worker() -> io::Result<()> {
    let (name, value) = LARGE_PAGES;
    if std::env::var_os(name).is_some() {
        return Ok(());
    }
    Err(Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(name, value).exec())
}

/// Takes a restore point with the options of the dump worker, but without the file systems that are mounted inside of `base`.
fn capture(points: &Path, id: &Path, base: &Path, previous: Option<&Path>) -> Outcome {
    let store = Store::create(points)?;
    let previous = previous.map(|id| Ok::<_, Box<dyn Error>>(store.point(text(id)?)?)).transpose()?;
    let base = File::open(base)?;
    rustix::fs::syncfs(&base)?;
    let options = CaptureOptions { threads: 2, sync_sources: false, skip_unreadable: true, ..CaptureOptions::default() };
    let label = serde_json::Value::Null;
    let captured = store.capture(text(id)?, &label, base.as_fd(), &[Source::directory("data")], previous.as_ref(), &options)?;
    Ok(format!("{:?}", captured.manifest.totals))
}

fn restore(points: &Path, id: &Path, parent: &Path, name: &Path) -> Outcome {
    let options = RestoreOptions { threads: 2, ..RestoreOptions::default() };
    let point = Store::open(points)?.point(text(id)?)?;
    let report = point.restore_into(File::open(parent)?.as_fd(), name.as_os_str(), &options)?;
    Ok(format!("{} files, {} bytes", report.files, report.bytes))
}

/// Syncs a directory as the sync worker does.
fn directory(archive: &Path, tree: &Path, target: &Path, record: &Path) -> Outcome {
    let new = record.with_extension("new");
    let previous = File::open(record).ok();
    let paths = SyncPaths { tree: tree.into(), target: target.into() };
    let (job, manifest) = (SyncJob { policy: SyncPolicy::default() }, index::open(&manifest_of(archive))?);
    let report = sync::work(&job, &paths, &manifest, &writable(&new)?, previous.as_ref()).into_result()?;
    std::fs::rename(&new, record)?;
    Ok(format!("{} entries, {} changed, {} deleted", report.entries, report.changed, report.deleted))
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the path of the manifest beside an archive.
fn manifest_of(archive: &Path) -> PathBuf {
    let mut path = archive.as_os_str().to_owned();
    path.push(".json");
    path.into()
}

fn accept(archive: &Path) -> Outcome {
    Ok(format!("{} entries", store::read(&manifest_of(archive))?.entries.len()))
}

fn text(word: &Path) -> Result<&str, Box<dyn Error>> {
    word.to_str().ok_or_else(|| "an argument is not UTF-8".into())
}

fn writable(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(true).open(path)
}

fn bundle(tree: &Path, archive: &Path, previous: Option<&Path>) -> Outcome {
    let created = jiff::Timestamp::now();
    // An installed tree has the name of its release.
    let named = tree.file_name().and_then(|name| name.to_str()?.parse().ok());
    let head = Head {
        project: "bench".parse()?,
        environment: "staging".parse()?,
        release: named.unwrap_or_else(|| ReleaseId::new(created)),
        commit: "0123456789abcdef0123456789abcdef01234567".parse()?,
        source: None,
        build: 1,
        tag: None,
        mode: Mode::Cooking,
        buildpacks: Vec::new(),
        processes: Vec::new(),
        created,
    };
    let before =
        previous.map(|path| Ok::<_, Box<dyn Error>>((File::open(path)?, index::open(&manifest_of(path))?))).transpose()?;
    let job = BundleJob { head, previous: before.is_some(), threads: threads(), limit: u64::MAX, secrets: Default::default() };
    let places = bundle::BundlePaths { app: tree.into(), source: None, upper: None };
    let (out, manifest) = (writable(archive)?, writable(&manifest_of(archive))?);
    let before = before.as_ref().map(|(archive, manifest)| (archive, manifest));
    let report = bundle::work(job, &places, &out, &manifest, before).into_result()?;
    Ok(format!("{} entries, {} changed, {} bytes", report.entries, report.changed, report.archive_bytes))
}

fn unpack(archive: &Path, deploy: &Path, name: &Path, previous: Option<(&Path, &Path)>) -> Outcome {
    let tree = deploy.join(name);
    let spare = fingerprint_of(&tree)?;
    let older: Option<ReleaseId> = previous.map(|(_, older)| text(older)?.parse().map_err(Box::<dyn Error>::from)).transpose()?;
    // If both archives are the same, the job makes a copy of the installed release, which then serves as a spare tree.
    let content =
        if previous.is_some_and(|(path, _)| path == archive) { ContentSource::Previous } else { ContentSource::Archive };
    let job = UnpackJob { previous: older, content, spare, live: None, threads: threads(), limits: Default::default() };
    let places = install::InstallPaths { tree, deploy: deploy.into() };
    let (manifest, before) = match previous {
        Some((path, _)) => {
            let (manifest, before) = open_both(&manifest_of(archive), &manifest_of(path));
            (manifest?, Some(before?))
        }
        None => (index::open(&manifest_of(archive))?, None),
    };
    let report = install::work(&job, &places, &File::open(archive)?, &manifest, before.as_ref()).into_result()?;
    if let Some(fingerprint) = report.fingerprint {
        std::fs::write(deploy.join(format!("{}.fingerprint", name.display())), fingerprint.to_string())?;
    }
    Ok(format!("{} entries, {} linked, {} unpacked", report.entries, report.linked, report.unpacked))
}

/// Returns the fingerprint of an existing tree, which is a spare tree; a server records the fingerprints of its spare trees. Creates the
/// directory of a missing tree, and returns `None`.
fn fingerprint_of(tree: &Path) -> Result<Option<Digest>, Box<dyn Error>> {
    if !tree.is_dir() {
        std::fs::create_dir(tree)?;
        return Ok(None);
    }
    let fingerprint = std::fs::read_to_string(tree.with_extension("fingerprint"))?;
    Ok(Some(fingerprint.parse()?))
}

/// Opens two manifests in parallel, because opening a manifest reads and checks the whole file.
fn open_both(one: &Path, other: &Path) -> (Result<File, FileError>, Result<File, FileError>) {
    std::thread::scope(|scope| {
        let one = scope.spawn(|| index::open(one));
        let other = index::open(other);
        match one.join() {
            Ok(one) => (one, other),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn delta((older, old): (&Path, &Path), (newer, new): (&Path, &Path), out: &Path) -> Outcome {
    let job = DeltaJob {
        old: PackSource { tree: Some(text(old)?.rsplit('/').next().unwrap_or_default().parse()?), archive: false },
        new: PackSource { tree: Some(text(new)?.rsplit('/').next().unwrap_or_default().parse()?), archive: false },
        threads: threads(),
    };
    let deploy = old.parent().ok_or("cannot make a delta: the path of the old tree has no directory")?;
    let (of_old, of_new) = open_both(&manifest_of(older), &manifest_of(newer));
    let files = [writable(out)?, of_old?, of_new?];
    let report = pack::delta(&job, deploy, &files).into_result()?;
    Ok(format!(
        "{} bytes, {} of them for the manifest, {} files of {} bytes",
        report.bytes, report.manifest, report.files, report.content
    ))
}

fn patch(delta: &Path, deploy: &Path, name: &Path, older: &Path, old: &Path) -> Outcome {
    let tree = deploy.join(name);
    let spare = fingerprint_of(&tree)?;
    // A server also writes the manifest first, because it checks the signature of the manifest before it uses the rest of the delta.
    let file = File::open(delta)?;
    let manifest = delta::manifest(&file, store::read(&manifest_of(older))?)?;
    let path = manifest_of(delta);
    let written = writable(&path)?;
    let encoded = EncodedManifest::of(&manifest, threads())?;
    (&mut &written).write_all(&encoded.text)?;
    encoded.keep_index(&path, index::identity(&written));
    // The manifest is not freed here, because a server frees the manifest while the worker runs.
    std::mem::forget(manifest);
    let (written, of_old) = open_both(&path, &manifest_of(older));
    let (written, of_old) = (written?, of_old?);
    let (previous, limits) = (Some(text(old)?.parse()?), Default::default());
    let job = UnpackJob { previous, content: ContentSource::Delta, spare, live: None, threads: threads(), limits };
    let places = install::InstallPaths { tree, deploy: deploy.into() };
    let report = install::work(&job, &places, &file, &written, Some(&of_old)).into_result()?;
    Ok(format!("{} entries, {} linked, {} unpacked", report.entries, report.linked, report.unpacked))
}

fn export(repositories: &Path, place: &Path, commit: &Path) -> Outcome {
    let paths = WorkerPaths { repo: repositories.into(), source: Some(place.into()), hooks: None, hook_socket: None };
    let job = SourceJob {
        commit: text(commit)?.parse()?,
        limits: SourceLimits::default(),
        export: true,
        fresh: false,
        tags: Vec::new(),
        quarantine: None,
    };
    match source::perform(&paths, &job) {
        SourceReport::Ready(done) => Ok(format!("{} entries, {:?} changed", done.entries, done.changed)),
        other => Err(format!("{other:?}").into()),
    }
}
