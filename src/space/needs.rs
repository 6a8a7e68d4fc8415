//! The disk space that a deployment needs, compared with the free space and with the limit of the project.

use crate::host::files::FreeSpace;

/// The expected disk space of a deployment, from the sizes of the last deployment and of the data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpaceNeeds {
    /// The parts, each with its bytes.
    parts: Vec<(&'static str, u64)>,
    /// The number of new files and directories.
    pub entries: u64,
}

impl SpaceNeeds {
    /// Adds a part. A part without bytes is left out.
    pub fn add(&mut self, part: &'static str, bytes: u64) {
        if bytes > 0 {
            self.parts.push((part, bytes));
        }
    }

    /// Returns the bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Returns the bytes that are missing in the free space of the disk, of which `reserve` bytes must stay free.
    pub fn missing(&self, free: FreeSpace, reserve: u64) -> u64 {
        self.bytes().saturating_add(reserve).saturating_sub(free.bytes)
    }

    /// Returns the reason why the deployment does not fit into the free space of the disk, of which `reserve` bytes must stay free.
    pub fn lack(&self, free: FreeSpace, reserve: u64, min_inodes: u64) -> Option<String> {
        let usable = free.bytes.saturating_sub(reserve);
        if self.bytes() > usable {
            return Some(format!(
                "this deployment needs about {self}, and {} are free, of which {} must stay free",
                shown(free.bytes),
                shown(reserve)
            ));
        }
        let entries = self.entries.saturating_add(min_inodes);
        (entries > free.inodes).then(|| {
            format!(
                "this deployment needs about {} new files, and {} inodes are free (expected at least {entries})",
                self.entries, free.inodes
            )
        })
    }

    /// Returns the reason why a project that uses `used` bytes cannot deploy within its limit.
    pub fn excess(&self, project: &str, used: u64, limit: u64) -> Option<String> {
        (used.saturating_add(self.bytes()) > limit).then(|| {
            format!("{project} uses {} of its limit of {}, and this deployment needs about {self}", shown(used), shown(limit))
        })
    }
}

impl std::fmt::Display for SpaceNeeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&shown(self.bytes()))?;
        let parts: Vec<_> = self.parts.iter().map(|(part, bytes)| format!("{part} {}", shown(*bytes))).collect();
        if parts.is_empty() { Ok(()) } else { write!(f, " ({})", parts.join(", ")) }
    }
}

/// Renders a size as a whole number, rounded up, in the largest unit in which this number is at least 10.
pub fn shown(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| bytes >> shift >= 10) {
        Some((unit, shift)) => format!("{} {unit}", bytes.div_ceil(1 << shift)),
        None if bytes == 1 => String::from("1 byte"),
        None => format!("{bytes} bytes"),
    }
}

/// Returns the limit that is recorded for a project with `used` bytes if no size was given: a tenth more, at most 1 GiB more and at least
/// 16 MiB more, in whole MiB.
pub fn with_reserve(used: u64) -> u64 {
    let reserve = (used / 10).clamp(16 << 20, 1 << 30);
    used.saturating_add(reserve).div_ceil(1 << 20) << 20
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs() -> SpaceNeeds {
        let mut needs = SpaceNeeds { entries: 100, ..SpaceNeeds::default() };
        needs.add("build", 20 << 20);
        needs.add("archive", 0);
        needs.add("installed tree", 11 << 20);
        needs
    }

    #[test]
    fn lack_of_bytes_or_inodes_states_needed_and_free_figures() {
        let free = |bytes: u64, inodes: u64| FreeSpace { bytes, inodes };
        assert_eq!(needs().lack(free(41 << 20, 110), 10 << 20, 10), None);
        assert_eq!(
            needs().lack(free(40 << 20, 110), 10 << 20, 10).unwrap(),
            "this deployment needs about 31 MiB (build 20 MiB, installed tree 11 MiB), and 40 MiB are free, of which 10 MiB must stay free"
        );
        let why = needs().lack(free(1 << 30, 109), 0, 10).unwrap();
        assert!(why.ends_with("100 new files, and 109 inodes are free (expected at least 110)"), "{why}");
    }

    #[test]
    fn excess_over_the_limit_states_used_bytes_and_limit() {
        assert_eq!(needs().excess("shop", 33 << 20, 64 << 20), None);
        let why = needs().excess("shop", (33 << 20) + 1, 64 << 20).unwrap();
        assert!(why.starts_with("shop uses 34 MiB of its limit of 64 MiB, and this deployment needs about 31 MiB ("), "{why}");
    }

    #[test]
    fn limit_with_reserve_is_above_the_used_bytes_in_whole_mebibytes() {
        assert_eq!(with_reserve(0), 16 << 20);
        assert_eq!(with_reserve((1 << 30) + 1), (1 << 30) + (103 << 20));
        assert_eq!(with_reserve(100 << 30), 101 << 30);
        assert_eq!(
            (shown(1), shown(500), shown(11 << 10), shown((10 << 20) + 1)),
            ("1 byte".into(), "500 bytes".into(), "11 KiB".into(), "11 MiB".into())
        );
    }
}
