//! Publishes releases to a directory or a bucket, from which other servers pull them.

use std::path::PathBuf;

use object_store::{ObjectStoreExt, WriteMultipart, path::Path};
use tokio::io::AsyncReadExt;

use super::{
    deliverable_store::DeliverableStore,
    error::RemoteError,
    offer::{MAX_OFFERS, Object, Offer},
};
use crate::{host::files::open_regular, model::sanitise_line};

/// The size of a part of an upload, in bytes.
const PART: usize = 8 << 20;
/// The maximum number of parts that are uploaded at the same time.
const MAX_PARTS: usize = 2;

/// A release to publish.
#[derive(Debug, Clone)]
pub struct Publication {
    /// The offer that is published with the release.
    pub offer: Offer,
    /// The path of the archive.
    pub archive: PathBuf,
    /// The path of the manifest.
    pub manifest: PathBuf,
    /// The signed health record, if there is one.
    pub health: Option<Vec<u8>>,
}

/// Publishes a release: the archive first, and the offer after all files of the release, because the offer makes the release visible. A
/// repeated call does not send an archive or a manifest that is already published. Returns the number of bytes sent.
pub async fn publish(remote: &DeliverableStore, share: &Publication) -> Result<u64, RemoteError> {
    let Some(store) = remote.files() else {
        return Err(RemoteError::NotAStore { remote: remote.title().to_owned() });
    };
    let (project, release) = (&share.offer.project, share.offer.release);
    let failed = |what: &str, error: object_store::Error| RemoteError::Lost {
        remote: remote.title().to_owned(),
        doing: format!("publishing the {what}"),
        why: sanitise_line(&error.to_string()),
    };
    let small = async |path: Path, what: &str, bytes: Vec<u8>| {
        let length = bytes.len() as u64;
        store.objects().put(&path, bytes.into()).await.map_err(|error| failed(what, error))?;
        Ok::<_, RemoteError>(length)
    };
    let mut sent = 0_u64;
    for (object, file, expected) in [
        (Object::Archive, &share.archive, share.offer.archive_bytes),
        (Object::Manifest, &share.manifest, share.offer.manifest.bytes),
    ] {
        let path = store.path(project, release, object);
        if store.objects().head(&path).await.is_ok_and(|found| found.size == expected) {
            continue;
        }
        let upload = store.objects().put_multipart(&path).await.map_err(|error| failed(object.word(), error))?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, PART);
        let mut from = tokio::fs::File::from_std(open_regular(file)?);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = from
                .read(&mut buffer)
                .await
                .map_err(|error| RemoteError::File(crate::host::files::FileError::io("read", file.clone(), error)))?;
            if read == 0 {
                break;
            }
            writer.wait_for_capacity(MAX_PARTS).await.map_err(|error| failed(object.word(), error))?;
            writer.write(buffer.get(..read).unwrap_or_default());
            sent = sent.saturating_add(read as u64);
        }
        writer.finish().await.map_err(|error| failed(object.word(), error))?;
    }
    if let Some(health) = &share.health {
        sent = sent.saturating_add(small(store.path(project, release, Object::Health), "health record", health.clone()).await?);
    }
    sent = sent.saturating_add(small(store.offer_path(project, release), "offer", json(&share.offer)).await?);
    if store.is_listable() {
        // The list is rebuilt from the published offers. An offer that is missing because of a concurrent publication is therefore added by
        // the next publication.
        let mut offers = store.list(project, u64::MAX).await?;
        offers.truncate(MAX_OFFERS);
        sent = sent.saturating_add(small(store.index_path(project), "list", json(&offers)).await?);
    }
    Ok(sent)
}

/// Serialises a value as JSON.
fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Offers consist of strings and numbers, whose serialisation cannot fail.
    serde_json::to_vec_pretty(value).unwrap_or_default()
}
