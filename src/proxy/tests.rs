//! The front door from outside: real sockets, raw bytes where the bytes matter.

use std::sync::atomic::Ordering::SeqCst;

use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{testing::*, *};

#[tokio::test]
async fn a_request_finds_its_route_by_host_however_it_is_written() {
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
async fn each_state_has_its_page() {
    let (front, route) = Front::with_route(quick()).await;
    assert!(front.get("/").await.contains("is starting"));
    route.set(State::Failed("web exited 1".into()));
    let failed = front.get("/").await;
    assert!(failed.starts_with("HTTP/1.1 503") && failed.contains("failed to start") && !failed.contains("exited"), "{failed}");
    route.set(State::Stopped);
    assert!(front.get("/").await.contains("is stopped"));
    route.switch(Target::new(Vec::new()));
    assert!(front.get("/").await.starts_with("HTTP/1.1 502"));
    assert_eq!(route.stats().classes, [0, 0, 0, 0, 4]);
}

#[tokio::test]
async fn while_routes_are_being_opened_only_who_finds_nobody_waits() {
    let (front, route) = Front::with_route(quick()).await;
    let opening = front.proxy.opening();
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
    let early = [ask("shop"), ask("late"), ask("nobody")];
    until(|| opening.waiting() == 3).await;
    route.switch(blue.target());
    assert!(front.get("/").await.ends_with("blue"));
    let late = Route::new("late/production");
    late.switch(green.target());
    front.proxy.set_route("late", late).unwrap();
    assert_eq!(opening.waiting(), 3);
    drop(opening);
    let [shop, late, nobody] = early;
    let (shop, late, nobody) = (shop.await.unwrap(), late.await.unwrap(), nobody.await.unwrap());
    assert!(shop.ends_with("blue") && late.ends_with("green"), "{shop}\n{late}");
    assert!(nobody.starts_with("HTTP/1.1 404"), "{nobody}");
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused_or_read_in_one() {
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
        // A connection that is closed with unread bytes may lose the answer on its way; it must never be a good one.
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"),
            "{request:.200} {answer}"
        );
    }
    // The second request here exists only for a reader who believes the other length.
    for lengths in ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"] {
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n";
        let answer = front.raw(format!("POST /upload HTTP/1.1\r\nHost: shop\r\n{lengths}\r\n\r\n0\r\n\r\n{smuggled}")).await;
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert!(answer.starts_with("HTTP/1.1 400") || answer.ends_with("blue took 0"), "{answer}");
    }
}

#[tokio::test]
async fn an_application_sees_who_asked_and_not_what_the_client_claims() {
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
async fn uploads_stream_and_expect_continue_works() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(b"POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await.unwrap();
    assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    assert!(read_until(&mut stream, "blue took 5").await.starts_with("HTTP/1.1 200"));
    // The same connection again, in chunks, with an extension and a trailer that must not arrive.
    stream
        .write_all(b"POST /upload HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\nTrailer: X-Forwarded-For\r\n\r\n3;a=b\r\nabc\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
        .await
        .unwrap();
    assert!(read_until(&mut stream, "blue took 3").await.starts_with("HTTP/1.1 200"));
    assert_eq!(route.stats().bytes_in, 8);
    // A client that leaves in the middle is not a whole upload for the application.
    let before = route.stats().requests;
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(b"POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 50\r\n\r\nhello").await.unwrap();
    until(|| route.stats().bytes_in == 13).await;
    drop(stream);
    until(|| route.stats().requests == before + 1).await;
    assert_eq!(route.stats().in_flight, 0);
    assert!(front.get("/").await.ends_with("blue"), "a broken upload poisons no connection");
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
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
