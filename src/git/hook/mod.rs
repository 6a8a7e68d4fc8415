//! git's hooks: a thin client inside receive-pack, and the daemon's socket that it talks to.

mod client;
mod listener;
pub mod pktline;
mod recipe;
mod registry;
mod wire;

pub use client::main;
pub(crate) use listener::is_quarantine;
pub use listener::{HookSession, Listener, Speaker};
pub use registry::{PushRegistry, PushTicket, PushToken};
pub use wire::{HookKind, HookRequest, REFS_LIMIT, RefChange, Verdict};

#[cfg(test)]
mod tests;
