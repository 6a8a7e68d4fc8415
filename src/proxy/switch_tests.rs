//! Tests of switches, drains, holds and retries, from the view of clients.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{testing::*, *};

#[tokio::test]
async fn switch_under_load_drops_no_request() {
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
                    // Two clients send GET on new connections, two clients send GET on a kept connection, and two clients send POST on a
                    // kept connection.
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
        // A drained target may be killed at once.
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

    // The tunnel and the stream are still on the first target. At the time limit of the drain, both are cut and counted in the report.
    until(|| opening.in_flight() == 2).await;
    let report = opening.drain(Duration::from_millis(20)).await;
    assert_eq!(report, DrainReport { finished: 0, cut: 2 });
    assert_eq!(read_all(&mut tunnel).await, "");
    assert!(!read_all(&mut events).await.ends_with("0\r\n\r\n"), "a cut stream must not look complete");
    until(|| route.stats().in_flight == 0).await;
}

#[tokio::test]
async fn request_on_a_closed_idle_connection_is_retried_at_another_instance() {
    let (front, route) = Front::with_route(quick()).await;
    for _ in 0..20 {
        let (old, new) = (App::start("blue").await, App::start("green").await);
        route.switch(tcp(vec![old.address, new.address]));
        assert!(front.get("/").await.ends_with("blue"));
        assert!(front.get("/").await.ends_with("green"));
        old.kill();
        // The port is bound without a listener, so that no other test can bind the port and answer instead of the killed application.
        let reserved = tokio::net::TcpSocket::new_v4().unwrap();
        reserved.set_reuseaddr(true).unwrap();
        let _ = reserved.bind(old.address);
        // The round-robin order selects the killed instance next. The idle connection to this instance is closed, but the proxy has
        // possibly not detected the close yet.
        let answer = front.get("/").await;
        assert!(answer.ends_with("green"), "{answer}");
    }
}

#[tokio::test]
async fn request_that_was_sent_is_retried_only_if_idempotent() {
    let (front, route) = Front::with_route(quick()).await;
    // The application answers the first request of each connection, and closes the connection at the second request.
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
    route.switch(tcp(vec![address]));
    assert!(front.get("/").await.ends_with("ok"));
    assert!(front.get("/").await.ends_with("ok"), "the request is retried on a new connection");
    assert_eq!((seen.load(SeqCst), route.stats().retried), (3, 1));
    let post = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    // The request fails on the kept connection, or succeeds on a new connection if the kept connection has idled for too long. In both
    // cases, the request is sent once.
    front.raw(post).await;
    assert_eq!((seen.load(SeqCst), route.stats().retried), (4, 1));
}

#[tokio::test]
async fn requests_are_balanced_and_a_refusing_instance_is_skipped() {
    let (front, route) = Front::with_route(quick()).await;
    let (one, two) = (App::start("one").await, App::start("two").await);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    route.switch(tcp(vec![one.address, gone, two.address]));
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..12 {
        let answer = front.get("/").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        *seen.entry(answer[answer.len() - 3..].to_owned()).or_insert(0) += 1;
    }
    assert!(seen.get("one").is_some_and(|n| *n >= 3) && seen.get("two").is_some_and(|n| *n >= 3), "{seen:?}");
}

#[tokio::test]
async fn held_requests_wait_and_reach_the_new_target() {
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
async fn requests_continue_in_order_and_not_all_at_once_after_a_hold() {
    let (front, route) = Front::with_route(quick()).await;
    let front = Arc::new(front);
    // The application sends no response, and records the order of the requests.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let recorded = seen.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let recorded = recorded.clone();
            tokio::spawn(async move {
                let head = read_until(&mut stream, "\r\n\r\n").await;
                recorded.lock().push(head.split(' ').nth(1).unwrap_or_default().to_owned());
                std::future::pending::<()>().await;
            });
        }
    });
    route.switch(tcp(vec![address]));
    let hold = route.hold(LONG);
    for number in 0..40 {
        let front = front.clone();
        tokio::spawn(async move { front.get(&format!("/{number}")).await });
        until(|| route.waiting() == number + 1).await;
    }
    hold.release();
    let late = front.clone();
    tokio::spawn(async move { late.get("/late").await });
    until(|| seen.lock().len() == 41).await;
    let seen = seen.lock().clone();
    // Requests of one group arrive at the application in any order.
    let (first, second) = seen.split_at(32);
    assert!(first.iter().all(|path| path[1..].parse::<usize>().is_ok_and(|number| number < 32)), "{seen:?}");
    assert!(second.contains(&String::from("/late")), "{seen:?}");
}

#[tokio::test]
async fn disconnected_client_returns_its_wait_permit() {
    let (front, route) = Front::with_route(quick()).await;
    let _hold = route.hold(LONG);
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    until(|| route.waiting() == 1).await;
    drop(stream);
    until(|| route.waiting() == 0 && route.stats().requests == 1).await;
}

#[tokio::test]
async fn undone_switch_keeps_in_flight_requests_of_the_restored_target() {
    let (front, route) = Front::with_route(quick()).await;
    let (blue, green, later) = (App::start("blue").await, App::start("green").await, App::start("later").await);
    route.switch(blue.target());
    let mut events = TcpStream::connect(front.address).await.unwrap();
    events.write_all(b"GET /events HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    read_until(&mut events, "data: blue\n\n\r\n").await;
    let retired = route.switch(green.target()).expect("blue was live");
    // The switch to green is undone, as after a failed deployment.
    let taken_back = route.switch(retired.restore()).expect("green was live");
    assert_eq!(taken_back.drain(LONG).await, DrainReport { finished: 0, cut: 0 });
    assert!(front.get("/").await.ends_with("blue"));
    // The next deployment must drain the request that has been in flight since before the first switch.
    let retired = route.switch(later.target()).expect("blue was live again");
    assert_eq!(retired.in_flight(), 1);
    assert_eq!(retired.drain(Duration::from_millis(20)).await, DrainReport { finished: 0, cut: 1 });
    assert!(!read_all(&mut events).await.ends_with("0\r\n\r\n"), "a cut stream must not look complete");
}

#[tokio::test]
async fn switch_to_the_same_instances_keeps_their_requests_in_flight() {
    let (front, route) = Front::with_route(quick()).await;
    let (blue, green) = (App::start("blue").await, App::start("green").await);
    route.switch(blue.target());
    let mut events = TcpStream::connect(front.address).await.unwrap();
    events.write_all(b"GET /events HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    read_until(&mut events, "data: blue\n\n\r\n").await;
    // The server does this switch when it opens the route of an environment whose processes are still running.
    assert!(route.switch(blue.target()).is_none());
    assert_eq!(route.switch(green.target()).expect("blue was live").in_flight(), 1);
}
