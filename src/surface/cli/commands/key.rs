//! The command `larder key`, which manages keys.

use std::path::PathBuf;

use clap::Subcommand;

use super::super::{
    command::{Asked, Asking, Command, Shown},
    text,
};
use crate::{
    control::{
        self, CommandError, ErrorKind, KeyAdd, KeyAdded, KeyRemove, KeyRemoved, KeyShow, KeyTrust, KeyTrustView, KeyUntrust,
        KeyUntrusted, ServerKeys, TrustRow,
    },
    model::{ProjectName, PublicKey, RemoteName, UserName},
    surface::ssh::keys,
};

/// Manage SSH keys of users, show this server's own keys, trust signing keys
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    Add(KeyAddArgs),
    Remove(KeyRemoveArgs),
    Show(KeyShowArgs),
    Trust(KeyTrustArgs),
    Untrust(KeyUntrustArgs),
}

impl KeyVerb {
    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            KeyVerb::Add(command) => asking.ask(command).await,
            KeyVerb::Remove(command) => asking.ask(command).await,
            KeyVerb::Show(command) => asking.ask(command).await,
            KeyVerb::Trust(command) => asking.ask(command).await,
            KeyVerb::Untrust(command) => asking.ask(command).await,
        }
    }
}

/// Add an SSH key to a user
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  larder key add alice --key-file ~/.ssh/laptop.pub\n  ssh -p 2222 larder@HOST key add alice --key \"'$(cat ~/.ssh/laptop.pub)'\""
)]
pub struct KeyAddArgs {
    /// Name of the user
    user: UserName,
    /// File with the public key, on the machine where you type this command
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    key_file: Option<PathBuf>,
    /// The public key itself, one line; over ssh, --key-file is not available
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    key: Option<String>,
}

impl Command for KeyAddArgs {
    type Request = KeyAdd;

    fn request(self) -> Result<KeyAdd, CommandError> {
        let key = read_key(self.key_file, self.key)?;
        let missing = || CommandError::new(ErrorKind::Usage, "cannot add a key: no key is given").hint("give --key-file FILE");
        Ok(KeyAdd { name: self.user, key: key.ok_or_else(missing)? })
    }

    fn show(view: &KeyAdded) -> Shown {
        Shown::Done(format!("{} may log in with {}", view.name, view.fingerprint))
    }
}

/// Parses the key of a command. The server reads no file that a caller names, so the local program replaces `--key-file` by `--key`
/// before it sends the command.
pub(super) fn read_key(file: Option<PathBuf>, key: Option<String>) -> Result<Option<control::Key>, CommandError> {
    if let Some(file) = file {
        return Err(CommandError::new(
            ErrorKind::Usage,
            format!("cannot read {}: the file is on your machine, not on the server", file.display()),
        )
        .hint("send the key itself, quoted a second time for the server: --key \"'$(cat FILE)'\"")
        .hint("let the local program read the file instead: `larder -r REMOTE ... --key-file FILE`"));
    }
    let Some(text) = key else { return Ok(None) };
    let key = keys::parse_line(&text).map_err(|error| {
        CommandError::new(ErrorKind::Usage, error.to_string())
            .hint("give the public key as one line, such as `ssh-ed25519 AAAA... name`")
    })?;
    Ok(Some(control::Key { fingerprint: key.fingerprint_sha256, line: key.openssh_line }))
}

/// Remove a key, refuse logins with this key, and close connections that it opened
#[derive(Debug, clap::Args)]
pub struct KeyRemoveArgs {
    /// Fingerprint, SHA256:..., as `larder user list` shows it
    fingerprint: String,
}

impl Command for KeyRemoveArgs {
    type Request = KeyRemove;

    fn request(self) -> Result<KeyRemove, CommandError> {
        Ok(KeyRemove { fingerprint: self.fingerprint })
    }

    fn show(view: &KeyRemoved) -> Shown {
        Shown::Done(format!("{} can no longer log in with {}", view.name, view.fingerprint))
    }
}

/// Show this server's own keys: the SSH host key, the signing key, the pull key
#[derive(Debug, clap::Args)]
pub struct KeyShowArgs {}

impl Command for KeyShowArgs {
    type Request = KeyShow;

    fn request(self) -> Result<KeyShow, CommandError> {
        Ok(KeyShow)
    }

    fn show(keys: &ServerKeys) -> Shown {
        let mut text = format!("host key     {}\n             {}\nsigning key  {}\n", keys.host, keys.fingerprint, keys.signing);
        if let Some(pull) = &keys.pull {
            text.push_str(&format!("pull key     {pull}\n"));
        }
        Shown::Page(text)
    }
}

/// Accept deliverables that a key has signed; without a key, list the trusted keys
#[derive(Debug, clap::Args)]
#[command(
    after_help = "On the server that cooks, `larder key show` prints the key.\n\nExample: larder key trust shop ed25519:... --name staging"
)]
pub struct KeyTrustArgs {
    /// Project that accepts the deliverables
    project: ProjectName,
    /// Signing key, ed25519:..., as `larder key show` prints it
    key: Option<PublicKey>,
    /// Name for the key [default: staging]
    #[arg(long)]
    name: Option<RemoteName>,
}

impl Command for KeyTrustArgs {
    type Request = KeyTrust;

    fn request(self) -> Result<KeyTrust, CommandError> {
        Ok(KeyTrust { project: self.project, key: self.key, name: self.name })
    }

    fn show(view: &KeyTrustView) -> Shown {
        match view {
            KeyTrustView::List(rows) => {
                let line = |row: &TrustRow| vec![row.on.clone(), row.name.clone(), row.key.to_string()];
                Shown::Page(text::table(&["ACCEPTS FOR", "NAME", "KEY"], rows.iter().map(line).collect()))
            }
            KeyTrustView::Trusted(row) => Shown::Done(format!("{} accepts deliverables that {} has signed", row.on, row.key)),
        }
    }
}

/// Revoke a trusted signing key; releases that were accepted stay
#[derive(Debug, clap::Args)]
pub struct KeyUntrustArgs {
    /// Project that trusts the key
    project: ProjectName,
    /// Signing key, ed25519:...
    key: PublicKey,
}

impl Command for KeyUntrustArgs {
    type Request = KeyUntrust;

    fn request(self) -> Result<KeyUntrust, CommandError> {
        Ok(KeyUntrust { project: self.project, key: self.key })
    }

    fn show(view: &KeyUntrusted) -> Shown {
        Shown::Done(format!("{} accepts no further deliverables that {} has signed", view.project, view.key))
    }
}
