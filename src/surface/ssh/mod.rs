//! The embedded SSH server: authenticates users by their public keys, parses their requests, and connects channels to pipes.
//!
//! An [`ExecHandler`] decides what a request means and who may make it. This module starts no process and opens no path that a client
//! names.
//!
//! russh's own accept loop has no login deadline and opens the receive window by itself, so this module has an accept loop (`server`),
//! limits (`limits`) and flow control (`channel`) of its own.

mod channel;
mod config;
mod exec;
mod handler;
pub mod keys;
mod limits;
mod server;
mod session;
#[cfg(test)]
mod tests;

pub use self::{
    config::{Profile, SshConfig},
    exec::{ExecError, ExecRequest, GitService, RepoPath},
    handler::{ExecCall, ExecHandler, ExecIo, Identity, Tty},
    keys::{KeyError, PublicKeyInfo},
    limits::{Limits, Network},
    server::serve,
};
