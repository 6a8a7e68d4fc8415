//! The module structure: modules import only modules below them, files import each other without cycles, each dependency stays in
//! its module, and no file grows too long.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::harness::source::{Imports, Source, paths, sources, top};

/// Dependencies with the modules that may name them. A dependency without a module is used by the crates in `crates/` only.
const KEPT: [(&str, &[&str]); 25] = [
    ("age", &["snapshots", "secret"]),
    ("anstream", &["surface/cli"]),
    ("indicatif", &["surface/cli"]),
    ("git2", &["git"]),
    ("russh", &["surface/ssh", "remote/ssh", "server.rs", "backup/offsite/ssh.rs"]),
    ("object_store", &["remote", "backup/offsite"]),
    ("rustic_core", &["backup/offsite"]),
    ("reqwest", &["remote", "notify"]),
    ("rustls", &["remote", "backup/offsite", "notify"]),
    ("backon", &["remote", "notify"]),
    ("lettre", &["notify"]),
    ("tar", &[]),
    ("zstd", &[]),
    ("serde_yaml", &["config"]),
    ("croner", &["config"]),
    ("minijinja", &["proxy", "notify", "runtime"]),
    ("hyper", &["proxy", "runtime/static_server"]),
    ("hyper_util", &["proxy", "runtime/static_server"]),
    ("clap", &["surface/cli", "main.rs"]),
    ("ignore", &["release", "drift", "watch"]),
    ("file_events", &["watch"]),
    ("ring", &["release", "notify"]),
    ("foldhash", &[]),
    ("diffy", &["drift"]),
    ("larder_sandbox", &["keeper"]),
];

/// Operations that order changes on the disk. A change that must survive a power cut needs several of them in the right order.
const DURABLE: [&str; 9] =
    ["sync_all", "sync_data", "fsync(", "syncfs(", "fdatasync", "fs::rename(", "renameat", ".persist(", "sync_file_range"];

/// The files that use these operations besides `host/files`, each with the reason.
const DURABLE_ELSEWHERE: [(&str, &str); 43] = [
    ("src/git/checkout/guard.rs", "a worker moves an index that git cannot read out of the way; git writes the new index"),
    (
        "src/runtime/templates.rs",
        "a worker renders into a slot, which is written anew at each start; the path is below a descriptor",
    ),
    ("crates/archive/src/confined.rs", "syncs the file system of a descriptor for a directory that is not addressed by path"),
    ("crates/points/src/store.rs", "a pure crate; all its files are below descriptors, never addressed by path"),
    ("crates/points/src/sys.rs", "a pure crate: moves entries out of the way before a removal"),
    ("crates/points/src/contents.rs", "a pure crate: replaces contents below descriptors after they are durable"),
    ("crates/points/src/publish.rs", "a pure crate: syncs a restore point before the rename that publishes it"),
    (
        "crates/sandbox/src/volume.rs",
        "the keeper imports no other module; an image is synced before the rename that publishes it",
    ),
    ("crates/points/src/capture/mod.rs", "a pure crate: syncs a capture before the rename that publishes the capture"),
    ("crates/points/src/restore/back.rs", "a pure crate: syncs the stage before the first live file is replaced"),
    ("crates/points/src/restore/mod.rs", "a pure crate: syncs the restored tree before its final name"),
    ("crates/points/src/restore/state.rs", "a pure crate: exchanges a live file with its restored state below descriptors"),
    (
        "crates/sandbox/src/directory.rs",
        "the keeper's operations below a descriptor: a rename into the trash, which need not be durable",
    ),
    (
        "crates/sandbox/src/embedded.rs",
        "the keeper imports no other module; hooks and buildpacks are unpacked again at each start",
    ),
    ("crates/sync/src/files.rs", "a pure crate: replaces files below descriptors; the caller syncs the whole tree"),
    ("src/backup/databases/mysql/script.rs", "a dump in the sandbox, named by the capture"),
    ("src/backup/databases/redis/file.rs", "a dump in the sandbox, named by the capture"),
    ("src/backup/databases/sqlite.rs", "a dump in the sandbox, named by the capture"),
    ("src/backup/databases/stream.rs", "a dump in the sandbox, named by the capture"),
    ("src/backup/databases/tool.rs", "a dump in the sandbox, named by the capture"),
    ("src/backup/dump.rs", "one sync of the file system before a capture, for files that the application wrote"),
    (
        "src/backup/restore.rs",
        "moves restored entries of any kind in the sandbox; the exchange with the live data is in host/files",
    ),
    ("src/dev/checkout.rs", "writes a cache on a developer's machine, which can be made again"),
    ("src/drift/patches.rs", "writes a patch in the sandbox, below a directory of the project's user"),
    ("src/backup/offsite/directory.rs", "writes into a store outside of the root, which may be another file system"),
    ("src/git/refs.rs", "syncs what libgit2 has written"),
    ("src/git/source/tree.rs", "syncs a whole exported tree once, before the list that names its files"),
    ("src/pipeline/data_copy.rs", "a note without content, which is created and never replaced"),
    ("src/pipeline/journal.rs", "appends to one file, which is never replaced"),
    ("src/pipeline/phases/deploy/workspace.rs", "renames a record that can be made again"),
    ("src/release/accept.rs", "syncs an open file; its final name is given by host/files"),
    (
        "src/release/deliver.rs",
        "syncs an open file; its final name is given by host/files. The cache of archives can be made again",
    ),
    ("src/release/server.rs", "two files get their names before one commit of host/files::durable"),
    ("src/release/sync.rs", "syncs a record through a descriptor that the server has opened"),
    ("src/remote/pull/fill.rs", "syncs a partial download before the record of its length"),
    ("src/remote/pull/incoming.rs", "renames a partial download, which can be fetched again"),
    ("src/remote/pull/mod.rs", "renames a partial download, which can be fetched again"),
    ("src/remote/store.rs", "tells the client of a directory remote to sync its files"),
    ("src/runtime/data.rs", "seeds data in the sandbox as the project's user, with one sync of the file system"),
    ("src/runtime/logs.rs", "rotates logs of processes, which are not durable"),
    ("src/surface/cli/client/output.rs", "writes a download on the client's machine"),
    ("src/workers/sweep.rs", "moves entries out of deep directories in the trash before their removal"),
    ("src/host/files", "the module itself"),
];

/// The maximum number of lines of a file without its tests.
const MAX_LINES: usize = 500;

/// The maximum number of lines of the privileged role without its tests, so that one person can audit the role.
const MAX_KEEPER_LINES: usize = 2500;

/// Returns the sources of the program itself, with their paths below `src/`.
fn program() -> Vec<(PathBuf, Source)> {
    let below = |source: Source| Some((source.path.strip_prefix("src").ok()?.to_owned(), source));
    sources().into_iter().filter_map(below).collect()
}

/// Returns the levels of `src/lib.rs`, highest first. Modules without a blank line between them are on one level.
fn levels() -> Vec<Vec<String>> {
    let listing = fs::read_to_string(top().join("src/lib.rs")).unwrap();
    let mut levels = vec![Vec::new()];
    for line in listing.lines() {
        if let Some(module) = line.trim().strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
            levels.last_mut().unwrap().push(module.to_owned());
        } else if line.trim().is_empty() {
            levels.push(Vec::new());
        }
    }
    levels.retain(|level| !level.is_empty());
    levels
}

/// Returns the top-level modules that a piece of code names as `crate::MODULE`.
fn modules_named(code: &str) -> BTreeSet<String> {
    let named = paths(code).into_iter().map(|path| path.segments);
    named.filter(|path| path.first().is_some_and(|first| first == "crate")).filter_map(|path| path.get(1).cloned()).collect()
}

fn module_of(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Returns the depth of a file's module below the crate: 1 for `git/mod.rs` and `server.rs`, 2 for `git/refs.rs`.
fn depth(path: &Path) -> usize {
    path.components().count() - usize::from(path.ends_with("mod.rs"))
}

#[test]
fn module_imports_only_modules_below_it() {
    let levels = levels();
    assert!(levels.len() >= 8 && levels.last().unwrap() == &["model"], "src/lib.rs is misread: {levels:?}");
    let height: BTreeMap<_, _> =
        levels.iter().enumerate().flat_map(|(index, level)| level.iter().map(move |module| (module.as_str(), index))).collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (path, source) in program() {
        let module = module_of(&path);
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(own) = height.get(module.as_str()) else {
            wrong.push(format!("src/{} belongs to no module of src/lib.rs", path.display()));
            continue;
        };
        for named in modules_named(&source.code()) {
            seen += 1;
            match height.get(named.as_str()) {
                _ if named == module => {}
                None => wrong.push(format!("src/{} names crate::{named}, which is no module", path.display())),
                Some(other) if other > own => {}
                Some(_) => wrong.push(format!("src/{}: {module} imports {named}, which is not below it", path.display())),
            }
        }
    }
    assert!(seen > 40, "only {seen} imports were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn super_does_not_leave_the_top_level_module() {
    let mut wrong = Vec::new();
    for (path, source) in program() {
        // The code of a module inside a file is indented. This code is not checked, because its `super` is the module of the file.
        for line in source.code().lines().filter(|line| !line.starts_with(' ')) {
            let supers = line.matches("super::").count();
            if supers > 0 && supers >= depth(&path) && line.contains(&"super::".repeat(depth(&path))) {
                wrong.push(format!("src/{}: {line}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_import_each_other_without_cycles() {
    let sources = sources();
    let mut roots: BTreeMap<PathBuf, Vec<_>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.is_test_helper() && !source.path.ends_with("main.rs")) {
        let (root, module) = source.module();
        roots.entry(root).or_default().push((module, source));
    }
    let (mut seen, mut wrong) = (0, Vec::new());
    for (root, files) in &roots {
        let imports = Imports::of(files);
        seen += imports.edges.values().map(BTreeSet::len).sum::<usize>();
        for cycle in imports.cycles() {
            let modules: Vec<_> = cycle.iter().map(|module| module.join("/")).collect();
            wrong.push(format!("import cycle in {}: {}", root.display(), modules.join(" ")));
        }
    }
    assert!(seen > 300, "only {seen} imports were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn dependency_is_named_only_by_its_modules() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (path, source) in program() {
        let code = source.code();
        for (dependency, homes) in KEPT {
            if !names(&code, dependency) {
                continue;
            }
            seen.insert(dependency);
            if !homes.iter().any(|home| path.starts_with(home)) {
                wrong.push(format!("src/{} names {dependency}, which belongs to {}", path.display(), homes.join(", ")));
            }
        }
    }
    for dependency in ["git2", "russh", "serde_yaml", "hyper", "larder_sandbox"] {
        assert!(seen.contains(dependency), "{dependency} was not found");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Returns true if the code names a dependency: as the first word of a path, or in a `use`.
fn names(code: &str, dependency: &str) -> bool {
    let path = format!("{dependency}::");
    code.match_indices(&path).any(|(at, _)| {
        let mut before = code[..at].chars().rev();
        match before.next() {
            Some(c) if c.is_alphanumeric() || c == '_' => false,
            // `a::tar::b` is another module, but `::tar::b` is the crate.
            Some(':') => !before.nth(1).is_some_and(|c| c.is_alphanumeric() || c == '_'),
            _ => true,
        }
    }) || code.contains(&format!("use {dependency} "))
        || code.contains(&format!("use {dependency};"))
}

/// Returns the number of lines of a file without its tests, comments and blank lines included.
fn lines(source: &Source) -> usize {
    let text = source.text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().count()
}

#[test]
fn file_without_tests_has_at_most_500_lines() {
    let long: Vec<_> = sources()
        .into_iter()
        .filter(|source| !source.is_test_helper())
        .map(|source| (lines(&source), source.path))
        .filter(|(lines, _)| *lines > MAX_LINES)
        .map(|(lines, path)| format!("{} has {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// A file is written durably in `host/files` only: temporary name, sync, rename, sync of the directory. Another order loses data in a power
/// cut, and no test without a power cut notices the loss.
#[test]
fn durable_write_is_in_host_files_or_has_a_named_reason() {
    let allowed = |path: &Path| DURABLE_ELSEWHERE.iter().find(|(place, _)| path.starts_with(place)).map(|(place, _)| *place);
    let (mut found, mut used) = (Vec::new(), BTreeSet::new());
    for source in
        sources().into_iter().filter(|source| !source.is_test_helper() && !source.path.ends_with("script_tests/stale.rs"))
    {
        let code = source.production_code();
        let words: Vec<_> = DURABLE.into_iter().filter(|word| code.contains(word)).collect();
        if words.is_empty() {
            continue;
        }
        match allowed(&source.path) {
            Some(place) => drop(used.insert(place)),
            None => found.push(format!("{} uses {words:?}", source.path.display())),
        }
    }
    assert!(found.is_empty(), "use `host::files`, or name the reason in DURABLE_ELSEWHERE:\n{}", found.join("\n"));
    let stale: Vec<_> = DURABLE_ELSEWHERE.iter().map(|(place, _)| place).filter(|place| !used.contains(*place)).collect();
    assert!(stale.is_empty(), "these exceptions are not needed any more: {stale:?}");
    eprintln!("durable writes: {} files outside of host/files, each with a reason", used.len() - 1);
}

#[test]
fn keeper_without_tests_has_at_most_2500_lines() {
    let keeper = program().into_iter().filter(|(path, source)| path.starts_with("keeper") && !source.is_test_helper());
    let files: Vec<_> = keeper.map(|(path, source)| (lines(&source), path)).collect();
    let all: usize = files.iter().map(|(lines, _)| lines).sum();
    assert!(files.len() > 10 && all > 1000, "the keeper was not found: {files:?}");
    assert!(all <= MAX_KEEPER_LINES, "the keeper has {all} lines (limit {MAX_KEEPER_LINES}): {files:#?}");
}

/// If the crate with the keeper's mechanisms depended on another crate of larder, the keeper could not be audited without that crate.
#[test]
fn sandbox_crate_depends_on_no_other_crate_of_larder() {
    let manifest = fs::read_to_string(top().join("crates/sandbox/Cargo.toml")).unwrap();
    assert!(manifest.contains("rustix"), "the manifest is misread: {manifest}");
    let others = manifest.lines().filter(|line| line.starts_with("larder") || line.contains("path ="));
    assert_eq!(others.count(), 0, "{manifest}");
}

#[test]
fn unsafe_code_is_in_one_file_per_directory() {
    let files: Vec<_> =
        sources().into_iter().filter(|source| source.text.contains("allow(unsafe_code)")).map(|source| source.path).collect();
    let mut directories: Vec<_> = files.iter().map(|path| path.parent()).collect();
    directories.sort();
    directories.dedup();
    assert_eq!(directories.len(), files.len(), "a directory has several files with unsafe code: {files:?}");
}
