//! The task that delivers the messages of the queue. Each lane (a project and a recipient) is served in order, and lanes are independent of
//! each other.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use jiff::{SignedDuration, Timestamp};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    delivery::DeliveryError,
    forge,
    message::{Lane, MessageContent, MessageState},
    notifier::Notifier,
    smtp, webhook,
};

/// The maximum number of deliveries at the same time.
const MAX_PARALLEL: usize = 8;
/// The maximum number of deliveries of one project at the same time, so that receivers that hang do not hold up the messages of other projects.
const MAX_PARALLEL_OF_PROJECT: usize = 4;
/// The maximum time between two looks at the clock, which may be set at any moment.
const MAX_SLEEP: Duration = Duration::from_secs(60);
/// The wait before the second attempt. Each further wait is twice as long, up to [`MAX_DELAY`], and a random part is added.
const MIN_DELAY: Duration = Duration::from_secs(5);
/// The maximum wait between two attempts, without the random part.
const MAX_DELAY: Duration = Duration::from_secs(600);
/// The time after which a message is no longer attempted (RFC 5321, section 4.5.4.1: 4 to 5 days).
const GIVE_UP: SignedDuration = SignedDuration::from_hours(5 * 24);
/// The time within which deliveries under way may end when the server stops. A delivery that is interrupted may arrive twice, with the same
/// `Message-ID`.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

impl Notifier {
    /// Delivers messages until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut deliveries = JoinSet::new();
        let mut lanes: HashMap<Id, Lane> = HashMap::new();
        loop {
            let now = Timestamp::now();
            let busy: HashSet<Lane> = lanes.values().cloned().collect();
            let (due, next) = self.queue().due(now, &busy);
            for (number, lane) in startable(due, &busy) {
                let this = self.clone();
                let handle = deliveries.spawn(async move { this.deliver(number).await });
                lanes.insert(handle.id(), lane);
            }
            let wait = next.map_or(MAX_SLEEP, |next| next.duration_since(now).unsigned_abs().min(MAX_SLEEP));
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.woken() => {}
                Some(ended) = deliveries.join_next_with_id(), if !deliveries.is_empty() => {
                    let id = match ended {
                        Ok((id, ())) => id,
                        Err(error) => {
                            tracing::error!(%error, "the delivery of a message panicked");
                            error.id()
                        }
                    };
                    lanes.remove(&id);
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
        let ended = async { while deliveries.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_TIMEOUT, ended).await;
    }

    /// Attempts the delivery of a message, and records the result.
    async fn deliver(&self, number: u64) {
        let result = self.attempt(number).await;
        let this = self.clone();
        let recorded = tokio::task::spawn_blocking(move || this.record(number, result)).await;
        if let Err(error) = recorded {
            tracing::error!(number, %error, "cannot record the delivery of a message");
        }
        self.attempt_ended();
    }

    async fn attempt(&self, number: u64) -> Result<(), DeliveryError> {
        let message = self.queue().message(number).map_err(DeliveryError::Permanent)?;
        let content = message.content.ok_or_else(|| DeliveryError::permanent("the message has no content"))?;
        match content {
            MessageContent::Webhook(webhook) => webhook::send(self.allowed(), &message.record, webhook).await,
            MessageContent::Forge(content) => {
                let forge = message.record.project.as_ref().and_then(|project| self.forge(project));
                let missing = || DeliveryError::temporary("the server file has no entry of `forges:` for the project");
                forge::send(forge.ok_or_else(missing)?, content).await
            }
            MessageContent::Mail(content) => {
                let mail = self.mail().ok_or_else(|| DeliveryError::temporary("the server file has no section `mail:`"))?;
                smtp::send(mail, &message.record, content).await
            }
        }
    }

    fn record(&self, number: u64, result: Result<(), DeliveryError>) {
        let now = Timestamp::now();
        self.queue().change(number, |record| match result {
            Ok(()) => {
                tracing::info!(event = record.event, to = record.to, "message delivered");
                (record.state, record.error, record.ended) = (MessageState::Delivered, None, Some(now));
            }
            Err(DeliveryError::Temporary(why)) => {
                record.attempts = record.attempts.saturating_add(1);
                record.next = now.saturating_add(delay(record.attempts)).unwrap_or(now);
                tracing::warn!(
                    event = record.event,
                    to = record.to,
                    why,
                    attempts = record.attempts,
                    "message not delivered yet"
                );
                record.error = Some(why);
                if now.duration_since(record.queued) > GIVE_UP {
                    (record.state, record.ended) = (MessageState::Failed, Some(now));
                }
            }
            Err(DeliveryError::Permanent(why)) => {
                tracing::error!(event = record.event, to = record.to, why, "message refused");
                record.attempts = record.attempts.saturating_add(1);
                (record.state, record.error, record.ended) = (MessageState::Failed, Some(why), Some(now));
            }
        });
    }
}

/// Returns the messages of `due` whose delivery may start while the lanes in `busy` have deliveries.
fn startable(due: Vec<(u64, Lane)>, busy: &HashSet<Lane>) -> Vec<(u64, Lane)> {
    let mut started: Vec<(u64, Lane)> = Vec::new();
    for (number, lane) in due {
        let lanes = || busy.iter().chain(started.iter().map(|(_, lane)| lane));
        let of_project = lanes().filter(|other| other.shares_project_with(&lane)).count();
        if lanes().count() < MAX_PARALLEL && of_project < MAX_PARALLEL_OF_PROJECT {
            started.push((number, lane));
        }
    }
    started
}

/// Returns the wait after `attempts` failed attempts.
fn delay(attempts: u32) -> Duration {
    fail::fail_point!("notify_delay", |millis| {
        Duration::from_millis(millis.and_then(|millis| millis.parse().ok()).unwrap_or_default())
    });
    let delays = ExponentialBuilder::new().with_min_delay(MIN_DELAY).with_max_delay(MAX_DELAY).with_factor(2.0);
    let mut delays = delays.without_max_times().with_jitter().build();
    // After so many attempts, the wait has reached its maximum.
    let at = usize::try_from(attempts.saturating_sub(1).min(30)).unwrap_or_default();
    delays.nth(at).unwrap_or(MAX_DELAY)
}

#[cfg(test)]
mod tests {
    use super::{super::message::MessageRecord, *};
    use crate::model::NotificationKind;

    #[test]
    fn receivers_of_one_project_that_hang_leave_deliveries_for_other_projects() {
        let lane = |project: &str, to: usize| {
            let record =
                crate::notify::message::testing::record("event", &format!("{to}@example.com"), NotificationKind::Deployed);
            MessageRecord { project: Some(project.parse().unwrap()), ..record }.lane()
        };
        let busy: HashSet<Lane> = (0..3).map(|to| lane("shop", to)).collect();
        let due: Vec<_> =
            (3..9).map(|to| (to as u64, lane("shop", to))).chain((0..9).map(|to| (100 + to as u64, lane("blog", to)))).collect();
        let started: Vec<_> = startable(due, &busy).into_iter().map(|(number, _)| number).collect();
        assert_eq!(started, [3, 100, 101, 102, 103]);
    }

    #[test]
    fn delay_doubles_up_to_its_maximum() {
        for (attempts, seconds) in [(1, 5), (2, 10), (4, 40), (20, 600), (1_000_000, 600)] {
            let (least, delay) = (Duration::from_secs(seconds), delay(attempts));
            assert!(delay >= least && delay <= least * 2, "{attempts}: {delay:?}");
        }
    }
}
