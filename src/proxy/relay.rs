//! The way of one request: read it in one way only, find its route, wait out a hold, send it on, bring the answer back.

use std::{convert::Infallible, io, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    body::Incoming,
    header::{self, HeaderValue},
    upgrade::OnUpgrade,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Inner,
    access::{Head, Ticket},
    body::{Answer, Download, Progress, Upload},
    headers::{self, Origin, REQUEST_ID},
    host,
    listen::Connection,
    pages::Page,
    route::{Place, Route},
    target::{Lease, MAX_IDLE_AGE},
    tunnel,
};

/// How often one request may be sent again because its connection turned out to be closed.
const MAX_RETRIES: usize = 3;
/// The pause before instances that all refuse are tried again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// No application closes an idle connection sooner.
const SURELY_OPEN: Duration = Duration::from_secs(1);
/// Bytes of a path that an access line keeps.
const LOGGED_PATH: usize = 1024;

/// Answers one request; there is always an answer.
pub(super) async fn answer(connection: Arc<Connection>, mut request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    let proxy = &connection.proxy;
    let (name, port) = match read(&mut request) {
        Ok(read) => read,
        Err(page) => {
            proxy.counts.bad_requests.fetch_add(1, Relaxed);
            return Ok(render(&connection, &page, request.headers(), None));
        }
    };
    let Some(route) = find(proxy, &name).await else {
        proxy.counts.unknown_host.fetch_add(1, Relaxed);
        return Ok(render(&connection, &Page::UnknownHost, request.headers(), None));
    };
    let upgrade = wanted_upgrade(&request);
    let on_upgrade = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let host = request.headers().get(header::HOST).cloned().unwrap_or_else(|| HeaderValue::from_static(""));
    let visitor = if connection.trusted { headers::visitor(request.headers(), &proxy.settings.trusted) } else { None };
    let place = match visitor.map(|visitor| connection.visit(visitor)) {
        Some(None) => return Ok(render(&connection, &Page::Crowded, request.headers(), None)),
        place => place.flatten(),
    };
    let visitor_value = visitor.map_or_else(|| connection.peer_value.clone(), headers::address_value);
    let origin = Origin {
        peer: &connection.peer_value,
        visitor: &visitor_value,
        trusted: connection.trusted,
        scheme: proxy.settings.scheme,
        host: &host,
        port,
    };
    headers::to_application(request.headers_mut(), &origin, upgrade, &proxy.ids);
    let ticket = Ticket::open(proxy, &route, place, || Head {
        peer: visitor.unwrap_or(connection.peer),
        host: name,
        method: request.method().clone(),
        path: request.uri().path_and_query().map(|path| path.as_str().chars().take(LOGGED_PATH).collect()).unwrap_or_default(),
        request_id: request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned(),
    });
    let accept = request.headers().get(header::ACCEPT).cloned();
    let id = request.headers().get(REQUEST_ID).cloned();
    let (parts, body) = request.into_parts();
    let (upload, progress) = Upload::new(body, &route, proxy.settings.stall_timeout);
    let mut onward = Request::new(upload);
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = parts.uri;
    *onward.headers_mut() = parts.headers;
    match forward(&connection, &route, onward, progress.as_ref()).await {
        Ok((response, lease)) => Ok(deliver(&connection, response, lease, ticket, progress, on_upgrade)),
        Err(page) => {
            let mut wishes = HeaderMap::new();
            if let Some(accept) = accept {
                wishes.insert(header::ACCEPT, accept);
            }
            Ok(render_for(&connection, &page, &wishes, id.as_ref(), Some(ticket)))
        }
    }
}

/// The route of a host. During an opening, whoever finds none that is live waits for the end of it.
async fn find(proxy: &Inner, host: &str) -> Option<Arc<Route>> {
    let now = || proxy.routes.read().get(host).cloned();
    let found = now();
    let threshold = proxy.opening.read().clone();
    if let Some(threshold) = threshold
        && !found.as_ref().is_some_and(|route| route.is_live())
        && let Some(_place) = Place::take(&threshold.waiting, proxy.settings.max_waiting)
    {
        threshold.opened.cancelled().await;
        return now();
    }
    found
}

/// Reads a request's address in the one way that counts, and brings it into origin form. Returns the key of its route and the port.
fn read(request: &mut Request<Incoming>) -> Result<(String, Option<u16>), Page> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Err(Page::Method);
    }
    let headers = request.headers();
    if let Some(coding) = headers.get(header::TRANSFER_ENCODING)
        && (!coding.as_bytes().eq_ignore_ascii_case(b"chunked") || headers.get_all(header::TRANSFER_ENCODING).iter().count() > 1)
    {
        return Err(Page::BadRequest("The body's transfer encoding must be chunked and nothing else."));
    }
    if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
        return Err(Page::BadRequest("The request says its length in two ways."));
    }
    if let Some(expected) = headers.get(header::EXPECT)
        && !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(Page::BadRequest("The request expects something that is not known here."));
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Page::BadRequest("A request names exactly one host."));
    };
    let named = host.to_str().ok().and_then(host::parse).ok_or(Page::BadRequest("The host is not a valid name or address."))?;
    let found = (named.host.to_string(), named.port);
    let uri = request.uri();
    if let Some(authority) = uri.authority() {
        let same = host::parse(authority.as_str()).is_some_and(|asked| asked == named);
        if !same || !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(Page::BadRequest("The request names one host in its first line and another in its headers."));
        }
        let path = uri.path_and_query().cloned().unwrap_or_else(|| hyper::http::uri::PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
    } else if !uri.path().starts_with('/') && uri.path() != "*" {
        return Err(Page::BadRequest("The request's path does not start with a slash."));
    }
    Ok(found)
}

/// The protocol that the client wants to change to, if it may: a GET without a body, and not HTTP/2, which would carry requests past us.
fn wanted_upgrade(request: &Request<Incoming>) -> Option<HeaderValue> {
    let headers = request.headers();
    let protocol = headers.get(header::UPGRADE)?;
    let plain = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && hyper::body::Body::is_end_stream(request.body())
        && headers.get_all(header::UPGRADE).iter().count() == 1
        && headers::connection_says(headers, "upgrade")
        && !protocol.as_bytes().to_ascii_lowercase().starts_with(b"h2")
        && !protocol.as_bytes().contains(&b',');
    plain.then(|| protocol.clone())
}

/// What is needed to send a request once more; only kept where sending it twice does no harm.
struct Copy {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Copy {
    fn of(request: &Request<Upload>) -> Option<Self> {
        let harmless = request.method().is_idempotent() && matches!(request.body(), Upload::Empty);
        harmless.then(|| Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
        })
    }

    fn restore(self) -> Request<Upload> {
        let mut request = Request::new(Upload::Empty);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }
}

/// Sends the request to the route's live target and waits for the head of the response.
async fn forward(
    connection: &Connection,
    route: &Arc<Route>,
    mut request: Request<Upload>,
    progress: Option<&Arc<Progress>>,
) -> Result<(Response<Incoming>, Lease), Page> {
    let settings = &connection.proxy.settings;
    let mut retries = 0;
    let mut patience = None;
    loop {
        let seat = route.admit(settings.max_waiting).await?;
        let copy = Copy::of(&request);
        // A request that cannot be repeated does not take the risk of a connection that the application is just about to close; one
        // that had bad luck with a kept connection gets a new one.
        let max_idle = match (&copy, retries) {
            (Some(_), 0) => MAX_IDLE_AGE,
            (None, 0) => SURELY_OPEN,
            _ => Duration::ZERO,
        };
        let mut lease = match seat.lease(settings, max_idle).await {
            Ok(lease) => lease,
            Err(error) => {
                let until = *patience.get_or_insert_with(|| Instant::now() + settings.connect_patience);
                if Instant::now() < until {
                    sleep(RECONNECT_PAUSE).await;
                    continue;
                }
                tracing::debug!(route = route.name(), %error, "no instance accepts a connection");
                return Err(if error.kind() == io::ErrorKind::TimedOut { Page::GatewayTimeout } else { Page::BadGateway });
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
        if lease.seat.is_cut() {
            return Err(Page::Maintenance);
        }
        // Never written: it may go another way, whatever it is. Written and unanswered: only if it was the connection's fault.
        let again = match error.take_message() {
            Some(unsent) => Some(unsent),
            None if lease.reused || lease.seat.is_retired() => copy.map(Copy::restore),
            None => None,
        };
        match again {
            Some(again) if retries < MAX_RETRIES => {
                retries += 1;
                route.counts.retried.fetch_add(1, Relaxed);
                request = again;
            }
            _ => {
                tracing::debug!(route = route.name(), error = %error.error(), "an application broke a request off");
                return Err(Page::BadGateway);
            }
        }
    }
}

/// Turns an application's response into the client's.
fn deliver(
    connection: &Arc<Connection>,
    mut response: Response<Incoming>,
    lease: Lease,
    mut ticket: Ticket,
    progress: Option<Arc<Progress>>,
    on_upgrade: Option<OnUpgrade>,
) -> Response<Answer> {
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if upgraded {
        let Some(client) = on_upgrade else {
            // Nobody asked for it.
            return render(connection, &Page::BadGateway, &HeaderMap::new(), Some(ticket));
        };
        let application = hyper::upgrade::on(&mut response);
        ticket.answered(response.status());
        headers::to_client(response.headers_mut(), true);
        tunnel::start(connection, client, application, lease.seat, ticket);
        let (parts, _) = response.into_parts();
        return Response::from_parts(parts, Answer::Page(Full::default(), None));
    }
    ticket.answered(response.status());
    headers::to_client(response.headers_mut(), false);
    let (mut parts, body) = response.into_parts();
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Response::from_parts(parts, Answer::Download(Download::new(body, ticket, lease, progress)))
}

fn render(connection: &Connection, page: &Page, headers: &HeaderMap, ticket: Option<Ticket>) -> Response<Answer> {
    render_for(connection, page, headers, None, ticket)
}

fn render_for(
    connection: &Connection,
    page: &Page,
    headers: &HeaderMap,
    id: Option<&HeaderValue>,
    mut ticket: Option<Ticket>,
) -> Response<Answer> {
    let proxy = &connection.proxy;
    let response = proxy.pages.answer(page, headers, id, proxy.settings.reveal_reasons);
    if let Some(ticket) = &mut ticket {
        ticket.answered(response.status());
    }
    let (parts, body) = response.into_parts();
    Response::from_parts(parts, Answer::Page(Full::new(body), ticket))
}
