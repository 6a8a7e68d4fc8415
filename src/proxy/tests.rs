//! The front door from outside: real sockets, raw bytes where the bytes matter.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

use super::{testing::*, *};

fn quick() -> ProxySettings {
    ProxySettings { connect_patience: Duration::from_millis(100), ..ProxySettings::default() }
}

async fn socket(front: &Front) -> TcpStream {
    let mut socket = TcpStream::connect(front.address).await.unwrap();
    let request = "GET /socket HTTP/1.1\r\nHost: shop\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let head = read_until(&mut socket, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.to_lowercase().contains("upgrade: websocket"), "{head}");
    socket
}

async fn echo(socket: &mut TcpStream, text: &str) {
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut back = vec![0; text.len()];
    tokio::time::timeout(LONG, socket.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, text.as_bytes());
}

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

#[tokio::test]
async fn a_switch_under_load_loses_nothing() {
    let (front, route) = Front::with_route(quick()).await;
    let front = Arc::new(front);
    let first = App::start("blue").await;
    route.switch(first.target());

    let mut tunnel = socket(&front).await;
    echo(&mut tunnel, "before").await;
    let mut events = TcpStream::connect(front.address).await.unwrap();
    events.write_all(b"GET /events HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    read_until(&mut events, "data: blue\n\n\r\n").await;
    let mut upload = TcpStream::connect(front.address).await.unwrap();
    upload.write_all(b"POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 20\r\n\r\n").await.unwrap();
    until(|| route.stats().in_flight == 3).await;

    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let loops: Vec<_> = (0..6)
        .map(|number| {
            let (front, stop, asked) = (front.clone(), stop.clone(), asked.clone());
            tokio::spawn(async move {
                let mut kept = TcpStream::connect(front.address).await.unwrap();
                while !stop.load(SeqCst) {
                    // Half of them reuse a connection, half make a new one; some post.
                    let answer = match number % 3 {
                        0 => front.get("/").await,
                        1 => {
                            kept.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
                            read_until(&mut kept, "app").await
                        }
                        _ => {
                            kept.write_all(b"POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\n\r\nabc").await.unwrap();
                            read_until(&mut kept, "took 3").await
                        }
                    };
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                    asked.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    let mut live = App::start("app").await;
    let opening = route.switch(live.target()).expect("blue was live");
    for round in 0..20 {
        let before = asked.load(SeqCst);
        until(|| asked.load(SeqCst) > before + 3).await;
        let next = App::start("app").await;
        let retired = route.switch(next.target()).expect("something was live");
        let report = retired.drain(LONG).await;
        assert_eq!(report.cut, 0);
        // What was drained may die at once.
        live.kill();
        live = next;
        echo(&mut tunnel, "during").await;
        upload.write_all(b"x").await.unwrap();
        first.tick.send(()).unwrap();
        assert!(read_until(&mut events, "data: blue\n\n\r\n").await.contains("blue"), "round {round}");
    }
    stop.store(true, SeqCst);
    for asking in loops {
        asking.await.unwrap();
    }
    assert!(read_until(&mut upload, "blue took 20").await.starts_with("HTTP/1.1 200"));
    assert_eq!(route.stats().classes[4], 0);

    // The tunnel and the stream are still on the very first target; the limit cuts them, and says so.
    until(|| opening.in_flight() == 2).await;
    let report = opening.drain(Duration::from_millis(20)).await;
    assert_eq!(report, DrainReport { finished: 0, cut: 2 });
    assert_eq!(read_all(&mut tunnel).await, "");
    assert!(!read_all(&mut events).await.ends_with("0\r\n\r\n"), "a cut stream must not look complete");
    until(|| route.stats().in_flight == 0).await;
}

#[tokio::test]
async fn a_request_on_a_connection_that_just_died_goes_another_way() {
    let (front, route) = Front::with_route(quick()).await;
    for _ in 0..20 {
        let old = App::start("blue").await;
        route.switch(old.target());
        assert!(front.get("/").await.ends_with("blue"));
        let new = App::start("green").await;
        old.kill();
        // Bound and never listening: another test must not get this port and answer in the dead one's place.
        let seat = tokio::net::TcpSocket::new_v4().unwrap();
        seat.set_reuseaddr(true).unwrap();
        let _ = seat.bind(old.address);
        // Same target, other instance, as after a restart: the kept connection is dead, and maybe not yet known to be.
        assert!(route.retarget(&[old.address, new.address]));
        let answer = front.get("/").await;
        assert!(answer.ends_with("green"), "{answer}");
    }
}

#[tokio::test]
async fn only_a_request_that_may_run_twice_is_sent_twice() {
    let (front, route) = Front::with_route(quick()).await;
    // Answers the first request of each connection, and closes at the second without a word.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", ""] {
                    read_until(&mut stream, "\r\n\r\n").await;
                    counted.fetch_add(1, SeqCst);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    route.switch(Target::new(vec![address]));
    assert!(front.get("/").await.ends_with("ok"));
    assert!(front.get("/").await.ends_with("ok"), "the kept connection broke, a new one did not");
    assert_eq!((seen.load(SeqCst), route.stats().retried), (3, 1));
    let post = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    // Refused if it met the kept connection; answered if that had idled for too long to be risked. Seen once in any case.
    front.raw(post).await;
    assert_eq!((seen.load(SeqCst), route.stats().retried), (4, 1));
}

#[tokio::test]
async fn instances_take_turns_and_one_that_refuses_is_skipped() {
    let (front, route) = Front::with_route(quick()).await;
    let (one, two) = (App::start("one").await, App::start("two").await);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    route.switch(Target::new(vec![one.address, gone, two.address]));
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..12 {
        let answer = front.get("/").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        *seen.entry(answer[answer.len() - 3..].to_owned()).or_insert(0) += 1;
    }
    assert!(seen.get("one").is_some_and(|n| *n >= 3) && seen.get("two").is_some_and(|n| *n >= 3), "{seen:?}");
}

#[tokio::test]
async fn a_hold_keeps_requests_waiting_and_lets_them_go_to_the_new_target() {
    let (front, route) = Front::with_route(ProxySettings { max_waiting: 3, ..quick() }).await;
    let (front, old, new) = (Arc::new(front), App::start("old").await, App::start("new").await);
    route.switch(old.target());
    let hold = route.hold(LONG);
    assert_eq!(hold.settle(LONG).await, 0);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let front = front.clone();
            tokio::spawn(async move { front.get("/").await })
        })
        .collect();
    until(|| route.waiting() == 3).await;
    let too_many = front.get("/").await;
    assert!(too_many.starts_with("HTTP/1.1 503") && too_many.to_lowercase().contains("retry-after: "), "{too_many}");
    // A client that leaves gives up its place.
    assert_eq!(route.stats().in_flight, 3);
    let _ = route.switch(new.target());
    hold.release();
    for waited in waiting {
        assert!(waited.await.unwrap().ends_with("new"));
    }
    assert_eq!(route.waiting(), 0);

    let hold = route.hold(Duration::ZERO);
    assert!(hold.is_over());
    assert!(front.get("/").await.contains("Back in a moment"));
    drop(hold);
    assert!(front.get("/").await.ends_with("new"));
}

#[tokio::test]
async fn a_client_that_leaves_a_hold_gives_up_its_place() {
    let (front, route) = Front::with_route(quick()).await;
    let _hold = route.hold(LONG);
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    until(|| route.waiting() == 1).await;
    drop(stream);
    until(|| route.waiting() == 0 && route.stats().requests == 1).await;
}

#[tokio::test]
async fn bad_answers_of_an_application_are_bounded_and_said() {
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
        route.switch(Target::new(vec![scripted(answer).await]));
        let answer = front.get("/").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{number}: {answer}");
    }
    // Interim answers are no answers.
    let interim = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
    route.switch(Target::new(vec![
        scripted(Some([interim, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()].concat())).await,
    ]));
    assert!(front.get("/").await.ends_with("ok"));
    // Bytes beyond the length belong to nobody.
    route.switch(Target::new(vec![
        scripted(Some(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nevil".to_vec())).await,
    ]));
    for _ in 0..5 {
        let answer = front.get("/").await;
        assert!(answer.ends_with("ok") && !answer.contains("evil"), "{answer}");
    }
    // A body that ends too early ends the client's connection too.
    route.switch(Target::new(vec![scripted(Some(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort".to_vec())).await]));
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    let cut = read_all(&mut stream).await;
    assert!(cut.contains("content-length: 9"), "{cut}");
    route.switch(Target::new(vec![
        scripted(Some(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n".to_vec())).await,
    ]));
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    assert!(!read_all(&mut stream).await.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn slow_clients_are_let_go() {
    let settings =
        ProxySettings { header_timeout: Duration::from_millis(500), stall_timeout: Duration::from_millis(500), ..quick() };
    let (front, route) = Front::with_route(settings).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    // A head that never ends, and a body that stops.
    let mut head = TcpStream::connect(front.address).await.unwrap();
    head.write_all(b"GET / HTTP/1.1\r\nHost: sh").await.unwrap();
    assert!(!read_all(&mut head).await.contains("200"));
    let mut body = TcpStream::connect(front.address).await.unwrap();
    body.write_all(b"POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 9\r\n\r\nab").await.unwrap();
    let answer = read_all(&mut body).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    // A client that asks for much and takes nothing.
    let before = route.stats().requests;
    let mut greedy = TcpStream::connect(front.address).await.unwrap();
    greedy.write_all(b"GET /big HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    until(|| route.stats().requests == before + 1).await;
    assert!(route.stats().bytes_out < 32 << 20);
    assert_eq!(route.stats().in_flight, 0);
    drop(greedy);
}

#[tokio::test]
async fn an_answer_before_the_end_of_an_upload_reaches_the_client() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    for _ in 0..5 {
        let mut stream = TcpStream::connect(front.address).await.unwrap();
        stream.write_all(b"POST /status/404 HTTP/1.1\r\nHost: shop\r\nContent-Length: 50\r\n\r\nhello").await.unwrap();
        assert!(read_until(&mut stream, "none").await.starts_with("HTTP/1.1 404"));
        // The connection to the application still waits for 45 bytes; the next request must not become them.
        assert!(front.get("/").await.ends_with("blue"));
    }
}

#[tokio::test]
async fn an_upload_that_the_application_does_not_take_ends() {
    let settings = ProxySettings { stall_timeout: Duration::from_millis(500), response_timeout: LONG * 9, ..quick() };
    let (front, route) = Front::with_route(settings).await;
    route.switch(Target::new(vec![scripted(None).await]));
    let mut hung = TcpStream::connect(front.address).await.unwrap();
    hung.write_all(b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 100000000\r\n\r\n").await.unwrap();
    let (mut answer, mut body) = hung.split();
    let upload = async {
        // Until the connection breaks off.
        while body.write_all(&[0; 64 * 1024]).await.is_ok() {}
        std::future::pending::<()>().await
    };
    tokio::select! {
        head = read_until(&mut answer, "\r\n\r\n") => assert!(head.starts_with("HTTP/1.1 504"), "{head}"),
        () = upload => {}
    }
    // Somebody who has left by then costs nothing for longer than that either.
    let mut left = TcpStream::connect(front.address).await.unwrap();
    left.write_all(b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 100000000\r\n\r\n").await.unwrap();
    let filled = async { while left.write_all(&[0; 64 * 1024]).await.is_ok() {} };
    let _ = tokio::time::timeout(Duration::from_millis(200), filled).await;
    drop(left);
    until(|| route.stats().in_flight == 0).await;
    // A client that sends slowly, but sends, is not cut by that.
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
async fn connections_have_a_limit_that_is_said() {
    let (front, route) = Front::with_route(ProxySettings { max_connections_per_peer: 2, ..quick() }).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let first = socket(&front).await;
    let mut second = socket(&front).await;
    let answer = front.get("/").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503"), "{answer}");
    until(|| front.proxy.stats().turned_away >= 1).await;
    echo(&mut second, "still here").await;
    drop(first);
    // A place becomes free when the tunnel has ended, not when HTTP has.
    until(|| front.proxy.stats().open == 1).await;
    assert!(front.get("/").await.ends_with("blue"));
}

#[tokio::test]
async fn visitors_behind_a_trusted_proxy_are_told_apart() {
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
    assert!(second.starts_with("HTTP/1.1 503") && second.contains("Too many requests"), "{second}");
    let other = read_all(&mut ask("192.0.2.2", "/headers").await).await;
    for line in ["x-real-ip=192.0.2.2", "x-forwarded-for=8.8.8.8, 192.0.2.2, 127.0.0.1", "x-forwarded-proto=https"] {
        assert!(other.contains(line), "{line} is not in {other}");
    }
    assert!(other.contains("x-forwarded-port=443"), "{other}");
    assert_eq!(lines.recv().await.unwrap().peer, "192.0.2.2".parse::<IpAddr>().unwrap());
    drop(first);
    until(|| route.stats().in_flight == 0).await;
    assert!(read_all(&mut ask("192.0.2.1", "/").await).await.ends_with("blue"));
    // A proxy that says nothing about its visitors does not become one that is counted.
    let (silent, also) = (front.get("/events"), front.get("/"));
    tokio::pin!(silent);
    tokio::select! { _ = &mut silent => panic!("it goes on for ever"), answer = also => assert!(answer.ends_with("blue"), "{answer}") }
}

#[tokio::test]
async fn the_access_log_never_waits_and_says_what_it_lost() {
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
async fn a_stop_lets_requests_finish_up_to_the_limit() {
    let settings = ProxySettings { shutdown_limit: Duration::from_millis(200), ..quick() };
    let (mut front, route) = Front::with_route(settings).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let mut tunnel = socket(&front).await;
    let mut idle = TcpStream::connect(front.address).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    read_until(&mut idle, "blue").await;
    front.shutdown.cancel();
    tokio::time::timeout(LONG, &mut front.serving).await.expect("it stops").unwrap();
    assert_eq!(read_all(&mut tunnel).await, "");
    assert_eq!(read_all(&mut idle).await, "");
    assert!(TcpStream::connect(front.address).await.is_err());
}

#[tokio::test]
async fn a_stop_does_not_wait_for_tunnels_as_long_as_for_requests() {
    let (mut front, route) = Front::with_route(ProxySettings { shutdown_limit: LONG, ..quick() }).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    let mut tunnel = socket(&front).await;
    let mut request = TcpStream::connect(front.address).await.unwrap();
    request.write_all(b"GET /events HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    read_until(&mut request, "data: blue").await;
    let begun = std::time::Instant::now();
    front.shutdown.cancel();
    assert_eq!(read_all(&mut tunnel).await, "");
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
    app.tick.send(()).unwrap();
    read_until(&mut request, "data: blue").await;
    assert!(!front.serving.is_finished());
    app.kill();
    tokio::time::timeout(LONG, &mut front.serving).await.expect("it stops").unwrap();
}

#[tokio::test]
async fn probes_tell_what_they_met() {
    let (front, route) = Front::with_route(quick()).await;
    let app = App::start("blue").await;
    route.switch(app.target());
    assert_eq!(probe(front.address, "/", "shop", LONG).await.unwrap(), 200);
    assert_eq!(probe(front.address, "/status/404", "shop", LONG).await.unwrap(), 404);
    assert!(matches!(probe(app.address, "no slash", "shop", LONG).await, Err(ProbeError::Request { .. })));
    assert!(matches!(probe(app.address, "/", "a\r\nb: c", LONG).await, Err(ProbeError::Request { .. })));
    let silent = scripted(None).await;
    assert!(matches!(probe(silent, "/", "shop", Duration::from_millis(20)).await, Err(ProbeError::Timeout { .. })));
    let closing = scripted(Some(Vec::new())).await;
    assert!(matches!(probe(closing, "/", "shop", LONG).await, Err(ProbeError::Exchange { .. })));
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(matches!(probe(gone, "/", "shop", LONG).await, Err(ProbeError::Connect { .. })));
}
