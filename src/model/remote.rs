//! Remotes: sources and destinations of a project's deliverables.

use serde::{Deserialize, Serialize};

use super::{PublicKey, RemoteName};

/// A location of deliverables that `larder remote add` has recorded: another larder server, a directory, a web server or a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    pub name: RemoteName,
    /// The address: `ssh://USER@HOST:PORT/PROJECT[/ENVIRONMENT]`, `file:///DIR`, `https://...` or `s3://BUCKET/PREFIX`. The
    /// address is stored unchanged, and is checked before each connection.
    pub url: String,
    /// The pinned host key of an ssh address, as in a `known_hosts` file without the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// The keys whose signed deliverables are accepted from the remote. Without a key, no deliverable is pulled.
    #[serde(default)]
    pub trust: Vec<PublicKey>,
    /// True if releases that this environment builds are published to the remote.
    #[serde(default)]
    pub publish: bool,
}
