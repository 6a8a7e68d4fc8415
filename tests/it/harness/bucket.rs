//! A server with the part of the S3 protocol that larder uses, whose bucket can lie: it answers 200, and drops or damages the bytes.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use parking_lot::Mutex;

/// The treatment of objects that are stored from now on. The answer is always 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    None,
    /// Packs are not stored.
    DropPacks,
    /// Packs lose their last byte.
    CutPacks,
    /// One bit of each pack is changed.
    FlipPacks,
    /// Nothing is stored.
    DropAll,
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    lie: Lie,
    /// False if connections are closed without an answer.
    is_online: bool,
    /// The number of packs that were read as a whole.
    whole_packs: usize,
}

/// A server with one bucket, `bucket`.
pub struct LyingBucket {
    pub port: u16,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl LyingBucket {
    pub fn serve() -> LyingBucket {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { objects: BTreeMap::new(), lie: Lie::None, is_online: true, whole_packs: 0 }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&state), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), state) = (client, Arc::clone(&shared)) else { continue };
                if state.lock().is_online {
                    std::thread::spawn(move || while answer(&client, &state).is_some() {});
                }
            }
        });
        LyingBucket { port, state, stop, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("s3+http://127.0.0.1:{}/bucket/copies", self.port)
    }

    pub fn lie(&self, lie: Lie) {
        self.state.lock().lie = lie;
    }

    /// Lets the server answer, or not.
    pub fn set_online(&self, is_online: bool) {
        self.state.lock().is_online = is_online;
    }

    /// Returns the number of packs that were read as a whole, and begins to count anew.
    pub fn whole_packs(&self) -> usize {
        std::mem::take(&mut self.state.lock().whole_packs)
    }

    /// Returns the keys of all objects.
    pub fn keys(&self) -> Vec<String> {
        self.state.lock().objects.keys().cloned().collect()
    }
}

impl Drop for LyingBucket {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Query {
    method: String,
    /// The key of an object; empty for a request to the bucket.
    key: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn read(client: &TcpStream) -> Option<Query> {
    let mut lines = BufReader::new(client);
    let mut first = String::new();
    lines.read_line(&mut first).ok().filter(|read| *read > 0)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    lines.read_exact(&mut body).ok()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let decode =
        |text: &str| url::form_urlencoded::parse(text.as_bytes()).next().map(|(text, _)| text.into_owned()).unwrap_or_default();
    let pair = |pair: &str| {
        pair.split_once('=').map(|(name, value)| (name.to_owned(), decode(value))).unwrap_or((pair.to_owned(), String::new()))
    };
    let query = query.split('&').map(pair).collect();
    let key = decode(path.strip_prefix("/bucket")?.trim_start_matches('/'));
    Some(Query { method, key, query, headers, body })
}

/// Answers one request. Returns `None` if the client has disconnected.
fn answer(mut client: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let query = read(client)?;
    let mut state = state.lock();
    if !state.is_online {
        return None;
    }
    let (status, headers, body) = respond(&query, &mut state);
    drop(state);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"etag\"\r\nLast-Modified: Mon, 30 Nov 2026 00:00:00 GMT\r\n{headers}\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).ok()?;
    client.write_all(&body).ok()
}

fn respond(query: &Query, state: &mut State) -> (&'static str, String, Vec<u8>) {
    let none = String::new;
    let xml = |text: String| ("200 OK", String::from("Content-Type: application/xml\r\n"), text.into_bytes());
    let is_pack = query.key.contains("/data/");
    match (query.method.as_str(), query.key.is_empty()) {
        ("PUT", false) if query.headers.contains_key("if-none-match") && state.objects.contains_key(&query.key) => {
            ("412 Precondition Failed", none(), Vec::new())
        }
        ("PUT", false) => {
            let mut content = query.body.clone();
            match state.lie {
                Lie::DropAll => return ("200 OK", none(), Vec::new()),
                Lie::DropPacks if is_pack => return ("200 OK", none(), Vec::new()),
                Lie::CutPacks if is_pack => drop(content.pop()),
                Lie::FlipPacks if is_pack => content[10] ^= 4,
                _ => {}
            }
            state.objects.insert(query.key.clone(), content);
            ("200 OK", none(), Vec::new())
        }
        ("GET", true) => {
            let prefix = query.query.get("prefix").cloned().unwrap_or_default();
            let listed = state.objects.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(key, content)| {
                let size = content.len();
                format!("<Contents><Key>{key}</Key><LastModified>2026-11-30T00:00:00.000Z</LastModified><ETag>e</ETag><Size>{size}</Size></Contents>")
            });
            let listed: String = listed.collect();
            xml(format!("<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>"))
        }
        ("POST", true) => {
            let text = String::from_utf8_lossy(&query.body).into_owned();
            let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
            let deleted = keys.map(|(key, _)| {
                state.objects.remove(key);
                format!("<Deleted><Key>{key}</Key></Deleted>")
            });
            xml(format!("<DeleteResult>{}</DeleteResult>", deleted.collect::<String>()))
        }
        ("GET" | "HEAD", false) => {
            let Some(content) = state.objects.get(&query.key) else { return ("404 Not Found", none(), Vec::new()) };
            let range = query.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
            let Some((begin, end)) = range else {
                let content = content.clone();
                state.whole_packs += usize::from(is_pack);
                return ("200 OK", none(), content);
            };
            let (begin, end): (usize, usize) = (begin.parse().unwrap(), end.parse().unwrap());
            if begin >= content.len() {
                return ("416 Range Not Satisfiable", none(), Vec::new());
            }
            let end = end.min(content.len() - 1);
            let header = format!("Content-Range: bytes {begin}-{end}/{}\r\n", content.len());
            ("206 Partial Content", header, content[begin..=end].to_vec())
        }
        _ => ("405 Method Not Allowed", none(), Vec::new()),
    }
}
