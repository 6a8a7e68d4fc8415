//! The parser and the normal form of host names. The whole proxy uses this strict parser, so that it interprets a host in the same way
//! everywhere.

use std::{borrow::Cow, net::Ipv6Addr};

/// The parts of a `Host` header or of the authority of an absolute URI.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Authority<'a> {
    /// The host in lower case, without the port and a trailing dot. An IPv6 address is in its shortest form and in brackets.
    pub host: Cow<'a, str>,
    /// The port; `None` if the text has no port.
    pub port: Option<u16>,
}

/// Parses one host with an optional port. Returns `None` if `text` is anything else.
pub(super) fn parse(text: &str) -> Option<Authority<'_>> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        let port = if rest.is_empty() { None } else { Some(port(rest.strip_prefix(':')?)?) };
        return Some(Authority { host: Cow::Owned(format!("[{address}]")), port });
    }
    let (name, port) = match text.split_once(':') {
        Some((name, digits)) => (name, Some(port(digits)?)),
        None => (text, None),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_' || c == b'.';
    if !(1..=253).contains(&name.len())
        || !name.bytes().all(plain)
        || name.split('.').any(|label| !(1..=63).contains(&label.len()))
    {
        return None;
    }
    let host =
        if name.bytes().any(|c| c.is_ascii_uppercase()) { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) };
    Some(Authority { host, port })
}

/// Returns the normal form of a host, which is the key in the table of routes. Returns `None` if the host is invalid.
pub(super) fn normalise(text: &str) -> Option<Cow<'_, str>> {
    parse(text).map(|authority| authority.host)
}

fn port(digits: &str) -> Option<u16> {
    // The digits are checked because `u16::from_str` accepts "+80".
    if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) { None } else { digits.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_has_one_normal_form() {
        for same in ["shop.localhost", "SHOP.localhost", "Shop.LocalHost.", "shop.localhost:8080", "shop.localhost.:80"] {
            assert_eq!(normalise(same).as_deref(), Some("shop.localhost"), "{same}");
        }
        for same in ["[::1]", "[::1]:80", "[0:0:0:0:0:0:0:1]", "[0000::0001]:65535"] {
            assert_eq!(normalise(same).as_deref(), Some("[::1]"), "{same}");
        }
        assert_eq!(parse("127.0.0.1:81"), Some(Authority { host: "127.0.0.1".into(), port: Some(81) }));
    }

    #[test]
    fn ambiguous_host_is_rejected() {
        let long = "a".repeat(64);
        for bad in [
            "",
            ".",
            ":80",
            "a:",
            "a:b",
            "a:80:80",
            "a:+80",
            "a:65536",
            "a,b",
            "a, b",
            "a b",
            "a..b",
            ".a",
            "a/b",
            "u@a",
            "a\0",
            "a%2e",
            "[::1",
            "::1",
            "[::1]80",
            "[::1]:",
            "[a]",
            "[fe80::1%eth0]",
            "gr\u{fc}n",
            &long,
        ] {
            assert_eq!(normalise(bad), None, "{bad:?}");
        }
    }
}
