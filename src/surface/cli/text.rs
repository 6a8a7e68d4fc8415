//! Building blocks of text for people: tables, sizes, times, errors.

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use jiff::Timestamp;

use crate::{
    control::CommandError,
    model::{Live, sanitise_text},
};

/// The maximum number of files or changes in a text for people; `--json` prints all files and changes of the view.
pub(super) const MAX_ROWS: usize = 500;

/// Lays out rows in columns below a header. Returns the text `none` if there are no rows.
pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::from("none\n");
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    let lines = table.to_string();
    lines.lines().map(|line| format!("{}\n", line.trim())).collect()
}

/// Renders a time in UTC, to the second.
pub(super) fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Renders a size as a whole number, rounded down, in the largest unit in which this number is at least 10.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| bytes >> shift >= 10) {
        Some((unit, shift)) => format!("{} {unit}", bytes >> shift),
        None => count(bytes, "byte"),
    }
}

/// Renders a duration in the largest unit in which it has at least 2 units: `119 seconds`, `2 minutes`, `47 hours`, `2 days`.
pub(super) fn span(seconds: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("day", 86_400), ("hour", 3_600), ("minute", 60)];
    match UNITS.iter().find(|(_, unit)| seconds / unit >= 2) {
        Some((unit, length)) => count(seconds / length, unit),
        None => count(seconds, "second"),
    }
}

/// Renders a number with its noun: `1 key`, `2 keys`.
pub(super) fn count<N: std::fmt::Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    let ending = if number == N::from(1_u8) { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

/// Renders the live release for an overview.
pub(super) fn live(live: Option<&Live>) -> String {
    live.map_or_else(|| String::from("-"), |live| format!("{} ({})", live.number, live.commit.short()))
}

/// Renders an error: `error: MESSAGE`, and a line `hint: ADVICE` for each hint.
pub fn error(error: &CommandError) -> String {
    let mut text = format!("error: {error}\n");
    for hint in &error.hints {
        text.push_str(&format!("hint: {hint}\n"));
    }
    sanitise_text(&text)
}
