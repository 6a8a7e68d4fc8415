//! The state of the watch of running applications, in a file of its own, because both [`Pipeline`](super::Pipeline) and its watch use this state.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::model::EnvId;

/// The number of unexpected exits of web processes within [`WINDOW`] after which a site counts as down.
const MAX_EXITS: usize = 3;
/// The time within which the exits are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// The state of the sites and of the disk, as far as changes were announced.
#[derive(Default)]
pub(super) struct Watch {
    pub(super) sites: Mutex<HashMap<EnvId, SiteState>>,
    /// True if the disk is low; `None` before the first look.
    pub(super) is_low: Mutex<Option<bool>>,
}

/// The last announcement about a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SiteHealth {
    /// This server has announced nothing. An earlier server may have announced that the site is down.
    Unknown,
    Up,
    Down,
}

/// The last exits of the web processes of one site.
pub(super) struct SiteState {
    pub(super) exits: VecDeque<Instant>,
    pub(super) last: Instant,
    pub(super) health: SiteHealth,
}

impl SiteState {
    pub(super) fn new(health: SiteHealth) -> SiteState {
        SiteState { exits: VecDeque::new(), last: Instant::now(), health }
    }

    /// Records an exit. Returns true if the site is down from now on.
    pub(super) fn exited(&mut self, now: Instant) -> bool {
        self.last = now;
        self.exits.push_back(now);
        while self.exits.len() > MAX_EXITS || self.exits.front().is_some_and(|first| now.duration_since(*first) > WINDOW) {
            self.exits.pop_front();
        }
        let goes_down = self.health != SiteHealth::Down && self.exits.len() >= MAX_EXITS;
        if goes_down {
            self.health = SiteHealth::Down;
        }
        goes_down
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn site_goes_down_once_after_three_exits_within_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut slow = SiteState::new(SiteHealth::Up);
        assert!((0..10).all(|exit| !slow.exited(at(exit * 40))), "rare exits are no failure of the site");
        for health in [SiteHealth::Unknown, SiteHealth::Up] {
            let mut site = SiteState::new(health);
            let down: Vec<_> = (0..1000).filter(|exit| site.exited(at(*exit))).collect();
            assert_eq!(down, [2], "{health:?}");
        }
    }
}
