//! The users of this server. They are numbers without entries in `/etc/passwd`.

use std::{
    fs::{self, File},
    io::{self, Write},
    ops::RangeInclusive,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::process::{getegid, geteuid};

use super::config::KeeperError;
use crate::model::{EnvId, UserNumbers};

/// The first number of a new root, above all numbers that systemd and `useradd` assign (`/etc/subuid` included).
const USUAL: u32 = 1_900_000_000;
/// The last number of such a root.
const USUAL_LAST: u32 = 2_147_000_000;
/// The first number in a container without numbers above 65535: above ordinary accounts, below systemd's dynamic users.
const SMALL: u32 = 40_000;
/// The last number in such a container.
const SMALL_LAST: u32 = 59_999;
/// The number of user numbers before those of the first environment.
const OWN: u32 = 1_000;

/// A user that processes run as and files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// The keeper itself.
    Keeper,
    /// The server.
    Server,
    /// The owner of all repositories and of exported sources.
    Git,
    /// The user of the cgroup warmer, which owns no files.
    Helper,
    /// The builds of one environment.
    Build(EnvId),
    /// The owner of one environment's releases.
    Unpack(EnvId),
    /// The applications of one environment and their data.
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

/// The assignment of numbers to users.
#[derive(Debug, Clone, Copy)]
pub struct Users {
    keeper: Identity,
    /// The other users, in system mode; otherwise all are the keeper's user.
    others: Option<Others>,
}

#[derive(Debug, Clone, Copy)]
struct Others {
    server: Identity,
    first: u32,
}

impl Users {
    /// Assigns separate numbers to the users if the keeper is root; otherwise all users are the keeper's own. An existing `root` keeps its
    /// numbers.
    pub fn new(root: &Path) -> Result<Users, KeeperError> {
        let keeper = Identity { uid: geteuid().as_raw(), gid: getegid().as_raw() };
        if keeper.uid != 0 {
            return Ok(Users { keeper, others: None });
        }
        let wrong = |why: String| Err(KeeperError::Setup(why));
        let first = match fs::read_to_string(numbers(root)) {
            Ok(text) => match text.trim().parse() {
                Ok(first) => first,
                Err(_) => return wrong(format!("read {}: the file does not contain a number", numbers(root).display())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => choose(&map()),
            Err(error) => return wrong(format!("read {}: {error}", numbers(root).display())),
        };
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let server = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            (name == "larder").then_some(Identity { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        });
        match server {
            Some(Identity { uid: 0, .. }) => {
                wrong("use the user \"larder\": its number is 0 (expected an unprivileged user)".to_owned())
            }
            server => {
                let server = server.unwrap_or(Identity { uid: first, gid: first });
                Ok(Users { keeper, others: Some(Others { server, first }) })
            }
        }
    }

    /// Records the numbers of `root`, unless they are recorded already.
    pub fn save(&self, root: &Path) -> io::Result<()> {
        let Some(Others { first, .. }) = self.others else { return Ok(()) };
        let (path, fresh) = (numbers(root), numbers(root).with_extension("new"));
        if path.exists() {
            return Ok(());
        }
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        writeln!(file, "{first}")?;
        file.sync_all()?;
        fs::rename(&fresh, &path)
    }

    /// Returns true if environments have users of their own.
    pub fn system(&self) -> bool {
        self.others.is_some()
    }

    /// The numbers of environments' users, in system mode.
    pub fn of_environments(&self) -> Option<UserNumbers> {
        self.others.map(|others| UserNumbers(others.first.saturating_add(OWN)))
    }

    /// The last environment for which numbers exist.
    pub fn last_environment(&self) -> EnvId {
        let Some(Others { first, .. }) = self.others else { return EnvId(u32::MAX / UserNumbers::EACH) };
        let last = if first < SMALL_LAST { SMALL_LAST } else { USUAL_LAST };
        EnvId(last.saturating_sub(first).saturating_sub(OWN) / UserNumbers::EACH - 1)
    }

    /// Fails if this machine's user databases assign a number of larder's own users, or of environments up to `last`, to another
    /// account.
    pub fn check_unshared(&self, last: EnvId) -> Result<(), String> {
        let Some(Others { server, first }) = self.others else { return Ok(()) };
        let environments = (last.0 > 0).then(|| first + OWN..=self.identity(User::Run(last)).uid);
        let own = (server.uid == first).then_some(first..=first);
        let ours: Vec<_> = own.into_iter().chain([first + 1..=first + 2]).chain(environments).collect();
        for (path, lent) in [("/etc/passwd", false), ("/etc/group", false), ("/etc/subuid", true), ("/etc/subgid", true)] {
            let text = fs::read_to_string(path).unwrap_or_default();
            if let Some(line) =
                text.lines().find(|line| taken(line, lent).is_some_and(|taken| ours.iter().any(|own| overlap(own, &taken))))
            {
                return Err(format!(
                    "{path} assigns user numbers of larder (from {first} on) to another account: {line:?}; hint: give that account other \
                     numbers{}",
                    if lent { " (usermod --del-subuids and --add-subuids, --del-subgids and --add-subgids)" } else { "" }
                ));
            }
        }
        Ok(())
    }

    /// The users that may own files in a discarded directory, in the order in which they delete them.
    pub fn cleanup_users(&self, env: EnvId) -> Vec<User> {
        match self.system() {
            true => vec![User::Build(env), User::Unpack(env), User::Run(env), User::Git, User::Server],
            false => vec![User::Keeper],
        }
    }

    /// The numbers of `user`.
    pub fn identity(&self, user: User) -> Identity {
        let Some(Others { server, first }) = self.others else { return self.keeper };
        let own = |uid: u32| Identity { uid, gid: uid };
        let environments = UserNumbers(first.saturating_add(OWN));
        match user {
            User::Keeper => self.keeper,
            User::Server => server,
            User::Git => own(first + 1),
            User::Helper => own(first + 2),
            User::Build(env) => own(environments.of(env, 0)),
            User::Unpack(env) => own(environments.of(env, 1)),
            User::Run(env) => own(environments.run(env)),
        }
    }
}

/// The file that holds a root's first number.
fn numbers(root: &Path) -> std::path::PathBuf {
    root.join("keeper/numbers")
}

/// The numbers that exist in this user namespace.
fn map() -> String {
    fs::read_to_string("/proc/self/uid_map").unwrap_or_default()
}

/// Chooses the first number of a new root.
fn choose(map: &str) -> u32 {
    let ranges = map.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        let (start, _, count) = (fields.next()?.ok()?, fields.next()?, fields.next()?.ok()?);
        Some(start..start + count)
    });
    let has = |range: std::ops::Range<u64>| range.contains(&u64::from(USUAL)) && range.contains(&u64::from(USUAL_LAST));
    if ranges.into_iter().any(has) { USUAL } else { SMALL }
}

/// The numbers that a line of a user database assigns: one, or a range of subordinate numbers if `lent`.
fn taken(line: &str, lent: bool) -> Option<RangeInclusive<u32>> {
    let fields: Vec<&str> = line.split(':').collect();
    match (lent, fields.as_slice()) {
        (true, [_, start, count, ..]) => {
            let (start, count): (u32, u32) = (start.parse().ok()?, count.trim().parse().ok()?);
            Some(start..=start.saturating_add(count.checked_sub(1)?))
        }
        (false, [name, _, number, ..]) if *name != "larder" => number.parse().ok().map(|number| number..=number),
        _ => None,
    }
}

fn overlap(one: &RangeInclusive<u32>, other: &RangeInclusive<u32>) -> bool {
    one.start() <= other.end() && other.start() <= one.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_chosen_from_the_namespaces_map() {
        assert_eq!(choose("         0          0 4294967295\n"), USUAL);
        assert_eq!(choose("         0     100000      65536\n"), SMALL, "an unprivileged container");
        assert_eq!(choose(""), SMALL);
        let users = |first| Users {
            keeper: Identity { uid: 0, gid: 0 },
            others: Some(Others { server: Identity { uid: first, gid: first }, first }),
        };
        for (first, last) in [(USUAL, USUAL_LAST), (SMALL, SMALL_LAST)] {
            let users = users(first);
            assert!(users.identity(User::Run(users.last_environment())).uid <= last);
            assert!(users.last_environment().0 > 4000);
        }
    }

    #[test]
    fn numbers_of_other_accounts_are_found() {
        assert_eq!(taken("bob:165536:65536", true), Some(165_536..=231_071));
        assert_eq!(taken("bob:x:1001:1001:Bob:/home/bob:/bin/sh", false), Some(1001..=1001));
        assert_eq!(taken("larder:x:999:999::/:/usr/sbin/nologin", false), None);
        assert_eq!(taken("nonsense", true), None);
        assert!(overlap(&(5..=9), &(9..=9)) && overlap(&(5..=9), &(1..=20)) && !overlap(&(5..=9), &(10..=12)));
    }
}
