//! Parses and formats the addresses of remotes.

use std::{fmt, str::FromStr};

use crate::model::{EnvironmentName, ProjectName, ServerAddress, bucket_and_prefix, has_dots};

/// The maximum length of an address, in bytes.
const MAX_LENGTH: usize = 1000;

/// The validated address of a store of deliverables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A larder server, over ssh.
    Ssh {
        /// The user name; default `larder`.
        login: String,
        /// The host name or IP address; an IPv6 address has no brackets.
        host: String,
        /// The port; default 22.
        port: u16,
        /// The name of the project on the remote server.
        project: ProjectName,
        /// The environment of the project; `None` for all environments.
        environment: Option<EnvironmentName>,
    },
    /// The absolute path of a directory on this machine.
    Directory(String),
    /// The URL of a directory on a web server, without the project's name.
    Web(String),
    /// A prefix in an S3 bucket.
    Bucket {
        /// The name of the bucket.
        bucket: String,
        /// The prefix, without leading and trailing slashes. An empty prefix means the whole bucket.
        prefix: String,
    },
}

/// The reason why an address is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot use the address {given:?}: {why} (expected ssh://larder@HOST:PORT/PROJECT[/ENVIRONMENT], file:///DIRECTORY, \
     https://HOST/PATH or s3://BUCKET/PREFIX)"
)]
pub struct AddressError {
    given: String,
    why: String,
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Address, AddressError> {
        parse(text).map_err(|why| AddressError { given: text.chars().take(100).collect(), why })
    }
}

fn parse(text: &str) -> Result<Address, String> {
    if text.len() > MAX_LENGTH || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(String::from("it contains white space or control characters, or is too long"));
    }
    let (scheme, rest) = text.split_once("://").ok_or("it has no scheme")?;
    match scheme {
        "ssh" => ssh(rest),
        "file" => {
            let path = rest.strip_prefix("localhost").unwrap_or(rest);
            if path.starts_with('/') && !has_dots(path) {
                Ok(Address::Directory(path.to_owned()))
            } else {
                Err(String::from("the path of the directory is not absolute, or contains . or .."))
            }
        }
        "http" | "https" => {
            let authority = rest.split('/').next().unwrap_or_default();
            if authority.is_empty() || authority.contains('@') || rest.contains(['?', '#']) {
                return Err(String::from("a web address must be a host and a path, without user, password, query or fragment"));
            }
            Ok(Address::Web(text.trim_end_matches('/').to_owned()))
        }
        "s3" => {
            let (bucket, prefix) = bucket_and_prefix(rest)?;
            Ok(Address::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
        }
        other => Err(format!("it has the unknown scheme {other}")),
    }
}

fn ssh(rest: &str) -> Result<Address, String> {
    let (authority, path) = rest.split_once('/').ok_or("it names no project")?;
    let ServerAddress { login, host, port } = ServerAddress::parse(authority)?;
    let login = login.unwrap_or_else(|| String::from("larder"));
    let path = path.strip_suffix('/').unwrap_or(path);
    let (project, environment) = match path.split_once('/') {
        Some((project, environment)) => (project, Some(environment)),
        None => (path, None),
    };
    let project = project.strip_suffix(".git").unwrap_or(project).parse().map_err(|error| format!("{error}"))?;
    let environment = environment.map(str::parse).transpose().map_err(|error| format!("{error}"))?;
    Ok(Address::Ssh { login, host, port, project, environment })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ssh { login, host, port, project, environment } => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                write!(f, "ssh://{login}@{host}:{port}/{project}")?;
                environment.as_ref().map_or(Ok(()), |environment| write!(f, "/{environment}"))
            }
            Address::Directory(path) => write!(f, "file://{path}"),
            Address::Web(url) => f.write_str(url),
            Address::Bucket { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Address::Bucket { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn address_has_one_normal_form() {
        for (given, shown) in [
            ("ssh://larder@host:2222/shop/staging", "ssh://larder@host:2222/shop/staging"),
            ("ssh://host/shop", "ssh://larder@host:22/shop"),
            ("ssh://me@[::1]:22/shop.git/", "ssh://me@[::1]:22/shop"),
            ("file:///srv/deliverables", "file:///srv/deliverables"),
            ("https://example.com/shared/", "https://example.com/shared"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("s3://bucket", "s3://bucket"),
        ] {
            let address: Address = given.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse(), Ok(address));
        }
    }

    #[test]
    fn invalid_address_is_rejected_with_the_valid_forms() {
        for bad in [
            "",
            "host:shop",
            "ssh://host",
            "ssh://-oProxyCommand=x/shop",
            "ssh://host:0/shop",
            "ssh://host:99999/shop",
            "ssh://a b@host/shop",
            "ssh://host/../etc",
            "ssh://host/shop/staging/more",
            "file://relative",
            "file:///a/../b",
            "https://user:secret@host/x",
            "https://host/x?y",
            "s3://Bucket/x",
            "s3://bucket/a/../b",
            "ftp://host/x",
        ] {
            let error = bad.parse::<Address>().expect_err(bad).to_string();
            assert!(error.contains("s3://BUCKET"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn parsed_address_round_trips(text in "(ssh|file|s3|http)://[ -~]{0,40}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
