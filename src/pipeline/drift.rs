//! What becomes of changes that somebody made by hand in what runs: looked for before a deployment, kept before a slot is emptied,
//! and put onto the next release where the project wants that.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;

use super::{
    Pipeline,
    context::{Deployment, Services},
    step::{Failure, chain},
    transcript::Transcript,
};
use crate::{
    config::{DriftPolicy, Settings},
    drift::{self, Applied, Drift, DriftTarget, Known, Patch, patches::Patches},
    host::{files, root::EnvironmentPaths},
    model::{EnvId, Environment, Live, ReleaseId, Slot, UserName},
    release::ReleaseError,
};

/// A look takes no longer; a tree on which it would is not waited for.
const LIMIT: Duration = Duration::from_secs(60);
/// What is expected never takes more, bytes.
const EXPECTED: u64 = 64 << 20;
/// So many changes are named on the pusher's screen.
const NAMED: usize = 10;
/// A look that is younger is good enough for an overview.
const FRESH: Duration = Duration::from_secs(60);
/// How many environments an overview looks at again, and how long it waits for that.
const AT_ONCE: (usize, Duration) = (8, Duration::from_millis(300));

/// What the last look at an environment has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastLook {
    /// What was live.
    pub live: Live,
    /// When it was.
    pub at: Timestamp,
    /// How many changes matter.
    pub changes: u64,
    /// How many are to be expected.
    pub noise: u64,
}

#[derive(Debug, Default)]
struct Post {
    busy: Arc<tokio::sync::Mutex<()>>,
    last: Mutex<Option<LastLook>>,
}

/// Who looks where; and what was found last.
#[derive(Debug, Default)]
pub struct Watch(Mutex<HashMap<EnvId, Arc<Post>>>);

impl Watch {
    fn post(&self, environment: EnvId) -> Arc<Post> {
        self.0.lock().entry(environment).or_default().clone()
    }

    /// Waits until nobody looks at the slots of an environment; nobody does while the answer is held.
    pub async fn hold(&self, environment: EnvId) -> OwnedMutexGuard<()> {
        self.post(environment).busy.clone().lock_owned().await
    }

    /// What was found last.
    pub fn last(&self, environment: EnvId) -> Option<LastLook> {
        self.post(environment).last.lock().clone()
    }

    /// Forgets what was found in a slot that is emptied.
    pub fn forget(&self, environment: EnvId, slot: Slot) {
        self.post(environment).last.lock().take_if(|last| last.live.slot == slot);
    }

    fn note(&self, environment: EnvId, live: &Live, drift: &Drift) {
        let (changes, noise) = drift.counts();
        let look = LastLook { live: live.clone(), at: Timestamp::now(), changes, noise };
        *self.post(environment).last.lock() = Some(look);
    }
}

/// What releases had in their slots when they went live, besides what they were released with: scripts of the deployment, the
/// release command and processes that start write there too. Without it there is more drift to be seen, and nothing is lost.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Expected(BTreeMap<ReleaseId, Vec<Known>>);

impl Expected {
    fn read(paths: &EnvironmentPaths) -> Expected {
        let bytes = files::read_limited(&paths.expected_drift(), EXPECTED).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// For `release` from now on; what is known of others than `other` is forgotten.
    fn write(mut self, paths: &EnvironmentPaths, release: ReleaseId, known: Vec<Known>, other: Option<ReleaseId>) {
        self.0.retain(|known, _| Some(*known) == other);
        self.0.insert(release, known);
        let bytes = serde_json::to_vec(&self).unwrap_or_default();
        if let Err(error) = files::place_file(&paths.expected_drift(), &bytes, 0o600) {
            tracing::warn!(error = chain(&error), "it is not known what a deployment wrote into its slot");
        }
    }
}

/// Remembers what is in a slot that has just gone live. What a patch has put there is drift all the same.
pub(super) async fn expect(deployment: &Deployment, live: &Live) {
    let environment = &deployment.order.environment;
    let (paths, settings) = (&deployment.paths, deployment.settings());
    // What was expected before is looked at again: a process that starts anew writes anew.
    let mut expected = Expected::read(paths);
    if expected.0.remove(&live.release).is_some() {
        Expected(expected.0).write(paths, live.release, Vec::new(), deployment.previous_release());
    }
    let scene = Scene { services: &deployment.services, environment, live, settings: &settings };
    let drift = match scene.look().await {
        Ok(drift) => drift,
        Err(error) => return tracing::warn!(error = chain(&error), "it is not known what a deployment wrote into its slot"),
    };
    let patch = deployment.facts.patch.as_ref().and_then(|id| Patches::of(&paths.archives()).find(id));
    let patched: HashSet<&str> = patch.iter().flat_map(|patch| &patch.changes).map(|change| change.path.as_str()).collect();
    let known = drift.real().filter(|change| !patched.contains(change.path.as_str()));
    let known: Vec<Known> = known.map(|change| (change.path.clone(), change.now.clone())).collect();
    if !known.is_empty() {
        Expected::read(paths).write(paths, live.release, known, deployment.previous_release());
        deployment.services.drift.forget(environment.id, live.slot);
    }
}

/// An environment with what is live in it, or was.
struct Scene<'a> {
    services: &'a Services,
    environment: &'a Environment,
    live: &'a Live,
    settings: &'a Settings,
}

impl Scene<'_> {
    /// Works in the slot, while nobody empties it.
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
        let late = || ReleaseError::Refused { why: format!("it took longer than {} s", LIMIT.as_secs()) };
        tokio::time::timeout(LIMIT, act(place)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn look(&self) -> Result<Drift, ReleaseError> {
        if self.is_untouched().await {
            self.services.drift.note(self.environment.id, self.live, &Drift::default());
            return Ok(Drift::default());
        }
        let drift = self.act(async |place| drift::look(&place).await).await?;
        self.services.drift.note(self.environment.id, self.live, &drift);
        Ok(drift)
    }

    /// Whether the slot's scratch layer has nothing in it, so that no worker has to look. Nothing in it is opened here.
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

/// What differs in what is live now, before a deployment has changed anything.
pub async fn before(deployment: &Deployment) -> Result<Option<Drift>, ReleaseError> {
    let Some(live) = &deployment.order.previous else { return Ok(None) };
    let settings = deployment.before.clone().unwrap_or_default();
    let scene = Scene { services: &deployment.services, environment: &deployment.order.environment, live, settings: &settings };
    scene.look().await.map(Some)
}

/// Keeps what [`before`] found, and does what the project wants to be done about it.
pub async fn decide(
    deployment: &mut Deployment,
    found: Result<Option<Drift>, ReleaseError>,
    settings: &Settings,
) -> Result<(), Failure> {
    let policy = settings.drift_policy(&deployment.services.config);
    let environment = deployment.order.environment.clone();
    let title = environment.title();
    let Some(live) = deployment.order.previous.clone() else { return Ok(()) };
    let changed = match found {
        Ok(None) => return Ok(()),
        Ok(Some(drift)) => drift.counts().0,
        // Whoever wants no change to be lost has to know; others are not stopped by a look that failed.
        Err(error) if policy == DriftPolicy::Refuse => return Err(Failure::host(&error)),
        Err(error) => {
            deployment.transcript.error(&format!("{} could not be compared with what runs: {}", live.number, chain(&error)));
            return Ok(());
        }
    };
    if changed == 0 {
        return Ok(());
    }
    let before = deployment.before.clone().unwrap_or_default();
    let scene = Scene { services: &deployment.services, environment: &environment, live: &live, settings: &before };
    let (drift, patch) = scene.save(None).await.map_err(|error| Failure::host(&error))?;
    let Some(patch) = patch else { return Ok(()) };
    let what = format!("{} of {} {} changed by hand", files(changed), live.number, if changed == 1 { "was" } else { "were" });
    deployment.transcript.error(&what);
    list(&deployment.transcript, &drift);
    match policy {
        DriftPolicy::Refuse if patch.by.is_none() => {
            return Err(Failure::pusher(what).hint(format!(
                "commit what is right; `larder drift {title}` shows all, and `larder drift {title} --save` keeps it as a patch and lets the next push through"
            )));
        }
        DriftPolicy::Refuse | DriftPolicy::Keep => {
            deployment
                .transcript
                .detail(&format!("this release is without that; it is kept: larder drift {title} --show {}", patch.id));
        }
        DriftPolicy::Reapply => {
            deployment.transcript.detail(&format!("kept as patch {}, which is put onto this release", patch.id));
            deployment.facts.patch = Some(patch.id);
        }
    }
    Ok(())
}

fn files(number: u64) -> String {
    format!("{number} {}", if number == 1 { "file" } else { "files" })
}

/// Names the changes, and those loudly that cannot be kept.
fn list(transcript: &Transcript, drift: &Drift) {
    for change in drift.real().take(NAMED) {
        let odd = change.odd.as_ref().map(|odd| format!(" ({odd})")).unwrap_or_default();
        let line = format!("{} {}{odd}", change.change.as_str(), change.path);
        if change.odd.is_some() { transcript.error(&line) } else { transcript.detail(&line) }
    }
    let odd = drift.real().skip(NAMED).filter(|change| change.odd.is_some()).count() as u64;
    let rest = (drift.real().count().saturating_sub(NAMED) as u64).saturating_add(drift.left_out);
    if rest > 0 {
        transcript.detail(&format!("... and {rest} more"));
    }
    if odd.saturating_add(drift.left_out) > 0 {
        transcript.error(&format!("{} of these cannot be kept", files(odd.saturating_add(drift.left_out))));
    }
}

/// Puts the patch of this deployment onto its release, if there is one.
pub async fn reapply(deployment: &Deployment) -> Result<(), Failure> {
    let Some(id) = &deployment.facts.patch else { return Ok(()) };
    let order = &deployment.order;
    let live = Live { release: order.release, number: order.number, commit: order.commit.clone(), slot: order.slot };
    let settings = deployment.settings();
    let scene = Scene { services: &deployment.services, environment: &order.environment, live: &live, settings: &settings };
    let title = order.environment.title();
    let patch = Patches::of(&deployment.paths.archives()).find(id);
    let patch = patch.ok_or_else(|| Failure::pusher(format!("the patch {id} is gone")).hint("push again"))?;
    match scene.apply(&patch).await.map_err(|error| Failure::host(&error))? {
        Applied::Done { changed, merged, there } => {
            let mut parts = vec![format!("{} changed", files(changed.len() as u64))];
            if !merged.is_empty() {
                parts.push(format!("of these merged: {}", merged.join(", ")));
            }
            if there > 0 {
                parts.push(format!("{there} were so already"));
            }
            deployment.transcript.detail(&format!("patch {id} put onto the release: {}", parts.join("; ")));
            Ok(())
        }
        Applied::Conflicts(conflicts) => {
            for (path, why) in conflicts.iter().take(NAMED) {
                deployment.transcript.error(&format!("{path}: {why}"));
            }
            let first = conflicts.first().map(|(path, why)| format!("{path}: {why}")).unwrap_or_default();
            let rest = conflicts.len().saturating_sub(1);
            let more = if rest == 0 { String::new() } else { format!(" (and {rest} more)") };
            Err(Failure::pusher(format!("the patch {id} does not fit this release: {first}{more}")).hint(format!(
                "`larder drift {title} --show {id}` shows it; commit its changes, or write `drift: keep` to deploy without them"
            )))
        }
    }
}

/// Keeps what was changed by hand in a slot that is about to be emptied, or that serves no more. Nothing depends on it.
pub(super) async fn keep(deployment: &Deployment, live: &Live, settings: &Settings) -> Option<Patch> {
    let environment = &deployment.order.environment;
    let scene = Scene { services: &deployment.services, environment, live, settings };
    let kept = match scene.look().await {
        Ok(drift) if drift.counts().0 == 0 => return None,
        Ok(_) => scene.save(None).await,
        Err(error) => Err(error),
    };
    match kept {
        Ok((_, patch)) => {
            if let Some(patch) = &patch {
                tracing::warn!(environment = environment.title(), patch = patch.id, "changes made by hand are kept");
            }
            patch
        }
        Err(error) => {
            tracing::error!(environment = environment.title(), error = chain(&error), "changes made by hand may be lost");
            None
        }
    }
}

/// Empties the slot of what is live without losing what was changed there by hand, and does with that what the project wants.
pub(super) async fn over_a_restart(deployment: &mut Deployment, live: &Live) {
    let settings = deployment.settings();
    let patch = keep(deployment, live, &settings).await;
    let wanted = settings.drift_policy(&deployment.services.config) == DriftPolicy::Reapply;
    deployment.facts.patch = patch.filter(|_| wanted).map(|patch| patch.id);
}

/// Why drift could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum DriftError {
    /// There is nothing to look at.
    #[error("nothing is live in {0} yet")]
    Nothing(String),
    /// The look failed.
    #[error("{environment} could not be compared with its release")]
    Failed {
        /// Where.
        environment: String,
        /// Why.
        #[source]
        source: ReleaseError,
    },
}

impl Pipeline {
    /// Looks where what runs differs from its release.
    pub async fn drift(&self, environment: &Environment) -> Result<(Live, Drift), DriftError> {
        let (live, settings) = self.scenery(environment)?;
        let scene = Scene { services: self.services(), environment, live: &live, settings: &settings };
        let found = scene.look().await.map_err(|source| DriftError::Failed { environment: environment.title(), source })?;
        Ok((live, found))
    }

    /// Keeps where what runs differs from its release as a patch of somebody's; nothing where nothing that matters does.
    pub async fn save_drift(&self, environment: &Environment, by: UserName) -> Result<(Live, Drift, Option<Patch>), DriftError> {
        let (live, settings) = self.scenery(environment)?;
        let scene = Scene { services: self.services(), environment, live: &live, settings: &settings };
        let saved = scene.save(Some(by)).await;
        let (drift, patch) = saved.map_err(|source| DriftError::Failed { environment: environment.title(), source })?;
        Ok((live, drift, patch))
    }

    /// Compares the live release's installed tree, byte by byte, with its manifest: path and what is wrong, and how many more.
    pub async fn verify_live(&self, environment: &Environment) -> Result<(Vec<(String, String)>, u64), DriftError> {
        let (live, _) = self.scenery(environment)?;
        let services = self.services();
        let paths = services.root.environment(&environment.project, &environment.name);
        let context = services.release_context(environment, &paths);
        let found = drift::verify_tree(&context, live.release).await;
        found.map_err(|source| DriftError::Failed { environment: environment.title(), source })
    }

    /// The patches of an environment.
    pub fn patches(&self, environment: &Environment) -> Patches {
        Patches::of(&self.services().root.environment(&environment.project, &environment.name).archives())
    }

    /// What the last look at what is live has found.
    pub fn last_drift(&self, environment: EnvId) -> Option<LastLook> {
        let live = self.live(environment)?;
        self.services().drift.last(environment).filter(|last| last.live == live)
    }

    /// Looks again where that was long ago. Does not wait long for it: what comes later, the next overview shows.
    pub async fn freshen_drift(&self, environments: &[Environment]) {
        let stale = |environment: &&Environment| {
            self.live(environment.id).is_some()
                && self.under_way(environment.id).0.is_none()
                && self
                    .last_drift(environment.id)
                    .is_none_or(|last| Timestamp::now().duration_since(last.at).unsigned_abs() > FRESH)
        };
        let looks = environments.iter().filter(stale).take(AT_ONCE.0).cloned().map(|environment| {
            let this = self.clone();
            tokio::spawn(async move {
                if let Err(error) = this.drift(&environment).await {
                    tracing::warn!(environment = environment.title(), error = chain(&error), "no look at drift");
                }
            })
        });
        let looks: Vec<_> = looks.collect();
        let _ = tokio::time::timeout(AT_ONCE.1, futures_util::future::join_all(looks)).await;
    }

    fn scenery(&self, environment: &Environment) -> Result<(Live, Settings), DriftError> {
        let live = self.live(environment.id).ok_or_else(|| DriftError::Nothing(environment.title()))?;
        Ok((live.clone(), self.settings_of(environment, &live)))
    }

    /// The settings with which a release was deployed.
    pub(super) fn settings_of(&self, environment: &Environment, live: &Live) -> Settings {
        self.facts(environment, live.release).ok().and_then(|facts| facts.settings).unwrap_or_default()
    }
}
