//! Rewrites the headers of requests for applications, and the headers of responses for clients.
//!
//! hyper parses each message once, and writes the framing headers (`Content-Length` and `Transfer-Encoding`) of the forwarded message from
//! this parse. This module handles two other groups of headers: the headers that belong to one connection only, and the headers that state
//! the origin of a request.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use hyper::{
    HeaderMap,
    header::{self, HeaderName, HeaderValue},
};

use super::settings::Scheme;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Hop-by-hop headers of both directions (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Request headers that are not forwarded. `Proxy` is in the list because CGI applications would read this header as their environment
/// variable `HTTP_PROXY` (CVE-2016-5385). The other headers are meant for the proxy itself.
const NOT_FOR_APPLICATIONS: [HeaderName; 4] =
    [header::EXPECT, header::PROXY_AUTHORIZATION, HeaderName::from_static("proxy"), HeaderName::from_static("http2-settings")];

/// Headers, besides `X-Forwarded-*`, that applications trust because proxies set them. The proxy forwards none of these headers, not even
/// from a trusted proxy, because a trusted proxy may have received the header from a visitor. Of these headers, the proxy sets only
/// `X-Real-IP`.
const FROM_PROXIES: [&str; 12] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "client-ip",
    "true-client-ip",
    "x-cluster-client-ip",
    "x-originating-ip",
    "x-remote-ip",
    "x-original-url",
    "x-rewrite-url",
    "x-original-host",
    "x-url-scheme",
];

/// The origin of a request.
pub(super) struct RequestOrigin<'a> {
    /// The address of the connection's peer.
    pub peer: &'a HeaderValue,
    /// The visitor's address: the peer's address, unless a trusted proxy states another address.
    pub visitor: &'a HeaderValue,
    /// True if the peer is a trusted proxy.
    pub trusted: bool,
    /// The scheme that clients use.
    pub scheme: Scheme,
    /// The `Host` header as the client sent it.
    pub host: &'a HeaderValue,
    /// The port in the `Host` header.
    pub port: Option<u16>,
}

/// Rewrites a client's headers for an application. `upgrade` is the protocol to which the client may upgrade the connection.
pub(super) fn to_application(
    headers: &mut HeaderMap,
    origin: &RequestOrigin<'_>,
    upgrade: Option<HeaderValue>,
    ids: &RequestIds,
) {
    remove_named_in_connection(headers);
    for name in HOP_BY_HOP.iter().chain(&NOT_FOR_APPLICATIONS) {
        headers.remove(name);
    }
    let refused: Vec<HeaderName> = headers.keys().filter(|name| is_spoof(name.as_str(), origin.trusted)).cloned().collect();
    for name in &refused {
        headers.remove(name);
    }
    let peer = origin.peer;
    // Applications read the first address in `X-Forwarded-For` as the visitor's address. Unless the peer is a trusted proxy, the header
    // therefore contains only the peer's address.
    let chain = if origin.trusted { joined(headers, &FORWARDED_FOR) } else { None };
    let chain = match chain {
        Some(chain) => append(&chain, peer).unwrap_or_else(|| peer.clone()),
        None => peer.clone(),
    };
    headers.insert(FORWARDED_FOR, chain);
    let said = if origin.trusted { forwarded_proto(headers) } else { None };
    let proto = said.unwrap_or(match origin.scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    });
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
    let default_port = HeaderValue::from_static(if proto == "https" { "443" } else { "80" });
    let port = origin.port.map(HeaderValue::from).unwrap_or(default_port);
    headers.insert(FORWARDED_HOST, origin.host.clone());
    headers.insert(FORWARDED_PORT, port);
    headers.insert(REAL_IP, origin.visitor.clone());
    if headers.get_all(&REQUEST_ID).iter().count() != 1 || !headers.get(&REQUEST_ID).is_some_and(is_request_id) {
        headers.insert(REQUEST_ID, ids.next());
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Returns the visitor's address that a trusted proxy states: the last address in `X-Forwarded-For` that does not belong to a trusted
/// proxy. Earlier addresses in this header were sent by the visitor and can be forged. `X-Real-IP` is used only if `X-Forwarded-For` is
/// missing or does not end with an address, because many proxies pass on an `X-Real-IP` that the visitor sent.
pub(super) fn visitor(headers: &HeaderMap, trusted: &[IpAddr]) -> Option<IpAddr> {
    let chain = joined(headers, &FORWARDED_FOR).unwrap_or_default();
    let mut nearest = None;
    for entry in chain.rsplit(',') {
        let Some(address) = address_of(entry.trim()) else { break };
        nearest = Some(address);
        if !trusted.contains(&address) {
            break;
        }
    }
    nearest.or_else(|| address_of(headers.get(&REAL_IP)?.to_str().ok()?))
}

/// Parses an IP address with an optional port.
fn address_of(text: &str) -> Option<IpAddr> {
    let plain = text.parse::<IpAddr>().ok();
    let address = plain.or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|socket| socket.ip()));
    address.map(|address| address.to_canonical())
}

/// Rewrites an application's headers for a client.
pub(super) fn to_client(headers: &mut HeaderMap, upgraded: bool) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    let protocol = if upgraded { headers.get(header::UPGRADE).cloned() } else { None };
    remove_named_in_connection(headers);
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    let ours: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with("x-larder-")).cloned().collect();
    for name in &ours {
        headers.remove(name);
    }
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Returns true if a `Connection` header contains `option`.
pub(super) fn connection_has(headers: &HeaderMap, option: &str) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(option))
}

/// Removes the headers that `Connection` lists as hop-by-hop (RFC 9110, section 7.6.1), except the protected headers.
fn remove_named_in_connection(headers: &mut HeaderMap) {
    if !headers.contains_key(header::CONNECTION) {
        return;
    }
    let mut named = Vec::new();
    for word in
        headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','))
    {
        let word = word.trim();
        if word.eq_ignore_ascii_case("close") || word.eq_ignore_ascii_case("keep-alive") || word.eq_ignore_ascii_case("upgrade") {
            continue;
        }
        if let Ok(name) = word.parse::<HeaderName>()
            && !is_protected(name.as_str())
        {
            named.push(name);
        }
    }
    for name in named {
        headers.remove(name);
    }
}

/// Returns true if a header is protected: the proxy keeps the header even if `Connection` lists it. Otherwise a client could remove headers
/// that applications rely on.
fn is_protected(name: &str) -> bool {
    name.starts_with("x-forwarded")
        || FROM_PROXIES.contains(&name)
        || matches!(
            name,
            "host"
                | "content-length"
                | "content-type"
                | "content-encoding"
                | "content-range"
                | "range"
                | "transfer-encoding"
                | "cookie"
                | "set-cookie"
                | "authorization"
                | "date"
                | "location"
                | "cache-control"
                | "x-request-id"
        )
}

/// Returns true if an application could mistake this header for a header that a proxy has set. `trusted` is true if the peer is a trusted
/// proxy, whose address and scheme are accepted.
fn is_spoof(name: &str, trusted: bool) -> bool {
    if name.starts_with("x-larder-") {
        return true;
    }
    if name.contains('_') {
        // WSGI, Rack and CGI cannot distinguish `X_Forwarded_For` from `X-Forwarded-For`. Honest clients do not send the form with
        // underscores.
        let dashed = name.replace('_', "-");
        return is_protected(&dashed) || dashed.starts_with("x-larder-") || dashed == "proxy";
    }
    let believed = trusted && matches!(name, "x-forwarded-for" | "x-forwarded-proto");
    !believed && (name.starts_with("x-forwarded") || FROM_PROXIES.contains(&name))
}

/// Returns the scheme that a trusted proxy states in `X-Forwarded-Proto`.
fn forwarded_proto(headers: &HeaderMap) -> Option<&'static str> {
    let mut said = headers.get_all(&FORWARDED_PROTO).iter();
    match (said.next()?.as_bytes(), said.next()) {
        (b"http", None) => Some("http"),
        (b"https", None) => Some("https"),
        _ => None,
    }
}

fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    if values.is_empty() { None } else { Some(values.join(", ")) }
}

fn append(chain: &str, peer: &HeaderValue) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("{chain}, {}", peer.to_str().ok()?)).ok()
}

/// Formats an address as a header value.
pub(super) fn address_value(address: IpAddr) -> HeaderValue {
    HeaderValue::try_from(address.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

fn is_request_id(value: &HeaderValue) -> bool {
    let plain = |c: &u8| c.is_ascii_alphanumeric() || b"-_.:+/=".contains(c);
    (8..=128).contains(&value.len()) && value.as_bytes().iter().all(plain)
}

/// The generator of ids for requests without an id. The ids are unique, but not secret.
pub(super) struct RequestIds {
    process: u64,
    count: AtomicU64,
}

impl RequestIds {
    pub fn new() -> Self {
        let (process, _) = uuid::Uuid::new_v4().as_u64_pair();
        Self { process, count: AtomicU64::new(0) }
    }

    fn next(&self) -> HeaderValue {
        let id = format!("{:016x}{:012x}", self.process, self.count.fetch_add(1, Relaxed));
        HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static(value));
        }
        map
    }

    fn forward(lines: &[(&'static str, &'static str)], trusted: bool) -> HeaderMap {
        let mut map = headers(lines);
        let host = HeaderValue::from_static("shop.localhost:8080");
        let peer = address_value([192, 0, 2, 7].into());
        let visitor = if trusted { visitor(&map, &[]).map(address_value) } else { None };
        let visitor = visitor.unwrap_or_else(|| peer.clone());
        let origin =
            RequestOrigin { peer: &peer, visitor: &visitor, trusted, scheme: Scheme::Http, host: &host, port: Some(8080) };
        to_application(&mut map, &origin, None, &RequestIds::new());
        map
    }

    #[test]
    fn untrusted_peer_cannot_set_forwarded_headers() {
        let seen = forward(
            &[
                ("x-forwarded-for", "10.0.0.1"),
                ("x-forwarded-for", "10.0.0.2"),
                ("x_forwarded_for", "10.0.0.3"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "bank.example"),
                ("x-forwarded-prefix", "/admin"),
                ("x-real-ip", "10.0.0.4"),
                ("forwarded", "for=10.0.0.5"),
                ("x-original-url", "/admin"),
                ("x-larder-secret", "1"),
                ("proxy", "http://evil.example"),
            ],
            false,
        );
        assert_eq!(seen.get_all("x-forwarded-for").iter().collect::<Vec<_>>(), ["192.0.2.7"]);
        assert_eq!(seen["x-forwarded-proto"], "http");
        assert_eq!(seen["x-forwarded-host"], "shop.localhost:8080");
        assert_eq!(seen["x-forwarded-port"], "8080");
        assert_eq!(seen["x-real-ip"], "192.0.2.7");
        for gone in ["x_forwarded_for", "x-forwarded-prefix", "forwarded", "x-original-url", "x-larder-secret", "proxy"] {
            assert!(!seen.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn trusted_proxy_sets_address_and_scheme_only() {
        let given = [("x-forwarded-for", "198.51.100.1"), ("x-forwarded-proto", "https"), ("x-forwarded-port", "http")];
        let seen = forward(&given, true);
        assert_eq!(seen["x-forwarded-for"], "198.51.100.1, 192.0.2.7");
        assert_eq!(seen["x-forwarded-proto"], "https");
        assert_eq!(seen["x-forwarded-port"], "8080");
        assert_eq!(seen["x-real-ip"], "198.51.100.1");
        // The trusted proxy may have passed on these headers from a visitor.
        let given = [
            ("x-forwarded-host", "bank.example"),
            ("x-forwarded-prefix", "/x"),
            ("forwarded", "for=a"),
            ("x-original-url", "/x"),
        ];
        let seen = forward(&given, true);
        assert_eq!(seen["x-forwarded-host"], "shop.localhost:8080");
        for gone in ["x-forwarded-prefix", "forwarded", "x-original-url"] {
            assert!(!seen.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn visitor_is_last_untrusted_address_of_the_chain() {
        let ours: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        for (given, found) in [
            (&[("x-forwarded-for", "198.51.100.1")][..], "198.51.100.1"),
            // The visitor's own entry comes before the entry that the proxy has added.
            (&[("x-forwarded-for", "8.8.8.8, 198.51.100.1")], "198.51.100.1"),
            (&[("x-forwarded-for", "8.8.8.8"), ("x-forwarded-for", "198.51.100.1, 10.0.0.1")], "198.51.100.1"),
            (&[("x-forwarded-for", "8.8.8.8, nonsense, 10.0.0.1")], "10.0.0.1"),
            (&[("x-forwarded-for", "198.51.100.1:4711")], "198.51.100.1"),
            (&[("x-forwarded-for", "[2001:db8::1]:4711")], "2001:db8::1"),
            (&[("x-forwarded-for", "::ffff:198.51.100.1")], "198.51.100.1"),
            (&[("x-forwarded-for", "198.51.100.1"), ("x-real-ip", "8.8.8.8")], "198.51.100.1"),
            (&[("x-real-ip", "198.51.100.1")], "198.51.100.1"),
            (&[("x-forwarded-for", "unknown"), ("x-real-ip", "198.51.100.1")], "198.51.100.1"),
        ] {
            assert_eq!(visitor(&headers(given), &ours), Some(found.parse().unwrap()), "{given:?}");
        }
        assert_eq!(visitor(&headers(&[("x-forwarded-for", ""), ("x-real-ip", "me")]), &ours), None);
    }

    #[test]
    fn connection_header_cannot_remove_forwarded_headers() {
        let given = [
            ("connection", "close, X-Forwarded-For, x-forwarded-proto, X-Real-Ip, Host, Cookie, X-Hop, X-Request-Id"),
            ("x-forwarded-for", "198.51.100.1"),
            ("host", "a"),
            ("cookie", "c"),
            ("x-hop", "1"),
            ("x-request-id", "abcdefgh"),
            ("te", "trailers"),
            ("keep-alive", "300"),
        ];
        for trusted in [false, true] {
            let seen = forward(&given, trusted);
            for kept in ["x-forwarded-for", "x-forwarded-proto", "x-real-ip", "host", "cookie"] {
                assert!(seen.contains_key(kept), "{kept}");
            }
            assert_eq!(seen["x-request-id"], "abcdefgh");
            for gone in ["connection", "x-hop", "te", "keep-alive"] {
                assert!(!seen.contains_key(gone), "{gone}");
            }
        }
    }

    #[test]
    fn malformed_or_repeated_request_id_is_replaced() {
        for bad in [
            &[("x-request-id", "a b")][..],
            &[("x-request-id", "")],
            &[("x-request-id", "aaaaaaaa"), ("x-request-id", "bbbbbbbb")],
            &[],
        ] {
            let seen = forward(bad, false);
            let ids: Vec<_> = seen.get_all("x-request-id").iter().collect();
            assert_eq!(ids.len(), 1);
            assert_eq!(ids[0].len(), 28, "{ids:?}");
        }
    }

    #[test]
    fn response_has_one_length_and_no_internal_headers() {
        let mut map = headers(&[
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("x-larder-slot", "blue"),
            ("connection", "x-a"),
            ("x-a", "1"),
            ("x-b", "2"),
        ]);
        to_client(&mut map, false);
        assert_eq!(map.len(), 1, "{map:?}");
        assert!(map.contains_key("x-b"));
    }
}
