//! Colours of text for people, and progress of the local program.
//!
//! Text has colours only if it goes to a terminal. The variables `NO_COLOR`, `CLICOLOR` and `CLICOLOR_FORCE` apply. The local program decides
//! for its own output, and tells the server: in the message to the control socket, or in variables of ssh. Progress is drawn on the standard
//! error, and only on a terminal.

use std::{io, time::Duration};

use anstream::{AutoStream, ColorChoice, stream::RawStream};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::text;
use crate::control::CommandError;

const BOLD: &str = "\u{1b}[1m";
const BOLD_RED: &str = "\u{1b}[1;31m";
const YELLOW: &str = "\u{1b}[33m";
const RED: &str = "\u{1b}[31m";
const CYAN: &str = "\u{1b}[36m";
const RESET: &str = "\u{1b}[0m";

/// The interval at which progress is drawn.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// The streams of a caller whose text has colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Colours {
    /// True for the standard output.
    pub out: bool,
    /// True for the standard error.
    pub err: bool,
}

impl Colours {
    /// Returns the colours of this process.
    pub fn of_process() -> Colours {
        Colours { out: has_colours(&io::stdout()), err: has_colours(&io::stderr()) }
    }
}

/// Returns true if text for a stream may have colours.
pub(super) fn has_colours<S: RawStream>(stream: &S) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}

/// Renders an error for the standard error of this process.
pub fn painted_error(error: &CommandError) -> String {
    let text = text::error(error);
    if has_colours(&io::stderr()) { painted(&text) } else { text }
}

/// Adds colours to the lines of a text for people: errors, hints, warnings, the titles and errors of a deployment, and headers of tables. Only
/// the form of a line decides, so text of a project that has the same form gets the same colour.
pub(super) fn painted(text: &str) -> String {
    text.split_inclusive('\n').map(painted_line).collect()
}

fn painted_line(whole: &str) -> String {
    let line = whole.strip_suffix('\n').unwrap_or(whole);
    let end = whole.get(line.len()..).unwrap_or_default();
    let word = |colour: &str, rest: &str, word: &str| format!("{colour}{word}{RESET}: {rest}{end}");
    match line.split_once(": ") {
        Some(("error", rest)) => word(BOLD_RED, rest, "error"),
        Some(("hint", rest)) => word(CYAN, rest, "hint"),
        Some((kind @ ("warning" | "note"), rest)) => word(YELLOW, rest, kind),
        _ if line.starts_with("-----> ") || is_header(line) => format!("{BOLD}{line}{RESET}{end}"),
        _ if line.starts_with(" !") => format!("{RED}{line}{RESET}{end}"),
        _ => whole.to_owned(),
    }
}

/// Returns true for the header of a table: at least two columns of upper-case words.
fn is_header(line: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_uppercase() || matches!(c, ' ' | '/' | '-' | '(' | ')' | '%');
    line.starts_with(|c: char| c.is_ascii_uppercase()) && line.contains("  ") && line.chars().all(is_plain)
}

/// Returns a line of a table that needs attention.
pub(super) fn alarming(line: &str) -> String {
    format!("{RED}{line}{RESET}")
}

/// Returns a bar that counts up to `length`.
pub(super) fn counter(length: u64, message: &'static str, is_quiet: bool) -> ProgressBar {
    drawn(if is_quiet { ProgressBar::hidden() } else { ProgressBar::new(length) }, message, "{spinner} {msg}: {pos} of {len}")
}

/// Returns a display of received bytes.
pub(super) fn bytes(message: &'static str, is_quiet: bool) -> ProgressBar {
    drawn(
        if is_quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() },
        message,
        "{spinner} {msg}: {bytes} ({bytes_per_sec})",
    )
}

fn drawn(bar: ProgressBar, message: &'static str, template: &str) -> ProgressBar {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(message);
    bar.enable_steady_tick(TICK);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sanitise_text;

    #[test]
    fn lines_get_the_colour_of_their_kind() {
        let text = "NAME  LAST USE\nmain  today\nerror: no\nhint: yes: no\nwarning: w\n-----> Building\n       web\n !     failed\nUPPER\nx: error: y";
        let lines: Vec<_> = painted(text).lines().map(|line| line.replace('\u{1b}', "^")).collect();
        assert_eq!(
            lines,
            [
                "^[1mNAME  LAST USE^[0m",
                "main  today",
                "^[1;31merror^[0m: no",
                "^[36mhint^[0m: yes: no",
                "^[33mwarning^[0m: w",
                "^[1m-----> Building^[0m",
                "       web",
                "^[31m !     failed^[0m",
                "UPPER",
                "x: error: y",
            ]
        );
        assert_eq!(painted(""), "");
        // The filters of clients keep these colours.
        assert_eq!(sanitise_text(&painted(text)), painted(text));
    }
}
