//! Where a verb's output goes: descriptors of a terminal, a file or a pipe, that somebody else owns and may not read from.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    sync::Arc,
};

use rustix::fs::{FileType, fstat};
use tokio::{io::AsyncWriteExt, net::unix::pipe};

/// One stream of output.
#[derive(Debug)]
enum Stream {
    /// A pipe: no thread waits for a slow reader.
    Pipe(pipe::Sender),
    /// Anything else.
    File(Arc<File>),
}

impl Stream {
    fn new(descriptor: OwnedFd) -> io::Result<Stream> {
        let is_pipe = fstat(&descriptor).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Fifo);
        Ok(if is_pipe {
            Stream::Pipe(pipe::Sender::from_owned_fd(descriptor)?)
        } else {
            Stream::File(Arc::new(File::from(descriptor)))
        })
    }

    async fn write(&mut self, text: &str) -> io::Result<()> {
        match self {
            Stream::Pipe(pipe) => pipe.write_all(text.as_bytes()).await,
            Stream::File(file) => {
                let (file, text) = (file.clone(), text.to_owned());
                tokio::task::spawn_blocking(move || (&*file).write_all(text.as_bytes())).await.map_err(io::Error::other)?
            }
        }
    }
}

/// The two streams of output of a verb.
#[derive(Debug)]
pub struct Screen {
    out: Stream,
    err: Stream,
}

impl Screen {
    /// Over these descriptors.
    pub fn new(stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Screen> {
        Ok(Screen { out: Stream::new(stdout)?, err: Stream::new(stderr)? })
    }

    /// Writes to the standard output; fails when nobody reads any more.
    pub async fn out(&mut self, text: &str) -> io::Result<()> {
        self.out.write(text).await
    }

    /// Writes to the standard error.
    pub async fn err(&mut self, text: &str) -> io::Result<()> {
        self.err.write(text).await
    }
}
