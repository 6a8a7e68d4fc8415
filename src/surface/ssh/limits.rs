//! Limits on connections before and after the login.
//!
//! Connections are counted in total and per source (an IPv4 address or an IPv6 /64). A source with many offences is blocked for a time.
//! The table of sources is bounded: an attacker with many addresses can replace its entries, but cannot make it grow.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::model::Network;

/// All limits of the SSH server. The defaults suit a machine with a few hundred users.
#[derive(Debug, Clone)]
pub struct SshLimits {
    /// The maximum time from the connection to the login.
    pub login_grace: Duration,
    /// The maximum time from the connection to the end of the key exchange.
    pub handshake: Duration,
    /// The maximum number of simultaneous connections.
    pub connections: usize,
    /// The maximum number of simultaneous connections of one user.
    pub connections_per_user: usize,
    /// The maximum number of simultaneous connections that have not logged in yet.
    pub unauthenticated: usize,
    /// The number of unauthenticated connections at which the server begins to drop new connections at random. The probability rises from
    /// 30 % at this number to 100 % at `unauthenticated`.
    pub early_drop: usize,
    /// The maximum number of simultaneous connections of one source that have not logged in yet.
    pub unauthenticated_per_source: usize,
    /// The sustained rate of new connections of one source, per second.
    pub rate: f64,
    /// The number of new connections of one source that may exceed the rate.
    pub burst: f64,
    /// The maximum number of refused logins per connection.
    pub auth_failures: usize,
    /// The maximum number of keys that a client may offer per connection.
    pub offers: usize,
    /// The maximum number of simultaneous channels of one connection.
    pub channels_open: usize,
    /// The maximum number of channels of one connection in total.
    pub channels_total: usize,
    /// The time without data after which a keepalive is sent.
    pub keepalive: Duration,
    /// The number of unanswered keepalives after which the connection is closed.
    pub keepalive_max: usize,
    /// The time for which a connection without a running request is kept.
    pub idle: Duration,
    /// The delay before a refused login is answered.
    pub refusal_delay: Duration,
    /// The sources to which neither the limits per source nor the early drop apply.
    pub exempt: Vec<Network>,
    /// The maximum number of sources in the table.
    pub sources: usize,
}

impl Default for SshLimits {
    fn default() -> Self {
        Self {
            login_grace: Duration::from_secs(30),
            handshake: Duration::from_secs(10),
            connections: 512,
            connections_per_user: 32,
            unauthenticated: 64,
            early_drop: 32,
            unauthenticated_per_source: 8,
            rate: 10.0,
            burst: 15.0,
            auth_failures: 6,
            offers: 20,
            channels_open: 4,
            channels_total: 32,
            keepalive: Duration::from_secs(30),
            keepalive_max: 4,
            idle: Duration::from_secs(120),
            refusal_delay: Duration::from_secs(1),
            exempt: vec![
                Network { address: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), prefix: 8 },
                Network { address: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128 },
            ],
            sources: 4096,
        }
    }
}

/// The reason why a connection is closed before a byte is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionRefusal {
    Full,
    TooManyUnauthenticated,
    EarlyDrop,
    TooManyFromSource,
    Rate,
    Penalty,
}

/// An offence of a connection. Each offence adds a penalty to the source of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offence {
    NoLogin,
    RefusedLogin,
    Grace,
    Crash,
}

impl Offence {
    fn penalty(self) -> Duration {
        Duration::from_secs(match self {
            Offence::NoLogin => 1,
            Offence::RefusedLogin => 5,
            Offence::Grace => 10,
            Offence::Crash => 90,
        })
    }
}

// Penalties add up. A source is blocked once its remaining penalties reach `MIN_PENALTY`, until all of its penalties have ended. The
// remaining penalties never exceed `MAX_PENALTY`. The penalties and both limits follow the defaults of `PerSourcePenalties` in
// sshd_config(5).
const MIN_PENALTY: Duration = Duration::from_secs(15);
const MAX_PENALTY: Duration = Duration::from_secs(600);

struct Source {
    unauthenticated: usize,
    tokens: f64,
    seen: Instant,
    /// The time at which all penalties have ended; each penalty begins after the previous penalty. This time may be in the past.
    penalty_ends: Instant,
    blocked: bool,
}

#[derive(Default)]
struct Table {
    connections: usize,
    unauthenticated: usize,
    sources: HashMap<IpAddr, Source>,
}

/// The limiter, which counts connections and decides which connections are accepted.
pub(super) struct ConnectionLimiter {
    limits: SshLimits,
    table: Mutex<Table>,
}

impl ConnectionLimiter {
    pub(super) fn new(limits: SshLimits) -> Arc<Self> {
        Arc::new(Self { limits, table: Mutex::default() })
    }

    /// Takes a permit for a connection. `chance` is a random number from 0 to below 1.
    pub(super) fn acquire(
        self: &Arc<Self>,
        address: IpAddr,
        now: Instant,
        chance: f64,
    ) -> Result<ConnectionPermit, ConnectionRefusal> {
        let limits = &self.limits;
        let exempt = limits.exempt.iter().any(|network| network.contains(address));
        let source = source_of(address);
        let mut table = self.table.lock();
        if table.connections >= limits.connections {
            return Err(ConnectionRefusal::Full);
        }
        if table.unauthenticated >= limits.unauthenticated {
            return Err(ConnectionRefusal::TooManyUnauthenticated);
        }
        if !exempt {
            if chance < early_drop_chance(limits, table.unauthenticated) {
                return Err(ConnectionRefusal::EarlyDrop);
            }
            let full = table.sources.len() >= limits.sources && !table.sources.contains_key(&source);
            if full {
                forget_one(&mut table.sources);
            }
            let entry = table.sources.entry(source).or_insert_with(|| Source {
                unauthenticated: 0,
                tokens: limits.burst,
                seen: now,
                penalty_ends: now,
                blocked: false,
            });
            let passed = now.saturating_duration_since(entry.seen).as_secs_f64();
            entry.tokens = (entry.tokens + passed * limits.rate).min(limits.burst);
            entry.seen = now;
            entry.blocked &= entry.penalty_ends > now;
            if entry.blocked {
                return Err(ConnectionRefusal::Penalty);
            }
            if entry.unauthenticated >= limits.unauthenticated_per_source {
                return Err(ConnectionRefusal::TooManyFromSource);
            }
            if entry.tokens < 1.0 {
                return Err(ConnectionRefusal::Rate);
            }
            entry.tokens -= 1.0;
            entry.unauthenticated = entry.unauthenticated.saturating_add(1);
        }
        table.connections = table.connections.saturating_add(1);
        table.unauthenticated = table.unauthenticated.saturating_add(1);
        Ok(ConnectionPermit { limiter: Arc::clone(self), source, exempt, waiting: true })
    }

    fn logged_in(&self, source: IpAddr, exempt: bool) {
        let mut table = self.table.lock();
        table.unauthenticated = table.unauthenticated.saturating_sub(1);
        if !exempt && let Some(entry) = table.sources.get_mut(&source) {
            entry.unauthenticated = entry.unauthenticated.saturating_sub(1);
        }
    }
}

fn early_drop_chance(limits: &SshLimits, unauthenticated: usize) -> f64 {
    let range = limits.unauthenticated.saturating_sub(limits.early_drop);
    match unauthenticated.checked_sub(limits.early_drop) {
        Some(over) if range > 0 => 0.3 + 0.7 * (over as f64 / range as f64),
        _ => 0.0,
    }
}

/// Removes one source. Prefers sources without unauthenticated connections, then sources that are not blocked, then the source that was
/// seen longest ago.
fn forget_one(sources: &mut HashMap<IpAddr, Source>) {
    let oldest = sources.iter().min_by_key(|(_, s)| (s.unauthenticated > 0, s.blocked, s.seen)).map(|(key, _)| *key);
    if let Some(key) = oldest {
        sources.remove(&key);
    }
}

/// Returns the source of an address. The holder of an IPv6 address usually holds the whole /64 network.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

/// A permit for a connection, which is returned to the limiter when this value is dropped.
pub(super) struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    source: IpAddr,
    exempt: bool,
    waiting: bool,
}

impl ConnectionPermit {
    /// Marks the connection as logged in. In this limiter, a logged-in connection counts only against the total number of connections.
    pub(super) fn logged_in(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.limiter.logged_in(self.source, self.exempt);
        }
    }

    /// Records an offence of the connection.
    pub(super) fn offence(&self, offence: Offence, now: Instant) {
        if self.exempt {
            return;
        }
        if let Some(entry) = self.limiter.table.lock().sources.get_mut(&self.source) {
            let ends = entry.penalty_ends.max(now) + offence.penalty();
            entry.penalty_ends = ends.min(now + MAX_PENALTY);
            entry.blocked |= entry.penalty_ends.saturating_duration_since(now) >= MIN_PENALTY;
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.logged_in();
        let mut table = self.limiter.table.lock();
        table.connections = table.connections.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: &str = "203.0.113.7";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_of_one_source_are_limited_and_returned() {
        let limiter = ConnectionLimiter::new(SshLimits::default());
        let now = Instant::now();
        let mut inside: Vec<_> = (0..8).map(|_| limiter.acquire(ip(FAR), now, 1.0).ok().unwrap()).collect();
        assert_eq!(limiter.acquire(ip(FAR), now, 1.0).err(), Some(ConnectionRefusal::TooManyFromSource));
        assert!(limiter.acquire(ip("203.0.113.8"), now, 1.0).is_ok());
        inside[0].logged_in();
        inside[0].logged_in();
        let extra = limiter.acquire(ip(FAR), now, 1.0).ok().unwrap();
        assert!(limiter.acquire(ip(FAR), now, 1.0).is_err());
        drop((inside, extra));
        let table = limiter.table.lock();
        assert_eq!((table.connections, table.unauthenticated), (0, 0));
        assert!(table.sources.values().all(|s| s.unauthenticated == 0));
    }

    #[test]
    fn connection_rate_is_limited_and_recovers() {
        let limiter = ConnectionLimiter::new(SshLimits::default());
        let now = Instant::now();
        for _ in 0..15 {
            assert!(limiter.acquire(ip(FAR), now, 1.0).is_ok());
        }
        assert_eq!(limiter.acquire(ip(FAR), now, 1.0).err(), Some(ConnectionRefusal::Rate));
        assert!(limiter.acquire(ip(FAR), now + Duration::from_millis(150), 1.0).is_ok());
        assert!(limiter.acquire(ip(FAR), now + Duration::from_millis(160), 1.0).is_err());
        for _ in 0..100 {
            assert!(limiter.acquire(ip("127.0.0.1"), now, 1.0).is_ok() && limiter.acquire(ip("::1"), now, 1.0).is_ok());
            assert!(limiter.acquire(ip("::ffff:127.0.0.1"), now, 1.0).is_ok());
        }
    }

    #[test]
    fn ipv6_network_is_one_source() {
        let limiter = ConnectionLimiter::new(SshLimits::default());
        let now = Instant::now();
        let inside: Vec<_> = (0..8).map(|n| limiter.acquire(ip(&format!("2001:db8::{n:x}")), now, 1.0).ok().unwrap()).collect();
        assert_eq!(limiter.acquire(ip("2001:db8::ffff:1"), now, 1.0).err(), Some(ConnectionRefusal::TooManyFromSource));
        assert!(limiter.acquire(ip("2001:db8:0:1::1"), now, 1.0).is_ok());
        drop(inside);
    }

    #[test]
    fn total_limits_apply_to_every_source_and_early_drop_grows() {
        let limiter = ConnectionLimiter::new(SshLimits::default());
        let now = Instant::now();
        let mut inside = Vec::new();
        for n in 0..64_u32 {
            inside.push(limiter.acquire(IpAddr::from((0xC000_0200 + n).to_be_bytes()), now, 1.0).ok().unwrap());
        }
        assert_eq!(limiter.acquire(ip("127.0.0.1"), now, 1.0).err(), Some(ConnectionRefusal::TooManyUnauthenticated));
        inside.truncate(32);
        assert_eq!(limiter.acquire(ip(FAR), now, 0.29).err(), Some(ConnectionRefusal::EarlyDrop));
        assert!(limiter.acquire(ip(FAR), now, 0.31).is_ok());
        inside.truncate(31);
        assert!(limiter.acquire(ip(FAR), now, 0.0).is_ok());
        let limits = SshLimits { connections: 2, ..SshLimits::default() };
        let limiter = ConnectionLimiter::new(limits);
        let mut two: Vec<_> = (0..2).map(|_| limiter.acquire(ip("::1"), now, 1.0).ok().unwrap()).collect();
        two.iter_mut().for_each(ConnectionPermit::logged_in);
        assert_eq!(limiter.acquire(ip("::1"), now, 1.0).err(), Some(ConnectionRefusal::Full));
    }

    #[test]
    fn penalties_add_up_and_end() {
        let limiter = ConnectionLimiter::new(SshLimits::default());
        let now = Instant::now();
        for _ in 0..2 {
            limiter.acquire(ip(FAR), now, 1.0).ok().unwrap().offence(Offence::RefusedLogin, now);
        }
        let third = limiter.acquire(ip(FAR), now, 1.0).ok().unwrap();
        third.offence(Offence::RefusedLogin, now);
        assert_eq!(limiter.acquire(ip(FAR), now, 1.0).err(), Some(ConnectionRefusal::Penalty));
        // The source is blocked until the penalty ends, not only while more than `MIN_PENALTY` remains.
        assert_eq!(limiter.acquire(ip(FAR), now + Duration::from_secs(14), 1.0).err(), Some(ConnectionRefusal::Penalty));
        assert!(limiter.acquire(ip(FAR), now + Duration::from_secs(16), 1.0).is_ok());
        for _ in 0..100 {
            third.offence(Offence::Crash, now);
        }
        assert!(limiter.acquire(ip(FAR), now + MAX_PENALTY + Duration::from_secs(1), 1.0).is_ok());
    }

    #[test]
    fn source_table_is_bounded() {
        let limiter = ConnectionLimiter::new(SshLimits { sources: 100, ..SshLimits::default() });
        let now = Instant::now();
        for n in 0..10_000_u32 {
            drop(limiter.acquire(IpAddr::from(n.to_be_bytes()), now + Duration::from_millis(n.into()), 1.0));
        }
        assert!(limiter.table.lock().sources.len() <= 100);
    }
}
