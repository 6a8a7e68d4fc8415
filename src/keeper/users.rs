//! The users of this server: numbers without entries in `/etc/passwd`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use larder_sandbox::{UnixUser, account, find_conflict, has_numbers};

use super::config::KeeperError;
use crate::{
    host::files::write_atomic,
    model::{EnvId, UserNumbers},
};

/// The first number of a new root, above all numbers that systemd and `useradd` assign (`/etc/subuid` included).
const USUAL: u32 = 1_900_000_000;
/// The last number of a root that begins with [`USUAL`].
const USUAL_LAST: u32 = 2_147_000_000;
/// The first number in a container without numbers above 65535: above ordinary accounts, below systemd's dynamic users.
const SMALL: u32 = 40_000;
/// The last number of a root that begins with [`SMALL`].
const SMALL_LAST: u32 = 59_999;
/// The count of user numbers before the numbers of the first environment.
const OWN: u32 = 1_000;

/// The account of the server, if the operator has created it.
const ACCOUNT: &str = "larder";

/// A user that processes run as and files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemUser {
    /// The keeper itself.
    Keeper,
    /// The server.
    Server,
    /// The owner of all repositories and of exported sources.
    Git,
    /// The user of the cgroup warmer, which owns no files.
    Helper,
    /// The user of the builds of one environment.
    Build(EnvId),
    /// The owner of one environment's installed trees.
    Unpack(EnvId),
    /// The user of the applications of one environment, which owns their data.
    Run(EnvId),
}

/// The assignment of numbers to users.
#[derive(Debug, Clone, Copy)]
pub struct Users {
    keeper: UnixUser,
    /// The users besides the keeper in system mode. In rootless mode, all users are the keeper's user.
    others: Option<Others>,
}

#[derive(Debug, Clone, Copy)]
struct Others {
    server: UnixUser,
    first: u32,
}

impl Users {
    /// Assigns separate numbers to the users if the keeper is root; otherwise all users are the keeper's user. An existing `root` keeps its
    /// numbers.
    pub fn new(root: &Path) -> Result<Users, KeeperError> {
        let keeper = UnixUser::current();
        if keeper.uid != 0 {
            return Ok(Users { keeper, others: None });
        }
        let wrong = |why: String| Err(KeeperError::Setup(why));
        let first = match fs::read_to_string(numbers_file(root)) {
            Ok(text) => match text.trim().parse() {
                Ok(first) => first,
                Err(_) => return wrong(format!("read {}: the file does not contain a number", numbers_file(root).display())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => choose(has_numbers(USUAL..=USUAL_LAST)),
            Err(error) => return wrong(format!("read {}: {error}", numbers_file(root).display())),
        };
        match account(ACCOUNT) {
            Some(UnixUser { uid: 0, .. }) => {
                wrong("use the user \"larder\": its number is 0 (expected an unprivileged user)".into())
            }
            server => {
                let server = server.unwrap_or(UnixUser::same(first));
                Ok(Users { keeper, others: Some(Others { server, first }) })
            }
        }
    }

    /// Records the numbers of `root`, unless the numbers are already recorded.
    pub fn save(&self, root: &Path) -> io::Result<()> {
        let Some(Others { first, .. }) = self.others else { return Ok(()) };
        let path = numbers_file(root);
        if path.exists() {
            return Ok(());
        }
        write_atomic(&path, format!("{first}\n").as_bytes(), 0o600).map_err(io::Error::other)
    }

    /// Returns true if each environment has its own users.
    pub fn system(&self) -> bool {
        self.others.is_some()
    }

    /// Returns the numbers of environments' users, or `None` in rootless mode.
    pub fn of_environments(&self) -> Option<UserNumbers> {
        self.others.map(|others| UserNumbers(others.first.saturating_add(OWN)))
    }

    /// Returns the last environment for which numbers exist.
    pub fn last_environment(&self) -> EnvId {
        let Some(Others { first, .. }) = self.others else { return EnvId(u32::MAX / UserNumbers::EACH) };
        let last = if first < SMALL_LAST { SMALL_LAST } else { USUAL_LAST };
        EnvId(last.saturating_sub(first).saturating_sub(OWN) / UserNumbers::EACH - 1)
    }

    /// Returns an error if this machine's user databases assign a number of larder's own users, or of environments up to `last`, to
    /// another account.
    pub fn check_unshared(&self, last: EnvId) -> Result<(), KeeperError> {
        let Some(Others { server, first }) = self.others else { return Ok(()) };
        let environments = (last.0 > 0).then(|| first + OWN..=self.numbers(SystemUser::Run(last)).uid);
        let own = (server.uid == first).then_some(first..=first);
        let ours: Vec<_> = own.into_iter().chain([first + 1..=first + 2]).chain(environments).collect();
        find_conflict(&ours, ACCOUNT).map_or(Ok(()), |conflict| Err(KeeperError::Numbers { first, conflict }))
    }

    /// Returns the users that may own files in a discarded directory, in the order in which these users delete their files.
    pub fn cleanup_users(&self, env: EnvId) -> Vec<SystemUser> {
        let (build, unpack, run) = (SystemUser::Build(env), SystemUser::Unpack(env), SystemUser::Run(env));
        let others = vec![build, unpack, run, SystemUser::Git, SystemUser::Server];
        if self.system() { others } else { vec![SystemUser::Keeper] }
    }

    /// Returns the numbers of `user`.
    pub fn numbers(&self, user: SystemUser) -> UnixUser {
        let Some(Others { server, first }) = self.others else { return self.keeper };
        let environments = UserNumbers(first.saturating_add(OWN));
        match user {
            SystemUser::Keeper => self.keeper,
            SystemUser::Server => server,
            SystemUser::Git => UnixUser::same(first + 1),
            SystemUser::Helper => UnixUser::same(first + 2),
            SystemUser::Build(env) => UnixUser::same(environments.of(env, 0)),
            SystemUser::Unpack(env) => UnixUser::same(environments.of(env, 1)),
            SystemUser::Run(env) => UnixUser::same(environments.run(env)),
        }
    }
}

/// Returns the path of the file that holds a root's first number.
fn numbers_file(root: &Path) -> PathBuf {
    root.join("keeper/numbers")
}

/// Chooses the first number of a new root. `usual` is true if this user namespace has the usual numbers.
fn choose(usual: bool) -> u32 {
    if usual { USUAL } else { SMALL }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_environments_end_before_the_last_number() {
        let users = |first| Users { keeper: UnixUser::same(0), others: Some(Others { server: UnixUser::same(first), first }) };
        for (usual, last) in [(true, USUAL_LAST), (false, SMALL_LAST)] {
            let users = users(choose(usual));
            assert!(users.numbers(SystemUser::Run(users.last_environment())).uid <= last);
            assert!(users.last_environment().0 > 4000);
        }
    }
}
