//! `user` and `key`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use crate::{
    control::{self, CommandError, Kind, Request},
    model::{Access, ProjectName, PublicKey, RemoteName, UserName},
    surface::ssh::keys,
};

/// Users of this server.
#[derive(Debug, Subcommand)]
pub enum User {
    /// Add a user with an SSH key
    #[command(after_help = "Example: larder user add alice --admin --key-file ~/.ssh/id_ed25519.pub")]
    Add {
        /// A name of larder's own; it needs no account on the machine
        name: UserName,
        /// May do everything on this server
        #[arg(long)]
        admin: bool,
        /// A file with the public key, on the machine where you type this
        #[arg(long, value_name = "FILE", conflicts_with = "key")]
        key_file: Option<PathBuf>,
        /// The public key itself, one line; over ssh, the only way to give one
        #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
        key: Option<String>,
    },
    /// List all users with their rights and the fingerprints of their keys
    List,
    /// Remove a user with its keys and rights
    Remove {
        /// Who
        name: UserName,
    },
    /// Give a user a right on a project, or take it away
    #[command(after_help = "Example: larder user grant bob shop push")]
    Grant {
        /// Who
        name: UserName,
        /// The project
        project: ProjectName,
        /// The right; it takes the place of the one before
        access: Right,
    },
}

/// Keys: those of users, this server's own, and those that are trusted.
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Give a user a further key
    Add {
        /// Whose key it is
        user: UserName,
        /// A file with the public key, on the machine where you type this
        #[arg(long, value_name = "FILE", conflicts_with = "key")]
        key_file: Option<PathBuf>,
        /// The public key itself, one line; over ssh, the only way to give one
        #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
        key: Option<String>,
    },
    /// Take a key away; whoever has it cannot log in any more
    Remove {
        /// SHA256:..., as `larder user list` shows it
        fingerprint: String,
    },
    /// Show this server's own keys, for other servers: the SSH host key, and the key that signs what it cooks
    Show,
    /// Accept deliverables of a project that are signed by a key; without a key, list those that are trusted
    #[command(
        after_help = "Example: larder key trust shop ed25519:... --name staging\n\n`larder key show` prints the key on the server that cooks."
    )]
    Trust {
        /// The project
        project: ProjectName,
        /// ed25519:..., as `larder key show` prints it
        key: Option<PublicKey>,
        /// What to call it [default: staging]
        #[arg(long)]
        name: Option<RemoteName>,
    },
    /// Accept them no more; what is there stays
    Untrust {
        /// The project
        project: ProjectName,
        /// ed25519:...
        key: PublicKey,
    },
}

/// A right on one project, each including the ones before it.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Right {
    /// Nothing: the project is not even shown
    None,
    /// See its state, releases and logs; clone it
    View,
    /// Push and deploy
    Push,
    /// Run commands, scale, restart
    Operate,
}

impl User {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        Ok(match self {
            User::Add { name, admin, key_file, key } => {
                let keys = read(key_file, key)?.into_iter().collect();
                Request::UserAdd { name, admin, keys }
            }
            User::List => Request::UserList,
            User::Remove { name } => Request::UserRemove { name },
            User::Grant { name, project, access } => {
                let access = match access {
                    Right::None => Access::None,
                    Right::View => Access::View,
                    Right::Push => Access::Push,
                    Right::Operate => Access::Operate,
                };
                Request::UserGrant { name, project, access }
            }
        })
    }
}

impl Key {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        match self {
            Key::Add { user, key_file, key } => {
                let key = read(key_file, key)?;
                let missing = || CommandError::new(Kind::Usage, "which key?").hint("give --key-file FILE");
                Ok(Request::KeyAdd { name: user, key: key.ok_or_else(missing)? })
            }
            Key::Remove { fingerprint } => Ok(Request::KeyRemove { fingerprint }),
            Key::Show => Ok(Request::KeyShow),
            Key::Trust { project, key, name } => Ok(Request::KeyTrust { project, key, name }),
            Key::Untrust { project, key } => Ok(Request::KeyUntrust { project, key }),
        }
    }
}

/// A key file is read by the program that was called, never by the server: the server might see another file under that name.
fn read(file: Option<PathBuf>, key: Option<String>) -> Result<Option<control::Key>, CommandError> {
    if let Some(file) = file {
        return Err(CommandError::new(Kind::Usage, format!("{} is on your machine, not on the server", file.display()))
            .hint("send the key itself, in quotes of its own for the server: --key \"'$(cat FILE)'\"")
            .hint("or have the program read the file: `larder -r REMOTE ... --key-file FILE`"));
    }
    let Some(text) = key else { return Ok(None) };
    let key = keys::parse_line(&text).map_err(|error| {
        CommandError::new(Kind::Usage, error.to_string()).hint("a public key is one line, such as `ssh-ed25519 AAAA... name`")
    })?;
    Ok(Some(control::Key { fingerprint: key.fingerprint_sha256, line: key.openssh_line }))
}
