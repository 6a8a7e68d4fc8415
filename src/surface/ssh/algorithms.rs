//! What is negotiated: the cryptography on offer, in two profiles.

use std::borrow::Cow;

use russh::{
    Preferred, cipher, compression, kex,
    keys::{Algorithm, HashAlg},
    mac,
};

/// Which algorithms are on offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Safe, and understood by the clients of the last ten years.
    #[default]
    Default,
    /// Only key exchanges that a quantum computer does not break; OpenSSH needs 9.9 or newer.
    Strict,
}

// The client's order decides; ours is only what is on offer. The groups of thousands of bits are not: a client that has not even
// logged in could have us calculate with them as often as it likes, and every client of the last ten years has the curve.
const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];
const KEX_STRICT: &[kex::Name] =
    &[kex::MLKEM768X25519_SHA256, kex::EXTENSION_SUPPORT_AS_SERVER, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER];
// Also what users may sign with ("server-sig-algs"): without the RSA names, people with RSA keys would be locked out.
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
