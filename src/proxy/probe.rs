//! Sends a single GET request: to an instance, for health checks, or to the proxy, for smoke checks.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, client::conn::http1::Builder, header};
use hyper_util::rt::TokioIo;

use super::connect::{ConnectError, Connector};

/// The reason why a probe received no valid response.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A request cannot contain this path or host.
    #[error("cannot request {path:?} of host {host:?} (expected a path that starts with / and contains no spaces)")]
    Request {
        /// The path as it was given.
        path: String,
        /// The host as it was given.
        host: String,
        /// The error of the request builder.
        #[source]
        source: hyper::http::Error,
    },
    /// The connection failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The instance sent no valid response on the connection.
    #[error("cannot request {path} from {address}: no valid HTTP response")]
    Exchange {
        /// The address that was probed.
        address: SocketAddr,
        /// The path that was requested.
        path: String,
        /// The protocol error.
        #[source]
        source: hyper::Error,
    },
    /// The response did not arrive in time.
    #[error("cannot request {path} from {address}: no response within {limit:?}")]
    Timeout {
        /// The address that was probed.
        address: SocketAddr,
        /// The path that was requested.
        path: String,
        /// The time limit.
        limit: Duration,
    },
}

/// Sends a GET request for `path` to `address` on a new connection, with `host` as the `Host` header, and returns the status. Fails if the
/// response does not arrive within `limit`. The function does not follow redirects and does not read the body.
pub async fn probe(
    connector: &dyn Connector,
    address: SocketAddr,
    path: &str,
    host: &str,
    limit: Duration,
) -> Result<StatusCode, ProbeError> {
    fetch(connector, address, path, host, 0, limit).await.map(|(status, _)| status)
}

/// Sends a request like [`probe`], and also returns the body, cut off after `wanted` bytes.
pub async fn fetch(
    connector: &dyn Connector,
    address: SocketAddr,
    path: &str,
    host: &str,
    wanted: usize,
    limit: Duration,
) -> Result<(StatusCode, Vec<u8>), ProbeError> {
    // Text without a slash at the start would be parsed as an absolute URI or as an authority. An empty target replaces such text, and the
    // request builder rejects the empty target.
    let target = if path.starts_with('/') { path } else { "" };
    let request = Request::get(target)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "larder-probe")
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|source| ProbeError::Request { path: path.to_owned(), host: host.to_owned(), source })?;
    let exchange = async {
        let stream = connector.connect(address).await?;
        let failed = |source| ProbeError::Exchange { address, path: path.to_owned(), source };
        let mut builder = Builder::new();
        builder.max_header_size(32 * 1024);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let answering = async {
            let mut response = sender.send_request(request).await?;
            let mut page = Vec::new();
            while page.len() < wanted
                && let Some(frame) = response.body_mut().frame().await
            {
                let left = wanted.saturating_sub(page.len());
                page.extend(frame?.into_data().unwrap_or_default().into_iter().take(left));
            }
            Ok((response.status(), page))
        };
        tokio::pin!(answering);
        let response = tokio::select! {
            response = answering.as_mut() => response,
            // If the connection is closed first, a response that has already arrived is still valid.
            _ = connection => answering.await,
        };
        response.map_err(failed)
    };
    match tokio::time::timeout(limit, exchange).await {
        Ok(result) => result,
        Err(_) => Err(ProbeError::Timeout { address, path: path.to_owned(), limit }),
    }
}
