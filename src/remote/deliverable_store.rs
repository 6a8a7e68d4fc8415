//! [`DeliverableStore`]: the releases of one project on a remote, which is a larder server, a directory, a web server or a bucket.

use std::{future::Future, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    address::Address,
    error::RemoteError,
    offer::{Blob, MAX_LIST_BYTES, MAX_OFFERS, MAX_SMALL_BYTES, Object, Offer, TransferLimits},
    ssh::{Exec, PullKey, RemoteServer},
    store::ObjectFiles,
};
use crate::model::{CommitId, EnvironmentName, ProjectName, ReleaseId, Remote, sanitise_line};

/// The maximum length of the list of ranges in one command, in bytes. The SSH client sends commands of at most 1024 bytes.
const MAX_RANGES_BYTES: usize = 600;
/// The time limit for a list of offers. A push may wait for this list.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// The time limit for a small answer that the remote computes on request, such as the digest of a delta.
const COMPUTE_TIMEOUT: Duration = Duration::from_secs(20 * 60);
/// The maximum number of commits that a request for a pack lists as already present on this server.
const MAX_HAVES: usize = 12;

/// The key and the settings with which this server opens remotes.
#[derive(Debug, Clone)]
pub struct DeliverableStores {
    key: PullKey,
    limits: TransferLimits,
    buckets: Arc<Vec<(String, String)>>,
}

impl DeliverableStores {
    /// Creates the settings for remotes. `key` identifies this server to other larder servers.
    pub fn new(key: PullKey, limits: TransferLimits) -> DeliverableStores {
        DeliverableStores { key, limits, buckets: Arc::default() }
    }

    /// Adds settings for buckets, such as `AWS_ENDPOINT_URL`. These settings override the environment variables of this process.
    #[must_use]
    pub fn with_buckets(self, settings: impl IntoIterator<Item = (String, String)>) -> DeliverableStores {
        DeliverableStores { buckets: Arc::new(settings.into_iter().collect()), ..self }
    }

    /// Returns the key that identifies this server to other servers.
    pub fn key(&self) -> &PullKey {
        &self.key
    }

    /// Opens a remote for a project of this server. The first request connects to the remote.
    pub fn open(&self, remote: &Remote, project: &ProjectName) -> Result<DeliverableStore, RemoteError> {
        let address: Address = remote.url.parse()?;
        let title = format!("{} ({address})", remote.name);
        let (backend, project, environment) = match &address {
            Address::Ssh { login, host, port, project, environment } => {
                let key = self.key.clone();
                let server = RemoteServer::new(title.clone(), login, host, *port, remote.host_key.as_deref(), key);
                (Backend::Server(server), project.clone(), environment.clone())
            }
            other => (Backend::Files(ObjectFiles::open(&title, other, &self.buckets)?), project.clone(), None),
        };
        Ok(DeliverableStore { title, project, environment, limits: self.limits, deltas: false, backend: Arc::new(backend) })
    }
}

#[derive(Debug)]
enum Backend {
    Server(RemoteServer),
    Files(ObjectFiles),
}

/// The deliverables of one project on a remote. A clone is cheap and shares the connection.
#[derive(Debug, Clone)]
pub struct DeliverableStore {
    title: String,
    project: ProjectName,
    environment: Option<EnvironmentName>,
    limits: TransferLimits,
    deltas: bool,
    backend: Arc<Backend>,
}

impl DeliverableStore {
    /// Returns a store whose pulls request deltas. The caller must be able to apply deltas.
    #[must_use]
    pub fn with_deltas(self) -> DeliverableStore {
        DeliverableStore { deltas: true, ..self }
    }

    /// Returns true if pulls request deltas.
    pub(super) fn requests_deltas(&self) -> bool {
        self.deltas
    }

    /// Returns the name and address of the remote, for messages.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Returns the maximum sizes of transfers.
    pub fn limits(&self) -> TransferLimits {
        self.limits
    }

    /// Returns true if the remote is a larder server, which can also send commits and run commands.
    pub fn is_server(&self) -> bool {
        matches!(*self.backend, Backend::Server(_))
    }

    pub(super) fn files(&self) -> Option<&ObjectFiles> {
        match &*self.backend {
            Backend::Files(files) => Some(files),
            Backend::Server(_) => None,
        }
    }

    /// Returns the name of the project on the remote.
    pub fn project(&self) -> &ProjectName {
        &self.project
    }

    /// Returns the environment in the address; `None` if the address names no environment.
    pub fn environment(&self) -> Option<&EnvironmentName> {
        self.environment.as_ref()
    }

    /// Returns the project or environment on the remote: `shop` or `shop/staging`.
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

    /// Waits for `answer`, at most for the time `limit`. The time limits of the connection only detect a remote that sends nothing, not a
    /// remote that sends an answer byte by byte.
    async fn within<T>(
        &self,
        limit: Duration,
        what: &str,
        answer: impl Future<Output = Result<T, RemoteError>>,
    ) -> Result<T, RemoteError> {
        let late = || RemoteError::Lost {
            remote: self.title.clone(),
            doing: format!("fetching the {what}"),
            why: format!("no complete answer within {} s", limit.as_secs()),
        };
        tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(late()))
    }

    /// Returns the offers of the project, newest first, at most `MAX_OFFERS`. If the address names an environment, returns only offers of
    /// releases that this environment built.
    pub async fn list(&self) -> Result<Vec<Offer>, RemoteError> {
        self.within(LIST_TIMEOUT, "list of deliverables", self.listed()).await
    }

    async fn listed(&self) -> Result<Vec<Offer>, RemoteError> {
        let mut offers: Vec<Offer> = match &*self.backend {
            Backend::Server(server) => {
                let bytes =
                    server.exec(&self.words("list", &["--json"])).await?.output("list of deliverables", MAX_LIST_BYTES).await?;
                serde_json::from_slice(&bytes).map_err(|error| self.invalid("list of deliverables", error))?
            }
            Backend::Files(files) => files.list(&self.project, MAX_LIST_BYTES).await?,
        };
        let mine = |offer: &Offer| {
            offer.project == self.project && self.environment.as_ref().is_none_or(|wanted| *wanted == offer.environment)
        };
        offers.retain(mine);
        offers.sort_by_key(|offer| std::cmp::Reverse((offer.release, offer.live)));
        offers.truncate(MAX_OFFERS);
        Ok(offers)
    }

    fn invalid(&self, what: &'static str, why: impl std::fmt::Display) -> RemoteError {
        RemoteError::Invalid { remote: self.title.clone(), what, why: sanitise_line(&why.to_string()) }
    }

    /// Returns the size and digest of the delta that leads from `from` to `release`. A larder server computes the delta on request, which
    /// can take minutes. Other remotes have no deltas.
    pub async fn delta(&self, release: ReleaseId, from: ReleaseId) -> Result<Blob, RemoteError> {
        self.within(COMPUTE_TIMEOUT, Object::DELTA, self.described(release, from)).await
    }

    async fn described(&self, release: ReleaseId, from: ReleaseId) -> Result<Blob, RemoteError> {
        match &*self.backend {
            Backend::Server(server) => {
                let (release, from) = (release.to_string(), from.to_string());
                let words = self.words("info", &[&release, "delta", "--from", &from, "--json"]);
                let bytes = server.exec(&words).await?.output(Object::DELTA, MAX_SMALL_BYTES).await?;
                serde_json::from_slice(&bytes).map_err(|error| self.invalid(Object::DELTA_NOTE, error))
            }
            // Stores of files have no deltas.
            Backend::Files(_) => {
                let (remote, what) = (self.title.clone(), Object::DELTA.to_owned());
                Err(RemoteError::NotFound { remote, what, words: String::new() })
            }
        }
    }

    /// Sends ranges of an object to `to`, in the order of `ranges`. A remote may send more or less than was requested, so the receiver must
    /// count the bytes. The receiver aborts the transfer by dropping its end of the channel.
    pub async fn fetch(
        &self,
        release: ReleaseId,
        object: Object,
        ranges: &[Range<u64>],
        to: &mpsc::Sender<Bytes>,
    ) -> Result<(), RemoteError> {
        match &*self.backend {
            Backend::Files(files) => files.fetch(&self.project, release, object, ranges, to).await,
            Backend::Server(server) => {
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

    /// Returns the unchecked health record of a release; `None` if the remote has no record.
    pub async fn health(&self, release: ReleaseId) -> Result<Option<Vec<u8>>, RemoteError> {
        let record = async {
            match &*self.backend {
                Backend::Server(server) => {
                    server.exec(&self.get(release, Object::Health, &[])).await?.output("health record", MAX_SMALL_BYTES).await
                }
                Backend::Files(files) => files.whole(&self.project, release, Object::Health, MAX_SMALL_BYTES).await,
            }
        };
        match self.within(COMPUTE_TIMEOUT, "health record", record).await {
            Ok(record) => Ok(Some(record)),
            Err(RemoteError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a git pack to `to`, from byte `offset` on. The pack contains the commit of a release and all objects that are reachable from
    /// this commit and not from `haves`.
    pub(super) async fn pack(
        &self,
        release: ReleaseId,
        haves: &[CommitId],
        offset: u64,
        to: &mpsc::Sender<Bytes>,
    ) -> Result<(), RemoteError> {
        let server = self.server("send a commit")?;
        let from = offset.to_string();
        let mut more = vec!["--offset", &from];
        for have in haves.iter().take(MAX_HAVES) {
            more.extend(["--have", have.as_str()]);
        }
        stream(server.exec(&self.get(release, Object::Pack, &more)).await?, "pack", to).await
    }

    fn server(&self, doing: &'static str) -> Result<&RemoteServer, RemoteError> {
        match &*self.backend {
            Backend::Server(server) => Ok(server),
            Backend::Files(_) => Err(RemoteError::NotAServer { remote: self.title.clone(), doing }),
        }
    }

    /// Runs a command on the remote server, with the rights that the remote server grants to this server's key.
    pub async fn exec(&self, words: &[String]) -> Result<Exec, RemoteError> {
        self.server("run commands")?.exec(words).await
    }

    /// Closes the connection, if a connection is open. The next request opens a new connection.
    pub async fn leave(&self) {
        if let Backend::Server(server) = &*self.backend {
            server.leave().await;
        }
    }
}

/// Sends the standard output of a command to `to`.
async fn stream(mut exec: Exec, what: &str, to: &mpsc::Sender<Bytes>) -> Result<(), RemoteError> {
    while let Some(data) = exec.next_out().await? {
        to.send(data).await.map_err(|_| RemoteError::Aborted)?;
    }
    exec.refusal(what).map_or(Ok(()), Err)
}

/// Formats ranges as `OFFSET+LENGTH,...`, in as many texts as the length limit requires.
fn batches(ranges: &[Range<u64>]) -> Vec<String> {
    let mut batches: Vec<String> = Vec::new();
    for range in ranges {
        let word = format!("{}+{}", range.start, range.end.saturating_sub(range.start));
        match batches.last_mut() {
            Some(last) if last.len().saturating_add(word.len()) < MAX_RANGES_BYTES => {
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
    fn ranges_are_split_to_fit_command_lines() {
        let ranges: Vec<_> = (0..200_u64).map(|n| n * 1_000_000_007..n * 1_000_000_007 + 4_194_304).collect();
        let batches = batches(&ranges);
        assert!(batches.len() > 1 && batches.iter().all(|batch| batch.len() <= MAX_RANGES_BYTES));
        let again: Vec<_> = batches.iter().flat_map(|batch| batch.split(',')).collect();
        assert_eq!(again.len(), 200);
        assert_eq!(again[1], "1000000007+4194304");
    }

    #[tokio::test]
    async fn list_that_never_completes_times_out() {
        let directory = tempfile::tempdir().unwrap();
        let stores =
            DeliverableStores::new(PullKey::load_or_make(&directory.path().join("key")).unwrap(), TransferLimits::default());
        let url = format!("file://{}", directory.path().display());
        let remote = Remote { name: "store".parse().unwrap(), url, host_key: None, trust: Vec::new(), publish: false };
        let store = stores.open(&remote, &"shop".parse().unwrap()).unwrap();
        let error = store
            .within(Duration::from_millis(10), "list of deliverables", std::future::pending::<Result<(), _>>())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("list of deliverables: no complete answer within"), "{error}");
    }

    #[test]
    fn address_decides_whether_remote_is_a_server() {
        let directory = tempfile::tempdir().unwrap();
        let key = PullKey::load_or_make(&directory.path().join("key")).unwrap();
        let stores = DeliverableStores::new(key, TransferLimits::default());
        let remote = |url: &str| Remote {
            name: "store".parse().unwrap(),
            url: url.to_owned(),
            host_key: None,
            trust: Vec::new(),
            publish: false,
        };
        let shop = "shop".parse().unwrap();
        let files = stores.open(&remote(&format!("file://{}", directory.path().display())), &shop).unwrap();
        assert!(!files.is_server());
        let server = stores.open(&remote("ssh://host/other/staging"), &shop).unwrap();
        assert_eq!((server.is_server(), server.target()), (true, String::from("other/staging")));
        assert!(matches!(stores.open(&remote("nonsense"), &shop), Err(RemoteError::Address(_))));
    }
}
