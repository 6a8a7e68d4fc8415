//! The identity of a connection: only a key whose signature was verified identifies a user, whatever was offered before.

use proptest::prelude::*;
use russh::client::AuthResult;

use super::{
    hostile::{Forger, Trusting, connect, login_as},
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
