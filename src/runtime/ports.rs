//! The ports that applications are told to listen on.

use std::{collections::HashSet, net::TcpListener, ops::RangeInclusive};

/// A range of loopback ports, given out in turn so that a port that was just given back rests for as long as possible: late
/// connections meant for a stopped process must not reach another one.
#[derive(Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    next: u16,
    taken: HashSet<u16>,
}

impl Ports {
    /// The ports `from` to `to`, both included.
    pub fn new(from: u16, to: u16) -> Ports {
        // Another server on this machine may have been given the same range; beginning at the same port would make both choose
        // the same one at the same time.
        let (somewhere, _) = uuid::Uuid::new_v4().as_u64_pair();
        let size = u64::from(to.saturating_sub(from)).saturating_add(1);
        let next = u16::try_from(somewhere % size).map_or(from, |offset| from.saturating_add(offset));
        Ports { range: from..=to, next, taken: HashSet::new() }
    }

    /// The first and last port of the range.
    pub fn bounds(&self) -> (u16, u16) {
        (*self.range.start(), *self.range.end())
    }

    /// Notes that a process of an earlier server has `port`.
    pub fn claim(&mut self, port: u16) {
        self.taken.insert(port);
    }

    /// A port that nobody listens on, or nothing where the range is exhausted.
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

    /// Makes `port` free again.
    pub fn give_back(&mut self, port: u16) {
        self.taken.remove(&port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_use_are_passed_over_and_the_range_ends() {
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
