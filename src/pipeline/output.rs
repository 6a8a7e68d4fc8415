//! The output of workers, line by line into the transcript.

use std::{io, os::fd::OwnedFd};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::unix::pipe,
    sync::mpsc,
    task::JoinHandle,
};

use super::transcript::Transcript;

/// A longer line is cut into several.
const LINE_MAX: u64 = 4096;

/// The write ends for a worker's stdout and stderr; what comes out of them goes into the transcript, indented. The task ends when
/// all write ends are closed.
pub fn descriptors(transcript: &Transcript) -> io::Result<(OwnedFd, OwnedFd, JoinHandle<()>)> {
    let (writer, reader) = pipe::pipe()?;
    let stdout = writer.into_blocking_fd()?;
    let stderr = stdout.try_clone()?;
    let transcript = transcript.clone();
    let copying = tokio::spawn(async move {
        let mut lines = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut lines).take(LINE_MAX).read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => transcript.detail(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r'])),
            }
        }
    });
    Ok((stdout, stderr, copying))
}

/// A channel of lines into the transcript, as buildpacks print them: they indent and head their lines themselves.
pub fn channel(transcript: &Transcript) -> (mpsc::Sender<String>, JoinHandle<()>) {
    let (sender, mut lines) = mpsc::channel::<String>(256);
    let transcript = transcript.clone();
    let copying = tokio::spawn(async move {
        while let Some(line) = lines.recv().await {
            transcript.line(&line);
        }
    });
    (sender, copying)
}
