//! Reads and checks manifests.

use std::{fs::File, path::Path};

use larder_archive::{ArchiveLimits, check_entries, pool::both, tree_digest};

use super::{
    head::Head,
    index::{self, read_at_start},
};
use crate::{host::files::open_regular, model::Manifest, release::ReleaseError};

/// Returns the manifest at `path`. Reads its index if the index is valid; otherwise reads and checks the manifest, and writes the index.
pub fn read(path: &Path) -> Result<Manifest, ReleaseError> {
    let file = open_regular(path)?;
    if let Some(manifest) = index::of(path, &file) {
        return Ok(manifest);
    }
    let known = index::identity(&file);
    let manifest = parse(&file, path)?;
    index::keep(path, known, &manifest);
    Ok(manifest)
}

/// Reads the head of a manifest without checking the entries. The head is enough to list releases, but a release must not be installed
/// without a check of its whole manifest.
pub fn head(path: &Path) -> Result<Head, ReleaseError> {
    let bytes = read_at_start(&open_regular(path)?, path)?;
    serde_json::from_slice(&bytes).map_err(|e| ReleaseError::Manifest { path: path.to_owned(), why: e.to_string() })
}

/// Reads and checks the open manifest `file`. Messages name the file `path`.
pub fn parse(file: &File, path: &Path) -> Result<Manifest, ReleaseError> {
    from_bytes(&read_at_start(file, path)?, path)
}

/// Reads a file that [`index::open`] opened: an index or a manifest. Callers must not pass received files, because the entries of an index
/// are not checked.
pub fn parse_known(file: &File, path: &Path) -> Result<Manifest, ReleaseError> {
    let bytes = read_at_start(file, path)?;
    if index::is_one(&bytes) { index::parse(&bytes, path) } else { from_bytes(&bytes, path) }
}

/// Runs [`parse_known`] on two files in parallel.
pub(in crate::release) fn parse_both<'a>(
    (one, of_one): (&File, &'a Path),
    (other, of_other): (&File, &'a Path),
) -> (Result<Manifest, ReleaseError>, Result<Manifest, ReleaseError>) {
    both(|| parse_known(one, of_one), || parse_known(other, of_other))
}

/// Returns the problem and the remedy for a file in a format that this version does not read. `what` names the file, `found` is its format,
/// and `known` is the format that this version reads.
pub(in crate::release) fn other_format(what: &str, found: u32, known: u32) -> String {
    let remedy = if found > known { "update larder" } else { "update larder on the server that wrote it" };
    format!("{what} has the format {found}, but this larder reads the format {known}; {remedy}")
}

/// Parses and checks the bytes of a manifest. Messages name the file `path`.
pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Manifest, ReleaseError> {
    let wrong = |why: String| ReleaseError::Manifest { path: path.to_owned(), why };
    #[derive(serde::Deserialize)]
    struct Format {
        format: u32,
    }
    let other = |format| wrong(other_format("it", format, Manifest::FORMAT));
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| match serde_json::from_slice::<Format>(bytes) {
        // The parser can fail on a manifest in a different format, so the format is read separately.
        Ok(Format { format }) if format != Manifest::FORMAT => other(format),
        _ => wrong(e.to_string()),
    })?;
    if manifest.format != Manifest::FORMAT {
        return Err(other(manifest.format));
    }
    check_entries(&manifest.entries, &ArchiveLimits::default())
        .map_err(|source| ReleaseError::Archive { doing: "accept", source })?;
    if tree_digest(&manifest.entries) != manifest.tree {
        return Err(wrong("its tree digest does not match its entries".to_owned()));
    }
    Ok(manifest)
}
