//! Colours and progress of the local program. The variables `NO_COLOR`, `CLICOLOR` and `CLICOLOR_FORCE` apply to colours. Progress is drawn on
//! the standard error, and only on a terminal.

use std::{io, time::Duration};

use anstream::{AutoStream, ColorChoice, stream::RawStream};
use indicatif::{ProgressBar, ProgressStyle};

use super::text;
use crate::control::CommandError;

const BOLD_RED: &str = "\u{1b}[1;31m";
const RED: &str = "\u{1b}[31m";
const CYAN: &str = "\u{1b}[36m";
const RESET: &str = "\u{1b}[0m";

/// The interval at which progress is drawn.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// Returns true if text for a stream may have colours.
pub(super) fn has_colours<S: RawStream>(stream: &S) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}

/// Renders an error for the standard error of this process.
pub fn painted_error(error: &CommandError) -> String {
    let text = text::error(error);
    if !has_colours(&io::stderr()) {
        return text;
    }
    let painted = |line: &str| match line.split_once(": ") {
        Some(("error", rest)) => format!("{BOLD_RED}error{RESET}: {rest}\n"),
        Some(("hint", rest)) => format!("{CYAN}hint{RESET}: {rest}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(painted).collect()
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
