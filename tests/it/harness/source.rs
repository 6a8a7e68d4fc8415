//! The source tree as text: files, code without comments and tests, modules and the paths that they name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A source file of the program.
pub struct Source {
    /// The path from the top of the repository, such as `src/git/refs.rs`.
    pub path: PathBuf,
    pub text: String,
}

/// Returns the top of the repository.
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Reads every file of `src/` and `crates/*/src/`, sorted by path.
pub fn sources() -> Vec<Source> {
    let mut roots = vec![top().join("src")];
    roots.extend(fs::read_dir(top().join("crates")).into_iter().flatten().map(|entry| entry.unwrap().path().join("src")));
    let mut files: Vec<_> = roots.iter().flat_map(walkdir::WalkDir::new).map(Result::unwrap).collect();
    files.retain(|entry| entry.path().extension().is_some_and(|extension| extension == "rs"));
    let mut sources: Vec<_> = files
        .iter()
        .map(|entry| Source {
            path: entry.path().strip_prefix(top()).unwrap().to_owned(),
            text: fs::read_to_string(entry.path()).unwrap(),
        })
        .collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 100, "only {} source files were found", sources.len());
    sources
}

impl Source {
    /// Returns true for files that only tests use: `tests.rs`, `testing.rs`, `*_tests.rs`, and everything below such a module.
    pub fn is_test_helper(&self) -> bool {
        self.path.with_extension("").components().any(|part| {
            let name = part.as_os_str().to_string_lossy();
            name == "tests" || name == "testing" || name.ends_with("_tests")
        })
    }

    /// Returns the source root, such as `src` or `crates/archive/src`, and the module below it.
    pub fn module(&self) -> (PathBuf, Vec<String>) {
        let root = self.path.ancestors().find(|path| path.file_name().is_some_and(|name| name == "src")).unwrap();
        let inside = self.path.strip_prefix(root).unwrap().with_extension("");
        let mut module: Vec<_> = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            module.pop();
        }
        (root.to_owned(), module)
    }

    /// Returns the code without comments, which name modules only for readers.
    pub fn code(&self) -> String {
        let uncommented = self.text.lines().map(|line| line.split("//").next().unwrap_or_default());
        uncommented.collect::<Vec<_>>().join("\n")
    }

    /// Returns the code without comments, string contents and items under `#[cfg(test)]`.
    pub fn production_code(&self) -> String {
        without_test_items(&without_literals(&self.text))
    }
}

/// Blanks comments, strings and character literals.
fn without_literals(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(hashes) = raw_string(rest) {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = hashes + 2;
            rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len())
        } else if c == '"' {
            let mut escaped = false;
            let end = rest.char_indices().skip(1).find(|(_, c)| {
                let is_end = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                is_end
            });
            end.map_or(rest.len(), |(at, _)| at + 1)
        } else if c == '\'' {
            character(rest)
        } else {
            0
        };
        if skipped > 0 {
            rest = &rest[skipped..];
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    code
}

/// Returns the number of `#` if a raw string starts here.
fn raw_string(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('r')?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// Returns the length of the character literal at the start, or 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 3),
        Some(_) => chars.next().filter(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

/// Removes every item under `#[cfg(test)]`, up to its semicolon or closing brace.
fn without_test_items(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = ["#[cfg(test)]", "#[cfg(all(test"].iter().filter_map(|mark| rest.find(mark)).min() {
        kept.push_str(&rest[..at]);
        let item = &rest[at..];
        let start = item.find(']').map_or(item.len(), |end| end + 1);
        let mut depth = 0;
        let end = item[start..].char_indices().find(|(_, c)| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            depth == 0 && matches!(c, ';' | '}')
        });
        rest = &item[end.map_or(item.len(), |(at, _)| start + at + 1)..];
    }
    kept.push_str(rest);
    kept
}

/// A path that a file names. `is_reexport` is true if the file re-exports the item.
pub struct Named {
    pub segments: Vec<String>,
    pub is_reexport: bool,
}

/// Returns the paths that a piece of production code names: `use` declarations, expanded, and paths in code.
pub fn paths(code: &str) -> Vec<Named> {
    let mut named = Vec::new();
    let mut rest = code;
    let mut remaining = String::new();
    while let Some(at) = find_word(rest, "use") {
        remaining.push_str(&rest[..at]);
        let end = rest[at..].find(';').map_or(rest.len(), |end| at + end);
        let is_reexport =
            rest[..at].trim_end().rsplit(['\n', ';', '}']).next().is_some_and(|line| line.trim().starts_with("pub"));
        named.extend(expanded(&rest[at + "use".len()..end]).into_iter().map(|segments| Named { segments, is_reexport }));
        rest = &rest[end..];
    }
    remaining.push_str(rest);
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for path in remaining.split(|c| !is_path(c)).filter(|word| word.contains("::")) {
        let segments: Vec<_> = path.split("::").map(str::to_owned).collect();
        if segments.first().is_some_and(|first| !first.is_empty()) {
            named.push(Named { segments, is_reexport: false });
        }
    }
    named
}

fn find_word(text: &str, word: &str) -> Option<usize> {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '#');
    text.match_indices(word)
        .find(|(at, _)| !part(text[..*at].chars().next_back()) && !part(text[at + word.len()..].chars().next()))
        .map(|(at, _)| at)
}

/// Expands a `use` tree into its paths; `as` names are dropped.
fn expanded(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let (head, group) = tree.split_once('{').map_or((tree, None), |(head, group)| (head, Some(group)));
    let head = head.split(" as ").next().unwrap_or_default();
    let segments: Vec<String> = head.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let Some(group) = group else { return vec![segments] };
    let (mut members, mut member, mut depth) = (Vec::new(), String::new(), 0);
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => members.push(std::mem::take(&mut member)),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                member.push(c);
            }
        }
    }
    members.push(member);
    let members = members.iter().filter(|member| !member.trim().is_empty()).flat_map(|member| expanded(member));
    members.map(|member| segments.iter().cloned().chain(member).collect()).collect()
}

/// The imports between the files of one source root. A file is named by its module.
pub struct Imports {
    pub edges: BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
}

impl Imports {
    /// Resolves the paths of all files. A re-export in `mod.rs` counts as its target, so a façade imports nothing.
    pub fn of(files: &[(Vec<String>, &Source)]) -> Imports {
        let modules: BTreeSet<_> = files.iter().map(|(module, _)| module.clone()).collect();
        let named: Vec<_> = files.iter().map(|(module, source)| (module, source, paths(&source.production_code()))).collect();
        let mut reexports = BTreeMap::new();
        for (module, _, named) in &named {
            for path in named.iter().filter(|path| path.is_reexport) {
                if let Some(target) = absolute(module, &path.segments, &modules)
                    && let Some(name) = target.last().cloned()
                {
                    reexports.insert(((*module).clone(), name), target);
                }
            }
        }
        let mut edges = BTreeMap::new();
        for (module, source, named) in &named {
            let is_facade = source.path.ends_with("mod.rs") || source.path.ends_with("lib.rs");
            let targets: &mut BTreeSet<_> = edges.entry((*module).clone()).or_default();
            for path in named.iter().filter(|path| !(path.is_reexport && is_facade)) {
                let Some(path) = absolute(module, &path.segments, &modules) else { continue };
                let target = resolved(path, &modules, &reexports, 8);
                // A file may use the items of the modules that contain it.
                if !target.is_empty() && !module.starts_with(&target) {
                    targets.insert(target);
                }
            }
        }
        Imports { edges }
    }

    /// Returns the groups of files that import each other in a cycle.
    pub fn cycles(&self) -> Vec<BTreeSet<Vec<String>>> {
        let mut cycles: Vec<BTreeSet<Vec<String>>> = Vec::new();
        for start in self.edges.keys().filter(|start| !self.edges[*start].is_empty()) {
            if cycles.iter().any(|cycle| cycle.contains(start)) {
                continue;
            }
            let forward = self.reachable(start);
            let cycle: BTreeSet<_> = forward.into_iter().filter(|other| self.reachable(other).contains(start)).collect();
            if !cycle.is_empty() {
                cycles.push(cycle);
            }
        }
        cycles
    }

    fn reachable(&self, start: &[String]) -> BTreeSet<Vec<String>> {
        let mut seen = BTreeSet::new();
        let mut open = vec![start.to_vec()];
        while let Some(module) = open.pop() {
            for target in self.edges.get(&module).into_iter().flatten() {
                if seen.insert(target.clone()) {
                    open.push(target.clone());
                }
            }
        }
        seen
    }
}

/// Returns the segments below the crate's root of a path in `module`. Returns `None` if the path does not lead into the crate.
fn absolute(module: &[String], path: &[String], modules: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
    let supers = path.iter().take_while(|part| *part == "super").count();
    let first = path.first()?;
    if first == "crate" {
        Some(path[1..].to_vec())
    } else if supers > 0 {
        let base = module.get(..module.len().checked_sub(supers)?)?;
        Some([base, &path[supers..]].concat())
    } else if first == "self" {
        Some([module, &path[1..]].concat())
    } else {
        let child = [module, std::slice::from_ref(first)].concat();
        modules.contains(&child).then(|| [module, path].concat())
    }
}

/// Returns the module that defines the item of a path. Follows at most `limit` re-exports.
fn resolved(
    path: Vec<String>,
    modules: &BTreeSet<Vec<String>>,
    reexports: &BTreeMap<(Vec<String>, String), Vec<String>>,
    limit: usize,
) -> Vec<String> {
    let length = (0..=path.len()).rev().find(|length| modules.contains(&path[..*length])).unwrap_or(0);
    let module = path[..length].to_vec();
    let target = path.get(length).and_then(|name| reexports.get(&(module.clone(), name.clone())));
    match target {
        Some(target) if limit > 0 && *target != path => {
            resolved([target.as_slice(), &path[length + 1..]].concat(), modules, reexports, limit - 1)
        }
        _ => module,
    }
}

mod tests {
    use super::*;

    #[test]
    fn source_reader_finds_paths_outside_tests_and_literals() {
        let text = "//! super::doc\nuse super::{a::B, c::{self, D as E}};\npub use x::Y;\n#[cfg(test)]\nmod tests { use super::t::Z; }\n\
            fn f<'a>() { let _ = ('\\'', '\"', \"crate::s\"); crate::g::h(); }\n";
        let source = Source { path: "src/m/n.rs".into(), text: text.into() };
        let found: Vec<_> = paths(&source.production_code()).iter().map(|path| path.segments.join("::")).collect();
        assert_eq!(found, ["super::a::B", "super::c::self", "super::c::D", "x::Y", "crate::g::h"]);
        assert_eq!(source.module(), (PathBuf::from("src"), vec!["m".to_owned(), "n".to_owned()]));
    }

    #[test]
    fn import_cycle_through_a_reexport_is_found() {
        let file = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let sources = [
            file("src/m/mod.rs", "mod a; mod b; mod c; pub use a::A; pub use c::C;"),
            file("src/m/a.rs", "use super::b::B;"),
            file("src/m/b.rs", "fn f() { super::A::new(); }"),
            file("src/m/c.rs", "use super::A;"),
        ];
        let files: Vec<_> = sources.iter().map(|source| (source.module().1, source)).collect();
        let cycles = Imports::of(&files).cycles();
        let names: Vec<_> = cycles.iter().flatten().map(|module| module.join("/")).collect();
        assert_eq!(names, ["m/a", "m/b"]);
    }
}
