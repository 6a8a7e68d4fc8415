//! A limit on the connections or requests that one user may have at the same time, so that one user cannot block other users.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::model::UserName;

/// A limit that gives each user the same number of permits.
#[derive(Debug)]
pub struct UserLimit {
    per_user: usize,
    taken: Mutex<HashMap<UserName, usize>>,
}

/// A permit of a user, which is returned to the limit when this value is dropped.
#[derive(Debug)]
pub struct UserPermit {
    limit: Arc<UserLimit>,
    user: UserName,
}

impl UserLimit {
    /// Creates a limit of `per_user` permits for each user.
    pub fn new(per_user: usize) -> Arc<UserLimit> {
        Arc::new(UserLimit { per_user, taken: Mutex::default() })
    }

    /// Takes a permit for `user`. Returns `None` if the user holds all of its permits already.
    pub fn acquire(self: &Arc<Self>, user: &UserName) -> Option<UserPermit> {
        let mut taken = self.taken.lock();
        let count = taken.entry(user.clone()).or_default();
        if *count >= self.per_user {
            return None;
        }
        *count = count.saturating_add(1);
        drop(taken);
        Some(UserPermit { limit: Arc::clone(self), user: user.clone() })
    }
}

impl Drop for UserPermit {
    fn drop(&mut self) {
        let mut taken = self.limit.taken.lock();
        if let Some(count) = taken.get_mut(&self.user) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_counted_per_user_and_returned() {
        let limit = UserLimit::new(2);
        let (ann, bob): (UserName, UserName) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let (first, second) = (limit.acquire(&ann).unwrap(), limit.acquire(&ann).unwrap());
        assert!(limit.acquire(&ann).is_none());
        let of_bob = limit.acquire(&bob).unwrap();
        drop(first);
        let third = limit.acquire(&ann).unwrap();
        assert!(limit.acquire(&ann).is_none());
        drop((third, of_bob, second));
        assert!(limit.taken.lock().is_empty());
    }
}
