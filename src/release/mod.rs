//! Bundling a tree into a release archive, and installing a release from one.
//!
//! The server side ([`bundle()`], [`install()`]) opens files and starts workers; the worker side ([`bundle::work`],
//! [`install::work`]) touches trees. What travels between them are descriptors, a job and a report.
//! [`delta`] makes what turns one release into the next, [`pack`] is its worker and that of packing an installed tree again.
//! [`store`] knows the releases that are there, [`verify()`] compares an installed tree with its manifest. What comes from
//! elsewhere goes through [`take_in()`], which believes what [`trust`] believes and nothing else.

pub mod bundle;
mod changes;
pub mod check;
mod deliver;
pub mod delta;
pub mod drift;
mod error;
pub mod forms;
mod ignored;
pub mod index;
pub mod install;
pub mod pack;
mod promotion;
mod refusal;
mod server;
mod signing;
pub mod store;
mod take_in;
mod tree;
pub mod trust;
mod verify;
mod walk;

use std::sync::atomic::{AtomicUsize, Ordering};

pub use changes::{Change, Way, changes};
pub use deliver::{make_delta, rebuild};
pub use error::{Answer, ReleaseError};
pub use promotion::promotable;
pub use refusal::Refusal;
pub use server::{Bundled, Context, Installed, bundle, install, spare};
pub use signing::{SigningKey, SigningKeyError, verify_signature};
pub use take_in::{Body, Incoming, Look, MAX_RECORD, admit_manifest, known_record, take_in, take_record, verify_archive};
pub use tree::{digest, listing};
pub use verify::{Difference, verify};

/// Does both at a time. A panic in one of them goes on here.
fn both<A: Send, B>(one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B) -> (A, B) {
    std::thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        match one.join() {
            Ok(one) => (one, other),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Runs `act` in `threads` threads, the calling one included. A panic in one of them goes on here.
fn each_thread<T: Send>(threads: usize, act: impl Fn() -> T + Sync) -> Vec<T> {
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

/// Calls `act` with each of `items` in up to `threads` threads, each with a `state` of its own; in no particular order. Ends soon after
/// the first error.
fn for_each<T: Sync, S, E: Send>(
    items: &[T],
    threads: usize,
    state: impl Fn() -> S + Sync,
    act: impl Fn(&mut S, &T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    // What one thread takes at a time; for less, another one costs more than it helps.
    const PART: usize = 64;
    let parts: Vec<&[T]> = items.chunks(PART).collect();
    let next = AtomicUsize::new(0);
    let results = each_thread(threads.min(parts.len()), || {
        let mut state = state();
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = part.iter().try_for_each(|item| act(&mut state, item)) {
                next.store(parts.len(), Ordering::Relaxed); // the others need not go on
                return Err(e);
            }
        }
        Ok(())
    });
    results.into_iter().collect()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod trust_tests;
