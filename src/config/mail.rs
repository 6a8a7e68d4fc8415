//! The section `mail:` of the server file, and the section `notify:` of the recipe.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    keys::{
        self,
        Fallback::{Says, Unstated},
        KeyRow,
    },
    reader::ConfigReader,
    value::Domain,
    webhook::{self, WebhookTarget},
    yaml::Node,
};
use crate::model::{MailAddress, NotificationTopic};

/// The maximum number of recipients of one list.
const MAX_RECIPIENTS: usize = 50;

/// The maximum length of the user name for the mail server, in bytes.
const MAX_USER: usize = 254;

/// The port for the submission of mail (RFC 6409), and the port for submission over TLS (RFC 8314).
const SUBMISSION: u16 = 587;
const SUBMISSION_TLS: u16 = 465;

/// The way in which this server sends mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailConfig {
    /// The mail server, or the local program.
    pub transport: MailTransport,
    /// The user name for the mail server.
    pub user: Option<String>,
    /// The file with the password of the user.
    pub password_file: Option<PathBuf>,
    /// The sender of all mails.
    pub from: MailAddress,
    /// The administrators of the server.
    pub admins: Vec<MailAddress>,
}

/// A mail server, or the local program that accepts mails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MailTransport {
    /// A mail server.
    Smtp {
        /// The host name or IP address; an IPv6 address has no brackets.
        host: String,
        /// The port.
        port: u16,
        /// True for TLS from the first byte on. Otherwise STARTTLS is required, unless the host is loopback.
        tls: bool,
    },
    /// The program `/usr/sbin/sendmail`.
    Sendmail,
}

impl MailTransport {
    /// Returns true if the mails do not leave this machine on their way to the mail server.
    pub fn is_loopback(&self) -> bool {
        match self {
            MailTransport::Smtp { host, .. } => {
                host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
            MailTransport::Sendmail => true,
        }
    }
}

/// The values of the section `mail:` so far.
#[derive(Default)]
pub(super) struct MailDraft {
    transport: Option<MailTransport>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    from: Option<MailAddress>,
    admins: Vec<MailAddress>,
}

/// The keys of the section `mail:`.
pub(super) const MAIL_KEYS: &[KeyRow<MailDraft>] = &[
    KeyRow::value(
        "smtp",
        "The mail server: smtp://HOST:PORT, smtps://HOST:PORT for TLS from the first byte on, or sendmail for the program /usr/sbin/sendmail. With smtp://, STARTTLS is required, unless the host is loopback.",
        Unstated,
        "smtp://mail.example.com:587",
        |reader, node, key, mail| {
            mail.transport = reader.value(node, key, "smtp://HOST:PORT, smtps://HOST:PORT or sendmail", transport);
        },
    ),
    KeyRow::value("user", "The user name for the mail server.", Says("no login"), "larder", |reader, node, key, mail| {
        mail.user = reader.value(node, key, "a user name", |text| {
            let fits = !text.is_empty() && text.len() <= MAX_USER && !text.chars().any(char::is_control);
            if fits { Ok(text.to_owned()) } else { Err(String::from("the value is empty, too long, or has control characters")) }
        });
    }),
    KeyRow::value(
        "password_file",
        "The file with the password of the user. The file must belong to larder's user and have mode 0600.",
        Says("no login"),
        "/etc/larder/mail.password",
        |reader, node, key, mail| {
            mail.password_file = reader.value(node, key, "an absolute path such as /etc/larder/mail.password", |text| {
                // The value may be a password by mistake, so the message does not repeat the value.
                let path = PathBuf::from(text);
                if path.is_absolute() { Ok(path) } else { Err(String::from("the value is not an absolute path")) }
            });
        },
    ),
    KeyRow::value("from", "The sender of all mails.", Unstated, "larder@example.com", |reader, node, key, mail| {
        mail.from = address(reader, node, key);
    }),
    KeyRow::value(
        "admins",
        "The administrators of this server. They get mails about the server, and about environments that need an operator.",
        Says("none"),
        "\n- admin@example.com",
        |reader, node, key, mail| mail.admins = addresses(reader, node, key),
    ),
];

/// Reads the section `mail:`.
pub(super) fn read_mail(reader: &mut ConfigReader, node: &Node, key: &str) -> Option<MailConfig> {
    let mut draft = MailDraft::default();
    let example = "{smtp: \"smtp://mail.example.com:587\", from: larder@example.com}";
    keys::read_section(reader, node, key, example, MAIL_KEYS, &mut draft);
    for name in ["smtp", "from"] {
        if node.child(name).is_none() {
            reader.problem(node, format!("{key}.{name} is missing")).hint = Some(format!("write, for example, {key}: {example}"));
        }
    }
    if let (Some(_), None) | (None, Some(_)) = (&draft.user, &draft.password_file) {
        reader.problem(node, format!("only one of {key}.user and {key}.password_file is given")).hint =
            Some(String::from("give both of them, or none"));
    }
    let MailDraft { transport, user, password_file, from, admins } = draft;
    Some(MailConfig { transport: transport?, user, password_file, from: from?, admins })
}

fn transport(text: &str) -> Result<MailTransport, String> {
    if text == "sendmail" {
        return Ok(MailTransport::Sendmail);
    }
    // The value may contain a password by mistake, so no message repeats the value.
    let (scheme, rest) = text.split_once("://").ok_or("the value has no scheme")?;
    let (tls, default) = match scheme {
        "smtp" => (false, SUBMISSION),
        "smtps" => (true, SUBMISSION_TLS),
        _ => return Err(String::from("the scheme is unknown")),
    };
    if rest.contains('@') {
        return Err(String::from("the address has a user; use the keys user and password_file"));
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, port.strip_prefix(':')),
        Some(_) => return Err(String::from("the text in brackets is not an IPv6 address")),
        None => match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    if host.parse::<std::net::IpAddr>().is_err() {
        host.parse::<Domain>().map_err(|_| "the host is not a host name or an IP address")?;
    }
    let port = port.map_or(Ok(default), str::parse).ok().filter(|port| *port != 0).ok_or("the port is not a number")?;
    Ok(MailTransport::Smtp { host: host.to_owned(), port, tls })
}

fn address(reader: &mut ConfigReader, node: &Node, key: &str) -> Option<MailAddress> {
    reader.value(node, key, "a mail address such as ops@example.com", str::parse)
}

fn addresses(reader: &mut ConfigReader, node: &Node, key: &str) -> Vec<MailAddress> {
    let nodes = reader.list_up_to(node, key, "[ops@example.com]", MAX_RECIPIENTS);
    let mut found = Vec::new();
    for node in nodes {
        if let Some(address) = address(reader, node, key)
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// The recipients of an environment's notifications.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NotifySettings {
    /// The mail addresses.
    pub mail: Vec<MailAddress>,
    /// The topics; `None` for all topics.
    pub events: Option<Vec<NotificationTopic>>,
    /// The receivers of webhooks.
    pub webhooks: Vec<WebhookTarget>,
}

impl NotifySettings {
    /// Returns true if the recipients get notifications of `topic`. A notification without a topic is for all recipients.
    pub fn wants(&self, topic: Option<NotificationTopic>) -> bool {
        match (&self.events, topic) {
            (None, _) | (_, None) => true,
            (Some(events), Some(topic)) => events.contains(&topic),
        }
    }
}

/// The keys of the section `notify:`.
pub(super) const NOTIFY_KEYS: &[KeyRow<NotifySettings>] = &[
    KeyRow::value(
        "mail",
        "The mail addresses that get a mail for each event.",
        Says("none"),
        "\n- team@example.com",
        |reader, node, key, notify| notify.mail = addresses(reader, node, key),
    ),
    KeyRow::value(
        "events",
        "The events: deployed, failed, rolled-back, stuck, backup, site, approval, freeze, summary.",
        Says("all events"),
        "[deployed, failed, rolled-back, stuck, backup, site, approval, freeze, summary]",
        |reader, node, key, notify| {
            let nodes = reader.bounded(node, key, "[failed, stuck]");
            let topics = nodes.iter().filter_map(|node| reader.choice(node, key, &NotificationTopic::WORDS)).collect();
            notify.events = Some(topics);
        },
    ),
    KeyRow::custom(
        "webhooks",
        "The URLs that get a request for each event. All users who can read the repository can read the secrets.",
        Says("none"),
        webhook::example,
        |reader, node, key, notify| notify.webhooks = webhook::read_webhooks(reader, node, key),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_a_mail_server_is_parsed() {
        let smtp = |host: &str, port, tls| Ok(MailTransport::Smtp { host: host.to_owned(), port, tls });
        assert_eq!(transport("smtp://mail.example.com"), smtp("mail.example.com", 587, false));
        assert_eq!(transport("smtps://mail.example.com/"), smtp("mail.example.com", 465, true));
        assert_eq!(transport("smtp://[::1]:25"), smtp("::1", 25, false));
        assert_eq!(transport("sendmail"), Ok(MailTransport::Sendmail));
        for bad in [
            "mail.example.com",
            "http://x",
            "smtp://",
            "smtp://user:secret@x",
            "smtp://x:0",
            "smtp://x:y",
            "smtp://[x]:25",
            "smtp://a b",
        ] {
            let why = transport(bad).unwrap_err();
            assert!(!why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn only_loopback_hosts_are_loopback() {
        for (host, expected) in
            [("localhost", true), ("127.0.0.1", true), ("::1", true), ("10.0.0.1", false), ("localhost.example.com", false)]
        {
            let transport = MailTransport::Smtp { host: host.to_owned(), port: 25, tls: false };
            assert_eq!(transport.is_loopback(), expected, "{host}");
        }
    }
}
