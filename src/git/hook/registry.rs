//! Push tokens: each push under way has one, it opens the hook socket for that push alone, and it dies with the push.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use super::wire::HookKind;

/// A random number of 128 bits that only the hooks of one push know.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PushToken([u8; 16]);

impl PushToken {
    fn random() -> PushToken {
        // Version 4 ids are random but for six bits; two of them make 128 random bits with room to spare.
        let both = [uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()].concat();
        let digest = blake3::hash(&both);
        let mut token = [0; 16];
        token.iter_mut().zip(digest.as_bytes()).for_each(|(to, from)| *to = *from);
        PushToken(token)
    }

    /// As text, for the hooks' environment.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Never shows the token: it may end up in a log.
impl fmt::Debug for PushToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PushToken(..)")
    }
}

/// The bytes of a token in its text form.
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

/// All pushes under way. `T` is what the server needs to know about one: who pushes, to which project.
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
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token for a push that begins. It is good for one call of each hook, until the returned value is dropped.
    pub fn issue(&self, ticket: T) -> PushTicket<T> {
        let token = PushToken::random();
        let turned_away = Arc::new(AtomicBool::new(false));
        let pending = Pending { ticket, seen: Vec::new(), turned_away: turned_away.clone() };
        self.table.lock().insert(token.0, pending);
        PushTicket { token, table: self.table.clone(), turned_away }
    }

    /// How many pushes are under way.
    pub fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// Whether no push is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ticket of a token, for one call of each hook.
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

/// The right of one push to call its hooks; dropping it ends that right.
#[derive(Debug)]
pub struct PushTicket<T> {
    token: PushToken,
    table: Table<T>,
    turned_away: Arc<AtomicBool>,
}

/// A token that was redeemed. Unless it is kept, the hook is turned away, and its push is refused.
#[derive(Debug)]
pub(super) struct Redeemed {
    turned_away: Option<Arc<AtomicBool>>,
}

impl Redeemed {
    /// The hook's question was read.
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
    /// Returns true if a hook of this push was turned away, which refuses the push.
    pub fn turned_away(&self) -> bool {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// The token for the hooks' environment.
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
    fn a_token_opens_each_hook_once_and_dies_with_its_push() {
        let registry = PushRegistry::new();
        let ticket = registry.issue("shop");
        let token = parse_token(&ticket.token().to_hex()).unwrap();
        let redeem = |kind| registry.redeem(&token, kind);
        let (shop, redeemed) = redeem(HookKind::PreReceive).unwrap();
        redeemed.keep();
        assert_eq!(shop, "shop");
        assert!(redeem(HookKind::PreReceive).is_none(), "replayed");
        assert!(!ticket.turned_away());
        assert!(redeem(HookKind::ProcReceive).is_some());
        assert!(ticket.turned_away(), "its question was never read");
        drop(ticket);
        assert!(redeem(HookKind::ProcReceive).is_none());
        assert!(registry.is_empty());
    }

    #[test]
    fn tokens_differ_and_are_not_shown() {
        let registry = PushRegistry::new();
        let (one, two) = (registry.issue(1), registry.issue(2));
        assert_ne!(one.token(), two.token());
        assert!(!format!("{one:?}").contains(&one.token().to_hex()));
        for bad in ["", "zz", &"g".repeat(32), &"+".repeat(32), &"a".repeat(33)] {
            assert_eq!(parse_token(bad), None, "{bad}");
        }
    }
}
