//! Parallel loops over threads. [`ordered`] passes results on in the order of their indices, and limits the number of waiting results.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::{Condvar, Mutex};

struct Shared<T, E> {
    state: Mutex<State<T, E>>,
    changed: Condvar,
}

struct State<T, E> {
    /// The next index that a thread takes.
    next: usize,
    /// The next index that the consumer takes.
    wanted: usize,
    /// The results that the consumer has not taken yet, by index.
    done: BTreeMap<usize, Result<T, E>>,
    stopped: bool,
    /// The number of threads that still run.
    running: usize,
}

/// Calls `make` for each index in 0..`count`, in `threads` threads. Each thread has its own `state`. Calls `consume` in the calling thread,
/// with the results in the order of their indices. At most three results per thread wait for `consume`. Stops at the first error.
pub fn ordered<T: Send, S, E: Send>(
    count: usize,
    threads: usize,
    state: impl Fn() -> Result<S, E> + Sync,
    make: impl Fn(&mut S, usize) -> Result<T, E> + Sync,
    mut consume: impl FnMut(usize, T) -> Result<(), E>,
) -> Result<(), E> {
    let threads = threads.clamp(1, count.max(1));
    let ahead = threads * 3;
    let shared = Shared {
        state: Mutex::new(State { next: 0, wanted: 0, done: BTreeMap::new(), stopped: false, running: threads }),
        changed: Condvar::new(),
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let _leaving = Leaving(&shared);
                let mut own = None;
                while let Some(index) = shared.take(count, ahead) {
                    let result = match &mut own {
                        Some(own) => make(own, index),
                        None => state().and_then(|fresh| make(own.insert(fresh), index)),
                    };
                    shared.put(index, result);
                }
            });
        }
        let _stopping = Stopping(&shared);
        for index in 0..count {
            match shared.give(index) {
                Some(Ok(made)) => consume(index, made)?,
                Some(Err(e)) => return Err(e),
                None => break, // a thread has panicked; the end of the scope resumes the panic
            }
        }
        Ok(())
    })
}

impl<T, E> Shared<T, E> {
    fn take(&self, count: usize, ahead: usize) -> Option<usize> {
        let mut state = self.state.lock();
        loop {
            if state.stopped || state.next >= count {
                return None;
            }
            if state.next < state.wanted + ahead {
                state.next += 1;
                return Some(state.next - 1);
            }
            self.changed.wait(&mut state);
        }
    }

    fn put(&self, index: usize, result: Result<T, E>) {
        self.state.lock().done.insert(index, result);
        self.changed.notify_all();
    }

    fn give(&self, index: usize) -> Option<Result<T, E>> {
        let mut state = self.state.lock();
        loop {
            if let Some(result) = state.done.remove(&index) {
                state.wanted = index + 1;
                self.changed.notify_all();
                return Some(result);
            }
            if state.running == 0 {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }
}

/// A guard that records the end of its thread when the guard is dropped, also after a panic.
struct Leaving<'a, T, E>(&'a Shared<T, E>);

impl<T, E> Drop for Leaving<'_, T, E> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.running -= 1;
        if std::thread::panicking() {
            state.stopped = true;
        }
        self.0.changed.notify_all();
    }
}

/// A guard that stops the threads when the guard is dropped.
struct Stopping<'a, T, E>(&'a Shared<T, E>);

impl<T, E> Drop for Stopping<'_, T, E> {
    fn drop(&mut self) {
        self.0.state.lock().stopped = true;
        self.0.changed.notify_all();
    }
}

/// Runs both functions in parallel and returns their results. A panic in a function is resumed in the caller.
pub fn both<A: Send, B>(one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B) -> (A, B) {
    std::thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        match one.join() {
            Ok(one) => (one, other),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Runs `act` in `threads` threads, including the calling thread. A panic in a thread is resumed in the caller.
pub fn each_thread<T: Send>(threads: usize, act: impl Fn() -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&act)).collect();
        let mut results = vec![act()];
        for thread in others {
            match thread.join() {
                Ok(result) => results.push(result),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    })
}

/// Calls `act` with each of `items`, in no particular order, in up to `threads` threads. Each thread has its own `state`. Stops soon
/// after the first error.
pub fn for_each<T: Sync, S, E: Send>(
    items: &[T],
    threads: usize,
    state: impl Fn() -> S + Sync,
    act: impl Fn(&mut S, &T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    // The number of items that a thread takes at a time. For fewer items, a second thread would cost more time than it saves.
    const PART: usize = 64;
    let parts: Vec<&[T]> = items.chunks(PART).collect();
    let next = AtomicUsize::new(0);
    let results = each_thread(threads.min(parts.len()), || {
        let mut state = state();
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = part.iter().try_for_each(|item| act(&mut state, item)) {
                next.store(parts.len(), Ordering::Relaxed); // the other threads stop
                return Err(e);
            }
        }
        Ok(())
    });
    results.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_returns_results_in_order_and_stops_at_an_error() {
        let mut seen = Vec::new();
        let square = |(): &mut (), n: usize| if n == 77 { Err(n) } else { Ok(n * n) };
        let all = ordered(
            50,
            3,
            || Ok(()),
            square,
            |index, made| {
                assert_eq!(made, index * index);
                seen.push(index);
                Ok(())
            },
        );
        assert_eq!(all, Ok(()));
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
        assert_eq!(ordered(100, 3, || Ok(()), square, |_, _| Ok(())), Err(77));
        assert_eq!(ordered(100, 3, || Ok(()), square, |index, _| if index == 5 { Err(5) } else { Ok(()) }), Err(5));
        assert_eq!(ordered(0, 3, || Err::<(), _>(1), |(), n| Ok(n), |_, _| Ok(())), Ok(()));
    }
}
