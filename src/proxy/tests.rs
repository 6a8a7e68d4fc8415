//! Tests of routing, of the validation of requests, of headers, of uploads and of connectors, over real sockets.

use std::{net::SocketAddr, sync::atomic::Ordering::SeqCst};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{testing::*, *};

#[tokio::test]
async fn request_is_routed_by_host_in_any_spelling() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    assert!(route.switch(app.target()).is_none());
    for host in ["shop", "SHOP", "shop.", "shop:8080", "Shop.:1"] {
        let answer = front.raw(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("blue"), "{answer}");
    }
    let absolute = front.raw("GET http://shop/headers?q=1 HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
    assert!(absolute.contains("GET /headers?q=1\n"), "{absolute}");
    let old = front.raw("GET /headers HTTP/1.0\r\nHost: shop\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200") && old.contains("host=shop"), "{old}");
    let unknown = front.raw("GET / HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n").await;
    assert!(unknown.starts_with("HTTP/1.1 404") && !unknown.contains("shop"), "{unknown}");
    assert!(front.proxy.set_route("no host", route.clone()).is_err());
    assert!(front.proxy.remove_route("SHOP.").is_some());
    assert!(front.get("/").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn route_state_determines_the_page() {
    let (front, route) = Front::with_route(quick()).await;
    assert!(front.get("/").await.contains("is starting"));
    route.set(RouteState::Failed("web exited 1".into()));
    let failed = front.get("/").await;
    assert!(failed.starts_with("HTTP/1.1 503") && failed.contains("failed to start") && !failed.contains("exited"), "{failed}");
    route.set(RouteState::Stopped);
    assert!(front.get("/").await.contains("is stopped"));
    route.switch(tcp(Vec::new()));
    assert!(front.get("/").await.starts_with("HTTP/1.1 502"));
    assert_eq!(route.stats().classes, [0, 0, 0, 0, 4]);
}

#[tokio::test]
async fn startup_gate_delays_only_requests_without_a_live_route() {
    let (front, route) = Front::with_route(quick()).await;
    let gate = front.proxy.close_startup_gate();
    let (blue, green) = (App::start("blue").await, App::start("green").await);
    let ask = |host: &'static str| {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let address = front.address;
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            read_all(&mut stream).await
        })
    };
    let early = [ask("shop"), ask("late"), ask("unknown")];
    until(|| gate.waiting() == 3).await;
    route.switch(blue.target());
    assert!(front.get("/").await.ends_with("blue"));
    let late = Route::new("late/production");
    late.switch(green.target());
    front.proxy.set_route("late", late).unwrap();
    assert_eq!(gate.waiting(), 3);
    drop(gate);
    let [shop, late, unknown] = early;
    let (shop, late, unknown) = (shop.await.unwrap(), late.await.unwrap(), unknown.await.unwrap());
    assert!(shop.ends_with("blue") && late.ends_with("green"), "{shop}\n{late}");
    assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
}

#[tokio::test]
async fn ambiguous_request_is_rejected() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let many: String = (0..10_000).map(|n| format!("X-{n}: 1\r\n")).collect();
    let big = format!("X-Big: {}\r\n", "a".repeat(1 << 20));
    let refused = [
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "GET / HTTP/1.0\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: shop\r\nHost: shop\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: shop, other\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: shop\r\nX-A: 1\r\n folded\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: shop\r\nX-A: \0\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost : shop\r\n\r\n".into(),
        "GET http://other/ HTTP/1.1\r\nHost: shop\r\n\r\n".into(),
        "GET ftp://shop/ HTTP/1.1\r\nHost: shop\r\n\r\n".into(),
        "GET http://user@shop/ HTTP/1.1\r\nHost: shop\r\n\r\n".into(),
        "CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\n\r\n".into(),
        "TRACE / HTTP/1.1\r\nHost: shop\r\n\r\n".into(),
        "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd".into(),
        "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 3, 3\r\n\r\nabc".into(),
        "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: +3\r\n\r\nabc".into(),
        "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n".into(),
        "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".into(),
        "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        "POST / HTTP/1.0\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        "POST / HTTP/1.1\r\nHost: shop\r\nExpect: miracles\r\nContent-Length: 1\r\n\r\na".into(),
        "POST /upload HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".into(),
        "POST /upload HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\na".into(),
        format!("POST /upload HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n1;{}\r\na", "e".repeat(1 << 20)),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
        format!("GET / HTTP/1.1\r\nHost: shop\r\n{many}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: shop\r\n{big}\r\n"),
        "\u{16}\u{3}\u{1}".to_owned() + "\r\n\r\n",
    ];
    for request in refused {
        let answer = front.raw(&request).await;
        // Closing a connection with unread bytes may lose the response. A response that does arrive must be an error.
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"),
            "{request:.200} {answer}"
        );
    }
    // A request with both lengths is ambiguous, so the text after its body must not be answered as a second request.
    for lengths in ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"] {
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n";
        let answer = front.raw(format!("POST /upload HTTP/1.1\r\nHost: shop\r\n{lengths}\r\n\r\n0\r\n\r\n{smuggled}")).await;
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert!(answer.starts_with("HTTP/1.1 400") || answer.ends_with("blue took 0"), "{answer}");
    }
}

#[tokio::test]
async fn application_receives_the_peer_and_no_forged_headers() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let seen = front
        .raw(
            "GET /headers HTTP/1.1\r\nHost: Shop:81\r\nConnection: close, X-Forwarded-For, X-Drop\r\nX-Drop: 1\r\nX-Forwarded-For: 1.2.3.4\r\n\
             X-Forwarded-Proto: https\r\nX_Forwarded_For: 1.2.3.4\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nAccept: a\r\n\r\n",
        )
        .await;
    for line in [
        "host=Shop:81",
        "x-forwarded-for=127.0.0.1",
        "x-forwarded-proto=http",
        "x-forwarded-host=Shop:81",
        "x-forwarded-port=81",
        "accept=a",
    ] {
        assert!(seen.contains(&format!("{line}\n")) || seen.ends_with(line), "{line} in {seen}");
    }
    for gone in ["1.2.3.4", "x-drop", "connection=", "upgrade", "http2"] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
    assert!(seen.contains("x-request-id="), "{seen}");
}

#[tokio::test]
async fn upload_with_expect_continue_is_streamed() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(b"POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await.unwrap();
    assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    assert!(read_until(&mut stream, "blue took 5").await.starts_with("HTTP/1.1 200"));
    // The next upload on the same connection is chunked, with an extension and a trailer, which must not reach the application.
    stream
        .write_all(b"POST /upload HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\nTrailer: X-Forwarded-For\r\n\r\n3;a=b\r\nabc\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
        .await
        .unwrap();
    assert!(read_until(&mut stream, "blue took 3").await.starts_with("HTTP/1.1 200"));
    assert_eq!(route.stats().bytes_in, 8);
    // An upload that the client aborts must not look complete to the application.
    let before = route.stats().requests;
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(b"POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 50\r\n\r\nhello").await.unwrap();
    until(|| route.stats().bytes_in == 13).await;
    drop(stream);
    until(|| route.stats().requests == before + 1).await;
    assert_eq!(route.stats().in_flight, 0);
    assert!(front.get("/").await.ends_with("blue"), "the connection of a broken upload is not reused");
}

#[tokio::test]
async fn connections_to_client_and_application_are_reused() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    for _ in 0..50 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
        assert!(read_until(&mut stream, "blue").await.starts_with("HTTP/1.1 200"));
    }
    stream.write_all(b"HEAD / HTTP/1.1\r\nHost: shop\r\n\r\nGET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    assert!(read_until(&mut stream, "blue").await.contains("content-length: 4"));
    assert_eq!(app.connections.load(SeqCst), 1);
    assert_eq!(front.proxy.stats().accepted, 1);
}

#[tokio::test]
async fn refused_methods_and_expectations_get_the_status_and_headers_of_rfc_9110() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    for method in ["CONNECT", "TRACE"] {
        let target = if method == "CONNECT" { "shop:80" } else { "/" };
        let answer = front.raw(format!("{method} {target} HTTP/1.1\r\nHost: shop:80\r\n\r\n")).await.to_lowercase();
        assert!(answer.starts_with("http/1.1 405"), "{answer}");
        assert!(answer.contains("\r\nallow: get, head, post, put, patch, delete, options\r\n"), "{answer}");
    }
    let answer = front.raw("POST / HTTP/1.1\r\nHost: shop\r\nExpect: miracles\r\nContent-Length: 1\r\n\r\na").await;
    assert!(answer.starts_with("HTTP/1.1 417"), "{answer}");
    let answer = front.raw("GET * HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn options_with_max_forwards_is_counted_down_and_answered_at_zero() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let ask = async |left: &str| {
        let request = format!("OPTIONS /headers HTTP/1.1\r\nHost: shop\r\nMax-Forwards: {left}\r\nConnection: close\r\n\r\n");
        front.raw(request).await.to_lowercase()
    };
    let passed = ask("5").await;
    assert!(passed.contains("options /headers\n") && passed.contains("max-forwards=4"), "{passed}");
    let last = ask("0").await;
    assert!(last.starts_with("http/1.1 204") && last.contains("\r\nallow: get, head,"), "{last}");
}

/// A connector that connects every address to one listener. A connector for addresses in a network namespace would do the same.
struct FakeConnector {
    listener: SocketAddr,
    asked: Mutex<Vec<SocketAddr>>,
}

impl Connector for FakeConnector {
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, Result<TcpStream, ConnectError>> {
        self.asked.lock().push(address);
        let connected = TcpStream::connect(self.listener);
        Box::pin(async move { connected.await.map_err(|source| ConnectError::Io { address, source }) })
    }
}

#[tokio::test]
async fn requests_and_probes_use_only_the_connector_of_their_target() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    // The address is reserved for documentation (RFC 5737), so it can be reached only through the connector.
    let address: SocketAddr = "192.0.2.1:80".parse().unwrap();
    let connector = Arc::new(FakeConnector { listener: app.address, asked: Mutex::default() });
    route.switch(RouteTarget::new(vec![address], connector.clone()));
    assert!(front.get("/").await.ends_with("blue"));
    let mut tunnel = socket(&front).await;
    echo(&mut tunnel, "through the tunnel").await;
    assert_eq!(probe(&*connector, address, "/status/404", "shop", LONG).await.unwrap(), 404);
    assert!(!connector.is_foreign(address));
    let asked = connector.asked.lock().clone();
    assert!(asked.len() >= 2 && asked.iter().all(|asked| *asked == address), "{asked:?}");
}

#[tokio::test]
async fn target_of_another_user_is_not_reached() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("foreign").await;
    let other = rustix::process::geteuid().as_raw() + 1;
    route.switch(RouteTarget::new(vec![app.address], Arc::new(TcpConnector::new(Some(other)))));
    let answer = front.get("/").await;
    assert!(answer.starts_with("HTTP/1.1 502") && !answer.contains("foreign"), "{answer}");
}
