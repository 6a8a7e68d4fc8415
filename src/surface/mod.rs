//! Every way in: parses, authenticates, renders; decides nothing.

pub mod cli;
pub mod ssh;
