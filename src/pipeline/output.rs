//! The output of workers. This file copies the output to the transcript, line by line, and finds the sentence that states why a process
//! failed.

use std::{collections::VecDeque, io, os::fd::OwnedFd};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::unix::pipe,
    sync::mpsc,
    task::JoinHandle,
};

use super::transcript::Transcript;
use crate::{
    buildpack,
    model::sanitise_reason,
    runtime::{CANNOT_START, HINT},
};

/// The maximum length of a line, in bytes. A longer line is split.
const MAX_LINE: u64 = 4096;
/// The number of last lines that are searched for a cause.
const TAIL_LINES: usize = 60;
/// The maximum length of a cause, in characters. With the words before and after the cause, the text fits git's line for a rejected ref.
const MAX_CAUSE: usize = 120;

/// The task that copies a worker's output. The task ends when the worker has closed both write ends, and returns the last lines.
pub type Copying = JoinHandle<VecDeque<String>>;

/// Returns the write ends for a worker's stdout and stderr, and the task that copies their output to the transcript, indented. The task
/// ends when all write ends are closed.
pub fn descriptors(transcript: &Transcript) -> io::Result<(OwnedFd, OwnedFd, Copying)> {
    let (writer, reader) = pipe::pipe()?;
    let stdout = writer.into_blocking_fd()?;
    let stderr = stdout.try_clone()?;
    let transcript = transcript.clone();
    let copying = tokio::spawn(async move {
        let mut lines = BufReader::new(reader);
        let mut line = Vec::new();
        let mut tail = VecDeque::new();
        loop {
            line.clear();
            match (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => return tail,
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line);
                    // The last lines can become the reason of a failure, which is journalled and mailed.
                    let text = transcript.redacted(text.trim_end_matches(['\n', '\r']));
                    transcript.output(&format!("       {text}"));
                    if tail.len() >= TAIL_LINES {
                        tail.pop_front();
                    }
                    tail.push_back(text);
                }
            }
        }
    });
    Ok((stdout, stderr, copying))
}

/// Returns a channel for the lines of buildpacks, and the task that copies these lines to the transcript. Buildpacks indent their lines and
/// print titles themselves.
pub fn channel(transcript: &Transcript) -> (mpsc::Sender<String>, JoinHandle<()>) {
    let (sender, mut lines) = mpsc::channel::<String>(256);
    let transcript = transcript.clone();
    let copying = tokio::spawn(async move {
        while let Some(line) = lines.recv().await {
            transcript.output(&line);
        }
    });
    (sender, copying)
}

/// The cause of a process's failure, as the process printed it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// One line of at most [`MAX_CAUSE`] characters; `None` if no line of the output is a cause.
    pub sentence: Option<String>,
    /// The remedy, if larder knows a remedy for this cause.
    pub hint: Option<String>,
}

impl Cause {
    /// Returns `what`, followed by the sentence, if there is one.
    pub fn after(&self, what: &str) -> String {
        self.sentence.as_ref().map_or_else(|| what.to_owned(), |sentence| format!("{what}: {sentence}"))
    }
}

/// Finds the cause in the last lines of a process's output. The cause is larder's own line about a command that could not be
/// started, else the last line that reads like an error, else the last line with text. A line that ends in a colon is not a cause,
/// because the cause is on the lines after it. A line of a stack trace is not a cause either.
pub fn cause<'l>(lines: impl IntoIterator<Item = &'l str>) -> Cause {
    let lines: Vec<&str> = lines.into_iter().collect();
    if let Some((at, own)) = lines.iter().enumerate().rev().find(|(_, line)| line.starts_with(CANNOT_START)) {
        let hint = lines.get(at.saturating_add(1)).and_then(|line| line.strip_prefix(HINT));
        return Cause { sentence: own.strip_prefix("larder: ").map(cut), hint: hint.map(str::to_owned) };
    }
    let sentences = || lines.iter().rev().filter_map(|line| sentence(line));
    let found = sentences().find(|line| reads_like_an_error(line)).or_else(|| sentences().next());
    let hint = buildpack::rename_hint(lines.iter().copied()).map(str::to_owned);
    Cause { sentence: found.map(|line| cut(&line)), hint }
}

/// Returns the line as a sentence; `None` if the line cannot be a cause.
fn sentence(line: &str) -> Option<String> {
    let clean = sanitise_reason(line);
    let inside_a_trace = line.starts_with([' ', '\t'])
        && ["at ", "File \"", "from ", "in ", "raise ", "return ", "^", "~"].iter().any(|start| clean.starts_with(start));
    let noise = ["note: ", "goroutine ", "exit status ", "npm error", "npm ERR!", "Node.js v", "#"];
    let useful = clean.chars().any(char::is_alphabetic)
        && !clean.ends_with([':', '{', '['])
        && !inside_a_trace
        && !line.trim().is_empty()
        && !noise.iter().any(|start| clean.starts_with(start));
    let clean = match clean.strip_prefix("larder: the ").and_then(|rest| rest.split_once(" worker: ")) {
        Some((_, error)) => error.to_owned(),
        None => clean,
    };
    // In `/bin/bash: line 1: gunicorn: command not found`, the sentence begins after the prefix of the shell.
    let clean = match clean.split_once("sh: ") {
        Some((shell, rest)) if !shell.contains(' ') => match rest.trim_start_matches("line ").split_once(": ") {
            Some((number, rest)) if number.bytes().all(|c| c.is_ascii_digit()) => rest.to_owned(),
            _ => rest.to_owned(),
        },
        _ => clean,
    };
    useful.then_some(clean)
}

fn reads_like_an_error(line: &str) -> bool {
    const WORDS: [&str; 20] = [
        "error",
        "exception",
        "fatal",
        "panic",
        "cannot ",
        "can't ",
        "could not",
        "couldn't",
        "unable to",
        "failed",
        "not found",
        "no such",
        "denied",
        "refused",
        "missing",
        "undefined",
        "invalid",
        "unknown",
        "already in use",
        "required",
    ];
    let line = line.to_ascii_lowercase();
    WORDS.iter().any(|word| line.contains(word))
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(MAX_CAUSE) {
        Some((end, _)) => format!("{}\u{2026}", line.get(..end).unwrap_or_default().trim_end()),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Option<String> {
        cause(text.lines()).sentence
    }

    #[test]
    fn cause_is_the_sentence_of_the_tool_that_failed() {
        for (text, expected) in [
            (
                "starting\nTraceback (most recent call last):\n  File \"app.py\", line 3, in <module>\nKeyError: 'SECRET_KEY'\n",
                "KeyError: 'SECRET_KEY'",
            ),
            (
                "node:internal/modules\n  throw err;\n\nError: Cannot find module 'express'\nRequire stack:\n- /app/a.js\n    at Module._load (node:1)\n{\n  code: 'MODULE_NOT_FOUND'\n}\n\nNode.js v18.19.0\n",
                "Error: Cannot find module 'express'",
            ),
            (
                "panic: no database\n\ngoroutine 1 [running]:\nmain.main()\n\t/app/main.go:4 +0x1\nexit status 2\n",
                "panic: no database",
            ),
            ("/bin/bash: line 1: gunicorn: command not found\n", "gunicorn: command not found"),
            ("larder: the task worker: cannot link a/ to the persistent data: x\n", "cannot link a/ to the persistent data: x"),
            ("sh: 1: gunicorn: not found\n", "gunicorn: not found"),
            ("usage: server [options]\nthe port is busy\nDetails:\n", "the port is busy"),
            ("\u{1b}[31mError: red\u{1b}[0m\n", "Error: red"),
            (
                "larder: cannot start x: command not found\nlarder: hint: y\nlater: an error\n",
                "cannot start x: command not found",
            ),
        ] {
            assert_eq!(said(text).as_deref(), Some(expected), "{text}");
        }
        for text in ["", "Error:\n", "\n \n---\n", "errors:\n  {\n"] {
            assert_eq!(said(text), None, "{text}");
        }
        let long = said(&format!("Error: {}", "x".repeat(500))).unwrap();
        assert_eq!(long.chars().count(), MAX_CAUSE + 1);
        let moved = cause("OSError: [Errno 18] Invalid cross-device link: 'public' -> 'dist'\n".lines());
        assert!(moved.hint.is_some_and(|hint| hint.contains("EXDEV")));
        assert_eq!(cause("Error: no such file\n".lines()).hint, None);
        let own = cause("larder: cannot start x: command not found\nlarder: hint: look\n".lines());
        assert_eq!(own.hint.as_deref(), Some("look"));
        assert_eq!(own.after("web.1 exited 127"), "web.1 exited 127: cannot start x: command not found");
    }
}
