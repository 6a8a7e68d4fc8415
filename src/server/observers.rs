//! The observers of this server: the list of all observers, and the observers that are too small for separate files.
//!
//! To add an observer, write `impl Observer` in a file below `src/server/observers/`, and add the file's `mod` line and the observer's
//! entry in [`all`] here.

use std::{
    fs::{self, OpenOptions},
    future::ready,
    io::Write as _,
    path::PathBuf,
    sync::Arc,
};

use futures_util::future::BoxFuture;

use crate::pipeline::observe::{Announcement, News, Observer};

/// Creates the observers of this server.
pub fn all() -> impl Iterator<Item = Arc<dyn Observer>> {
    let observers: [Option<Arc<dyn Observer>>; 2] = [Some(Arc::new(ServerLog)), test_observer()];
    observers.into_iter().flatten()
}

/// The observer that writes the outcomes of deployments to the server's log.
#[derive(Debug, Clone, Copy)]
struct ServerLog;

impl Observer for ServerLog {
    fn name(&self) -> &'static str {
        "log"
    }

    fn observe<'a>(&'a self, announcement: &'a Announcement) -> BoxFuture<'a, Result<(), String>> {
        let Announcement { id, environment, deployment, news, .. } = announcement;
        match news {
            News::Ended(outcome) => tracing::info!(id, environment, %deployment, ?outcome, "deployment ended"),
            News::Released(by) => tracing::info!(id, environment, %deployment, %by, "environment released"),
            News::Began | News::Committed => tracing::debug!(id, environment, %deployment, ?news, "deployment continues"),
        }
        Box::pin(ready(Ok(())))
    }
}

/// Returns the observer that `FAILPOINTS="observer=return(FILE)"` adds. Returns `None` without this failpoint.
fn test_observer() -> Option<Arc<dyn Observer>> {
    fail::fail_point!("observer", |file| file.map(|file| Arc::new(TestFile(file.into())) as Arc<dyn Observer>));
    None
}

/// An observer for tests, which appends a line to a file for each announcement. The observer ignores an announcement whose id is in the
/// file already.
#[allow(dead_code)] // Without failpoints, no code creates this type.
struct TestFile(PathBuf);

impl Observer for TestFile {
    fn name(&self) -> &'static str {
        "tests"
    }

    fn observe<'a>(&'a self, announcement: &'a Announcement) -> BoxFuture<'a, Result<(), String>> {
        let write = || {
            let known = fs::read_to_string(&self.0).unwrap_or_default();
            let line = format!("{} {} {}\n", announcement.id, announcement.environment, announcement.news);
            let seen = known.lines().any(|known| known.split(' ').next() == Some(announcement.id.as_str()));
            let mut file = OpenOptions::new().create(true).append(true).open(&self.0)?;
            if seen { Ok(()) } else { file.write_all(line.as_bytes()) }
        };
        Box::pin(ready(write().map_err(|error: std::io::Error| error.to_string())))
    }
}
