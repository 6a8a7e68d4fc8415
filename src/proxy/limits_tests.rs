//! Tests of invalid responses, of the limits on sizes, times and connections, of the access log, of the graceful shutdown, and of the
//! failures of a probe.

use std::{net::IpAddr, time::Duration};

use tokio::{io::AsyncWriteExt, net::TcpStream, sync::mpsc};

use super::{testing::*, *};

#[tokio::test]
async fn invalid_response_of_an_application_becomes_502_or_504() {
    let settings = ProxySettings { response_timeout: Duration::from_secs(1), ..quick() };
    let (front, route) = Front::with_route(settings).await;
    let endless = [b"HTTP/1.1 200 OK\r\nX-Big: ".to_vec(), vec![b'a'; 4 << 20]].concat();
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-A: 1\r\n".repeat(10_000)).into_bytes();
    let table: Vec<(Option<Vec<u8>>, &str)> = vec![
        (None, "504"),
        (Some(Vec::new()), "502"),
        (Some(endless), "502"),
        (Some(many), "502"),
        (Some(b"nonsense\r\n\r\n".to_vec()), "502"),
        (Some(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_vec()), "502"),
        (Some(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".to_vec()), "502"),
    ];
    for (number, (answer, status)) in table.into_iter().enumerate() {
        route.switch(tcp(vec![scripted(answer).await]));
        let answer = front.get("/").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{number}: {answer}");
    }
    // Interim responses are skipped.
    let interim = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
    route.switch(tcp(vec![scripted(Some([interim, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()].concat())).await]));
    assert!(front.get("/").await.ends_with("ok"));
    // Bytes after the end of the body are dropped.
    route.switch(tcp(vec![
        scripted(Some(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nevil".to_vec())).await,
    ]));
    for _ in 0..5 {
        let answer = front.get("/").await;
        assert!(answer.ends_with("ok") && !answer.contains("evil"), "{answer}");
    }
    // A truncated body closes the client's connection.
    route.switch(tcp(vec![scripted(Some(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort".to_vec())).await]));
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    let cut = read_all(&mut stream).await;
    assert!(cut.contains("content-length: 9"), "{cut}");
    route
        .switch(tcp(vec![scripted(Some(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n".to_vec())).await]));
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    assert!(!read_all(&mut stream).await.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn stalled_client_is_disconnected() {
    let settings =
        ProxySettings { header_timeout: Duration::from_millis(500), stall_timeout: Duration::from_millis(500), ..quick() };
    let (front, route) = Front::with_route(settings).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    // One client does not finish the head of its request, and one client does not finish the body.
    let mut head = TcpStream::connect(front.address).await.unwrap();
    head.write_all(b"GET / HTTP/1.1\r\nHost: sh").await.unwrap();
    assert!(!read_all(&mut head).await.contains("200"));
    let mut body = TcpStream::connect(front.address).await.unwrap();
    body.write_all(b"POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 9\r\n\r\nab").await.unwrap();
    let answer = read_all(&mut body).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    // A client requests a large response and reads nothing.
    let before = route.stats().requests;
    let mut greedy = TcpStream::connect(front.address).await.unwrap();
    greedy.write_all(b"GET /big HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    until(|| route.stats().requests == before + 1).await;
    assert!(route.stats().bytes_out < 32 << 20);
    assert_eq!(route.stats().in_flight, 0);
    drop(greedy);
}

#[tokio::test]
async fn response_before_the_end_of_an_upload_reaches_the_client() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    for _ in 0..5 {
        let mut stream = TcpStream::connect(front.address).await.unwrap();
        stream.write_all(b"POST /status/404 HTTP/1.1\r\nHost: shop\r\nContent-Length: 50\r\n\r\nhello").await.unwrap();
        assert!(read_until(&mut stream, "none").await.starts_with("HTTP/1.1 404"));
        // The connection to the application still expects 45 bytes. The next request must not be sent as those bytes.
        assert!(front.get("/").await.ends_with("blue"));
    }
}

#[tokio::test]
async fn upload_that_the_application_does_not_read_times_out() {
    let settings = ProxySettings { stall_timeout: Duration::from_millis(500), response_timeout: LONG * 9, ..quick() };
    let (front, route) = Front::with_route(settings).await;
    route.switch(tcp(vec![scripted(None).await]));
    let mut hung = TcpStream::connect(front.address).await.unwrap();
    hung.write_all(b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 100000000\r\n\r\n").await.unwrap();
    let (mut answer, mut body) = hung.split();
    let upload = async {
        // Writes fail once the connection is closed.
        while body.write_all(&[0; 64 * 1024]).await.is_ok() {}
        std::future::pending::<()>().await
    };
    tokio::select! {
        head = read_until(&mut answer, "\r\n\r\n") => assert!(head.starts_with("HTTP/1.1 504"), "{head}"),
        () = upload => {}
    }
    // The stall timeout also ends the upload of a client that has disconnected.
    let mut left = TcpStream::connect(front.address).await.unwrap();
    left.write_all(b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 100000000\r\n\r\n").await.unwrap();
    let filled = async { while left.write_all(&[0; 64 * 1024]).await.is_ok() {} };
    let _ = tokio::time::timeout(Duration::from_millis(200), filled).await;
    drop(left);
    until(|| route.stats().in_flight == 0).await;
    // A client that sends slowly is not disconnected.
    let app = App::start("blue").await;
    route.switch(app.target());
    let mut slow = TcpStream::connect(front.address).await.unwrap();
    slow.write_all(b"POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\nConnection: close\r\n\r\n").await.unwrap();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        slow.write_all(b"x").await.unwrap();
    }
    assert!(read_all(&mut slow).await.ends_with("blue took 5"));
}

#[tokio::test]
async fn connections_above_the_limit_of_a_client_get_429() {
    let (front, route) = Front::with_route(ProxySettings { max_connections_per_peer: 2, ..quick() }).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let first = socket(&front).await;
    let mut second = socket(&front).await;
    // This client sends no request. If the proxy closed a connection with unread data, the reset could discard the response.
    let answer = read_all(&mut TcpStream::connect(front.address).await.unwrap()).await;
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("\r\nRetry-After: 5\r\n"), "{answer}");
    assert!(answer.contains("\r\nDate: "), "{answer}");
    until(|| front.proxy.stats().turned_away >= 1).await;
    echo(&mut second, "still here").await;
    drop(first);
    // The permit is returned at the end of the tunnel, not at the upgrade.
    until(|| front.proxy.stats().open == 1).await;
    assert!(front.get("/").await.ends_with("blue"));
}

#[tokio::test]
async fn visitors_behind_a_trusted_proxy_have_separate_limits() {
    let trusted = vec!["127.0.0.1".parse().unwrap()];
    let settings = ProxySettings { max_connections_per_peer: 1, trusted, scheme: Scheme::Https, ..quick() };
    let (front, route) = Front::with_route(settings).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let (sender, mut lines) = mpsc::channel(8);
    front.proxy.access_log(sender);
    let ask = async |visitor: &str, path: &str| {
        let mut stream = TcpStream::connect(front.address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: shop\r\nX-Forwarded-For: 8.8.8.8, {visitor}\r\nX-Real-IP: 8.8.8.8\r\n");
        stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).await.unwrap();
        stream
    };
    let mut first = ask("192.0.2.1", "/events").await;
    assert!(read_until(&mut first, "data: blue").await.starts_with("HTTP/1.1 200"));
    let second = read_all(&mut ask("192.0.2.1", "/").await).await;
    assert!(second.starts_with("HTTP/1.1 429") && second.contains("Too many requests"), "{second}");
    assert!(second.to_lowercase().contains("\r\nretry-after: 3\r\n"), "{second}");
    let other = read_all(&mut ask("192.0.2.2", "/headers").await).await;
    for line in ["x-real-ip=192.0.2.2", "x-forwarded-for=8.8.8.8, 192.0.2.2, 127.0.0.1", "x-forwarded-proto=https"] {
        assert!(other.contains(line), "{line} is not in {other}");
    }
    assert!(other.contains("x-forwarded-port=443"), "{other}");
    assert_eq!(lines.recv().await.unwrap().peer, "192.0.2.2".parse::<IpAddr>().unwrap());
    drop(first);
    until(|| route.stats().in_flight == 0).await;
    assert!(read_all(&mut ask("192.0.2.1", "/").await).await.ends_with("blue"));
    // The connections of a trusted proxy that states no visitor are not counted.
    let (silent, also) = (front.get("/events"), front.get("/"));
    tokio::pin!(silent);
    tokio::select! { _ = &mut silent => panic!("the stream of events ended"), answer = also => assert!(answer.ends_with("blue"), "{answer}") }
}

#[tokio::test]
async fn full_access_log_drops_lines_and_counts_them() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let (sender, mut lines) = mpsc::channel(1);
    front.proxy.access_log(sender);
    for number in 0..4 {
        front.get(&format!("/{number}")).await;
    }
    until(|| route.stats().requests == 4).await;
    let line = lines.recv().await.unwrap();
    assert_eq!((line.path.as_str(), line.status, line.bytes_out, line.missed), ("/0", 200, 4, 0));
    assert_eq!((&*line.route, line.host.as_str()), ("shop/production", "shop"));
    front.get("/status/404").await;
    let line = lines.recv().await.unwrap();
    assert_eq!((line.path.as_str(), line.status, line.missed), ("/status/404", 404, 3));
    assert_eq!(route.stats().classes, [0, 4, 0, 1, 0]);
}

#[tokio::test]
async fn shutdown_closes_tunnels_and_idle_connections() {
    let settings = ProxySettings { shutdown_limit: Duration::from_millis(200), ..quick() };
    let (mut front, route) = Front::with_route(settings).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let mut tunnel = socket(&front).await;
    let mut idle = TcpStream::connect(front.address).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    read_until(&mut idle, "blue").await;
    front.shutdown.cancel();
    assert_eq!(read_all(&mut tunnel).await, CLOSE_FRAME);
    tokio::time::timeout(LONG, &mut front.serving).await.expect("the server did not stop").unwrap();
    assert_eq!(read_all(&mut idle).await, "");
    assert!(TcpStream::connect(front.address).await.is_err());
}

#[tokio::test]
async fn shutdown_cuts_tunnels_before_requests() {
    let (mut front, route) = Front::with_route(ProxySettings { shutdown_limit: LONG, ..quick() }).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let mut tunnel = socket(&front).await;
    let mut request = TcpStream::connect(front.address).await.unwrap();
    request.write_all(b"GET /events HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    read_until(&mut request, "data: blue").await;
    let begun = std::time::Instant::now();
    front.shutdown.cancel();
    assert_eq!(read_all(&mut tunnel).await, CLOSE_FRAME);
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
    app.tick.send(()).unwrap();
    read_until(&mut request, "data: blue").await;
    assert!(!front.serving.is_finished());
    app.kill();
    tokio::time::timeout(LONG, &mut front.serving).await.expect("the server did not stop").unwrap();
}

#[tokio::test]
async fn probe_distinguishes_its_failures() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    assert_eq!(probe(&TcpConnector::default(), front.address, "/", "shop", LONG).await.unwrap(), 200);
    assert_eq!(probe(&TcpConnector::default(), front.address, "/status/404", "shop", LONG).await.unwrap(), 404);
    assert!(matches!(
        probe(&TcpConnector::default(), app.address, "no slash", "shop", LONG).await,
        Err(ProbeError::Request { .. })
    ));
    assert!(matches!(
        probe(&TcpConnector::default(), app.address, "/", "a\r\nb: c", LONG).await,
        Err(ProbeError::Request { .. })
    ));
    let silent = scripted(None).await;
    assert!(matches!(
        probe(&TcpConnector::default(), silent, "/", "shop", Duration::from_millis(20)).await,
        Err(ProbeError::Timeout { .. })
    ));
    let closing = scripted(Some(Vec::new())).await;
    assert!(matches!(probe(&TcpConnector::default(), closing, "/", "shop", LONG).await, Err(ProbeError::Exchange { .. })));
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(matches!(probe(&TcpConnector::default(), gone, "/", "shop", LONG).await, Err(ProbeError::Connect(_))));
}

#[tokio::test]
async fn websocket_of_a_stopped_release_gets_a_close_frame_and_requests_continue() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let mut tunnel = socket(&front).await;
    // A frame with two bytes of text.
    echo(&mut tunnel, "\u{1}\u{2}hi").await;
    let mut request = TcpStream::connect(front.address).await.unwrap();
    request.write_all(b"GET /events HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    read_until(&mut request, "data: blue").await;
    let retired = route.set(RouteState::Starting).expect("blue was live");
    retired.close_tunnels();
    assert_eq!(read_all(&mut tunnel).await, CLOSE_FRAME);
    drop(tunnel);
    until(|| retired.in_flight() == 1).await;
    app.tick.send(()).unwrap();
    read_until(&mut request, "data: blue").await;
}
