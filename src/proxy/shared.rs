//! The state that all connections of a proxy share. A separate file contains this state, so that the listener and the connections do not
//! import each other.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;

use super::{
    access::AccessLog, counts::ProxyCounts, headers::RequestIds, pages::Pages, route::Route, settings::ProxySettings,
    waiting::GateSlot,
};

/// Settings, routes, counters and the access log of one proxy.
pub(super) struct ProxyState {
    pub settings: ProxySettings,
    /// Routes by host in normal form.
    pub routes: RwLock<HashMap<Box<str>, Arc<Route>>>,
    pub pages: Pages,
    pub ids: RequestIds,
    pub counts: ProxyCounts,
    pub log: Arc<AccessLog>,
    pub gate: Arc<GateSlot>,
}

impl ProxyState {
    pub fn new(settings: ProxySettings) -> Self {
        Self {
            settings,
            routes: RwLock::default(),
            pages: Pages::new(),
            ids: RequestIds::new(),
            counts: ProxyCounts::default(),
            log: Arc::default(),
            gate: Arc::default(),
        }
    }

    /// Returns the route of a host in normal form. While the startup gate is closed, a request for a host without a live route first waits
    /// until the gate opens. If too many requests wait already, the request is routed at once.
    pub async fn find(&self, host: &str) -> Option<Arc<Route>> {
        let now = || self.routes.read().get(host).cloned();
        let found = now();
        if let Some(gate) = self.gate.closed()
            && !found.as_ref().is_some_and(|route| route.is_live())
            && gate.wait(self.settings.max_waiting).await
        {
            return now();
        }
        found
    }
}
