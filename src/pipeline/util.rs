//! Helpers that every file of the pipeline may use: error chains and durations as text, and waiting for the disk. This file imports no
//! other file of the module.

use std::{error::Error, time::Duration};

/// Returns an error and all its causes, joined with colons.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Returns a duration for people: `12 ms`, `3.4 s`, `2 min 5 s`.
pub fn seconds(duration: Duration) -> String {
    match duration.as_millis() {
        millis @ ..1_000 => format!("{millis} ms"),
        _ if duration.as_secs() < 60 => format!("{:.1} s", duration.as_secs_f64()),
        _ => format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60),
    }
}

/// Runs `work`, which waits for the disk, without blocking the other tasks of this thread.
pub(super) fn run_blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
