//! The language of the sources: docs begin with a noun phrase or a verb, and texts name their subject. See docs/style.md.

use std::collections::BTreeMap;

use crate::harness::source::{Source, sources};

/// Words that open a headless doc comment.
const HEADLESS: [&str; 10] = ["What", "Whether", "Where", "Which", "Why", "Who", "Whoever", "Whose", "How", "When"];

/// Words that hide their subject, or that are not terms of this project.
const VAGUE: [&str; 7] = ["whoever", "nobody", "somebody", "room", "rooms", "trade", "trades"];

/// Texts in which a word of [`VAGUE`] is correct, because the word is the name of a user of the system.
const ALLOWED_TEXTS: [&str; 4] = ["(\"nobody\"", "\"nobody\",", "user nobody", "nobody:x:"];

/// The number of doc comments of a module per allowed headless doc comment. A few headless doc comments are allowed, because they are clear.
const HEADLESS_PER_DOCS: usize = 50;

/// The maximum number of public items without a doc comment. This number must not be raised.
const UNDOCUMENTED: usize = 45;

/// Crates whose type names are compared only with each other, not with the type names of the program.
const SEPARATE_CRATES: [&str; 1] = ["crates/points/"];

#[derive(Default)]
struct Counts {
    docs: usize,
    headless: Vec<String>,
    vague: Vec<String>,
}

/// Returns the top-level module of a source file: its crate, or its first directory below `src/`, or the file itself.
fn module(source: &Source) -> String {
    let parts: Vec<_> = source.path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts[0] == "crates" { parts[..2].join("/") } else { parts[1].clone() }
}

fn counted() -> BTreeMap<String, Counts> {
    let mut counted: BTreeMap<String, Counts> = BTreeMap::new();
    for source in sources() {
        let counts = counted.entry(module(&source)).or_default();
        let mut is_inside = false;
        for (number, line) in (1..).zip(source.text.lines()) {
            let trimmed = line.trim_start();
            let doc = trimmed.strip_prefix("///").or_else(|| trimmed.strip_prefix("//!"));
            let place = || format!("{}:{number}: {trimmed}", source.path.display());
            if let Some(doc) = doc.filter(|_| !is_inside) {
                counts.docs += 1;
                let first = doc.trim_start().split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
                if HEADLESS.contains(&first) {
                    counts.headless.push(place());
                }
            }
            is_inside = doc.is_some();
            // Only docs and lines with strings are texts. A word with an underscore is an identifier.
            let is_text = doc.is_some() || line.contains('"');
            if is_text && !ALLOWED_TEXTS.iter().any(|text| line.contains(text)) {
                let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
                counts.vague.extend(words.filter(|word| VAGUE.contains(word)).map(|_| place()));
            }
        }
    }
    counted
}

#[test]
fn doc_comment_does_not_open_with_a_headless_clause() {
    let counted = counted();
    let mut wrong = Vec::new();
    for (module, counts) in &counted {
        let allowed = counts.docs / HEADLESS_PER_DOCS;
        if counts.headless.len() > allowed {
            let list = counts.headless.join("\n  ");
            wrong.push(format!("{module}: {} headless docs, {allowed} are allowed:\n  {list}", counts.headless.len()));
        }
    }
    assert!(counted.values().map(|counts| counts.docs).sum::<usize>() > 2000, "the docs were not found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn texts_name_their_subject() {
    let mut wrong = Vec::new();
    for (module, counts) in counted() {
        if !counts.vague.is_empty() {
            wrong.push(format!("{module}:\n  {}", counts.vague.join("\n  ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Public items need a doc comment, except fields, variants, constructors and predicates.
#[test]
fn public_item_has_a_doc_comment() {
    const ITEMS: [&str; 8] = ["fn", "struct", "enum", "trait", "type", "const", "static", "macro"];
    let (mut missing, mut seen) = (Vec::new(), 0);
    for source in sources().iter().filter(|source| !source.is_test_helper()) {
        let text = source.text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let mut has_doc = false;
        for line in text.lines().map(str::trim) {
            let mut words = line.split([' ', '(', '<', ':']).filter(|word| !matches!(*word, "async" | "unsafe"));
            if let (Some("pub"), Some(kind), Some(name)) = (words.next(), words.next(), words.next())
                && ITEMS.contains(&kind)
            {
                seen += 1;
                let is_plain = name == "new" || name.starts_with("is_");
                if !has_doc && !is_plain {
                    missing.push(format!("{}: {line}", source.path.display()));
                }
            }
            // Attributes and comments may stand between the doc comment and the item.
            let is_between = line.starts_with("#[") || line.ends_with(")]") || line.starts_with("// ");
            has_doc = line.starts_with("///") || (has_doc && is_between);
        }
    }
    assert!(seen > 1000, "only {seen} public items were found");
    assert!(missing.len() <= UNDOCUMENTED, "{} items, {UNDOCUMENTED} are allowed:\n{}", missing.len(), missing.join("\n"));
}

/// Returns the name of the type that a line defines, if other files can name the type.
fn visible_type(line: &str) -> Option<&str> {
    let line = line.trim_start().strip_prefix("pub")?;
    let line = line.strip_prefix('(').and_then(|rest| rest.split_once(") ")).map_or(line, |(_, rest)| rest);
    let (kind, rest) = line.trim_start().split_once(' ')?;
    let name = rest.split(|c: char| !c.is_alphanumeric()).next()?;
    (matches!(kind, "struct" | "enum" | "trait" | "type" | "union") && !name.is_empty()).then_some(name)
}

#[test]
fn type_name_that_other_files_see_is_unique() {
    let mut places: BTreeMap<(&str, String), Vec<String>> = BTreeMap::new();
    for source in sources().iter().filter(|source| !source.is_test_helper()) {
        let path = source.path.display().to_string();
        let separate = SEPARATE_CRATES.into_iter().find(|start| path.starts_with(start)).unwrap_or_default();
        let text = source.text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for name in text.lines().filter_map(visible_type) {
            places.entry((separate, name.to_owned())).or_default().push(path.clone());
        }
    }
    assert!(places.len() > 500, "only {} types were found", places.len());
    let several = places.iter().filter(|(_, files)| files.len() > 1);
    let wrong: Vec<_> = several.map(|((_, name), files)| format!("{name}: {}", files.join(", "))).collect();
    assert!(wrong.is_empty(), "types with the same name:\n{}", wrong.join("\n"));
}
