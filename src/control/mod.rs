//! Requests, authorization and the registry of users and projects.
//!
//! Every interface (the command line, ssh, git) creates a [`Request`] and passes it to [`Control::handle`], which checks the caller's
//! right with `authz` and then calls the request's handler. A handler returns data: a [`Reply`] that holds a serialisable view or a
//! stream. The interface renders the reply. The module to read first is [`request`].

mod authz;
mod error;
mod handlers;
mod heads;
mod registry;
mod request;
mod state;

pub use self::{
    authz::Caller,
    error::{CommandError, ErrorKind},
    handlers::*,
    registry::{Key, Registry, Target, TrustedKey, User},
    request::{Context, DeploymentGoal, LogFollower, Reply, Request, Stream, UploadFn},
    state::{Control, ServerKeys},
};
