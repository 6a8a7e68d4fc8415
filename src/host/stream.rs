//! Streams whose other end somebody else holds, and may leave alone for as long as they like.

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

/// How long a transfer may stand still before it is given up.
pub const TRANSFER_IDLE_LIMIT: Duration = Duration::from_secs(120);
/// How much of a file is read at once.
const PIECE: u64 = 256 * 1024;
/// How often somebody who waits for input looks whether it is still wanted.
const LOOK: Duration = Duration::from_secs(1);

/// The way to a reader that may be slow.
#[derive(Debug)]
pub struct Outlet {
    way: Way,
    limit: Option<Duration>,
}

#[derive(Debug)]
enum Way {
    /// A pipe: no thread waits for the reader.
    Pipe { pipe: pipe::Sender, blocking: bool },
    /// Anything else.
    File(Arc<File>),
}

impl Outlet {
    /// Waits for its reader without an end: the reader's connection has one.
    pub fn new(descriptor: OwnedFd) -> io::Result<Outlet> {
        let is_pipe = fstat(&descriptor).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Fifo);
        let way = if is_pipe {
            let blocking = !fcntl_getfl(&descriptor)?.contains(OFlags::NONBLOCK);
            Way::Pipe { pipe: pipe::Sender::from_owned_fd(descriptor)?, blocking }
        } else {
            Way::File(Arc::new(File::from(descriptor)))
        };
        Ok(Outlet { way, limit: None })
    }

    /// Fails when its reader takes nothing for so long.
    pub fn within(descriptor: OwnedFd, limit: Duration) -> io::Result<Outlet> {
        let mut outlet = Outlet::new(descriptor)?;
        outlet.limit = Some(limit);
        Ok(outlet)
    }

    /// Writes all of it.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.way {
            Way::Pipe { pipe, .. } => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let writing = pipe.write(rest);
                    let count = match self.limit {
                        None => writing.await?,
                        Some(limit) => tokio::time::timeout(limit, writing).await.unwrap_or_else(|_| Err(still(limit)))?,
                    };
                    if count == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    rest = rest.get(count..).unwrap_or_default();
                }
                Ok(())
            }
            Way::File(file) => {
                let (file, bytes) = (file.clone(), bytes.to_owned());
                tokio::task::spawn_blocking(move || (&*file).write_all(&bytes)).await.map_err(io::Error::other)?
            }
        }
    }

    /// Writes so many bytes of a file, from where it stands, and gives the file back. No thread waits for the reader meanwhile.
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
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was sent"));
            }
            left = left.saturating_sub(piece.len() as u64);
            self.write(&piece).await?;
        }
        Ok(file)
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        // Whoever handed it over has it too, and goes on to use it: in a shell, the next command.
        if let Way::Pipe { pipe, blocking: true } = &self.way
            && let Ok(flags) = fcntl_getfl(pipe.as_fd())
        {
            let _ = fcntl_setfl(pipe.as_fd(), flags.difference(OFlags::NONBLOCK));
        }
    }
}

fn still(limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("nothing was moved for {} seconds", limit.as_secs()))
}

/// What somebody sends who may be slow; for a thread of its own, which reads and waits.
#[derive(Debug)]
pub struct Inlet {
    file: File,
    limit: Duration,
    unwanted: CancellationToken,
}

impl Inlet {
    /// Fails when nothing comes for so long, or when it is no longer wanted.
    pub fn new(descriptor: OwnedFd, limit: Duration, unwanted: CancellationToken) -> Inlet {
        Inlet { file: File::from(descriptor), limit, unwanted }
    }
}

impl Read for Inlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let look = Timespec { tv_sec: i64::try_from(LOOK.as_secs()).unwrap_or(1), tv_nsec: 0 };
        let begun = Instant::now();
        loop {
            if self.unwanted.is_cancelled() {
                return Err(io::Error::other("it is not wanted any more"));
            }
            let mut ready = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut ready, Some(&look)) {
                Ok(0) if begun.elapsed() >= self.limit => return Err(still(self.limit)),
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => match self.file.read(buffer) {
                    // Somebody else reads from the same end, too.
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
    async fn a_pipe_is_given_back_as_it_was() {
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
    async fn files_go_through_in_pieces_and_a_reader_that_stands_still_is_given_up() {
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
            // Until the test is over, without a word.
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
    fn input_that_does_not_come_or_is_not_wanted_is_not_waited_for() {
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
