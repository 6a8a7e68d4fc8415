//! The journal of a deployment: `journal.jsonl`, one event per line. Each event is synced to the disk before an action with a
//! durable effect follows.
//!
//! No other file records the status of a deployment: [`JournalState`] is computed from the events.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, BufRead, BufReader, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{facts::Facts, live_app::UpgradePlan, reserve};
use crate::model::{DeploymentSpec, Event, Fault, Outcome, Record, SpecError, StepStatus};

/// The step that lets waiting requests continue.
const RESUME: &str = "deploy.resume";

/// The step that makes the new release live.
const SWITCH: &str = "deploy.switch";

/// The reason why a journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// An operation on the file failed.
    #[error("cannot {doing} the journal {path}")]
    File {
        /// The path of the journal.
        path: PathBuf,
        /// The operation as a verb, such as "read" or "write".
        doing: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A complete line is not an event that this program supports.
    #[error("{path}:{line}: cannot parse the event: {why}")]
    Line {
        /// The path of the journal.
        path: PathBuf,
        /// The number of the line, from 1.
        line: usize,
        /// The parser's reason.
        why: String,
    },
    /// The facts of a step cannot be read.
    #[error("{path}: cannot read the facts of step {step}: {why}")]
    Facts {
        /// The path of the journal.
        path: PathBuf,
        /// The step that recorded the facts.
        step: String,
        /// The parser's reason.
        why: String,
    },
    /// The first event does not describe a deployment of this environment.
    #[error("cannot use the journal {path}")]
    Spec {
        /// The path of the journal.
        path: PathBuf,
        /// The reason.
        #[source]
        source: SpecError,
    },
    /// The journal does not begin with `opened`.
    #[error("{path}: the first event does not open a deployment")]
    NotOpened {
        /// The path of the journal.
        path: PathBuf,
    },
    /// The recorded plan has a step that this program does not have.
    #[error("{path}: the recorded plan has the step {step}, which this version of larder does not support")]
    UnknownStep {
        /// The path of the journal.
        path: PathBuf,
        /// The name of the step.
        step: String,
    },
    /// An event exceeds the maximum length of a line.
    #[error("{path}: the event has {bytes} bytes (expected at most {MAX_LINE} bytes)")]
    Long {
        /// The path of the journal.
        path: PathBuf,
        /// The length of the event.
        bytes: usize,
    },
    /// The disk is full, so a step cannot be reverted. The deployment stays open.
    #[error("the disk is full: cannot revert {step}: {why}")]
    NoSpace {
        /// The step.
        step: String,
        /// The reason why the step cannot be reverted.
        why: String,
    },
    /// An event cannot follow the events before it.
    #[error("{path}: the event {event} of step {step} cannot follow the events before it")]
    Order {
        /// The path of the journal.
        path: PathBuf,
        /// The step.
        step: String,
        /// The event.
        event: &'static str,
    },
}

impl JournalError {
    /// Returns true if the cause is a full disk. The event that was not written may be written again.
    pub(super) fn is_no_space(&self) -> bool {
        match self {
            JournalError::File { doing: "write", source, .. } => reserve::is_no_space(source),
            JournalError::NoSpace { .. } => true,
            _ => false,
        }
    }
}

/// The maximum length of a line in bytes. larder never writes a longer line.
const MAX_LINE: usize = 1024 * 1024;

/// The space that a journal allocates behind its end for its next events, in bytes. A deployment that has filled the disk can therefore
/// still record its failure, its undos and its end.
const RESERVE: u64 = 256 << 10;

/// The reserve is extended if less than this number of bytes of the reserve is left.
const LOW_RESERVE: u64 = 128 << 10;

/// An open journal, which is the only writer of its file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    state: JournalState,
    /// True until the directory entries of the file and of its directory are on the disk.
    new: bool,
    /// The end of the allocated space, in bytes; 0 if this journal has allocated no space.
    reserved: u64,
}

/// The step that begins the interruption of a deployment in place. Its undo ends the interruption.
const STOP: &str = "deploy.stop";

/// The state of a deployment, computed from the events of its journal.
#[derive(Debug, Clone, Default)]
pub struct JournalState {
    /// The specification in the first event.
    pub spec: Option<DeploymentSpec>,
    /// The moment of the first event.
    pub opened: Option<Timestamp>,
    /// The status of each step that was ever started.
    pub steps: BTreeMap<String, StepStatus>,
    /// The moment at which each step succeeded, for steps that were not undone.
    pub moments: BTreeMap<String, Timestamp>,
    /// The moment at which a failed deployment in place had started the old release again.
    pub put_back: Option<Timestamp>,
    /// True if the deployment has passed its commit point, even if the commit was undone since.
    pub was_committed: bool,
    /// The latest facts that a successful step recorded.
    pub facts: Facts,
    /// The first failure.
    pub fault: Option<Fault>,
    /// The first undo that failed in the last unwinding with such a failure, as `step: reason`.
    pub undo_failed: Option<String>,
    /// True if a server or a person has taken over the deployment since the undo in `undo_failed`.
    is_taken_over: bool,
    /// The last end: its moment and outcome.
    pub ended: Option<(Timestamp, Outcome)>,
    /// The number of ends: a stuck deployment ends once more when a person unfreezes its environment.
    pub endings: u32,
    /// The number of the last end that was announced to the observers; 0 if no end was announced.
    pub announced: u32,
    /// True if a person has unfrozen the environment after the deployment got stuck.
    pub cleared: bool,
}

/// The reason why an event does not fit the events before it.
enum Misfit {
    Order { step: String, event: &'static str },
    Facts { step: String, why: String },
}

impl Misfit {
    fn in_file(self, path: &Path) -> JournalError {
        let path = path.to_owned();
        match self {
            Misfit::Order { step, event } => JournalError::Order { path, step, event },
            Misfit::Facts { step, why } => JournalError::Facts { path, step, why },
        }
    }
}

impl JournalState {
    fn apply(&mut self, record: &Record) -> Result<(), Misfit> {
        let event = &record.event;
        match event {
            Event::Opened(spec) => {
                self.spec = Some(*spec.clone());
                self.opened = Some(record.at);
            }
            Event::Recovered => self.is_taken_over = true,
            Event::Announced { ending } => self.announced = self.announced.max(*ending),
            Event::Cleared { .. } => self.cleared = true,
            Event::Ended { outcome } => {
                self.ended = Some((record.at, outcome.clone()));
                self.endings = self.endings.saturating_add(1);
            }
            Event::Started { step } => self.advance(step, event, "started")?,
            Event::Succeeded { step, facts } => {
                self.advance(step, event, "succeeded")?;
                self.moments.insert(step.clone(), record.at);
                let facts = Facts::from_journal(facts).map_err(|why| Misfit::Facts { step: step.clone(), why })?;
                self.facts = facts.unwrap_or_else(|| std::mem::take(&mut self.facts));
                self.was_committed |= self.is_committed();
            }
            Event::Failed { step, fault } => {
                self.advance(step, event, "failed")?;
                self.fault.get_or_insert_with(|| fault.clone());
            }
            Event::UndoStarted { step } => {
                self.advance(step, event, "undo_started")?;
                self.moments.remove(step);
            }
            Event::UndoFinished { step } => {
                self.advance(step, event, "undo_finished")?;
                if step == STOP {
                    self.put_back = Some(record.at);
                }
            }
            Event::UndoFailed { step, why } => {
                self.advance(step, event, "undo_failed")?;
                if std::mem::take(&mut self.is_taken_over) || self.undo_failed.is_none() {
                    self.undo_failed = Some(format!("{step}: {why}"));
                }
            }
        }
        Ok(())
    }

    /// Returns the time for which visitors of a deployment in place got the maintenance page, in milliseconds; `None` for other deployments,
    /// and as long as the interruption lasts.
    pub fn interruption(&self) -> Option<u64> {
        let began = self.facts.replaced.as_ref()?.began?;
        let committed = self.spec.as_ref().and_then(|spec| self.moments.get(spec.commit_point.as_str()).copied());
        let end = self.put_back.or(committed)?;
        u64::try_from(end.duration_since(began).as_millis()).ok()
    }

    fn advance(&mut self, step: &str, event: &Event, word: &'static str) -> Result<(), Misfit> {
        let next = self.status(step).next(event);
        let next = next.ok_or_else(|| Misfit::Order { step: step.to_owned(), event: word })?;
        self.steps.insert(step.to_owned(), next);
        Ok(())
    }

    /// Returns the status of a step.
    pub fn status(&self, step: &str) -> StepStatus {
        self.steps.get(step).copied().unwrap_or(StepStatus::Waiting)
    }

    /// Returns true if the deployment has passed its commit point, and the commit was not undone. If no request waits for the commit point
    /// [`RESUME`], visitors see the new release from the switch on, so the switch commits.
    pub fn is_committed(&self) -> bool {
        let Some(spec) = &self.spec else { return false };
        let is_held = self.facts.upgrade.as_ref().is_some_and(UpgradePlan::is_held);
        let point = spec.commit_point.as_str();
        self.status(if point == RESUME && !is_held { SWITCH } else { point }) == StepStatus::Done
    }

    /// Returns true if unwinding has begun.
    pub fn is_unwinding(&self) -> bool {
        self.steps.values().any(|status| matches!(status, StepStatus::Undoing | StepStatus::Undone | StepStatus::UndoFailed))
    }

    /// Returns true if recovery finishes the deployment instead of unwinding it: the deployment is past its commit point, and no
    /// step has failed or was undone.
    pub fn is_to_be_finished(&self) -> bool {
        self.is_committed() && !self.is_unwinding() && self.fault.is_none()
    }

    /// Reads the journal in `directory`. A power failure may leave an incomplete last line. This line is ignored: it was not yet
    /// synced, so no action followed from it.
    ///
    /// # Errors
    /// A complete line is not an event of a supported version with facts of a supported version, or the events are in an
    /// impossible order.
    pub fn read(directory: &Path) -> Result<JournalState, JournalError> {
        let path = directory.join(Journal::FILE);
        let unreadable = |source| JournalError::File { path: path.clone(), doing: "read", source };
        let mut reader = BufReader::new(File::open(&path).map_err(unreadable)?);
        let mut state = JournalState::default();
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            reader.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line).map_err(unreadable)?;
            let wrong = |why| JournalError::Line { path: path.clone(), line: number, why };
            let text = match line.split_last() {
                Some((b'\n', text)) => text,
                // larder writes no line that is longer than the maximum, so this line is an error and not an incomplete last line.
                _ if line.len() >= MAX_LINE => return Err(wrong(format!("the line is longer than {MAX_LINE} bytes"))),
                _ => break,
            };
            let record: Record = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
            state.apply(&record).map_err(|misfit| misfit.in_file(&path))?;
        }
        Ok(state)
    }
}

impl Journal {
    /// The name of the file in the deployment's directory.
    pub const FILE: &str = "journal.jsonl";

    /// Opens the journal in `directory`, and creates the directory if it is missing. New events follow the last complete line.
    pub fn open(directory: &Path) -> Result<Journal, JournalError> {
        let path = directory.join(Journal::FILE);
        let failed = |doing, source| JournalError::File { path: path.clone(), doing, source };
        make_directory(directory).map_err(|source| failed("create", source))?;
        let new = !path.exists();
        let state = if new { JournalState::default() } else { JournalState::read(directory)? };
        // Only the owner may read the file, because the facts contain the values of all variables.
        let mut options = OpenOptions::new();
        let mut file =
            options.create(true).read(true).append(true).mode(0o600).open(&path).map_err(|source| failed("open", source))?;
        cut_partial_line(&mut file).map_err(|source| failed("repair", source))?;
        Ok(Journal { path, file, state, new, reserved: 0 })
    }

    /// Returns the state after the events so far.
    pub fn state(&self) -> &JournalState {
        &self.state
    }

    /// Appends an event and syncs the file. After this function returns, this event and all earlier events survive a power
    /// failure.
    pub fn append(&mut self, event: Event) -> Result<(), JournalError> {
        self.write(&event)?;
        if self.is_closed() && self.state.endings == 1 {
            // The allocated space behind the end of the file is freed. After a second end, another handle may be appending.
            let _ = self.file.metadata().and_then(|found| self.file.set_len(found.len()));
        }
        self.sync().map_err(|source| JournalError::File { path: self.path.clone(), doing: "sync", source })?;
        super::fault::after_event(&event);
        Ok(())
    }

    /// Appends an event from which no durable effect follows. The event survives the end of this process. The event survives a
    /// power failure only after a later event is appended with [`Journal::append`].
    pub fn note(&mut self, event: Event) -> Result<(), JournalError> {
        self.write(&event)?;
        super::fault::after_event(&event);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.new {
            // The directory entries of the file and of its directory must survive a power failure, too.
            for directory in self.path.ancestors().skip(1).take(2) {
                sync_directory(directory)?;
            }
            self.new = false;
        }
        Ok(())
    }

    fn write(&mut self, event: &Event) -> Result<(), JournalError> {
        let path = self.path.clone();
        let failed = |source| JournalError::File { path: path.clone(), doing: "write", source };
        super::fault::record_fails(event).map_err(failed)?;
        let record = Record { at: Timestamp::now(), event: event.clone() };
        let mut line = serde_json::to_vec(&record).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        if line.len() > MAX_LINE {
            return Err(JournalError::Long { path: self.path.clone(), bytes: line.len() });
        }
        let length = self.whole_length().map_err(failed)?;
        let before = self.state.clone();
        self.state.apply(&record).map_err(|misfit| misfit.in_file(&self.path))?;
        // Without an extension, the event may still fit into the space that is left. The first event opens the deployment, which must be
        // able to end on a full disk, too.
        let written = match self.reserve(length) {
            Err(error) if length == 0 => Err(error),
            _ => self.file.write_all(&line),
        };
        if let Err(source) = written {
            // The caller may repeat the event. A part of the line would make the repeated event unreadable.
            self.state = before;
            self.reserved = 0;
            if self.file.set_len(length).is_ok() {
                let _ = self.reserve(length);
            }
            return Err(failed(source));
        }
        Ok(())
    }

    /// Returns the length of the file, after the removal of everything behind its last whole line. A truncation on a full btrfs that fails can leave
    /// the file longer than it was before, up to the end of the block: the kernel then uses the size that the removal of extents has reached.
    fn whole_length(&mut self) -> io::Result<u64> {
        let length = self.file.metadata()?.len();
        let mut last = [0];
        let is_whole = match length.checked_sub(1) {
            Some(at) => self.file.read_at(&mut last, at)? == 1 && last == [b'\n'],
            None => true,
        };
        if is_whole {
            return Ok(length);
        }
        self.file.rewind()?;
        cut_partial_line(&mut self.file)?;
        Ok(self.file.metadata()?.len())
    }

    /// Allocates space for the next events of a file with `length` bytes. A deployment that has ended needs no space.
    fn reserve(&mut self, length: u64) -> io::Result<()> {
        if self.is_closed() || self.reserved >= length.saturating_add(LOW_RESERVE) {
            return Ok(());
        }
        self.reserved = match reserve::allocate(&self.file, length, RESERVE)? {
            true => length.saturating_add(RESERVE),
            false => u64::MAX,
        };
        Ok(())
    }

    /// Returns true if the deployment has ended and no person has to act.
    fn is_closed(&self) -> bool {
        self.state.ended.as_ref().is_some_and(|(_, outcome)| !matches!(outcome, Outcome::Stuck { .. }))
    }
}

/// Creates the directory of a deployment, which only the server and its group may enter.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(directory)
}

/// Removes the directory of a deployment that never began. Nothing is lost: the directory contains no journal, and a reader of the
/// transcript has the transcript's file open and can read this file after its removal.
pub(super) fn remove(directory: &Path) {
    let _ = fs::remove_dir_all(directory);
}

/// Removes the directory of a deployment whose journal has no whole line: the deployment never began.
pub(super) fn remove_unopened(directory: &Path) -> io::Result<()> {
    match fs::read(directory.join(Journal::FILE)) {
        Ok(lines) if lines.contains(&b'\n') => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Ok(()),
        _ => fs::remove_dir_all(directory),
    }
}

/// Restricts the modes of files that earlier versions of larder created, because every user of the machine could read these files.
pub(super) fn restrict(directory: &Path) {
    let restricted = [(directory.join(Journal::FILE), 0o600), (directory.join("log"), 0o640), (directory.to_owned(), 0o750)];
    for (path, mode) in restricted {
        let open =
            fs::symlink_metadata(&path).is_ok_and(|found| !found.is_symlink() && found.permissions().mode() & 0o777 & !mode != 0);
        if open && let Err(error) = fs::set_permissions(&path, Permissions::from_mode(mode)) {
            tracing::warn!(path = %path.display(), %error, "cannot restrict the mode of a deployment's record");
        }
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn cut_partial_line(file: &mut File) -> io::Result<()> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last.saturating_add(1));
    if whole < bytes.len() {
        file.set_len(whole as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(step: &str) -> Event {
        Event::Started { step: step.to_owned() }
    }

    #[test]
    fn event_follows_the_last_whole_line_of_a_file_that_a_failed_truncation_has_extended() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        journal.append(started("a")).unwrap();
        let file = OpenOptions::new().write(true).open(directory.path().join(Journal::FILE)).unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(JournalState::read(directory.path()).unwrap().status("a"), StepStatus::Running);
        journal.append(Event::Succeeded { step: String::from("a"), facts: serde_json::Value::Null }).unwrap();
        assert_eq!(JournalState::read(directory.path()).unwrap().status("a"), StepStatus::Done);
        let text = fs::read_to_string(directory.path().join(Journal::FILE)).unwrap();
        assert!(text.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{text:?}");
    }

    #[test]
    fn only_the_directory_of_a_deployment_that_never_began_is_removed() {
        for (content, is_removed) in [(None, true), (Some(""), true), (Some("{\"at\""), true), (Some("{}\n"), false)] {
            let parent = tempfile::tempdir().unwrap();
            let directory = parent.path().join("deployment");
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("log"), "refused").unwrap();
            if let Some(content) = content {
                fs::write(directory.join(Journal::FILE), content).unwrap();
            }
            remove_unopened(&directory).unwrap();
            assert_eq!(!directory.exists(), is_removed, "{content:?}");
        }
    }

    #[test]
    fn reopened_journal_continues_after_its_last_whole_line() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        journal.append(started("a")).unwrap();
        drop(journal);
        let path = directory.path().join(Journal::FILE);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"at\":\"2026-01-01T00:0").unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        assert_eq!(journal.state().status("a"), StepStatus::Running);
        journal.append(Event::Succeeded { step: String::from("a"), facts: serde_json::Value::Null }).unwrap();
        assert_eq!(JournalState::read(directory.path()).unwrap().status("a"), StepStatus::Done);
    }

    #[test]
    fn event_in_impossible_order_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        let succeeded = Event::Succeeded { step: String::from("a"), facts: serde_json::Value::Null };
        assert!(matches!(journal.append(succeeded), Err(JournalError::Order { .. })));
        assert_eq!(fs::read(directory.path().join(Journal::FILE)).unwrap(), b"");
    }

    #[test]
    fn line_over_the_limit_is_neither_written_nor_read() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        journal.append(started("a")).unwrap();
        assert!(matches!(journal.append(started(&"b".repeat(MAX_LINE))), Err(JournalError::Long { .. })));
        journal.append(started("c")).unwrap();
        assert_eq!(JournalState::read(directory.path()).unwrap().status("c"), StepStatus::Running);
        let path = directory.path().join(Journal::FILE);
        let lines = fs::read(&path).unwrap();
        fs::write(&path, [&vec![b' '; MAX_LINE], &lines[..]].concat()).unwrap();
        let error = JournalState::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains(":1:") && error.contains("longer"), "{error}");
    }

    #[test]
    fn open_deployment_holds_space_that_its_end_frees() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        journal.append(started("a")).unwrap();
        let blocks =
            || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(directory.path().join(Journal::FILE)).unwrap()) * 512;
        if journal.reserved == u64::MAX {
            eprintln!("SKIPPED: this file system cannot allocate space in advance");
            return;
        }
        assert!(blocks() >= LOW_RESERVE, "{} bytes are allocated", blocks());
        journal.append(Event::Ended { outcome: Outcome::Tried }).unwrap();
        assert!(blocks() < LOW_RESERVE, "{} bytes are allocated", blocks());
        let state = JournalState::read(directory.path()).unwrap();
        assert!(state.ended.is_some() && state.status("a") == StepStatus::Running);
    }

    #[test]
    fn garbage_is_reported_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(Journal::FILE), "nonsense\n").unwrap();
        let error = JournalState::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains(":1:"), "{error}");
    }

    #[test]
    fn unreadable_facts_are_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let lines = concat!(
            r#"{"at":"2026-01-01T00:00:00Z","event":"started","step":"deploy.slot"}"#,
            "\n",
            r#"{"at":"2026-01-01T00:00:00Z","event":"succeeded","step":"deploy.slot","facts":{"processes":[{"kind":7}]}}"#,
            "\n"
        );
        fs::write(directory.path().join(Journal::FILE), lines).unwrap();
        let error = JournalState::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains("facts of step deploy.slot"), "{error}");
    }

    #[test]
    fn journal_is_readable_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().join("record");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        drop(Journal::open(&record).unwrap());
        assert_eq!((mode(&record.join(Journal::FILE)), mode(&record) & 0o007), (0o600, 0));
        // Earlier versions of larder set these modes.
        fs::set_permissions(record.join(Journal::FILE), Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(&record, Permissions::from_mode(0o755)).unwrap();
        restrict(&record);
        assert_eq!((mode(&record.join(Journal::FILE)), mode(&record)), (0o600, 0o750));
    }
}
