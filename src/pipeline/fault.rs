//! Failpoints. Tests use failpoints to make any step fail, and to kill the server after any event of a journal. `docs/testing.md`
//! describes their use. Outside of test builds, these functions do nothing.

use crate::model::Event;

/// Kills this process if the failpoint of `event` is active. The journal calls this function after it has recorded the event. Example:
/// `FAILPOINTS="journal.started.deploy.switch=return"`.
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

/// Kills this process if the failpoint `announce.delivered` is active. The caller has announced the end of a deployment to the observers,
/// and has not recorded the announcement yet.
pub fn delivered() {
    fail::fail_point!("announce.delivered", |marks| die("announce.delivered", marks));
}

/// Kills this process if the failpoint `followups.NAME` of the follow-ups is active.
pub fn in_followups(name: &'static str) {
    fail::fail_point!(&format!("followups.{name}"), |marks| die(&format!("followups.{name}"), marks));
    let _ = name;
}

/// Kills this process if the failpoint `restore.NAME` of a restore of live data is active.
pub fn in_restore(name: &'static str) {
    fail::fail_point!(&format!("restore.{name}"), |marks| die(&format!("restore.{name}"), marks));
    let _ = name;
}

/// Kills this process if the failpoint `upkeep.NAME` of a scheduled run is active.
pub fn in_upkeep(name: &'static str) {
    fail::fail_point!(&format!("upkeep.{name}"), |marks| die(&format!("upkeep.{name}"), marks));
    let _ = name;
}

/// Kills this process if the failpoint `drill.NAME` of a drill is active.
pub fn in_drill(name: &'static str) {
    fail::fail_point!(&format!("drill.{name}"), |marks| die(&format!("drill.{name}"), marks));
    let _ = name;
}

/// Returns true if a failpoint makes the step `name` fail before (`step.NAME`) or after (`step.NAME.late`) its work.
pub fn step_fails(name: &str) -> bool {
    fail::fail_point!(&format!("step.{name}"), |_| true);
    is_listed(&format!("step.{name}"))
}

/// Returns true if a line of the file of the failpoint `listed` is `name`. A test changes the file to choose the failures of each deployment
/// without a restart.
fn is_listed(name: &str) -> bool {
    fail::fail_point!("listed", |file| {
        let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        text.lines().any(|line| line == name)
    });
    let _ = name;
    false
}

/// Returns the time in milliseconds for which a deployment waits for space, if the failpoint `space.limit` sets another time.
pub fn space_limit() -> Option<u64> {
    fail::fail_point!("space.limit", |ms| ms.and_then(|ms| ms.parse().ok()));
    None
}

/// Returns the error of a broken disk if a failpoint (`record.opened` or `record.ended`) makes the journal fail to record `event`.
pub fn record_fails(event: &Event) -> std::io::Result<()> {
    let word = match event {
        Event::Opened(_) => "opened",
        Event::Ended { .. } => "ended",
        _ => return Ok(()),
    };
    fail::fail_point!(&format!("record.{word}"), |_| Err(std::io::Error::from_raw_os_error(libc::EIO)));
    let _ = word;
    Ok(())
}

/// Panics if a failpoint (`panic.NAME`) makes the step `name` panic.
pub fn step_panics(name: &str) {
    fail::fail_point!(&format!("panic.{name}"));
    let _ = name;
}

/// Returns true if a failpoint makes the undo of the step `name` fail before (`undo.NAME`) or after (`undo.NAME.late`) its work.
pub fn undo_fails(name: &str) -> bool {
    fail::fail_point!(&format!("undo.{name}"), |_| true);
    is_listed(&format!("undo.{name}"))
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

/// Waits if the failpoint `name` is active, as with `FAILPOINTS="NAME=sleep(MILLISECONDS)"`.
pub async fn delay(name: &'static str) {
    if fail::has_failpoints() {
        let _ = tokio::task::spawn_blocking(move || fail::fail_point!(name)).await;
    }
    let _ = name;
}

/// Kills this process with SIGKILL.
///
/// With `return(DIRECTORY)`, only the first process that reaches the failpoint is killed, although the next server has the same failpoints:
/// a file in the directory marks the failpoint as used. If the directory contains a file `stop`, the process gets SIGSTOP instead; the test
/// waits for the mark, and kills the process together with its keeper.
#[allow(dead_code)] // Without failpoints, this function has no caller.
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
