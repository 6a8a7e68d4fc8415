//! Pages of the documentation whose commands a test runs. A command that the test does not run fails the test, so a page cannot gain a command
//! without a test.

use std::{cell::RefCell, collections::BTreeSet, fs};

use super::source::top;

/// A page of the documentation.
pub struct Page {
    path: &'static str,
    text: String,
    ran: RefCell<BTreeSet<String>>,
}

impl Page {
    /// Reads a page, such as `docs/client.md`.
    pub fn read(path: &'static str) -> Page {
        let text = fs::read_to_string(top().join(path)).unwrap();
        Page { path, text, ran: RefCell::default() }
    }

    /// Returns the contents of the blocks of a language.
    pub fn blocks(&self, language: &str) -> Vec<&str> {
        let start = format!("```{language}\n");
        self.text.split(start.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
    }

    /// Returns the commands of the shell blocks, in the order of the page, without comments.
    pub fn commands(&self) -> Vec<String> {
        let lines = self.blocks("sh").into_iter().flat_map(str::lines);
        let commands = lines.map(|line| line.split("  #").next().unwrap().trim().to_owned());
        commands.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
    }

    /// Returns the commands in the sentences and tables of the page: code that begins with `larder`, `git` or `ssh`. A mention that names only
    /// the beginning of another command of the page is left out.
    pub fn mentions(&self) -> Vec<String> {
        let outside: String = self.text.split("```").step_by(2).collect();
        let code = outside.split('`').skip(1).step_by(2).map(|code| code.split_whitespace().collect::<Vec<_>>().join(" "));
        let is_command = |code: &String| ["larder ", "git ", "ssh "].iter().any(|start| code.starts_with(start));
        let found: BTreeSet<String> = code.filter(is_command).collect();
        let all: Vec<_> = found.iter().cloned().chain(self.commands()).collect();
        let is_beginning = |code: &String| all.iter().any(|other| other.starts_with(&format!("{code} ")));
        found.into_iter().filter(|code| !is_beginning(code)).collect()
    }

    /// Records that the test has run a command of the page, or that code of the page is no command.
    #[track_caller]
    pub fn ran(&self, command: &str) {
        let is_known = self.commands().iter().chain(&self.mentions()).any(|known| known == command);
        assert!(is_known, "{} has no command {command:?}", self.path);
        self.ran.borrow_mut().insert(command.to_owned());
    }

    /// Asserts that the test has run every command of the page.
    pub fn has_no_other_command(&self) {
        let ran = self.ran.borrow();
        let all: BTreeSet<_> = self.commands().into_iter().chain(self.mentions()).collect();
        let missing: Vec<_> = all.difference(&ran).collect();
        assert!(missing.is_empty(), "{}: no test runs {missing:#?}", self.path);
        assert!(!all.is_empty(), "{} has no command", self.path);
    }
}
