//! Connections to other larder servers: a client that runs commands of their command language, with a key of this server's own.

mod client;
mod keys;

pub use client::{Exec, Output, RemoteServer};
pub use keys::{KeyFileError, PullKey, fingerprint, host_key, line_of, load_or_create};
