//! `larder static-server`: the web process of projects that consist of files only.
//!
//! The server runs as a process of the project, in the sandbox and behind larder's proxy. The server therefore listens only on the loopback
//! address, without TLS. One thread is enough, because most responses come from the page cache. The type to read first is [`Site`].

mod answer;
mod files;
mod settings;

use std::{
    ffi::OsString,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::Semaphore,
};

use answer::Site;
use settings::{StaticError, StaticSettings};

/// The maximum number of concurrent connections. Further connections wait in the listener's queue.
const MAX_CONNECTIONS: usize = 512;
/// The time limit for the head of a request. A connection is closed after being idle for this time between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// The time limit for responses in flight after SIGTERM.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

/// Runs the server until SIGTERM. `arguments` are the arguments after the name of the command. The exit status is 0 after SIGTERM, 2 for
/// invalid options, 5 for an invalid `static.json` or directory, and 1 for other errors.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = StaticSettings::new(arguments, std::env::var_os("PORT"), std::env::var_os("LARDER_RELEASE")).and_then(run);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            let _ = writeln!(io::stderr(), "larder static-server: {error}{cause}");
            ExitCode::from(match error {
                StaticError::Usage(_) => 2,
                StaticError::Settings(_) => 5,
                StaticError::Listen(..) | StaticError::Start(_) => 1,
            })
        }
    }
}

fn run(settings: StaticSettings) -> Result<(), StaticError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StaticError::Start)?;
    runtime.block_on(async {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, settings.port));
        let listener = TcpListener::bind(address).await.map_err(|error| StaticError::Listen(address, error))?;
        let stop = signal(SignalKind::terminate()).map_err(StaticError::Start)?;
        let site = Arc::new(Site::new(settings)?);
        if let Ok(address) = listener.local_addr() {
            let _ = writeln!(io::stdout(), "serving {} on {address}", site.root());
        }
        serve(listener, site, stop).await;
        Ok(())
    })
}

async fn serve(listener: TcpListener, site: Arc<Site>, mut stop: Signal) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            _ = stop.recv() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let (stream, permit) = match accepted {
            Ok(Some(accepted)) => accepted,
            Ok(None) => break,
            Err(_) => {
                // The most likely cause is a lack of file descriptors. Descriptors become free when connections are closed.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let site = Arc::clone(&site);
        let service = service_fn(move |request| {
            let site = Arc::clone(&site);
            async move { Ok::<_, std::convert::Infallible>(site.answer(&request).await) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(64 * 1024);
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // An error means that the client disconnected or sent an invalid request. No other action is necessary.
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
}

type Accepted = (tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> io::Result<Option<Accepted>> {
    let Ok(permit) = Arc::clone(permits).acquire_owned().await else { return Ok(None) };
    let (stream, _) = listener.accept().await?;
    Ok(Some((stream, permit)))
}

#[cfg(test)]
mod tests;
