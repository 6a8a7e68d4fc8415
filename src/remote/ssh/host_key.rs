//! Reads the host key of an ssh server, as ssh-keyscan(1) does: the connection ends after the key exchange, before any login.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use parking_lot::Mutex;
use russh::{
    Preferred, client, compression,
    keys::{Algorithm, EcdsaCurve, HashAlg, PublicKeyOrCertificate},
};
use tokio::{net::TcpStream, time::timeout};

use super::{deploy_key::HostPort, keys::line_of};
use crate::model::sanitise_line;

/// The time limit for the connection and for the key exchange.
const LIMIT: Duration = Duration::from_secs(15);

static CONFIG: LazyLock<Arc<client::Config>> = LazyLock::new(|| {
    Arc::new(client::Config {
        preferred: Preferred {
            // The order of OpenSSH (ssh_config(5), HostKeyAlgorithms), without certificates and security keys.
            key: vec![
                Algorithm::Ed25519,
                Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
                Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
                Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
                Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
                Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
            ]
            .into(),
            compression: vec![compression::NONE].into(),
            ..Preferred::default()
        },
        ..client::Config::default()
    })
});

/// The check that accepts no key and records the key of the server.
struct Recorder(Arc<Mutex<Option<String>>>);

impl client::Handler for Recorder {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        if let PublicKeyOrCertificate::PublicKey { key, .. } = key {
            *self.0.lock() = Some(line_of(key));
        }
        Ok(false)
    }
}

/// Returns the key that the ssh server at `host` shows, such as `ssh-ed25519 AAAA...`. Nobody has vouched for this key.
///
/// # Errors
/// The reason as text.
pub async fn shown_host_key(host: &HostPort) -> Result<String, String> {
    let late = |_| format!("no answer within {} seconds", LIMIT.as_secs());
    let stream = timeout(LIMIT, TcpStream::connect((host.host.as_str(), host.port))).await.map_err(late)?;
    let stream = stream.map_err(|error| error.to_string())?;
    let seen = Arc::default();
    let greeted =
        timeout(LIMIT, client::connect_stream(CONFIG.clone(), stream, Recorder(Arc::clone(&seen)))).await.map_err(late)?;
    let key = seen.lock().take();
    match (key, greeted) {
        (Some(key), _) => Ok(key),
        (None, Err(error)) => Err(sanitise_line(&error.to_string())),
        (None, Ok(_)) => Err(String::from("the server shows no host key")),
    }
}
