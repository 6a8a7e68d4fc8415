//! Failpoints: nothing in a product build; in the test build every step can be made to fail and the server to die after every
//! event of a journal.

use crate::model::Event;

/// Called when a journal has recorded `event`. `FAILPOINTS="journal.started.deploy.switch=return"` ends the process there as
/// `kill -9` would.
pub fn after_event(event: &Event) {
    let (word, step) = match event {
        Event::Opened(_) => ("opened", None),
        Event::Started { step } => ("started", Some(step)),
        Event::Succeeded { step, .. } => ("succeeded", Some(step)),
        Event::Failed { step, .. } => ("failed", Some(step)),
        Event::UndoStarted { step } => ("undo_started", Some(step)),
        Event::UndoFinished { step } => ("undo_finished", Some(step)),
        Event::UndoFailed { step, .. } => ("undo_failed", Some(step)),
        Event::Recovered => ("recovered", None),
        Event::Cleared { .. } => ("cleared", None),
        Event::Ended { .. } => ("ended", None),
        Event::Announced { .. } => ("announced", None),
    };
    let name = match step {
        Some(step) => format!("journal.{word}.{step}"),
        None => format!("journal.{word}"),
    };
    fail::fail_point!(&name, |marks| die(&name, marks));
    let _ = name;
}

/// Called when the observers were told of an ending, and this is not recorded yet: `FAILPOINTS="announce.delivered=return"` ends the
/// process there.
pub fn delivered() {
    fail::fail_point!("announce.delivered", |marks| die("announce.delivered", marks));
}

/// Ends the process at one of the points of the follow-ups (`followups.NAME`).
pub fn in_followups(name: &'static str) {
    fail::fail_point!(&format!("followups.{name}"), |marks| die(&format!("followups.{name}"), marks));
    let _ = name;
}

/// Returns true if a failpoint makes the step `name` fail before (`step.NAME`) or after (`step.NAME.late`) its work.
pub fn step_fails(name: &str) -> bool {
    fail::fail_point!(&format!("step.{name}"), |_| true);
    let _ = name;
    false
}

/// Fails as on a full disk where the journal was told to fail with an event (`record.opened`, `record.ended`).
pub fn record_fails(event: &Event) -> std::io::Result<()> {
    let word = match event {
        Event::Opened(_) => "opened",
        Event::Ended { .. } => "ended",
        _ => return Ok(()),
    };
    fail::fail_point!(&format!("record.{word}"), |_| Err(std::io::Error::from_raw_os_error(libc::ENOSPC)));
    let _ = word;
    Ok(())
}

/// Panics where the step `name` was told to (`panic.NAME`).
pub fn step_panics(name: &str) {
    fail::fail_point!(&format!("panic.{name}"));
    let _ = name;
}

/// Returns true if a failpoint makes the undo of the step `name` fail.
pub fn undo_fails(name: &str) -> bool {
    fail::fail_point!(&format!("undo.{name}"), |_| true);
    let _ = name;
    false
}

/// Returns true if a failpoint makes the attachment of an environment fail.
pub fn attach_fails() -> bool {
    fail::fail_point!("attach-fails", |_| true);
    false
}

/// Returns true if a failpoint makes every step run twice.
pub fn everything_twice() -> bool {
    fail::fail_point!("twice", |_| true);
    false
}

/// Waits where chores were told to be slow, with `FAILPOINTS="NAME=sleep(MILLISECONDS)"`.
pub async fn delay(name: &'static str) {
    if fail::has_failpoints() {
        let _ = tokio::task::spawn_blocking(move || fail::fail_point!(name)).await;
    }
    let _ = name;
}

/// Ends the process as `kill -9` would. With `return(DIRECTORY)` only once: a file in the directory remembers it, because the next
/// server has the same failpoints. If the directory has a file `stop`, the process stops instead, and the test that finds the mark
/// kills it together with its keeper.
#[allow(dead_code)] // Without failpoints nothing calls it.
fn die(name: &str, marks: Option<String>) {
    let marks = marks.map(std::path::PathBuf::from);
    if marks.as_ref().is_some_and(|marks| std::fs::File::create_new(marks.join(name)).is_err()) {
        return;
    }
    let stop = marks.is_some_and(|marks| marks.join("stop").exists());
    let signal = if stop { rustix::process::Signal::STOP } else { rustix::process::Signal::KILL };
    let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
    loop {
        std::thread::park();
    }
}
