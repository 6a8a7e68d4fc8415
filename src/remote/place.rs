//! A place, whatever is behind it.

use std::{future::Future, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    Address, Blob, Object, Offer, RemoteError,
    ssh::{Exec, PullKey, Server},
    store::Store,
};
use crate::model::{CommitId, EnvironmentName, ProjectName, ReleaseId, Remote, sanitise_line};

/// The most bytes of a list of offers.
const LIST_BYTES: u64 = 4 << 20;
/// The most offers of one place that are looked at.
pub(super) const OFFERS: usize = 1000;
/// The most bytes of a health record, or of an answer about one object.
pub(super) const SMALL_BYTES: u64 = 1 << 20;
/// How much of a command line the ranges of one request may take, in bytes; at most 1024 are read there in all.
const RANGES_BYTES: usize = 600;
/// How long a list of offers may take in all; a push waits for it.
const LISTED: Duration = Duration::from_secs(60);
/// How long a small answer may take in all for which the other side has to work.
const WORKED_OUT: Duration = Duration::from_secs(20 * 60);
/// What says how large a delta is, in messages.
pub(super) const DELTA_NOTE: &str = "description of a delta";
/// Commits that are named in a request for a pack.
const HAVES: usize = 12;

/// The most that is taken from a place, whatever it promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of an archive or a delta, in bytes.
    pub archive_bytes: u64,
    /// Of a manifest, in bytes.
    pub manifest_bytes: u64,
    /// Of a pack of git, in bytes.
    pub pack_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { archive_bytes: 4 << 30, manifest_bytes: 256 << 20, pack_bytes: 512 << 20 }
    }
}

/// Opens places, with what this server shows them of itself.
#[derive(Debug, Clone)]
pub struct Places {
    key: PullKey,
    limits: Limits,
    buckets: Arc<Vec<(String, String)>>,
}

impl Places {
    /// With this key for servers.
    pub fn new(key: PullKey, limits: Limits) -> Places {
        Places { key, limits, buckets: Arc::default() }
    }

    /// The same, with settings for buckets, such as `AWS_ENDPOINT_URL`; they count more than the variables of this process.
    #[must_use]
    pub fn with_buckets(self, settings: impl IntoIterator<Item = (String, String)>) -> Places {
        Places { buckets: Arc::new(settings.into_iter().collect()), ..self }
    }

    /// The key by which other servers know this one.
    pub fn key(&self) -> &PullKey {
        &self.key
    }

    /// The place behind a remote, for a project of this server. Nothing is connected yet.
    pub fn open(&self, remote: &Remote, project: &ProjectName) -> Result<Place, RemoteError> {
        let address: Address = remote.url.parse()?;
        let title = format!("{} ({address})", remote.name);
        let (kind, project, environment) = match &address {
            Address::Ssh { login, host, port, project, environment } => {
                let key = self.key.clone();
                let server = Server::new(title.clone(), login, host, *port, remote.host_key.as_deref(), key);
                (Kind::Server(server), project.clone(), environment.clone())
            }
            other => (Kind::Store(Store::open(&title, other, &self.buckets)?), project.clone(), None),
        };
        Ok(Place { title, project, environment, limits: self.limits, deltas: false, kind: Arc::new(kind) })
    }
}

#[derive(Debug)]
enum Kind {
    Server(Server),
    Store(Store),
}

/// Somewhere else with deliverables of one project; cheap to clone.
#[derive(Debug, Clone)]
pub struct Place {
    title: String,
    project: ProjectName,
    environment: Option<EnvironmentName>,
    limits: Limits,
    deltas: bool,
    kind: Arc<Kind>,
}

impl Place {
    /// The same place, of which deltas are wanted too: for a caller that can turn one into a release.
    #[must_use]
    pub fn with_deltas(self) -> Place {
        Place { deltas: true, ..self }
    }

    pub(super) fn wants_deltas(&self) -> bool {
        self.deltas
    }

    /// Its name and address, for people.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// What is taken from it at most.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether it is a larder server, which can also give the objects of a commit and run words.
    pub fn is_server(&self) -> bool {
        matches!(*self.kind, Kind::Server(_))
    }

    pub(super) fn store(&self) -> Option<&Store> {
        match &*self.kind {
            Kind::Store(store) => Some(store),
            Kind::Server(_) => None,
        }
    }

    /// The project's name there.
    pub fn project(&self) -> &ProjectName {
        &self.project
    }

    /// The one environment whose releases are meant, where its address names one.
    pub fn environment(&self) -> Option<&EnvironmentName> {
        self.environment.as_ref()
    }

    /// `shop` or `shop/staging`, as it is called there.
    pub fn target(&self) -> String {
        match &self.environment {
            Some(environment) => format!("{}/{environment}", self.project),
            None => self.project.to_string(),
        }
    }

    fn words(&self, verb: &str, rest: &[&str]) -> Vec<String> {
        let mut words = vec![String::from("deliverable"), verb.to_owned(), self.target()];
        words.extend(rest.iter().map(|word| (*word).to_owned()));
        words
    }

    /// `answer`, or an error once it takes longer than `limit`: what comes byte by byte is never silent for long.
    async fn within<T>(
        &self,
        limit: Duration,
        what: &str,
        answer: impl Future<Output = Result<T, RemoteError>>,
    ) -> Result<T, RemoteError> {
        let late = || RemoteError::Lost {
            place: self.title.clone(),
            doing: format!("fetching the {what}"),
            why: format!("it took longer than {} s", limit.as_secs()),
        };
        tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(late()))
    }

    /// Everything that it offers of the project, newest first.
    pub async fn list(&self) -> Result<Vec<Offer>, RemoteError> {
        self.within(LISTED, "list of deliverables", self.listed()).await
    }

    async fn listed(&self) -> Result<Vec<Offer>, RemoteError> {
        let mut offers: Vec<Offer> = match &*self.kind {
            Kind::Server(server) => {
                let bytes =
                    server.exec(&self.words("list", &["--json"])).await?.output("list of deliverables", LIST_BYTES).await?;
                serde_json::from_slice(&bytes).map_err(|error| self.odd("list of deliverables", error))?
            }
            Kind::Store(store) => store.list(&self.project, LIST_BYTES).await?,
        };
        let mine = |offer: &Offer| {
            offer.project == self.project && self.environment.as_ref().is_none_or(|wanted| *wanted == offer.environment)
        };
        offers.retain(mine);
        offers.sort_by_key(|offer| std::cmp::Reverse((offer.release, offer.live)));
        offers.truncate(OFFERS);
        Ok(offers)
    }

    fn odd(&self, what: &'static str, why: impl std::fmt::Display) -> RemoteError {
        RemoteError::Odd { place: self.title.clone(), what, why: sanitise_line(&why.to_string()) }
    }

    /// Size and digest of a delta, which the place makes if it can: this may take it minutes. Other places than servers have none.
    pub async fn delta(&self, release: ReleaseId, from: ReleaseId) -> Result<Blob, RemoteError> {
        self.within(WORKED_OUT, Object::DELTA, self.described(release, from)).await
    }

    async fn described(&self, release: ReleaseId, from: ReleaseId) -> Result<Blob, RemoteError> {
        match &*self.kind {
            Kind::Server(server) => {
                let (release, from) = (release.to_string(), from.to_string());
                let words = self.words("info", &[&release, "delta", "--from", &from, "--json"]);
                let bytes = server.exec(&words).await?.output(Object::DELTA, SMALL_BYTES).await?;
                serde_json::from_slice(&bytes).map_err(|error| self.odd(DELTA_NOTE, error))
            }
            Kind::Store(store) => store.delta(&self.project, release, from).await,
        }
    }

    /// Sends these ranges of an object to `to`, one after another. What is sent may be more or less than was asked for: the receiver
    /// counts, and ends this by going away.
    pub async fn fetch(
        &self,
        release: ReleaseId,
        object: Object,
        ranges: &[Range<u64>],
        to: &mpsc::Sender<Bytes>,
    ) -> Result<(), RemoteError> {
        match &*self.kind {
            Kind::Store(store) => store.fetch(&self.project, release, object, ranges, to).await,
            Kind::Server(server) => {
                for parts in batches(ranges) {
                    let words = self.get(release, object, &["--parts", &parts]);
                    stream(server.exec(&words).await?, object.word(), to).await?;
                }
                Ok(())
            }
        }
    }

    fn get(&self, release: ReleaseId, object: Object, more: &[&str]) -> Vec<String> {
        let mut words = self.words("get", &[&release.to_string(), object.word()]);
        if let Object::Delta { from } = object {
            words.extend([String::from("--from"), from.to_string()]);
        }
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words
    }

    /// The health record of a release as it is; nothing where the place has none.
    pub async fn health(&self, release: ReleaseId) -> Result<Option<Vec<u8>>, RemoteError> {
        let record = async {
            match &*self.kind {
                Kind::Server(server) => {
                    server.exec(&self.get(release, Object::Health, &[])).await?.output("health record", SMALL_BYTES).await
                }
                Kind::Store(store) => store.whole(&self.project, release, Object::Health, SMALL_BYTES).await,
            }
        };
        match self.within(WORKED_OUT, "health record", record).await {
            Ok(record) => Ok(Some(record)),
            Err(RemoteError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends the pack of git with a release's commit, without what `haves` lead to, from byte `offset` on.
    pub(super) async fn pack(
        &self,
        release: ReleaseId,
        haves: &[CommitId],
        offset: u64,
        to: &mpsc::Sender<Bytes>,
    ) -> Result<(), RemoteError> {
        let server = self.server("give the commit itself")?;
        let from = offset.to_string();
        let mut more = vec!["--offset", &from];
        for have in haves.iter().take(HAVES) {
            more.extend(["--have", have.as_str()]);
        }
        stream(server.exec(&self.get(release, Object::Pack, &more)).await?, "pack", to).await
    }

    fn server(&self, doing: &'static str) -> Result<&Server, RemoteError> {
        match &*self.kind {
            Kind::Server(server) => Ok(server),
            Kind::Store(_) => Err(RemoteError::NotAServer { place: self.title.clone(), doing }),
        }
    }

    /// Has the server there run words, with this server's own rights there.
    pub async fn exec(&self, words: &[String]) -> Result<Exec, RemoteError> {
        self.server("run commands")?.exec(words).await
    }

    /// Ends its connection, if it has one. The next request makes another.
    pub async fn leave(&self) {
        if let Kind::Server(server) = &*self.kind {
            server.leave().await;
        }
    }
}

/// Passes on the standard output of a request.
async fn stream(mut exec: Exec, what: &str, to: &mpsc::Sender<Bytes>) -> Result<(), RemoteError> {
    while let Some(data) = exec.next_out().await? {
        to.send(data).await.map_err(|_| RemoteError::GivenUp)?;
    }
    exec.refusal(what).map_or(Ok(()), Err)
}

/// Ranges as words of the command line, `OFFSET+LENGTH,...`, as many in each as fit.
fn batches(ranges: &[Range<u64>]) -> Vec<String> {
    let mut batches: Vec<String> = Vec::new();
    for range in ranges {
        let word = format!("{}+{}", range.start, range.end.saturating_sub(range.start));
        match batches.last_mut() {
            Some(last) if last.len().saturating_add(word.len()) < RANGES_BYTES => {
                last.push(',');
                last.push_str(&word);
            }
            _ => batches.push(word),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_fit_into_command_lines() {
        let ranges: Vec<_> = (0..200_u64).map(|n| n * 1_000_000_007..n * 1_000_000_007 + 4_194_304).collect();
        let batches = batches(&ranges);
        assert!(batches.len() > 1 && batches.iter().all(|batch| batch.len() <= RANGES_BYTES));
        let again: Vec<_> = batches.iter().flat_map(|batch| batch.split(',')).collect();
        assert_eq!(again.len(), 200);
        assert_eq!(again[1], "1000000007+4194304");
    }

    #[tokio::test]
    async fn a_list_does_not_take_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let places = Places::new(PullKey::load_or_make(&directory.path().join("key")).unwrap(), Limits::default());
        let url = format!("file://{}", directory.path().display());
        let remote = Remote { name: "store".parse().unwrap(), url, host_key: None, trust: Vec::new(), publish: false };
        let place = places.open(&remote, &"shop".parse().unwrap()).unwrap();
        let error = place
            .within(Duration::from_millis(10), "list of deliverables", std::future::pending::<Result<(), _>>())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("list of deliverables: it took longer than"), "{error}");
    }

    #[test]
    fn only_servers_run_words() {
        let directory = tempfile::tempdir().unwrap();
        let key = PullKey::load_or_make(&directory.path().join("key")).unwrap();
        let places = Places::new(key, Limits::default());
        let remote = |url: &str| Remote {
            name: "store".parse().unwrap(),
            url: url.to_owned(),
            host_key: None,
            trust: Vec::new(),
            publish: false,
        };
        let shop = "shop".parse().unwrap();
        let store = places.open(&remote(&format!("file://{}", directory.path().display())), &shop).unwrap();
        assert!(!store.is_server());
        let server = places.open(&remote("ssh://host/other/staging"), &shop).unwrap();
        assert_eq!((server.is_server(), server.target()), (true, String::from("other/staging")));
        assert!(matches!(places.open(&remote("nonsense"), &shop), Err(RemoteError::Address(_))));
    }
}
