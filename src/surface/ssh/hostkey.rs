//! The key by which clients know this server.

use std::path::Path;

use russh::keys::PrivateKey;

pub use crate::remote::ssh::KeyFileError as HostKeyError;

/// The host key at `path`, made there if there is none, and its fingerprint. Without one nothing is served, because clients would see
/// an impostor.
pub fn load_or_create(path: &Path) -> Result<(PrivateKey, String), HostKeyError> {
    crate::remote::ssh::load_or_create("host key", path)
}

/// The public half as in a `known_hosts` file, without the host: what a remote is pinned to.
pub fn public_line(key: &PrivateKey) -> Result<String, HostKeyError> {
    let mut public = key.public_key().clone();
    public.set_comment("");
    public.to_openssh().map_err(|source| HostKeyError::Generate { what: "host key", source })
}
