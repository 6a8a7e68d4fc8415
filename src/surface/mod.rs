//! Every way in: parses, authenticates, renders; decides nothing.

pub mod cli;
pub mod git;
pub mod shares;
pub mod ssh;
