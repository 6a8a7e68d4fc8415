//! Passes the body of a request to the application, counts its bytes, and detects a client or an application that stalls.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU8, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{counts::RouteCounts, io::Stall, pages::Page};

/// The reason why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the peer closed the connection before the end of the body")]
    Broken(#[source] hyper::Error),
    #[error("the client stopped sending the request's body")]
    Stalled,
}

/// The states of an upload.
const SENDING: u8 = 0;
const DONE: u8 = 1;
const BROKEN: u8 = 2;
const STALLED: u8 = 3;

/// The progress of an upload, for the task that waits for the response.
pub(super) struct UploadProgress {
    state: AtomicU8,
    done: Notify,
    started: Instant,
    /// The last time at which the application's connection could take data, in milliseconds after `started`.
    taken: AtomicU64,
    /// True while the proxy waits for data from the client.
    client: AtomicBool,
}

impl UploadProgress {
    fn new() -> Self {
        let (state, taken, client) = (AtomicU8::new(SENDING), AtomicU64::new(0), AtomicBool::new(false));
        Self { state, done: Notify::new(), started: Instant::now(), taken, client }
    }

    /// Records that the application's connection can take more data. `answered` is true if data from the client is available.
    fn asked(&self, answered: bool) {
        self.client.store(!answered, SeqCst);
        self.taken.store(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX), SeqCst);
    }

    /// Waits until the application has taken no data for `limit`, although data was available. No other time limit detects this stall:
    /// while the application takes no data, the proxy does not read from the client, and cannot detect that the client has disconnected.
    pub async fn untaken(&self, limit: Duration) {
        loop {
            let since = if self.client.load(SeqCst) {
                Instant::now()
            } else {
                self.started + Duration::from_millis(self.taken.load(SeqCst))
            };
            let until = since + limit;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    fn end(&self, state: u8) {
        self.state.store(state, SeqCst);
        self.done.notify_one();
    }

    pub fn is_done(&self) -> bool {
        self.state.load(SeqCst) == DONE
    }

    /// Returns the page for a body that has ended early, or `None` if the body is complete or still being sent.
    pub fn failure(&self) -> Option<Page> {
        match self.state.load(SeqCst) {
            BROKEN => Some(Page::BadRequest("The request's body ends too early or is malformed.")),
            STALLED => Some(Page::UploadTimeout),
            _ => None,
        }
    }

    /// Waits until the body is complete or the upload has failed.
    pub async fn ended(&self) {
        self.done.notified().await;
    }
}

/// The body of a request to the application.
pub(super) enum UploadBody {
    Empty,
    Streaming { inner: Incoming, progress: Arc<UploadProgress>, stall: Stall, counts: Arc<RouteCounts>, unread: Unread },
}

/// Sets the flag of the client's connection if the body is dropped before its end.
pub(super) struct Unread {
    is_read: bool,
    has_unread: Arc<AtomicBool>,
}

impl Drop for Unread {
    fn drop(&mut self) {
        if !self.is_read {
            self.has_unread.store(true, Relaxed);
        }
    }
}

impl UploadBody {
    /// Wraps the body of a client's request. The progress is `None` if the request has no body.
    /// `has_unread` is the flag of the client's connection.
    pub fn new(
        inner: Incoming,
        counts: &Arc<RouteCounts>,
        stall_timeout: Duration,
        has_unread: &Arc<AtomicBool>,
    ) -> (Self, Option<Arc<UploadProgress>>) {
        if inner.is_end_stream() {
            return (Self::Empty, None);
        }
        let progress = Arc::new(UploadProgress::new());
        let stall = Stall::new(stall_timeout);
        let unread = Unread { is_read: false, has_unread: has_unread.clone() };
        (Self::Streaming { inner, progress: progress.clone(), stall, counts: counts.clone(), unread }, Some(progress))
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self::Streaming { inner, progress, stall, counts, unread } = self.get_mut() else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *inner).poll_frame(cx);
        progress.asked(polled.is_ready());
        unread.is_read = inner.is_end_stream() || matches!(polled, Poll::Ready(None | Some(Err(_))));
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                stall.clear();
                let Some(data) = frame.data_ref() else {
                    // Trailers are not passed on, because applications may merge them with the headers that the proxy has checked.
                    progress.end(DONE);
                    return Poll::Ready(None);
                };
                counts.bytes_in.fetch_add(data.len() as u64, Relaxed);
                if inner.is_end_stream() {
                    progress.end(DONE);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                progress.end(DONE);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                progress.end(BROKEN);
                Poll::Ready(Some(Err(BodyError::Broken(error))))
            }
            Poll::Pending => {
                if stall.poll(cx).is_pending() {
                    return Poll::Pending;
                }
                progress.end(STALLED);
                Poll::Ready(Some(Err(BodyError::Stalled)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming { inner, .. } => inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming { inner, .. } => inner.size_hint(),
        }
    }
}
