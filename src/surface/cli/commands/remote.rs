//! The command `larder remote`, which manages the remotes of an environment.

use clap::Subcommand;

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text,
    },
    arguments::OnTarget,
    doctor,
};
use crate::{
    control::{CommandError, DoctorCheck, RemoteAdd, RemoteAdded, RemoteCheck, RemoteList, RemoteRemove, RemoteRemoved},
    model::{self, PublicKey, RemoteName},
    remote::ssh::fingerprint,
};

/// Manage the servers and shared locations that deliverables are pulled from or published to
#[derive(Debug, Subcommand)]
pub enum RemoteVerb {
    Add(RemoteAddArgs),
    List(RemoteListArgs),
    Remove(RemoteRemoveArgs),
    Check(RemoteCheckArgs),
}

impl RemoteVerb {
    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            RemoteVerb::Add(command) => asking.ask(command).await,
            RemoteVerb::List(command) => asking.ask(command).await,
            RemoteVerb::Remove(command) => asking.ask(command).await,
            RemoteVerb::Check(command) => asking.ask(command).await,
        }
    }
}

/// Add a server or shared location that deliverables are pulled from or published to
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A larder server is added only if both --host-key and --trust are given. Otherwise, the command shows the keys of the server, and the command that trusts these keys.\n\nExamples:\n  larder remote add shop staging ssh://larder@staging.example.com:2222/shop/staging\n  larder remote add shop shared s3://deliverables/ours --trust ed25519:...\n  larder remote add shop/staging shared file:///srv/deliverables --publish"
)]
pub struct RemoteAddArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Name for the remote
    name: RemoteName,
    /// ssh://larder@HOST:PORT/PROJECT[/ENVIRONMENT], file:///DIRECTORY, https://HOST/PATH or s3://BUCKET/PREFIX
    url: String,
    /// Signing key whose deliverables are accepted, as `larder key show` on the remote prints it; may be repeated
    #[arg(long, value_name = "KEY")]
    trust: Vec<PublicKey>,
    /// For ssh: the host key of the server, as `ssh-ed25519 AAAA...`
    #[arg(long, value_name = "LINE")]
    host_key: Option<String>,
    /// Publish the releases that this environment cooks
    #[arg(long)]
    publish: bool,
}

impl Command for RemoteAddArgs {
    type Request = RemoteAdd;

    fn request(self) -> Result<RemoteAdd, CommandError> {
        let RemoteAddArgs { on, name, url, trust, host_key, publish } = self;
        Ok(RemoteAdd { target: on.target, remote: model::Remote { name, url, host_key, trust, publish } })
    }

    fn show(view: &RemoteAdded) -> Shown {
        let mut text = format!("{} has the remote {} now", view.environment, view.remote);
        match view.offers {
            Some(0) => text.push_str("\nthe remote offers no deliverable yet"),
            Some(1) => text.push_str("\nthe remote offers one deliverable"),
            Some(offers) => text.push_str(&format!("\nthe remote offers {offers} deliverables")),
            None => {}
        }
        if let Some(problem) = &view.problem {
            text.push_str(&format!("\nthe remote cannot be used yet: {}", problem.message));
            for hint in &problem.hints {
                text.push_str(&format!("\nhint: {hint}"));
            }
        }
        Shown::Done(text)
    }
}

/// List the remotes of an environment
#[derive(Debug, clap::Args)]
pub struct RemoteListArgs {
    #[command(flatten)]
    on: OnTarget,
}

impl Command for RemoteListArgs {
    type Request = RemoteList;

    fn request(self) -> Result<RemoteList, CommandError> {
        Ok(RemoteList { target: self.on.target })
    }

    fn show(rows: &Vec<model::Remote>) -> Shown {
        let line = |row: &model::Remote| {
            let trust: Vec<_> = row.trust.iter().map(ToString::to_string).collect();
            let host = row.host_key.as_deref().map(fingerprint).unwrap_or_default();
            let publishes = if row.publish { "yes" } else { "" };
            vec![row.name.to_string(), row.url.clone(), trust.join(" "), host, publishes.to_owned()]
        };
        let header = ["REMOTE", "ADDRESS", "TRUSTS", "HOST KEY", "PUBLISHES"];
        Shown::Page(text::table(&header, rows.iter().map(line).collect()))
    }
}

/// Remove a remote; releases that were pulled from it stay
#[derive(Debug, clap::Args)]
pub struct RemoteRemoveArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Name of the remote
    name: RemoteName,
}

impl Command for RemoteRemoveArgs {
    type Request = RemoteRemove;

    fn request(self) -> Result<RemoteRemove, CommandError> {
        Ok(RemoteRemove { target: self.on.target, name: self.name })
    }

    fn show(view: &RemoteRemoved) -> Shown {
        Shown::Done(format!("the remote {} of {} was removed", view.remote, view.environment))
    }
}

/// Connect to a remote, and report what works
#[derive(Debug, clap::Args)]
pub struct RemoteCheckArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Name of the remote
    name: RemoteName,
}

impl Command for RemoteCheckArgs {
    type Request = RemoteCheck;

    fn request(self) -> Result<RemoteCheck, CommandError> {
        Ok(RemoteCheck { target: self.on.target, name: self.name })
    }

    fn show(checks: &Vec<DoctorCheck>) -> Shown {
        Shown::Page(checks.iter().map(doctor::line).collect())
    }
}
