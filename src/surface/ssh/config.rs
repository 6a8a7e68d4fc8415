//! The configuration of the SSH server, and the algorithms that it offers.

use std::{borrow::Cow, time::Duration};

use russh::{
    Preferred, cipher, compression, kex,
    keys::{Algorithm, HashAlg, PrivateKey},
    mac,
};

use super::limits::SshLimits;

/// The configuration of the SSH server.
#[derive(Debug, Clone)]
pub struct SshServerConfig {
    /// The host key, from [`super::keys::load_or_create_host_key`].
    pub host_key: PrivateKey,
    /// The accepted login names in `ssh NAME@host`. The key of a login identifies the user; the login name does not.
    pub logins: Vec<String>,
    /// The algorithms on offer.
    pub profile: Profile,
    /// The limits on connections, logins and channels.
    pub limits: SshLimits,
    /// The time that requests may take to finish after a shutdown was requested.
    pub drain: Duration,
}

impl SshServerConfig {
    /// Creates the default configuration with this host key.
    pub fn new(host_key: PrivateKey) -> Self {
        Self {
            host_key,
            logins: vec![String::from("git"), String::from("larder")],
            profile: Profile::default(),
            limits: SshLimits::default(),
            drain: Duration::from_secs(30),
        }
    }
}

/// A set of algorithms on offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Safe algorithms that clients of the last ten years support.
    #[default]
    Default,
    /// Only key exchanges that resist quantum computers; OpenSSH supports them from version 9.9.
    Strict,
}

// The client's order of preference decides which of these key exchanges is used (RFC 4253, section 7.1). Key exchanges over finite fields
// are not on offer: they cost the server processor time before the login, and every client of the last ten years supports Curve25519.
const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];
const KEX_STRICT: &[kex::Name] =
    &[kex::MLKEM768X25519_SHA256, kex::EXTENSION_SUPPORT_AS_SERVER, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER];
// This list also names the algorithms that users may sign with ("server-sig-algs", RFC 8308). Without the RSA names, RSA keys could not
// log in.
const KEYS: &[Algorithm] =
    &[Algorithm::Ed25519, Algorithm::Rsa { hash: Some(HashAlg::Sha512) }, Algorithm::Rsa { hash: Some(HashAlg::Sha256) }];
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];
const MACS: &[mac::Name] = &[mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM];
const COMPRESSION: &[compression::Name] = &[compression::NONE];

impl Profile {
    pub(super) fn preferred(self) -> Preferred {
        Preferred {
            kex: Cow::Borrowed(match self {
                Profile::Default => KEX,
                Profile::Strict => KEX_STRICT,
            }),
            key: Cow::Borrowed(KEYS),
            host_key_certificates: Cow::Borrowed(&[]),
            cipher: Cow::Borrowed(CIPHERS),
            mac: Cow::Borrowed(MACS),
            compression: Cow::Borrowed(COMPRESSION),
        }
    }
}
