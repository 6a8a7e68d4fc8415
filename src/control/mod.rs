//! Requests, authorization and the registry of users and projects.
//!
//! Every interface (the command line, ssh, git) makes a [`Request`] and gives it to [`Control::handle`], which asks `authz` for
//! permission and then calls the request's handler. A handler returns data: a [`Reply`] that holds a serialisable view or a stream.
//! Interfaces render it. Start with [`request`].

mod authz;
mod error;
mod handlers;
mod heads;
mod registry;
mod request;
mod start;
mod state;

pub use self::{
    authz::Caller,
    error::{CommandError, Kind},
    handlers::*,
    registry::{Key, Registry, Target, TrustedKey, User},
    request::{Context, DeploymentGoal, LogFollower, Reply, Request, Stream, Upload},
    state::{Control, ServerKeys},
};
