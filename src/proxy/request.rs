//! Validates the head of a request. A request that two parsers could interpret differently is rejected.

use hyper::{
    Method, Request, Uri, Version,
    body::{Body, Incoming},
    header::{self, HeaderValue},
};

use super::{headers, host, pages::Page};

/// The host of a request in normal form, and the port in its `Host` header.
pub(super) struct Host {
    pub name: String,
    pub port: Option<u16>,
}

/// Validates a request's head, and converts its target to origin form (RFC 9112, section 3.2.1). Fails with the page for the client.
pub(super) fn read(request: &mut Request<Incoming>) -> Result<Host, Page> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Err(Page::Method);
    }
    let headers = request.headers();
    if let Some(coding) = headers.get(header::TRANSFER_ENCODING)
        && (!coding.as_bytes().eq_ignore_ascii_case(b"chunked") || headers.get_all(header::TRANSFER_ENCODING).iter().count() > 1)
    {
        return Err(Page::BadRequest("The only supported Transfer-Encoding is chunked."));
    }
    if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
        return Err(Page::BadRequest("The request has both Content-Length and Transfer-Encoding."));
    }
    if let Some(expected) = headers.get(header::EXPECT)
        && !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(Page::Expectation);
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Page::BadRequest("The request must have exactly one Host header."));
    };
    let named =
        host.to_str().ok().and_then(host::parse).ok_or(Page::BadRequest("The Host header is not a valid name or address."))?;
    let found = Host { name: named.host.to_string(), port: named.port };
    let uri = request.uri();
    if let Some(authority) = uri.authority() {
        let same = host::parse(authority.as_str()).is_some_and(|asked| asked == named);
        if !same || !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(Page::BadRequest(
                "The request line must name the host of the Host header, with the scheme http or https.",
            ));
        }
        let path = uri.path_and_query().cloned().unwrap_or_else(|| hyper::http::uri::PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
    } else if !(uri.path().starts_with('/') || uri.path() == "*" && *request.method() == Method::OPTIONS) {
        return Err(Page::BadRequest("The path of the request must start with a slash."));
    }
    Ok(found)
}

/// Decrements `Max-Forwards` of an OPTIONS request. Returns true if the value was already 0; the proxy must then answer the request itself
/// (RFC 9110, section 7.6.2).
pub(super) fn is_last_hop(request: &mut Request<Incoming>) -> bool {
    if *request.method() != Method::OPTIONS {
        return false;
    }
    let left = request.headers().get(header::MAX_FORWARDS).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match left {
        Some(0) => true,
        Some(left) => {
            request.headers_mut().insert(header::MAX_FORWARDS, HeaderValue::from(left - 1));
            false
        }
        None => false,
    }
}

/// Returns the protocol to which the client may upgrade the connection, or `None`. Only a GET request without a body can upgrade. Upgrades
/// to HTTP/2 are ignored, because the proxy could not validate later requests on the connection.
pub(super) fn upgrade(request: &Request<Incoming>) -> Option<HeaderValue> {
    let headers = request.headers();
    let protocol = headers.get(header::UPGRADE)?;
    let plain = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && request.body().is_end_stream()
        && headers.get_all(header::UPGRADE).iter().count() == 1
        && headers::connection_has(headers, "upgrade")
        && !protocol.as_bytes().to_ascii_lowercase().starts_with(b"h2")
        && !protocol.as_bytes().contains(&b',');
    plain.then(|| protocol.clone())
}
