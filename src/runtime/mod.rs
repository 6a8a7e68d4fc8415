//! Application processes: booting, health, logs, retiring.

pub mod static_server;
