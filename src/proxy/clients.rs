//! The limits on the connections of each client address, and on the concurrent requests of each visitor behind a trusted proxy.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use hyper::header::HeaderValue;
use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::shared::ProxyState;

/// The number of permits in use for each client address.
#[derive(Default)]
pub(super) struct Clients {
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Clients {
    /// Takes a permit for `client`. Returns `None` if the client already has `limit` permits.
    pub fn enter(self: &Arc<Self>, client: IpAddr, limit: usize) -> Option<ClientPermit> {
        let mut open = self.open.lock();
        let count = open.entry(client).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(ClientPermit { clients: self.clone(), client })
    }
}

/// The permit for one connection or request of a client. The permit is returned when this value is dropped.
pub(super) struct ClientPermit {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Drop for ClientPermit {
    fn drop(&mut self) {
        let mut open = self.clients.open.lock();
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// The state that all requests of one client connection share. Dropping this state decrements the number of open connections.
pub(super) struct ClientConnection {
    pub proxy: Arc<ProxyState>,
    pub peer: IpAddr,
    pub peer_value: HeaderValue,
    /// True if the peer is a trusted proxy.
    pub trusted: bool,
    /// The tasks that the proxy waits for during shutdown.
    pub tasks: TaskTracker,
    /// The token that is cancelled to close all tunnels during shutdown.
    pub hang_up: CancellationToken,
    /// True after the body of a request was dropped before its end.
    pub has_unread: Arc<AtomicBool>,
    pub clients: Arc<Clients>,
    /// The permit of this connection; `None` for a trusted proxy, whose visitors take one permit for each request.
    pub _permit: Option<ClientPermit>,
}

impl ClientConnection {
    /// Takes a permit for one request of a visitor behind a trusted proxy. Returns `None` if the visitor has too many requests in flight.
    pub fn visit(&self, visitor: IpAddr) -> Option<ClientPermit> {
        let permit = self.clients.enter(visitor, self.proxy.settings.max_connections_per_peer);
        if permit.is_none() {
            self.proxy.counts.turned_away.fetch_add(1, Relaxed);
        }
        permit
    }
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        self.proxy.counts.open.fetch_sub(1, Relaxed);
    }
}
