//! The steps from the archive to the live release: install, fill the idle slot, upgrade, boot, check, switch.

pub mod boot;
pub mod data;
pub mod health;
pub mod hold;
pub mod in_place;
pub mod install;
pub mod processes;
pub mod slot;
pub mod switch;
pub mod units;
pub mod upgrade;
pub mod workspace;
