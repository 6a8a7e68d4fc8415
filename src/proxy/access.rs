//! Numbers of the traffic, and the access log.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use hyper::{Method, StatusCode};
use tokio::sync::mpsc::error::TrySendError;

use super::{Inner, Route, listen::Place};

/// The traffic of one route since the route was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that were finished, or given up by the client.
    pub requests: u64,
    /// Requests and tunnels that are under way, waiting ones included.
    pub in_flight: u64,
    /// Requests that wait in a hold.
    pub waiting: u64,
    /// Finished requests by the first digit of their status: 1xx (upgraded), 2xx, 3xx, 4xx, 5xx.
    pub classes: [u64; 5],
    /// Bytes of requests' bodies.
    pub bytes_in: u64,
    /// Bytes of responses' bodies.
    pub bytes_out: u64,
    /// Requests that were sent a second time because their connection closed under them.
    pub retried: u64,
}

/// The numbers of the whole front door.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyStats {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Connections that are open, tunnels included.
    pub open: u64,
    /// Connections that were turned away because a limit was reached.
    pub turned_away: u64,
    /// Requests for hosts without a route.
    pub unknown_host: u64,
    /// Requests that were refused because they could be understood in two ways.
    pub bad_requests: u64,
    /// Access lines that were dropped because nobody took them.
    pub lines_missed: u64,
}

/// One finished request.
#[derive(Debug, Clone)]
pub struct AccessLine {
    /// When the request came.
    pub time: SystemTime,
    /// The name of its route.
    pub route: Arc<str>,
    /// The client's address, as the connection has it, or as a trusted proxy says.
    pub peer: IpAddr,
    /// The host that was asked for, in normal form.
    pub host: String,
    /// The method.
    pub method: Method,
    /// Path and query, up to 1 KiB.
    pub path: String,
    /// The answer's status; 499 if the client left before there was one.
    pub status: u16,
    /// Bytes of the response's body.
    pub bytes_out: u64,
    /// From the end of the request's head to the end of the response's body.
    pub took: Duration,
    /// The request's id, as the application sees it.
    pub request_id: String,
    /// How many lines before this one were dropped.
    pub missed: u64,
}

#[derive(Default)]
pub(super) struct ProxyCounts {
    pub accepted: AtomicU64,
    pub open: AtomicUsize,
    pub turned_away: AtomicU64,
    pub unknown_host: AtomicU64,
    pub bad_requests: AtomicU64,
    pub lines_missed: AtomicU64,
}

impl ProxyCounts {
    pub fn snapshot(&self) -> ProxyStats {
        ProxyStats {
            accepted: self.accepted.load(Relaxed),
            open: self.open.load(Relaxed) as u64,
            turned_away: self.turned_away.load(Relaxed),
            unknown_host: self.unknown_host.load(Relaxed),
            bad_requests: self.bad_requests.load(Relaxed),
            lines_missed: self.lines_missed.load(Relaxed),
        }
    }
}

#[derive(Default)]
pub(super) struct RouteCounts {
    pub requests: AtomicU64,
    pub in_flight: AtomicU64,
    pub classes: [AtomicU64; 5],
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub retried: AtomicU64,
}

impl RouteCounts {
    pub fn snapshot(&self, waiting: usize) -> Stats {
        Stats {
            requests: self.requests.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            waiting: waiting as u64,
            classes: self.classes.each_ref().map(|count| count.load(Relaxed)),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            retried: self.retried.load(Relaxed),
        }
    }
}

/// What the access log wants to know of a request's head; only kept when somebody listens.
pub(super) struct Head {
    pub peer: IpAddr,
    pub host: String,
    pub method: Method,
    pub path: String,
    pub request_id: String,
}

/// Follows one request from its head to the end of its answer; dropping it writes the books.
pub(super) struct Ticket {
    proxy: Arc<Inner>,
    route: Arc<Route>,
    started: Instant,
    status: u16,
    pub bytes_out: u64,
    head: Option<Box<Head>>,
    /// Of a visitor behind a trusted proxy.
    _place: Option<Place>,
}

impl Ticket {
    pub fn open(proxy: &Arc<Inner>, route: &Arc<Route>, place: Option<Place>, head: impl FnOnce() -> Head) -> Self {
        route.counts.in_flight.fetch_add(1, Relaxed);
        let head = proxy.log.read().is_some().then(|| Box::new(head()));
        Self {
            proxy: proxy.clone(),
            route: route.clone(),
            started: Instant::now(),
            status: 499,
            bytes_out: 0,
            head,
            _place: place,
        }
    }

    pub fn answered(&mut self, status: StatusCode) {
        self.status = status.as_u16();
    }

    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }
}

impl Drop for Ticket {
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
        let line = AccessLine {
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
            missed: self.proxy.missed.swap(0, Relaxed),
        };
        let log = self.proxy.log.read();
        let Some(sender) = log.as_ref() else { return };
        if let Err(TrySendError::Full(line) | TrySendError::Closed(line)) = sender.try_send(line) {
            self.proxy.missed.fetch_add(line.missed + 1, Relaxed);
            self.proxy.counts.lines_missed.fetch_add(1, Relaxed);
        }
    }
}
