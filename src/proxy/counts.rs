//! Traffic counters of the proxy and of each route, and their snapshots.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The traffic of one route since the route was created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that are no longer in flight: the response is complete, or the client or the proxy aborted the request.
    pub requests: u64,
    /// Requests and tunnels in flight, including waiting requests.
    pub in_flight: u64,
    /// Requests that wait for the end of a [`Hold`](super::Hold).
    pub waiting: u64,
    /// The requests in `requests` by the first digit of their status: 1xx (upgraded), 2xx, 3xx, 4xx, 5xx. A request whose client
    /// disconnected before the response began counts as 4xx.
    pub classes: [u64; 5],
    /// Bytes received in request bodies.
    pub bytes_in: u64,
    /// Bytes sent in response bodies.
    pub bytes_out: u64,
    /// Retries of requests whose connection to the application was closed.
    pub retried: u64,
}

/// The traffic of the whole proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyStats {
    /// Accepted connections.
    pub accepted: u64,
    /// Open connections, including tunnels.
    pub open: u64,
    /// Connections and requests that were rejected because a connection limit was reached.
    pub turned_away: u64,
    /// Requests for hosts without a route.
    pub unknown_host: u64,
    /// Requests that were rejected because their head is invalid or ambiguous.
    pub bad_requests: u64,
    /// Access log lines that were dropped because the reader was too slow or was closed.
    pub lines_missed: u64,
}

#[derive(Default)]
pub(super) struct ProxyCounts {
    pub accepted: AtomicU64,
    pub open: AtomicUsize,
    pub turned_away: AtomicU64,
    pub unknown_host: AtomicU64,
    pub bad_requests: AtomicU64,
}

impl ProxyCounts {
    pub fn snapshot(&self, lines_missed: u64) -> ProxyStats {
        ProxyStats {
            accepted: self.accepted.load(Relaxed),
            open: self.open.load(Relaxed) as u64,
            turned_away: self.turned_away.load(Relaxed),
            unknown_host: self.unknown_host.load(Relaxed),
            bad_requests: self.bad_requests.load(Relaxed),
            lines_missed,
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
