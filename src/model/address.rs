//! The parts that the addresses of remotes and of stores of copies have in common. An address may contain a password by mistake, so no message
//! repeats a part of an address.

use std::net::Ipv6Addr;

/// The default port of ssh and sftp.
const PORT: u16 = 22;

/// The part of an address that names a server, and a user on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    /// The user name, if the address has one.
    pub login: Option<String>,
    /// The host name or IP address; an IPv6 address has no brackets.
    pub host: String,
    /// The port; default 22.
    pub port: u16,
}

fn is_word(text: &str) -> bool {
    let is_good = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    !text.is_empty() && !text.starts_with('-') && text.bytes().all(is_good)
}

/// Returns true if a part of a path is `.` or `..`.
pub fn has_dots(path: &str) -> bool {
    path.split('/').any(|part| part == "." || part == "..")
}

impl ServerAddress {
    /// Parses `[USER@]HOST[:PORT]`. An IPv6 address must be in brackets.
    pub fn parse(text: &str) -> Result<ServerAddress, String> {
        let (login, host) = match text.rsplit_once('@') {
            Some((login, host)) => (Some(login), host),
            None => (None, text),
        };
        if !login.is_none_or(is_word) {
            return Err(String::from(
                "the user name has other characters than A-Z a-z 0-9 . _ -; a password is not part of an address",
            ));
        }
        let (host, port) = match host.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']').ok_or("a closing bracket is missing")?;
                host.parse::<Ipv6Addr>().map_err(|_| String::from("the text in brackets is not an IPv6 address"))?;
                (host, port)
            }
            None => {
                let (host, port) = host.split_at_checked(host.find(':').unwrap_or(host.len())).unwrap_or((host, ""));
                if !is_word(host) {
                    return Err(String::from("the host has other characters than A-Z a-z 0-9 . _ -"));
                }
                (host, port)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => PORT,
            Some(digits) => digits.parse().ok().filter(|port| *port > 0).ok_or("the port is not a number from 1 to 65535")?,
            None => return Err(String::from("other text follows the host")),
        };
        Ok(ServerAddress { login: login.map(str::to_owned), host: host.to_owned(), port })
    }
}

/// Parses `BUCKET[/PREFIX]`, and returns the name of the bucket and the prefix without leading and trailing slashes.
pub fn bucket_and_prefix(text: &str) -> Result<(&str, &str), String> {
    let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
    let is_good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-".contains(&c);
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_good) {
        return Err(String::from("the name of a bucket must have 3 to 63 lower-case letters, digits, dots and dashes"));
    }
    let prefix = prefix.trim_matches('/');
    if has_dots(prefix) || (!prefix.is_empty() && prefix.split('/').any(str::is_empty)) {
        return Err(String::from("the prefix contains an empty part, . or .."));
    }
    Ok((bucket, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_address_is_read_and_bad_parts_are_named_without_their_text() {
        let parsed = |text: &str| ServerAddress::parse(text).map(|found| (found.login, found.host, found.port));
        assert_eq!(parsed("me@host:2222"), Ok((Some("me".into()), "host".into(), 2222)));
        assert_eq!(parsed("[::1]"), Ok((None, "::1".into(), 22)));
        for bad in ["me:hunter2@host", "-o@host", "@host", "", "-host", "host:0", "host:x", "[::1", "[hunter2]:1", "[::1]x"] {
            let why = parsed(bad).unwrap_err();
            assert!(!why.contains("hunter2"), "{bad}: {why}");
        }
    }

    #[test]
    fn bucket_and_prefix_are_separated() {
        assert_eq!(bucket_and_prefix("bucket"), Ok(("bucket", "")));
        assert_eq!(bucket_and_prefix("bucket/a/b/"), Ok(("bucket", "a/b")));
        for bad in ["B/a", "ab", "bucket/a//b", "bucket/../a", "bucket/."] {
            assert!(bucket_and_prefix(bad).is_err(), "{bad}");
        }
    }
}
