//! Process output: read from the keeper's pipes, written to rotated files, and handed to whoever follows.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::unix::pipe,
    sync::broadcast,
};

use super::Label;
use crate::model::{EnvId, sanitise_text};

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
        let mut file = RotatingFile::open(Logs::file(directory, process), self.limits)?;
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            if (&mut lines).take(LINE_MAX).read_until(b'\n', &mut buffer).await? == 0 {
                return Ok(());
            }
            // Before our own words: nothing that it says can hide or change them on the screen of whoever reads it.
            let text = sanitise_text(String::from_utf8_lossy(&buffer).trim_end_matches(['\n', '\r']));
            let text = format!("{} {process} {text}", jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ"));
            // A full disk must not end the log for good, nor stop the application.
            if let Err(error) = file.write_line(&text) {
                tracing::warn!(%process, %error, "a log line was lost");
            }
            let line = LogLine { environment: label.environment, process: process.to_owned(), text: text.into() };
            let _ = self.lines.send(line);
        }
    }
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

    fn rotated(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }

    fn write_line(&mut self, text: &str) -> io::Result<()> {
        if self.bytes >= self.limits.max_bytes {
            for number in (1..self.limits.keep).rev() {
                let _ = fs::rename(self.rotated(number), self.rotated(number.saturating_add(1)));
            }
            if self.limits.keep > 0 {
                fs::rename(&self.path, self.rotated(1))?;
            } else {
                fs::remove_file(&self.path)?;
            }
            *self = RotatingFile::open(self.path.clone(), self.limits)?;
        }
        self.bytes = self.bytes.saturating_add(text.len() as u64).saturating_add(1);
        self.file.write_all(format!("{text}\n").as_bytes())
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

    #[tokio::test]
    async fn what_a_process_writes_cannot_work_a_terminal() {
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
        logs.copy(&label, "web.1", reader.into(), directory.path()).await.unwrap();
        let text = followed.recv().await.unwrap().text;
        assert!(text.ends_with("Z web.1  forged \u{1b}[32mgood\u{1b}[0m"), "{text:?}");
        assert_eq!(tail(&Logs::file(directory.path(), "web.1"), 9).unwrap(), [&*text]);
    }

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
}
