//! A receiver of webhooks on loopback, which stores the requests and answers with a status of the test's choice.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;

/// A request that the receiver got.
#[derive(Debug, Clone)]
pub struct Received {
    /// The first line.
    pub line: String,
    /// The headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Received {
    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_else(|| panic!("no header {name}: {self:#?}"))
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

#[derive(Debug)]
struct State {
    /// The answer: a status with its text, and further header lines.
    answer: String,
    /// The bodies of the answers, each with the beginning of the request to which it belongs.
    bodies: Vec<(String, String)>,
    requests: Vec<Received>,
    connections: usize,
    ends: bool,
}

/// A running receiver. Dropping the value ends the receiver.
pub struct Receiver {
    pub port: u16,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    pub fn start() -> Receiver {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state =
            State { answer: String::from("200 OK"), bodies: Vec::new(), requests: Vec::new(), connections: 0, ends: false };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.lock().ends {
                    return;
                }
                shared.lock().connections += 1;
                let state = shared.clone();
                std::thread::spawn(move || serve(client, &state));
            }
        });
        Receiver { port, state, thread: Some(thread) }
    }

    /// Sets the answer, such as `503 Busy` or `302 Found\r\nLocation: /elsewhere`.
    pub fn answer(&self, answer: &str) {
        self.state.lock().answer = answer.to_owned();
    }

    /// Sets the body of the answers to requests whose first line begins with `line`.
    pub fn body(&self, line: &str, body: &str) {
        self.state.lock().bodies.push((line.to_owned(), body.to_owned()));
    }

    pub fn requests(&self) -> Vec<Received> {
        self.state.lock().requests.clone()
    }

    pub fn connections(&self) -> usize {
        self.state.lock().connections
    }

    /// Waits until `count` requests have arrived, and returns all requests.
    #[track_caller]
    pub fn wait_for(&self, count: usize) -> Vec<Received> {
        super::until("the requests have arrived", || self.state.lock().requests.len() >= count);
        self.requests()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.state.lock().ends = true;
        let _ = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)), Duration::from_secs(5));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(client: TcpStream, state: &Mutex<State>) -> Option<()> {
    client.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    let mut writer = client.try_clone().ok()?;
    let mut reader = BufReader::new(client);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let (first, mut headers, mut length) = (line.trim().to_owned(), Vec::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
        if name == "content-length" {
            length = value.parse().ok()?;
        }
        headers.push((name, value));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (answer, text) = {
        let mut state = state.lock();
        let text = state
            .bodies
            .iter()
            .find(|(line, _)| first.starts_with(line.as_str()))
            .map(|(_, text)| text.clone())
            .unwrap_or_default();
        state.requests.push(Received { line: first, headers, body: String::from_utf8_lossy(&body).into_owned() });
        (state.answer.clone(), text)
    };
    write!(writer, "HTTP/1.1 {answer}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len()).ok()
}
