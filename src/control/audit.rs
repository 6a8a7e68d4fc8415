//! The audit log: who did what, on which object, with which key, from where, and with which outcome.
//!
//! A record is one line of JSON in a numbered file of `state/audit/`. Each record contains the digest of the line before it, also across
//! files, so that a line that is changed, removed or inserted later breaks the chain. The file `head.json` contains the number and the
//! digest of the last record, so that missing records at the end are noticed as well. The head follows the records: no request waits for
//! the head, and a start brings the head up to the last record that continues the chain. Secrets are never recorded: a record names the
//! request and its object, and a few details that the request chooses itself.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::authz::Caller;
use crate::{
    host::files,
    model::{Digest, UserName, sanitise_reason},
};

/// The version of the records.
const FORMAT: u32 = 1;

/// The size of a file, in bytes, from which the next record begins a new file.
const MAX_FILE: u64 = 2 << 20;

/// The number of files that are kept. The oldest file is deleted when a new file begins.
const MAX_FILES: usize = 16;

/// The maximum length of each text of a record, in bytes.
const MAX_TEXT: usize = 400;

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuditOutcome {
    /// The request was permitted, and begins now. The record is durable before the request has any effect.
    Permitted,
    /// The request was refused before it had any effect.
    Refused,
    /// The request that an earlier record calls permitted has failed.
    Failed,
}

/// A record without its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// The user, or `operator`.
    pub who: UserName,
    /// The fingerprint of the user's key, with the certificate of the login; absent for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The address of the client; absent for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The request, such as `user grant` or `git push`.
    pub what: String,
    /// The object: a project, an environment, or `server`.
    pub on: String,
    /// Details that are no secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The answer.
    pub outcome: AuditOutcome,
    /// The reason of a refusal or a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl AuditEntry {
    /// Creates the entry of a permitted request.
    pub fn new(caller: &Caller, what: &str, on: String, detail: Option<String>) -> AuditEntry {
        let (key, from) = match caller {
            Caller::Operator => (None, None),
            Caller::User(login) => (Some(short(&login.credential())), Some(login.source.to_string())),
        };
        let (what, detail) = (what.to_owned(), detail.map(|detail| short(&detail)));
        AuditEntry { who: caller.name(), key, from, what, on: short(&on), detail, outcome: AuditOutcome::Permitted, why: None }
    }

    /// Returns the entry with another answer and its reason.
    #[must_use]
    pub fn ended(self, outcome: AuditOutcome, why: &str) -> AuditEntry {
        AuditEntry { outcome, why: Some(short(why)), ..self }
    }
}

/// Returns a text of at most [`MAX_TEXT`] bytes without control characters.
fn short(text: &str) -> String {
    let clean = sanitise_reason(text);
    let end = clean.char_indices().map(|(at, c)| at.saturating_add(c.len_utf8())).take_while(|end| *end <= MAX_TEXT).last();
    clean.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
}

/// A record of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// The version of the record.
    pub format: u32,
    /// The number of the record, without gaps.
    pub number: u64,
    /// The moment of the record.
    pub at: Timestamp,
    /// The content.
    #[serde(flatten)]
    pub entry: AuditEntry,
    /// The number of records before this record that could not be written, for example because the disk was full.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// The digest of the line of the previous record; absent in the first record of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Digest>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The number and the digest of the last record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    number: u64,
    digest: Digest,
}

/// The result of reading the whole log.
#[derive(Debug, Clone, Serialize)]
pub struct AuditReport {
    /// The records, oldest first.
    pub records: Vec<AuditRecord>,
    /// The first defect of the chain; absent if the chain is intact.
    pub damage: Option<String>,
}

/// The audit log of a server.
#[derive(Debug)]
pub struct AuditLog {
    directory: PathBuf,
    head: Option<Head>,
    /// True if `head.json` is older than `head`.
    unsaved: bool,
    lost: u64,
}

impl AuditLog {
    /// Opens the log in `directory`, which may be missing. A record that a crash has cut off is removed: its request had no effect yet.
    pub fn open(directory: PathBuf) -> AuditLog {
        let mut log = AuditLog { directory, head: None, unsaved: false, lost: 0 };
        if let Err(error) = log.resume() {
            // The next records start with what is known; `verify` reports the break.
            tracing::error!(%error, "the audit log is damaged; `larder audit --verify` shows the place");
        }
        log
    }

    fn resume(&mut self) -> io::Result<()> {
        self.head = match files::read_limited(&self.directory.join("head.json"), 4096) {
            Ok(bytes) => serde_json::from_slice(&bytes).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io::Error::other(error)),
        };
        let files = self.files()?;
        let Some((_, last)) = files.last() else { return Ok(()) };
        // A kill while the head was written leaves a file beside the head.
        files::remove_unfinished(&self.directory).map_err(io::Error::other)?;
        let text = fs::read(last)?;
        let complete = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at.saturating_add(1));
        if complete < text.len() {
            files::write_atomic(last, text.get(..complete).unwrap_or_default(), 0o600).map_err(io::Error::other)?;
        }
        let lines = text.get(..complete).unwrap_or_default();
        let end = lines.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
        if self.head.as_ref().is_some_and(|head| head.digest == Digest::of(end)) {
            return Ok(());
        }
        // A crash between a record and the head leaves a head that is older than the log. The records in between may be in two files.
        for (_, path) in files.iter().skip(files.len().saturating_sub(2)) {
            for line in fs::read(path)?.split(|byte| *byte == b'\n') {
                if let Ok(record) = serde_json::from_slice::<AuditRecord>(line)
                    && record.number == self.head.as_ref().map_or(0, |head| head.number).saturating_add(1)
                    && record.previous == self.head.as_ref().map(|head| head.digest)
                {
                    self.head = Some(Head { number: record.number, digest: Digest::of(line) });
                    self.unsaved = true;
                }
            }
        }
        Ok(())
    }

    /// Returns the numbers and the paths of the files, oldest first.
    fn files(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let number = |path: &Path| path.file_name()?.to_str()?.strip_suffix(".jsonl")?.parse().ok();
        let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        let mut files: Vec<(u64, PathBuf)> = paths.filter_map(|path| Some((number(&path)?, path))).collect();
        files.sort();
        Ok(files)
    }

    /// Appends a record and waits until it is durable. A record that cannot be written is counted, and does not stop the request: a server
    /// with a full disk must stay operable. [`AuditLog::save_head`] must follow, and may run after the request has begun.
    pub fn append(&mut self, entry: AuditEntry) {
        match self.write(entry) {
            Ok(()) => self.lost = 0,
            Err(error) => {
                self.lost = self.lost.saturating_add(1);
                tracing::error!(%error, lost = self.lost, "cannot write the audit log");
            }
        }
    }

    fn write(&mut self, entry: AuditEntry) -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let record = AuditRecord {
            format: FORMAT,
            number: self.head.as_ref().map_or(0, |head| head.number).saturating_add(1),
            at: Timestamp::now(),
            entry,
            lost: self.lost,
            previous: self.head.as_ref().map(|head| head.digest),
        };
        let mut line = serde_json::to_vec(&record).map_err(io::Error::other)?;
        let head = Head { number: record.number, digest: Digest::of(&line) };
        line.push(b'\n');
        let mut files = self.files()?;
        let full = |path: &Path| fs::metadata(path).map_or(true, |known| known.len() >= MAX_FILE);
        let path = match files.last() {
            Some((_, path)) if !full(path) => path.clone(),
            last => {
                let number = last.map_or(0, |(number, _)| *number).saturating_add(1);
                self.directory.join(format!("{number:06}.jsonl"))
            }
        };
        files::append_durable(&path, &line, 0o600).map_err(io::Error::other)?;
        self.head = Some(head);
        self.unsaved = true;
        if files.last().is_none_or(|(_, last)| *last != path) {
            files.push((0, path));
            for (_, old) in files.iter().take(files.len().saturating_sub(MAX_FILES)) {
                fs::remove_file(old)?;
            }
        }
        Ok(())
    }

    /// Writes the head if records were appended since it was written. A head that cannot be written stays older than the log, which the next
    /// start corrects.
    pub fn save_head(&mut self) {
        let Some(head) = self.head.as_ref().filter(|_| self.unsaved) else { return };
        let written = serde_json::to_vec(head)
            .map_err(io::Error::other)
            .and_then(|bytes| files::write_atomic(&self.directory.join("head.json"), &bytes, 0o600).map_err(io::Error::other));
        match written {
            Ok(()) => self.unsaved = false,
            Err(error) => tracing::error!(%error, "cannot write the head of the audit log"),
        }
    }

    /// Reads all records and checks their chain.
    pub fn read(&self) -> io::Result<AuditReport> {
        let head: Option<Head> = match files::read_limited(&self.directory.join("head.json"), 4096) {
            Ok(bytes) => serde_json::from_slice(&bytes).ok(),
            Err(_) => None,
        };
        let (mut records, mut damage): (Vec<AuditRecord>, _) = (Vec::new(), None);
        let mut before: Option<Head> = None;
        for (file, path) in self.files()? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let text = files::read_limited(&path, MAX_FILE.saturating_mul(2)).map_err(io::Error::other)?;
            for (at, line) in text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
                let place = format!("line {} of {name}", at.saturating_add(1));
                match serde_json::from_slice::<AuditRecord>(line) {
                    Ok(record) => {
                        damage = damage.or_else(|| defect(&record, before.as_ref(), file, &place));
                        before = Some(Head { number: record.number, digest: Digest::of(line) });
                        records.push(record);
                    }
                    Err(error) => damage = damage.or_else(|| Some(format!("{place} is no record: {error}"))),
                }
            }
        }
        let end = (head.as_ref().map_or(0, |head| head.number), before.as_ref().map_or(0, |last| last.number));
        if head != before {
            let why = match end {
                (head, last) if head > last => format!("the records {} to {head} are missing at the end", last.saturating_add(1)),
                (head, last) if last > head => format!("the record {head} was the last one (found {last})"),
                (head, _) => format!("the record {head} was changed after it was written"),
            };
            damage = damage.or(Some(why));
        }
        Ok(AuditReport { records, damage })
    }
}

/// Compares a record with the record before it. Returns the defect, if there is one.
fn defect(record: &AuditRecord, before: Option<&Head>, file: u64, place: &str) -> Option<String> {
    Some(match before {
        _ if record.format > FORMAT => format!("{place} has the format {} (expected at most {FORMAT})", record.format),
        Some(before) if record.number != before.number.saturating_add(1) => {
            format!("{place} is record {} (expected {})", record.number, before.number.saturating_add(1))
        }
        Some(before) if record.previous != Some(before.digest) => {
            format!("{place} does not continue record {}: one of both was changed", before.number)
        }
        // Only the first file begins with the first record. The files before a later file were deleted by the rotation.
        None if (file == 1 || record.number == 1) && (record.number != 1 || record.previous.is_some()) => {
            format!("{place} is record {} (expected the first record)", record.number)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> AuditEntry {
        AuditEntry::new(&Caller::Operator, "user grant", String::from("shop/staging"), Some(format!("bob push {number}")))
    }

    fn log_of(count: u64) -> (tempfile::TempDir, AuditLog) {
        let directory = tempfile::tempdir().unwrap();
        let mut log = AuditLog::open(directory.path().join("audit"));
        (0..count).for_each(|number| log.append(entry(number)));
        log.save_head();
        (directory, log)
    }

    fn damage_after(change: impl FnOnce(Vec<String>) -> Vec<String>) -> Option<String> {
        let (directory, _) = log_of(5);
        let path = directory.path().join("audit/000001.jsonl");
        let lines = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        let lines: String = change(lines).iter().map(|line| format!("{line}\n")).collect();
        fs::write(&path, lines).unwrap();
        AuditLog::open(directory.path().join("audit")).read().unwrap().damage
    }

    #[test]
    fn every_change_of_the_log_is_noticed() {
        assert_eq!(damage_after(|lines| lines), None);
        for at in 0..5 {
            let changed = damage_after(|mut lines| {
                lines[at] = lines[at].replace("bob push", "eve push");
                lines
            });
            assert!(changed.is_some(), "a change of line {at}");
            let removed = damage_after(|mut lines| {
                lines.remove(at);
                lines
            });
            assert!(removed.is_some(), "the removal of line {at}");
            let doubled = damage_after(|mut lines| {
                lines.insert(at, lines[at].clone());
                lines
            });
            assert!(doubled.is_some(), "the repetition of line {at}");
            let cut = damage_after(|mut lines| {
                lines.truncate(at);
                lines
            });
            assert!(cut.is_some(), "the end after line {at}");
        }
        let swapped = damage_after(|mut lines| {
            lines.swap(1, 2);
            lines
        });
        assert!(swapped.unwrap().contains("line 2 of 000001.jsonl"));
        assert!(
            damage_after(|mut lines| {
                lines[2] = String::from("{}");
                lines
            })
            .unwrap()
            .contains("line 3 of 000001.jsonl is no record")
        );
    }

    #[test]
    fn log_continues_after_a_restart_and_a_torn_record() {
        let (directory, _) = log_of(3);
        let path = directory.path().join("audit/000001.jsonl");
        // A kill while a record is written leaves a part of its line.
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"format\":1,\"num").unwrap();
        let mut again = AuditLog::open(directory.path().join("audit"));
        again.append(entry(3));
        again.save_head();
        let report = again.read().unwrap();
        assert_eq!((report.records.len(), report.damage), (4, None));
        // A kill between records and the head leaves an old head, also if the last record has begun a new file.
        again.append(entry(4));
        fs::write(&path, fs::read_to_string(&path).unwrap() + &"\n".repeat(MAX_FILE as usize)).unwrap();
        again.append(entry(5));
        assert!(again.read().unwrap().damage.unwrap().contains("the record 4 was the last one (found 6)"));
        let unfinished = directory.path().join("audit/.new-head");
        fs::write(&unfinished, "{").unwrap();
        let mut log = AuditLog::open(directory.path().join("audit"));
        assert!(!unfinished.exists());
        log.append(entry(6));
        log.save_head();
        let report = log.read().unwrap();
        assert_eq!((report.records.len(), report.damage), (7, None));
    }

    #[test]
    fn rotation_carries_the_chain_over_and_bounds_the_log() {
        let (directory, mut log) = log_of(1);
        let files = || fs::read_dir(directory.path().join("audit")).unwrap().count() - 1;
        for _ in 0..MAX_FILES + 3 {
            let path = log.files().unwrap().pop().unwrap().1;
            // A file of its full size, without writing thousands of records.
            let padding = "\n".repeat(MAX_FILE as usize);
            fs::write(&path, fs::read_to_string(&path).unwrap() + &padding).unwrap();
            log.append(entry(0));
            log.save_head();
        }
        assert_eq!(files(), MAX_FILES);
        let report = log.read().unwrap();
        assert_eq!(report.damage, None);
        assert_eq!(report.records.last().unwrap().number, MAX_FILES as u64 + 4);
        assert!(report.records[0].number > 1);
    }

    #[test]
    fn record_of_version_1_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let line = include_str!("../../tests/fixtures/audit/1.jsonl");
        fs::create_dir(directory.path().join("audit")).unwrap();
        fs::write(directory.path().join("audit/000001.jsonl"), line).unwrap();
        fs::write(directory.path().join("audit/head.json"), include_str!("../../tests/fixtures/audit/1.head.json")).unwrap();
        let mut log = AuditLog::open(directory.path().join("audit"));
        log.append(entry(0));
        log.save_head();
        let report = log.read().unwrap();
        assert_eq!((report.records.len(), report.damage), (3, None));
        assert_eq!(report.records[1].lost, 3);
        assert_eq!(report.records[1].entry.outcome, AuditOutcome::Refused);
        assert_eq!(report.records[1].entry.key.as_deref(), Some("SHA256:c66JAPwdOnO4LFKyduO5UfddQYH9Mt7cgEgLskAn7RI"));
    }

    #[test]
    fn record_is_one_line_of_bounded_length() {
        let detail = "x\n\u{1b}[31m".to_owned() + &"é".repeat(10_000);
        let entry = AuditEntry::new(&Caller::Operator, "freeze", String::from("shop"), Some(detail));
        let detail = entry.detail.unwrap();
        assert!(detail.len() <= MAX_TEXT && !detail.contains(['\n', '\u{1b}']), "{detail}");
    }
}
