//! Connections to other larder servers: the client that runs commands on another server, and the keys of this server.

mod client;
mod deploy_key;
mod host_key;
mod keys;

pub use client::{Exec, ExecOutput, RemoteServer};
pub use deploy_key::{DeployKey, DeployKeyError, DeployKeyInfo, DeployKeyStore, HostPort, given_host_key};
pub use host_key::shown_host_key;
pub use keys::{KeyFileError, PullKey, fingerprint, host_key, line_of, load_or_create};
