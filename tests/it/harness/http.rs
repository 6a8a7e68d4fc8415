//! Visitors: a small HTTP/1.1 client, and a client that sends requests continuously in the background.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::World;

/// An HTTP response.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    #[track_caller]
    pub fn holds(&self, text: &str) -> &Response {
        assert!(self.body.contains(text), "{text:?} is not in {self:#?}");
        self
    }
}

/// Sends one request on a new connection.
pub fn get(port: u16, host: &str, path: &str) -> io::Result<Response> {
    request(port, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
}

/// Sends a request verbatim and reads the response to its end.
pub fn request(port: u16, text: &str) -> io::Result<Response> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(text.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes).ok_or_else(|| io::Error::other(format!("not a whole answer: {:?}", String::from_utf8_lossy(&bytes))))
}

fn parse(bytes: &[u8]) -> Option<Response> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = &bytes[end + 4..];
    let header = |name: &str| {
        head.lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    };
    let body = if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        unchunk(body)?
    } else {
        // A truncated response is an error.
        let length: Option<usize> = header("content-length").and_then(|length| length.parse().ok());
        if length.is_some_and(|length| length != body.len()) {
            return None;
        }
        body.to_vec()
    };
    Some(Response { status, body: String::from_utf8_lossy(&body).into_owned(), head })
}

fn unchunk(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let line = body.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&body[..line]).ok()?.split(';').next()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        body = &body[line + 2..];
        if size == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(body.get(..size)?);
        body = body.get(size + 2..)?;
    }
}

impl World {
    /// Requests a path of a project's default environment through the proxy.
    #[track_caller]
    pub fn get(&self, project: &str, path: &str) -> Response {
        let host = format!("{project}.localhost");
        get(self.http_port(), &host, path).unwrap_or_else(|error| panic!("http://{host}{path}: {error}"))
    }

    /// Asserts that the start page is answered and contains `text`.
    #[track_caller]
    pub fn serves(&self, project: &str, text: &str) {
        let answer = self.get(project, "/");
        assert_eq!(answer.status, 200, "{answer:#?}");
        answer.holds(text);
    }

    /// Starts a visitor of one host that requests the start page until it is stopped.
    pub fn visitor_of(&self, host: &str) -> Visitor {
        Visitor::new(self.http_port(), host)
    }

    /// Starts a visitor that requests the start page until it is stopped.
    pub fn visitor(&self, project: &str) -> Visitor {
        Visitor::new(self.http_port(), &format!("{project}.localhost"))
    }
}

/// A client that sends requests continuously and counts failures.
pub struct Visitor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
}

/// The observations of a visitor.
#[derive(Debug, Default)]
pub struct Seen {
    pub answers: usize,
    pub failures: Vec<String>,
    /// The different bodies, in the order of arrival.
    pub pages: Vec<String>,
}

impl Visitor {
    fn new(port: u16, host: &str) -> Visitor {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, host) = (stop.clone(), host.to_owned());
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !stopped.load(Ordering::Relaxed) {
                match get(port, &host, "/") {
                    Ok(answer) if answer.status == 200 => {
                        seen.answers += 1;
                        if seen.pages.last() != Some(&answer.body) {
                            seen.pages.push(answer.body);
                        }
                    }
                    Ok(answer) => seen.failures.push(format!("{} {}", answer.status, answer.body)),
                    Err(error) => seen.failures.push(error.to_string()),
                }
                std::thread::sleep(Duration::from_millis(3));
            }
            seen
        });
        Visitor { stop, thread: Some(thread) }
    }

    /// Stops the visitor and returns its observations.
    pub fn seen(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }

    /// Stops the visitor, asserts that requests were sent and all were answered, and returns its observations.
    #[track_caller]
    pub fn satisfied(self) -> Seen {
        let seen = self.seen();
        assert!(
            seen.failures.is_empty(),
            "{} of {} requests failed: {:#?}",
            seen.failures.len(),
            seen.answers + seen.failures.len(),
            seen.failures.first()
        );
        assert!(seen.answers > 0, "nobody asked");
        seen
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
