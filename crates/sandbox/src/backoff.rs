//! Pauses between starts of a process that exits again and again.

use std::time::Duration;

/// After a process has run this long, its next pause is the first one again.
pub const STABLE: Duration = Duration::from_secs(10);

/// The smallest pause after the first one.
const SMALLEST: Duration = Duration::from_millis(100);

/// Pauses between starts, doubled with each start, up to a limit.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    last: Duration,
}

impl Backoff {
    /// Returns pauses that begin with `first` and end with `last`. After a first pause of zero, the second one is 100 ms.
    pub fn new(first: Duration, last: Duration) -> Backoff {
        Backoff { next: first, first, last }
    }

    /// Returns the pause before the next start of a process that lived for `lived`.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= STABLE {
            self.next = self.first;
        }
        let pause = self.next;
        self.next = (pause * 2).clamp(SMALLEST, self.last);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_until_a_process_is_stable() {
        for (first, last) in
            [(100, 30_000), (0, 10_000)].map(|(first, last)| (Duration::from_millis(first), Duration::from_millis(last)))
        {
            let mut backoff = Backoff::new(first, last);
            let mut waited = Duration::ZERO;
            let mut before = None;
            for _ in 0..10 {
                let next = backoff.after(Duration::from_millis(1));
                assert!(before.is_none_or(|before| next > before || next == last), "{next:?} after {before:?}");
                before = Some(next);
                waited += next;
            }
            assert!(waited >= Duration::from_secs(15), "ten starts within {waited:?}");
            assert_eq!(backoff.after(Duration::ZERO), last);
            assert_eq!(backoff.after(STABLE), first);
        }
    }
}
