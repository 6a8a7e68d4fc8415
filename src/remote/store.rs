//! Remotes that are stores of files: directories, web servers and buckets with published deliverables.
//!
//! ```text
//! <remote>/<project>/<release>.tar.zst
//!                   <release>.manifest.json
//!                   <release>.health.json        the health record at the time of publication
//!                   <release>.offer.json         the offer, written last, because an offer makes the release visible
//!                   index.json                   the newest offers, because the directories of web servers cannot be listed
//! ```

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig, aws::AmazonS3Builder,
    http::HttpBuilder, local::LocalFileSystem, path::Path,
};
use tokio::sync::mpsc;

use super::{
    address::Address,
    error::RemoteError,
    offer::{MAX_OFFERS, Object, Offer},
};
use crate::model::{ProjectName, ReleaseId, sanitise_line};

/// The time limit for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The maximum time without data during a transfer.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The maximum size of an offer, in bytes.
const MAX_OFFER_BYTES: u64 = 64 << 10;
const OFFER_ENDING: &str = ".offer.json";
const INDEX: &str = "index.json";

/// A directory, web server or bucket with published deliverables.
#[derive(Debug)]
pub struct ObjectFiles {
    title: String,
    objects: Arc<dyn ObjectStore>,
    /// The path above the project's directory.
    prefix: Path,
    /// True if the backend can list its objects.
    listable: bool,
}

impl ObjectFiles {
    /// Opens the store at `address`, which must not be the address of a larder server. `buckets` are the settings for S3 buckets.
    pub fn open(title: &str, address: &Address, buckets: &[(String, String)]) -> Result<ObjectFiles, RemoteError> {
        // This call fails only if a provider is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let failed = |error: object_store::Error| RemoteError::Unreachable {
            remote: title.to_owned(),
            why: sanitise_line(&crate::model::sanitise_reason(&error.to_string())),
        };
        let options = ClientOptions::new()
            .with_allow_http(true)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_read_timeout(STALL_TIMEOUT)
            .with_timeout_disabled();
        // Two retries of a request are enough, because the transfer itself retries as long as it makes progress.
        let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: 2, retry_timeout: Duration::from_secs(20) };
        let mut prefix = Path::default();
        let (objects, listable): (Arc<dyn ObjectStore>, bool) = match address {
            Address::Directory(directory) => {
                (Arc::new(LocalFileSystem::new_with_prefix(directory).map_err(failed)?.with_fsync(true)), true)
            }
            Address::Web(url) => {
                let built = HttpBuilder::new().with_url(url).with_client_options(options).with_retry(retry).build();
                (Arc::new(built.map_err(failed)?), false)
            }
            Address::Bucket { bucket, prefix: below } => {
                prefix = Path::parse(below).map_err(|error| failed(error.into()))?;
                let mut builder = AmazonS3Builder::from_env();
                for (name, value) in buckets {
                    let key = name.to_ascii_lowercase().parse().map_err(failed)?;
                    builder = builder.with_config(key, value);
                }
                let builder = builder.with_bucket_name(bucket).with_client_options(options);
                (Arc::new(builder.with_retry(retry).build().map_err(failed)?), true)
            }
            Address::Ssh { .. } => {
                return Err(RemoteError::NotAServer { remote: title.to_owned(), doing: "be opened as a store of files" });
            }
        };
        Ok(ObjectFiles { title: title.to_owned(), objects, prefix, listable })
    }

    fn failed(&self, what: impl Into<String>, error: &object_store::Error) -> RemoteError {
        use object_store::Error;
        let (remote, what, words) = (self.title.clone(), what.into(), sanitise_line(&error.to_string()));
        match error {
            Error::NotFound { .. } => RemoteError::NotFound { remote, what, words: String::new() },
            Error::NotSupported { .. } | Error::NotImplemented { .. } => {
                RemoteError::Refused { remote, doing: format!("send a part of the {what}"), code: 1, words }
            }
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                RemoteError::Refused { remote, doing: format!("send the {what}"), code: 3, words }
            }
            _ => RemoteError::Lost { remote, doing: format!("fetching the {what}"), why: words },
        }
    }

    fn below(&self, project: &ProjectName) -> Path {
        self.prefix.clone().join(project.as_str())
    }

    pub(super) fn path(&self, project: &ProjectName, release: ReleaseId, object: Object) -> Path {
        let name = match object {
            Object::Archive => format!("{release}.tar.zst"),
            Object::Manifest => format!("{release}.manifest.json"),
            Object::Health => format!("{release}.health.json"),
            Object::Delta { from } => format!("{release}.from.{from}.delta"),
            Object::Pack => format!("{release}.pack"),
        };
        self.below(project).join(name)
    }

    pub(super) fn offer_path(&self, project: &ProjectName, release: ReleaseId) -> Path {
        self.below(project).join(format!("{release}{OFFER_ENDING}"))
    }

    pub(super) fn index_path(&self, project: &ProjectName) -> Path {
        self.below(project).join(INDEX)
    }

    pub(super) fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    pub(super) fn is_listable(&self) -> bool {
        self.listable
    }

    /// Returns the newest published offers, newest first. A store that can be listed gives at most `MAX_OFFERS` offers. Any other store
    /// gives its index, of at most `limit` bytes.
    pub async fn list(&self, project: &ProjectName, limit: u64) -> Result<Vec<Offer>, RemoteError> {
        let invalid = |error: serde_json::Error| RemoteError::Invalid {
            remote: self.title.clone(),
            what: "list of deliverables",
            why: sanitise_line(&error.to_string()),
        };
        if !self.listable {
            let bytes = self.get(&self.index_path(project), "list of deliverables", limit).await?;
            return serde_json::from_slice(&bytes).map_err(invalid);
        }
        let mut newest = std::collections::BTreeSet::new();
        let mut listed = self.objects.list(Some(&self.below(project)));
        while let Some(entry) = listed.next().await {
            let entry = entry.map_err(|error| self.failed("list of deliverables", &error))?;
            let id = entry.location.filename().and_then(|name| name.strip_suffix(OFFER_ENDING)?.parse::<ReleaseId>().ok());
            newest.extend(id);
            if newest.len() > MAX_OFFERS {
                newest.pop_first();
            }
        }
        let mut offers = Vec::new();
        for release in newest.into_iter().rev() {
            match self.get(&self.offer_path(project, release), "offer", MAX_OFFER_BYTES).await {
                Ok(bytes) => offers.push(serde_json::from_slice(&bytes).map_err(invalid)?),
                // The offer was removed after it was listed.
                Err(RemoteError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(offers)
    }

    /// Returns a whole object of at most `limit` bytes.
    pub async fn whole(
        &self,
        project: &ProjectName,
        release: ReleaseId,
        object: Object,
        limit: u64,
    ) -> Result<Vec<u8>, RemoteError> {
        self.get(&self.path(project, release, object), object.word(), limit).await
    }

    async fn get(&self, path: &Path, what: &str, limit: u64) -> Result<Vec<u8>, RemoteError> {
        let too_large = || RemoteError::TooLarge { remote: self.title.clone(), what: what.to_owned(), limit };
        let found = self.objects.get(path).await.map_err(|error| self.failed(what, &error))?;
        if found.meta.size > limit {
            return Err(too_large());
        }
        let (mut bytes, mut stream) = (Vec::new(), found.into_stream());
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk.map_err(|error| self.failed(what, &error))?);
            if bytes.len() as u64 > limit {
                return Err(too_large());
            }
        }
        Ok(bytes)
    }

    /// Sends ranges of an object to `to`, in the order of `ranges`.
    pub async fn fetch(
        &self,
        project: &ProjectName,
        release: ReleaseId,
        object: Object,
        ranges: &[Range<u64>],
        to: &mpsc::Sender<Bytes>,
    ) -> Result<(), RemoteError> {
        let path = self.path(project, release, object);
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
            let found = self.objects.get_opts(&path, options).await.map_err(|error| self.failed(object.word(), &error))?;
            let mut stream = found.into_stream();
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|error| self.failed(object.word(), &error))?;
                to.send(chunk).await.map_err(|_| RemoteError::Aborted)?;
            }
        }
        Ok(())
    }
}
