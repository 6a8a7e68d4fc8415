//! The access log, and the records of requests from which the lines of the log are made.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use hyper::{Method, StatusCode};
use parking_lot::RwLock;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::route::Route;

/// The logged status of a request whose client disconnected before the response began. nginx logs the same status.
const CLIENT_CLOSED: u16 = 499;

/// The record of one finished request in the access log.
#[derive(Debug, Clone)]
pub struct AccessLine {
    /// The time at which the request's head was complete.
    pub time: SystemTime,
    /// The name of the request's route.
    pub route: Arc<str>,
    /// The client's address: the address of the connection's peer, or the address that a trusted proxy states.
    pub peer: IpAddr,
    /// The requested host in normal form.
    pub host: String,
    /// The request's method.
    pub method: Method,
    /// The path and the query, cut off after 1024 characters.
    pub path: String,
    /// The response's status; 499 if the client disconnected before the response began.
    pub status: u16,
    /// The number of bytes that were sent in the response's body.
    pub bytes_out: u64,
    /// The time from the end of the request's head to the end of the response's body.
    pub took: Duration,
    /// The request's id, as sent to the application.
    pub request_id: String,
    /// The number of lines that were dropped between the previous line and this line.
    pub missed: u64,
}

/// The destination of access lines. If the reader is slow, lines are dropped; requests are never delayed.
#[derive(Default)]
pub(super) struct AccessLog {
    sender: RwLock<Option<mpsc::Sender<AccessLine>>>,
    /// The number of lines that were dropped since the last line was sent.
    missed: AtomicU64,
    /// The number of lines that were dropped since the proxy was created.
    dropped: AtomicU64,
}

impl AccessLog {
    pub fn send_to(&self, sender: mpsc::Sender<AccessLine>) {
        *self.sender.write() = Some(sender);
    }

    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn is_on(&self) -> bool {
        self.sender.read().is_some()
    }

    fn write(&self, mut line: AccessLine) {
        let sender = self.sender.read();
        let Some(sender) = sender.as_ref() else { return };
        line.missed = self.missed.swap(0, Relaxed);
        if let Err(TrySendError::Full(line) | TrySendError::Closed(line)) = sender.try_send(line) {
            self.missed.fetch_add(line.missed + 1, Relaxed);
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// The parts of a request's head that the access log contains. The proxy copies these parts only if the log has a reader.
pub(super) struct LoggedHead {
    pub peer: IpAddr,
    pub host: String,
    pub method: Method,
    pub path: String,
    pub request_id: String,
}

/// The record of one request, from its head to the end of its response. Dropping the record updates the counters and writes the access
/// line.
pub(super) struct RequestRecord {
    log: Arc<AccessLog>,
    route: Arc<Route>,
    started: Instant,
    status: u16,
    pub bytes_out: u64,
    head: Option<Box<LoggedHead>>,
}

impl RequestRecord {
    pub fn open(log: &Arc<AccessLog>, route: &Arc<Route>, head: impl FnOnce() -> LoggedHead) -> Self {
        route.counts.in_flight.fetch_add(1, Relaxed);
        let head = log.is_on().then(|| Box::new(head()));
        Self { log: log.clone(), route: route.clone(), started: Instant::now(), status: CLIENT_CLOSED, bytes_out: 0, head }
    }

    pub fn answered(&mut self, status: StatusCode) {
        self.status = status.as_u16();
    }

    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let counts = &self.route.counts;
        if let Some(class) = counts.classes.get((self.status / 100).saturating_sub(1) as usize) {
            class.fetch_add(1, Relaxed);
        }
        counts.bytes_out.fetch_add(self.bytes_out, Relaxed);
        counts.requests.fetch_add(1, Relaxed);
        counts.in_flight.fetch_sub(1, Relaxed);
        let Some(head) = self.head.take() else { return };
        let took = self.started.elapsed();
        self.log.write(AccessLine {
            time: SystemTime::now().checked_sub(took).unwrap_or(SystemTime::UNIX_EPOCH),
            route: self.route.name_shared(),
            peer: head.peer,
            host: head.host,
            method: head.method,
            path: head.path,
            status: self.status,
            bytes_out: self.bytes_out,
            took,
            request_id: head.request_id,
            missed: 0,
        });
    }
}
