//! A web server of plain files, from which builds download.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// A web server on a loopback address, which serves the files of a directory until this value is dropped.
pub struct Files {
    pub address: SocketAddr,
    found: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Files {
    pub fn of(directory: &Path) -> Files {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (found, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (directory, counted, stopped) = (directory.to_owned(), Arc::clone(&found), Arc::clone(&stop));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (directory, counted) = (directory.clone(), Arc::clone(&counted));
                std::thread::spawn(move || answer(client, &directory, &counted));
            }
        });
        Files { address, found, stop }
    }

    /// Returns the number of requests for files that exist.
    pub fn found(&self) -> usize {
        self.found.load(Ordering::SeqCst)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// Serves one request per connection.
fn answer(mut client: TcpStream, directory: &Path, found: &AtomicUsize) -> Option<()> {
    let mut asked = BufReader::new(client.try_clone().ok()?);
    let mut line = String::new();
    asked.read_line(&mut line).ok()?;
    let path = PathBuf::from(line.split(' ').nth(1)?.split('?').next()?.trim_start_matches('/'));
    while line.trim() != "" {
        line.clear();
        asked.read_line(&mut line).ok()?;
    }
    let body = if path.is_relative() && !path.starts_with("..") { fs::read(directory.join(path)).ok() } else { None };
    let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
    found.fetch_add(usize::from(body.is_some()), Ordering::SeqCst);
    let body = body.unwrap_or_default();
    write!(client, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len()).ok()?;
    client.write_all(&body).ok()
}
