//! Connections to other larder servers: the client that runs commands on another server, and the keys of this server.

mod client;
mod keys;

pub use client::{Exec, ExecOutput, RemoteServer};
pub use keys::{KeyFileError, PullKey, fingerprint, host_key, line_of, load_or_create};
