//! Socket options, and time limits for peers that make no progress. Without a time limit, a client that stops reading would keep its
//! connection open permanently.

use std::{
    future::Future,
    io,
    os::fd::AsFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

/// Enables TCP keep-alive, so that the kernel detects vanished peers on connections that are idle for a long time.
pub(super) fn keep_alive(stream: &impl AsFd) {
    let set = sockopt::set_socket_keepalive(stream, true)
        .and_then(|()| sockopt::set_tcp_keepidle(stream, Duration::from_secs(60)))
        .and_then(|()| sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15)));
    if let Err(error) = set {
        tracing::debug!(%error, "cannot set keep-alive on a connection");
    }
}

/// A time limit for a period without progress. Each progress restarts the period.
pub(super) struct Stall {
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    pub fn new(limit: Duration) -> Self {
        Self { limit, sleep: None }
    }

    /// Records progress.
    pub fn clear(&mut self) {
        self.sleep = None;
    }

    /// Records that there is no progress. Returns `Ready` if the period without progress has reached the time limit.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sleep.get_or_insert_with(|| Box::pin(sleep(self.limit))).as_mut().poll(cx)
    }
}

/// The number of reads of discarded bytes in one turn.
const READS: usize = 8;

/// The maximum time for which the rest of a request is read and discarded after the response.
const LINGER: Duration = Duration::from_secs(5);

/// A stream whose writes fail if the peer reads nothing for the time limit.
///
/// If a request has a response before all of its body was read, the end of the stream lingers: the rest of the body is discarded until the
/// client ends, at most for [`LINGER`]. The kernel would otherwise reset the connection because of the unread bytes, and the client would lose
/// the response.
pub(super) struct WriteTimeoutStream {
    stream: TcpStream,
    stall: Stall,
    has_unread: Arc<AtomicBool>,
    linger: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeoutStream {
    /// Wraps a stream. `has_unread` is true from the moment at which the body of a request is dropped before its end.
    pub fn new(stream: TcpStream, limit: Duration, has_unread: Arc<AtomicBool>) -> Self {
        Self { stream, stall: Stall::new(limit), has_unread, linger: None }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall.clear();
            return written;
        }
        ready!(self.stall.poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading the response")))
    }
}

impl AsyncRead for WriteTimeoutStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for WriteTimeoutStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        if !this.has_unread.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let linger = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if linger.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut discarded = [0; 16 * 1024];
        for _ in 0..READS {
            let mut buffer = ReadBuf::new(&mut discarded);
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        // Other connections of the thread get a turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
