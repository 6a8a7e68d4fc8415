//! The path of one request: validate the request, find the route, wait for the end of a hold, forward the request, return the response.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use hyper::{
    HeaderMap, Method, Request, Response, Uri,
    body::Incoming,
    header::{self, HeaderValue},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    access::{LoggedHead, RequestRecord},
    clients::ClientConnection,
    connect::ConnectError,
    endpoint::MAX_IDLE_AGE,
    headers::{self, REQUEST_ID, RequestOrigin},
    pages::{Page, Pages},
    request,
    response::{self, Open, ResponseBody},
    route::Route,
    target::Lease,
    upload::{UploadBody, UploadProgress},
};

/// The maximum number of retries of a request whose connection was closed before the response.
const MAX_RETRIES: usize = 3;
/// The pause before the next attempt to connect after all instances have refused a connection.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// The idle time up to which a connection is assumed to be open. Applications usually keep idle connections open for longer.
const SURELY_OPEN: Duration = Duration::from_secs(1);
/// The maximum number of characters of a path in an access line.
const MAX_LOGGED_PATH: usize = 1024;

/// Answers one request. Every request gets a response.
pub(super) async fn answer(
    connection: Arc<ClientConnection>,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let proxy = &connection.proxy;
    let named = match request::read(&mut request) {
        Ok(named) => named,
        Err(page) => {
            proxy.counts.bad_requests.fetch_add(1, Relaxed);
            return Ok(response::page(&connection, &page, request.headers(), None, None));
        }
    };
    let Some(route) = proxy.find(&named.name).await else {
        proxy.counts.unknown_host.fetch_add(1, Relaxed);
        return Ok(response::page(&connection, &Page::UnknownHost, request.headers(), None, None));
    };
    let upgrade = request::upgrade(&request);
    let on_upgrade = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let host = request.headers().get(header::HOST).cloned().unwrap_or_else(|| HeaderValue::from_static(""));
    let visitor = if connection.trusted { headers::visitor(request.headers(), &proxy.settings.trusted) } else { None };
    let permit = match visitor.map(|visitor| connection.visit(visitor)) {
        Some(None) => return Ok(response::page(&connection, &Page::TooManyRequests, request.headers(), None, None)),
        permit => permit.flatten(),
    };
    let visitor_value = visitor.map_or_else(|| connection.peer_value.clone(), headers::address_value);
    let origin = RequestOrigin {
        peer: &connection.peer_value,
        visitor: &visitor_value,
        trusted: connection.trusted,
        scheme: proxy.settings.scheme,
        host: &host,
        port: named.port,
    };
    headers::to_application(request.headers_mut(), &origin, upgrade, &proxy.ids);
    let record = RequestRecord::open(&proxy.log, &route, || LoggedHead {
        peer: visitor.unwrap_or(connection.peer),
        host: named.name,
        method: request.method().clone(),
        path: request
            .uri()
            .path_and_query()
            .map(|path| path.as_str().chars().take(MAX_LOGGED_PATH).collect())
            .unwrap_or_default(),
        request_id: request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned(),
    });
    let open = Open { record, _permit: permit };
    if request::is_last_hop(&mut request) {
        return Ok(response::with_body(Pages::options(), Some(open)));
    }
    let accept = request.headers().get(header::ACCEPT).cloned();
    let id = request.headers().get(REQUEST_ID).cloned();
    let (parts, body) = request.into_parts();
    let (upload, progress) = UploadBody::new(body, &route.counts, proxy.settings.stall_timeout, &connection.has_unread);
    let mut onward = Request::new(upload);
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = parts.uri;
    *onward.headers_mut() = parts.headers;
    match forward(&connection, &route, onward, progress.as_ref()).await {
        Ok((answered, lease)) => Ok(response::deliver(&connection, answered, lease, open, progress, on_upgrade)),
        Err(page) => {
            let mut page_headers = HeaderMap::new();
            if let Some(accept) = accept {
                page_headers.insert(header::ACCEPT, accept);
            }
            Ok(response::page(&connection, &page, &page_headers, id.as_ref(), Some(open)))
        }
    }
}

/// A copy of a request, for a retry. Only a request that may be processed twice is copied: an idempotent request without a body.
struct RetryCopy {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl RetryCopy {
    fn of(request: &Request<UploadBody>) -> Option<Self> {
        let harmless = request.method().is_idempotent() && matches!(request.body(), UploadBody::Empty);
        harmless.then(|| Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
        })
    }

    fn restore(self) -> Request<UploadBody> {
        let mut request = Request::new(UploadBody::Empty);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }
}

/// Sends the request to the route's live target and waits for the head of the response. Fails with the page for the client.
async fn forward(
    connection: &ClientConnection,
    route: &Arc<Route>,
    mut request: Request<UploadBody>,
    progress: Option<&Arc<UploadProgress>>,
) -> Result<(Response<Incoming>, Lease), Page> {
    let settings = &connection.proxy.settings;
    let mut retries = 0;
    let mut retry_until = None;
    loop {
        // The turn ends with this attempt: after a hold, the next request continues when this request has its response.
        let (in_flight, _turn) = route.admit(settings.max_waiting).await?;
        let copy = RetryCopy::of(&request);
        // A request that cannot be retried does not use an idle connection that the application may be closing. A retry always uses a new
        // connection.
        let max_idle = match (&copy, retries) {
            (Some(_), 0) => MAX_IDLE_AGE,
            (None, 0) => SURELY_OPEN,
            _ => Duration::ZERO,
        };
        let mut lease = match in_flight.lease(settings, max_idle).await {
            Ok(lease) => lease,
            Err(error) => {
                let until = *retry_until.get_or_insert_with(|| Instant::now() + settings.connect_retry_limit);
                if Instant::now() < until {
                    sleep(RECONNECT_PAUSE).await;
                    continue;
                }
                tracing::debug!(route = route.name(), %error, "no instance accepts a connection");
                return Err(if matches!(error, ConnectError::Timeout { .. }) { Page::GatewayTimeout } else { Page::BadGateway });
            }
        };
        let sending = lease.sender.try_send_request(request);
        let sent = match progress {
            None => timeout(settings.response_timeout, sending).await.ok(),
            Some(progress) => tokio::select! {
                biased;
                sent = sending => Some(sent),
                () = async {
                    tokio::select! {
                        () = progress.ended() => sleep(settings.response_timeout).await,
                        () = progress.untaken(settings.stall_timeout) => {}
                    }
                } => None,
            },
        };
        let mut error = match sent {
            Some(Ok(response)) => return Ok((response, lease)),
            Some(Err(error)) => error,
            None => return Err(Page::GatewayTimeout),
        };
        if let Some(page) = progress.and_then(|progress| progress.failure()) {
            return Err(page);
        }
        if lease.in_flight.is_cut() {
            return Err(Page::Maintenance);
        }
        // A request of any method can be retried if no part of the request was written. A request that was written but not answered is
        // retried only under two conditions. The request must be idempotent and without a body, and the application may have closed the
        // connection before it read the request.
        let again = match error.take_message() {
            Some(unsent) => Some(unsent),
            None if lease.reused || lease.in_flight.is_retired() => copy.map(RetryCopy::restore),
            None => None,
        };
        match again {
            Some(again) if retries < MAX_RETRIES => {
                retries += 1;
                route.counts.retried.fetch_add(1, Relaxed);
                request = again;
            }
            _ => {
                tracing::debug!(route = route.name(), error = %error.error(), "application closed a connection without a response");
                // A deployment stops the processes of a retired target, so the client gets the maintenance page.
                return Err(if lease.in_flight.is_retired() { Page::Maintenance } else { Page::BadGateway });
            }
        }
    }
}
