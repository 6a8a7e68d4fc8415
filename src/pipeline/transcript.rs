//! What a deployment says: kept in its `log`, and followed from there by the pusher, by `--follow`, by any number of readers.
//!
//! A follower reads the file, not a queue. So a slow one costs no memory and delays nobody, and one that comes late, or again,
//! sees everything from the beginning.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::model::sanitise_line;

/// The size at which a transcript ends with a note; a build that prints for ever must not fill the disk.
const BYTES_MAX: u64 = 8 * 1024 * 1024;

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// The file, and whether nothing more is kept.
    file: Mutex<(File, bool)>,
    /// Bytes written, and whether this was all.
    state: watch::Sender<(u64, bool)>,
}

/// The transcript of one deployment; cheap to clone, and closed when its deployment has ended.
#[derive(Debug, Clone)]
pub struct Transcript(Arc<Shared>);

impl Transcript {
    /// Opens the `log` in the deployment's directory, and continues where it ends.
    pub fn open(directory: &Path) -> io::Result<Transcript> {
        let path = directory.join("log");
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Transcript(Arc::new(Shared {
            path,
            file: Mutex::new((file, bytes >= BYTES_MAX)),
            state: watch::Sender::new((bytes, false)),
        })))
    }

    /// A heading, `-----> text`.
    pub fn title(&self, text: &str) {
        self.line(&format!("-----> {text}"));
    }

    /// A detail, indented below the last heading.
    pub fn detail(&self, text: &str) {
        self.line(&format!("       {text}"));
    }

    /// An error, ` !     text`.
    pub fn error(&self, text: &str) {
        self.line(&format!(" !     {text}"));
    }

    /// A line as it is, without the newline. Control sequences other than colours are taken out.
    pub fn line(&self, text: &str) {
        let mut line = sanitise_line(text);
        line.push('\n');
        let mut guard = self.0.file.lock();
        let (file, full) = &mut *guard;
        if *full {
            return;
        }
        let (bytes, _) = *self.0.state.borrow();
        if bytes.saturating_add(line.len() as u64) >= BYTES_MAX {
            *full = true;
            line = String::from(" !     the output is longer than 8 MiB; the rest is not kept\n");
        }
        // The transcript is for people; a full disk must not decide about the deployment here.
        if file.write_all(line.as_bytes()).is_ok() {
            self.0.state.send_modify(|(bytes, _)| *bytes = bytes.saturating_add(line.len() as u64));
        }
    }

    /// Says that nothing more will come.
    pub fn close(&self) {
        self.0.state.send_modify(|(_, closed)| *closed = true);
    }

    /// A reader from the beginning.
    pub fn follow(&self) -> io::Result<Follower> {
        Ok(Follower { file: File::open(&self.0.path)?, offset: 0, state: self.0.state.subscribe() })
    }
}

/// A reader of a transcript.
#[derive(Debug)]
pub struct Follower {
    file: File,
    offset: u64,
    state: watch::Receiver<(u64, bool)>,
}

impl Follower {
    /// The next whole lines, at most 32 KiB unless a single line is longer; `None` at the end of a closed transcript.
    pub async fn next(&mut self) -> Option<String> {
        let offset = self.offset;
        let (bytes, _) = *self.state.wait_for(|(bytes, closed)| *bytes > offset || *closed).await.ok()?;
        let want = bytes.saturating_sub(offset).min(32 * 1024);
        let mut buffer = vec![0; usize::try_from(want).ok()?];
        self.file.read_exact_at(&mut buffer, offset).ok()?;
        if buffer.is_empty() {
            return None;
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
    async fn a_late_follower_sees_everything() {
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
    async fn a_flood_is_cut_with_a_note() {
        let directory = tempfile::tempdir().unwrap();
        let transcript = Transcript::open(directory.path()).unwrap();
        let line = "x".repeat(4000);
        for _ in 0..20_000 {
            transcript.line(&line);
        }
        let kept = std::fs::read_to_string(directory.path().join("log")).unwrap();
        assert!((kept.len() as u64) < BYTES_MAX + 100 && kept.ends_with("not kept\n"), "{}", kept.len());
        assert_eq!(kept.matches("not kept").count(), 1);
    }
}
