//! The time limit of a test. A test that hangs would otherwise end only with the time limit of the whole run, which names no test.
//!
//! When a test exceeds its limit, the processes of its world are killed, so that a test that waits for one of them fails. If the test still
//! runs after [`GRACE`], for example because a thread of the test never ends, the whole run ends with the name of the test.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    sync::Once,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::processes;

/// The limit of a test in seconds, instead of [`LIMIT`].
const VARIABLE: &str = "LARDER_TEST_LIMIT";
/// The limit of a test. The slowest test takes about five minutes on a machine with two processors.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// The limit of a test if one of [`LONG`] is set.
const LONG_LIMIT: Duration = Duration::from_secs(3 * 60 * 60);
/// The variables that make tests longer.
const LONG: [&str; 6] = [
    "LARDER_TEST_THOROUGH",
    "LARDER_TEST_KILLS",
    "LARDER_TEST_CASES",
    "LARDER_TEST_RUNS",
    "LARDER_TEST_CUTS",
    "LARDER_TEST_FAULTS",
];
/// The time in which a test ends after its processes were killed. No wait of the harness is longer.
const GRACE: Duration = Duration::from_secs(150);
/// The exit status of a failed run, as libtest has it.
const FAILED: i32 = 101;

struct Running {
    test: String,
    since: Instant,
    killed: Option<Instant>,
}

static RUNNING: Mutex<BTreeMap<PathBuf, Running>> = Mutex::new(BTreeMap::new());

/// The entry of a world in the list of running tests.
pub struct Watched(PathBuf);

impl Watched {
    /// Starts the time of the world of this thread's test. The directory identifies the processes of the world.
    pub fn new(directory: &Path) -> Watched {
        static STARTED: Once = Once::new();
        STARTED.call_once(|| drop(std::thread::spawn(watch)));
        // libtest names the thread of a test after the test.
        let test = std::thread::current().name().unwrap_or("a thread without a name").to_owned();
        RUNNING.lock().insert(directory.to_owned(), Running { test, since: Instant::now(), killed: None });
        Watched(directory.to_owned())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        RUNNING.lock().remove(&self.0);
    }
}

fn limit() -> Duration {
    let seconds = std::env::var(VARIABLE).ok().map(|text| text.parse().expect("LARDER_TEST_LIMIT is a number of seconds"));
    let is_long = LONG.iter().any(|name| std::env::var_os(name).is_some());
    seconds.map_or(if is_long { LONG_LIMIT } else { LIMIT }, Duration::from_secs)
}

fn watch() {
    let limit = limit();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        for (directory, running) in RUNNING.lock().iter_mut() {
            match running.killed {
                None if running.since.elapsed() > limit => {
                    let left = processes::of(directory);
                    say(&format!("{}: exceeds {limit:?}, so its processes are killed: {left:#?}", running.test));
                    for process in left {
                        processes::signal(process.pid, rustix::process::Signal::KILL);
                    }
                    running.killed = Some(Instant::now());
                }
                Some(killed) if killed.elapsed() > GRACE => {
                    say(&format!("{}: still runs {GRACE:?} after its processes were killed, so the run ends", running.test));
                    std::process::exit(FAILED);
                }
                _ => {}
            }
        }
    }
}

/// Prints a line past libtest, which shows captured output only of tests that end.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
