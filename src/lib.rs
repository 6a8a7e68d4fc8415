//! larder: a git push-to-deploy server in one binary.
//!
//! A module imports only modules below it in this list; `tests/it/architecture.rs` checks this order.

pub mod dev;
pub mod serve;
pub mod server;
pub mod workers;

pub mod keeper;

pub mod surface;

pub mod control;

pub mod pipeline;

pub mod drift;

pub mod backup;
pub mod buildpack;
pub mod git;
pub mod layout;
pub mod notify;
pub mod proxy;
pub mod release;
pub mod remote;
pub mod runtime;
pub mod snapshots;
pub mod space;
pub mod watch;

pub mod secret;

pub mod config;

pub mod host;

pub mod model;
