//! The command `larder user ca`, which manages the certificate authorities that may certify users.

use std::path::PathBuf;

use clap::Subcommand;

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text,
    },
    key::{LoginLimitArgs, described, parsed_key},
};
use crate::{
    control::{
        AuthorityAdd, AuthorityChanged, AuthorityList, AuthorityRemove, AuthorityRevoke, AuthorityRevoked, CertificateAuthority,
        CommandError, ErrorKind, Revoked,
    },
    model::UserName,
    surface::ssh::keys,
};

/// Manage the certificate authorities that may certify users
#[derive(Debug, Subcommand)]
pub enum AuthorityVerb {
    Add(AuthorityAddArgs),
    List(AuthorityListArgs),
    Remove(AuthorityRemoveArgs),
    Revoke(AuthorityRevokeArgs),
}

impl AuthorityVerb {
    pub(super) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            AuthorityVerb::Add(command) => asking.ask(command).await,
            AuthorityVerb::List(command) => asking.ask(command).await,
            AuthorityVerb::Remove(command) => asking.ask(command).await,
            AuthorityVerb::Revoke(command) => asking.ask(command).await,
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A certificate identifies the user whose name is a principal of the certificate. Sign certificates with `ssh-keygen -s ca -I ID -n USER -V +1d KEY.pub`.\n\nExamples:\n  larder user ca add office --key-file ca.pub\n  larder user ca add runner --key-file runner-ca.pub --user ci --only shop/staging --expires 90d"
)]
/// Accept the certificates of an authority
pub struct AuthorityAddArgs {
    /// Name of the authority, for lists and messages
    name: UserName,
    /// File with the public key of the authority, on the machine where you type this command
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    key_file: Option<PathBuf>,
    /// The public key itself, one line; over ssh, --key-file is not available
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    key: Option<String>,
    /// The only user that the authority may certify; without --user and --group, every user
    #[arg(long, value_name = "USER", conflicts_with = "group")]
    user: Option<UserName>,
    /// Group whose members the authority may certify
    #[arg(long, value_name = "GROUP")]
    group: Option<UserName>,
    #[command(flatten)]
    limits: LoginLimitArgs,
}

impl Command for AuthorityAddArgs {
    type Request = AuthorityAdd;

    fn request(self) -> Result<AuthorityAdd, CommandError> {
        let AuthorityAddArgs { name, key_file, key, user, group, limits } = self;
        let missing = || {
            CommandError::new(ErrorKind::Usage, "cannot add a certificate authority: no key is given")
                .hint("give --key-file FILE")
        };
        let key = parsed_key(key_file, key)?.ok_or_else(missing)?;
        let key = keys::authority(Ok(key)).map_err(|error| CommandError::new(ErrorKind::Usage, error.to_string()))?;
        let authority = CertificateAuthority {
            name,
            fingerprint: key.fingerprint_sha256,
            line: key.openssh_line,
            user,
            group,
            limits: limits.limits(),
            revoked_serials: Default::default(),
            revoked_ids: Default::default(),
        };
        Ok(AuthorityAdd { authority })
    }

    fn show(view: &AuthorityChanged) -> Shown {
        Shown::Done(format!("users may log in with certificates that {} signs ({})", view.name, view.fingerprint))
    }
}

/// List all certificate authorities with their limits
#[derive(Debug, clap::Args)]
pub struct AuthorityListArgs {}

impl Command for AuthorityListArgs {
    type Request = AuthorityList;

    fn request(self) -> Result<AuthorityList, CommandError> {
        Ok(AuthorityList)
    }

    fn show(rows: &Vec<CertificateAuthority>) -> Shown {
        let row = |one: &CertificateAuthority| {
            let users = match (&one.user, &one.group) {
                (Some(user), _) => user.to_string(),
                (None, Some(group)) => format!("members of {group}"),
                (None, None) => String::from("all"),
            };
            let revoked = one.revoked_serials.len().saturating_add(one.revoked_ids.len()).to_string();
            vec![one.name.to_string(), one.fingerprint.clone(), users, revoked, described(&one.limits)]
        };
        Shown::Page(text::table(&["AUTHORITY", "KEY", "USERS", "REVOKED", "LIMITS"], rows.iter().map(row).collect()))
    }
}

/// Accept the certificates of an authority no longer
#[derive(Debug, clap::Args)]
#[command(after_help = "The open connections of its certificates end.\n\nExample: larder user ca remove office")]
pub struct AuthorityRemoveArgs {
    /// Name of the authority
    name: UserName,
}

impl Command for AuthorityRemoveArgs {
    type Request = AuthorityRemove;

    fn request(self) -> Result<AuthorityRemove, CommandError> {
        Ok(AuthorityRemove { name: self.name })
    }

    fn show(view: &AuthorityChanged) -> Shown {
        Shown::Done(format!("certificates that {} signs are no longer accepted", view.name))
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The open connections of the certificates end.\n\nExamples:\n  larder user ca revoke office --serial 7\n  larder user ca revoke office --key-id bob-laptop\n  larder user ca revoke office --serial 7 --undo"
)]
/// Revoke certificates of an authority by serial number or by key ID
pub struct AuthorityRevokeArgs {
    /// Name of the authority
    name: UserName,
    /// Serial number of the certificate, as `ssh-keygen -L` prints it
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..), required_unless_present = "key_id", conflicts_with = "key_id")]
    serial: Option<u64>,
    /// Key ID of the certificates, as `ssh-keygen -L` prints it
    #[arg(long, value_name = "ID")]
    key_id: Option<String>,
    /// Accept the certificates again
    #[arg(long)]
    undo: bool,
}

impl Command for AuthorityRevokeArgs {
    type Request = AuthorityRevoke;

    fn request(self) -> Result<AuthorityRevoke, CommandError> {
        let missing =
            || CommandError::new(ErrorKind::Usage, "cannot revoke a certificate: neither --serial nor --key-id is given");
        let revoked = self.serial.map(Revoked::Serial).or(self.key_id.map(Revoked::Id)).ok_or_else(missing)?;
        Ok(AuthorityRevoke { name: self.name, revoked, undo: self.undo })
    }

    fn show(view: &AuthorityRevoked) -> Shown {
        let (serials, ids) = (text::count(view.serials, "serial number"), text::count(view.ids, "key ID"));
        Shown::Done(format!("{} has revoked {serials} and {ids}", view.name))
    }
}
