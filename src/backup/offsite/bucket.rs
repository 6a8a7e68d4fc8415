//! A store that is a bucket of a server that speaks S3.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig, aws::AmazonS3Builder, path::Path,
};

use super::store_files::{StoreFiles, too_short};
use crate::model::{sanitise_line, sanitise_reason};

/// The time limit for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The maximum time without data during a transfer.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A prefix in a bucket.
pub(super) struct BucketFiles {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    runtime: tokio::runtime::Runtime,
}

fn of_store(error: &object_store::Error) -> io::Error {
    use object_store::Error;
    let kind = match error {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, sanitise_line(&sanitise_reason(&error.to_string())))
}

impl BucketFiles {
    /// Opens a prefix of a bucket. `settings` are settings such as `AWS_ACCESS_KEY_ID`.
    pub(super) fn open(
        endpoint: Option<&str>,
        bucket: &str,
        prefix: &str,
        settings: &[(String, String)],
    ) -> io::Result<BucketFiles> {
        // This call fails only if a provider is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = ClientOptions::new()
            .with_allow_http(endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")))
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_read_timeout(STALL_TIMEOUT)
            .with_timeout_disabled();
        let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: 2, retry_timeout: Duration::from_secs(20) };
        let mut builder = AmazonS3Builder::new().with_bucket_name(bucket).with_client_options(options).with_retry(retry);
        for (name, value) in settings {
            let key = name.to_ascii_lowercase().parse().map_err(|e| of_store(&e))?;
            builder = builder.with_config(key, value);
        }
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let objects = Arc::new(builder.build().map_err(|e| of_store(&e))?);
        let prefix = Path::parse(prefix).map_err(|e| of_store(&e.into()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(BucketFiles { objects, prefix, runtime })
    }

    fn at(&self, path: &str) -> Path {
        path.split('/').filter(|part| !part.is_empty()).fold(self.prefix.clone(), Path::join)
    }

    /// Lists the objects below `directory`. The names are the last parts of the keys.
    fn listed(&self, directory: &str, depth: usize) -> io::Result<Vec<(String, u64)>> {
        let below = self.at(directory);
        let parts = below.parts().count() + depth;
        self.runtime.block_on(async {
            let mut listed = self.objects.list(Some(&below));
            let mut files = Vec::new();
            while let Some(found) = listed.next().await {
                let found = found.map_err(|e| of_store(&e))?;
                if found.location.parts().count() == parts
                    && let Some(name) = found.location.filename()
                {
                    files.push((name.to_owned(), found.size));
                }
            }
            Ok(files)
        })
    }
}

impl StoreFiles for BucketFiles {
    fn list(&self, directory: &str) -> io::Result<Vec<(String, u64)>> {
        self.listed(directory, 1)
    }

    fn list_packs(&self) -> io::Result<Vec<(String, u64)>> {
        self.listed("data", 2)
    }

    fn read(&self, path: &str, part: Option<(u64, u64)>) -> io::Result<Vec<u8>> {
        let at = self.at(path);
        self.runtime.block_on(async {
            match part {
                None => {
                    let found = self.objects.get(&at).await.map_err(|e| of_store(&e))?;
                    found.bytes().await.map(|bytes| bytes.to_vec()).map_err(|e| of_store(&e))
                }
                Some((offset, length)) => {
                    let bytes =
                        self.objects.get_range(&at, offset..offset.saturating_add(length)).await.map_err(|e| of_store(&e))?;
                    if (bytes.len() as u64) < length {
                        return Err(too_short(path, offset + bytes.len() as u64, offset + length));
                    }
                    Ok(bytes.to_vec())
                }
            }
        })
    }

    fn write(&self, path: &str, content: &[&[u8]]) -> io::Result<()> {
        let at = self.at(path);
        let payload: PutPayload = content.iter().map(|part| Bytes::copy_from_slice(part)).collect();
        self.runtime.block_on(self.objects.put(&at, payload)).map(drop).map_err(|e| of_store(&e))
    }

    fn create(&self, path: &str, content: &[&[u8]]) -> io::Result<()> {
        let at = self.at(path);
        let payload: PutPayload = content.iter().map(|part| Bytes::copy_from_slice(part)).collect();
        let put = self.runtime.block_on(self.objects.put_opts(&at, payload, PutMode::Create.into()));
        match put {
            // Some servers do not have conditional requests.
            Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) => {
                self.write(path, content)
            }
            other => other.map(drop).map_err(|e| of_store(&e)),
        }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        match self.runtime.block_on(self.objects.delete(&self.at(path))) {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            other => other.map_err(|e| of_store(&e)),
        }
    }
}
