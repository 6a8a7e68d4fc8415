//! Application processes: booting, health, logs, retiring.
