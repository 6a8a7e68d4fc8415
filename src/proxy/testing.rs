//! Applications, clients and a proxy for the tests of this module. Applications and proxy listen on loopback, at ports that the kernel
//! selects.

use std::{
    convert::Infallible,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::broadcast,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{Proxy, ProxySettings, Route, RouteTarget, TcpConnector};

/// The time limit of every wait in these tests. Only a failing test reaches the limit.
pub const LONG: Duration = Duration::from_secs(30);

/// A running proxy.
pub struct Front {
    pub proxy: Proxy,
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    pub serving: JoinHandle<()>,
}

impl Front {
    pub async fn start(settings: ProxySettings) -> Self {
        let proxy = Proxy::new(settings);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (served, stop) = (proxy.clone(), shutdown.clone());
        let serving = tokio::spawn(async move { served.serve(listener, stop).await.unwrap() });
        Self { proxy, address, shutdown, serving }
    }

    /// Starts a proxy with one route, for the host `shop`.
    pub async fn with_route(settings: ProxySettings) -> (Self, Arc<Route>) {
        let front = Self::start(settings).await;
        let route = Route::new("shop/production");
        front.proxy.set_route("shop", route.clone()).unwrap();
        (front, route)
    }

    pub async fn get(&self, path: &str) -> String {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")).await
    }

    /// Sends bytes on a new connection, and reads until the connection is closed.
    pub async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let _ = stream.write_all(request.as_ref()).await;
        read_all(&mut stream).await
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub async fn read_all(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        // A reset also closes the connection.
        while let Ok(count) = stream.read(&mut buffer).await {
            if count == 0 {
                break;
            }
            text.extend_from_slice(&buffer[..count]);
        }
    };
    tokio::time::timeout(LONG, reading).await.expect("the connection was not closed");
    String::from_utf8_lossy(&text).into_owned()
}

pub async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut text = String::new();
    let reading = async {
        while !text.ends_with(end) {
            let mut byte = [0];
            if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                break;
            }
            text.push(byte[0].into());
        }
    };
    tokio::time::timeout(LONG, reading).await.expect("the expected text did not arrive");
    text
}

/// An application that answers with its name, streams events, reads uploads and upgrades to WebSocket.
pub struct App {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    pub tick: broadcast::Sender<()>,
    stop: CancellationToken,
    /// A second descriptor of the listening socket.
    listening: OwnedFd,
}

impl App {
    pub async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listening = listener.as_fd().try_clone_to_owned().unwrap();
        let stop = CancellationToken::new();
        let connections = Arc::new(AtomicUsize::new(0));
        let (tick, _) = broadcast::channel(64);
        let (stopped, counted, ticks) = (stop.clone(), connections.clone(), tick.clone());
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stopped.cancelled() => break,
                    accepted = listener.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else { continue };
                counted.fetch_add(1, SeqCst);
                let (stopped, ticks) = (stopped.clone(), ticks.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(name, ticks.clone(), request));
                    let serving = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades();
                    tokio::select! {
                        _ = serving => {}
                        () = stopped.cancelled() => {}
                    }
                });
            }
        });
        Self { address, connections, tick, stop, listening }
    }

    pub fn target(&self) -> RouteTarget {
        tcp(vec![self.address])
    }

    /// Closes the listener and all connections at once, like a killed process. The kernel refuses new connections when this function
    /// returns. Otherwise, the kernel would accept connections until the task of the listener runs, and reset them afterwards.
    pub fn kill(&self) {
        let _ = rustix::net::shutdown(&self.listening, rustix::net::Shutdown::Both);
        self.stop.cancel();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.kill();
    }
}

type Out = BoxBody<Bytes, Infallible>;

async fn answer(
    name: &'static str,
    ticks: broadcast::Sender<()>,
    mut request: Request<Incoming>,
) -> Result<Response<Out>, Infallible> {
    let full = |text: String| Response::new(Full::new(Bytes::from(text)).boxed());
    Ok(match request.uri().path() {
        "/events" => {
            let ticks = ticks.subscribe();
            // Each tick is an event. The stream ends with the application.
            let events = futures_util::stream::unfold((ticks, true), move |(mut ticks, first)| async move {
                if !first {
                    ticks.recv().await.ok()?;
                }
                Some((Ok(Frame::data(Bytes::from(format!("data: {name}\n\n")))), (ticks, false)))
            });
            let mut response = Response::new(StreamBody::new(events).boxed());
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            response
        }
        "/upload" => match request.body_mut().collect().await {
            Ok(body) => full(format!("{name} took {}", body.to_bytes().len())),
            Err(_) => full("broken".into()),
        },
        "/socket" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..count]).await.is_err() {
                        break;
                    }
                }
            });
            let mut response = full(String::new());
            *response.status_mut() = hyper::StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("connection", "Upgrade".parse().unwrap());
            response.headers_mut().insert("upgrade", "websocket".parse().unwrap());
            response
        }
        "/headers" => {
            let mut lines = vec![format!("{} {}", request.method(), request.uri())];
            lines.extend(request.headers().iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap_or("?"))));
            full(lines.join("\n"))
        }
        "/big" => full("b".repeat(32 << 20)),
        "/status/404" => {
            let mut response = full("none".into());
            *response.status_mut() = hyper::StatusCode::NOT_FOUND;
            response
        }
        _ => full(name.to_owned()),
    })
}

/// Returns a target of the instances at these addresses, over plain TCP.
pub fn tcp(addresses: Vec<SocketAddr>) -> RouteTarget {
    RouteTarget::new(addresses, Arc::new(TcpConnector::default()))
}

/// Starts an application that answers each request's head with exactly these bytes, and then closes the connection. With `None`, the
/// application never answers.
pub async fn scripted(answer: Option<Vec<u8>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                if read_until(&mut stream, "\r\n\r\n").await.is_empty() {
                    return;
                }
                match answer {
                    Some(answer) => {
                        let _ = stream.write_all(&answer).await;
                    }
                    None => std::future::pending().await,
                }
            });
        }
    });
    address
}

/// The close frame of the proxy, as [`read_all`] returns it: the status 1012, with U+FFFD for the bytes that are not UTF-8.
pub const CLOSE_FRAME: &str = "\u{fffd}\u{2}\u{3}\u{fffd}";

/// Polls until `check` returns true.
pub async fn until(mut check: impl FnMut() -> bool) {
    let polling = async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, polling).await.expect("the condition did not become true");
}

pub(super) fn quick() -> ProxySettings {
    ProxySettings { connect_retry_limit: Duration::from_millis(100), ..ProxySettings::default() }
}

pub(super) async fn socket(front: &Front) -> TcpStream {
    let mut socket = TcpStream::connect(front.address).await.unwrap();
    let request = "GET /socket HTTP/1.1\r\nHost: shop\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let head = read_until(&mut socket, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.to_lowercase().contains("upgrade: websocket"), "{head}");
    socket
}

pub(super) async fn echo(socket: &mut TcpStream, text: &str) {
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut back = vec![0; text.len()];
    tokio::time::timeout(LONG, socket.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, text.as_bytes());
}
