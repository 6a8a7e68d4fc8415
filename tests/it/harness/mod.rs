//! The world of one test: a server with its own directory, users, keys, ports and clients, which leaves nothing behind.
//!
//! Read [`world::World`] first; [`git::Repo`] is a developer's clone, [`http`] a visitor, [`cli`] an operator.

pub mod bucket;
pub mod cli;
pub mod connection;
pub mod databases;
pub mod disk;
pub mod docs;
pub mod faults;
pub mod files;
pub mod git;
pub mod http;
pub mod invariants;
pub mod laptop;
pub mod layout;
pub mod ledger;
pub mod link;
pub mod machine;
pub mod mail;
pub mod output;
pub mod postfix;
pub mod postgres;
pub mod processes;
pub mod python;
pub mod receiver;
pub mod server;
pub mod source;
pub mod sshd;
pub mod state;
pub mod terminal;
pub mod watchdog;
pub mod world;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

pub use self::{
    git::{Push, Repo},
    laptop::Laptop,
    machine::Machine,
    terminal::Terminal,
    world::World,
};

/// Waits until `condition` holds. Tests wait for conditions, never for a fixed time.
#[track_caller]
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(within(Duration::from_secs(60), condition), "waited a minute in vain until {what}");
}

/// Returns true if `condition` becomes true within `limit`.
pub fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sets a flag when it is dropped. A thread that works until the flag is set ends also if the test fails before: the scope of the thread
/// would otherwise wait for it forever.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Returns true if the tests run every case: with `LARDER_TEST_THOROUGH`.
pub fn thorough() -> bool {
    std::env::var_os("LARDER_TEST_THOROUGH").is_some()
}

/// Returns the path of a program. If the program is missing, prints `SKIPPED:` and returns `None`.
pub fn installed(program: &str) -> Option<std::path::PathBuf> {
    let found = ["/usr/local/bin", "/usr/bin", "/bin"].iter().map(|directory| std::path::Path::new(directory).join(program));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

/// Runs each scenario, a function of `&World`, in system mode and in rootless mode: `in_each_mode!(one, another);`.
macro_rules! in_each_mode {
    ($($scenario:ident),+ $(,)?) => {
        mod system {
            $(#[test]
            fn $scenario() {
                if let Some(world) = $crate::harness::World::system() {
                    super::$scenario(&world);
                    world.end();
                }
            })+
        }
        mod rootless {
            $(#[test]
            fn $scenario() {
                if let Some(world) = $crate::harness::World::rootless() {
                    super::$scenario(&world);
                    world.end();
                }
            })+
        }
    };
}

/// Runs each scenario once: in system mode if the tests run as root, otherwise in rootless mode.
macro_rules! in_one_mode {
    ($($scenario:ident),+ $(,)?) => {
        mod once {
            $(#[test]
            fn $scenario() {
                if let Some(world) = $crate::harness::World::any() {
                    super::$scenario(&world);
                    world.end();
                }
            })+
        }
    };
}

pub(crate) use {in_each_mode, in_one_mode};
