//! How much anyone may ask for before and after proving who they are.
//!
//! Connections are counted in all and per source (an IPv4 address or an IPv6 /64). A source that misbehaves is kept out for a
//! while. The table of sources is bounded: whoever can forge many addresses can make it forget, not make it grow.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// All bounds of the server; the defaults suit a machine with a few hundred users.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From the connection to a login, whatever the client does meanwhile.
    pub login_grace: Duration,
    /// From the connection to the end of the key exchange.
    pub handshake: Duration,
    /// Connections at once, in all.
    pub connections: usize,
    /// Connections at once of one user.
    pub connections_per_user: usize,
    /// Connections at once that have not logged in yet.
    pub unauthenticated: usize,
    /// From this many on, new ones are dropped at random, ever more likely.
    pub early_drop: usize,
    /// Connections of one source that have not logged in yet.
    pub unauthenticated_per_source: usize,
    /// New connections per second of one source, in the long run.
    pub rate: f64,
    /// New connections of one source at once.
    pub burst: f64,
    /// Refused logins per connection.
    pub auth_failures: usize,
    /// Keys that may be offered per connection.
    pub offers: usize,
    /// Channels at once per connection.
    pub channels_open: usize,
    /// Channels ever per connection.
    pub channels_total: usize,
    /// Silence after which the client is asked whether it lives.
    pub keepalive: Duration,
    /// Unanswered questions after which it does not.
    pub keepalive_max: usize,
    /// How long a connection without a running request is kept.
    pub idle: Duration,
    /// Delay before a refused login is answered.
    pub refusal_delay: Duration,
    /// Sources that the per-source bounds do not apply to.
    pub exempt: Vec<Network>,
    /// Sources remembered.
    pub sources: usize,
}

impl Default for Limits {
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

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Any address in it.
    pub address: IpAddr,
    /// How many leading bits all its addresses share.
    pub prefix: u8,
}

impl Network {
    /// Whether an address lies in this range; an IPv4 address is the same when it comes mapped into IPv6.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address.to_canonical(), address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let shift = 32_u32.saturating_sub(self.prefix.into());
                ours.to_bits().checked_shr(shift).unwrap_or(0) == theirs.to_bits().checked_shr(shift).unwrap_or(0)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let shift = 128_u32.saturating_sub(self.prefix.into());
                ours.to_bits().checked_shr(shift).unwrap_or(0) == theirs.to_bits().checked_shr(shift).unwrap_or(0)
            }
            _ => false,
        }
    }
}

/// Why a connection was closed before a byte was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Full,
    TooManyUnauthenticated,
    EarlyDrop,
    TooManyFromSource,
    Rate,
    Penalty,
}

/// What a connection did wrong, and how long its source is kept out for it.
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

// Small offences add up before they count; nobody is kept out for longer than the maximum.
const PENALTY_MIN: Duration = Duration::from_secs(15);
const PENALTY_MAX: Duration = Duration::from_secs(600);

struct Source {
    unauthenticated: usize,
    tokens: f64,
    seen: Instant,
    /// Penalties add up here; it may lie in the past.
    penalty_ends: Instant,
    kept_out: bool,
}

#[derive(Default)]
struct Table {
    connections: usize,
    unauthenticated: usize,
    sources: HashMap<IpAddr, Source>,
}

/// The door: counts who is inside.
pub(super) struct Gate {
    limits: Limits,
    table: Mutex<Table>,
}

impl Gate {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, table: Mutex::default() })
    }

    /// Lets a connection in, or says why not. `chance` is a random number below 1.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr, now: Instant, chance: f64) -> Result<Ticket, Refusal> {
        let limits = &self.limits;
        let exempt = limits.exempt.iter().any(|network| network.contains(address));
        let source = source_of(address);
        let mut table = self.table.lock();
        if table.connections >= limits.connections {
            return Err(Refusal::Full);
        }
        if table.unauthenticated >= limits.unauthenticated {
            return Err(Refusal::TooManyUnauthenticated);
        }
        if !exempt {
            if chance < early_drop_chance(limits, table.unauthenticated) {
                return Err(Refusal::EarlyDrop);
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
                kept_out: false,
            });
            let passed = now.saturating_duration_since(entry.seen).as_secs_f64();
            entry.tokens = (entry.tokens + passed * limits.rate).min(limits.burst);
            entry.seen = now;
            entry.kept_out &= entry.penalty_ends > now;
            if entry.kept_out {
                return Err(Refusal::Penalty);
            }
            if entry.unauthenticated >= limits.unauthenticated_per_source {
                return Err(Refusal::TooManyFromSource);
            }
            if entry.tokens < 1.0 {
                return Err(Refusal::Rate);
            }
            entry.tokens -= 1.0;
            entry.unauthenticated = entry.unauthenticated.saturating_add(1);
        }
        table.connections = table.connections.saturating_add(1);
        table.unauthenticated = table.unauthenticated.saturating_add(1);
        Ok(Ticket { gate: Arc::clone(self), source, exempt, waiting: true })
    }

    fn logged_in(&self, source: IpAddr, exempt: bool) {
        let mut table = self.table.lock();
        table.unauthenticated = table.unauthenticated.saturating_sub(1);
        if !exempt && let Some(entry) = table.sources.get_mut(&source) {
            entry.unauthenticated = entry.unauthenticated.saturating_sub(1);
        }
    }
}

fn early_drop_chance(limits: &Limits, unauthenticated: usize) -> f64 {
    let room = limits.unauthenticated.saturating_sub(limits.early_drop);
    match unauthenticated.checked_sub(limits.early_drop) {
        Some(over) if room > 0 => 0.3 + 0.7 * (over as f64 / room as f64),
        _ => 0.0,
    }
}

/// The oldest of those that have nothing open and no penalty; else the oldest.
fn forget_one(sources: &mut HashMap<IpAddr, Source>) {
    let oldest = sources.iter().min_by_key(|(_, s)| (s.unauthenticated > 0, s.kept_out, s.seen)).map(|(key, _)| *key);
    if let Some(key) = oldest {
        sources.remove(&key);
    }
}

/// Whoever has one IPv6 address has its whole /64.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

/// A place inside; given back when dropped.
pub(super) struct Ticket {
    gate: Arc<Gate>,
    source: IpAddr,
    exempt: bool,
    waiting: bool,
}

impl Ticket {
    /// From now on it counts only against the total.
    pub(super) fn logged_in(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.gate.logged_in(self.source, self.exempt);
        }
    }

    /// Notes what the connection did wrong.
    pub(super) fn offence(&self, offence: Offence, now: Instant) {
        if self.exempt {
            return;
        }
        if let Some(entry) = self.gate.table.lock().sources.get_mut(&self.source) {
            let ends = entry.penalty_ends.max(now) + offence.penalty();
            entry.penalty_ends = ends.min(now + PENALTY_MAX);
            entry.kept_out |= entry.penalty_ends.saturating_duration_since(now) >= PENALTY_MIN;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.logged_in();
        let mut table = self.gate.table.lock();
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
    fn one_source_has_few_places_and_they_come_back() {
        let gate = Gate::new(Limits::default());
        let now = Instant::now();
        let mut inside: Vec<_> = (0..8).map(|_| gate.admit(ip(FAR), now, 1.0).ok().unwrap()).collect();
        assert_eq!(gate.admit(ip(FAR), now, 1.0).err(), Some(Refusal::TooManyFromSource));
        assert!(gate.admit(ip("203.0.113.8"), now, 1.0).is_ok());
        inside[0].logged_in();
        inside[0].logged_in();
        let extra = gate.admit(ip(FAR), now, 1.0).ok().unwrap();
        assert!(gate.admit(ip(FAR), now, 1.0).is_err());
        drop((inside, extra));
        let table = gate.table.lock();
        assert_eq!((table.connections, table.unauthenticated), (0, 0));
        assert!(table.sources.values().all(|s| s.unauthenticated == 0));
    }

    #[test]
    fn the_rate_is_limited_and_recovers() {
        let gate = Gate::new(Limits::default());
        let now = Instant::now();
        for _ in 0..15 {
            assert!(gate.admit(ip(FAR), now, 1.0).is_ok());
        }
        assert_eq!(gate.admit(ip(FAR), now, 1.0).err(), Some(Refusal::Rate));
        assert!(gate.admit(ip(FAR), now + Duration::from_millis(150), 1.0).is_ok());
        assert!(gate.admit(ip(FAR), now + Duration::from_millis(160), 1.0).is_err());
        for _ in 0..100 {
            assert!(gate.admit(ip("127.0.0.1"), now, 1.0).is_ok() && gate.admit(ip("::1"), now, 1.0).is_ok());
            assert!(gate.admit(ip("::ffff:127.0.0.1"), now, 1.0).is_ok());
        }
    }

    #[test]
    fn a_whole_ipv6_network_is_one_source() {
        let gate = Gate::new(Limits::default());
        let now = Instant::now();
        let inside: Vec<_> = (0..8).map(|n| gate.admit(ip(&format!("2001:db8::{n:x}")), now, 1.0).ok().unwrap()).collect();
        assert_eq!(gate.admit(ip("2001:db8::ffff:1"), now, 1.0).err(), Some(Refusal::TooManyFromSource));
        assert!(gate.admit(ip("2001:db8:0:1::1"), now, 1.0).is_ok());
        drop(inside);
    }

    #[test]
    fn totals_hold_for_everyone_and_early_drop_grows() {
        let gate = Gate::new(Limits::default());
        let now = Instant::now();
        let mut inside = Vec::new();
        for n in 0..64_u32 {
            inside.push(gate.admit(IpAddr::from((0xC000_0200 + n).to_be_bytes()), now, 1.0).ok().unwrap());
        }
        assert_eq!(gate.admit(ip("127.0.0.1"), now, 1.0).err(), Some(Refusal::TooManyUnauthenticated));
        inside.truncate(32);
        assert_eq!(gate.admit(ip(FAR), now, 0.29).err(), Some(Refusal::EarlyDrop));
        assert!(gate.admit(ip(FAR), now, 0.31).is_ok());
        inside.truncate(31);
        assert!(gate.admit(ip(FAR), now, 0.0).is_ok());
        let limits = Limits { connections: 2, ..Limits::default() };
        let gate = Gate::new(limits);
        let mut two: Vec<_> = (0..2).map(|_| gate.admit(ip("::1"), now, 1.0).ok().unwrap()).collect();
        two.iter_mut().for_each(Ticket::logged_in);
        assert_eq!(gate.admit(ip("::1"), now, 1.0).err(), Some(Refusal::Full));
    }

    #[test]
    fn offences_add_up_and_end() {
        let gate = Gate::new(Limits::default());
        let now = Instant::now();
        for _ in 0..2 {
            gate.admit(ip(FAR), now, 1.0).ok().unwrap().offence(Offence::RefusedLogin, now);
        }
        let third = gate.admit(ip(FAR), now, 1.0).ok().unwrap();
        third.offence(Offence::RefusedLogin, now);
        assert_eq!(gate.admit(ip(FAR), now, 1.0).err(), Some(Refusal::Penalty));
        // Kept out to its end, not only while the rest is long.
        assert_eq!(gate.admit(ip(FAR), now + Duration::from_secs(14), 1.0).err(), Some(Refusal::Penalty));
        assert!(gate.admit(ip(FAR), now + Duration::from_secs(16), 1.0).is_ok());
        for _ in 0..100 {
            third.offence(Offence::Crash, now);
        }
        assert!(gate.admit(ip(FAR), now + PENALTY_MAX + Duration::from_secs(1), 1.0).is_ok());
    }

    #[test]
    fn the_table_does_not_grow_beyond_its_bound() {
        let gate = Gate::new(Limits { sources: 100, ..Limits::default() });
        let now = Instant::now();
        for n in 0..10_000_u32 {
            drop(gate.admit(IpAddr::from(n.to_be_bytes()), now + Duration::from_millis(n.into()), 1.0));
        }
        assert!(gate.table.lock().sources.len() <= 100);
    }
}
