//! The floor plan, held: rooms import only rooms below them, each dependency stays in its room, no file grows too long.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Dependencies that only one room may name, and which.
const KEPT: [(&str, &[&str]); 17] = [
    ("git2", &["git"]),
    ("russh", &["surface/ssh", "remote/ssh", "server.rs"]),
    ("object_store", &["remote"]),
    ("reqwest", &["remote"]),
    ("rustls", &["remote"]),
    ("backon", &["remote"]),
    ("tar", &[]), // of crates/archive only
    ("zstd", &[]),
    ("serde_yaml", &["config"]),
    ("minijinja", &["proxy"]),
    ("hyper", &["proxy", "runtime/static_server"]),
    ("hyper_util", &["proxy", "runtime/static_server"]),
    ("clap", &["surface/cli", "main.rs"]),
    ("ignore", &["release"]),
    ("ring", &["release"]),
    ("foldhash", &["release/delta"]),
    ("diffy", &["release/drift"]),
];

/// Longer files need a reason, written here.
const LINES_MAX: usize = 800;

fn sources() -> Vec<(PathBuf, String)> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut directories = vec![top.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push((path.strip_prefix(&top).unwrap().to_owned(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// The code without comments: what stands behind `//` names rooms for readers only.
fn code(text: &str) -> String {
    let uncommented = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    uncommented.collect::<Vec<_>>().join("\n")
}

/// The levels of `src/lib.rs`, highest first: rooms that stand together there are on one level.
fn levels() -> Vec<Vec<String>> {
    let listing = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let mut levels = vec![Vec::new()];
    for line in listing.lines() {
        if let Some(room) = line.trim().strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
            levels.last_mut().unwrap().push(room.to_owned());
        } else if line.trim().is_empty() {
            levels.push(Vec::new());
        }
    }
    levels.retain(|level| !level.is_empty());
    levels
}

/// The rooms that a piece of code names as `crate::ROOM` or `crate::{ROOM, ...}`.
fn rooms_named(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = code[at + "crate::".len()..].trim_start();
        match rest.strip_prefix('{') {
            Some(group) => rooms.extend(first_words(group)),
            None => rooms.extend(word(rest)),
        }
    }
    rooms
}

/// The first word of each member of a `use` group, up to its closing brace.
fn first_words(group: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut depth = 0;
    let mut member = String::new();
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => words.extend(word(std::mem::take(&mut member).trim())),
            _ => {
                depth += match c {
                    '{' => 1,
                    '}' => -1,
                    _ => 0,
                };
                member.push(c);
            }
        }
    }
    words.extend(word(member.trim()));
    words
}

fn word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

fn room_of(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// How many modules lie between the crate and the module that a file is: 1 for `git/mod.rs` and `server.rs`, 2 for `git/refs.rs`.
fn depth(path: &Path) -> usize {
    path.components().count() - usize::from(path.ends_with("mod.rs"))
}

#[test]
fn rooms_import_only_rooms_below_them() {
    let levels = levels();
    assert!(levels.len() >= 8 && levels.last().unwrap() == &["model"], "src/lib.rs is read wrong: {levels:?}");
    let height: BTreeMap<_, _> =
        levels.iter().enumerate().flat_map(|(index, level)| level.iter().map(move |room| (room.as_str(), index))).collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (path, text) in sources() {
        let room = room_of(&path);
        if room == "lib" || room == "main" {
            continue;
        }
        let Some(own) = height.get(room.as_str()) else {
            wrong.push(format!("src/{} is in no room of src/lib.rs", path.display()));
            continue;
        };
        for named in rooms_named(&code(&text)) {
            // What is not a room is a macro or a re-export of the crate; there are none.
            seen += 1;
            match height.get(named.as_str()) {
                _ if named == room => {}
                None => wrong.push(format!("src/{} names crate::{named}, which is no room", path.display())),
                Some(other) if other > own => {}
                Some(_) => wrong.push(format!("src/{}: {room} imports {named}, which is not below it", path.display())),
            }
        }
    }
    assert!(seen > 40, "only {seen} imports were found; this test is blind");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_room_is_left_by_super() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        // Modules inside a file are indented, and there `super` means the file.
        for line in code(&text).lines().filter(|line| !line.starts_with(' ')) {
            let supers = line.matches("super::").count();
            if supers > 0 && supers >= depth(&path) && line.contains(&"super::".repeat(depth(&path))) {
                wrong.push(format!("src/{}: {line}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_dependency_stays_in_its_room() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (path, text) in sources() {
        let code = code(&text);
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
    for dependency in ["git2", "russh", "serde_yaml", "hyper"] {
        assert!(seen.contains(dependency), "{dependency} is found nowhere; this test is blind");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether the code has `dependency::` as the first word of a path.
fn names(code: &str, dependency: &str) -> bool {
    let path = format!("{dependency}::");
    code.match_indices(&path).any(|(at, _)| {
        let mut before = code[..at].chars().rev();
        match before.next() {
            Some(c) if c.is_alphanumeric() || c == '_' => false,
            // `a::tar::b` is another tar, but `::tar::b` is this one.
            Some(':') => !before.nth(1).is_some_and(|c| c.is_alphanumeric() || c == '_'),
            _ => true,
        }
    }) || code.contains(&format!("use {dependency} "))
        || code.contains(&format!("use {dependency};"))
}

#[test]
fn no_file_is_too_long() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(path, lines)| format!("src/{} has {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn unsafe_code_is_in_few_known_files() {
    let files: Vec<_> =
        sources().into_iter().filter(|(_, text)| text.contains("allow(unsafe_code)")).map(|(path, _)| path).collect();
    let mut rooms: Vec<_> = files.iter().map(|path| path.parent()).collect();
    rooms.sort();
    rooms.dedup();
    assert_eq!(rooms.len(), files.len(), "one file for each directory that needs it: {files:?}");
}
