//! The list `notify.webhooks` of the recipe, and the section `webhooks:` of the server file.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::{
    keys::{Fallback::Says, KeyRow},
    reader::ConfigReader,
    yaml::Node,
};
use crate::model::{checked_text, text_form};

/// The maximum number of webhooks of one environment, and of secrets of one webhook.
const MAX_WEBHOOKS: usize = 20;
const MAX_SECRETS: usize = 3;
/// The maximum length of a URL, in bytes.
const MAX_URL: usize = 1000;
/// The maximum number of ranges in the server file.
const MAX_RANGES: usize = 100;
/// The prefix of a secret, and its length in bytes (Standard Webhooks: 24 to 64).
const PREFIX: &str = "whsec_";
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A receiver of webhooks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookTarget {
    /// The URL.
    pub url: WebhookUrl,
    /// The secrets that sign the messages. During a rotation, the new and the old secret.
    pub secrets: Vec<WebhookSecret>,
    /// The format; `None` to choose the format by the URL.
    pub format: Option<WebhookFormat>,
}

impl WebhookTarget {
    /// Returns the format of the messages.
    pub fn format(&self) -> WebhookFormat {
        self.format.unwrap_or_else(|| self.url.usual_format())
    }
}

/// The format of a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WebhookFormat {
    /// The format of Standard Webhooks.
    Standard,
    Slack,
    Mattermost,
    Discord,
    Ntfy,
}

impl WebhookFormat {
    const WORDS: [(&'static str, WebhookFormat); 5] = [
        ("standard", WebhookFormat::Standard),
        ("slack", WebhookFormat::Slack),
        ("mattermost", WebhookFormat::Mattermost),
        ("discord", WebhookFormat::Discord),
        ("ntfy", WebhookFormat::Ntfy),
    ];
}

checked_text!(
    /// The URL of a receiver of webhooks, with http or https, and without a user.
    WebhookUrl,
    String,
    |text| {
        // The URL may contain a secret, so no message repeats the URL.
        let url = Url::parse(text).map_err(|_| String::from("the value is not a URL"))?;
        let has_user = !url.username().is_empty() || url.password().is_some();
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || has_user || text.len() > MAX_URL {
            return Err(String::from("the value is not a URL with http:// or https:// and without a user, of at most 1000 bytes"));
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(String::from("the URL has white space or control characters"));
        }
        Ok(())
    }
);

impl WebhookUrl {
    /// Returns the URL without the parts that may contain a secret, with a digest of the whole URL, for records and logs.
    pub fn masked(&self) -> String {
        let digest = blake3::hash(self.as_str().as_bytes()).to_hex();
        let digest = digest.get(..8).unwrap_or_default();
        match Url::parse(self.as_str()) {
            Ok(url) => {
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                format!("{}://{}{port}/...{digest}", url.scheme(), url.host_str().unwrap_or_default())
            }
            Err(_) => format!("...{digest}"),
        }
    }

    /// Returns the URL of the server, and the path without slashes at its ends.
    pub fn topic(&self) -> (String, String) {
        match Url::parse(self.as_str()) {
            Ok(mut url) => {
                let topic = url.path().trim_matches('/').to_owned();
                url.set_path("/");
                (url.to_string(), topic)
            }
            Err(_) => (self.to_string(), String::new()),
        }
    }

    fn usual_format(&self) -> WebhookFormat {
        let Ok(url) = Url::parse(self.as_str()) else { return WebhookFormat::Standard };
        match (url.host(), url.path()) {
            (Some(Host::Domain("hooks.slack.com")), _) => WebhookFormat::Slack,
            (Some(Host::Domain("discord.com" | "discordapp.com")), path) if path.starts_with("/api/webhooks/") => {
                WebhookFormat::Discord
            }
            (Some(Host::Domain("ntfy.sh")), _) => WebhookFormat::Ntfy,
            _ => WebhookFormat::Standard,
        }
    }
}

/// A secret that signs webhooks: `whsec_` and the bytes in base64. Its `Debug` form does not show the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WebhookSecret(Vec<u8>);

impl WebhookSecret {
    /// Returns the key.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for WebhookSecret {
    type Err = String;

    fn from_str(text: &str) -> Result<WebhookSecret, String> {
        let encoded = text.strip_prefix(PREFIX).ok_or("the secret does not begin with whsec_")?;
        let bytes = data_encoding::BASE64.decode(encoded.as_bytes()).map_err(|_| "the text after whsec_ is not base64")?;
        if SECRET_BYTES.contains(&bytes.len()) {
            Ok(WebhookSecret(bytes))
        } else {
            Err(format!("the secret has {} bytes (expected 24 to 64)", bytes.len()))
        }
    }
}

impl fmt::Display for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", data_encoding::BASE64.encode(&self.0))
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(..)")
    }
}

text_form!(WebhookSecret, String);

/// A range of IP addresses, such as `10.0.0.0/8`, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    first: IpAddr,
    /// The length of the prefix, in bits.
    length: u32,
}

impl AddressRange {
    /// Returns true if the range contains an address. An IPv4 address in the form of an IPv6 address counts as IPv4 address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.first, ip.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(ip)) => {
                let shift = 32_u32.saturating_sub(self.length);
                first.to_bits().checked_shr(shift) == ip.to_bits().checked_shr(shift)
            }
            (IpAddr::V6(first), IpAddr::V6(ip)) => {
                let shift = 128_u32.saturating_sub(self.length);
                first.to_bits().checked_shr(shift) == ip.to_bits().checked_shr(shift)
            }
            _ => false,
        }
    }
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<AddressRange, String> {
        let (first, length) = text.split_once('/').map_or((text, None), |(first, length)| (first, Some(length)));
        let first: IpAddr = first.parse().map_err(|_| "the value is not an IP address or a range")?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Ok(most), str::parse).ok().filter(|length| *length <= most);
        let length = length.ok_or_else(|| format!("the length of the prefix is not a number from 0 to {most}"))?;
        Ok(AddressRange { first: first.to_canonical(), length })
    }
}

/// The operator's limits for webhooks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WebhookPolicy {
    /// The internal addresses to which webhooks may be sent.
    pub allow: Vec<AddressRange>,
}

/// The keys of the section `webhooks:` of the server file.
pub(super) const WEBHOOK_POLICY_KEYS: &[KeyRow<WebhookPolicy>] = &[KeyRow::value(
    "allow",
    "The internal addresses to which webhooks may be sent: addresses of this machine and of private networks.",
    Says("none"),
    "[10.0.0.0/8, \"fd00::/8\"]",
    |reader, node, key, policy| {
        let nodes = reader.list_up_to(node, key, "[10.0.0.0/8]", MAX_RANGES);
        let ranges =
            nodes.iter().filter_map(|node| reader.value(node, key, "an address or a range such as 10.0.0.0/8", str::parse));
        policy.allow = ranges.collect();
    },
)];

/// Reads the list `notify.webhooks`.
pub(super) fn read_webhooks(reader: &mut ConfigReader, node: &Node, key: &str) -> Vec<WebhookTarget> {
    const EXAMPLE: &str = "[{url: \"https://example.com/hook\", secret: whsec_...}]";
    let nodes = reader.list_up_to(node, key, EXAMPLE, MAX_WEBHOOKS);
    nodes.iter().filter_map(|node| read_webhook(reader, node, key)).collect()
}

fn read_webhook(reader: &mut ConfigReader, node: &Node, key: &str) -> Option<WebhookTarget> {
    let section =
        reader.section(node, key, &["url", "secret", "format"], "{url: \"https://example.com/hook\", secret: whsec_...}");
    let Some(url) = section.get("url") else {
        reader.problem(node, format!("{key}: a webhook has no url")).expected = Some(String::from("a key url with the address"));
        return None;
    };
    let url = reader.value(url, &format!("{key}.url"), "a URL such as https://example.com/hook", str::parse);
    let secret_key = format!("{key}.secret");
    let secrets = match section.get("secret") {
        None => Vec::new(),
        Some(node) => {
            let nodes = match node.text() {
                Some(_) => std::slice::from_ref(node),
                None => reader.list_up_to(node, &secret_key, "[whsec_..., whsec_...]", MAX_SECRETS),
            };
            let expected = "whsec_ and 24 to 64 bytes in base64";
            nodes.iter().filter_map(|node| reader.value(node, &secret_key, expected, str::parse)).collect()
        }
    };
    let format = section.get("format").and_then(|node| reader.choice(node, &format!("{key}.format"), &WebhookFormat::WORDS));
    Some(WebhookTarget { url: url?, secrets, format })
}

/// Returns the lines of the reference.
pub(super) fn example() -> String {
    String::from(
        "- url: https://example.com/hook\n  # The secret that signs the messages: whsec_ and 24 to 64 bytes in base64. During a rotation, a list \
         of the new\n  # and the old secret. Default: messages are not signed.\n  secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n  \
         # standard (Standard Webhooks), slack, mattermost, discord or ntfy. Default: by the host of the URL.\n  format: standard",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_with_a_user_or_another_scheme_is_refused() {
        for bad in [
            "",
            "example.com",
            "ftp://example.com/",
            "file:///etc/passwd",
            "http://",
            "https://user:secret@example.com/",
            "http://a b/",
        ] {
            let why = bad.parse::<WebhookUrl>().unwrap_err();
            assert!(!why.contains("secret@"), "{why}");
        }
        let url: WebhookUrl = "https://hooks.slack.com:444/services/T000/B000/secret?x=1".parse().unwrap();
        assert!(
            url.masked().starts_with("https://hooks.slack.com:444/...") && !url.masked().contains("secret"),
            "{}",
            url.masked()
        );
        assert_eq!(url.usual_format(), WebhookFormat::Slack);
        let ntfy: WebhookUrl = "https://ntfy.sh/my-topic".parse().unwrap();
        assert_eq!(
            (ntfy.usual_format(), ntfy.topic()),
            (WebhookFormat::Ntfy, (String::from("https://ntfy.sh/"), String::from("my-topic")))
        );
    }

    #[test]
    fn secret_is_checked_and_never_shown() {
        let secret: WebhookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap();
        assert_eq!(secret.bytes().len(), 24);
        assert!(!format!("{secret:?}").contains("MfKQ"));
        assert_eq!(secret.to_string(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        for bad in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_c2hvcnQ=", "whsec_!"] {
            assert!(bad.parse::<WebhookSecret>().is_err(), "{bad}");
        }
    }

    #[test]
    fn range_contains_its_addresses_only() {
        let contains = |range: &str, ip: &str| range.parse::<AddressRange>().unwrap().contains(ip.parse().unwrap());
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
        assert!(
            contains("fd00::/8", "fd12::1") && !contains("fd00::/8", "10.0.0.1") && contains("127.0.0.1", "::ffff:127.0.0.1")
        );
        assert!(contains("0.0.0.0/0", "8.8.8.8") && contains("::/0", "::1"));
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "x", "10.0.0.0/-1"] {
            assert!(bad.parse::<AddressRange>().is_err(), "{bad}");
        }
    }
}
