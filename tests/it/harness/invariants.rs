//! The invariants of an environment that can be observed from outside. [`World::is_consistent`] checks all of them after any run: also after
//! a kill, a full disk or a failed deployment. Background work may still be in flight, so the checks are repeated for a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use larder::layout::Layout;
use larder_points::{Kind, Source, decode_index, decode_index_changes};
use serde_json::Value;

use super::{World, layout::differences, processes, state::names};

/// The time limit of background work after the last deployment: drains, pruning, announcements, deletions.
const BACKGROUND: Duration = Duration::from_secs(45);

/// Workers that end with their job. The other workers become the processes of an application or of git.
const SHORT_LIVED: [&str; 11] =
    ["source", "build", "bundle", "unpack", "verify", "pack", "drift", "patch", "dump", "restore", "sweep"];

/// Names that only unfinished writes have.
const UNFINISHED: [&str; 5] = [".new-", ".old-", ".commit", ".larder-new", ".restore-"];

/// The maximum size of a file that is searched for secrets, in bytes.
const SEARCHED: u64 = 16 << 20;

/// The findings of a check: one line for each broken invariant.
type Findings = Vec<String>;

impl World {
    /// Asserts all invariants of an environment that builds its releases. Every tree has an archive, and every archive has a tree.
    #[track_caller]
    pub fn is_consistent(&self, project: &str) {
        self.holds(project, |trees, stored| trees == stored);
    }

    /// Asserts all invariants of an environment in which an archive need not have a tree: releases may have been pulled or imported and
    /// never installed.
    #[track_caller]
    pub fn is_consistent_with_a_store(&self, project: &str) {
        self.holds(project, |trees, stored| trees.iter().all(|tree| stored.contains(tree)));
    }

    #[track_caller]
    fn holds(&self, project: &str, fits: impl Fn(&[String], &[String]) -> bool) {
        super::until("every deployment has its end", || self.has_ended(project));
        let mut broken = Vec::new();
        super::within(BACKGROUND, || {
            broken = self.broken(project, &fits);
            broken.is_empty()
        });
        assert!(broken.is_empty(), "{} invariants of {project} are broken:\n{}", broken.len(), broken.join("\n"));
    }

    /// Returns the broken invariants. The numbers in the code are those of `ARCHITECTURE.md`.
    ///
    /// The state on the disk does not show some invariants: whether a failed deployment has restored the data (the tests compare the data before
    /// and after), whether a request was dropped (the tests send requests meanwhile), and whether code of a project reaches other projects
    /// (`hostile.rs`). The limits of queues and buffers have tests of their own.
    fn broken(&self, project: &str, fits: &dyn Fn(&[String], &[String]) -> bool) -> Findings {
        let top = self.environment(project);
        let mut found = Vec::new();
        match self.live_release(&top) {
            Ok(release) => {
                found.extend(self.branch_and_slot(project, &top, &release)); // 1
                found.extend(tree_differs(&top, &release)); // 2, 5
                found.extend(predecessor_is_missing(&self.journals(project), &top, &release)); // 7
                found.extend(self.answer_differs(project, &top, &release)); // 1
            }
            Err(why) => found.push(why),
        }
        let all = |directory: &str, ending: &str| -> Vec<String> {
            let names = names(&top.join(directory)).into_iter().filter(|name| name != "current");
            names.filter_map(|name| name.strip_suffix(ending).map(str::to_owned)).collect()
        };
        let (trees, archives) = (all("deploy", ""), all("releases", ".tar.zst"));
        if archives != all("releases", ".manifest.json") || !fits(&trees, &archives) {
            found.push(format!("trees and archives differ: {trees:?}, {:?}", names(&top.join("releases"))));
        }
        for other in trees.iter().filter(|tree| archives.contains(tree) && manifest(&top, tree).is_ok()) {
            found.extend(tree_differs(&top, other)); // 6
        }
        found.extend(manifests_differ(&top)); // 6
        found.extend(self.journals(project).iter().filter_map(|journal| ends_wrongly(journal))); // 3
        found.extend(points_differ(&top)); // 15
        found.extend(self.leftovers(&top));
        found.extend(differences(self.root(), &Layout::standard().unwrap()));
        found.extend(self.exposed_secrets(&top));
        found
    }

    /// Returns the release that `deploy/current` names.
    fn live_release(&self, top: &Path) -> Result<String, String> {
        let current = fs::read_link(top.join("deploy/current")).map_err(|error| format!("deploy/current: {error}"))?;
        let release = current.to_str().unwrap().to_owned();
        if !top.join("deploy").join(&release).is_dir() {
            return Err(format!("the tree of {release} is missing"));
        }
        Ok(release)
    }

    /// The deploy branch names the commit of the live release, and `run` and `slots.json` name the slot of the live release.
    fn branch_and_slot(&self, project: &str, top: &Path, release: &str) -> Findings {
        let mut found = Vec::new();
        match manifest(top, release) {
            Ok(manifest) => {
                let branch = format!("refs/heads/main {}", manifest["commit"].as_str().unwrap());
                let refs = self.refs(project);
                if !refs.contains(&branch) {
                    found.push(format!("{branch} is not in {refs:?}"));
                }
            }
            Err(why) => found.push(why),
        }
        let slots: Value =
            fs::read(top.join("slots.json")).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let run = fs::read_link(top.join("run")).unwrap_or_default();
        // The link is `slots/blue`, `slots/green` or `slots/in-place/upper`.
        let slot = run.components().nth(1).map_or_else(Default::default, |slot| slot.as_os_str());
        let live = &slots[slot.to_str().unwrap()];
        if live["use"] != "live" || live["release"] != release {
            found.push(format!("{} is not live: {slots:#}", run.display()));
        }
        found
    }

    /// A site of plain files answers with the page of the live tree. Other applications, pages changed by hand, and releases without a web
    /// process are not compared.
    fn answer_differs(&self, project: &str, top: &Path, release: &str) -> Option<String> {
        let tree = top.join("deploy").join(release);
        let run = fs::read_link(top.join("run")).ok()?;
        let procfile = fs::read_to_string(tree.join("Procfile")).unwrap_or_default();
        let is_plain = procfile.is_empty() || procfile.contains("static-server --root .");
        let is_changed = fs::symlink_metadata(top.join(run).join("upper/index.html")).is_ok();
        let page = fs::read_to_string(tree.join("index.html")).ok().filter(|_| is_plain && !is_changed)?;
        let listed = self.larder(&["ps", project, "--json"]);
        let rows: Value = serde_json::from_str(&listed.stdout).ok()?;
        rows.as_array()?.iter().find(|row| row["port"].is_u64())?;
        let answer = super::http::get(self.http_port(), &format!("{project}.localhost"), "/");
        match answer {
            Ok(answer) if answer.status == 200 && answer.body == page => None,
            // A host name of the recipe, or a page for a missing host, answers for another address.
            Ok(answer) if answer.status == 404 || answer.status == 421 => None,
            other => Some(format!("the live release does not answer with its page: {other:?}")),
        }
    }

    /// No worker, no unfinished write and no discarded file is left. An interrupted capture or removal in the store of restore points is
    /// swept by the next capture, so the store is not searched.
    fn leftovers(&self, top: &Path) -> Findings {
        let mut found = Vec::new();
        for process in processes::of(self.directory()) {
            let mut words = process.arguments.iter().map(String::as_str).skip(1);
            if words.next() == Some("worker") && words.next().is_some_and(|role| SHORT_LIVED.contains(&role)) {
                found.push(format!("a worker is left: {process:?}"));
            }
        }
        let mounts = processes::mounts(self.directory());
        if !mounts.is_empty() {
            found.push(format!("mounts in the namespace of the tests: {mounts:?}"));
        }
        for directory in ["", "deploy", "releases", "data", "deployments", "../../../state"] {
            let left = names(&top.join(directory)).into_iter();
            let left: Vec<_> = left.filter(|name| UNFINISHED.iter().any(|start| name.starts_with(start))).collect();
            if !left.is_empty() {
                found.push(format!("unfinished writes in {directory:?}: {left:?}"));
            }
        }
        for directory in ["restoring", "data-copy", "archives/restored/.drill", "releases/.incoming", "../../../trash"] {
            let left = names(&top.join(directory));
            if !left.is_empty() {
                found.push(format!("{directory} is not empty: {left:?}"));
            }
        }
        for deployment in names(&top.join("deployments")) {
            if top.join("deployments").join(&deployment).join("reserve").exists() {
                found.push(format!("the deployment {deployment} holds disk space after its end"));
            }
        }
        let locks = files_below(&top.join("../git")).into_iter().filter(|path| path.extension().is_some_and(|end| end == "lock"));
        found.extend(locks.map(|lock| format!("a lock of git is left: {}", lock.display())));
        if top.join("data-copy.note").exists() {
            found.push(String::from("the note of a copy of the data is left"));
        }
        let restore = fs::read(top.join("restore.json")).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        if restore.as_ref().is_some_and(|record| record["end"].is_null() || !record["stage"].is_null()) {
            found.push(format!("a restore has no end: {restore:?}"));
        }
        found
    }

    /// The generated secrets of the environment, and the passwords of database servers of tests, are in no log, record, tree or
    /// argument. Passwords that a test writes into a recipe are in the repository and in trees, so trees are searched only for generated
    /// secrets.
    fn exposed_secrets(&self, top: &Path) -> Findings {
        let generated = fs::read(top.join("generated.json")).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let mut secrets = BTreeSet::new();
        collect(&generated.unwrap_or_default(), &mut secrets);
        let passwords = [super::databases::PASSWORD, super::databases::PASSWORD_IN_URL].map(str::to_owned);
        let mut found = Vec::new();
        for process in processes::of(self.directory()) {
            // Programs of a test's own database servers and clients do not belong to larder.
            let of_larder = process.arguments.first().is_some_and(|program| program.ends_with("larder"));
            let text = process.arguments.join("\0");
            if secrets.iter().chain(&passwords).any(|secret| of_larder && text.contains(secret.as_str())) {
                found.push(format!("a secret is in the arguments of {}", process.pid));
            }
        }
        let all: BTreeSet<String> = secrets.iter().cloned().chain(passwords).collect();
        let mut places = vec![(super::server::log_file(self.directory()), &all)];
        let inside = |name: &str| files_below(&top.join(name));
        for file in names(top).into_iter().map(|name| top.join(name)).filter(|path| path.is_file()) {
            if !file.ends_with("generated.json") {
                places.push((file, &all));
            }
        }
        // The journals have the values of all variables, and only the server can read them.
        let records = ["deployments", "log"].into_iter().flat_map(inside).filter(|file| !file.ends_with("journal.jsonl"));
        places.extend(records.map(|file| (file, &all)));
        if !secrets.is_empty() {
            let trees = ["deploy", "releases", "cache"].into_iter().flat_map(inside);
            // Other users can read the archives of restore points as little as the data itself.
            places.extend(trees.filter(|file| is_readable_by_others(file)).map(|file| (file, &secrets)));
        }
        for (file, wanted) in places {
            if fs::metadata(&file).is_ok_and(|found| found.len() > SEARCHED) {
                continue;
            }
            let text = fs::read(&file).unwrap_or_default();
            if wanted.iter().any(|secret| processes::contains(&text, secret.as_bytes())) {
                found.push(format!("a secret is in {}", file.display()));
            }
        }
        found
    }
}

/// Collects all texts of at least 16 characters.
fn collect(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::String(text) if text.len() >= 16 => drop(into.insert(text.clone())),
        Value::Array(values) => values.iter().for_each(|value| collect(value, into)),
        Value::Object(values) => values.values().for_each(|value| collect(value, into)),
        _ => {}
    }
}

fn files_below(top: &Path) -> Vec<PathBuf> {
    let (mut files, mut pending) = (Vec::new(), vec![top.to_owned()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}

fn is_readable_by_others(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|found| found.permissions().mode() & 0o004 != 0)
}

fn manifest(top: &Path, release: &str) -> Result<Value, String> {
    let path = top.join("releases").join(format!("{release}.manifest.json"));
    let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// A release has the same manifest in all environments of its project, so all of them run the same bytes.
fn manifests_differ(top: &Path) -> Findings {
    let mut found = Vec::new();
    let own = top.join("releases");
    for environment in
        names(&top.join("..")).into_iter().filter(|name| Some(name.as_str()) != top.file_name().and_then(OsStr::to_str))
    {
        let other = top.join("..").join(&environment).join("releases");
        for name in names(&other).into_iter().filter(|name| name.ends_with(".manifest.json") && own.join(name).exists()) {
            if fs::read(own.join(&name)).ok() != fs::read(other.join(&name)).ok() {
                found.push(format!("{name} differs between {} and {environment}", top.display()));
            }
        }
    }
    found
}

/// A tree has exactly the entries of its manifest, with the same contents, modes and targets, and its archive exists.
fn tree_differs(top: &Path, release: &str) -> Findings {
    let manifest = match manifest(top, release) {
        Ok(manifest) => manifest,
        Err(why) => return vec![why],
    };
    let mut found = Vec::new();
    if !top.join("releases").join(format!("{release}.tar.zst")).is_file() {
        found.push(format!("the archive of {release} is missing"));
    }
    let tree = top.join("deploy").join(release);
    let mut expected = BTreeMap::new();
    for entry in manifest["entries"].as_array().unwrap() {
        let kind = entry["type"].as_str().unwrap();
        let executable = entry["executable"] == true;
        let content = entry["digest"].as_str().or(entry["target"].as_str()).unwrap_or_default();
        expected.insert(entry["path"].as_str().unwrap().to_owned(), (kind.to_owned(), executable, content.to_owned()));
    }
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        for entry in fs::read_dir(tree.join(&relative)).into_iter().flatten().flatten() {
            let path = relative.join(entry.file_name());
            let (at, shown) = (tree.join(&path), path.to_string_lossy().into_owned());
            let Ok(metadata) = fs::symlink_metadata(&at) else { continue };
            let seen = if metadata.is_dir() {
                pending.push(path);
                (String::from("dir"), false, String::new())
            } else if metadata.is_symlink() {
                let target = fs::read_link(&at).unwrap_or_default();
                (String::from("link"), false, target.to_string_lossy().into_owned())
            } else {
                let digest = fs::read(&at).map(|bytes| blake3::hash(&bytes).to_string()).unwrap_or_default();
                (String::from("file"), metadata.permissions().mode() & 0o111 != 0, digest)
            };
            match expected.remove(&shown) {
                Some(wanted) if wanted == seen => {}
                other => found.push(format!("{shown} of {release} is {seen:?} (expected {other:?})")),
            }
        }
    }
    found.extend(expected.keys().map(|path| format!("{path} of {release} is missing")));
    found
}

/// The release that was live before the live release can be rolled back to.
fn predecessor_is_missing(journals: &[Vec<Value>], top: &Path, release: &str) -> Option<String> {
    let made = journals.iter().rev().find(|journal| {
        let is_live = journal.iter().any(|record| record["event"] == "ended" && record["outcome"] == "live");
        is_live && journal[0]["release"] == release
    })?;
    let previous = made[0]["previous"]["release"].as_str()?;
    let is_there = |ending: &str| top.join("releases").join(format!("{previous}.{ending}")).is_file();
    let is_complete = is_there("manifest.json") && (is_there("tar.zst") || is_there("delta"));
    (!is_complete).then(|| format!("the predecessor {previous} of {release} was removed"))
}

/// A deployment has one end, and the end is announced. An end that froze the environment is followed by a further end when a person
/// unfreezes the environment.
fn ends_wrongly(journal: &[Value]) -> Option<String> {
    let first = journal.first()?;
    // Journals of larder 0.1 have no announcements.
    if first["version"].as_u64().unwrap_or(1) < 2 {
        return None;
    }
    let id = first["deployment"].as_str().unwrap_or_default();
    let (mut ends, mut is_open, mut announced) = (0, true, 0);
    for record in journal {
        match record["event"].as_str()? {
            "ended" => {
                if !is_open {
                    return Some(format!("{id} ended twice"));
                }
                ends += 1;
                is_open = record["outcome"] == "stuck";
            }
            "announced" => announced = record["ending"].as_u64()?,
            _ => {}
        }
    }
    (announced != ends).then(|| format!("{id} has {ends} ends, of which {announced} are announced"))
}

/// Every restore point of the store can be read back, except those that a verification has found damaged.
fn points_differ(top: &Path) -> Findings {
    let store = top.join("archives/points");
    let ids = names(&store).into_iter().filter(|name| !name.starts_with('.') && name != "lock");
    ids.filter_map(|id| point_differs(&store.join(&id)).err().map(|why| format!("restore point {id}: {why}"))).collect()
}

/// Reads a restore point back without a change of its store: the manifest, the index and the content of all files.
fn point_differs(point: &Path) -> Result<(), String> {
    let read = |name: &str| fs::read(point.join(name)).map_err(|error| format!("{name}: {error}"));
    let json = |name: &str| serde_json::from_slice::<Value>(&read(name)?).map_err(|error| format!("{name}: {error}"));
    if json("verified.json").is_ok_and(|verified| verified["damaged"] != 0) {
        return Ok(());
    }
    let digest = |bytes: &[u8]| blake3::hash(bytes).to_string();
    let (manifest, index) = (json("point.json")?, read("index")?);
    if !String::from_utf8_lossy(&read("checksums")?).starts_with(&digest(&read("point.json")?)) {
        return Err(String::from("point.json differs from its digest"));
    }
    if manifest["index_digest"] != digest(&index) {
        return Err(String::from("the index differs from its digest"));
    }
    let source = |source: &Value| match (source["path"].as_str().unwrap(), source["kind"] == "file") {
        (path, true) => Source::file(path),
        (path, false) => Source::directory(path),
    };
    let sources: Vec<_> = manifest["sources"].as_array().unwrap().iter().map(source).collect();
    // An index with a file `base` beside it contains the changes of that index.
    let entries = match read("base") {
        Ok(base) => decode_index_changes(&index, &base, "of a test", &sources),
        Err(_) => decode_index(&index, "of a test", &sources),
    };
    let entries = entries.map_err(|error| error.to_string())?;
    for entry in &entries {
        let Kind::File { size, digest, .. } = &entry.kind else { continue };
        let stored = match manifest["version"].as_u64() {
            Some(1) => point.join("files").join(OsStr::from_bytes(&entry.path)),
            _ => point.with_file_name(".contents").join(digest.to_string()),
        };
        let bytes = fs::read(stored).unwrap_or_default();
        if bytes.len() as u64 != *size || *blake3::hash(&bytes).as_bytes() != digest.0 {
            return Err(format!("{} has {} bytes of other content (expected {size})", entry.shown(), bytes.len()));
        }
    }
    Ok(())
}
