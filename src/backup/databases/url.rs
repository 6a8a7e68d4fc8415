//! The URL of a database. The URL contains a password, so its `Debug` shows only the scheme.

use std::{collections::BTreeMap, fmt};

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::backup::{BackupFailure, FailureKind};

/// The end of the name of the scratch database of a drill.
pub(super) const SCRATCH_SUFFIX: &str = "_larder_drill";

/// The parameters of a URL that name the database instead of the path.
const DATABASE_PARAMETERS: [&str; 3] = ["dbname", "database", "db"];

/// The URL of a database server. The value exists only in memory and in the pipe to a worker.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.0.split_once(':').map_or("", |(scheme, _)| scheme);
        f.debug_tuple("DatabaseUrl").field(&format_args!("{scheme}:…")).finish()
    }
}

/// The parts of a database URL, with percent escapes decoded. An absent part is `None`.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseAddress {
    /// The scheme in lower case, such as `postgres`.
    pub scheme: String,
    /// The user of the database server.
    pub user: Option<String>,
    /// The password, which is never part of a message.
    pub password: Option<String>,
    /// The host name, IP address without brackets, or directory of a socket.
    pub host: Option<String>,
    /// The TCP port.
    pub port: Option<u16>,
    /// The name of the database: the path without its first slash.
    pub database: Option<String>,
    /// The parameters after `?`.
    pub parameters: BTreeMap<String, String>,
}

impl fmt::Debug for DatabaseAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseAddress").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl DatabaseUrl {
    /// Wraps a URL. The parts are checked by [`DatabaseUrl::address`].
    pub fn new(text: impl Into<String>) -> DatabaseUrl {
        DatabaseUrl(text.into())
    }

    /// Returns the text before the first `:`.
    pub fn scheme(&self) -> &str {
        self.0.split_once(':').map_or("", |(scheme, _)| scheme)
    }

    /// Returns the whole URL. The caller must not put the text into a message, a file or the arguments of a program.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns true if a text contains the password of the URL, with or without its escapes.
    pub fn reveals_password(&self, text: &str) -> bool {
        let raw = Url::parse(&self.0).ok().and_then(|url| url.password().map(str::to_owned)).unwrap_or_default();
        let decoded = percent_decode_str(&raw).decode_utf8_lossy();
        // A very short text occurs in values by chance.
        [raw.as_str(), &decoded].into_iter().any(|password| password.len() >= 6 && text.contains(password))
    }

    /// Returns the URL of the database `name` on the same server.
    pub fn with_database(&self, name: &str) -> Result<DatabaseUrl, BackupFailure> {
        let wrong = |error| BackupFailure::new(FailureKind::Refused, format!("cannot read the URL of the database: {error}"));
        let mut url = Url::parse(&self.0).map_err(wrong)?;
        let keeps = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        let path: String =
            name.bytes().map(|byte| if keeps(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect();
        url.set_path(&format!("/{path}"));
        let pairs: Vec<_> = url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        // A parameter with a name of a database would lead the application to the live database.
        let kept: Vec<_> = pairs.iter().filter(|(name, _)| !DATABASE_PARAMETERS.contains(&name.as_str())).collect();
        if kept.is_empty() {
            url.set_query(None);
        } else if kept.len() < pairs.len() {
            url.query_pairs_mut().clear().extend_pairs(kept);
        }
        Ok(DatabaseUrl::new(url.as_str()))
    }

    /// Returns the parts. The message of the error does not contain the URL.
    pub fn address(&self) -> Result<DatabaseAddress, BackupFailure> {
        let url = Url::parse(&self.0).map_err(|error| wrong(&error.to_string()))?;
        let decode = |text: &str| match percent_decode_str(text).decode_utf8() {
            Ok(text) if !text.contains('\0') => Ok(text.into_owned()),
            _ => Err(wrong("a percent escape is not valid UTF-8")),
        };
        let part = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(decode).transpose();
        let host = url.host_str().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
        let parameters = url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        Ok(DatabaseAddress {
            scheme: url.scheme().to_owned(),
            user: part(Some(url.username()))?,
            password: part(url.password())?,
            host: part(host)?,
            port: url.port(),
            database: part(Some(url.path().trim_start_matches('/')))?,
            parameters,
        })
    }
}

/// Returns the failure of a URL that cannot be used.
fn wrong(why: &str) -> BackupFailure {
    BackupFailure {
        hint: Some(String::from(
            "write the URL as SCHEME://USER:PASSWORD@HOST:PORT/DATABASE, with percent escapes in the password",
        )),
        ..BackupFailure::new(FailureKind::Refused, format!("cannot read the URL of the database: {why}"))
    }
}

impl DatabaseAddress {
    /// Returns the server for messages, as `HOST:PORT`.
    pub fn server(&self, default_port: u16) -> String {
        let (host, port) = (self.host.as_deref().unwrap_or("localhost"), self.port.unwrap_or(default_port));
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_with_escapes_and_parameters_is_split() {
        let url = DatabaseUrl::new("postgres://ann:p%40ss%2Fword@[::1]:5433/shop%20db?sslmode=require&x=");
        let address = url.address().unwrap();
        assert_eq!((address.user.as_deref(), address.password.as_deref()), (Some("ann"), Some("p@ss/word")));
        assert_eq!(
            (address.host.as_deref(), address.port, address.database.as_deref()),
            (Some("::1"), Some(5433), Some("shop db"))
        );
        assert_eq!(address.parameters.get("sslmode").map(String::as_str), Some("require"));
        assert_eq!(address.server(5432), "[::1]:5433");
        let short = DatabaseUrl::new("redis://localhost").address().unwrap();
        assert_eq!((short.user, short.password, short.port, short.database), (None, None, None, None));
    }

    #[test]
    fn url_of_a_scratch_database_names_only_the_scratch_database() {
        let of = |url: &str, name: &str| DatabaseUrl::new(url).with_database(name).unwrap().expose().to_owned();
        let live = "postgres://u:p%40s@h:1/shop?sslmode=require";
        assert_eq!(of(live, "shop_larder_drill"), "postgres://u:p%40s@h:1/shop_larder_drill?sslmode=require");
        assert_eq!(
            of("postgresql+psycopg://u:p@h/x?dbname=shop&sslmode=off", "a b"),
            "postgresql+psycopg://u:p@h/a%20b?sslmode=off"
        );
        assert_eq!(of("redis://:p@h:1/0?db=3", "15"), "redis://:p@h:1/15");
        assert_eq!(of("redis://h", "15"), "redis://h/15");
    }

    #[test]
    fn password_is_in_no_text_about_a_url() {
        let url = DatabaseUrl::new("postgres://ann:secret@host:notaport/db");
        let shown = format!("{url:?} {:?}", url.address());
        assert!(!shown.contains("secret") && shown.contains("postgres"), "{shown}");
        let good = DatabaseUrl::new("postgres://ann:secret@host/db").address().unwrap();
        assert!(!format!("{good:?}").contains("secret"));
    }
}
