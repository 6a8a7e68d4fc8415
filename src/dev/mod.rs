//! `larder dev`: runs the project of a checkout on a developer's machine, without a server.
//!
//! The recipe, the buildpacks, the scripts of phases and the commands of processes are those of the server: `config` merges the files, the worker
//! of `buildpack` builds, and the worker of `runtime` becomes the process. This module replaces what a server adds: it watches files, restarts
//! processes, and merges their logs. There is no sandbox and no release. Read [`session`] first.

mod build;
mod checkout;
mod end;
mod instance;
mod output;
mod plan;
mod services;
mod session;

pub use self::{
    build::{BUILD_COMMAND, main as build_main},
    instance::{RUN_COMMAND, main as run_main},
    session::main,
};
