//! The output of processes: this module reads the output from the keeper's pipes, writes lines to rotated files, and sends lines to
//! followers.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::unix::pipe,
    sync::broadcast,
};

use super::process::Label;
use crate::{
    host::files,
    model::{EnvId, Redactor, sanitise_text},
};

/// The directory of a process's log, and the values that are removed from each line.
#[derive(Debug, Clone)]
pub struct LogPlace {
    pub directory: PathBuf,
    pub redactor: Redactor,
}

/// The limits of one process's log.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    /// The size in bytes at which the file is rotated.
    pub max_bytes: u64,
    /// The number of rotated files that are kept in addition to the current file.
    pub keep: u32,
}

/// A line of output.
#[derive(Debug, Clone)]
pub struct LogLine {
    /// The environment of the process.
    pub environment: EnvId,
    /// The name of the process, such as `web.1`.
    pub process: String,
    /// The line of the log file without the newline. The line begins with its time and its process.
    pub text: Arc<str>,
}

/// The minimum interval between two reports of a log that cannot be written.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// The maximum length of a line, in bytes. A longer line is split.
const MAX_LINE: u64 = 16 * 1024;

/// The logs of all processes; cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs {
    limits: LogLimits,
    lines: broadcast::Sender<LogLine>,
}

impl Logs {
    /// Creates the logs with `limits` for each process.
    pub fn new(limits: LogLimits) -> Logs {
        Logs { limits, lines: broadcast::Sender::new(1024) }
    }

    /// Returns a receiver of all later lines of all processes. A receiver that falls more than 1024 lines behind receives an error with the
    /// number of missed lines.
    pub fn subscribe(&self) -> broadcast::Receiver<LogLine> {
        self.lines.subscribe()
    }

    /// Returns the log file of a process.
    pub fn file(directory: &Path, process: &str) -> PathBuf {
        directory.join(format!("{process}.log"))
    }

    /// Adds a line of larder's own to the log `name` of an environment. Control sequences are removed.
    pub fn say(&self, environment: EnvId, directory: &Path, name: &str, text: &str) {
        let text = format!("{} {name} {}", now(), sanitise_text(text));
        let file = RotatingFile::open(Logs::file(directory, name), self.limits);
        if let Err(error) = file.and_then(|mut file| file.write_line(&text)) {
            tracing::warn!(log = name, %error, "cannot write a log");
        }
        let _ = self.lines.send(LogLine { environment, process: name.to_owned(), text: text.into() });
    }

    /// Starts a task that copies `output` to the log of the process until all write ends of the pipe are closed.
    pub(super) fn follow(&self, label: Label, output: OwnedFd, LogPlace { directory, redactor }: LogPlace) {
        let logs = self.clone();
        tokio::spawn(async move {
            let process = label.name();
            if let Err(error) = logs.copy(&label, &process, output, &directory, &redactor).await {
                tracing::error!(%process, %error, "cannot read process output; logging stopped");
            }
        });
    }

    async fn copy(&self, label: &Label, process: &str, output: OwnedFd, directory: &Path, redactor: &Redactor) -> io::Result<()> {
        rustix::fs::fcntl_setfl(&output, rustix::fs::OFlags::NONBLOCK)?;
        let mut lines = BufReader::new(pipe::Receiver::from_owned_fd_unchecked(output)?);
        // If the log cannot be opened or written, as on a full disk, lines are still read, because a full pipe would block the
        // application. larder tries again to write the log with each line, so logging resumes without a restart.
        let mut file = RotatingFile::open(Logs::file(directory, process), self.limits).ok();
        let mut buffer = Vec::new();
        let mut reported: Option<Instant> = None;
        loop {
            buffer.clear();
            if (&mut lines).take(MAX_LINE).read_until(b'\n', &mut buffer).await? == 0 {
                return Ok(());
            }
            // Control sequences in the text are removed before the prefix is added, so that no sequence can hide or change the prefix on a
            // terminal.
            let text = String::from_utf8_lossy(&buffer);
            let text = sanitise_text(&redactor.redact(text.trim_end_matches(['\n', '\r'])));
            let text = format!("{} {process} {text}", now());
            let written = match &mut file {
                Some(file) => file.write_line(&text),
                None => RotatingFile::open(Logs::file(directory, process), self.limits)
                    .and_then(|new| file.insert(new).write_line(&text)),
            };
            if let Err(error) = written
                && reported.is_none_or(|moment| moment.elapsed() >= REPORT_INTERVAL)
            {
                reported = Some(Instant::now());
                tracing::warn!(%process, %error, "cannot write or rotate a process log; lines may be lost");
            }
            let line = LogLine { environment: label.environment, process: process.to_owned(), text: text.into() };
            let _ = self.lines.send(line);
        }
    }
}

/// Returns the time at the beginning of a line.
fn now() -> impl std::fmt::Display {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// Returns the name of a log file after `number` rotations.
fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// The current log file of a process. When the file has reached its maximum size, the next write renames the file and opens a new file.
struct RotatingFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    limits: LogLimits,
}

impl RotatingFile {
    fn open(path: PathBuf, limits: LogLimits) -> io::Result<RotatingFile> {
        let file = files::append(&path, 0o640)?;
        let bytes = file.metadata()?.len();
        Ok(RotatingFile { path, file, bytes, limits })
    }

    /// Rotates the file if its size has reached the maximum, and writes a line. If the rotation fails, the line is written to the old file,
    /// and the next call rotates the file.
    fn write_line(&mut self, text: &str) -> io::Result<()> {
        let rotated = if self.bytes >= self.limits.max_bytes { self.rotate() } else { Ok(()) };
        self.bytes = self.bytes.saturating_add(text.len() as u64).saturating_add(1);
        self.file.write_all(format!("{text}\n").as_bytes()).and(rotated)
    }

    fn rotate(&mut self) -> io::Result<()> {
        // No file is renamed if the path does not exist. In this case the file was removed, or the last rotation renamed the file and then
        // failed.
        if self.path.try_exists()? {
            for number in (1..self.limits.keep).rev() {
                let _ = fs::rename(rotated(&self.path, number), rotated(&self.path, number.saturating_add(1)));
            }
            if self.limits.keep > 0 {
                fs::rename(&self.path, rotated(&self.path, 1))?;
            } else {
                fs::remove_file(&self.path)?;
            }
        }
        *self = RotatingFile::open(self.path.clone(), self.limits)?;
        Ok(())
    }
}

/// The maximum total size of the lines that [`tail`] returns, in bytes.
const MAX_TAIL: u64 = 4 << 20;

/// Returns the last `count` lines of the log at `path`, oldest first. If the file has fewer lines, its rotated files are also read. Returns
/// fewer than `count` lines if the log has fewer lines or if `count` lines would exceed 4 MiB. Returns no lines if there is no log.
pub fn tail(path: &Path, count: usize) -> io::Result<Vec<String>> {
    let (mut lines, mut budget) = (Vec::new(), MAX_TAIL);
    for number in 0.. {
        let name = if number == 0 { path.to_owned() } else { rotated(path, number) };
        let mut file = match File::open(name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        let wanted = count.saturating_sub(lines.len());
        let (text, whole) = end_of(&mut file, wanted, &mut budget)?;
        lines.extend(text.lines().rev().take(wanted).map(str::to_owned));
        if lines.len() >= count || !whole {
            break;
        }
    }
    lines.reverse();
    Ok(lines)
}

/// Returns complete lines from the end of a file, and true if the whole file was read. Returns at least `wanted` lines, unless the
/// file has fewer lines or `budget`, in bytes, is too small. Subtracts the size of the searched text from `budget`.
fn end_of(file: &mut File, wanted: usize, budget: &mut u64) -> io::Result<(String, bool)> {
    use io::{Read, Seek, SeekFrom};
    let size = file.metadata()?.len();
    let most = size.min(*budget);
    // The first window has 128 bytes per line, which is enough for most logs. The window grows while it contains fewer lines than `wanted`.
    let mut window = (wanted as u64).saturating_mul(128).max(4096).min(most);
    loop {
        file.seek(SeekFrom::Start(size.saturating_sub(window)))?;
        let mut bytes = Vec::new();
        file.take(window).read_to_end(&mut bytes)?;
        let whole = window == size;
        // The window may begin in the middle of a line, so the first line of the window is dropped.
        let start = if whole { Some(0) } else { bytes.iter().position(|byte| *byte == b'\n').map(|end| end.saturating_add(1)) };
        let lines = bytes.get(start.unwrap_or(bytes.len())..).unwrap_or_default();
        if window == most || lines.iter().filter(|byte| **byte == b'\n').count() >= wanted {
            *budget = budget.saturating_sub(window);
            return Ok((String::from_utf8_lossy(lines).into_owned(), whole));
        }
        window = window.saturating_mul(4).min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn control_sequences_in_output_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::new(LogLimits { max_bytes: 1000, keep: 1 });
        let mut followed = logs.subscribe();
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"\x1b]0;title\x07\x1b[2K\x1b[1A\rforged \x1b[32mgood\x1b[0m\r\n").unwrap();
        drop(writer);
        let label = Label {
            environment: EnvId(1),
            slot: crate::model::Slot::Blue,
            release: crate::model::ReleaseId::new(jiff::Timestamp::UNIX_EPOCH),
            process: "web".parse().unwrap(),
            index: 1,
            port: None,
        };
        logs.copy(&label, "web.1", reader.into(), directory.path(), &Redactor::default()).await.unwrap();
        let text = followed.recv().await.unwrap().text;
        assert!(text.ends_with("Z web.1  forged \u{1b}[32mgood\u{1b}[0m"), "{text:?}");
        assert_eq!(tail(&Logs::file(directory.path(), "web.1"), 9).unwrap(), [&*text]);
    }

    #[test]
    fn log_above_its_limit_is_rotated() {
        let directory = tempfile::tempdir().unwrap();
        let path = Logs::file(directory.path(), "web.1");
        let mut file = RotatingFile::open(path.clone(), LogLimits { max_bytes: 100, keep: 2 }).unwrap();
        for number in 0..100 {
            file.write_line(&format!("line {number} of a chatty process")).unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["web.1.log", "web.1.log.1", "web.1.log.2"]);
        assert!(fs::metadata(&path).unwrap().len() < 200);
        assert_eq!(tail(&path, 1).unwrap(), ["line 99 of a chatty process"]);
        assert!(tail(&directory.path().join("none.log"), 5).unwrap().is_empty());
    }

    #[test]
    fn failed_rotation_loses_no_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = Logs::file(directory.path(), "web.1");
        let mut file = RotatingFile::open(path.clone(), LogLimits { max_bytes: 10, keep: 3 }).unwrap();
        for line in ["the first line", "the second line", "the third line"] {
            file.write_line(line).unwrap();
        }
        // The current file is renamed, and a dangling symlink takes its path, so that no new file can be created.
        let aside = directory.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink("no/such/directory", &path).unwrap();
        for number in 0..3 {
            file.write_line(&format!("line {number}")).unwrap_err();
        }
        assert_eq!(fs::read_to_string(&aside).unwrap(), "the third line\nline 0\nline 1\nline 2\n");
        let old = [1, 2].map(|number| fs::read_to_string(rotated(&path, number)).unwrap());
        assert_eq!(old, ["the second line\n", "the first line\n"]);
        fs::remove_file(&path).unwrap();
        // The log resumes when it can be opened again.
        file.write_line("the last line").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "the last line\n");
    }

    #[test]
    fn tail_returns_as_many_lines_as_requested() {
        let directory = tempfile::tempdir().unwrap();
        let path = Logs::file(directory.path(), "web.1");
        let long = |number: usize| format!("{number} {}", "x".repeat(3000));
        let lines = |from: usize, to: usize| (from..to).map(|number| format!("{}\n", long(number))).collect::<String>();
        fs::write(&path, lines(500, 600)).unwrap();
        fs::write(rotated(&path, 1), lines(300, 500)).unwrap();
        fs::write(rotated(&path, 2), lines(200, 300)).unwrap();
        for count in [0, 1, 99, 100, 101, 350] {
            let expected: Vec<String> = (600 - count..600).map(long).collect();
            assert_eq!(tail(&path, count).unwrap(), expected, "{count}");
        }
        // The first call requests more lines than the log has. The second call requests more lines than `tail` reads; no returned line is
        // partial.
        assert_eq!(tail(&path, 1000).unwrap().len(), 400);
        fs::write(rotated(&path, 3), lines(0, 2000)).unwrap();
        let most = tail(&path, usize::MAX).unwrap();
        assert!((1300..1400).contains(&most.len()), "{}", most.len());
        assert!(most.iter().all(|line| line.len() > 3000 && !line.starts_with('x')));
        // A last line without a newline counts as a line.
        fs::write(&path, "a\nb").unwrap();
        assert_eq!(tail(&path, 2).unwrap(), ["a", "b"]);
        assert_eq!(tail(&path, 1).unwrap(), ["b"]);
    }
}
