//! The OpenSSH certificate of a login. This file checks the conditions that need no list of trusted authorities: signatures, kinds of keys,
//! time, and critical options.

use std::sync::Arc;

use jiff::Timestamp;
use russh::keys::{
    Certificate, HashAlg, PublicKey,
    ssh_key::certificate::{CertType, OptionsMap},
};

use super::{
    exec,
    handler::Credential,
    keys::{self, KeyError},
};
use crate::{
    control::LoginCertificate,
    model::{Network, NetworkError, sanitise_reason},
};

/// The maximum number of names, and of address ranges, that are read from a certificate.
const MAX_ENTRIES: usize = 256;

/// The extension without which a session has no terminal.
const PERMIT_PTY: &str = "permit-pty";

/// The reason why a certificate is not accepted, whether or not its authority is trusted.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertificateError {
    /// The certificate identifies a host.
    #[error("the certificate is for a host (expected a certificate for a user)")]
    Host,
    /// The certified key is not accepted.
    #[error("the certified key is not accepted: {0}")]
    Key(#[source] KeyError),
    /// The key of the authority is not accepted.
    #[error("the key of the certificate authority is not accepted: {0}")]
    Authority(#[source] KeyError),
    /// The authority has signed with an unsafe algorithm.
    #[error("the certificate authority has signed with {0}, which is not safe; sign again with rsa-sha2-512")]
    Algorithm(String),
    /// The signature of the authority is wrong, or the time is outside of the certificate's span.
    #[error("the certificate is expired, not valid yet, or its signature is wrong")]
    Invalid,
    /// The certificate names no user.
    #[error("the certificate has no principals (expected the name of a user)")]
    NoPrincipal,
    /// The certificate has more names or ranges than are read.
    #[error("the certificate has {given} {what} (expected at most {MAX_ENTRIES})")]
    TooMany {
        /// The number in the certificate.
        given: usize,
        /// The kind of the entries.
        what: &'static str,
    },
    /// An option that must be honoured is not known.
    #[error("the certificate has the critical option {0:?}, which larder does not support")]
    Option(String),
    /// The addresses cannot be read.
    #[error("the source-address of the certificate is not valid: {0}")]
    Source(#[source] NetworkError),
    /// The forced command cannot be read.
    #[error("the forced command of the certificate is not valid: {0}")]
    Command(#[source] exec::ExecError),
}

/// Returns the claims of a certificate whose client has proven to own the certified key.
pub(super) fn read(certificate: &Certificate) -> Result<LoginCertificate, CertificateError> {
    if certificate.cert_type() != CertType::User {
        return Err(CertificateError::Host);
    }
    let key = keys::info(&PublicKey::new(certificate.public_key().clone(), "")).map_err(CertificateError::Key)?;
    let authority = PublicKey::new(certificate.signature_key().clone(), "");
    let authority = keys::authority(keys::info(&authority)).map_err(CertificateError::Authority)?;
    let algorithm = certificate.signature().algorithm();
    if !keys::accepts_signature(&algorithm) {
        return Err(CertificateError::Algorithm(algorithm.to_string()));
    }
    // russh has made both checks already, but its check of the time includes the end.
    let now = u64::try_from(Timestamp::now().as_second()).unwrap_or(0);
    let signer = certificate.signature_key().fingerprint(HashAlg::Sha256);
    certificate.validate_at(now, [&signer]).map_err(|_| CertificateError::Invalid)?;
    let principals = certificate.valid_principals();
    if principals.is_empty() {
        return Err(CertificateError::NoPrincipal);
    }
    limited(principals.len(), "principals")?;
    let (from, command) = critical(certificate.critical_options())?;
    Ok(LoginCertificate {
        authority: authority.fingerprint_sha256,
        key: key.fingerprint_sha256,
        serial: certificate.serial(),
        id: certificate.key_id().to_owned(),
        principals: principals.to_vec(),
        valid_after: moment(certificate.valid_after()),
        valid_before: moment(certificate.valid_before()),
        from,
        command,
        terminal: certificate.extensions().contains_key(PERMIT_PTY),
    })
}

/// Returns the addresses and the command of the critical options. An option that is not known is an error, because the authority relies on
/// each of these options.
fn critical(options: &OptionsMap) -> Result<(Vec<Network>, Option<String>), CertificateError> {
    let (mut from, mut command) = (Vec::new(), None);
    for (name, value) in options.iter() {
        match name.as_str() {
            "source-address" => {
                limited(value.split(',').count(), "ranges of addresses")?;
                let ranges = value.split(',').map(|range| range.parse().map_err(CertificateError::Source));
                from = ranges.collect::<Result<_, _>>()?;
            }
            "force-command" => {
                exec::parse(value.as_bytes()).map_err(CertificateError::Command)?;
                command = Some(value.clone());
            }
            other => return Err(CertificateError::Option(other.chars().take(60).collect())),
        }
    }
    Ok((from, command))
}

fn limited(given: usize, what: &'static str) -> Result<(), CertificateError> {
    if given > MAX_ENTRIES { Err(CertificateError::TooMany { given, what }) } else { Ok(()) }
}

/// Returns the moment of a number of seconds; `None` for the two values that mean no limit, and for times after the year 9999.
fn moment(seconds: u64) -> Option<Timestamp> {
    let seconds = i64::try_from(seconds).ok().filter(|seconds| *seconds > 0)?;
    Timestamp::from_second(seconds).ok()
}

/// Returns the key ID and the serial number of a certificate, as text for people.
pub(super) fn title(certificate: &Certificate) -> String {
    let id: String = sanitise_reason(certificate.key_id()).chars().take(60).collect();
    format!("{id:?} serial {}", certificate.serial())
}

/// Returns the credential of a certificate.
pub(super) fn credential(certificate: &Certificate) -> Result<Credential, CertificateError> {
    Ok(Credential::Certificate(Arc::new(read(certificate)?)))
}

#[cfg(test)]
mod tests {
    use russh::keys::{
        PrivateKey,
        ssh_key::{certificate::Builder, private::Ed25519Keypair},
    };

    use super::*;

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::new(Ed25519Keypair::from_seed(&[seed; 32]).into(), "test").unwrap()
    }

    fn now() -> u64 {
        u64::try_from(Timestamp::now().as_second()).unwrap()
    }

    /// Signs a certificate of a kind, after `change`.
    fn certificate(kind: CertType, change: impl FnOnce(&mut Builder)) -> Certificate {
        let mut builder = Builder::new(vec![7; 32], key(1).public_key().key_data().clone(), now() - 60, now() + 60).unwrap();
        builder.serial(7).unwrap().key_id("bob at home").unwrap().cert_type(kind).unwrap();
        change(&mut builder);
        builder.sign(&key(2)).unwrap()
    }

    fn valid(change: impl FnOnce(&mut Builder)) -> Certificate {
        certificate(CertType::User, |builder| {
            builder.valid_principal("bob").unwrap();
            change(builder);
        })
    }

    #[test]
    fn claims_of_a_certificate_are_read() {
        let certificate = valid(|builder| {
            builder.extension("permit-pty", "").unwrap();
            builder.critical_option("force-command", "logs shop").unwrap();
            builder.critical_option("source-address", "192.0.2.0/24,2001:db8::1").unwrap();
        });
        let claims = read(&certificate).unwrap();
        assert_eq!(claims.authority, key(2).public_key().fingerprint(HashAlg::Sha256).to_string());
        assert_eq!(claims.key, key(1).public_key().fingerprint(HashAlg::Sha256).to_string());
        assert_eq!((claims.serial, claims.id.as_str()), (7, "bob at home"));
        assert_eq!(claims.principals, ["bob"]);
        assert_eq!(claims.command.as_deref(), Some("logs shop"));
        assert!(claims.terminal && claims.valid_after.unwrap() < claims.valid_before.unwrap());
        let ranges: Vec<_> = claims.from.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["192.0.2.0/24", "2001:db8::1"]);
        assert_eq!(title(&certificate), "\"bob at home\" serial 7");
        let plain = read(&valid(|_| {})).unwrap();
        assert!(!plain.terminal && plain.from.is_empty() && plain.command.is_none());
    }

    #[test]
    fn every_certificate_that_is_not_understood_is_refused() {
        let refused = |certificate: &Certificate| read(certificate).unwrap_err().to_string();
        let host = certificate(CertType::Host, |builder| {
            builder.valid_principal("bob").unwrap();
        });
        assert!(refused(&host).contains("is for a host"));
        let everybody = certificate(CertType::User, |builder| {
            builder.all_principals_valid().unwrap();
        });
        assert!(refused(&everybody).contains("no principals"));
        for (option, value, reason) in [
            ("verify-required", "", "critical option \"verify-required\""),
            ("x@example.com", "1", "critical option \"x@example.com\""),
            ("source-address", "192.0.2.0/33", "source-address"),
            ("source-address", "", "source-address"),
            ("force-command", "git-shell '/shop'", "forced command"),
            ("force-command", "whoami \u{1b}", "forced command"),
        ] {
            let with = valid(|builder| {
                builder.critical_option(option, value).unwrap();
            });
            assert!(refused(&with).contains(reason), "{option}={value}: {}", refused(&with));
        }
        let many = valid(|builder| {
            for number in 0..MAX_ENTRIES {
                builder.valid_principal(format!("user{number}")).unwrap();
            }
        });
        assert!(refused(&many).contains("257 principals (expected at most 256)"));
    }

    #[test]
    fn time_and_signature_are_checked() {
        let spanning = |begin: u64, end: u64| {
            let mut builder = Builder::new(vec![7; 32], key(1).public_key().key_data().clone(), begin, end).unwrap();
            builder.cert_type(CertType::User).unwrap().valid_principal("bob").unwrap();
            builder.sign(&key(2)).unwrap()
        };
        assert!(read(&spanning(now() - 60, now() + 60)).is_ok());
        for (begin, end) in [(now() - 60, now() - 1), (now() - 60, now()), (now() + 30, now() + 60)] {
            assert!(matches!(read(&spanning(begin, end)), Err(CertificateError::Invalid)), "{begin} {end}");
        }
        // The text of the certificate is changed after the signature.
        let mut bytes = valid(|_| {}).to_bytes().unwrap();
        let at = bytes.windows(3).position(|part| part == b"bob").unwrap();
        bytes[at + 2] = b'B';
        assert!(matches!(read(&Certificate::from_bytes(&bytes).unwrap()), Err(CertificateError::Invalid)));
    }
}
