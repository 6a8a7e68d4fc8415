//! Checks which user numbers this process can use, and which user numbers the machine has assigned to accounts.

use std::{fs, ops::RangeInclusive};

use super::user::UnixUser;

/// Returns true if the user namespace of this process has all `numbers`.
pub fn has_numbers(numbers: RangeInclusive<u32>) -> bool {
    maps(&fs::read_to_string("/proc/self/uid_map").unwrap_or_default(), &numbers)
}

fn maps(map: &str, numbers: &RangeInclusive<u32>) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(start)), _, Some(Ok(count))) = (fields.next(), fields.next(), fields.next()) else { return false };
        let range = start..start + count;
        range.contains(&u64::from(*numbers.start())) && range.contains(&u64::from(*numbers.end()))
    })
}

/// Returns the user number and the group number of an account in `/etc/passwd`.
pub fn account(name: &str) -> Option<UnixUser> {
    fs::read_to_string("/etc/passwd").unwrap_or_default().lines().find_map(|line| {
        let mut fields = line.split(':');
        let (found, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        (found == name).then_some(UnixUser { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    })
}

/// A line of a user database that assigns numbers to an account that must not have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberConflict {
    pub file: &'static str,
    pub line: String,
    /// True if the line assigns a range of subordinate numbers (subuid(5), subgid(5)).
    pub subordinate: bool,
}

/// Returns the first line of this machine's user databases that conflicts with `numbers`. A line conflicts if it assigns one of these
/// numbers to an account other than `own_account`. A line also conflicts if it assigns a range of subordinate numbers with one of these
/// numbers to any account.
pub fn find_conflict(numbers: &[RangeInclusive<u32>], own_account: &str) -> Option<NumberConflict> {
    let databases = [("/etc/passwd", false), ("/etc/group", false), ("/etc/subuid", true), ("/etc/subgid", true)];
    databases.into_iter().find_map(|(file, subordinate)| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let conflicts = |line: &&str| {
            assigned(line, subordinate, own_account).is_some_and(|taken| numbers.iter().any(|own| overlap(own, &taken)))
        };
        text.lines().find(conflicts).map(|line| NumberConflict { file, line: line.to_owned(), subordinate })
    })
}

/// Returns the numbers that a line of a user database assigns: a single number, or a range of subordinate numbers.
fn assigned(line: &str, subordinate: bool, own_account: &str) -> Option<RangeInclusive<u32>> {
    let fields: Vec<&str> = line.split(':').collect();
    match (subordinate, fields.as_slice()) {
        (true, [_, start, count, ..]) => {
            let (start, count): (u32, u32) = (start.parse().ok()?, count.trim().parse().ok()?);
            Some(start..=start.saturating_add(count.checked_sub(1)?))
        }
        (false, [name, _, number, ..]) if *name != own_account => number.parse().ok().map(|number| number..=number),
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
    fn numbers_outside_the_map_of_the_namespace_are_missing() {
        let high = 1_900_000_000..=2_147_000_000;
        assert!(maps("         0          0 4294967295\n", &high));
        assert!(!maps("         0     100000      65536\n", &high), "an unprivileged container");
        assert!(!maps("", &high));
    }

    #[test]
    fn numbers_of_other_accounts_are_found() {
        assert_eq!(assigned("bob:165536:65536", true, "own"), Some(165_536..=231_071));
        assert_eq!(assigned("bob:x:1001:1001:Bob:/home/bob:/bin/sh", false, "own"), Some(1001..=1001));
        assert_eq!(assigned("own:x:999:999::/:/usr/sbin/nologin", false, "own"), None);
        assert_eq!(assigned("nonsense", true, "own"), None);
        assert!(overlap(&(5..=9), &(9..=9)) && overlap(&(5..=9), &(1..=20)) && !overlap(&(5..=9), &(10..=12)));
    }
}
