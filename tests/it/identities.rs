//! Random sequences of offers, failures and proofs on real connections: only the first valid proof of a connection gives an identity, for
//! `whoami` and for the audit log.
//!
//! `LARDER_TEST_CASES` sets the number of sequences, and `LARDER_TEST_SEED` repeats a run. With `LARDER_TEST_THOROUGH`, there are 500 sequences.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::{
    collection::vec,
    prelude::{Just, Strategy, prop_oneof},
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use russh::{
    ChannelMsg,
    client::{self, AuthResult, Handle},
    keys::{
        Certificate, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate, agent::AgentIdentity, load_secret_key,
        signature::Signer as _, ssh_key::Signature,
    },
};
use serde_json::Value;

use crate::harness::{World, cli::Output, in_one_mode};

in_one_mode!(only_the_first_valid_proof_of_a_connection_is_an_identity);

/// The keys: two users, a removed key, a key of another range of addresses, an unknown key, and an unknown key with a certificate.
const KEYS: [&str; 6] = ["alice", "bob", "removed", "distant", "stranger", "certified"];

/// The number of connections at the same time. The server drops some clients at random from 32 connections without a login on.
const AT_ONCE: usize = 12;

/// A step of a client.
#[derive(Debug, Clone)]
enum Step {
    /// Offers a key, and makes no signature.
    Offer { key: &'static str, login: &'static str },
    /// Offers a key, and signs with another one.
    Forge { key: &'static str, signer: &'static str },
    /// Offers a key, and signs with this key.
    Prove { key: &'static str, login: &'static str },
    /// Shows the certificate of a key, and signs with this key.
    Certify { key: &'static str },
    /// Shows the certificate of a key, and signs with another one.
    ForgeCertified { signer: &'static str },
    /// Sends a password.
    Password,
    /// Asks for the methods.
    Nothing,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || (0..KEYS.len()).prop_map(|at| KEYS[at]);
    let login = || prop_oneof![4 => Just("larder"), 1 => Just("git"), 1 => Just("root"), 1 => Just("bob")];
    prop_oneof![
        4 => (key(), login()).prop_map(|(key, login)| Step::Offer { key, login }),
        3 => (key(), key()).prop_map(|(key, signer)| Step::Forge { key, signer }),
        4 => (key(), login()).prop_map(|(key, login)| Step::Prove { key, login }),
        2 => prop_oneof![Just("certified"), Just("alice")].prop_map(|key| Step::Certify { key }),
        1 => key().prop_map(|signer| Step::ForgeCertified { signer }),
        1 => Just(Step::Password),
        1 => Just(Step::Nothing),
    ]
}

/// Returns the user that a step proves, and the key of the proof. The model of the server.
fn proven(step: &Step, certificates: bool) -> Option<(&'static str, &'static str)> {
    let user_of = |key: &str| ["alice", "bob"].into_iter().find(|user| *user == key);
    match step {
        Step::Prove { key, login: "larder" | "git" } => user_of(key).map(|user| (user, *key)),
        Step::Forge { key, signer } if key == signer => user_of(key).map(|user| (user, *key)),
        // The certificate of the key of alice names no user, so it is no proof, although the key itself would be one.
        Step::Certify { key: "certified" } | Step::ForgeCertified { signer: "certified" } if certificates => {
            Some(("bob", "certified"))
        }
        _ => None,
    }
}

struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _key: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// Signs with any key; without a key, the client only offers.
struct Pen<'a>(Option<&'a PrivateKey>);

#[derive(Debug)]
struct Unsigned;

impl From<russh::SendError> for Unsigned {
    fn from(_: russh::SendError) -> Self {
        Unsigned
    }
}

impl russh::Signer for Pen<'_> {
    type Error = Unsigned;

    async fn auth_sign(&mut self, _key: &AgentIdentity, _hash: Option<HashAlg>, mut data: Vec<u8>) -> Result<Vec<u8>, Unsigned> {
        let signature: Signature = self.0.ok_or(Unsigned)?.try_sign(&data).unwrap();
        let bytes = Vec::<u8>::try_from(signature).unwrap();
        data.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        data.extend_from_slice(&bytes);
        Ok(data)
    }
}

/// The files of the clients.
struct Clients {
    address: (&'static str, u16),
    keys: BTreeMap<&'static str, Arc<PrivateKey>>,
    certificates: BTreeMap<&'static str, Certificate>,
}

impl Clients {
    fn new(world: &World) -> Clients {
        let keys = KEYS.map(|name| (name, Arc::new(load_secret_key(world.private_key(name), None).unwrap())));
        let certificate = |name: &'static str| {
            let path = world.private_key(&format!("{name}-cert.pub"));
            (name, Certificate::from_openssh(&std::fs::read_to_string(path).unwrap()).unwrap())
        };
        let certificates = ["certified", "alice"].map(certificate);
        Clients { address: ("127.0.0.1", world.ssh_port()), keys: keys.into(), certificates: certificates.into() }
    }

    /// Makes one step. Returns true if the server has accepted the client.
    async fn step(&self, handle: &mut Handle<Trusting>, step: &Step) -> bool {
        let public = |name: &str| self.keys[name].public_key().clone();
        let signed = |result: Result<AuthResult, Unsigned>| result.is_ok_and(|result| result.success());
        match step {
            Step::Offer { key, login } => {
                let result = handle.authenticate_publickey_with(*login, public(key), None, &mut Pen(None)).await;
                // Either the server refuses the key, or it asks for the signature that this client does not make.
                assert!(!signed(result), "an offer was a login");
                false
            }
            Step::Forge { key, signer } => {
                let mut pen = Pen(Some(&self.keys[signer]));
                signed(handle.authenticate_publickey_with("larder", public(key), None, &mut pen).await)
            }
            Step::Prove { key, login } => {
                let key = PrivateKeyWithHashAlg::new(Arc::clone(&self.keys[key]), None);
                handle.authenticate_publickey(*login, key).await.unwrap().success()
            }
            Step::Certify { key } => {
                let (certificate, key) = (self.certificates[key].clone(), Arc::clone(&self.keys[key]));
                handle.authenticate_openssh_cert("larder", key, certificate).await.unwrap().success()
            }
            Step::ForgeCertified { signer } => {
                let mut pen = Pen(Some(&self.keys[signer]));
                let certificate = self.certificates["certified"].clone();
                signed(handle.authenticate_certificate_with("larder", certificate, None, &mut pen).await)
            }
            Step::Password => handle.authenticate_password("larder", "guess").await.unwrap().success(),
            Step::Nothing => handle.authenticate_none("larder").await.unwrap().success(),
        }
    }

    /// Makes the steps on one connection until the server accepts the client. Returns the answer to `whoami`, after a request that the audit
    /// log records as a request about the project `mark`.
    async fn identity_after(&self, steps: &[Step], mark: &str) -> Option<Value> {
        let mut handle = client::connect(Arc::default(), self.address, Trusting).await.unwrap();
        let mut accepted = false;
        for step in steps {
            accepted = self.step(&mut handle, step).await;
            if accepted {
                break;
            }
        }
        if !accepted {
            // The server does not answer a client that has not logged in.
            let opened = tokio::time::timeout(Duration::from_millis(100), handle.channel_open_session()).await;
            assert!(!matches!(opened, Ok(Ok(_))), "a client without a login has opened a channel");
            return None;
        }
        run(&handle, &format!("restart {mark}")).await;
        Some(serde_json::from_slice(&run(&handle, "whoami --json").await).unwrap())
    }
}

async fn run(handle: &Handle<Trusting>, command: &str) -> Vec<u8> {
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, command).await.unwrap();
    let mut output = Vec::new();
    while let Some(message) = channel.wait().await {
        if let ChannelMsg::Data { data } = message {
            output.extend_from_slice(&data);
        }
    }
    output
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn only_the_first_valid_proof_of_a_connection_is_an_identity(world: &World) {
    for name in KEYS.iter().filter(|name| **name != "alice") {
        world.key(name);
    }
    for name in ["bob", "removed"] {
        world.larder(&["user", "add", name, "--key-file", &world.public_key(name)]).ok();
    }
    world.larder(&["user", "remove", "removed"]).ok();
    world.larder(&["key", "add", "alice", "--key-file", &world.public_key("distant"), "--from", "192.0.2.0/24"]).ok();
    world.key("office");
    for (name, principal) in [("certified", "bob"), ("alice", "nobody")] {
        let mut keygen = world.client("ssh-keygen");
        keygen.args(["-q", "-s"]).arg(world.private_key("office")).args(["-I", name, "-n", principal]);
        Output::of(keygen.arg(world.public_key(name))).ok();
    }
    let clients = Arc::new(Clients::new(world));
    let thorough = crate::harness::thorough();
    let cases = number("LARDER_TEST_CASES", if thorough { 500 } else { 36 });
    let seed = number("LARDER_TEST_SEED", 20_261_130);
    eprintln!("{cases} sequences, LARDER_TEST_SEED={seed}");
    let bytes: Vec<u8> = (0..4_u64).flat_map(|part| (seed ^ part).to_le_bytes()).collect();
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let sequences: Vec<Vec<Step>> = (0..cases).map(|_| vec(step(), 1..7).new_tree(&mut runner).unwrap().current()).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // Half of the sequences run before the authority is trusted.
    let half = sequences.len() / 2;
    let mut expected = BTreeMap::new();
    for (certificates, numbers) in [(false, 0..half), (true, half..sequences.len())] {
        if certificates {
            world.larder(&["user", "ca", "add", "office", "--key-file", &world.public_key("office")]).ok();
        }
        let permits = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        let running: Vec<_> = numbers
            .map(|number| {
                let (clients, permits, steps) = (Arc::clone(&clients), Arc::clone(&permits), sequences[number].clone());
                let task = runtime.spawn(async move {
                    let _permit = permits.acquire_owned().await.unwrap();
                    clients.identity_after(&steps, &format!("p{number}")).await
                });
                (number, task)
            })
            .collect();
        for (number, task) in running {
            let steps = &sequences[number];
            let identity = runtime.block_on(task).unwrap_or_else(|error| panic!("{number}: {steps:?}: {error}"));
            let proof = steps.iter().find_map(|step| proven(step, certificates));
            let proof = proof.map(|(user, key)| (user, clients.keys[key].public_key().fingerprint(HashAlg::Sha256).to_string()));
            let seen = identity.as_ref().map(|identity| {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                (text(&identity["name"]), text(&identity["key"]["fingerprint"]))
            });
            assert_eq!(seen, proof.clone().map(|(user, key)| (user.to_owned(), key)), "{number}: {steps:?}");
            expected.insert(format!("p{number}"), proof);
        }
    }
    let audit = world.larder(&["--json", "audit", "--lines", "100000"]).json();
    let (mut recorded, mut users) = (0, BTreeMap::<&str, u32>::new());
    for row in audit["records"].as_array().unwrap().iter().filter(|row| row["what"] == "restart") {
        let proof = expected[row["on"].as_str().unwrap()].as_ref().unwrap_or_else(|| panic!("no proof, but {row}"));
        assert_eq!(row["who"], proof.0, "{row}");
        assert!(row["key"].as_str().unwrap().starts_with(&proof.1), "{row}");
        recorded += 1;
        *users.entry(proof.0).or_default() += 1;
    }
    let logins = expected.values().flatten().count();
    assert!(recorded >= logins && users.len() == 2 && logins < expected.len(), "{recorded} records, {logins} logins, {users:?}");
    eprintln!("{cases} sequences, {logins} logins, {recorded} records of the audit log");
    let offers = world.larder(&["--json", "doctor", "keys"]).json();
    for row in offers.as_array().unwrap().iter().filter(|row| row["refused"].is_null()) {
        assert!(row["user"] == "alice" || row["user"] == "bob", "{row}");
    }
}
