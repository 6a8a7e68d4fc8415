//! The interfaces of the server: they authenticate callers, parse requests and render answers. `control` decides what is allowed.

pub mod cli;
pub mod git;
pub mod ssh;
pub mod user_limit;
