//! Other places that have deliverables of a project, or want them.

use serde::{Deserialize, Serialize};

use super::{PublicKey, RemoteName};

/// Another larder server, or a directory, web server or bucket that deliverables are published in; as `larder remote add` keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// What people call it.
    pub name: RemoteName,
    /// Where it is: `ssh://USER@HOST:PORT/PROJECT[/ENVIRONMENT]`, `file:///DIR`, `https://...`, `s3://BUCKET/PREFIX`. Checked by whoever
    /// connects, kept as it was given.
    pub url: String,
    /// For ssh: the host key that it must show, as in a `known_hosts` file without the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// Whose deliverables are accepted from there; none means that nothing is pulled from it.
    #[serde(default)]
    pub trust: Vec<PublicKey>,
    /// Whether what this environment cooks is published there.
    #[serde(default)]
    pub publish: bool,
}
