//! Bodies on their way through: counted, watched for stalls, and holding what must live as long as they do.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{access::Ticket, io::Stall, pages::Page, route::Route, target::Lease};

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the peer broke the body off")]
    Broken(#[source] hyper::Error),
    #[error("the client sends nothing of its request's body")]
    Stalled,
}

const SENDING: u8 = 0;
const DONE: u8 = 1;
const BROKEN: u8 = 2;
const STALLED: u8 = 3;

/// How far a request's body has come, for the side that waits for the response.
pub(super) struct Progress {
    state: AtomicU8,
    done: Notify,
    started: Instant,
    /// When the application last took something of it, in milliseconds after the start.
    taken: AtomicU64,
    /// Whether it is the client that has to send something now.
    client: AtomicBool,
}

impl Progress {
    fn new() -> Self {
        let (state, taken, client) = (AtomicU8::new(SENDING), AtomicU64::new(0), AtomicBool::new(false));
        Self { state, done: Notify::new(), started: Instant::now(), taken, client }
    }

    /// The application's connection has room for more; whether the client had something for it.
    fn asked(&self, answered: bool) {
        self.client.store(!answered, SeqCst);
        self.taken.store(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX), SeqCst);
    }

    /// Returns when the application has taken nothing for `limit` of what is there for it. Nobody else would notice: what it does not
    /// take is not read from the client either, nor is the client's leaving.
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

    /// Why the client's body will never be whole, if so.
    pub fn failure(&self) -> Option<Page> {
        match self.state.load(SeqCst) {
            BROKEN => Some(Page::BadRequest("The request's body ends too early or is not well formed.")),
            STALLED => Some(Page::UploadTimeout),
            _ => None,
        }
    }

    /// Returns when the body has ended, well or not.
    pub async fn ended(&self) {
        self.done.notified().await;
    }
}

/// A request's body on the way to the application.
pub(super) enum Upload {
    Empty,
    Streaming { inner: Incoming, progress: Arc<Progress>, stall: Stall, route: Arc<Route> },
}

impl Upload {
    /// Wraps a client's body; the progress is `None` if there is no body.
    pub fn new(inner: Incoming, route: &Arc<Route>, stall_timeout: Duration) -> (Self, Option<Arc<Progress>>) {
        if inner.is_end_stream() {
            return (Self::Empty, None);
        }
        let progress = Arc::new(Progress::new());
        let stall = Stall::new(stall_timeout);
        (Self::Streaming { inner, progress: progress.clone(), stall, route: route.clone() }, Some(progress))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self::Streaming { inner, progress, stall, route } = self.get_mut() else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *inner).poll_frame(cx);
        progress.asked(polled.is_ready());
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                stall.clear();
                let Some(data) = frame.data_ref() else {
                    // Trailers are not passed on: applications merge them with headers that we have vouched for.
                    progress.end(DONE);
                    return Poll::Ready(None);
                };
                route.counts.bytes_in.fetch_add(data.len() as u64, std::sync::atomic::Ordering::Relaxed);
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

/// What goes back to the client.
pub(super) enum Answer {
    /// A page of ours; the ticket ends with it.
    Page(Full<Bytes>, Option<Ticket>),
    /// The application's response.
    Download(Download),
}

/// The body of an application's response.
pub(super) struct Download {
    inner: Incoming,
    ended: bool,
    ticket: Ticket,
    lease: Option<Lease>,
    upload: Option<Arc<Progress>>,
}

impl Download {
    pub fn new(inner: Incoming, ticket: Ticket, lease: Lease, upload: Option<Arc<Progress>>) -> Self {
        Self { inner, ended: false, ticket, lease: Some(lease), upload }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // A connection is only clean when both directions have ended; else dropping the lease closes it.
        let uploaded = self.upload.as_ref().is_none_or(|upload| upload.is_done());
        if uploaded
            && (self.ended || self.inner.is_end_stream())
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let download = match self.get_mut() {
            Self::Page(page, ticket) => {
                return Pin::new(page).poll_frame(cx).map(|frame| {
                    let frame = frame?.ok()?;
                    if let (Some(ticket), Some(data)) = (ticket.as_mut(), frame.data_ref()) {
                        ticket.bytes_out += data.len() as u64;
                    }
                    Some(Ok(frame))
                });
            }
            Self::Download(download) => download,
        };
        match std::task::ready!(Pin::new(&mut download.inner).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let Some(data) = frame.data_ref() else {
                    download.ended = true;
                    return Poll::Ready(None);
                };
                download.ticket.bytes_out += data.len() as u64;
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                download.ended = true;
                Poll::Ready(None)
            }
            // The server then breaks the client's connection off: a cut response never looks like a whole one.
            Some(Err(error)) => Poll::Ready(Some(Err(BodyError::Broken(error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Page(page, _) => page.is_end_stream(),
            Self::Download(download) => download.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Page(page, _) => page.size_hint(),
            Self::Download(download) => download.inner.size_hint(),
        }
    }
}
