//! The commands that the server carries out: one file for each command. The file contains the arguments, whose doc comments are the help,
//! the conversion into a request, and the text of the answer. Short files stay separate, so that a command is found by its name. A noun
//! with several verbs, such as `user add` and `user list`, is one file with one [`Command`](super::command::Command) for each verb.

mod arguments;
mod audit;
mod backup;
mod backup_offsite;
mod backup_upkeep;
mod config;
mod config_render;
mod db;
mod deliverable;
mod deploy;
mod disk;
mod doctor;
mod drift;
mod edits;
mod group;
mod key;
mod key_deploy;
mod logs;
mod notify;
mod plan;
mod project;
mod project_limit;
mod promote;
mod protect;
mod ps;
mod pull;
mod release;
mod remote;
mod restart;
mod rollback;
mod run;
mod secret;
mod secret_edit;
mod status;
mod user;
mod user_ca;
mod whoami;

use clap::Subcommand;

use super::command::{Asked, Asking};
use crate::control::CommandError;

/// The title and the commands of each group, in the order of the help. A test finds a command that is in no group, or in two groups.
pub(super) const GROUPS: [(&str, &[&str]); 8] = [
    ("Work from a laptop", &["dev", "init", "push", "open", "completions", "man", "help"]),
    ("Deploy and go back", &["plan", "deploy", "promote", "pull", "rollback"]),
    ("See what is live", &["status", "releases", "release", "drift", "edits", "logs", "notify"]),
    ("Run processes", &["ps", "restart", "run"]),
    ("Configure the application", &["config", "secret"]),
    ("Keep data", &["backup", "db"]),
    ("Decide who may do what", &["whoami", "user", "group", "key", "freeze", "protect", "approve", "audit"]),
    ("Operate a server", &["quickstart", "serve", "project", "remote", "disk", "doctor"]),
];

/// The registration of all commands that the server carries out.
///
/// To add a command:
/// 1. Write `control/handlers/NAME.rs`: a struct for the request, its view, and `impl Request`, which does not compile without the
///    right that the request needs. Return data; write no text for people.
/// 2. Name the module in `control/handlers/mod.rs`: a `mod` line and a re-export.
/// 3. Write `surface/cli/commands/NAME.rs`: a struct for the arguments and `impl Command`. The doc comment of the struct is the
///    help: an imperative sentence, then a paragraph if needed, then examples.
/// 4. Register the command here: a `mod` line, its name in one group of [`GROUPS`], a variant of [`Verb`], and the arm of this
///    variant in [`Verb::ask`].
///
/// Then run `cargo build` and `docs/generate-cli`, and add a test to `tests/it/cli.rs`. A further verb of a noun needs only steps 1 and 3.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Whoami(whoami::WhoamiArgs),
    #[command(subcommand)]
    User(user::UserVerb),
    #[command(subcommand)]
    Group(group::GroupVerb),
    #[command(subcommand)]
    Key(key::KeyVerb),
    #[command(subcommand)]
    Project(project::ProjectVerb),
    Deploy(deploy::DeployArgs),
    Rollback(rollback::RollbackArgs),
    #[command(subcommand)]
    Config(config::ConfigVerb),
    #[command(subcommand)]
    Secret(secret::SecretVerb),
    Pull(pull::PullArgs),
    Promote(promote::PromoteArgs),
    Freeze(protect::FreezeArgs),
    Protect(protect::ProtectArgs),
    Approve(protect::ApproveArgs),
    Plan(plan::PlanArgs),
    Releases(release::ReleaseListArgs),
    #[command(subcommand)]
    Release(release::ReleaseVerb),
    Drift(drift::DriftArgs),
    Edits(edits::EditsArgs),
    #[command(subcommand)]
    Backup(backup::BackupVerb),
    #[command(subcommand)]
    Db(db::DatabaseVerb),
    Ps(ps::PsArgs),
    Restart(restart::RestartArgs),
    Logs(logs::LogsArgs),
    Run(run::RunArgs),
    #[command(subcommand)]
    Notify(notify::NotifyVerb),
    #[command(subcommand)]
    Remote(remote::RemoteVerb),
    #[command(subcommand, hide = true)]
    Deliverable(deliverable::DeliverableVerb),
    Status(status::StatusArgs),
    Audit(audit::AuditArgs),
    Disk(disk::DiskArgs),
    Doctor(doctor::DoctorArgs),
}

impl Verb {
    /// Returns the file on the caller's machine to which the command writes.
    pub(super) fn output(&self) -> Option<&std::path::Path> {
        match self {
            Verb::Backup(noun) => noun.output(),
            _ => None,
        }
    }

    /// Returns true if the command may ask for a confirmation on a terminal.
    pub(super) fn may_ask(&self) -> bool {
        match self {
            Verb::Rollback(command) => command.may_ask(),
            Verb::Backup(noun) => noun.may_ask(),
            Verb::Db(noun) => noun.may_ask(),
            _ => false,
        }
    }

    /// Returns true if the command runs a program that people use at a terminal.
    pub(super) fn is_interactive(&self) -> bool {
        match self {
            Verb::Run(command) => command.is_interactive(),
            Verb::Db(noun) => noun.is_interactive(),
            _ => false,
        }
    }

    /// Passes the command's request to its handler.
    pub(super) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            Verb::Whoami(command) => asking.ask(command).await,
            Verb::User(noun) => noun.ask(asking).await,
            Verb::Group(noun) => noun.ask(asking).await,
            Verb::Key(noun) => noun.ask(asking).await,
            Verb::Project(noun) => noun.ask(asking).await,
            Verb::Deploy(command) => asking.ask(command).await,
            Verb::Rollback(command) => asking.ask(command).await,
            Verb::Config(noun) => noun.ask(asking).await,
            Verb::Secret(noun) => noun.ask(asking).await,
            Verb::Pull(command) => asking.ask(command).await,
            Verb::Promote(command) => asking.ask(command).await,
            Verb::Freeze(command) => asking.ask(command).await,
            Verb::Protect(command) => asking.ask(command).await,
            Verb::Approve(command) => asking.ask(command).await,
            Verb::Plan(command) => asking.ask(command).await,
            Verb::Releases(command) => asking.ask(command).await,
            Verb::Release(noun) => noun.ask(asking).await,
            Verb::Drift(command) => asking.ask(command).await,
            Verb::Edits(command) => asking.ask(command).await,
            Verb::Backup(noun) => noun.ask(asking).await,
            Verb::Db(noun) => noun.ask(asking).await,
            Verb::Ps(command) => command.ask(asking).await,
            Verb::Restart(command) => asking.ask(command).await,
            Verb::Logs(command) => asking.ask(command).await,
            Verb::Run(command) => asking.ask(command).await,
            Verb::Notify(noun) => noun.ask(asking).await,
            Verb::Remote(noun) => noun.ask(asking).await,
            Verb::Deliverable(noun) => noun.ask(asking).await,
            Verb::Status(command) => asking.ask(command).await,
            Verb::Audit(command) => asking.ask(command).await,
            Verb::Disk(command) => asking.ask(command).await,
            Verb::Doctor(command) => command.ask(asking).await,
        }
    }
}
