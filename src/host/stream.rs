//! Streams to and from clients that may be slow. [`Outlet`] writes with or without a time limit. [`Inlet`] reads with a time limit.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat},
};
use tokio::{io::AsyncWriteExt, net::unix::pipe};
use tokio_util::sync::CancellationToken;

/// The time without progress after which a transfer fails.
pub const TRANSFER_IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// The number of bytes that [`Outlet::write_from`] reads from a file at a time.
const PIECE: u64 = 256 * 1024;
/// The interval at which a waiting [`Inlet`] checks for cancellation.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A writer to a client that may be slow.
#[derive(Debug)]
pub struct Outlet {
    target: Target,
    limit: Option<Duration>,
}

#[derive(Debug)]
enum Target {
    /// A pipe. A write does not block a thread. `blocking` is true if the pipe was in blocking mode before the outlet was created.
    Pipe { pipe: pipe::Sender, blocking: bool },
    /// A file that is not a pipe. A write blocks a thread.
    File(Arc<File>),
}

impl Outlet {
    /// Creates a writer without a time limit. Use this writer for a client whose connection has its own time limit.
    pub fn new(descriptor: OwnedFd) -> io::Result<Outlet> {
        let is_pipe = fstat(&descriptor).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Fifo);
        let target = if is_pipe {
            let blocking = !fcntl_getfl(&descriptor)?.contains(OFlags::NONBLOCK);
            Target::Pipe { pipe: pipe::Sender::from_owned_fd(descriptor)?, blocking }
        } else {
            Target::File(Arc::new(File::from(descriptor)))
        };
        Ok(Outlet { target, limit: None })
    }

    /// Creates a writer that fails if the client reads nothing for `limit`. The limit applies only to pipes.
    pub fn within(descriptor: OwnedFd, limit: Duration) -> io::Result<Outlet> {
        let mut outlet = Outlet::new(descriptor)?;
        outlet.limit = Some(limit);
        Ok(outlet)
    }

    /// Writes all bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.target {
            Target::Pipe { pipe, .. } => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let writing = pipe.write(rest);
                    let count = match self.limit {
                        None => writing.await?,
                        Some(limit) => tokio::time::timeout(limit, writing).await.unwrap_or_else(|_| Err(stalled(limit)))?,
                    };
                    if count == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    rest = rest.get(count..).unwrap_or_default();
                }
                Ok(())
            }
            Target::File(file) => {
                let (file, bytes) = (file.clone(), bytes.to_owned());
                tokio::task::spawn_blocking(move || (&*file).write_all(&bytes)).await.map_err(io::Error::other)?
            }
        }
    }

    /// Writes `bytes` bytes from the current position of a file, and returns the file. If the target is a pipe, no thread is blocked while
    /// the client does not read.
    pub async fn write_from(&mut self, mut file: File, bytes: u64) -> io::Result<File> {
        let mut left = bytes;
        while left > 0 {
            let reading = tokio::task::spawn_blocking(move || {
                let mut piece = Vec::new();
                let read = Read::by_ref(&mut file).take(left.min(PIECE)).read_to_end(&mut piece);
                read.map(|_| (file, piece))
            });
            let piece;
            (file, piece) = reading.await.map_err(io::Error::other)??;
            if piece.is_empty() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was truncated during the transfer"));
            }
            left = left.saturating_sub(piece.len() as u64);
            self.write(&piece).await?;
        }
        Ok(file)
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        // The flags belong to the pipe, not to the descriptor. The process that passed the descriptor may continue to use the pipe. For
        // example, a shell uses the pipe for its next command. The pipe is therefore set back to blocking mode.
        if let Target::Pipe { pipe, blocking: true } = &self.target
            && let Ok(flags) = fcntl_getfl(pipe.as_fd())
        {
            let _ = fcntl_setfl(pipe.as_fd(), flags.difference(OFlags::NONBLOCK));
        }
    }
}

fn stalled(limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no data was transferred for {} seconds", limit.as_secs()))
}

/// A reader of data from a client that may be slow. A read blocks the thread.
#[derive(Debug)]
pub struct Inlet {
    file: File,
    limit: Duration,
    cancelled: CancellationToken,
}

impl Inlet {
    /// Creates a reader. A read fails if no data arrives for `limit`, or after `cancelled` is cancelled.
    pub fn new(descriptor: OwnedFd, limit: Duration, cancelled: CancellationToken) -> Inlet {
        Inlet { file: File::from(descriptor), limit, cancelled }
    }
}

impl Read for Inlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let interval = Timespec { tv_sec: i64::try_from(CHECK_INTERVAL.as_secs()).unwrap_or(1), tv_nsec: 0 };
        let begun = Instant::now();
        loop {
            if self.cancelled.is_cancelled() {
                return Err(io::Error::other("the transfer was cancelled"));
            }
            let mut ready = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut ready, Some(&interval)) {
                Ok(0) if begun.elapsed() >= self.limit => return Err(stalled(self.limit)),
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => match self.file.read(buffer) {
                    // Another process that reads from the same pipe has already read the data.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => return other,
                },
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dropped_outlet_restores_the_flags_of_its_pipe() {
        let (reader, writer) = io::pipe().unwrap();
        let mine = writer.try_clone().unwrap();
        let mut outlet = Outlet::new(writer.into()).unwrap();
        outlet.write(b"hello").await.unwrap();
        assert!(fcntl_getfl(&mine).unwrap().contains(OFlags::NONBLOCK));
        drop(outlet);
        assert!(!fcntl_getfl(&mine).unwrap().contains(OFlags::NONBLOCK));
        drop((mine, reader));
    }

    #[tokio::test]
    async fn outlet_with_stalled_reader_times_out() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..PIECE * 3 + 5).map(|at| (at % 251) as u8).collect();
        file.write_all(&content).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let (taken, take) = tokio::sync::oneshot::channel::<()>();
        let reading = std::thread::spawn(move || {
            let mut all = vec![0; content.len()];
            reader.read_exact(&mut all).unwrap();
            assert!(all == content);
            // The reader stays open until the end of the test, but reads no more data.
            let _ = take.blocking_recv();
        });
        let mut outlet = Outlet::within(writer.into(), Duration::from_millis(300)).unwrap();
        let file = outlet.write_from(file, PIECE * 3 + 5).await.unwrap();
        assert_eq!(outlet.write_from(file, 1).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(outlet.write(&vec![0; 1 << 20]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        taken.send(()).unwrap();
        reading.join().unwrap();
    }

    #[test]
    fn inlet_without_input_or_after_cancellation_fails() {
        let (reader, mut writer) = io::pipe().unwrap();
        let unwanted = CancellationToken::new();
        let mut inlet = Inlet::new(reader.into(), Duration::from_millis(10), unwanted.clone());
        writer.write_all(b"hello").unwrap();
        let mut buffer = [0; 16];
        assert_eq!(inlet.read(&mut buffer).unwrap(), 5);
        assert_eq!(inlet.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::TimedOut);
        writer.write_all(b"more").unwrap();
        unwanted.cancel();
        assert!(inlet.read(&mut buffer).is_err());
    }
}
