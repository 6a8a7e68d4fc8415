//! How much one user may have at the same time: whoever got in can crowd out nobody but themselves.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::model::UserName;

/// Places for each user.
#[derive(Debug)]
pub struct Shares {
    most: usize,
    taken: Mutex<HashMap<UserName, usize>>,
}

/// A place; given back when dropped.
#[derive(Debug)]
pub struct Share {
    of: Arc<Shares>,
    user: UserName,
}

impl Shares {
    /// `most` places for each user.
    pub fn new(most: usize) -> Arc<Shares> {
        Arc::new(Shares { most, taken: Mutex::default() })
    }

    /// A place for `user`; none when all of them are taken.
    pub fn take(self: &Arc<Self>, user: &UserName) -> Option<Share> {
        let mut taken = self.taken.lock();
        let count = taken.entry(user.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count = count.saturating_add(1);
        drop(taken);
        Some(Share { of: Arc::clone(self), user: user.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock();
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
    fn each_user_has_places_of_their_own_and_gets_them_back() {
        let shares = Shares::new(2);
        let (ann, bob): (UserName, UserName) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let (first, _second) = (shares.take(&ann).unwrap(), shares.take(&ann).unwrap());
        assert!(shares.take(&ann).is_none());
        let bobs = shares.take(&bob).unwrap();
        drop(first);
        let third = shares.take(&ann).unwrap();
        assert!(shares.take(&ann).is_none());
        drop((third, bobs, _second));
        assert!(shares.taken.lock().is_empty());
    }
}
