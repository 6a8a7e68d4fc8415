//! The transcript of a deployment. The transcript is stored in the file `log`. The push, `--follow` and any number of further
//! clients read this file while the deployment writes it.
//!
//! A follower reads the file, not a queue. Therefore a slow follower costs no memory and delays nothing, and a late follower
//! reads everything from the beginning.
//!
//! The output of workers is limited to [`MAX_OUTPUT`]. Output beyond the limit is left out, except for its last lines, and the transcript
//! contains a note about this. larder's own lines have a separate, higher limit ([`MAX_BYTES`]).

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::reserve;
use crate::{
    host::files,
    model::{Redactor, sanitise_line},
};

/// The size in bytes above which output of workers is left out, so that a build that prints without end cannot fill the disk.
const MAX_OUTPUT: u64 = 8 * 1024 * 1024;
/// The maximum size of a transcript in bytes. larder's own lines of one deployment need far less space.
const MAX_BYTES: u64 = 2 * MAX_OUTPUT;
/// The space that the transcript of a running deployment allocates in advance, in bytes. A deployment that has filled the disk can still say
/// so.
const HELD: u64 = 64 * 1024;
/// The maximum size of the lines that wait in memory for space on a full disk, in bytes.
const MAX_UNWRITTEN: usize = 16 * 1024;
/// The maximum number of bytes that are shown from the end of the left-out output.
const MAX_TAIL: usize = 16 * 1024;

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    log: Mutex<Log>,
    /// The lines that could not be written because the disk is full.
    unwritten: Arc<Mutex<String>>,
    /// The values that are removed from each line.
    redactor: Mutex<Redactor>,
    /// The number of bytes written, and true if the transcript is complete.
    state: watch::Sender<(u64, bool)>,
}

#[derive(Debug)]
struct Log {
    file: File,
    left_out: LeftOut,
    /// The end of the space that is allocated in advance, in bytes; `None` if the transcript holds no space.
    held: Option<u64>,
}

/// Output beyond the limit.
#[derive(Debug, Default)]
struct LeftOut {
    /// True after the note about left-out output was written.
    told: bool,
    /// The number of lines that were left out since larder's last own line.
    lines: u64,
    /// The last left-out lines, at most [`MAX_TAIL`] bytes.
    tail: VecDeque<String>,
    bytes: usize,
}

impl LeftOut {
    fn push(&mut self, line: String) {
        self.lines = self.lines.saturating_add(1);
        self.bytes = self.bytes.saturating_add(line.len());
        self.tail.push_back(line);
        while self.bytes > MAX_TAIL
            && self.tail.len() > 1
            && let Some(first) = self.tail.pop_front()
        {
            self.bytes = self.bytes.saturating_sub(first.len());
        }
    }

    /// Returns the last left-out lines. If earlier left-out lines are missing, the first returned line states their number.
    fn take(&mut self) -> String {
        let missing = self.lines.saturating_sub(self.tail.len() as u64);
        let mut text = match missing {
            0 => String::new(),
            1 => String::from("       ... 1 line is left out\n"),
            missing => format!("       ... {missing} lines are left out\n"),
        };
        text.extend(self.tail.drain(..));
        (self.lines, self.bytes) = (0, 0);
        text
    }
}

/// The transcript of one deployment; cheap to clone, and closed when its deployment has ended.
#[derive(Debug, Clone)]
pub struct Transcript(Arc<Shared>);

impl Transcript {
    /// Opens the file `log` in the deployment's directory. New lines are appended.
    pub fn open(directory: &Path) -> io::Result<Transcript> {
        let path = directory.join("log");
        let file = files::append(&path, 0o640)?;
        let bytes = file.metadata()?.len();
        let log = Mutex::new(Log { file, left_out: LeftOut::default(), held: None });
        let (redactor, state) = (Mutex::default(), watch::Sender::new((bytes, false)));
        Ok(Transcript(Arc::new(Shared { path, log, unwritten: Arc::default(), redactor, state })))
    }

    /// Removes the values of a configuration from each later line.
    pub(super) fn redact_with(&self, redactor: Redactor) {
        *self.0.redactor.lock() = redactor;
    }

    /// Returns the text without the values of the configuration.
    pub fn redacted(&self, text: &str) -> String {
        let redactor = self.0.redactor.lock().clone();
        redactor.redact(text).into_owned()
    }

    /// Allocates disk space in advance until the transcript is closed.
    pub(super) fn hold_space(&self) {
        self.0.log.lock().held = Some(0);
    }

    /// Writes a heading, `-----> text`.
    pub fn title(&self, text: &str) {
        self.line(&format!("-----> {text}"));
    }

    /// Writes a detail, indented below the last heading.
    pub fn detail(&self, text: &str) {
        self.line(&format!("       {text}"));
    }

    /// Writes an error, ` !     text`.
    pub fn error(&self, text: &str) {
        self.line(&format!(" !     {text}"));
    }

    /// Writes one of larder's own lines, and adds the newline. Control sequences other than colours are removed.
    pub fn line(&self, text: &str) {
        let text = self.redacted(text);
        let mut log = self.0.log.lock();
        let tail = log.left_out.take();
        self.write(&mut log, &format!("{tail}{}\n", sanitise_line(&text)), MAX_BYTES);
    }

    /// Writes a line of a worker's output. A line beyond the limit is left out.
    pub fn output(&self, text: &str) {
        let line = format!("{}\n", sanitise_line(&self.redacted(text)));
        let mut log = self.0.log.lock();
        if !log.left_out.told {
            if self.write(&mut log, &line, MAX_OUTPUT) {
                return;
            }
            log.left_out.told = true;
            let note = format!(
                " !     The output is longer than {} MiB; the rest is left out, except for its last lines.\n",
                MAX_OUTPUT >> 20
            );
            self.write(&mut log, &note, MAX_BYTES);
        }
        log.left_out.push(line);
    }

    /// Appends `text` to the file. Returns false, and writes nothing, if the file would become longer than `limit`.
    fn write(&self, log: &mut Log, text: &str, limit: u64) -> bool {
        let (bytes, _) = *self.0.state.borrow();
        if bytes.saturating_add(text.len() as u64) > limit {
            return false;
        }
        if let Some(held) = log.held.filter(|held| *held < bytes.saturating_add(HELD / 2)) {
            // Without further space, the next lines may still fit into the space that is left.
            let is_held = reserve::allocate(&log.file, bytes, HELD);
            log.held = Some(is_held.map_or(held, |is_held| if is_held { bytes.saturating_add(HELD) } else { u64::MAX }));
        }
        // The transcript is for people, so a full disk must not fail the deployment here.
        let mut unwritten = self.0.unwritten.lock();
        let before = unwritten.len();
        unwritten.push_str(text);
        let length = unwritten.len() as u64;
        match log.file.write_all(unwritten.as_bytes()) {
            Ok(()) => {
                unwritten.clear();
                self.0.state.send_modify(|(bytes, _)| *bytes = bytes.saturating_add(length));
            }
            // A part of the text would shift the lines that follow.
            Err(_) => {
                let _ = log.file.set_len(bytes);
                if unwritten.len() > MAX_UNWRITTEN {
                    unwritten.truncate(before);
                }
            }
        }
        true
    }

    /// Marks the transcript as complete.
    pub fn close(&self) {
        let mut log = self.0.log.lock();
        if !self.0.unwritten.lock().is_empty() {
            self.write(&mut log, "", MAX_BYTES);
        }
        if log.held.take().is_some() {
            let _ = log.file.set_len(self.0.state.borrow().0);
        }
        self.0.state.send_modify(|(_, closed)| *closed = true);
    }

    /// Returns a reader that starts at the beginning of the transcript.
    pub fn follow(&self) -> io::Result<Follower> {
        let (file, state, unwritten) = (File::open(&self.0.path)?, self.0.state.subscribe(), self.0.unwritten.clone());
        Ok(Follower { file, offset: 0, state, unwritten: Some(unwritten) })
    }
}

/// A reader of a transcript.
#[derive(Debug)]
pub struct Follower {
    file: File,
    offset: u64,
    state: watch::Receiver<(u64, bool)>,
    /// The lines that the file does not contain; `None` after they were returned.
    unwritten: Option<Arc<Mutex<String>>>,
}

impl Follower {
    /// Returns the next whole lines, at most 32 KiB. A line that is longer than 32 KiB is returned in pieces. Returns `None` at the end of
    /// a closed transcript. The lines that could not be written on a full disk come last.
    pub async fn next(&mut self) -> Option<String> {
        let offset = self.offset;
        let (bytes, _) = *self.state.wait_for(|(bytes, closed)| *bytes > offset || *closed).await.ok()?;
        let want = bytes.saturating_sub(offset).min(32 * 1024);
        let mut buffer = vec![0; usize::try_from(want).ok()?];
        self.file.read_exact_at(&mut buffer, offset).ok()?;
        if buffer.is_empty() {
            let unwritten = self.unwritten.take()?.lock().clone();
            return Some(unwritten).filter(|text| !text.is_empty());
        }
        let whole = buffer.iter().rposition(|byte| *byte == b'\n').map_or(buffer.len(), |last| last.saturating_add(1));
        buffer.truncate(whole);
        self.offset = offset.saturating_add(whole as u64);
        Some(String::from_utf8_lossy(&buffer).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn late_follower_reads_from_the_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let transcript = Transcript::open(directory.path()).unwrap();
        transcript.title("Building");
        let mut early = transcript.follow().unwrap();
        assert_eq!(early.next().await.unwrap(), "-----> Building\n");
        transcript.detail("one");
        assert_eq!(early.next().await.unwrap(), "       one\n");
        transcript.close();
        assert_eq!(early.next().await, None);
        let mut late = transcript.follow().unwrap();
        assert_eq!(late.next().await.unwrap(), "-----> Building\n       one\n");
        assert_eq!(late.next().await, None);
    }

    #[tokio::test]
    async fn follower_gets_the_lines_that_a_full_disk_refuses() {
        let directory = tempfile::tempdir().unwrap();
        let transcript = Transcript::open(directory.path()).unwrap();
        transcript.title("Building");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut transcript.0.log.lock().file, full);
        transcript.error("the disk is full");
        let long = format!("{}\n", "x".repeat(4000));
        (0..2 * MAX_UNWRITTEN / long.len()).for_each(|_| transcript.output(&long));
        let mut follower = transcript.follow().unwrap();
        assert_eq!(follower.next().await.unwrap(), "-----> Building\n");
        transcript.close();
        let unwritten = follower.next().await.unwrap();
        assert_eq!(unwritten, format!(" !     the disk is full\n{}", long.repeat(MAX_UNWRITTEN / long.len())));
        assert_eq!(follower.next().await, None);
        // Space has returned.
        transcript.0.log.lock().file = file;
        transcript.detail("later");
        let kept = std::fs::read_to_string(directory.path().join("log")).unwrap();
        assert_eq!(kept, format!("-----> Building\n{unwritten}       later\n"));
        assert!(transcript.0.unwritten.lock().is_empty());
    }

    #[test]
    fn running_deployment_holds_space_that_the_close_frees() {
        let directory = tempfile::tempdir().unwrap();
        let transcript = Transcript::open(directory.path()).unwrap();
        transcript.hold_space();
        transcript.title("Building");
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(directory.path().join("log")).unwrap()) * 512;
        if transcript.0.log.lock().held == Some(u64::MAX) {
            eprintln!("SKIPPED: this file system cannot allocate space in advance");
            return;
        }
        assert!(blocks() >= HELD / 2, "{}", blocks());
        transcript.close();
        assert!(blocks() < HELD / 2, "{}", blocks());
        assert_eq!(std::fs::read_to_string(directory.path().join("log")).unwrap(), "-----> Building\n");
    }

    #[test]
    fn flood_of_output_keeps_own_lines_and_last_output() {
        let directory = tempfile::tempdir().unwrap();
        let transcript = Transcript::open(directory.path()).unwrap();
        let line = "x".repeat(4000);
        for number in 0..5_000 {
            transcript.output(&format!("{number} {line}"));
        }
        transcript.output("the reason");
        transcript.error("build: exited 1");
        transcript.output("more");
        transcript.title("v1 is live");
        let kept = std::fs::read_to_string(directory.path().join("log")).unwrap();
        assert!((kept.len() as u64) < MAX_OUTPUT + 100_000, "{}", kept.len());
        assert_eq!(kept.matches("the rest is left out").count(), 1);
        let last = kept.lines().rev().take(4).collect::<Vec<_>>();
        assert_eq!(last, ["-----> v1 is live", "more", " !     build: exited 1", "the reason"]);
        assert!(kept.lines().rev().nth(4).unwrap().starts_with("4999 x"));
        assert_eq!(kept.matches("lines are left out\n").count(), 1);
        // The next server continues the transcript and writes its own lines.
        let transcript = Transcript::open(directory.path()).unwrap();
        transcript.output("lost");
        transcript.title("The server was restarted");
        let kept = std::fs::read_to_string(directory.path().join("log")).unwrap();
        assert!(kept.ends_with("lost\n-----> The server was restarted\n"));
    }
}
