//! The users of this server: numbers only, nobody is entered in `/etc/passwd`.

use std::{
    fs::{self, File},
    io::{self, Write},
    ops::RangeInclusive,
    path::Path,
};

use rustix::process::{getegid, geteuid};

use super::KeeperError;
use crate::model::{EnvId, UserNumbers};

/// Where the numbers of a new root begin: above those that the kernel, systemd and `useradd` (for containers of ordinary users,
/// `/etc/subuid`) give to anybody.
const USUAL: u32 = 1_900_000_000;
/// Where they end.
const USUAL_LAST: u32 = 2_147_000_000;
/// The same in a container that has no numbers beyond 65535: above ordinary accounts, below what systemd uses for services.
const SMALL: u32 = 40_000;
/// Where they end there.
const SMALL_LAST: u32 = 59_999;
/// How many numbers lie before those of the first environment.
const OWN: u32 = 1_000;

/// Somebody that processes run as and files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// The keeper itself.
    Keeper,
    /// The server.
    Server,
    /// Owner of all repositories and of exported sources.
    Git,
    /// Owner of nothing.
    Helper,
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
    others: Option<Others>,
}

#[derive(Debug, Clone, Copy)]
struct Others {
    server: Identity,
    first: u32,
}

impl Users {
    /// Users of their own if the keeper is root; with the numbers that `root` has had from its first day.
    pub fn new(root: &Path) -> Result<Users, KeeperError> {
        let keeper = Identity { uid: geteuid().as_raw(), gid: getegid().as_raw() };
        if keeper.uid != 0 {
            return Ok(Users { keeper, others: None });
        }
        let wrong = |why: String| Err(KeeperError::Setup(why));
        let first = match fs::read_to_string(numbers(root)) {
            Ok(text) => match text.trim().parse() {
                Ok(first) => first,
                Err(_) => return wrong(format!("read {}: there is no number in it", numbers(root).display())),
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
            Some(Identity { uid: 0, .. }) => wrong("use the user \"larder\": it is root; give it a number of its own".to_owned()),
            server => {
                let server = server.unwrap_or(Identity { uid: first, gid: first });
                Ok(Users { keeper, others: Some(Others { server, first }) })
            }
        }
    }

    /// Writes down which numbers `root` uses, for all days to come; once.
    pub fn remember(&self, root: &Path) -> io::Result<()> {
        let Some(Others { first, .. }) = self.others else { return Ok(()) };
        let (path, fresh) = (numbers(root), numbers(root).with_extension("new"));
        if path.exists() {
            return Ok(());
        }
        let mut file = File::create(&fresh)?;
        writeln!(file, "{first}")?;
        file.sync_all()?;
        fs::rename(&fresh, &path)
    }

    /// Whether projects have users of their own.
    pub fn system(&self) -> bool {
        self.others.is_some()
    }

    /// The numbers of environments' users, if they have any of their own.
    pub fn of_environments(&self) -> Option<UserNumbers> {
        self.others.map(|others| UserNumbers(others.first.saturating_add(OWN)))
    }

    /// The last environment that there are numbers for.
    pub fn last_environment(&self) -> EnvId {
        let Some(Others { first, .. }) = self.others else { return EnvId(u32::MAX / UserNumbers::EACH) };
        let last = if first < SMALL_LAST { SMALL_LAST } else { USUAL_LAST };
        EnvId(last.saturating_sub(first).saturating_sub(OWN) / UserNumbers::EACH - 1)
    }

    /// Refuses where somebody else on this machine has one of the numbers of larder's own users and of environments up to `last`.
    pub fn unshared(&self, last: EnvId) -> Result<(), String> {
        let Some(Others { server, first }) = self.others else { return Ok(()) };
        let environments = (last.0 > 0).then(|| first + OWN..=self.identity(User::Run(last)).uid);
        let own = (server.uid == first).then_some(first..=first);
        let ours: Vec<_> = own.into_iter().chain([first + 1..=first + 2]).chain(environments).collect();
        for (path, lent) in [("/etc/passwd", false), ("/etc/group", false), ("/etc/subuid", true), ("/etc/subgid", true)] {
            let text = fs::read_to_string(path).unwrap_or_default();
            if let Some(line) =
                text.lines().find(|line| taken(line, lent).is_some_and(|taken| ours.iter().any(|own| meet(own, &taken))))
            {
                return Err(format!(
                    "users' numbers from {first} on are larder's here, and {path} gives some of them to somebody else: {line:?}; give them \
                     other numbers{}",
                    if lent { " (usermod --del-subuids and --add-subuids, --del-subgids and --add-subgids)" } else { "" }
                ));
            }
        }
        Ok(())
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

/// Where a root's first number is written.
fn numbers(root: &Path) -> std::path::PathBuf {
    root.join("keeper/numbers")
}

/// Which numbers there are in this user namespace.
fn map() -> String {
    fs::read_to_string("/proc/self/uid_map").unwrap_or_default()
}

/// Where the numbers of a new root begin.
fn choose(map: &str) -> u32 {
    let ranges = map.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        let (start, _, count) = (fields.next()?.ok()?, fields.next()?, fields.next()?.ok()?);
        Some(start..start + count)
    });
    let has = |range: std::ops::Range<u64>| range.contains(&u64::from(USUAL)) && range.contains(&u64::from(USUAL_LAST));
    if ranges.into_iter().any(has) { USUAL } else { SMALL }
}

/// The numbers that a line of a user database takes: one, or those that are lent to an account.
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

fn meet(one: &RangeInclusive<u32>, other: &RangeInclusive<u32>) -> bool {
    one.start() <= other.end() && other.start() <= one.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_from_where_there_are_some() {
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
    fn what_others_have_is_seen() {
        assert_eq!(taken("bob:165536:65536", true), Some(165_536..=231_071));
        assert_eq!(taken("bob:x:1001:1001:Bob:/home/bob:/bin/sh", false), Some(1001..=1001));
        assert_eq!(taken("larder:x:999:999::/:/usr/sbin/nologin", false), None);
        assert_eq!(taken("nonsense", true), None);
        assert!(meet(&(5..=9), &(9..=9)) && meet(&(5..=9), &(1..=20)) && !meet(&(5..=9), &(10..=12)));
    }
}
