//! Finds the release for a deployment, by commit or by name: in the environment's own store, in sibling environments, and at
//! remotes.

use super::{
    core::Pipeline,
    history::Summary,
    queue::{Goal, Queue},
    util::chain,
};
use crate::{
    model::{CommitId, EnvId, Environment, Mode, Origin, ReleaseId, ReleaseNameForm, ReleaseNumber, RemoteName, sanitise_reason},
    release::{manifest::Head, store},
    remote::{Offer, RemoteError},
};

/// A release that could become live. Data from remotes is not trusted: the signed manifest is checked before the release is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseCandidate {
    /// The id.
    pub release: ReleaseId,
    /// The commit.
    pub commit: CommitId,
    /// The git tree of the commit.
    pub source: Option<CommitId>,
    /// The build number.
    pub build: u64,
    /// The version tag of the commit.
    pub tag: Option<String>,
    /// The number of the release in the environment that cooked the release, if this number is known.
    pub number: Option<ReleaseNumber>,
    /// The source from which the release can be taken.
    pub origin: Origin,
}

impl ReleaseCandidate {
    fn of_head(head: Head, origin: Origin) -> ReleaseCandidate {
        let Head { release, commit, source, build, tag, .. } = head;
        ReleaseCandidate { release, commit, source, build, tag, number: None, origin }
    }

    fn of_offer(offer: Offer, remote: &RemoteName) -> ReleaseCandidate {
        let Offer { release, commit, source, build, tag, number, .. } = offer;
        ReleaseCandidate { release, commit, source, build, tag, number, origin: Origin::Remote(remote.clone()) }
    }

    /// Returns a title such as `v42 (1a2b3c4d5e)`, for messages.
    pub fn title(&self) -> String {
        let number = self.number.map(|number| format!("{number} ")).unwrap_or_default();
        let tag = self.tag.as_ref().map(|tag| format!("{} ", sanitise_reason(tag))).unwrap_or_default();
        format!("{number}{tag}({})", self.commit.short())
    }

    /// Returns true if `name` is the id, the number or the tag of this release.
    fn is_called(&self, name: &str) -> bool {
        let form = ReleaseNameForm::of(name);
        if let ReleaseNameForm::Number(number) = form {
            return number.is_some() && number == self.number;
        }
        name.parse() == Ok(self.release) || (self.tag.is_some() && self.tag.as_deref() == form.tag())
    }
}

/// The reason why the releases of a remote could not be listed.
#[derive(Debug)]
pub struct UnreachableRemote {
    why: String,
    hints: Vec<String>,
}

impl UnreachableRemote {
    fn new(error: &RemoteError) -> UnreachableRemote {
        UnreachableRemote { why: chain(error), hints: error.hints() }
    }
}

fn reasons(unreachable: &[UnreachableRemote]) -> String {
    unreachable.iter().map(|remote| format!("; cannot reach a remote: {}", remote.why)).collect()
}

/// An error of the search for a release.
#[derive(Debug, thiserror::Error)]
pub enum SupplyError {
    /// No environment and no remote has the release.
    #[error("there is no deliverable of {wanted}{}", reasons(unreachable))]
    None {
        /// The requested release.
        wanted: String,
        /// Titles of the releases on offer, newest first.
        offered: Vec<String>,
        /// The remotes that could not be reached.
        unreachable: Vec<UnreachableRemote>,
    },
    /// The environment has no release to go back to, or a rollback cannot use the named release. The text is the reason.
    #[error("{0}")]
    Named(String),
    /// No release with the name of a rollback was ever live in the environment.
    #[error("{environment} has no release {name} that was ever live")]
    NeverLive {
        /// The environment, as `project/environment`.
        environment: String,
        /// The name.
        name: String,
    },
    /// Several commits begin with the name.
    #[error("the release name {name} is ambiguous: it matches {}", titles.join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// The titles of the releases that match, newest first.
        titles: Vec<String>,
    },
    /// The environment has no such remote.
    #[error("cannot find the remote {remote}: {environment} has no such remote")]
    NoRemote {
        /// The environment, as `project/environment`.
        environment: String,
        /// The name.
        remote: RemoteName,
    },
    /// An error of this machine.
    #[error("{0}")]
    Host(String),
}

impl SupplyError {
    /// Returns hints for the user, one per line.
    pub fn hints(&self) -> Vec<String> {
        let SupplyError::None { offered, unreachable, .. } = self else { return Vec::new() };
        let mut hints: Vec<_> = unreachable.iter().flat_map(|remote| remote.hints.clone()).collect();
        match offered.as_slice() {
            [] if unreachable.is_empty() => {
                hints.push(String::from("push to the staging environment first: no release was cooked yet"));
                hints.push(String::from("if staging is on another server, add it with `larder remote add`"));
            }
            [] => {}
            offered => {
                hints.push(format!("choose an offered release: {}", offered.join(", ")));
                hints.push(String::from(
                    "push the commit to the staging environment first, or deploy an offered release with `larder pull`",
                ));
            }
        }
        hints
    }
}

/// The maximum number of offers that a refusal lists.
const MAX_NAMED: usize = 5;

/// The offers of remotes, and the remotes that could not be reached.
#[derive(Default)]
struct RemoteOffers {
    candidates: Vec<ReleaseCandidate>,
    unreachable: Vec<UnreachableRemote>,
}

impl Pipeline {
    /// Returns the goal of a push or a redeployment of `commit`. A cooking environment builds the commit; a final environment takes an
    /// existing release of the commit.
    pub async fn goal(&self, environment: &Environment, commit: &CommitId) -> Result<Goal, SupplyError> {
        match environment.mode {
            Mode::Editable | Mode::Cooking => Ok(Goal::Cook),
            Mode::Final => {
                let ReleaseCandidate { release, origin, .. } = self.deliverable(environment, commit).await?;
                Ok(Goal::Release { release, origin, newest: false, overriding: None })
            }
        }
    }

    /// Returns the newest build of `commit`, or of another commit with the same tree. Builds that were live in this environment take
    /// precedence. Otherwise searches the environment's own store and its siblings on this server, and its remotes only if no sibling
    /// has a build.
    async fn deliverable(&self, environment: &Environment, commit: &CommitId) -> Result<ReleaseCandidate, SupplyError> {
        let tree = self.0.services.repositories.tree(environment.project_id, commit.clone()).await.ok();
        let fits = |candidate: &&ReleaseCandidate| candidate.commit == *commit || (tree.is_some() && candidate.source == tree);
        let mut all = self.stored(environment).await?;
        // A release that was live here before is used as it is. For other releases, siblings and remotes may have newer builds or
        // health records.
        let history = self.history(environment.id);
        let was_live = |candidate: &&ReleaseCandidate| history.of_release(candidate.release).is_some();
        if let Some(found) = newest(all.iter().filter(fits).filter(was_live)) {
            return Ok(found);
        }
        all.extend(self.siblings(environment).await?);
        let mut unreachable = Vec::new();
        if !all.iter().any(|candidate| fits(&candidate) && matches!(candidate.origin, Origin::Environment(_))) {
            let found = self.remote_offers(environment, None).await;
            all.extend(found.candidates);
            unreachable = found.unreachable;
        }
        if let Some(found) = newest(all.iter().filter(fits)) {
            return Ok(found);
        }
        Err(none(format!("commit {}", commit.short()), all, unreachable))
    }

    /// Returns the release with the name `name`, or the newest release. Searches only the remote `from` if it is given. Otherwise
    /// searches the sibling environments and all remotes, and for a name also the environment's own store.
    pub async fn wanted(
        &self,
        environment: &Environment,
        name: Option<&str>,
        from: Option<&RemoteName>,
    ) -> Result<ReleaseCandidate, SupplyError> {
        if let Some(from) = from
            && !environment.remotes.iter().any(|remote| remote.name == *from)
        {
            return Err(SupplyError::NoRemote { environment: environment.title(), remote: from.clone() });
        }
        let mut all = match from {
            Some(_) => Vec::new(),
            None => self.siblings(environment).await?,
        };
        let RemoteOffers { candidates, unreachable } = self.remote_offers(environment, from).await;
        all.extend(candidates);
        let Some(name) = name else {
            return newest(all.iter()).ok_or_else(|| none(String::from("this project"), all, unreachable));
        };
        // A name may also identify a release in the environment's own store, which was imported or was live before.
        if from.is_none() {
            all.extend(self.stored(environment).await?);
        }
        if let Some(found) = newest(all.iter().filter(|candidate| candidate.is_called(name))) {
            return Ok(found);
        }
        let begins = || all.iter().filter(|candidate| candidate.commit.begins_with(name));
        let Some(found) = newest(begins()) else { return Err(none(name.to_owned(), all, unreachable)) };
        if begins().all(|other| other.commit == found.commit) {
            return Ok(found);
        }
        let mut matching: Vec<_> = begins().collect();
        matching.sort_by_key(|candidate| std::cmp::Reverse(candidate.release));
        matching.dedup_by(|other, first| other.commit == first.commit);
        Err(ambiguous(name, matching.into_iter().map(ReleaseCandidate::title)))
    }

    /// Returns the deliverables in the environment's own store.
    async fn stored(&self, environment: &Environment) -> Result<Vec<ReleaseCandidate>, SupplyError> {
        let paths = self.0.services.root.environment(&environment.project, &environment.name);
        let read = tokio::task::spawn_blocking(move || store::heads(&paths.releases())).await;
        let heads = read.map_err(|error| SupplyError::Host(error.to_string()))?;
        let heads = heads.map_err(|error| SupplyError::Host(chain(&error)))?;
        Ok(heads.into_iter().map(|head| ReleaseCandidate::of_head(head, Origin::Store)).collect())
    }

    /// Returns the releases that other environments of the project on this server have cooked and served.
    async fn siblings(&self, environment: &Environment) -> Result<Vec<ReleaseCandidate>, SupplyError> {
        let cooks = |other: &Environment| {
            other.project_id == environment.project_id && other.id != environment.id && other.mode == Mode::Cooking
        };
        let others: Vec<_> = self.0.queues.lock().values().map(Queue::environment).filter(cooks).collect();
        let mut candidates = Vec::new();
        for other in others {
            let history = self.history(other.id);
            for mut candidate in self.stored(&other).await? {
                let Some(made) = history.of_release(candidate.release) else { continue };
                candidate.number = Some(made.number);
                candidate.origin = Origin::Environment(other.name.clone());
                candidates.push(candidate);
            }
        }
        Ok(candidates)
    }

    /// Lists the offers of an environment's remotes that have trusted keys. If `from` is given, lists only the offers of this
    /// remote.
    async fn remote_offers(&self, environment: &Environment, from: Option<&RemoteName>) -> RemoteOffers {
        let mut found = RemoteOffers::default();
        let meant = |name: &RemoteName| from.is_none_or(|from| from == name);
        for remote in environment.remotes.iter().filter(|remote| meant(&remote.name) && !remote.trust.is_empty()) {
            let listed = async {
                let place = self.0.services.places.open(remote, &environment.project)?;
                let offers = place.list().await;
                place.leave().await;
                offers
            };
            match listed.await {
                Ok(offers) => {
                    let offers = offers.into_iter().map(|offer| ReleaseCandidate::of_offer(offer, &remote.name));
                    found.candidates.extend(offers);
                }
                Err(error) => found.unreachable.push(UnreachableRemote::new(&error)),
            }
        }
        found
    }

    /// Returns the deployment whose release is the target of a rollback: the release named `name`, or the release that was live
    /// before the current release with its current configuration first went live. A second rollback therefore goes back further. The release of the returned
    /// deployment was live in this environment, and its files still exist.
    pub fn past(&self, environment: EnvId, name: Option<&str>) -> Result<Summary, SupplyError> {
        let queue =
            self.queue(environment).ok_or_else(|| SupplyError::Named(String::from("the environment is not in service")))?;
        let environment = queue.environment();
        let title = environment.title();
        let paths = self.0.services.root.environment(&environment.project, &environment.name);
        let state = queue.state.lock();
        let Some(live) = &state.live else { return Err(SupplyError::Named(format!("nothing is live in {title} yet"))) };
        // A change of the configuration makes the same release live again, so a target is a release with its configuration.
        let configuration = state.history.of_release(live.release).and_then(|summary| summary.configuration);
        let is_live = |summary: &Summary| summary.release == live.release && summary.configuration == configuration;
        let there = |release: ReleaseId| paths.tree(release).is_dir() || paths.manifest(release).is_file();
        let found = match name {
            None => state
                .history
                .releases()
                .take_while(|summary| !is_live(summary))
                .filter(|summary| there(summary.release))
                .last()
                .ok_or_else(|| SupplyError::Named(format!("{title} has no release older than {} to go back to", live.number)))?,
            Some(name) => match state.history.named(name) {
                Ok(Some(found)) => found,
                Ok(None) => return Err(SupplyError::NeverLive { environment: title, name: sanitise_reason(name) }),
                Err(several) => return Err(ambiguous(name, several.into_iter().map(Summary::title))),
            },
        };
        if is_live(found) {
            return Err(SupplyError::Named(format!("{} is live already, as {}", found.number, live.number)));
        }
        if !there(found.release) {
            return Err(SupplyError::Named(format!("{} was removed by retention; its files no longer exist", found.number)));
        }
        Ok(found.clone())
    }
}

/// Returns the newest build. If several sources have the same release, prefers an environment of this server to a remote, and a remote to
/// the own store, whose health record may be outdated.
fn newest<'c>(candidates: impl Iterator<Item = &'c ReleaseCandidate>) -> Option<ReleaseCandidate> {
    let nearness = |origin: &Origin| match origin {
        Origin::Environment(_) => 2,
        Origin::Remote(_) => 1,
        Origin::Store | Origin::Previous | Origin::Configuration | Origin::Commit => 0,
    };
    // Two builds can start in the same second. The build number then decides.
    let age = |candidate: &ReleaseCandidate| (candidate.release.created(), candidate.build, candidate.release);
    candidates.max_by_key(|candidate| (age(candidate), nearness(&candidate.origin))).cloned()
}

/// Returns the error of a name that is the beginning of several commits.
fn ambiguous(name: &str, titles: impl Iterator<Item = String>) -> SupplyError {
    SupplyError::Ambiguous { name: sanitise_reason(name), titles: titles.take(MAX_NAMED).collect() }
}

fn none(wanted: String, mut candidates: Vec<ReleaseCandidate>, unreachable: Vec<UnreachableRemote>) -> SupplyError {
    candidates.sort_by_key(|candidate| (std::cmp::Reverse(candidate.release), candidate.number.is_none()));
    candidates.dedup_by_key(|candidate| candidate.release);
    SupplyError::None { wanted, offered: candidates.iter().take(MAX_NAMED).map(ReleaseCandidate::title).collect(), unreachable }
}
