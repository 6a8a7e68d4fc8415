//! Remotes: sources and destinations of a project's deliverables.

use serde::{Deserialize, Serialize};

use super::{PublicKey, RemoteName};

/// Another larder server, or a directory, web server or bucket with deliverables, as `larder remote add` records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    pub name: RemoteName,
    /// The address: `ssh://USER@HOST:PORT/PROJECT[/ENVIRONMENT]`, `file:///DIR`, `https://...` or `s3://BUCKET/PREFIX`. It is kept as
    /// it was given, and checked before each connection.
    pub url: String,
    /// The pinned host key of an ssh address, as in a `known_hosts` file without the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// The keys whose deliverables are accepted from the remote. Without a key nothing is pulled.
    #[serde(default)]
    pub trust: Vec<PublicKey>,
    /// True if releases that this environment builds are published to the remote.
    #[serde(default)]
    pub publish: bool,
}
