//! Requests, authorization and the registry of users and projects.
//!
//! A command, local or over ssh, becomes a [`Request`]. [`Control::handle`] checks the caller's right with `authz` and calls the request's
//! handler. The handler returns data: a [`Reply`] with a serialisable view, with a stream, or with a function that reads an upload. The
//! interface renders the reply. For git's services, [`Control::project`] checks the same rights. The module to read first is [`request`].

mod audit;
mod authorities;
mod authz;
mod error;
mod full_disk;
mod handlers;
mod heads;
mod login;
mod pillar_change;
mod protect;
mod registry;
mod request;
mod state;

pub use self::{
    audit::{AuditEntry, AuditLog, AuditOutcome, AuditRecord, AuditReport},
    authz::{Caller, Needs, Scope},
    error::{CommandError, ErrorKind},
    handlers::*,
    login::{
        CertificateRow, Key, KeyLimits, KeyOffer, KeyOffers, KeyScope, Login, LoginCertificate, LoginKeyRow, LoginRefusal,
        OfferRow,
    },
    pillar_change::{OutputClient, PILLAR_BRANCH, PillarChange, show_output},
    protect::{Approval, DeployWindow, Objection, Protection, ReleaseFreeze, WhenError},
    registry::{CertificateAuthority, Group, Registry, TrustedKey, User},
    request::{
        Confirmation, Context, DeploymentGoal, InputFn, LineStream, LogFollower, ProceedFn, Reply, Request, RunningCommand,
        StartCommand, Stream, UploadFn,
    },
    state::{Control, ServerKeys},
};
