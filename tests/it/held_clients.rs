//! Clients of a hold: WebSocket connections, uploads that outlast the limit of the hold, and many waiting requests.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use crate::harness::{Repo, SetOnDrop, World, http, in_one_mode, installed, python::application, thorough, until};

in_one_mode!(
    websocket_is_quiet_during_a_hold_and_ends_with_a_close_frame,
    upload_past_the_limit_of_a_hold_gets_a_readable_page,
    waiting_requests_continue_in_order_and_do_not_flood_the_new_process,
);

/// An application that upgrades to a WebSocket, and that records the order and the number of concurrent requests to `/turn/N`.
const APPLICATION: &str = r#"
import base64, hashlib, os, threading, time

LOCK = threading.Lock()
now = most = 0

class Handler(Base):
    def do_GET(self):
        if self.path == "/socket":
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            self.wfile.write(b"\x81\x02hi")
            self.wfile.flush()
            self.rfile.read()
            self.close_connection = True
            return
        if self.path.startswith("/turn/"):
            global now, most
            with LOCK:
                now += 1
                most = max(most, now)
                with open(os.environ["LARDER_DATA"] + "/turns", "a") as turns:
                    turns.write(self.path[6:] + " " + str(most) + "\n")
            time.sleep(0.1)
            with LOCK:
                now -= 1
        self.answer(200, open("version").read())

    def do_POST(self):
        self.body()
        self.answer(200, "received")

serve(Handler)
"#;

/// An upgrade that waits until the file `go` appears in the data.
const WAIT: &str = "touch $LARDER_DATA/waits; while ! test -e $LARDER_DATA/go; do sleep 0.05; done";

fn data(world: &World) -> PathBuf {
    world.environment("shop").join("data")
}

fn shop(world: &World) -> Option<Repo<'_>> {
    installed("python3")?;
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec python3 app.py $PORT\n")
        .write("app.py", application(APPLICATION))
        .write("version", "version one\n");
    repo.write("larder.yml", "data: [store/]\n");
    repo.commit("version one");
    repo.push().accepted();
    world.larder(&["run", "shop", "--", "sh", "-c", "echo kept > store/file"]).ok();
    Some(repo)
}

/// Pushes version two with an upgrade that waits, calls `during` while the upgrade waits, and lets the upgrade continue. The push succeeds.
fn during_a_hold(world: &World, repo: &Repo<'_>, limit: &str, during: impl FnOnce()) {
    repo.write("version", "version two\n");
    repo.write("larder.yml", format!("data: [store/]\nhold: {limit}\nupgrade:\n  safety: hold\n  run: {WAIT}\n"));
    repo.commit("version two");
    std::thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the upgrade waits", || data(world).join("waits").exists());
        during();
        fs::write(data(world).join("go"), "").unwrap();
        push.join().unwrap().accepted();
    });
}

fn connect(world: &World) -> TcpStream {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, world.http_port()));
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// The old process has no reason to end the connection itself, so the proxy ends it when the process stops at the begin of the hold.
fn websocket_is_quiet_during_a_hold_and_ends_with_a_close_frame(world: &World) {
    let Some(repo) = shop(world) else { return };
    let mut socket = connect(world);
    let head = "GET /socket HTTP/1.1\r\nHost: shop.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(head.as_bytes()).unwrap();
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"\x81\x02hi") {
        socket.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    assert!(seen.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&seen));
    during_a_hold(world, &repo, "60s", || {
        // Nothing but the close frame arrives: a final frame with the opcode 8 and the status 1012.
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, [0x88, 0x02, 0x03, 0xf4], "the tunnel ends with a close frame, not with a reset");
    });
    world.serves("shop", "version two");
}

fn upload_past_the_limit_of_a_hold_gets_a_readable_page(world: &World) {
    let Some(repo) = shop(world) else { return };
    during_a_hold(world, &repo, "300ms", || {
        let mut upload = connect(world);
        let head = "POST /upload HTTP/1.1\r\nHost: shop.localhost\r\nAccept: text/html\r\nContent-Length: 4000000000\r\n\r\n";
        upload.write_all(head.as_bytes()).unwrap();
        let mut reader = upload.try_clone().unwrap();
        let (ended, is_cut) = (AtomicBool::new(false), AtomicBool::new(false));
        let answer = std::thread::scope(|scope| {
            // The client sends without a pause. A reset of the connection would make it fail before it has read the answer.
            scope.spawn(|| {
                let part = vec![b'x'; 64 * 1024];
                while !ended.load(Relaxed) {
                    if upload.write_all(&part).is_err() {
                        is_cut.store(true, Relaxed);
                        break;
                    }
                }
            });
            let ending = SetOnDrop(&ended);
            let mut answer = String::new();
            let mut part = [0; 4096];
            // The client reads late, so that a reset would arrive before the read.
            reader.peek(&mut part).unwrap();
            std::thread::sleep(Duration::from_millis(300));
            while !answer.contains("</html>") {
                let count = reader.read(&mut part).unwrap();
                assert!(count > 0, "the page is cut: {answer}");
                answer.push_str(&String::from_utf8_lossy(&part[..count]));
            }
            drop(ending);
            assert!(!is_cut.load(Relaxed), "the connection was reset before the client had read the page");
            answer
        });
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.to_ascii_lowercase().contains("\r\nretry-after: "), "{answer}");
    });
    world.serves("shop", "version two");
}

fn waiting_requests_continue_in_order_and_do_not_flood_the_new_process(world: &World) {
    const REQUESTS: usize = 200;
    let Some(repo) = shop(world) else { return };
    let port = world.http_port();
    let mut clients = Vec::new();
    during_a_hold(world, &repo, "60s", || {
        for number in 0..REQUESTS {
            // Each request is sent on its own connection, one after the other. Requests that arrive within the same moment have no order, because
            // each thread of the proxy takes the connections that it finds.
            std::thread::sleep(Duration::from_millis(2));
            let mut stream = connect(world);
            let head = format!("GET /turn/{number} HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            clients.push(stream);
        }
    });
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("version two"), "{answer}");
    }
    let turns = fs::read_to_string(data(world).join("turns")).unwrap();
    let turns: Vec<(usize, usize)> = turns
        .lines()
        .map(|line| line.split_once(' ').map(|(number, most)| (number.parse().unwrap(), most.parse().unwrap())).unwrap())
        .collect();
    assert_eq!(turns.len(), REQUESTS);
    // The process itself starts its threads in any order. In a random order, the mean distance is a third of the number of requests.
    let distance: usize = turns.iter().enumerate().map(|(at, (number, _))| number.abs_diff(at)).sum();
    assert!(distance / REQUESTS < REQUESTS / 6, "mean distance {}: {turns:?}", distance / REQUESTS);
    let most = turns.iter().map(|(_, most)| *most).max().unwrap();
    eprintln!("{most} of {REQUESTS} requests were in flight at once, mean distance {}", distance / REQUESTS);
    // 32 requests continue at once. On a slow machine, a request that takes longer than its turn overlaps with the next requests.
    if thorough() {
        assert!(most <= REQUESTS / 2, "{most} requests were in flight at once");
    }
    assert_eq!(http::get(port, "shop.localhost", "/").unwrap().status, 200);
}
