//! The report of a deployment that has ended, for notifications: the journal's state and the last lines of the transcript.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    time::Duration,
};

use jiff::Timestamp;

use super::{core::Pipeline, history::Summary, journal::JournalState};
use crate::{
    config::Settings,
    model::{DeploymentId, DeploymentSpec, Environment, Fault, Outcome, sanitise_line},
};

/// The number of bytes that are read from the end of a transcript.
const MAX_TAIL: u64 = 32 * 1024;

/// The beginning of a line of larder's own about an error, in a transcript.
const ERROR: &str = " !     ";

/// The time between two looks for an environment that is being recovered.
const POLL: Duration = Duration::from_millis(100);

/// A deployment that has ended.
#[derive(Debug)]
pub struct DeploymentReport {
    /// The specification.
    pub spec: DeploymentSpec,
    /// The moment at which the deployment began.
    pub opened: Timestamp,
    /// The moment of the last end; `None` if the end is not in the journal.
    pub ended: Option<Timestamp>,
    /// The last outcome; `None` if the end is not in the journal.
    pub outcome: Option<Outcome>,
    /// The first failure.
    pub fault: Option<Fault>,
    /// The last undo that failed, as `step: reason`.
    pub undo_failed: Option<String>,
    /// The settings of the deployment, or else those of the release that was live before. `None` if neither are known.
    pub settings: Option<Settings>,
    /// The version tag of the commit.
    pub tag: Option<String>,
    /// The time for which visitors got the maintenance page, in milliseconds; `None` unless the release was replaced in place.
    pub interruption: Option<u64>,
    /// The last lines of the transcript.
    pub output: Vec<String>,
    /// The earlier deployment of the same release, if the release was live before.
    pub recorded: Option<Summary>,
}

impl Pipeline {
    /// Waits until an environment has been recovered, at most for `limit`. Returns true if the environment is in service.
    pub async fn in_service(&self, environment: &Environment, limit: Duration) -> bool {
        let known = async {
            while self.queue(environment.id).is_none() {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(limit, known).await.is_ok()
    }

    /// Returns the report of a deployment; `None` if the deployment has no journal that can be read.
    pub fn report(&self, environment: &Environment, deployment: DeploymentId) -> Option<DeploymentReport> {
        let directory = self.services().root.environment(&environment.project, &environment.name).deployment(deployment);
        let state = JournalState::read(&directory).ok()?;
        let interruption = state.interruption();
        let (ended, outcome) = state.ended.unzip();
        let (spec, opened) = (state.spec?, state.opened?);
        let settings = state.facts.settings.or_else(|| {
            let previous = spec.previous.as_ref()?;
            self.facts(environment, previous.release).ok()?.settings
        });
        let history = self.history(environment.id);
        let recorded = spec.recorded.and_then(|id| history.deployments.into_iter().find(|known| known.deployment == id));
        let output = tail(&directory.join("log"));
        let (fault, undo_failed, tag) = (state.fault, state.undo_failed, state.facts.tag);
        Some(DeploymentReport { spec, opened, ended, outcome, fault, undo_failed, settings, tag, interruption, output, recorded })
    }

    /// Returns the settings of the live release of an environment; `None` if no release is live or the settings cannot be read.
    pub fn live_settings(&self, environment: &Environment) -> Option<Settings> {
        let live = self.live(environment.id)?;
        self.facts(environment, live.release).ok()?.settings
    }
}

impl DeploymentReport {
    /// Returns the last lines of output before a failure, without larder's indentation.
    pub fn excerpt(&self, fault: &Fault) -> Vec<String> {
        const MAX_LINES: usize = 25;
        let line = format!("{ERROR}{}", sanitise_line(&fault.to_string()));
        let end = self.output.iter().rposition(|known| *known == line).unwrap_or(self.output.len());
        let before = self.output.get(..end).unwrap_or_default();
        let last = before.get(before.len().saturating_sub(MAX_LINES)..).unwrap_or_default();
        last.iter().map(|line| line.strip_prefix("       ").unwrap_or(line).to_owned()).collect()
    }
}

/// Returns the last lines of a file.
fn tail(path: &Path) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(MAX_TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(MAX_TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
}
