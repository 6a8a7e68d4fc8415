//! The settings and the errors of the proxy.

use std::{net::IpAddr, time::Duration};

/// The reason why the proxy could not add a route or could not serve HTTP.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The host of a route is not a valid host name or address.
    #[error(
        "cannot add a route for {host:?}: the host is invalid (expected a host name or an address, such as shop.example.org)"
    )]
    Host {
        /// The host as it was given.
        host: String,
    },
    /// Connections cannot be accepted on the inherited socket.
    #[error("cannot serve HTTP on the inherited listening socket")]
    Listener {
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// The settings of the proxy. The defaults are chosen for one server with some dozens of applications.
#[derive(Debug, Clone)]
pub struct ProxySettings {
    /// The maximum number of concurrent client connections, including tunnels. Further connections are answered with 503 and closed.
    pub max_connections: usize,
    /// The maximum number of concurrent connections of one client address. Further connections are answered with 429 and closed.
    /// Connections of trusted proxies are not counted; for trusted proxies, the limit applies to the concurrent requests of each visitor.
    pub max_connections_per_peer: usize,
    /// The maximum size of a request's head and of a response's head, in bytes.
    pub max_header_size: usize,
    /// Time in which a client must send a request's head, and for which a connection may be idle between two requests.
    pub header_timeout: Duration,
    /// Time without progress after which the transfer of a body is aborted. There is no progress if the client neither sends nor receives
    /// data, or if the application receives no data.
    pub stall_timeout: Duration,
    /// Time in which one instance must accept a connection.
    pub connect_timeout: Duration,
    /// Time for which the proxy retries to connect while every instance refuses connections, for example during a restart. Afterwards, the
    /// client gets an error page.
    pub connect_retry_limit: Duration,
    /// Time in which an application must send its response's head, counted from the end of the request.
    pub response_timeout: Duration,
    /// The maximum number of requests of one route that wait during a hold, and of requests that wait at the startup gate. During a hold,
    /// further requests get the maintenance page at once.
    pub max_waiting: usize,
    /// Time in which requests must finish after the shutdown of the proxy begins. Tunnels get at most two seconds of this time.
    pub shutdown_limit: Duration,
    /// The addresses of trusted proxies in front of larder. The proxy accepts a visitor's address and scheme from the headers of trusted
    /// proxies.
    pub trusted: Vec<IpAddr>,
    /// The scheme that clients use, for `X-Forwarded-Proto`.
    pub scheme: Scheme,
    /// True if the page of a failed application shows the reason of the failure to visitors. The flag is for people who try out larder;
    /// public servers should not set it.
    pub reveal_reasons: bool,
}

/// The scheme under which clients reach the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// TLS, terminated by a trusted proxy in front of larder.
    Https,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            max_connections: 8192,
            max_connections_per_peer: 1024,
            max_header_size: 32 * 1024,
            header_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            connect_retry_limit: Duration::from_secs(3),
            response_timeout: Duration::from_secs(60),
            max_waiting: 1000,
            shutdown_limit: Duration::from_secs(30),
            trusted: Vec::new(),
            scheme: Scheme::Http,
            reveal_reasons: false,
        }
    }
}
