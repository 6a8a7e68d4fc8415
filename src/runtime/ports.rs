//! The assignment of ports on which applications listen.

use std::{collections::HashSet, net::TcpListener, ops::RangeInclusive};

/// A range of loopback ports that are assigned in turn. A released port therefore stays unused for as long as possible, and late
/// connections to a stopped process do not reach another process.
#[derive(Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    next: u16,
    taken: HashSet<u16>,
}

impl Ports {
    /// Creates the range from `from` to `to`, including both ports.
    pub fn new(from: u16, to: u16) -> Ports {
        // Another server on this machine may use the same range. The first port is random, so that two servers rarely try the same port at
        // the same time.
        let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
        let size = u64::from(to.saturating_sub(from)).saturating_add(1);
        let next = u16::try_from(random % size).map_or(from, |offset| from.saturating_add(offset));
        Ports { range: from..=to, next, taken: HashSet::new() }
    }

    /// Returns the first and the last port of the range.
    pub fn bounds(&self) -> (u16, u16) {
        (*self.range.start(), *self.range.end())
    }

    /// Marks `port` as taken by a process that outlived a restart of the server.
    pub fn claim(&mut self, port: u16) {
        self.taken.insert(port);
    }

    /// Takes a port on which no process listens. Returns `None` if the range is exhausted.
    pub fn take(&mut self) -> Option<u16> {
        let (from, to) = self.bounds();
        for _ in from..=to {
            let port = self.next;
            self.next = if port >= to { from } else { port.saturating_add(1) };
            if !self.taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
                self.taken.insert(port);
                return Some(port);
            }
        }
        None
    }

    /// Releases `port`.
    pub fn give_back(&mut self, port: u16) {
        self.taken.remove(&port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_without_a_free_port_returns_none() {
        let busy = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = busy.local_addr().unwrap().port();
        let mut ports = Ports::new(port, port);
        assert_eq!(ports.take(), None);
        drop(busy);
        assert_eq!(ports.take(), Some(port));
        assert_eq!(ports.take(), None);
        ports.give_back(port);
        assert_eq!(ports.take(), Some(port));
    }
}
