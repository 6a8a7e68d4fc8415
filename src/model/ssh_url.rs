//! The address of a larder server, as clients write it.

use std::{fmt, str::FromStr};

use super::{ProjectName, text_form};

/// The maximum length of an address, in bytes.
const MAX_URL: usize = 512;
/// The maximum length of a login name, in bytes.
const MAX_LOGIN: usize = 64;
/// The maximum length of a host name, in bytes (RFC 1035, section 2.3.4: 253 characters of text).
const MAX_HOST: usize = 253;
/// The maximum length of a refused address in its error, in characters.
const MAX_SHOWN: usize = 120;

/// An address of the form `ssh://[LOGIN@]HOST[:PORT][/PROJECT[.git]]`.
///
/// The address may originate in a repository of a stranger, and its parts become arguments of `ssh`, which expands them in the user's
/// configuration, for example in `ProxyCommand`. Therefore the parts consist only of characters that neither an option nor a shell needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SshUrl {
    login: Option<String>,
    host: String,
    port: Option<u16>,
    project: Option<ProjectName>,
}

text_form!(SshUrl, SshUrlError);

/// The reason why a text is not an [`SshUrl`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} {why} (expected an address such as ssh://larder@HOST:PORT/PROJECT)")]
pub struct SshUrlError {
    /// The address without a password.
    given: String,
    why: &'static str,
}

impl SshUrlError {
    /// Returns the refused address, without a password.
    pub fn given(&self) -> &str {
        &self.given
    }
}

impl SshUrl {
    /// Returns the login name and the host, as `ssh` expects them: without the brackets of an IPv6 address. The text never begins with `-`.
    pub fn destination(&self) -> String {
        match &self.login {
            Some(login) => format!("{login}@{}", self.host),
            None => self.host.clone(),
        }
    }

    /// Returns the port. If the address has no port, `ssh` takes the port from the user's configuration, as git does.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns the host name, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the project, if the address has a path.
    pub fn project(&self) -> Option<&ProjectName> {
        self.project.as_ref()
    }

    /// Returns the host with its port, for messages and as the name of the server.
    pub fn server(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        self.port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
    }

    /// Returns the address of a project on the same server.
    #[must_use]
    pub fn of_project(&self, project: &ProjectName) -> SshUrl {
        SshUrl { project: Some(project.clone()), ..self.clone() }
    }
}

impl fmt::Display for SshUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh://")?;
        if let Some(login) = &self.login {
            write!(f, "{login}@")?;
        }
        f.write_str(&self.server())?;
        match &self.project {
            Some(project) => write!(f, "/{project}"),
            None => Ok(()),
        }
    }
}

impl FromStr for SshUrl {
    type Err = SshUrlError;

    fn from_str(text: &str) -> Result<SshUrl, SshUrlError> {
        let refused = |why: &'static str| SshUrlError { given: shown(text), why };
        if text.len() > MAX_URL {
            return Err(refused("is too long"));
        }
        let rest = text.strip_prefix("ssh://").ok_or_else(|| refused("is not an ssh address"))?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, host) = authority.rsplit_once('@').map_or((None, authority), |(login, host)| (Some(login), host));
        let is_word = |text: &str, limit: usize| {
            let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
            (1..=limit).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with(['-', '.'])
        };
        match login {
            Some(login) if login.contains(':') => return Err(refused("contains a password")),
            Some(login) if !is_word(login, MAX_LOGIN) => return Err(refused("has an unusable login name")),
            _ => {}
        }
        let (host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, rest)) => {
                address.parse::<std::net::Ipv6Addr>().map_err(|_| refused("has an unusable host name"))?;
                let port = rest.strip_prefix(':');
                if port.is_none() && !rest.is_empty() {
                    return Err(refused("has an unusable host name"));
                }
                (address, port)
            }
            None => {
                let (host, port) = host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port)));
                if !is_word(host, MAX_HOST) {
                    return Err(refused("has an unusable host name"));
                }
                (host, port)
            }
        };
        let port = match port {
            None => None,
            Some(digits) if digits.bytes().all(|c| c.is_ascii_digit()) => {
                let port = digits.parse().ok().filter(|port| *port != 0);
                Some(port.ok_or_else(|| refused("has an unusable port"))?)
            }
            Some(_) => return Err(refused("has an unusable port")),
        };
        let path = path.strip_suffix('/').unwrap_or(path);
        let project = match path.strip_suffix(".git").unwrap_or(path) {
            "" if path.is_empty() => None,
            project => Some(project.parse().map_err(|_| refused("has a path that is not the name of a project"))?),
        };
        Ok(SshUrl { login: login.map(str::to_owned), host: host.to_owned(), port, project })
    }
}

/// Returns an address for a message: short, and without the login name if it may contain a password.
fn shown(text: &str) -> String {
    let shown = match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, login)), Some((_, rest))) if login.split('@').next().is_some_and(|login| login.contains(':')) => {
            format!("{scheme}://...@{rest}")
        }
        _ => text.to_owned(),
    };
    shown.chars().take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn url(text: &str) -> SshUrl {
        text.parse().unwrap()
    }

    #[test]
    fn ssh_url_is_split_into_its_parts() {
        for (text, destination, port, project) in [
            ("ssh://larder@host:2222/shop", "larder@host", Some(2222), Some("shop")),
            ("ssh://larder@host/shop.git", "larder@host", None, Some("shop")),
            ("ssh://host/shop/", "host", None, Some("shop")),
            ("ssh://web_1.example.com:22", "web_1.example.com", Some(22), None),
            ("ssh://larder@[2001:db8::1]:2222/shop", "larder@2001:db8::1", Some(2222), Some("shop")),
            ("ssh://[::1]/", "::1", None, None),
        ] {
            let url = url(text);
            let project = project.map(|name| name.parse::<ProjectName>().unwrap());
            assert_eq!((url.destination().as_str(), url.port(), url.project()), (destination, port, project.as_ref()), "{text}");
            assert_eq!(url.to_string().parse::<SshUrl>().unwrap(), url, "{text}");
        }
        assert_eq!(url("ssh://larder@[::1]:22").of_project(&"shop".parse().unwrap()).to_string(), "ssh://larder@[::1]:22/shop");
    }

    #[test]
    fn hostile_ssh_url_is_refused_without_its_password() {
        for text in [
            "https://host/shop",
            "ext::sh -c id",
            "host:shop",
            "ssh:///shop",
            "ssh://",
            "ssh://-oProxyCommand=id/shop",
            "ssh://-oProxyCommand=id@host/shop",
            "ssh://larder@-oProxyCommand=id/shop",
            "ssh://larder@/shop",
            "ssh://[-x]/shop",
            "ssh://[::1]x/shop",
            "ssh://[::1/shop",
            "ssh://ho st/shop",
            "ssh://host$(id)/shop",
            "ssh://`id`/shop",
            "ssh://host;id/shop",
            "ssh://la'rder@host/shop",
            "ssh://larder@host%h/shop",
            "ssh://host\u{1b}[2J/shop",
            "ssh://host\n/shop",
            "ssh://ho\u{455}t/shop",
            "ssh://host:/shop",
            "ssh://host:0/shop",
            "ssh://host:65536/shop",
            "ssh://host:+22/shop",
            "ssh://host:22:23/shop",
            "ssh://host/shop/staging",
            "ssh://host/../shop",
            "ssh://host/-x",
            "ssh://host//shop",
            "ssh://host/.git",
            "ssh://host/shop?x",
            "ssh://host/shop#x",
            "SSH://host/shop",
        ] {
            let error = text.parse::<SshUrl>().expect_err(text).to_string();
            assert!(!error.chars().any(char::is_control) && error.contains("expected"), "{error}");
        }
        for text in ["ssh://larder:hunter2@host/shop", "https://larder:hunter2@host/shop"] {
            let error = text.parse::<SshUrl>().expect_err(text).to_string();
            assert!(!error.contains("hunter2") && error.contains("host/shop"), "{error}");
        }
        assert!(format!("ssh://{}/shop", "a".repeat(600)).parse::<SshUrl>().is_err());
    }

    proptest! {
        #[test]
        fn accepted_destination_is_no_option_and_needs_no_quotes(tail in "[ -~]{0,40}") {
            if let Ok(url) = format!("ssh://{tail}").parse::<SshUrl>() {
                let destination = url.destination();
                prop_assert!(!destination.starts_with('-') && !url.host().starts_with('-'));
                prop_assert!(destination.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-@:".contains(&c)), "{destination}");
            }
        }
    }
}
