//! The embedded SSH server: authenticates users by their public keys, parses their requests, and connects channels to pipes.
//!
//! An [`ExecHandler`] checks the rights of the user and carries out requests. This module starts no process and opens no path that a
//! client names.
//!
//! russh's accept loop has no login deadline and opens the receive window automatically. This module therefore has its own accept loop
//! (`server`), limits (`limits`) and flow control (`channel`).

mod authentication;
mod certificate;
mod channel;
mod config;
mod exec;
mod handler;
pub mod keys;
mod limits;
mod progress;
mod server;
mod session;
mod terminal;
#[cfg(test)]
mod tests;

pub use self::{
    config::{Profile, SshServerConfig},
    exec::{ExecError, ExecRequest, GitService, RepoPath},
    handler::{Credential, ExecCall, ExecHandler, ExecIo, KeyAnswer, KeyRefusal, SshIdentity},
    keys::{KeyError, PublicKeyInfo},
    limits::SshLimits,
    server::serve,
    terminal::ExecTerminal,
};
