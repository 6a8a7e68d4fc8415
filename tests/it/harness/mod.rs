//! A world for one test: a server of its own with its own directory, users, keys, ports and clients, and nothing left behind.
//!
//! [`world::World`] holds it together; [`git::Repo`] is a developer's clone, [`http`] a visitor, [`cli`] an operator.

pub mod cli;
pub mod faults;
pub mod files;
pub mod git;
pub mod http;
pub mod link;
pub mod machine;
pub mod output;
pub mod processes;
pub mod server;
pub mod source;
pub mod state;
pub mod world;

use std::time::{Duration, Instant};

pub use self::{
    git::{Push, Repo},
    machine::Machine,
    world::World,
};

/// Waits until `condition` holds; a test that waits for nothing in particular would be a test of the clock.
#[track_caller]
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(within(Duration::from_secs(60), condition), "waited a minute in vain until {what}");
}

/// Whether `condition` comes true within `limit`.
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

/// Where a program is, or nothing and a loud line.
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

/// Runs each scenario once, in the stronger mode that is possible here.
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
