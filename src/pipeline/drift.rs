//! Changes that were made by hand in a running release (drift). Drift is found before a deployment, saved as a patch before a
//! slot is emptied, and applied to the next release if the recipe requests this.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    context::{Deployment, Services},
    core::Pipeline,
    failure::Failure,
    scans::LastScan,
    transcript::Transcript,
    util::chain,
};
use crate::{
    config::{DriftPolicy, Settings},
    drift::{self, Applied, Drift, DriftTarget, KnownEntry, Patch, patches::Patches},
    host::{files, root::EnvironmentPaths},
    model::{EnvId, Environment, Live, Mode, ReleaseId, UserName},
    release::ReleaseError,
};

/// The time limit of a scan, of the saving of a patch, and of the application of a patch.
const SCAN_TIMEOUT: Duration = Duration::from_secs(60);
/// The size limit of `expected-drift.json`, in bytes.
const MAX_EXPECTED: u64 = 64 << 20;
/// The maximum number of changes that are listed on the pusher's screen.
const MAX_NAMED: usize = 10;
/// The maximum age of a scan that an overview shows without a new scan.
const MAX_AGE: Duration = Duration::from_secs(60);
/// The maximum number of environments that an overview scans again, and the maximum time that the overview waits for the scans.
const AT_ONCE: (usize, Duration) = (8, Duration::from_millis(300));

/// The changes that releases already had in their slots when they went live. Scripts of the deployment, the release command and starting
/// processes make such changes. If the file `expected-drift.json` is missing, larder shows more drift, but no change is lost.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Expected(BTreeMap<ReleaseId, Vec<KnownEntry>>);

impl Expected {
    fn read(paths: &EnvironmentPaths) -> Expected {
        let bytes = files::read_limited(&paths.expected_drift(), MAX_EXPECTED).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Stores the expected changes of `release`. Drops the entries of all releases except `release` and `other`.
    fn write(mut self, paths: &EnvironmentPaths, release: ReleaseId, known: Vec<KnownEntry>, other: Option<ReleaseId>) {
        self.0.retain(|known, _| Some(*known) == other);
        self.0.insert(release, known);
        let bytes = serde_json::to_vec(&self).unwrap_or_default();
        if let Err(error) = files::place_file(&paths.expected_drift(), &bytes, 0o600) {
            tracing::warn!(error = chain(&error), "changes that the deployment itself made will count as drift");
        }
    }
}

/// Stores, as expected changes, the changes in the slot of a release that has just gone live. Changes that a patch made still count
/// as drift.
pub(super) async fn expect(deployment: &Deployment, live: &Live) {
    if deployment.environment.mode == Mode::Editable {
        return;
    }
    let environment = &deployment.environment;
    let (paths, settings) = (&deployment.paths, deployment.settings());
    // Expected changes that an earlier deployment of the release stored are dropped before the scan, so that the scan finds all
    // files that the newly started processes have written.
    let mut expected = Expected::read(paths);
    if expected.0.remove(&live.release).is_some() {
        Expected(expected.0).write(paths, live.release, Vec::new(), deployment.previous_release());
    }
    let target = LiveSlot { services: &deployment.services, environment, live, settings: &settings };
    let drift = match target.scan().await {
        Ok(drift) => drift,
        Err(error) => {
            return tracing::warn!(error = chain(&error), "changes that the deployment itself made will count as drift");
        }
    };
    let patch = deployment.facts.patch.as_ref().and_then(|id| Patches::of(&paths.archives()).find(id));
    let patched: HashSet<&str> = patch.iter().flat_map(|patch| &patch.changes).map(|change| change.path.as_str()).collect();
    let known = drift.real().filter(|change| !patched.contains(change.path.as_str()));
    let known: Vec<KnownEntry> = known.map(|change| (change.path.clone(), change.now.clone())).collect();
    if !known.is_empty() {
        Expected::read(paths).write(paths, live.release, known, deployment.previous_release());
        deployment.services.drift.forget(environment.id, live.slot);
    }
}

/// The slot of a release that is or was live in an environment.
struct LiveSlot<'a> {
    services: &'a Services,
    environment: &'a Environment,
    live: &'a Live,
    settings: &'a Settings,
}

impl LiveSlot<'_> {
    /// Runs `act` on the slot. The slot is not emptied meanwhile.
    async fn act<T>(&self, act: impl AsyncFnOnce(DriftTarget<'_>) -> Result<T, ReleaseError>) -> Result<T, ReleaseError> {
        let paths = self.services.root.environment(&self.environment.project, &self.environment.name);
        let _held = self.services.drift.hold(self.environment.id).await;
        let place = DriftTarget {
            context: self.services.release_context(self.environment, &paths),
            release: self.live.release,
            slot: self.live.slot,
            data: self.settings.data.iter().map(|data| data.path().to_owned()).collect(),
            ignore: self.settings.drift_ignore.clone(),
            known: Expected::read(&paths).0.remove(&self.live.release).unwrap_or_default(),
        };
        let late = || ReleaseError::Refused { why: format!("the scan took longer than {} s", SCAN_TIMEOUT.as_secs()) };
        tokio::time::timeout(SCAN_TIMEOUT, act(place)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn scan(&self) -> Result<Drift, ReleaseError> {
        if self.is_untouched().await {
            self.services.drift.note(self.environment.id, self.live, &Drift::default());
            return Ok(Drift::default());
        }
        let drift = self.act(async |place| drift::look(&place).await).await?;
        self.services.drift.note(self.environment.id, self.live, &drift);
        Ok(drift)
    }

    /// Returns true if the slot's scratch layer is empty, so that no worker is needed. This function opens no file in the layer.
    async fn is_untouched(&self) -> bool {
        let _held = self.services.drift.hold(self.environment.id).await;
        let paths = self.services.root.environment(&self.environment.project, &self.environment.name);
        let upper = paths.slot(self.live.slot).join("upper");
        std::fs::read_dir(upper).is_ok_and(|mut names| names.next().is_none())
    }

    async fn save(&self, by: Option<UserName>) -> Result<(Drift, Option<Patch>), ReleaseError> {
        let (drift, patch) = self.act(async |place| drift::save(&place, by).await).await?;
        self.services.drift.note(self.environment.id, self.live, &drift);
        Ok((drift, patch))
    }

    async fn apply(&self, patch: &Patch) -> Result<Applied, ReleaseError> {
        self.act(async |place| drift::apply(&place, patch).await).await
    }
}

/// Scans the live release for drift before the deployment changes anything.
pub async fn before(deployment: &Deployment) -> Result<Option<Drift>, ReleaseError> {
    let Some(live) = &deployment.spec.previous else { return Ok(None) };
    let settings = deployment.previous_settings();
    let target = LiveSlot { services: &deployment.services, environment: &deployment.environment, live, settings: &settings };
    target.scan().await.map(Some)
}

/// Saves, as a patch, the changes that [`before`] found, and applies the recipe's drift policy.
pub async fn decide(
    deployment: &mut Deployment,
    found: Result<Option<Drift>, ReleaseError>,
    settings: &Settings,
) -> Result<(), Failure> {
    let policy = settings.drift_policy(&deployment.services.config);
    let environment = deployment.environment.clone();
    let title = environment.title();
    let Some(live) = deployment.spec.previous.clone() else { return Ok(()) };
    let changed = match found {
        Ok(None) => return Ok(()),
        Ok(Some(drift)) => drift.counts().0,
        // A failed scan stops the deployment only under the policy `refuse`.
        Err(error) if policy == DriftPolicy::Refuse => return Err(Failure::host(&error)),
        Err(error) => {
            deployment.transcript.error(&format!("cannot compare {} with its release: {}", live.number, chain(&error)));
            return Ok(());
        }
    };
    if changed == 0 {
        return Ok(());
    }
    let before = deployment.previous_settings();
    let target = LiveSlot { services: &deployment.services, environment: &environment, live: &live, settings: &before };
    let (drift, patch) = target.save(None).await.map_err(|error| Failure::host(&error))?;
    let Some(patch) = patch else { return Ok(()) };
    let what = format!("{} of {} {} changed by hand", files(changed), live.number, if changed == 1 { "was" } else { "were" });
    deployment.transcript.error(&what);
    list(&deployment.transcript, &drift);
    match policy {
        DriftPolicy::Refuse if patch.by.is_none() => {
            return Err(Failure::pusher(what).hint(format!(
                "commit the right changes, or run `larder drift {title} --save` to save all changes as a patch and allow the next push; `larder drift {title}` shows all changes"
            )));
        }
        DriftPolicy::Refuse | DriftPolicy::Keep => {
            deployment.transcript.detail(&format!(
                "the new release does not contain these changes; show them with: larder drift {title} --show {}",
                patch.id
            ));
        }
        DriftPolicy::Reapply => {
            deployment.transcript.detail(&format!("saved as patch {}, which will be applied to the new release", patch.id));
            deployment.facts.patch = Some(patch.id);
        }
    }
    Ok(())
}

fn files(number: u64) -> String {
    format!("{number} {}", if number == 1 { "file" } else { "files" })
}

/// Lists the changes in the transcript. Changes that cannot be saved are listed as errors.
fn list(transcript: &Transcript, drift: &Drift) {
    for change in drift.real().take(MAX_NAMED) {
        let odd = change.odd.as_ref().map(|odd| format!(" ({odd})")).unwrap_or_default();
        let line = format!("{} {}{odd}", change.change.as_str(), change.path);
        if change.odd.is_some() { transcript.error(&line) } else { transcript.detail(&line) }
    }
    let odd = drift.real().skip(MAX_NAMED).filter(|change| change.odd.is_some()).count() as u64;
    let rest = (drift.real().count().saturating_sub(MAX_NAMED) as u64).saturating_add(drift.left_out);
    if rest > 0 {
        transcript.detail(&format!("... and {rest} more"));
    }
    if odd.saturating_add(drift.left_out) > 0 {
        transcript.error(&format!("{} of these cannot be saved", files(odd.saturating_add(drift.left_out))));
    }
}

/// Applies the patch of this deployment to the deployment's release, if there is a patch.
pub async fn reapply(deployment: &Deployment) -> Result<(), Failure> {
    let Some(id) = &deployment.facts.patch else { return Ok(()) };
    let spec = &deployment.spec;
    let live = Live { release: spec.release, number: spec.number, commit: spec.commit.clone(), slot: spec.slot };
    let settings = deployment.settings();
    let target =
        LiveSlot { services: &deployment.services, environment: &deployment.environment, live: &live, settings: &settings };
    let title = deployment.environment.title();
    let patch = Patches::of(&deployment.paths.archives()).find(id);
    let patch = patch.ok_or_else(|| Failure::pusher(format!("cannot find patch {id}")).hint("push again"))?;
    match target.apply(&patch).await.map_err(|error| Failure::host(&error))? {
        Applied::Done { changed, merged, there } => {
            let mut parts = vec![format!("{} changed", files(changed.len() as u64))];
            if !merged.is_empty() {
                parts.push(format!("of these merged: {}", merged.join(", ")));
            }
            if there > 0 {
                parts.push(format!("{} already contained the change", files(there)));
            }
            deployment.transcript.detail(&format!("applied patch {id} to the release: {}", parts.join("; ")));
            Ok(())
        }
        Applied::Conflicts(conflicts) => {
            for (path, why) in conflicts.iter().take(MAX_NAMED) {
                deployment.transcript.error(&format!("{path}: {why}"));
            }
            let first = conflicts.first().map(|(path, why)| format!("{path}: {why}")).unwrap_or_default();
            let rest = conflicts.len().saturating_sub(1);
            let more = if rest == 0 { String::new() } else { format!(" (and {rest} more)") };
            Err(Failure::pusher(format!("cannot apply patch {id} to this release: {first}{more}")).hint(format!(
                "show the patch with `larder drift {title} --show {id}`; commit its changes, or set `drift: keep` to deploy without them"
            )))
        }
    }
}

/// Saves the changes in a slot that is about to be emptied, or that no longer serves. A failure is only logged.
pub(super) async fn keep(deployment: &Deployment, live: &Live, settings: &Settings) -> Option<Patch> {
    let environment = &deployment.environment;
    // No deployment empties a checkout.
    if environment.mode == Mode::Editable {
        return None;
    }
    let target = LiveSlot { services: &deployment.services, environment, live, settings };
    let kept = match target.scan().await {
        Ok(drift) if drift.counts().0 == 0 => return None,
        Ok(_) => target.save(None).await,
        Err(error) => Err(error),
    };
    match kept {
        Ok((_, patch)) => {
            if let Some(patch) = &patch {
                tracing::warn!(environment = environment.title(), patch = patch.id, "changes made by hand saved as a patch");
            }
            patch
        }
        Err(error) => {
            tracing::error!(
                environment = environment.title(),
                error = chain(&error),
                "cannot save changes made by hand; they may be lost"
            );
            None
        }
    }
}

/// Saves the changes in the live release's slot before a restart empties the slot. If the drift policy is `reapply`, the restart
/// applies the changes again.
pub(super) async fn over_a_restart(deployment: &mut Deployment, live: &Live) {
    let settings = deployment.settings();
    let patch = keep(deployment, live, &settings).await;
    let wanted = settings.drift_policy(&deployment.services.config) == DriftPolicy::Reapply;
    deployment.facts.patch = patch.filter(|_| wanted).map(|patch| patch.id);
}

/// The reason why the drift of a live release could not be found or saved, or why the release could not be verified.
#[derive(Debug, thiserror::Error)]
pub enum DriftError {
    /// No release is live.
    #[error("nothing is live in {0} yet")]
    Nothing(String),
    /// The scan, the saving or the verification failed.
    #[error("cannot compare {environment} with its release")]
    Failed {
        /// The environment.
        environment: String,
        /// The cause.
        #[source]
        source: ReleaseError,
    },
}

impl Pipeline {
    /// Scans the live release for drift.
    pub async fn drift(&self, environment: &Environment) -> Result<(Live, Drift), DriftError> {
        let (live, settings) = self.live_with_settings(environment)?;
        let target = LiveSlot { services: self.services(), environment, live: &live, settings: &settings };
        let found = target.scan().await.map_err(|source| DriftError::Failed { environment: environment.title(), source })?;
        Ok((live, found))
    }

    /// Saves the drift of the live release as a patch of the user `by`. Returns no patch if no change counts as drift.
    pub async fn save_drift(&self, environment: &Environment, by: UserName) -> Result<(Live, Drift, Option<Patch>), DriftError> {
        let (live, settings) = self.live_with_settings(environment)?;
        let target = LiveSlot { services: self.services(), environment, live: &live, settings: &settings };
        let saved = target.save(Some(by)).await;
        let (drift, patch) = saved.map_err(|source| DriftError::Failed { environment: environment.title(), source })?;
        Ok((live, drift, patch))
    }

    /// Compares the live release's installed tree, byte by byte, with its manifest. Returns paths with their differences, and the
    /// number of differences that were left out.
    pub async fn verify_live(&self, environment: &Environment) -> Result<(Vec<(String, String)>, u64), DriftError> {
        let (live, _) = self.live_with_settings(environment)?;
        let services = self.services();
        let paths = services.root.environment(&environment.project, &environment.name);
        let context = services.release_context(environment, &paths);
        let found = drift::verify_tree(&context, live.release).await;
        found.map_err(|source| DriftError::Failed { environment: environment.title(), source })
    }

    /// Returns the patches of an environment.
    pub fn patches(&self, environment: &Environment) -> Patches {
        Patches::of(&self.services().root.environment(&environment.project, &environment.name).archives())
    }

    /// Returns the result of the last scan of the live release.
    pub fn last_drift(&self, environment: EnvId) -> Option<LastScan> {
        let live = self.live(environment)?;
        self.services().drift.last(environment).filter(|last| last.live == live)
    }

    /// Scans the environments whose last scan is old. The wait for the scans is short; the next overview shows later results.
    pub async fn refresh_drift(&self, environments: &[Environment]) {
        let stale = |environment: &&Environment| {
            environment.mode != Mode::Editable
                && self.live(environment.id).is_some()
                && self.under_way(environment.id).0.is_none()
                && self
                    .last_drift(environment.id)
                    .is_none_or(|last| Timestamp::now().duration_since(last.at).unsigned_abs() > MAX_AGE)
        };
        let scans = environments.iter().filter(stale).take(AT_ONCE.0).cloned().map(|environment| {
            let this = self.clone();
            tokio::spawn(async move {
                if let Err(error) = this.drift(&environment).await {
                    tracing::warn!(environment = environment.title(), error = chain(&error), "scan for drift failed");
                }
            })
        });
        let scans: Vec<_> = scans.collect();
        let _ = tokio::time::timeout(AT_ONCE.1, futures_util::future::join_all(scans)).await;
    }

    fn live_with_settings(&self, environment: &Environment) -> Result<(Live, Settings), DriftError> {
        let live = self.live(environment.id).ok_or_else(|| DriftError::Nothing(environment.title()))?;
        Ok((live.clone(), self.settings_of(environment, &live)))
    }
}
