//! The decision whether a certificate identifies a user. The registry has the certificate authorities that this server trusts.
//!
//! A certificate names its user as a principal. The SSH server has verified the signature of the client and the signature of the authority
//! before it asks for this decision. The decision is repeated for each request, so that a revocation takes effect at once.

use std::net::IpAddr;

use jiff::Timestamp;

use super::{
    login::{CertificateRow, KeyLimits, LoginCertificate, LoginKeyRow, LoginRefusal},
    registry::{CertificateAuthority, Registry, User},
};
use crate::model::UserName;

impl CertificateAuthority {
    /// Returns the fingerprint, the certified users and the limits in one line.
    pub fn summary(&self) -> String {
        let mut text = format!("{} {}", self.name, self.fingerprint);
        if let Some(user) = &self.user {
            text.push_str(&format!(", user {user}"));
        }
        if let Some(group) = &self.group {
            text.push_str(&format!(", group {group}"));
        }
        self.limits.describe(&mut text);
        text
    }

    fn has_revoked(&self, certificate: &LoginCertificate) -> bool {
        self.revoked_serials.contains(&certificate.serial) || self.revoked_ids.contains(&certificate.id)
    }
}

impl LoginKeyRow {
    /// Creates the row of a certified key. The limits are those of the certificate and of its authority.
    pub(super) fn certified(user: &UserName, certificate: &LoginCertificate, authority: &CertificateAuthority) -> LoginKeyRow {
        let expires = authority.limits.expires.into_iter().chain(certificate.valid_before).min();
        let from = if certificate.from.is_empty() { authority.limits.from.clone() } else { certificate.from.clone() };
        LoginKeyRow {
            user: user.clone(),
            kind: String::from("certificate"),
            fingerprint: certificate.key.clone(),
            limits: KeyLimits { expires, from, only: authority.limits.only.clone(), ..KeyLimits::default() },
            certificate: Some(CertificateRow {
                id: certificate.id.clone(),
                serial: certificate.serial,
                authority: authority.name.clone(),
            }),
        }
    }
}

/// Returns the user that a certificate identifies, and the authority that has signed the certificate; or the reason of the refusal.
pub(super) fn holder<'a>(
    registry: &'a Registry,
    certificate: &LoginCertificate,
    now: Timestamp,
    source: IpAddr,
) -> Result<(&'a User, &'a CertificateAuthority), LoginRefusal> {
    let unknown = |reason: String| LoginRefusal { user: None, reason };
    let signer = &certificate.authority;
    let authority = registry.authorities.iter().find(|known| known.fingerprint == *signer);
    let authority = authority.ok_or_else(|| unknown(format!("the certificate authority {signer} is not trusted")))?;
    let name = &authority.name;
    let mut users: Vec<&User> = Vec::new();
    for user in certificate.principals.iter().filter_map(|principal| registry.user(&principal.parse().ok()?)) {
        if !users.iter().any(|known| known.name == user.name) {
            users.push(user);
        }
    }
    let user = match users.as_slice() {
        [user] => *user,
        [] => {
            let principals: String = certificate.principals.join(", ").chars().take(80).collect();
            return Err(unknown(format!("no user has the name of a principal of the certificate: {principals}")));
        }
        several => {
            let names: Vec<_> = several.iter().take(8).map(|user| user.name.as_str()).collect();
            return Err(unknown(format!("the certificate is for several users (expected one): {}", names.join(", "))));
        }
    };
    let refused = |reason: String| Err(LoginRefusal { user: Some(user.name.clone()), reason });
    if authority.has_revoked(certificate) {
        return refused(String::from("the certificate was revoked"));
    }
    if let Some(reason) = certificate.refusal(now, source) {
        return refused(reason);
    }
    if let Some(reason) = authority.limits.refusal(now, source) {
        return refused(format!("the certificate authority {name} is limited: {reason}"));
    }
    if let Some(only) = authority.user.as_ref().filter(|only| **only != user.name) {
        return refused(format!("the certificate authority {name} may certify {only} only"));
    }
    if let Some(group) = &authority.group
        && !registry.groups.iter().any(|known| known.name == *group && known.members.contains(&user.name))
    {
        return refused(format!("the certificate authority {name} may certify members of {group} only"));
    }
    Ok((user, authority))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::control::registry::Group;

    fn moment(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn registry() -> Registry {
        let user = |name: &str| User {
            name: name.parse().unwrap(),
            admin: false,
            keys: Vec::new(),
            access: Default::default(),
            pillar: Default::default(),
        };
        let authority = CertificateAuthority {
            name: "office".parse().unwrap(),
            fingerprint: String::from("SHA256:office"),
            line: String::new(),
            user: None,
            group: None,
            limits: KeyLimits::default(),
            revoked_serials: BTreeSet::new(),
            revoked_ids: BTreeSet::new(),
        };
        let crew = Group {
            name: "crew".parse().unwrap(),
            members: vec!["bob".parse().unwrap()],
            access: Default::default(),
            pillar: Default::default(),
        };
        Registry {
            users: vec![user("ann"), user("bob")],
            groups: vec![crew],
            authorities: vec![authority],
            ..Registry::default()
        }
    }

    fn certificate() -> LoginCertificate {
        LoginCertificate {
            authority: String::from("SHA256:office"),
            key: String::from("SHA256:key"),
            serial: 7,
            id: String::from("bob-laptop"),
            principals: vec![String::from("bob")],
            valid_after: Some(moment("2026-11-30T12:00:00Z")),
            valid_before: Some(moment("2026-11-30T13:00:00Z")),
            from: Vec::new(),
            command: None,
            terminal: true,
        }
    }

    fn answer(registry: &Registry, certificate: &LoginCertificate, now: &str) -> Result<String, String> {
        let found = holder(registry, certificate, moment(now), "192.0.2.1".parse().unwrap());
        found.map(|(user, _)| user.name.to_string()).map_err(|refusal| refusal.reason)
    }

    const NOON: &str = "2026-11-30T12:30:00Z";

    #[test]
    fn certificate_identifies_the_only_user_among_its_principals() {
        let with = |principals: &[&str]| LoginCertificate {
            principals: principals.iter().map(|principal| (*principal).to_owned()).collect(),
            ..certificate()
        };
        let answer = |principals: &[&str]| answer(&registry(), &with(principals), NOON);
        assert_eq!(answer(&["bob"]), Ok(String::from("bob")));
        assert_eq!(answer(&["staff", "bob", "bob"]), Ok(String::from("bob")));
        assert!(answer(&["eve"]).unwrap_err().contains("no user has the name of a principal of the certificate: eve"));
        assert!(answer(&["BOB"]).is_err() && answer(&["bob "]).is_err() && answer(&["*"]).is_err() && answer(&[]).is_err());
        assert!(answer(&["bob", "ann"]).unwrap_err().contains("for several users (expected one): bob, ann"));
    }

    #[test]
    fn certificate_is_valid_in_its_span_only() {
        let at = |now: &str| answer(&registry(), &certificate(), now);
        assert!(at("2026-11-30T11:59:59Z").unwrap_err().contains("valid from 2026-11-30 12:00:00 UTC on"));
        assert!(at("2026-11-30T12:00:00Z").is_ok() && at("2026-11-30T12:59:59Z").is_ok());
        assert!(at("2026-11-30T13:00:00Z").unwrap_err().contains("expired at 2026-11-30 13:00:00 UTC"));
        let forever = LoginCertificate { valid_after: None, valid_before: None, ..certificate() };
        assert!(answer(&registry(), &forever, "2200-01-01T00:00:00Z").is_ok());
    }

    #[test]
    fn every_limit_and_revocation_refuses_a_certificate() {
        let of = |change: &dyn Fn(&mut Registry, &mut LoginCertificate)| {
            let (mut registry, mut certificate) = (registry(), certificate());
            change(&mut registry, &mut certificate);
            answer(&registry, &certificate, NOON)
        };
        type Change = fn(&mut CertificateAuthority);
        let refusals: [(Change, &str); 6] = [
            (|known| known.fingerprint = String::from("SHA256:other"), "SHA256:office is not trusted"),
            (|known| known.revoked_serials.extend([7]), "was revoked"),
            (|known| known.revoked_ids.extend([String::from("bob-laptop")]), "was revoked"),
            (|known| known.user = Some("ann".parse().unwrap()), "office may certify ann only"),
            (|known| known.limits.from = vec!["198.51.100.0/24".parse().unwrap()], "accepted from 198.51.100.0/24 only"),
            (|known| known.limits.expires = Some(moment("2026-11-30T12:00:00Z")), "expired at 2026-11-30 12:00:00 UTC"),
        ];
        for (change, reason) in refusals {
            let answer = of(&|registry, _| change(&mut registry.authorities[0])).unwrap_err();
            assert!(answer.contains(reason), "{answer}");
        }
        let permitted: [Change; 3] = [
            |known| known.revoked_serials.extend([0, 6, 8]),
            |known| known.user = Some("bob".parse().unwrap()),
            |known| known.group = Some("crew".parse().unwrap()),
        ];
        for change in permitted {
            assert_eq!(of(&|registry, _| change(&mut registry.authorities[0])), Ok(String::from("bob")));
        }
        let no_member = of(&|registry, _| {
            registry.authorities[0].group = Some("crew".parse().unwrap());
            registry.groups[0].members.clear();
        });
        assert!(no_member.unwrap_err().contains("may certify members of crew only"));
        let foreign = of(&|_, certificate| certificate.from = vec!["198.51.100.0/24".parse().unwrap()]);
        assert!(foreign.unwrap_err().contains("the certificate is accepted from 198.51.100.0/24 only"));
    }
}
