//! Connections to other larder servers: a client that runs larder commands there, and this server's key.

mod client;
mod keys;

pub use client::{Exec, ExecOutput, RemoteServer};
pub use keys::{KeyFileError, PullKey, fingerprint, host_key, line_of, load_or_create};
