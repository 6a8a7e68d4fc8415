//! Finding and running buildpacks; ours and Heroku's.
//!
//! The server side ([`build`]) starts one worker per build and passes its output on; the worker side ([`work`]) runs phase scripts,
//! `bin/detect`, `bin/compile` and `bin/release` at `/app`, as the environment's build user.

mod child;
mod choose;
pub mod embedded;
mod failure;
mod fetch;
mod job;
mod place;
mod release;
mod script;
#[cfg(test)]
mod script_tests;
mod server;
mod work;

pub use choose::{BuildpackRef, REGISTRY, Registered};
pub use failure::{BuildpackError, Failure};
pub use job::{BuildJob, BuildReport, BuildStep, Built, DoneStep};
pub use script::parse as parse_variables;
pub use server::{Output, build, clear_cache};
pub use work::work;
