//! Push tokens. A push in progress has a token, which authenticates the hooks of the push. When the push ends, its token becomes invalid.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use rustix::rand::{GetRandomFlags, getrandom};

use super::wire::HookKind;

/// A secret of 128 random bits that is given to the hooks of one push.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PushToken([u8; 16]);

impl PushToken {
    fn random() -> io::Result<PushToken> {
        let mut token = [0; 16];
        let mut filled = 0;
        while let Some(rest) = token.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            filled = filled.saturating_add(getrandom(rest, GetRandomFlags::empty())?);
        }
        Ok(PushToken(token))
    }

    /// Returns the token as text, for the environment of the hooks.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Hides the token, because debug output may be logged.
impl fmt::Debug for PushToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PushToken(..)")
    }
}

/// Parses a token in its text form.
pub(super) fn parse_token(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

#[derive(Debug)]
struct Pending<T> {
    ticket: T,
    seen: Vec<HookKind>,
    turned_away: Arc<AtomicBool>,
}

type Table<T> = Arc<Mutex<HashMap<[u8; 16], Pending<T>>>>;

/// All pushes in progress. `T` is the server's data about one push, such as the user and the project.
#[derive(Debug)]
pub struct PushRegistry<T> {
    table: Table<T>,
}

impl<T> Clone for PushRegistry<T> {
    fn clone(&self) -> Self {
        PushRegistry { table: self.table.clone() }
    }
}

impl<T> Default for PushRegistry<T> {
    fn default() -> Self {
        PushRegistry { table: Table::<T>::default() }
    }
}

impl<T: Clone> PushRegistry<T> {
    /// Creates an empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Issues the token of a new push. The token is valid for one call of each hook, until the returned [`PushTicket`] is dropped. Fails
    /// if the system cannot provide random bytes.
    pub fn issue(&self, ticket: T) -> io::Result<PushTicket<T>> {
        let token = PushToken::random()?;
        let turned_away = Arc::new(AtomicBool::new(false));
        let pending = Pending { ticket, seen: Vec::new(), turned_away: turned_away.clone() };
        self.table.lock().insert(token.0, pending);
        Ok(PushTicket { token, table: self.table.clone(), turned_away })
    }

    /// Returns the number of pushes in progress.
    pub fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// Returns true if no push is in progress.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the data of the push to which the token belongs. Returns `None` if no push in progress has this token, or if a hook of this
    /// kind has already redeemed the token.
    pub(super) fn redeem(&self, token: &[u8; 16], kind: HookKind) -> Option<(T, Redeemed)> {
        let mut table = self.table.lock();
        let pending = table.get_mut(token)?;
        if pending.seen.contains(&kind) {
            return None;
        }
        pending.seen.push(kind);
        Some((pending.ticket.clone(), Redeemed { turned_away: Some(pending.turned_away.clone()) }))
    }
}

/// A valid push token. The token becomes invalid when this value is dropped.
#[derive(Debug)]
pub struct PushTicket<T> {
    token: PushToken,
    table: Table<T>,
    turned_away: Arc<AtomicBool>,
}

/// A redeemed token. Dropping this value without a call of [`Redeemed::keep`] records that the hook was rejected
/// ([`PushTicket::turned_away`]).
#[derive(Debug)]
pub(super) struct Redeemed {
    turned_away: Option<Arc<AtomicBool>>,
}

impl Redeemed {
    /// Records that the hook's whole request was read and is valid.
    pub(super) fn keep(mut self) {
        self.turned_away = None;
    }
}

impl Drop for Redeemed {
    fn drop(&mut self) {
        if let Some(turned_away) = &self.turned_away {
            turned_away.store(true, Ordering::Relaxed);
        }
    }
}

impl<T> PushTicket<T> {
    /// Returns true if a hook of this push was rejected after it had redeemed its token. A rejected hook refuses the push.
    pub fn turned_away(&self) -> bool {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Returns the token, for the environment of the hooks.
    pub fn token(&self) -> PushToken {
        self.token
    }
}

impl<T> Drop for PushTicket<T> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.token.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_valid_once_per_hook_until_the_push_ends() {
        let registry = PushRegistry::new();
        let ticket = registry.issue("shop").unwrap();
        let token = parse_token(&ticket.token().to_hex()).unwrap();
        let redeem = |kind| registry.redeem(&token, kind);
        let (shop, redeemed) = redeem(HookKind::PreReceive).unwrap();
        redeemed.keep();
        assert_eq!(shop, "shop");
        assert!(redeem(HookKind::PreReceive).is_none(), "replayed");
        assert!(!ticket.turned_away());
        assert!(redeem(HookKind::ProcReceive).is_some());
        assert!(ticket.turned_away(), "the request of the hook was never read");
        drop(ticket);
        assert!(redeem(HookKind::ProcReceive).is_none());
        assert!(registry.is_empty());
    }

    #[test]
    fn tokens_differ_and_debug_output_hides_them() {
        let registry = PushRegistry::new();
        let (one, two) = (registry.issue(1).unwrap(), registry.issue(2).unwrap());
        assert_ne!(one.token(), two.token());
        assert!(!format!("{one:?}").contains(&one.token().to_hex()));
        for bad in ["", "zz", &"g".repeat(32), &"+".repeat(32), &"a".repeat(33)] {
            assert_eq!(parse_token(bad), None, "{bad}");
        }
    }
}
