//! The users of this server: numbers only, nobody is entered in `/etc/passwd`.

use std::fs;

use rustix::process::{getegid, geteuid};

use super::KeeperError;
use crate::model::{EnvId, FIRST_USER};

/// The server's number where no user `larder` exists.
const SERVER: u32 = 199_000;
/// The git user's number.
const GIT: u32 = 199_001;
/// The last environment whose numbers stay below those that the kernel and systemd use for other things.
pub const LAST_ENVIRONMENT: u32 = (1_000_000_000 - FIRST_USER) / 4;

/// Somebody that processes run as and files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// The keeper itself.
    Keeper,
    /// The server.
    Server,
    /// Owner of all repositories and of exported sources.
    Git,
    /// Builds of one environment.
    Build(EnvId),
    /// Owner of one environment's releases.
    Unpack(EnvId),
    /// Applications of one environment and their data.
    Run(EnvId),
}

/// A user and a group number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The user.
    pub uid: u32,
    /// Its only group.
    pub gid: u32,
}

/// Who is who.
#[derive(Debug, Clone, Copy)]
pub struct Users {
    keeper: Identity,
    /// In system mode; otherwise everybody is the keeper's user.
    server: Option<Identity>,
}

impl Users {
    /// Users of their own if the keeper is root.
    pub fn new() -> Result<Users, KeeperError> {
        let keeper = Identity { uid: geteuid().as_raw(), gid: getegid().as_raw() };
        if keeper.uid != 0 {
            return Ok(Users { keeper, server: None });
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let server = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            (name == "larder").then_some(Identity { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        });
        match server {
            Some(Identity { uid: 0, .. }) => {
                Err(KeeperError::Setup("use the user \"larder\": it is root; give it a number of its own".into()))
            }
            server => Ok(Users { keeper, server: Some(server.unwrap_or(Identity { uid: SERVER, gid: SERVER })) }),
        }
    }

    /// Whether projects have users of their own.
    pub fn system(&self) -> bool {
        self.server.is_some()
    }

    /// The numbers of `user`.
    pub fn identity(&self, user: User) -> Identity {
        let Some(server) = self.server else { return self.keeper };
        let own = |uid: u32| Identity { uid, gid: uid };
        match user {
            User::Keeper => self.keeper,
            User::Server => server,
            User::Git => Identity { uid: GIT, gid: GIT },
            User::Build(env) => own(env.user(0)),
            User::Unpack(env) => own(env.user(1)),
            User::Run(env) => own(env.run_user()),
        }
    }
}
