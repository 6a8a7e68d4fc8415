//! Long requests through the proxy: streamed responses, upgraded connections, and requests across a switch that is undone.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use crate::harness::{Repo, World, http, in_one_mode, installed, until};

in_one_mode!(response_is_streamed, connection_is_upgraded, request_begun_before_a_switch_was_undone_is_finished,);

/// An application that sends a chunk, and sends the next chunk only after the client has confirmed the first chunk. After an upgrade, the
/// application returns each line in upper case.
const PYTHON: &str = r#"
import http.server, os, threading
seen = threading.Event()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.headers.get("Upgrade"):
            self.send_response(101)
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "shout")
            self.end_headers()
            for line in self.rfile:
                self.wfile.write(line.upper())
                self.wfile.flush()
            self.close_connection = True
        elif self.path == "/seen":
            seen.set()
            self.answer(b"noted")
        elif self.path == "/stream":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.chunk(b"first\n")
            seen.wait(20)
            self.chunk(b"second\n")
            self.chunk(b"")
        else:
            self.answer(b"here")
    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()
    def answer(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

fn python_application(world: &World) -> bool {
    if installed("python3").is_none() {
        return false;
    }
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec python3 server.py\n").write("server.py", PYTHON);
    // The application has no dependencies, so that nothing is fetched.
    repo.write("larder.yml", "buildpack: procfile\n");
    repo.commit("streams");
    repo.push().accepted();
    true
}

fn connection(world: &World, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", world.http_port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

fn response_is_streamed(world: &World) {
    if !python_application(world) {
        return;
    }
    let stream = connection(world, "GET /stream HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\n\r\n");
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "first"), "the first piece was held back");
    world.get("shop", "/seen").holds("noted");
    assert!(lines.any(|line| line == "second"));
}

fn connection_is_upgraded(world: &World) {
    if !python_application(world) {
        return;
    }
    let mut stream = connection(world, "GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n");
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for word in ["hello", "again"] {
        stream.write_all(format!("{word}\n").as_bytes()).unwrap();
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word.to_uppercase());
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

/// The new release is live for a moment before the switch is undone. The requests that the new release has begun are finished.
fn request_begun_before_a_switch_was_undone_is_finished(world: &World) {
    if installed("python3").is_none() {
        return;
    }
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let old = world.ports("shop");
    repo.write("Procfile", "web: exec python3 server.py\n").write("server.py", PYTHON);
    repo.write("larder.yml", "buildpack: procfile\ndata: [media]\n");
    let gate = "#!/bin/sh\nwhile ! [ -e media/gate ]; do sleep 0.05; done\necho no good after all\nexit 1\n";
    repo.program(".larder/post_deploy", gate);
    repo.commit("streams, and is no good");
    thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the new release is live", || world.get("shop", "/").body == "here");
        let stream = connection(world, "GET /stream HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\n\r\n");
        let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "first"));
        let new = world.ports("shop").into_iter().find(|port| !old.contains(port)).unwrap();
        std::fs::write(world.environment("shop").join("data/media/gate"), "").unwrap();
        until("the old release is live again", || world.get("shop", "/").body.contains("version one"));
        assert!(!push.is_finished(), "the undo did not wait for the request in flight");
        let seen = "GET /seen HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\n\r\n";
        http::request(u16::try_from(new).unwrap(), seen).unwrap().holds("noted");
        assert!(lines.any(|line| line == "second"), "the response was cut off");
        push.join().unwrap().rejected_with("post_deploy: ").rejected_with("v1 still live");
    });
    world.serves("shop", "version one");
    assert_eq!(world.ports("shop"), old);
    world.is_consistent("shop");
}
