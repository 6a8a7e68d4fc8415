//! Connections to the instances of an application.
//!
//! Requests, health checks and probes reach an instance only through a [`Connector`]. The only implementation is [`TcpConnector`]. An
//! environment with its own network namespace would need a connector that creates its sockets inside the namespace. No other part of the
//! proxy depends on how a connection is made.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

use crate::host::sockets;

/// The reason why the proxy could not connect to an instance.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The operating system could not connect, or could not identify the listener.
    #[error("cannot connect to {address}")]
    Io {
        /// The address of the instance.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A process of another user listens at the address, or the listener no longer exists.
    #[error("cannot connect to {address}: {} listens on this port (expected user {expected})", user(*.seen))]
    Foreign {
        /// The address of the instance.
        address: SocketAddr,
        /// The user id of the listener; `None` if no process listens on the port any more.
        seen: Option<u32>,
        /// The user id of the environment's processes.
        expected: u32,
    },
    /// The connection was not accepted in time.
    #[error("cannot connect to {address}: the connection was not accepted within {limit:?}")]
    Timeout {
        /// The address of the instance.
        address: SocketAddr,
        /// The time limit.
        limit: Duration,
    },
    /// The target has no instances.
    #[error("cannot connect: no instance is running")]
    NoInstance,
}

fn user(uid: Option<u32>) -> String {
    uid.map_or_else(|| String::from("no process"), |uid| format!("user {uid}"))
}

/// The interface through which the proxy connects to the instances of one environment.
pub trait Connector: Send + Sync + 'static {
    /// Opens a connection to the instance at `address`. If the connector knows the user of the environment's processes, the returned stream
    /// never leads to a process of another environment.
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, Result<TcpStream, ConnectError>>;

    /// Returns true if a process of another environment listens at `address`, or if the listener's user cannot be determined. Returns false
    /// if no process listens. The default implementation always returns false, for connectors whose addresses are private to one
    /// environment.
    fn is_foreign(&self, _address: SocketAddr) -> bool {
        false
    }
}

/// A connector over TCP, for ports that all projects of this machine share.
///
/// While an application is down, every project can bind the application's port. A connector with an owner therefore uses a connection only
/// if the owner listens on the port. The owner is checked after the connection is made, because the listener could change between an
/// earlier check and the connection. A check takes a few microseconds, and a connection serves many requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpConnector {
    owner: Option<u32>,
}

impl TcpConnector {
    /// Creates a connector that accepts only listeners of the user `owner`. With `None`, the connector accepts every listener; this is for
    /// servers on which all processes run as one user.
    pub fn new(owner: Option<u32>) -> Self {
        Self { owner }
    }
}

impl Connector for TcpConnector {
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, Result<TcpStream, ConnectError>> {
        Box::pin(async move {
            let failed = |source| ConnectError::Io { address, source };
            let stream = TcpStream::connect(address).await.map_err(failed)?;
            if let Some(expected) = self.owner {
                let seen = sockets::listener(address).map_err(failed)?;
                if seen != Some(expected) {
                    return Err(ConnectError::Foreign { address, seen, expected });
                }
            }
            Ok(stream)
        })
    }

    fn is_foreign(&self, address: SocketAddr) -> bool {
        let Some(owner) = self.owner else { return false };
        !sockets::listener(address).is_ok_and(|seen| seen.is_none_or(|uid| uid == owner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tcp_connector_rejects_listener_of_another_user() {
        let me = rustix::process::geteuid().as_raw();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        for connector in [TcpConnector::default(), TcpConnector::new(Some(me))] {
            assert!(connector.connect(address).await.is_ok());
            assert!(!connector.is_foreign(address));
        }
        let other = TcpConnector::new(Some(me + 1));
        let error = other.connect(address).await.unwrap_err();
        assert!(matches!(error, ConnectError::Foreign { seen: Some(uid), .. } if uid == me), "{error}");
        assert!(error.to_string().contains(&format!("user {me} listens on this port (expected user {})", me + 1)), "{error}");
        assert!(other.is_foreign(address));
    }
}
