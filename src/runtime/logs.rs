//! Process output: read from the keeper's pipes, written to rotated files, and handed to whoever follows.

use std::{
    fs::{self, File, OpenOptions},
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

use super::Label;
use crate::model::EnvId;

/// How much log is kept of one process.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    /// The size in bytes at which a file is rotated.
    pub max_bytes: u64,
    /// How many rotated files are kept beside the current one.
    pub keep: u32,
}

/// A line of output.
#[derive(Debug, Clone)]
pub struct LogLine {
    /// The environment.
    pub environment: EnvId,
    /// The process, such as `web.1`.
    pub process: String,
    /// The line with its moment, as it stands in the file, without the newline.
    pub text: Arc<str>,
}

/// How often a log that cannot be written says so.
const COMPLAINT: Duration = Duration::from_secs(60);

/// A line longer than this is cut into several.
const LINE_MAX: u64 = 16 * 1024;

/// The logs of all processes; cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs {
    limits: LogLimits,
    lines: broadcast::Sender<LogLine>,
}

impl Logs {
    /// Logs within `limits`.
    pub fn new(limits: LogLimits) -> Logs {
        Logs { limits, lines: broadcast::Sender::new(1024) }
    }

    /// All lines of all processes from now on. A follower that is too slow is told how many it missed.
    pub fn subscribe(&self) -> broadcast::Receiver<LogLine> {
        self.lines.subscribe()
    }

    /// The file of a process.
    pub fn file(directory: &Path, process: &str) -> PathBuf {
        directory.join(format!("{process}.log"))
    }

    /// Copies `output` to the log of the process until the process is gone for good.
    pub(super) fn follow(&self, label: Label, output: OwnedFd, directory: PathBuf) {
        let logs = self.clone();
        tokio::spawn(async move {
            let process = label.name();
            if let Err(error) = logs.copy(&label, &process, output, &directory).await {
                tracing::error!(%process, %error, "the log of a process ends here");
            }
        });
    }

    async fn copy(&self, label: &Label, process: &str, output: OwnedFd, directory: &Path) -> io::Result<()> {
        rustix::fs::fcntl_setfl(&output, rustix::fs::OFlags::NONBLOCK)?;
        let mut lines = BufReader::new(pipe::Receiver::from_owned_fd_unchecked(output)?);
        // A full disk must not end the log for good, nor stop the application, whose output would have nowhere to go.
        let mut file = RotatingFile::open(Logs::file(directory, process), self.limits).ok();
        let mut buffer = Vec::new();
        let mut complained: Option<Instant> = None;
        loop {
            buffer.clear();
            if (&mut lines).take(LINE_MAX).read_until(b'\n', &mut buffer).await? == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&buffer);
            let text = format!(
                "{} {process} {}",
                jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ"),
                text.trim_end_matches(['\n', '\r'])
            );
            let written = match &mut file {
                Some(file) => file.write_line(&text),
                None => RotatingFile::open(Logs::file(directory, process), self.limits)
                    .and_then(|new| file.insert(new).write_line(&text)),
            };
            if let Err(error) = written
                && complained.is_none_or(|moment| moment.elapsed() >= COMPLAINT)
            {
                complained = Some(Instant::now());
                tracing::warn!(%process, %error, "its log cannot be kept as it should be; lines may be lost");
            }
            let line = LogLine { environment: label.environment, process: process.to_owned(), text: text.into() };
            let _ = self.lines.send(line);
        }
    }
}

/// The file that the present one becomes after so many rotations.
fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

struct RotatingFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    limits: LogLimits,
}

impl RotatingFile {
    fn open(path: PathBuf, limits: LogLimits) -> io::Result<RotatingFile> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(RotatingFile { path, file, bytes, limits })
    }

    /// Writes a line, whether or not the file can be rotated before it: what cannot be done now is tried again with the next line.
    fn write_line(&mut self, text: &str) -> io::Result<()> {
        let rotated = if self.bytes >= self.limits.max_bytes { self.rotate() } else { Ok(()) };
        self.bytes = self.bytes.saturating_add(text.len() as u64).saturating_add(1);
        self.file.write_all(format!("{text}\n").as_bytes()).and(rotated)
    }

    fn rotate(&mut self) -> io::Result<()> {
        // Without a present file there is nothing to make room for: somebody has taken it away, or the last attempt got that far.
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

/// The last `count` lines of the log at `path`, oldest first; nothing where there is no log yet.
pub fn tail(path: &Path, count: usize) -> io::Result<Vec<String>> {
    use io::{Read, Seek, SeekFrom};
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // Enough for the lines that people ask for, and a bound for odd files.
    let want = (count as u64).saturating_mul(400).min(4 * 1024 * 1024);
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(want)))?;
    let mut bytes = Vec::new();
    file.take(want).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<_> = text.lines().rev().take(count).map(str::to_owned).collect();
    lines.reverse();
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_rotated_and_bounded() {
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
    fn a_rotation_that_fails_neither_ends_the_log_nor_costs_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = Logs::file(directory.path(), "web.1");
        let mut file = RotatingFile::open(path.clone(), LogLimits { max_bytes: 10, keep: 3 }).unwrap();
        for line in ["the first line", "the second line", "the third line"] {
            file.write_line(line).unwrap();
        }
        // The present file is away, and no other can be made: a link leads nowhere.
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
        // As soon as it can be opened again, it goes on.
        file.write_line("the last line").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "the last line\n");
    }
}
