//! Application processes: booting, health, logs, retiring.

pub mod worker;
