//! Login keys with their limits, and the last keys that clients offered.

use std::{collections::VecDeque, net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::model::{Access, Network, Target, UserName};

/// A public key with which a user may log in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// `SHA256:...`, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// The key as in an `authorized_keys` file, without options.
    pub line: String,
    /// The limits of logins with the key.
    #[serde(flatten)]
    pub limits: KeyLimits,
}

/// The limits of logins with a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyLimits {
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The moment from which the key is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// The addresses from which the key is accepted; all addresses if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Network>,
    /// The only object on which the key has a right, and the greatest right of the key; absent if the key has all rights of its user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<KeyScope>,
    /// True if a security key is accepted although larder does not check that it is touched for each login.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_touch_required: bool,
}

impl Key {
    /// Returns the fingerprint and the limits in one line.
    pub fn summary(&self) -> String {
        let mut text = self.fingerprint.clone();
        self.limits.describe(&mut text);
        text
    }
}

/// The object to which a key is restricted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyScope {
    /// The project, or one of its environments.
    pub on: Target,
    /// The greatest right of the key, whatever right its user has.
    pub right: Access,
}

impl KeyLimits {
    /// Appends the limits to a text.
    pub(super) fn describe(&self, text: &mut String) {
        if let Some(KeyScope { on, right }) = &self.only {
            text.push_str(&format!(", only {right} on {on}"));
        }
        if let Some(expires) = self.expires {
            text.push_str(&format!(", until {expires}"));
        }
        if !self.from.is_empty() {
            let ranges: Vec<_> = self.from.iter().map(Network::to_string).collect();
            text.push_str(&format!(", from {}", ranges.join(" ")));
        }
        if self.no_touch_required {
            text.push_str(", no touch required");
        }
    }

    /// Returns the reason why a login at the moment `now` from the address `source` is refused.
    pub fn refusal(&self, now: Timestamp, source: IpAddr) -> Option<String> {
        if let Some(expires) = self.expires.filter(|expires| *expires <= now) {
            return Some(format!("the key expired at {}", expires.strftime("%Y-%m-%d %H:%M:%S UTC")));
        }
        if self.from.is_empty() || self.from.iter().any(|network| network.contains(source)) {
            return None;
        }
        let ranges: Vec<_> = self.from.iter().map(Network::to_string).collect();
        Some(format!("the key is accepted from {} only", ranges.join(", ")))
    }
}

/// A user certificate whose two signatures were verified: the signature of the authority over the certificate, and the signature of the
/// client with the certified key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginCertificate {
    /// The fingerprint of the authority's key.
    pub authority: String,
    /// The fingerprint of the certified key.
    pub key: String,
    /// The serial number; 0 if the authority does not number its certificates.
    pub serial: u64,
    /// The key ID, a text that the authority has chosen.
    pub id: String,
    /// The names for which the certificate is valid.
    pub principals: Vec<String>,
    /// The moment from which the certificate is valid; absent without a beginning.
    pub valid_after: Option<Timestamp>,
    /// The moment from which the certificate is not valid any more; absent without an end.
    pub valid_before: Option<Timestamp>,
    /// The addresses from which the certificate is accepted; all addresses if empty.
    pub from: Vec<Network>,
    /// The only command of sessions with this certificate.
    pub command: Option<String>,
    /// True if sessions with this certificate may have a terminal.
    pub terminal: bool,
}

impl LoginCertificate {
    /// Returns the reason why the certificate itself is refused at the moment `now` from the address `source`.
    pub(super) fn refusal(&self, now: Timestamp, source: IpAddr) -> Option<String> {
        if let Some(begins) = self.valid_after.filter(|begins| *begins > now) {
            return Some(format!("the certificate is valid from {} on", begins.strftime("%Y-%m-%d %H:%M:%S UTC")));
        }
        if let Some(ends) = self.valid_before.filter(|ends| *ends <= now) {
            return Some(format!("the certificate expired at {}", ends.strftime("%Y-%m-%d %H:%M:%S UTC")));
        }
        if self.from.is_empty() || self.from.iter().any(|network| network.contains(source)) {
            return None;
        }
        let ranges: Vec<_> = self.from.iter().map(Network::to_string).collect();
        Some(format!("the certificate is accepted from {} only", ranges.join(", ")))
    }
}

/// A login key in a list.
#[derive(Debug, Clone, Serialize)]
pub struct LoginKeyRow {
    /// The user.
    pub user: UserName,
    /// The kind, such as `ssh-ed25519`.
    pub kind: String,
    /// `SHA256:...`, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// The limits of logins with the key.
    #[serde(flatten)]
    pub limits: KeyLimits,
    /// The certificate for the key; absent if the key itself belongs to the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateRow>,
}

/// The certificate of a login.
#[derive(Debug, Clone, Serialize)]
pub struct CertificateRow {
    /// The key ID.
    pub id: String,
    /// The serial number; 0 if the authority does not number its certificates.
    pub serial: u64,
    /// The certificate authority.
    pub authority: UserName,
}

impl LoginKeyRow {
    /// Creates the row of a key.
    pub(super) fn new(user: &UserName, key: &Key) -> LoginKeyRow {
        let kind = key.line.split(' ').next().unwrap_or_default().to_owned();
        let (user, fingerprint, limits) = (user.clone(), key.fingerprint.clone(), key.limits.clone());
        LoginKeyRow { user, kind, fingerprint, limits, certificate: None }
    }
}

/// A verified login: a user, and the key that the user has proven to own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub user: UserName,
    /// The fingerprint of the key.
    pub key: String,
    /// The address of the client.
    pub source: IpAddr,
    /// The certificate for the key; absent if the key itself belongs to the user.
    pub certificate: Option<Arc<LoginCertificate>>,
}

impl Login {
    /// Returns the key and its certificate in one line, for records.
    pub fn credential(&self) -> String {
        match self.certificate.as_deref() {
            None => self.key.clone(),
            // The key ID is the last part, because a record cuts long texts.
            Some(LoginCertificate { serial, authority, id, .. }) => {
                format!("{} certificate serial {serial} of {authority} ID {id:?}", self.key)
            }
        }
    }
}

/// The reason why a key is refused. The client does not learn the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginRefusal {
    /// The user that the key belongs to, if there is one.
    pub user: Option<UserName>,
    /// The reason, as text.
    pub reason: String,
}

/// A key that a client offered, and the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyOffer {
    /// The user that the key belongs to, if there is one.
    pub user: Option<UserName>,
    /// The kind, such as `ssh-ed25519`.
    pub kind: String,
    /// The fingerprint of the key.
    pub fingerprint: String,
    /// The key ID and the serial number of the certificate; absent if the client offered no certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The address of the client.
    pub source: IpAddr,
    /// The reason of the refusal; absent if the client has logged in.
    pub refused: Option<String>,
}

/// A key in the list of offered keys.
#[derive(Debug, Clone, Serialize)]
pub struct OfferRow {
    /// The offer.
    #[serde(flatten)]
    pub offer: KeyOffer,
    /// The moment of the last offer.
    pub at: Timestamp,
    /// The number of the same offers with the same answer.
    pub count: u64,
}

/// The maximum number of offers in the list.
const MAX_OFFERS: usize = 256;

/// The maximum number of offers of one address, so that one client cannot replace the offers of all other clients.
const MAX_OFFERS_PER_SOURCE: usize = 16;

/// The last keys that clients offered, in memory only.
#[derive(Debug, Default)]
pub struct KeyOffers(Mutex<VecDeque<OfferRow>>);

impl KeyOffers {
    /// Records an offer.
    pub fn record(&self, offer: KeyOffer) {
        let mut rows = self.0.lock();
        let known = rows.iter().position(|row| row.offer == offer);
        let count = known.and_then(|at| rows.remove(at)).map_or(0, |row| row.count).saturating_add(1);
        let of_source = |row: &OfferRow| row.offer.source == offer.source;
        if rows.iter().filter(|row| of_source(row)).count() >= MAX_OFFERS_PER_SOURCE
            && let Some(oldest) = rows.iter().position(of_source)
        {
            rows.remove(oldest);
        }
        if rows.len() >= MAX_OFFERS {
            rows.pop_front();
        }
        rows.push_back(OfferRow { offer, at: Timestamp::now(), count });
    }

    /// Returns the offers, newest first.
    pub fn list(&self) -> Vec<OfferRow> {
        self.0.lock().iter().rev().cloned().collect()
    }
}

/// Returns the time until a moment, at most an hour. A longer wait is repeated, because the clock of the machine can change.
pub(super) fn until(moment: Timestamp) -> Duration {
    let left = moment.duration_since(Timestamp::now());
    Duration::try_from(left).unwrap_or_default().min(Duration::from_secs(3600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expired_key_and_foreign_address_are_refused_with_the_reason() {
        let now: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let limits = KeyLimits {
            expires: Some("2026-11-30T12:00:01Z".parse().unwrap()),
            from: vec!["192.0.2.0/24".parse().unwrap(), "::1".parse().unwrap()],
            ..KeyLimits::default()
        };
        let refusal = |limits: &KeyLimits, now: Timestamp, source: &str| limits.refusal(now, source.parse().unwrap());
        assert_eq!(refusal(&limits, now, "192.0.2.1"), None);
        assert_eq!(refusal(&limits, now, "::1"), None);
        let foreign = refusal(&limits, now, "198.51.100.1").unwrap();
        assert_eq!(foreign, "the key is accepted from 192.0.2.0/24, ::1 only");
        let late = refusal(&limits, now + jiff::SignedDuration::from_secs(1), "192.0.2.1").unwrap();
        assert_eq!(late, "the key expired at 2026-11-30 12:00:01 UTC");
        assert_eq!(refusal(&KeyLimits::default(), now, "198.51.100.1"), None);
    }

    #[test]
    fn one_address_does_not_replace_the_offers_of_others() {
        let offers = KeyOffers::default();
        let offer = |number: u32, source: &str| KeyOffer {
            user: None,
            kind: String::from("ssh-ed25519"),
            fingerprint: format!("SHA256:{number}"),
            certificate: None,
            source: source.parse().unwrap(),
            refused: Some(String::from("the key is not known")),
        };
        offers.record(offer(0, "192.0.2.1"));
        for number in 0..10_000 {
            offers.record(offer(number, "198.51.100.1"));
        }
        let rows = offers.list();
        assert_eq!(rows.len(), MAX_OFFERS_PER_SOURCE + 1);
        assert!(rows.iter().any(|row| row.offer == offer(0, "192.0.2.1")));
        offers.record(offer(9_999, "198.51.100.1"));
        assert_eq!((offers.list().len(), offers.list()[0].count), (MAX_OFFERS_PER_SOURCE + 1, 2));
        for number in 0..1000 {
            offers.record(offer(1, &format!("10.0.{}.{}", number / 250, number % 250)));
        }
        assert_eq!(offers.list().len(), MAX_OFFERS);
    }
}
