//! The merged log: the lines of all processes with their names, in the order of their arrival.

use std::{
    io::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    sync::mpsc,
};

/// The maximum number of lines that wait for a slow reader. Then processes wait, too, as they would without larder.
const MAX_WAITING: usize = 1024;
/// The maximum length of a line in bytes. A longer line is split.
const MAX_LINE: u64 = 16 * 1024;

/// The colours of processes, in the order in which the processes are named.
const COLOURS: [&str; 6] = ["\u{1b}[36m", "\u{1b}[33m", "\u{1b}[32m", "\u{1b}[35m", "\u{1b}[34m", "\u{1b}[96m"];
const BOLD: &str = "\u{1b}[1m";
const RED: &str = "\u{1b}[31m";
const RESET: &str = "\u{1b}[0m";

/// The sender of lines; cheap to clone. The log ends when all senders are dropped.
#[derive(Clone)]
pub(super) struct MergedLog {
    lines: mpsc::Sender<Vec<u8>>,
    has_colours: bool,
    width: Arc<AtomicUsize>,
}

/// The writer of the log.
pub(super) struct LogWriter(thread::JoinHandle<()>);

impl LogWriter {
    /// Waits until all lines are written, after all senders have been dropped.
    pub fn finish(self) {
        let _ = self.0.join();
    }
}

impl MergedLog {
    /// Creates the log on the standard output, with colours if `has_colours` is true.
    pub fn new(has_colours: bool) -> (MergedLog, LogWriter) {
        let (lines, mut waiting) = mpsc::channel::<Vec<u8>>(MAX_WAITING);
        let writer = thread::spawn(move || {
            let mut out = io::stdout();
            while let Some(line) = waiting.blocking_recv() {
                if out.write_all(&line).and_then(|()| out.flush()).is_err() {
                    break;
                }
            }
        });
        let width = Arc::new(AtomicUsize::new("larder".len()));
        (MergedLog { lines, has_colours, width }, LogWriter(writer))
    }

    /// Reserves the width of a name.
    pub fn reserve(&self, name: &str) {
        self.width.fetch_max(name.len(), Ordering::Relaxed);
    }

    /// Waits until the standard output is closed.
    pub async fn closed(&self) {
        self.lines.closed().await;
    }

    /// Writes a message of larder itself.
    pub async fn say(&self, text: &str) {
        for line in text.lines() {
            self.line("larder", BOLD, line.as_bytes()).await;
        }
    }

    /// Writes an error of larder itself.
    pub async fn error(&self, text: &str) {
        for line in text.lines() {
            self.line("larder", RED, line.as_bytes()).await;
        }
    }

    /// Copies the lines of a process or of the build until the end of its output. `number` selects the colour.
    pub async fn copy(&self, name: &str, number: usize, from: impl AsyncRead + Unpin) {
        let colour = COLOURS.get(number % COLOURS.len()).copied().unwrap_or_default();
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut from).take(MAX_LINE).read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let end = line.strip_suffix(b"\n").unwrap_or(&line);
                    self.line(name, colour, end.strip_suffix(b"\r").unwrap_or(end)).await;
                }
            }
        }
    }

    async fn line(&self, name: &str, colour: &str, text: &[u8]) {
        let width = self.width.load(Ordering::Relaxed);
        let mut line = match self.has_colours {
            true => format!("{colour}{name:<width$} |{RESET} "),
            false => format!("{name:<width$} | "),
        }
        .into_bytes();
        line.extend_from_slice(text);
        if self.has_colours {
            // A line that was cut may have left a colour on.
            line.extend_from_slice(RESET.as_bytes());
        }
        line.push(b'\n');
        // If the standard output is closed, the session ends.
        let _ = self.lines.send(line).await;
    }
}
