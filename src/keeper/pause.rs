//! Pauses between starts of what ends again and again.

use std::time::Duration;

/// What has lived this long starts over with the first pause.
pub const STABLE: Duration = Duration::from_secs(10);

/// Grows with each start, up to a limit.
#[derive(Debug, Clone, Copy)]
pub struct Pause {
    next: Duration,
    first: Duration,
    last: Duration,
}

impl Pause {
    /// Of kept processes: a tenth of a second to half a minute.
    pub fn of_processes() -> Pause {
        let first = Duration::from_millis(100);
        Pause { next: first, first, last: Duration::from_secs(30) }
    }

    /// Of the server: at once, then up to five seconds.
    pub fn of_server() -> Pause {
        Pause { next: Duration::ZERO, first: Duration::ZERO, last: Duration::from_secs(5) }
    }

    /// How long to wait before the next start; the last one lived for `lived`.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= STABLE {
            self.next = self.first;
        }
        let pause = self.next;
        self.next = (pause * 2).clamp(Duration::from_millis(100), self.last);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dies_at_once_waits_longer_each_time_until_it_lives() {
        for mut pause in [Pause::of_processes(), Pause::of_server()] {
            let (first, last) = (pause.first, pause.last);
            let mut waited = Duration::ZERO;
            let mut before = None;
            for _ in 0..10 {
                let next = pause.after(Duration::from_millis(1));
                assert!(before.is_none_or(|before| next > before || next == last), "{next:?} after {before:?}");
                before = Some(next);
                waited += next;
            }
            assert!(waited >= Duration::from_secs(15), "ten starts within {waited:?}");
            assert_eq!(pause.after(Duration::ZERO), last);
            assert_eq!(pause.after(STABLE), first);
        }
    }
}
