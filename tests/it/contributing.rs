//! The pages for contributors: every file that they name exists, and the workflow runs the script.

use std::{collections::BTreeSet, fs};

use crate::harness::source::top;

const PAGES: [&str; 6] =
    ["CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md", "docs/testing.md", "docs/style.md", "docs/troubleshooting.md"];

/// Returns the paths of the repository that a page names in code spans and links.
fn named(page: &str, text: &str) -> BTreeSet<String> {
    let spans = text.split('`').skip(1).step_by(2).map(str::to_owned);
    let folder = page.rsplit_once('/').map_or("", |(folder, _)| folder);
    let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()).filter(|link| !link.contains("://"));
    let links = links.map(|link| match link.strip_prefix("../") {
        Some(up) => up.to_owned(),
        None if folder.is_empty() => link.to_owned(),
        None => format!("{folder}/{link}"),
    });
    let tops = [
        "src/",
        "tests/",
        "docs/",
        "buildpacks/",
        "crates/",
        "hooks/",
        "layouts/",
        "benches/",
        "fuzz/",
        "examples/",
        ".ci/",
        ".github/",
    ];
    let is_path = |word: &String| {
        (tops.iter().any(|top| word.starts_with(top)) || word.ends_with(".md"))
            && !word.contains(['<', '*', ' ', '{', '|', '\u{2026}'])
            && !word.contains("::")
    };
    // A code span may be a program with arguments, such as `run archive 600`. Only its first word can be a path.
    spans.map(|span| span.split(' ').next().unwrap_or_default().to_owned()).chain(links).filter(is_path).collect()
}

#[test]
fn page_for_contributors_names_only_files_that_exist() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in PAGES {
        let text = fs::read_to_string(top().join(page)).unwrap();
        for path in named(page, &text) {
            seen += 1;
            if !top().join(path.trim_end_matches('/')).exists() {
                wrong.push(format!("{page} names {path}, which does not exist"));
            }
        }
    }
    assert!(seen > 40, "only {seen} paths were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn forge_workflow_runs_the_checks_of_the_repository() {
    let workflow = fs::read_to_string(top().join(".github/workflows/ci.yml")).unwrap();
    assert!(workflow.contains(".ci/run"));
    let checks = fs::read_to_string(top().join(".ci/run")).unwrap();
    for check in ["cargo fmt", "cargo clippy", "cargo doc", "cargo deny", "typos", "tests/run"] {
        assert!(checks.contains(check), "{check} is not in .ci/run");
    }
}
