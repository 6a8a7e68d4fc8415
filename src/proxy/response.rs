//! The response to a client: an application's response with its body, a page of the proxy, or a tunnel.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Response, StatusCode, Version,
    body::{Body, Frame, Incoming, SizeHint},
    header::{self, HeaderValue},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::copy_bidirectional_with_sizes,
    time::{sleep, timeout},
};

use super::{
    access::RequestRecord,
    clients::{ClientConnection, ClientPermit},
    headers,
    pages::Page,
    target::{InFlight, Lease},
    upload::{BodyError, UploadProgress},
    websocket::{self, BUFFER, CLOSE_LIMIT, Carried},
};

/// The time limit for the switch of both connections to the new protocol after an upgrade was accepted.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// The values that are dropped at the end of the response. Fields are dropped in the order of their declaration, so the access line is
/// written before the client's permit is returned.
pub(super) struct Open {
    pub record: RequestRecord,
    /// The permit of a visitor behind a trusted proxy.
    pub _permit: Option<ClientPermit>,
}

/// The body of a response to a client.
pub(super) enum ResponseBody {
    /// A page of the proxy.
    Page(Full<Bytes>, Option<Open>),
    /// The application's response.
    Download(Download),
}

/// The body of an application's response.
pub(super) struct Download {
    inner: Incoming,
    /// True if the whole body has been read.
    ended: bool,
    open: Open,
    lease: Option<Lease>,
    upload: Option<Arc<UploadProgress>>,
}

impl Drop for Download {
    fn drop(&mut self) {
        // The connection can be reused only if the request and the response are complete. Otherwise the lease is dropped, which closes the
        // connection.
        let uploaded = self.upload.as_ref().is_none_or(|upload| upload.is_done());
        if uploaded
            && (self.ended || self.inner.is_end_stream())
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let download = match self.get_mut() {
            Self::Page(page, open) => {
                return Pin::new(page).poll_frame(cx).map(|frame| {
                    let frame = frame?.ok()?;
                    if let (Some(open), Some(data)) = (open.as_mut(), frame.data_ref()) {
                        open.record.bytes_out += data.len() as u64;
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
                download.open.record.bytes_out += data.len() as u64;
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                download.ended = true;
                Poll::Ready(None)
            }
            // After this error, hyper closes the client's connection, so that a truncated response does not look complete.
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

/// Converts an application's response to the response for the client. If the application accepted an upgrade, the function starts a tunnel.
pub(super) fn deliver(
    connection: &Arc<ClientConnection>,
    mut response: Response<Incoming>,
    lease: Lease,
    mut open: Open,
    upload: Option<Arc<UploadProgress>>,
    on_upgrade: Option<OnUpgrade>,
) -> Response<ResponseBody> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = on_upgrade else {
            // The application accepted an upgrade that the client has not requested.
            return page(connection, &Page::BadGateway, &HeaderMap::new(), None, Some(open));
        };
        let application = hyper::upgrade::on(&mut response);
        open.record.answered(response.status());
        headers::to_client(response.headers_mut(), true);
        let is_websocket =
            response.headers().get(header::UPGRADE).is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(b"websocket"));
        tunnel(connection, client, application, lease.in_flight, open, is_websocket);
        let (parts, _) = response.into_parts();
        return Response::from_parts(parts, ResponseBody::Page(Full::default(), None));
    }
    open.record.answered(response.status());
    headers::to_client(response.headers_mut(), false);
    let (mut parts, body) = response.into_parts();
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    let download = Download { inner: body, ended: false, open, lease: Some(lease), upload };
    Response::from_parts(parts, ResponseBody::Download(download))
}

/// Returns a page of the proxy as the response. `headers` are the request's headers; the `Accept` header selects the form of the page. `id`
/// is the request's id.
pub(super) fn page(
    connection: &ClientConnection,
    page: &Page,
    headers: &HeaderMap,
    id: Option<&HeaderValue>,
    open: Option<Open>,
) -> Response<ResponseBody> {
    let proxy = &connection.proxy;
    with_body(proxy.pages.answer(page, headers, id, proxy.settings.reveal_reasons), open)
}

/// Converts a response of the proxy itself to the response for the client, and records the status.
pub(super) fn with_body(response: Response<Bytes>, mut open: Option<Open>) -> Response<ResponseBody> {
    if let Some(open) = &mut open {
        open.record.answered(response.status());
    }
    response.map(|body| ResponseBody::Page(Full::new(body), open))
}

/// Starts the task of a tunnel. `listen::serve` waits for this task. The task copies bytes in both directions until both sides have
/// finished sending, a connection fails, the drain of the target reaches its time limit, or the proxy closes all tunnels. If the protocol is
/// WebSocket, the client then gets a close frame.
fn tunnel(
    connection: &Arc<ClientConnection>,
    client: OnUpgrade,
    application: OnUpgrade,
    in_flight: InFlight,
    mut open: Open,
    is_websocket: bool,
) {
    let in_flight = in_flight.into_tunnel();
    let hang_up = connection.hang_up.clone();
    let kept = connection.clone();
    connection.tasks.spawn(async move {
        let _kept = kept;
        let cut = in_flight.tunnel_cut();
        let ending = || async {
            tokio::select! {
                () = cut.cancelled() => {}
                () = hang_up.cancelled() => {}
            }
        };
        let limit = async {
            ending().await;
            if is_websocket {
                sleep(CLOSE_LIMIT * 2).await;
            }
        };
        let carry = async {
            let both = async { tokio::try_join!(client, application) };
            let Ok(Ok((client, application))) = timeout(HANDOVER_TIMEOUT, both).await else { return };
            let (mut client, mut application) = (TokioIo::new(client), TokioIo::new(application));
            let route = open.record.route().clone();
            if is_websocket {
                let mut carried = Carried::default();
                websocket::carry(client, application, ending(), || in_flight.is_retired(), &mut carried).await;
                route.counts.bytes_in.fetch_add(carried.up, Relaxed);
                open.record.bytes_out += carried.down;
                return;
            }
            // An error means that one of the two connections has failed. Dropping the streams closes both connections.
            if let Ok((up, down)) = copy_bidirectional_with_sizes(&mut client, &mut application, BUFFER, BUFFER).await {
                route.counts.bytes_in.fetch_add(up, Relaxed);
                open.record.bytes_out += down;
            }
        };
        tokio::select! {
            () = carry => {}
            () = limit => {}
        }
    });
}
