//! A network connection to a server, which a test can cut and slow down.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// A TCP forwarder to a port of this machine.
pub struct Link {
    pub port: u16,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    to: u16,
    /// The cuts of the next connections, in the order of connecting: the number of bytes from the server after which the connection is cut.
    cuts_to_come: Mutex<VecDeque<u64>>,
    /// The maximum rate from the server, in bytes per second; zero for no limit.
    rate: AtomicU64,
    /// The number of bytes from the server so far.
    passed: AtomicU64,
    /// The number of cut connections.
    cuts: AtomicUsize,
    stop: AtomicBool,
}

impl Link {
    pub fn to(port: u16) -> Link {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let state = Arc::new(State {
            to: port,
            cuts_to_come: Mutex::default(),
            rate: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            cuts: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let (port, shared) = (listener.local_addr().unwrap().port(), Arc::clone(&state));
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), state) = (client, Arc::clone(&shared)) else { continue };
                std::thread::spawn(move || state.carry(client));
            }
        });
        Link { port, state, thread: Some(thread) }
    }

    /// Cuts each of the next connections after the given number of bytes from the server.
    pub fn cut_after(&self, bytes: impl IntoIterator<Item = u64>) {
        self.state.cuts_to_come.lock().extend(bytes);
    }

    /// Limits the data from the server, for each connection from now on.
    pub fn slow_to(&self, bytes_per_second: u64) {
        self.state.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Returns the number of bytes from the server so far.
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::Relaxed)
    }

    /// Returns the number of cut connections.
    pub fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::Relaxed)
    }
}

impl State {
    fn carry(&self, client: TcpStream) {
        let Ok(server) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.to))) else { return };
        let cut = self.cuts_to_come.lock().pop_front().unwrap_or(0);
        let (mut up_from, mut up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let up = std::thread::spawn(move || {
            let _ = std::io::copy(&mut up_from, &mut up_to);
            let _ = up_to.shutdown(Shutdown::Write);
        });
        self.down(&server, &client, cut);
        let _ = (server.shutdown(Shutdown::Both), client.shutdown(Shutdown::Both));
        let _ = up.join();
    }

    fn down(&self, mut server: &TcpStream, mut client: &TcpStream, cut: u64) {
        let (mut buffer, mut carried, began) = (vec![0; 16 << 10], 0_u64, Instant::now());
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(read @ 1..) = server.read(&mut buffer) else { return };
            let left = if cut == 0 { read as u64 } else { (cut - carried).min(read as u64) };
            if client.write_all(&buffer[..left as usize]).is_err() {
                return;
            }
            carried += left;
            self.passed.fetch_add(left, Ordering::Relaxed);
            if cut > 0 && carried == cut {
                self.cuts.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let rate = self.rate.load(Ordering::Relaxed);
            if rate > 0 {
                let due = Duration::from_secs_f64(carried as f64 / rate as f64);
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
