//! The identity of a connection: only a key whose signature was verified identifies a user, whatever was offered before.

use proptest::prelude::*;
use russh::{
    client::AuthResult,
    keys::{
        Algorithm, PublicKey,
        agent::AgentIdentity,
        signature::Signer as _,
        ssh_key::{
            Signature,
            public::{KeyData, SkEd25519},
        },
    },
    server::Auth,
};

use super::{
    authentication::Authentication,
    hostile::{Forger, Trusting, Unsendable, connect, login_as},
    progress::ConnectionProgress,
    *,
};

/// The seeds of the keys of alice, bob and a stranger.
const SEEDS: std::ops::RangeInclusive<u8> = 1..=3;

/// An attempt of a client.
#[derive(Debug, Clone)]
enum Attempt {
    /// Claims the key `claimed`, and signs with the key `signer`.
    Key { claimed: u8, signer: u8, login: &'static str },
    /// Sends a password.
    Password { login: &'static str },
    /// Asks for the methods.
    Nothing { login: &'static str },
    /// Opens a channel.
    Channel,
}

fn attempt() -> impl Strategy<Value = Attempt> {
    let login = prop_oneof![3 => Just("git"), 1 => Just("larder"), 1 => Just("root"), 1 => Just("alice")];
    prop_oneof![
        6 => (SEEDS, SEEDS, login.clone()).prop_map(|(claimed, signer, login)| Attempt::Key { claimed, signer, login }),
        1 => login.clone().prop_map(|login| Attempt::Password { login }),
        1 => login.prop_map(|login| Attempt::Nothing { login }),
        1 => Just(Attempt::Channel),
    ]
}

/// Returns the user that an attempt proves to be.
fn proven(attempt: &Attempt) -> Option<&'static str> {
    match attempt {
        Attempt::Key { claimed, signer, login: "git" | "larder" } if claimed == signer => match claimed {
            1 => Some("alice"),
            2 => Some("bob"),
            _ => None,
        },
        _ => None,
    }
}

/// Makes the attempts on one connection. Returns the user as whom the server carried out a command afterwards.
async fn user_after(world: &World, attempts: &[Attempt]) -> Option<String> {
    world.handler.calls.lock().clear();
    let mut handle: russh::client::Handle<Trusting> = connect(world).await;
    for attempt in attempts {
        let result = match attempt {
            Attempt::Key { claimed, signer, login } if claimed == signer => login_as(&mut handle, login, *claimed).await,
            Attempt::Key { claimed, signer, login } => {
                let key = new_key(*claimed).public_key().clone();
                let forged = handle.authenticate_publickey_with(*login, key, None, &mut Forger(new_key(*signer))).await;
                forged.expect("the server ended the connection")
            }
            Attempt::Password { login } => handle.authenticate_password(*login, "guess").await.unwrap(),
            Attempt::Nothing { login } => handle.authenticate_none(*login).await.unwrap(),
            Attempt::Channel => {
                // Before the login, the server does not answer this request; russh closes the connection.
                let opened = tokio::time::timeout(Duration::from_millis(50), handle.channel_open_session()).await;
                assert!(!matches!(opened, Ok(Ok(_))), "a channel was opened before the login");
                assert!(world.handler.calls.lock().is_empty(), "a request was carried out before the login");
                return None;
            }
        };
        if matches!(result, AuthResult::Success) {
            break;
        }
    }
    let opened = tokio::time::timeout(Duration::from_secs(5), handle.channel_open_session()).await;
    if let Ok(Ok(mut channel)) = opened {
        channel.exec(true, "true").await.unwrap();
        while channel.wait().await.is_some() {}
    }
    let calls = world.handler.calls.lock();
    assert!(calls.len() <= 1, "{calls:?}");
    calls.first().map(|call| call.0.clone())
}

/// The model: the user is the first one that was proven before a channel was requested.
fn expected(attempts: &[Attempt]) -> Option<&'static str> {
    let before = attempts.iter().take_while(|attempt| !matches!(attempt, Attempt::Channel));
    before.into_iter().find_map(proven)
}

#[test]
fn random_offers_and_failures_give_no_wrong_identity() {
    let cases = if std::env::var_os("LARDER_TEST_THOROUGH").is_some() { 2000 } else { 60 };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::with(|config| {
        config.limits.auth_failures = 100;
        config.limits.offers = 200;
    }));
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() });
    let run = runner.run(&proptest::collection::vec(attempt(), 1..10), |attempts| {
        let user = runtime.block_on(user_after(&world, &attempts));
        prop_assert_eq!(user.as_deref(), expected(&attempts), "{:?}", attempts);
        Ok(())
    });
    run.unwrap();
    // A login is recorded only after the proof, and every recorded refusal is a refusal.
    let answers = world.handler.answers.lock().clone();
    assert!(answers.iter().any(|answer| answer.outcome.is_ok()) && answers.iter().any(|answer| answer.outcome.is_err()));
    let stranger = keys::info(new_key(3).public_key()).unwrap().fingerprint_sha256;
    assert!(answers.iter().all(|answer| answer.fingerprint != stranger || answer.outcome.is_err()));
    runtime.block_on(world.end());
}

/// OpenSSH offers a key of which it has only the public half, and cannot sign with it. The next key identifies the user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_with_several_keys_is_the_user_of_the_key_that_signed() {
    let world = World::new().await;
    let root = world.root();
    for (name, seed) in [("public-alice", 1), ("public-stranger", 3)] {
        fs::write(root.join(name), line_of(&new_key(seed)) + "\n").unwrap();
    }
    for files in [&["public-alice", "bob"][..], &["stranger", "public-alice", "public-stranger", "bob"], &["bob", "public-alice"]]
    {
        world.handler.calls.lock().clear();
        let mut command = Command::new("ssh");
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", root).stdin(Stdio::null()).kill_on_drop(true);
        let options = world.options("bob");
        command.args(options.iter().take(options.len() - 2));
        for file in files {
            command.arg("-o").arg(format!("IdentityFile={}", root.join(file).display()));
        }
        let output = command.args(["git@127.0.0.1", "true"]).output().await.unwrap();
        assert!(output.status.success(), "{files:?}: {}", text(&output.stderr));
        assert_eq!(world.handler.calls.lock()[0].0, "bob", "{files:?}");
    }
    // Alice's public half alone is no login, although the server asks for a signature with it.
    fs::write(root.join("only"), line_of(&new_key(1)) + "\n").unwrap();
    assert_eq!(world.run("only", &["true"]).await.status.code(), Some(255));
    world.end().await;
}

/// russh does not pass the signature on, so larder cannot see the flags of a security key: a signature without a touch is accepted. larder
/// therefore adds such a key only with `--no-touch-required`. If this test fails, russh passes the flags on, or refuses the key itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signature_of_a_security_key_is_verified_but_its_touch_is_not() {
    let world = World::new().await;
    let owner = new_key(7);
    let owner_key = owner.public_key().key_data().ed25519().copied().unwrap();
    let key = PublicKey::new(KeyData::SkEd25519(SkEd25519::new(owner_key, "ssh:")), "");
    let line = keys::info(&key).unwrap().openssh_line;
    let identity = SshIdentity { user: "carol".parse().unwrap(), key: line.clone(), certificate: None };
    world.handler.keys.lock().push((line, identity));
    for (signed, sent, signer, accepted) in
        [(1, 1, 7, true), (5, 5, 7, true), (0, 0, 7, true), (0, 1, 7, false), (1, 0, 7, false), (1, 1, 8, false)]
    {
        let mut handle = connect(&world).await;
        let mut token = Token { key: new_key(signer), signed, sent };
        let result = handle.authenticate_publickey_with("git", key.clone(), None, &mut token).await.unwrap();
        assert_eq!(result.success(), accepted, "{signed} {sent} {signer}");
    }
    world.end().await;
}

/// A security key of PROTOCOL.u2f in software. The flags that are signed and the flags that are sent may differ.
struct Token {
    key: PrivateKey,
    signed: u8,
    sent: u8,
}

impl russh::Signer for Token {
    type Error = Unsendable;

    async fn auth_sign(
        &mut self,
        _key: &AgentIdentity,
        _hash: Option<russh::keys::HashAlg>,
        mut data: Vec<u8>,
    ) -> Result<Vec<u8>, Unsendable> {
        let digest = |bytes: &[u8]| russh::keys::HashAlg::Sha256.digest(bytes);
        let counter = [0, 0, 0, 9];
        let message = [digest(b"ssh:"), vec![self.signed], counter.to_vec(), digest(&data)].concat();
        let plain: Signature = self.key.try_sign(&message).unwrap();
        let signature = [plain.as_bytes(), &[self.sent], &counter].concat();
        let signature = Signature::new(Algorithm::SkEd25519, signature).unwrap();
        let bytes = Vec::<u8>::try_from(signature).unwrap();
        data.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        data.extend_from_slice(&bytes);
        Ok(data)
    }
}

#[tokio::test]
async fn identity_of_a_connection_does_not_change_after_the_login() {
    let world = World::new().await;
    let config = SshServerConfig::new(new_key(50));
    let (handler, peer) = (Arc::clone(&world.handler) as Arc<dyn ExecHandler>, "192.0.2.1:22".parse().unwrap());
    let mut authentication = Authentication::new(handler, Arc::new(config), peer, ConnectionProgress::new());
    let (alice, bob) = (new_key(1), new_key(2));
    assert_eq!(authentication.offered("git", alice.public_key(), &Algorithm::Ed25519).unwrap(), Auth::Accept);
    assert!(authentication.current().is_none() && !authentication.is_done(), "an offer is an identity");
    assert_eq!(authentication.proven("git", bob.public_key(), &Algorithm::Ed25519).await.unwrap(), Auth::Accept);
    assert_ne!(authentication.proven("git", alice.public_key(), &Algorithm::Ed25519).await.unwrap(), Auth::Accept);
    assert_eq!(authentication.current().unwrap().user.as_str(), "bob");
    // The removal of the key ends the identity, and no offer brings another one.
    world.handler.keys.lock().retain(|(_, identity)| identity.user.as_str() != "bob");
    assert_eq!(authentication.offered("git", alice.public_key(), &Algorithm::Ed25519).unwrap(), Auth::Accept);
    assert!(authentication.current().is_none());
    world.end().await;
}
