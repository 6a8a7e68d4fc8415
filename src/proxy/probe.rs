//! One small GET, for checks: does this address answer, and with what?

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, client::conn::http1::Builder, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Why there was no status.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The path or the host is not one that a request can carry.
    #[error("cannot ask {host} for {path:?}: a path starts with / and has no spaces")]
    Request {
        /// The path as it was given.
        path: String,
        /// The host as it was given.
        host: String,
        /// What is wrong with it.
        #[source]
        source: hyper::http::Error,
    },
    /// Nobody accepts connections there.
    #[error("cannot connect to {address}")]
    Connect {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// There was a connection, but no response that makes sense.
    #[error("no valid HTTP response from {address} for {path}")]
    Exchange {
        /// The address.
        address: SocketAddr,
        /// The path.
        path: String,
        /// What was wrong.
        #[source]
        source: hyper::Error,
    },
    /// It took too long.
    #[error("no response from {address} for {path} within {limit:?}")]
    Timeout {
        /// The address.
        address: SocketAddr,
        /// The path.
        path: String,
        /// The limit.
        limit: Duration,
    },
}

/// Asks `address` for `path` as `host`, on a connection of its own, and returns the status. Redirects are not followed, the body is not
/// read; all of it within `limit`.
pub async fn probe(address: SocketAddr, path: &str, host: &str, limit: Duration) -> Result<StatusCode, ProbeError> {
    fetch(address, path, host, 0, limit).await.map(|(status, _)| status)
}

/// The same, with the body's first `wanted` bytes, or all of them if there are fewer.
pub async fn fetch(
    address: SocketAddr,
    path: &str,
    host: &str,
    wanted: usize,
    limit: Duration,
) -> Result<(StatusCode, Vec<u8>), ProbeError> {
    // What is no path would reach the other side as another request line.
    let target = if path.starts_with('/') { path } else { "" };
    let request = Request::get(target)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "larder-probe")
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|source| ProbeError::Request { path: path.to_owned(), host: host.to_owned(), source })?;
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(|source| ProbeError::Connect { address, source })?;
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
            // The connection may end in the same moment as the response arrives; the response counts.
            _ = connection => answering.await,
        };
        response.map_err(failed)
    };
    match tokio::time::timeout(limit, exchange).await {
        Ok(result) => result,
        Err(_) => Err(ProbeError::Timeout { address, path: path.to_owned(), limit }),
    }
}
