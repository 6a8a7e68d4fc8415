//! SSH keys: the host key, the kinds of user keys that are accepted, and the parser of a line of an `authorized_keys` or `.pub` file.

use std::path::Path;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey, PublicKey, ssh_key::public::KeyData};

pub use crate::remote::ssh::KeyFileError as HostKeyError;

/// Loads the host key at `path` and returns it with its fingerprint. Creates the key if the file does not exist. An unreadable
/// key is an error and is not replaced, because clients refuse a server whose host key has changed.
pub fn load_or_create_host_key(path: &Path) -> Result<(PrivateKey, String), HostKeyError> {
    crate::remote::ssh::load_or_create("host key", path)
}

/// Returns the public half of a host key as in a `known_hosts` file, without the host.
pub fn host_key_line(key: &PrivateKey) -> Result<String, HostKeyError> {
    let mut public = key.public_key().clone();
    public.set_comment("");
    public.to_openssh().map_err(|source| HostKeyError::Generate { what: "host key", source })
}

const SK_ECDSA: &str = "sk-ecdsa-sha2-nistp256@openssh.com";
const MIN_RSA_BITS: u32 = 2048;
const MAX_RSA_BITS: u32 = 8192;
/// The maximum length of a line, in bytes. A key of [`MAX_RSA_BITS`] takes 1,420 bytes, so a long comment fits.
pub const MAX_LINE: usize = 16 * 1024;

/// A public key as larder stores and shows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PublicKeyInfo {
    /// The kind, such as `ssh-ed25519`.
    pub algorithm: String,
    /// `SHA256:` and the digest in base64, as `ssh-keygen -l` prints it.
    pub fingerprint_sha256: String,
    /// Kind and key without the comment. Two lines are equal if and only if their keys are equal.
    pub openssh_line: String,
    /// The comment at the end of the line, often `user@host`; shown, never trusted.
    pub comment: String,
}

/// The reason why a key is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text has only white space or comments.
    #[error("there is no key here; expected one line such as \"ssh-ed25519 AAAA... you@host\"")]
    Empty,
    /// The text is a private key.
    #[error("this is a PRIVATE key; keep it secret, and give the line from the file that ends in .pub")]
    Private,
    /// The text has more than one key.
    #[error("there are {count} keys here; add them one at a time")]
    Several {
        /// The number of keys.
        count: usize,
    },
    /// The line is longer than any key.
    #[error("the line has {given} bytes; no accepted key is longer than {MAX_LINE}")]
    TooLong {
        /// The length of the line, in bytes.
        given: usize,
    },
    /// The line has options of `authorized_keys` in front of the key.
    #[error("the line starts with {given:?}; larder does not read options of authorized_keys: {instead}")]
    Options {
        /// The text in front of the key.
        given: String,
        /// The replacement of the option.
        instead: &'static str,
    },
    /// The kind of key is not accepted.
    #[error("keys of kind {given:?} are not accepted; make another key with: ssh-keygen -t ed25519")]
    Kind {
        /// The kind as given.
        given: String,
    },
    /// The RSA key is too small to be safe, or so large that checking signatures takes too long.
    #[error(
        "this RSA key has {bits} bits; expected {MIN_RSA_BITS} to {MAX_RSA_BITS}; make another key with: ssh-keygen -t ed25519"
    )]
    RsaSize {
        /// The size of the modulus, in bits.
        bits: u32,
    },
    /// The base64 text or its content cannot be decoded.
    #[error("the key cannot be read (is the line cut off or wrapped?)")]
    Malformed {
        /// The error of the decoder.
        #[source]
        source: russh::keys::ssh_key::Error,
    },
}

/// Parses one public key, as found in a `.pub` file.
pub fn parse_line(text: &str) -> Result<PublicKeyInfo, KeyError> {
    if text.contains("PRIVATE KEY-----") || text.contains("PuTTY-User-Key-File") {
        return Err(KeyError::Private);
    }
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let line = lines.next().ok_or(KeyError::Empty)?;
    let others = lines.filter(|line| line.split_whitespace().any(is_kind)).count();
    if others > 0 {
        return Err(KeyError::Several { count: others.saturating_add(1) });
    }
    if line.len() > MAX_LINE {
        return Err(KeyError::TooLong { given: line.len() });
    }
    let first = line.split_whitespace().next().unwrap_or_default();
    if !is_kind(first) {
        let options: String = line.split_whitespace().take_while(|word| !is_kind(word)).collect::<Vec<_>>().join(" ");
        let given = options.chars().take(60).collect();
        return Err(if options.len() < line.len() && line.split_whitespace().any(is_kind) {
            KeyError::Options { given, instead: instead_of(first) }
        } else {
            KeyError::Kind { given }
        });
    }
    let accepted_kind =
        ["ssh-ed25519", "sk-ssh-ed25519@openssh.com", "ecdsa-sha2-nistp256", SK_ECDSA, "ssh-rsa"].contains(&first);
    if !accepted_kind {
        return Err(KeyError::Kind { given: first.chars().take(60).collect() });
    }
    let key = PublicKey::from_openssh(line).map_err(|source| KeyError::Malformed { source })?;
    info(&key)
}

/// Returns the replacement of the first option of a line of `authorized_keys`.
fn instead_of(options: &str) -> &'static str {
    let name = options.split(['=', ',']).next().unwrap_or_default().to_ascii_lowercase();
    match name.as_str() {
        "from" => "give the line without them, and the addresses with --from",
        "expiry-time" => "give the line without them, and the end with --expires",
        "command" => "give the line without them, and restrict the key with --only",
        "restrict" | "no-pty" | "no-port-forwarding" | "no-agent-forwarding" | "no-x11-forwarding" | "no-user-rc" => {
            "give the line without them; larder forwards nothing and gives no shell"
        }
        "no-touch-required" => "give the line without them, and add --no-touch-required",
        "verify-required" => "larder cannot check that the user of a security key was verified",
        "cert-authority" | "principals" => "add the key of a certificate authority with `larder user ca add`",
        _ => "give the line without them",
    }
}

/// Returns true if a word names a kind of key, including certificates and kinds that are not accepted.
fn is_kind(word: &str) -> bool {
    ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"].iter().any(|start| word.starts_with(start))
}

/// Checks the kind and size of a key. Returns a description of the key.
pub(super) fn info(key: &PublicKey) -> Result<PublicKeyInfo, KeyError> {
    match key.key_data() {
        KeyData::Ed25519(_) | KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_) => {}
        KeyData::Ecdsa(ecdsa) if ecdsa.curve() == EcdsaCurve::NistP256 => {}
        KeyData::Rsa(rsa) => {
            let bits = rsa.key_size();
            if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
                return Err(KeyError::RsaSize { bits });
            }
        }
        _ => return Err(KeyError::Kind { given: key.algorithm().to_string().chars().take(60).collect() }),
    }
    let openssh_line =
        PublicKey::new(key.key_data().clone(), "").to_openssh().map_err(|source| KeyError::Malformed { source })?;
    let comment: String = key.comment().to_string().chars().filter(|c| !c.is_control()).take(100).collect();
    Ok(PublicKeyInfo {
        algorithm: key.algorithm().to_string(),
        fingerprint_sha256: key.fingerprint(HashAlg::Sha256).to_string(),
        openssh_line: openssh_line.trim_end().to_owned(),
        comment,
    })
}

/// Returns the key of a certificate authority. The key of a security key is refused, because nothing shows that the security key was touched
/// for each certificate.
pub fn authority(key: Result<PublicKeyInfo, KeyError>) -> Result<PublicKeyInfo, KeyError> {
    let key = key?;
    if is_security_key(&key.algorithm) { Err(KeyError::Kind { given: key.algorithm }) } else { Ok(key) }
}

/// Returns true for the kinds of keys whose private half is on a security key.
pub fn is_security_key(kind: &str) -> bool {
    kind.starts_with("sk-")
}

/// Returns true if a certificate for the key is accepted. A security key must be touched for each proof, so a client is not asked for a proof
/// that may not count.
pub(super) fn may_be_certified(key: &PublicKeyInfo) -> bool {
    !is_security_key(&key.algorithm)
}

/// Returns true if a signature of this kind is accepted. An RSA key can sign with SHA-1, which is refused, or with SHA-2.
pub(super) fn accepts_signature(algorithm: &Algorithm) -> bool {
    match algorithm {
        Algorithm::Ed25519 | Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256 => true,
        Algorithm::Ecdsa { curve } => *curve == EcdsaCurve::NistP256,
        Algorithm::Rsa { hash } => hash.is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    #[test]
    fn key_line_is_split_into_key_and_comment() {
        let key = parse_line(&format!("\n# mine\n{ED} alice@laptop \n")).unwrap();
        assert_eq!(key.algorithm, "ssh-ed25519");
        assert_eq!(key.openssh_line, ED);
        assert_eq!(key.comment, "alice@laptop");
        assert!(key.fingerprint_sha256.starts_with("SHA256:"), "{key:?}");
        assert_eq!(parse_line(ED).unwrap().openssh_line, key.openssh_line);
    }

    #[test]
    fn each_mistake_has_its_own_error() {
        let cases: [(&str, &str); 12] = [
            ("", "no key here"),
            ("# only a comment", "no key here"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl", "PRIVATE"),
            ("no-pty,command=\"x\" ssh-ed25519 AAAA", "larder forwards nothing"),
            ("command=\"x y\" ssh-ed25519 AAAA", "restrict the key with --only"),
            ("from=\"10.0.0.0/8\" ssh-ed25519 AAAA", "with --from"),
            ("expiry-time=\"20270101\",restrict ssh-ed25519 AAAA", "with --expires"),
            ("ssh-dss AAAAB3NzaC1kc3M= old", "not accepted"),
            ("ecdsa-sha2-nistp521 AAAA x", "not accepted"),
            ("ssh-ed25519-cert-v01@openssh.com AAAA x", "not accepted"),
            ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgME alice", "cut off"),
            ("hello world", "not accepted"),
        ];
        for (text, expected) in cases {
            let error = parse_line(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let error = parse_line(&format!("{ED} a\n{ED} b\n")).unwrap_err().to_string();
        assert!(error.contains("2 keys"), "{error}");
        assert!(matches!(parse_line(&format!("{ED} {}", "x".repeat(20_000))), Err(KeyError::TooLong { .. })));
    }

    #[test]
    fn rsa_key_size_is_limited() {
        use russh::keys::ssh_key::{Mpint, public::RsaPublicKey};
        let key = |bits: usize| {
            let mut n = vec![0xff; bits / 8];
            if let Some(last) = n.last_mut() {
                *last = 0xfd;
            }
            let n = Mpint::from_positive_bytes(&n);
            let e = Mpint::from_positive_bytes(&[1, 0, 1]);
            PublicKey::new(KeyData::Rsa(RsaPublicKey::new(e, n).unwrap()), "")
        };
        for bits in [512, 1024, 1536, 16384] {
            let error = info(&key(bits)).unwrap_err();
            assert!(matches!(error, KeyError::RsaSize { .. }), "{bits}: {error}");
        }
        for bits in [2048, 3072, 4096, 8192] {
            assert!(info(&key(bits)).is_ok(), "{bits}");
        }
        assert!(!accepts_signature(&Algorithm::Rsa { hash: None }));
        assert!(accepts_signature(&Algorithm::Rsa { hash: Some(HashAlg::Sha512) }));
        assert!(!accepts_signature(&Algorithm::Dsa));
    }
}
