//! The watch of running applications and of the server's disk: recognises that a site is down or up, and that the disk is low, and announces
//! each change once. Repeated changes within a short time are one change.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    core::Pipeline,
    observe::{Announcement, DiskNews, News, SiteNews},
    watch_state::{SiteHealth, SiteState},
};
use crate::{
    host::files,
    model::{Environment, Exit, UserName},
    runtime::Label,
};

/// The time without an unexpected exit after which a site counts as up. A site that flaps stays down.
const CALM: Duration = Duration::from_secs(600);
/// The time between two looks at the sites and at the disk.
const INTERVAL: Duration = Duration::from_secs(1);

/// Returns the time without an unexpected exit after which a site counts as up.
fn calm() -> Duration {
    fail::fail_point!("site_calm", |millis| {
        Duration::from_millis(millis.and_then(|millis| millis.parse().ok()).unwrap_or_default())
    });
    CALM
}

impl Pipeline {
    /// Watches the sites and the disk until the server stops.
    pub fn watch_sites(&self) {
        let this = self.clone();
        self.0.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = this.0.stopping.cancelled() => return,
                    () = tokio::time::sleep(INTERVAL) => {}
                }
                this.look_at_sites();
                this.look_at_free_space();
            }
        });
    }

    /// Records an unexpected exit of a process of the live release.
    pub(super) fn site_exited(&self, environment: &Environment, label: &Label, exit: &Exit) {
        let is_live = self.live(environment.id).is_some_and(|live| live.release == label.release && live.slot == label.slot);
        if !label.process.is_web() || !is_live {
            return;
        }
        let goes_down = {
            let mut sites = self.0.watch.sites.lock();
            sites.entry(environment.id).or_insert_with(|| SiteState::new(SiteHealth::Unknown)).exited(Instant::now())
        };
        if goes_down {
            let why = format!("{} exits again and again; its last exit: {exit}", label.name());
            self.announce_site(environment, SiteNews::Down { why });
        }
    }

    /// Records that larder has stopped an application.
    pub(super) fn site_stopped(&self, environment: &Environment, why: &str) {
        self.0.watch.sites.lock().insert(environment.id, SiteState::new(SiteHealth::Down));
        self.announce_site(environment, SiteNews::Down { why: why.to_owned() });
    }

    fn look_at_sites(&self) {
        let environments: Vec<_> = self.0.queues.lock().values().map(|queue| queue.environment()).collect();
        let now = Instant::now();
        for environment in environments {
            let is_calm = {
                let mut sites = self.0.watch.sites.lock();
                let state = sites.entry(environment.id).or_insert_with(|| SiteState::new(SiteHealth::Unknown));
                // An earlier server may have announced that the site is down, so the first calm time is announced, too.
                state.health != SiteHealth::Up && now.duration_since(state.last) >= calm()
            };
            let runs = || !self.services().runtime.instances(environment.id, None).is_empty();
            if is_calm && runs() {
                if let Some(state) = self.0.watch.sites.lock().get_mut(&environment.id) {
                    (state.health, state.exits) = (SiteHealth::Up, VecDeque::new());
                }
                self.announce_site(&environment, SiteNews::Up);
            }
        }
    }

    fn look_at_free_space(&self) {
        let services = self.services();
        let reserve = services.config.limits.disk_reserve.bytes();
        let Ok(free) = files::free_space(services.root.path()) else { return };
        let mut is_low = self.0.watch.is_low.lock();
        let before = *is_low;
        if free.bytes < reserve {
            *is_low = Some(true);
        } else if free.bytes >= reserve.saturating_mul(2) {
            *is_low = Some(false);
        }
        let now = *is_low;
        drop(is_low);
        match now {
            _ if now == before => {}
            Some(true) => self.announce_news(String::new(), "disk", News::Disk(DiskNews::Low { free: free.bytes, reserve })),
            Some(false) => self.announce_news(String::new(), "disk", News::Disk(DiskNews::Normal { free: free.bytes })),
            None => {}
        }
    }

    fn announce_site(&self, environment: &Environment, news: SiteNews) {
        self.announce_news(environment.title(), "site", News::Site(news));
    }

    /// Notifies the observers that a person has created an environment.
    pub fn announce_created(&self, environment: &Environment, by: UserName) {
        self.announce_news(environment.title(), "created", News::Created(by));
    }

    /// Announces an event that no journal records. The id is unique.
    fn announce_news(&self, environment: String, topic: &str, news: News) {
        let at = Timestamp::now();
        let announcement =
            Announcement { id: format!("{topic}.{}", at.as_millisecond()), at, environment, deployment: None, news };
        let services = self.services().clone();
        self.0.tasks.spawn(async move { services.observers.ending(announcement).await });
    }
}
