//! Normalised output, and golden files for comparison.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

/// Replaces the parts that differ between runs: commits, ids, times, durations and ports.
pub fn normalised(text: &str) -> String {
    let lines = text.lines().map(|line| line.trim_end().split(' ').map(word).collect::<Vec<_>>().join(" "));
    let text = lines.map(durations).collect::<Vec<_>>().join("\n");
    if text.is_empty() { text } else { text + "\n" }
}

fn word(word: &str) -> String {
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit()) && text.bytes().any(|byte| byte.is_ascii_digit());
    let body = word.trim_end_matches([',', ';', '.', ')', ':']);
    let tail = &word[body.len()..];
    let (lead, body) = match body.strip_prefix('(') {
        Some(rest) => ("(", rest),
        None => ("", body),
    };
    let shown = match body {
        _ if body.len() == 40 && hex(body) => String::from("COMMIT"),
        _ if (7..=16).contains(&body.len()) && hex(body) && body.bytes().any(|byte| byte.is_ascii_lowercase()) => {
            String::from("SHORT")
        }
        _ if body.starts_with("20") && body.len() > 30 && body.contains('-') => String::from("ID"),
        _ => port(body),
    };
    format!("{lead}{shown}{tail}")
}

/// Replaces ports: `localhost:8080/x` becomes `localhost:PORT/x`.
fn port(text: &str) -> String {
    let Some((before, rest)) = text.rsplit_once(':') else { return text.to_owned() };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    match digits {
        2..=5 if before.contains('.') || before.contains("//") || before.ends_with("localhost") => {
            format!("{before}:PORT{}", &rest[digits..])
        }
        _ => text.to_owned(),
    }
}

/// Replaces durations: `12 ms`, `3.4 s`, `2 min 5 s` become `TIME`.
fn durations(line: String) -> String {
    let words: Vec<_> = line.split(' ').collect();
    let mut out: Vec<String> = Vec::new();
    for word in words {
        let number = out.last().is_some_and(|last| last == "TIME" || last.parse::<f64>().is_ok());
        if number && matches!(word, "ms" | "s" | "min") {
            out.pop();
            if out.last().is_none_or(|last| last != "TIME") {
                out.push(String::from("TIME"));
            }
        } else {
            out.push(word.to_owned());
        }
    }
    out.join(" ")
}

/// The file with all plans and unwinds. All are in one file, so that a new step changes only this file.
const GOLDEN: &str = "tests/golden/plans.txt";

/// The start of the line before each part of [`GOLDEN`].
const TITLE: &str = "== ";

/// The lock on [`GOLDEN`]. Tests run at the same time, and each test writes its own part.
static GOLDEN_LOCK: Mutex<()> = Mutex::new(());

/// Compares a text with the part of [`GOLDEN`] that has this title. With `LARDER_BLESS=1`, replaces the part instead.
#[track_caller]
pub fn golden(title: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    let _lock = GOLDEN_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let mut parts = parts(&fs::read_to_string(&path).unwrap());
    if std::env::var_os("LARDER_BLESS").is_some() {
        parts.insert(title.to_owned(), text.to_owned());
        let all: Vec<_> = parts.iter().map(|(title, text)| format!("{TITLE}{title}\n{text}")).collect();
        return fs::write(&path, all.join("\n")).unwrap();
    }
    let expected = parts.get(title).unwrap_or_else(|| panic!("{GOLDEN} has no part {title:?}; LARDER_BLESS=1 adds it"));
    assert_eq!(text, expected, "the part {title:?} of {GOLDEN} differs; LARDER_BLESS=1 replaces it");
}

/// Compares the lines of a text with the part of [`GOLDEN`] that has this title, in which further lines may stand between them.
#[track_caller]
pub fn golden_lines(title: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    let _lock = GOLDEN_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let parts = parts(&fs::read_to_string(&path).unwrap());
    let expected = parts.get(title).unwrap_or_else(|| panic!("{GOLDEN} has no part {title:?}"));
    let mut rest = expected.lines();
    for line in text.lines() {
        assert!(
            rest.any(|known| known == line),
            "the part {title:?} of {GOLDEN} has no line {line:?} in this place:\n{expected}"
        );
    }
}

/// Splits the text of [`GOLDEN`] into its parts by title. An empty line separates two parts.
fn parts(text: &str) -> BTreeMap<String, String> {
    let separator = format!("\n\n{TITLE}");
    let all = text.strip_prefix(TITLE).unwrap_or_default().split(&separator);
    let part = |part: &str| part.split_once('\n').map(|(title, text)| (title.to_owned(), format!("{}\n", text.trim_end())));
    all.filter_map(part).collect()
}

#[test]
fn output_that_differs_between_runs_is_normalised() {
    let text = "-----> Deploying 1a2b3c4d of main\n-----> build: 1.2 s\nhttp://shop.localhost:40123\nend: 2 min 5 s\n";
    assert_eq!(normalised(text), "-----> Deploying SHORT of main\n-----> build: TIME\nhttp://shop.localhost:PORT\nend: TIME\n");
}
