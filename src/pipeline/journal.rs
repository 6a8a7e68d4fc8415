//! The record of a deployment: `journal.jsonl`, one event a line, on the disk before anything that lasts follows from it.
//!
//! There is no other status file: what is known of a deployment is the fold of its events.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::facts::Facts;
use crate::model::{Event, Outcome, Record, Status};

/// Why a journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file failed us.
    #[error("the journal {path} could not be {doing}")]
    File {
        /// The file.
        path: PathBuf,
        /// "read", "written", ...
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line in the middle is not an event.
    #[error("{path}:{line}: this is not an event: {why}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why not.
        why: String,
    },
    /// What a deployment found out is more than a record can hold.
    #[error("{path}: an event of {bytes} bytes is longer than a line can be")]
    Long {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// An event cannot follow the ones before it.
    #[error("{path}: the event {event} of step {step} cannot follow what is recorded before it")]
    Order {
        /// The file.
        path: PathBuf,
        /// The step.
        step: String,
        /// The event.
        event: &'static str,
    },
}

/// Lines above this are not ours, in bytes.
const LINE_MAX: usize = 1024 * 1024;

/// An open journal; the one writer of its file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    story: Story,
    /// Whether the names of the file and its directory may not be on the disk yet.
    new: bool,
}

/// What the events of a journal add up to.
#[derive(Debug, Clone, Default)]
pub struct Story {
    /// The first event, [`Event::Opened`].
    pub opened: Option<Record>,
    /// The state of each step that was ever started.
    pub steps: BTreeMap<String, Status>,
    /// When each step did its work, of those whose work is still there.
    pub moments: BTreeMap<String, Timestamp>,
    /// What the steps found out, as of the last success.
    pub facts: Facts,
    /// The first failure.
    pub fault: Option<crate::model::Fault>,
    /// The last undo that failed, as `step: why`.
    pub undo_failed: Option<String>,
    /// How it ended, and when.
    pub ended: Option<(Timestamp, Outcome)>,
    /// Whether a person has looked at a stuck deployment and released the environment.
    pub cleared: bool,
}

impl Story {
    fn apply(&mut self, record: &Record) -> Result<(), (String, &'static str)> {
        let event = &record.event;
        match event {
            Event::Opened { .. } => self.opened = Some(record.clone()),
            Event::Recovered => {}
            Event::Cleared { .. } => self.cleared = true,
            Event::Ended { outcome } => self.ended = Some((record.at, outcome.clone())),
            Event::Started { step } => self.advance(step, event, "started")?,
            Event::Succeeded { step, facts } => {
                self.advance(step, event, "succeeded")?;
                self.moments.insert(step.clone(), record.at);
                if let Ok(Some(facts)) = serde_json::from_value(facts.clone()) {
                    self.facts = facts;
                }
            }
            Event::Failed { step, fault } => {
                self.advance(step, event, "failed")?;
                self.fault.get_or_insert_with(|| fault.clone());
            }
            Event::UndoStarted { step } => {
                self.advance(step, event, "undo_started")?;
                self.moments.remove(step);
            }
            Event::UndoFinished { step } => self.advance(step, event, "undo_finished")?,
            Event::UndoFailed { step, why } => {
                self.advance(step, event, "undo_failed")?;
                self.undo_failed = Some(format!("{step}: {why}"));
            }
        }
        Ok(())
    }

    fn advance(&mut self, step: &str, event: &Event, word: &'static str) -> Result<(), (String, &'static str)> {
        let status = self.status(step);
        let next = status.next(event).ok_or_else(|| (step.to_owned(), word))?;
        self.steps.insert(step.to_owned(), next);
        Ok(())
    }

    /// The state of a step.
    pub fn status(&self, step: &str) -> Status {
        self.steps.get(step).copied().unwrap_or(Status::Waiting)
    }

    /// Reads the journal in `directory`. A last line that was cut by a power failure counts as not written: it was not yet synced,
    /// so nothing followed from it.
    pub fn read(directory: &Path) -> Result<Story, JournalError> {
        let path = directory.join(Journal::FILE);
        let unreadable = |source| JournalError::File { path: path.clone(), doing: "read", source };
        let mut reader = BufReader::new(File::open(&path).map_err(unreadable)?);
        let mut story = Story::default();
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            reader.by_ref().take(LINE_MAX as u64).read_until(b'\n', &mut line).map_err(unreadable)?;
            let wrong = |why| JournalError::Line { path: path.clone(), line: number, why };
            let text = match line.split_last() {
                Some((b'\n', text)) => text,
                // Not the end: what comes after it counts as well.
                _ if line.len() >= LINE_MAX => return Err(wrong(format!("it is longer than {LINE_MAX} bytes"))),
                _ => break,
            };
            let record: Record = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
            story.apply(&record).map_err(|(step, event)| JournalError::Order { path: path.clone(), step, event })?;
        }
        Ok(story)
    }
}

impl Journal {
    /// The name of the file in the deployment's directory.
    pub const FILE: &str = "journal.jsonl";

    /// Opens the journal in `directory`, which is made if it is missing, and continues where it ends.
    pub fn open(directory: &Path) -> Result<Journal, JournalError> {
        let path = directory.join(Journal::FILE);
        let failed = |doing, source| JournalError::File { path: path.clone(), doing, source };
        fs::create_dir_all(directory).map_err(|source| failed("made", source))?;
        let new = !path.exists();
        let story = if new { Story::default() } else { Story::read(directory)? };
        let mut file =
            OpenOptions::new().create(true).read(true).append(true).open(&path).map_err(|source| failed("opened", source))?;
        cut_partial_line(&mut file).map_err(|source| failed("repaired", source))?;
        Ok(Journal { path, file, story, new })
    }

    /// What is recorded so far.
    pub fn story(&self) -> &Story {
        &self.story
    }

    /// Appends an event; when this returns, it and all before it survive a power failure.
    pub fn append(&mut self, event: Event) -> Result<(), JournalError> {
        self.write(&event)?;
        self.sync().map_err(|source| JournalError::File { path: self.path.clone(), doing: "synced", source })?;
        super::fault::after_event(&event);
        Ok(())
    }

    /// Appends an event from which nothing follows that lasts. It survives the end of this process, and a power failure once
    /// another event was appended.
    pub fn note(&mut self, event: Event) -> Result<(), JournalError> {
        self.write(&event)?;
        super::fault::after_event(&event);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.new {
            // The names themselves must survive a power failure: file, directory, and the directory's own entry.
            for directory in self.path.ancestors().skip(1).take(2) {
                sync_directory(directory)?;
            }
            self.new = false;
        }
        Ok(())
    }

    fn write(&mut self, event: &Event) -> Result<(), JournalError> {
        let record = Record { at: Timestamp::now(), event: event.clone() };
        let mut line = serde_json::to_vec(&record).unwrap_or_default();
        line.push(b'\n');
        if line.len() > LINE_MAX {
            return Err(JournalError::Long { path: self.path.clone(), bytes: line.len() });
        }
        let order = |(step, event)| JournalError::Order { path: self.path.clone(), step, event };
        self.story.apply(&record).map_err(order)?;
        let failed = |source| JournalError::File { path: self.path.clone(), doing: "written", source };
        self.file.write_all(&line).map_err(failed)
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
    fn a_journal_continues_where_it_ended_and_forgets_a_cut_line() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        journal.append(started("a")).unwrap();
        drop(journal);
        let path = directory.path().join(Journal::FILE);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"at\":\"2026-01-01T00:0").unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        assert_eq!(journal.story().status("a"), Status::Running);
        journal.append(Event::Succeeded { step: String::from("a"), facts: serde_json::Value::Null }).unwrap();
        assert_eq!(Story::read(directory.path()).unwrap().status("a"), Status::Done);
    }

    #[test]
    fn an_impossible_order_is_an_error_and_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        let succeeded = Event::Succeeded { step: String::from("a"), facts: serde_json::Value::Null };
        assert!(matches!(journal.append(succeeded), Err(JournalError::Order { .. })));
        assert_eq!(fs::read(directory.path().join(Journal::FILE)).unwrap(), b"");
    }

    #[test]
    fn what_is_too_long_is_neither_written_nor_taken_for_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        journal.append(started("a")).unwrap();
        assert!(matches!(journal.append(started(&"b".repeat(LINE_MAX))), Err(JournalError::Long { .. })));
        journal.append(started("c")).unwrap();
        assert_eq!(Story::read(directory.path()).unwrap().status("c"), Status::Running);
        let path = directory.path().join(Journal::FILE);
        let lines = fs::read(&path).unwrap();
        fs::write(&path, [&vec![b' '; LINE_MAX], &lines[..]].concat()).unwrap();
        let error = Story::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains(":1:") && error.contains("longer"), "{error}");
    }

    #[test]
    fn garbage_in_the_middle_is_named_by_its_line() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(Journal::FILE), "nonsense\n").unwrap();
        let error = Story::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains(":1:"), "{error}");
    }
}
