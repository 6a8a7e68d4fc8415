//! The command `larder key deploy`, which manages the deploy key of a project.

use super::super::command::{Command, Shown};
use crate::{
    control::{CommandError, DeployKeyChange, DeployKeyView, KeyDeploy},
    model::ProjectName,
    remote::ssh::HostPort,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Builds of the project use the key for git over ssh. Add the printed line to the private repository as a deploy key that may only read. The private half never leaves the server, except into the sandbox of a build.\n\nA build connects only to hosts whose keys are recorded. --host records the key that the host shows now: compare the printed fingerprint with the one that the operator of the host publishes. --host-key records a given key.\n\nExamples:\n  larder key deploy shop\n  larder key deploy shop --host git.example.com\n  larder key deploy shop --host git.example.com:2222 --host-key 'ssh-ed25519 AAAA...'\n  larder key deploy shop --rotate"
)]
/// Make or show the key with which builds read private repositories
pub struct KeyDeployArgs {
    /// Project
    project: ProjectName,
    /// Record the key of this host, HOST or HOST:PORT
    #[arg(long, value_name = "HOST", value_parser = str::parse::<HostPort>)]
    host: Option<HostPort>,
    /// Host key to record, instead of the key that the host shows
    #[arg(long, value_name = "KEY", requires = "host", allow_hyphen_values = true)]
    host_key: Option<String>,
    /// Remove the recorded keys of this host
    #[arg(long, value_name = "HOST", value_parser = str::parse::<HostPort>, conflicts_with_all = ["host", "rotate", "remove"])]
    forget_host: Option<HostPort>,
    /// Replace the key by a new one
    #[arg(long, conflicts_with_all = ["host", "remove"])]
    rotate: bool,
    /// Remove the key and the recorded host keys
    #[arg(long, conflicts_with = "host")]
    remove: bool,
}

impl Command for KeyDeployArgs {
    type Request = KeyDeploy;

    fn request(self) -> Result<KeyDeploy, CommandError> {
        let KeyDeployArgs { project, host, host_key, forget_host, rotate, remove } = self;
        let change = match (host, forget_host) {
            (Some(host), _) => DeployKeyChange::AddHost { host, key: host_key },
            (None, Some(host)) => DeployKeyChange::ForgetHost { host },
            (None, None) if rotate => DeployKeyChange::Rotate,
            (None, None) if remove => DeployKeyChange::Remove,
            (None, None) => DeployKeyChange::Show,
        };
        Ok(KeyDeploy { project, change })
    }

    fn show(view: &DeployKeyView) -> Shown {
        let Some(key) = &view.key else {
            return Shown::Done(format!("{} has no deploy key any more; remove it from the repositories as well", view.project));
        };
        let mut text = format!("{key}\n\n");
        if view.is_new {
            text.push_str("The key is new: add this line to the repository as a deploy key that may only read.\n\n");
        }
        if let Some(recorded) = &view.recorded {
            text.push_str(&format!(
                "Builds accept {} with the key {}.\nCompare this fingerprint with the one that the operator of the host publishes.\n\n",
                recorded.host, recorded.fingerprint
            ));
        }
        let fingerprint = view.fingerprint.as_deref().unwrap_or_default();
        text.push_str(&format!("fingerprint  {fingerprint}\n"));
        match view.hosts.as_slice() {
            [] => {
                text.push_str(&format!("hosts        none; record one with `larder key deploy {} --host HOST`\n", view.project))
            }
            hosts => {
                for (at, host) in hosts.iter().enumerate() {
                    let title = if at == 0 { "hosts" } else { "" };
                    text.push_str(&format!("{title:<13}{} {}\n", host.host, host.fingerprint));
                }
            }
        }
        Shown::Page(text)
    }
}
