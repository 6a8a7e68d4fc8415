//! From the archive to live: install, fill the idle slot, boot, check, switch.

pub mod boot;
pub mod install;
pub mod processes;
pub mod slot;
pub mod switch;
