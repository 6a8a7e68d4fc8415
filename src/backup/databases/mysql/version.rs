//! Versions of MySQL and MariaDB, and the dump program of each.

/// One of the two products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    MySql,
    MariaDb,
}

impl Family {
    /// Returns the name in messages and dumps.
    pub fn title(self) -> &'static str {
        match self {
            Family::MySql => "MySQL",
            Family::MariaDb => "MariaDB",
        }
    }

    /// Returns the possible names of the dump program, the preferred name first.
    pub fn dump_programs(self) -> &'static [&'static str] {
        match self {
            Family::MySql => &["mysqldump"],
            Family::MariaDb => &["mariadb-dump", "mysqldump"],
        }
    }

    /// Returns the arguments of all dumps: one consistent snapshot, and no statement that needs an administrator.
    pub fn dump_arguments(self) -> &'static [&'static str] {
        match self {
            Family::MariaDb => &["--single-transaction", "--quick", "--hex-blob", "--skip-add-locks", "--no-tablespaces"],
            Family::MySql => &[
                "--single-transaction",
                "--quick",
                "--hex-blob",
                "--skip-add-locks",
                "--no-tablespaces",
                "--set-gtid-purged=OFF",
                "--column-statistics=0",
            ],
        }
    }
}

/// The version of a server or a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub family: Family,
    pub major: u32,
    pub minor: u32,
    /// The version as the server or the program states it.
    pub text: String,
}

impl Version {
    /// Reads the answer to `SELECT VERSION()`, such as `10.11.6-MariaDB-log` or `8.0.36`.
    pub fn of_server(text: &str) -> Option<Version> {
        // Some MariaDB servers put `5.5.5-` before their version, for clients that expect MySQL.
        Version::of(text.strip_prefix("5.5.5-").filter(|rest| rest.contains("MariaDB")).unwrap_or(text))
    }

    /// Reads the answer of a program to `--version`.
    pub fn of_tool(text: &str) -> Option<Version> {
        // The text can also contain a version of the program alone, such as `10.19`. This version has only two numbers.
        let words = text.split([' ', ',', '\n']).filter(|word| word.split('.').count() >= 3);
        words.filter_map(Version::of).next()
    }

    fn of(text: &str) -> Option<Version> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        let (major, minor) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        let family = if text.contains("MariaDB") { Family::MariaDb } else { Family::MySql };
        Some(Version { family, major, minor, text: text.to_owned() })
    }

    /// Returns the reason why a dump program of this version cannot dump a server, or `None` if it can.
    pub fn unfit_for(&self, server: &Version) -> Option<String> {
        if self.family == server.family && (self.major, self.minor) >= (server.major, server.minor) {
            return None;
        }
        let describe = |version: &Version| format!("{} {}", version.family.title(), version.text);
        Some(format!(
            "the dump program has the version {} (expected {} {}.{} or newer, like the server)",
            describe(self),
            server.family.title(),
            server.major,
            server.minor
        ))
    }

    /// Returns true if a dump of the server `dumped` can be restored into this server.
    pub fn accepts(&self, dumped: &Version) -> bool {
        self.family == dumped.family && (self.major, self.minor) >= (dumped.major, dumped.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_servers_and_programs_are_read() {
        let numbers = |version: Option<Version>| version.map(|version| (version.family, version.major, version.minor));
        for (text, expected) in [
            ("10.11.19-MariaDB-0+deb12u1", (Family::MariaDb, 10, 11)),
            ("5.5.5-10.3.8-MariaDB", (Family::MariaDb, 10, 3)),
            ("8.0.36-0ubuntu0.22.04.1", (Family::MySql, 8, 0)),
        ] {
            assert_eq!(numbers(Version::of_server(text)), Some(expected), "{text}");
        }
        for (text, expected) in [
            ("mariadb-dump  Ver 10.19 Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)\n", (Family::MariaDb, 10, 11)),
            ("mariadb-dump from 11.4.2-MariaDB, client 10.19 for debian-linux-gnu (x86_64)", (Family::MariaDb, 11, 4)),
            ("mysqldump  Ver 8.4.0 for Linux on x86_64 (MySQL Community Server - GPL)", (Family::MySql, 8, 4)),
        ] {
            assert_eq!(numbers(Version::of_tool(text)), Some(expected), "{text}");
        }
        assert_eq!(Version::of_server("unknown"), None);
    }

    #[test]
    fn older_program_and_program_of_the_other_product_are_refused() {
        let version = |text: &str| Version::of_server(text).unwrap();
        let server = version("10.11.3-MariaDB");
        for (tool, fits) in [("10.11.1-MariaDB", true), ("11.4.1-MariaDB", true), ("10.6.9-MariaDB", false), ("11.0.0", false)] {
            assert_eq!(version(tool).unfit_for(&server).is_none(), fits, "{tool}");
            assert_eq!(version(tool).accepts(&server), fits, "{tool}");
        }
    }
}
