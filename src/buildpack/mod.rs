//! Buildpacks: selects and runs larder's built-in buildpacks and third-party buildpacks for Heroku's classic API.
//!
//! The server side ([`build`]) starts one worker per job and forwards its output. The worker side ([`work`]) runs phase scripts,
//! `bin/detect`, `bin/compile` and `bin/release` at `/app`, as the environment's build user.

pub mod builtin;
mod child;
mod compile;
mod context;
mod deploy_key;
mod failure;
mod fetch;
mod job;
mod release;
mod script;
#[cfg(test)]
mod script_tests;
mod select;
mod server;
mod worker;

pub use context::{LocalPaths, rename_hint};
pub use deploy_key::BuildKey;
pub use failure::BuildpackError;
pub use job::{BuildFailure, BuildJob, BuildReport, BuildStep, Built, DoneStep};
pub use script::parse as parse_variables;
pub use server::{BuildOutput, build, clear_cache};
pub use worker::{work, work_locally};
