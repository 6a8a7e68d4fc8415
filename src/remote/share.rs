//! Publishing: what a server has cooked, put where others fetch it.

use std::path::PathBuf;

use object_store::{ObjectStoreExt, WriteMultipart, path::Path};
use tokio::io::AsyncReadExt;

use super::{Object, Offer, Place, RemoteError, place::OFFERS};
use crate::{host::files::open_regular, model::sanitise_line};

/// How much of a file is held at once, in bytes; a part of an upload.
const PART: usize = 8 << 20;
/// Parts that are under way at the same time.
const PARTS: usize = 2;

/// A release to be published.
#[derive(Debug, Clone)]
pub struct Share {
    /// What is said about it.
    pub offer: Offer,
    /// Its archive.
    pub archive: PathBuf,
    /// Its manifest.
    pub manifest: PathBuf,
    /// Its signed health record, if there is one.
    pub health: Option<Vec<u8>>,
}

/// Publishes a release: the archive first, what makes it exist last. May be repeated; what is there already is not sent again.
/// Gives the number of bytes sent.
pub async fn publish(place: &Place, share: &Share) -> Result<u64, RemoteError> {
    let Some(store) = place.store() else {
        let (place, doing) = (place.title().to_owned(), String::from("take what is published; it pulls for itself"));
        return Err(RemoteError::Refused { place, doing, code: 3, words: String::new() });
    };
    let (project, release) = (&share.offer.project, share.offer.release);
    let failed = |what: &str, error: object_store::Error| RemoteError::Lost {
        place: place.title().to_owned(),
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
            writer.wait_for_capacity(PARTS).await.map_err(|error| failed(object.word(), error))?;
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
        // Made of what is there, so that of two servers that publish at once none is left out for long.
        let mut offers = store.list(project, u64::MAX).await?;
        offers.truncate(OFFERS);
        sent = sent.saturating_add(small(store.index_path(project), "list", json(&offers)).await?);
    }
    Ok(sent)
}

/// A value of our own as JSON.
fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Strings and numbers only: nothing in it can fail to become text.
    serde_json::to_vec_pretty(value).unwrap_or_default()
}
