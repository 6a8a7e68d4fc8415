//! The login of one connection: the keys that the client offers, the proofs, and the identity that follows from the proof.
//!
//! russh 0.65 passes an offered certificate on as its plain key, so an offer does not tell the two apart. If certificates may identify users,
//! a key that is not known may therefore be proven, and the refusal is recorded after the proof.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
};

use russh::{
    keys::{Algorithm, Certificate, HashAlg, PublicKey},
    server::Auth,
};

use super::{
    certificate,
    config::SshServerConfig,
    handler::{Credential, ExecHandler, KeyAnswer, KeyRefusal, SshIdentity},
    keys::{self, PublicKeyInfo},
    progress::{ConnectionProgress, SessionError},
};
use crate::model::UserName;

/// The state of the login of one connection.
pub(super) struct Authentication {
    pub(super) handler: Arc<dyn ExecHandler>,
    pub(super) config: Arc<SshServerConfig>,
    pub(super) peer: SocketAddr,
    progress: Arc<ConnectionProgress>,
    /// The proven credential and its user.
    login: Option<(Credential, SshIdentity)>,
    /// The refusal of the last offer, which is recorded unless a proof follows.
    pending: Option<(NamedKey, KeyRefusal)>,
    offers: usize,
    failures: usize,
}

/// A public key as the records name it.
struct NamedKey {
    kind: String,
    fingerprint: String,
    certificate: Option<String>,
}

impl Authentication {
    pub(super) fn new(
        handler: Arc<dyn ExecHandler>,
        config: Arc<SshServerConfig>,
        peer: SocketAddr,
        progress: Arc<ConnectionProgress>,
    ) -> Self {
        Self { handler, config, peer, progress, login: None, pending: None, offers: 0, failures: 0 }
    }

    /// Returns the address of the client.
    pub(super) fn source(&self) -> IpAddr {
        self.peer.ip().to_canonical()
    }

    /// Returns true if the client has proven its identity.
    pub(super) fn is_done(&self) -> bool {
        self.login.is_some()
    }

    /// Returns the identity of the client if its credential is still accepted.
    pub(super) fn current(&self) -> Option<SshIdentity> {
        let (credential, login) = self.login.as_ref()?;
        self.handler.authenticate(credential, self.source()).ok().filter(|now| now == login)
    }

    /// Answers the offer of a key. Nothing but the refusal is stored, because the client has not proven that it has the private key.
    pub(super) fn offered(&mut self, login: &str, key: &PublicKey, algorithm: &Algorithm) -> Result<Auth, SessionError> {
        self.record_pending();
        self.progress.attempts.fetch_add(1, Ordering::Relaxed);
        self.offers = self.offers.saturating_add(1);
        if self.offers > self.config.limits.offers {
            return Err(SessionError::TooManyOffers(self.config.limits.offers));
        }
        match self.lookup(login, key, algorithm) {
            Ok(_) => Ok(Auth::Accept),
            Err((refusal, may_be_certified)) => {
                self.pending = Some((NamedKey::of(key), refusal));
                if may_be_certified {
                    return Ok(Auth::Accept);
                }
                self.record_pending();
                Ok(Auth::reject())
            }
        }
    }

    /// Stores the identity of a key whose signature russh has verified.
    pub(super) async fn proven(&mut self, login: &str, key: &PublicKey, algorithm: &Algorithm) -> Result<Auth, SessionError> {
        self.pending = None;
        // The identity of a connection never changes. russh accepts no second login either.
        if self.is_done() {
            return Ok(Auth::reject());
        }
        match self.lookup(login, key, algorithm) {
            Ok((info, identity)) => {
                self.accept(NamedKey::of(key), Credential::Key(info), identity);
                Ok(Auth::Accept)
            }
            Err((refusal, may_be_certified)) => {
                self.record(NamedKey::of(key), Err(refusal));
                // A client with several keys must not run out of attempts before it proves the certified one. The offers are limited.
                if may_be_certified { Ok(Auth::reject()) } else { self.refused().await }
            }
        }
    }

    /// Stores the identity of a certificate. russh has verified the signature of the client with the certified key.
    pub(super) async fn certified(&mut self, login: &str, certificate: &Certificate) -> Result<Auth, SessionError> {
        self.pending = None;
        if self.is_done() {
            return Ok(Auth::reject());
        }
        let key = NamedKey {
            kind: certificate.algorithm().to_certificate_type(),
            certificate: Some(certificate::title(certificate)),
            ..NamedKey::of(&PublicKey::new(certificate.public_key().clone(), ""))
        };
        let checked = certificate::credential(certificate)
            .map_err(|error| KeyRefusal { user: None, reason: error.to_string() })
            .and_then(|credential| self.check(login, &credential).map(|identity| (credential, identity)));
        match checked {
            Ok((credential, identity)) => {
                self.accept(key, credential, identity);
                Ok(Auth::Accept)
            }
            Err(refusal) => {
                self.record(key, Err(refusal));
                self.refused().await
            }
        }
    }

    /// Counts a refused login, and delays the answer.
    pub(super) async fn refused(&mut self) -> Result<Auth, SessionError> {
        self.failures = self.failures.saturating_add(1);
        self.progress.attempts.fetch_add(1, Ordering::Relaxed);
        if self.failures > self.config.limits.auth_failures {
            return Err(SessionError::TooManyFailures(self.config.limits.auth_failures));
        }
        tokio::time::sleep(self.config.limits.refusal_delay).await;
        Ok(Auth::reject())
    }

    /// Returns the command that the certificate of the login forces on each session.
    pub(super) fn forced_command(&self) -> Option<&str> {
        match &self.login {
            Some((Credential::Certificate(certificate), _)) => certificate.command.as_deref(),
            _ => None,
        }
    }

    /// Returns true if the sessions of the login may have a terminal.
    pub(super) fn may_have_terminal(&self) -> bool {
        match &self.login {
            Some((Credential::Certificate(certificate), _)) => certificate.terminal,
            _ => true,
        }
    }

    fn accept(&mut self, key: NamedKey, credential: Credential, identity: SshIdentity) {
        tracing::info!(peer = %self.peer, user = %identity.user, "accepted {key}");
        self.record(key, Ok(identity.user.clone()));
        let _ = self.progress.login.set((credential.clone(), identity.clone()));
        self.login = Some((credential, identity));
    }

    /// Returns the key and its user if the key is known, and the login name and the kind of key are accepted; or the refusal, and true if a
    /// certificate for the key may be accepted. The client gets the same answer to all refusals.
    fn lookup(
        &self,
        login: &str,
        key: &PublicKey,
        algorithm: &Algorithm,
    ) -> Result<(PublicKeyInfo, SshIdentity), (KeyRefusal, bool)> {
        let refused = |reason: String| (KeyRefusal { user: None, reason }, false);
        let info = keys::info(key).map_err(|error| refused(error.to_string()))?;
        if !keys::accepts_signature(algorithm) {
            return Err(refused(format!("signatures of kind {:?} are not safe; update the client", algorithm.as_str())));
        }
        match self.check(login, &Credential::Key(info.clone())) {
            Ok(identity) => Ok((info, identity)),
            Err(refusal) => Err((refusal, self.handler.accepts_certificates() && keys::may_be_certified(&info))),
        }
    }

    fn check(&self, login: &str, credential: &Credential) -> Result<SshIdentity, KeyRefusal> {
        let identity = self.handler.authenticate(credential, self.source())?;
        if self.config.logins.iter().any(|known| known == login) {
            return Ok(identity);
        }
        let expected = self.config.logins.join(" or ");
        let login: String = login.escape_default().take(80).collect();
        let reason = format!("the login is {login} (expected {expected})");
        Err(KeyRefusal { user: Some(identity.user), reason })
    }

    fn record(&self, key: NamedKey, outcome: Result<UserName, KeyRefusal>) {
        if let Err(KeyRefusal { reason, .. }) = &outcome {
            tracing::info!(peer = %self.peer, "cannot accept {key}: {reason}");
        }
        let NamedKey { kind, fingerprint, certificate } = key;
        self.handler.answered(KeyAnswer { kind, fingerprint, certificate, source: self.source(), outcome });
    }

    /// Records the refusal of an offer that no proof has followed.
    fn record_pending(&mut self) {
        if let Some((key, refusal)) = self.pending.take() {
            self.record(key, Err(refusal));
        }
    }
}

impl Drop for Authentication {
    fn drop(&mut self) {
        self.record_pending();
    }
}

impl NamedKey {
    fn of(key: &PublicKey) -> NamedKey {
        let kind = key.algorithm().to_string().chars().take(60).collect();
        NamedKey { kind, fingerprint: key.fingerprint(HashAlg::Sha256).to_string(), certificate: None }
    }
}

impl std::fmt::Display for NamedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.fingerprint)?;
        match &self.certificate {
            Some(title) => write!(f, " {title}"),
            None => Ok(()),
        }
    }
}
