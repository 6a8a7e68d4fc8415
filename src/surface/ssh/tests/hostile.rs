//! The SSH server with hostile clients: too many requests, forged signatures, clients that send nothing.

use russh::{
    ChannelMsg,
    client::{self, AuthResult, Handle},
    keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate, agent::AgentIdentity, signature::Signer as _, ssh_key::Signature},
};
use tokio::net::TcpStream;

use super::*;

pub struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _key: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

pub async fn connect(world: &World) -> Handle<Trusting> {
    client::connect(Arc::default(), world.address, Trusting).await.unwrap()
}

async fn login(handle: &mut Handle<Trusting>, seed: u8) -> AuthResult {
    login_as(handle, "git", seed).await
}

pub async fn login_as(handle: &mut Handle<Trusting>, login: &str, seed: u8) -> AuthResult {
    let key = PrivateKeyWithHashAlg::new(Arc::new(new_key(seed)), None);
    handle.authenticate_publickey(login, key).await.unwrap()
}

/// A client that claims one key and signs with another key.
pub struct Forger(pub PrivateKey);

#[derive(Debug)]
pub struct Unsendable;

impl From<russh::SendError> for Unsendable {
    fn from(_: russh::SendError) -> Self {
        Unsendable
    }
}

impl russh::Signer for Forger {
    type Error = Unsendable;

    async fn auth_sign(
        &mut self,
        _key: &AgentIdentity,
        _hash: Option<russh::keys::HashAlg>,
        mut data: Vec<u8>,
    ) -> Result<Vec<u8>, Unsendable> {
        let signature: Signature = self.0.try_sign(&data).unwrap();
        let bytes = Vec::<u8>::try_from(signature).unwrap();
        data.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        data.extend_from_slice(&bytes);
        Ok(data)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offered_key_without_signature_is_no_identity() {
    let world = World::new().await;
    let mut handle = connect(&world).await;
    // Alice's key is known, so the server asks for a signature. A signature with Bob's key does not match.
    let alice = new_key(1).public_key().clone();
    let forged = handle.authenticate_publickey_with("git", alice, None, &mut Forger(new_key(2))).await;
    assert!(matches!(forged, Ok(AuthResult::Failure { .. })), "{forged:?}");
    assert!(login(&mut handle, 2).await.success());
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "true").await.unwrap();
    while channel.wait().await.is_some() {}
    assert_eq!(world.handler.calls.lock()[0].0, "bob");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channel_before_login_is_refused() {
    let world = World::new().await;
    let handle = connect(&world).await;
    let opened = tokio::time::timeout(Duration::from_millis(300), handle.channel_open_session()).await;
    assert!(!matches!(opened, Ok(Ok(_))));
    assert!(world.handler.calls.lock().is_empty());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_offers_and_logins_are_limited() {
    let world = World::new().await;
    let mut handle = connect(&world).await;
    let mut refused = 0;
    for seed in 10..60 {
        let key = PrivateKeyWithHashAlg::new(Arc::new(new_key(seed)), None);
        match handle.authenticate_publickey("git", key).await {
            Ok(result) if !result.success() && !handle.is_closed() => refused += 1,
            _ => break,
        }
    }
    assert!((10..=21).contains(&refused), "{refused}");
    // A client that offers 18 unknown keys before its own key still logs in.
    let mut handle = connect(&world).await;
    for seed in 10..28 {
        assert!(!login(&mut handle, seed).await.success());
    }
    assert!(login(&mut handle, 1).await.success());
    let mut handle = connect(&world).await;
    let mut refused = 0;
    while let Ok(result) = handle.authenticate_password("git", "guess").await {
        assert!(!result.success());
        refused += 1;
        if refused > 30 || handle.is_closed() {
            break;
        }
    }
    assert!(refused <= 7, "{refused}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_per_connection_are_limited() {
    let world = World::new().await;
    let mut handle = connect(&world).await;
    assert!(login(&mut handle, 1).await.success());
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(handle.channel_open_session().await.unwrap());
    }
    for _ in 0..3000 {
        assert!(matches!(handle.channel_open_session().await, Err(russh::Error::ChannelOpenFailure(_))));
    }
    // Each channel that ended is replaced by a new channel, until the connection has opened 32 channels.
    for _ in 4..32 {
        let channel = open.remove(0);
        channel.exec(true, "true").await.unwrap();
        let mut channel = channel;
        while channel.wait().await.is_some() {}
        let again = loop {
            match handle.channel_open_session().await {
                Ok(channel) => break channel,
                // A channel is counted for a moment after its end.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        open.push(again);
    }
    let channel = open.remove(0);
    channel.close().await.unwrap();
    drop(channel);
    assert!(handle.channel_open_session().await.is_err());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unserved_protocol_requests_are_refused() {
    let world = World::new().await;
    let mut handle = connect(&world).await;
    assert!(login(&mut handle, 1).await.success());
    assert!(handle.channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 1).await.is_err());
    assert!(handle.channel_open_direct_streamlocal("/run/x").await.is_err());
    assert!(handle.channel_open_x11("127.0.0.1", 1).await.is_err());
    assert!(handle.tcpip_forward("127.0.0.1", 0).await.is_err());
    assert!(handle.streamlocal_forward("/tmp/x").await.is_err());
    let mut channel = handle.channel_open_session().await.unwrap();
    let answers = [
        (false, "env LD_PRELOAD"),
        (false, "env PATH"),
        (false, "env GIT_DIR"),
        (false, "env GIT_PROTOCOL"),
        (true, "env good"),
        (false, "subsystem"),
        (false, "agent"),
        (false, "x11"),
        (true, "pty"),
        (true, "exec"),
        (false, "exec again"),
    ];
    for (good, what) in answers {
        match what {
            "env LD_PRELOAD" => channel.set_env(true, "LD_PRELOAD", "/tmp/x.so").await.unwrap(),
            "env PATH" => channel.set_env(true, "PATH", "/tmp").await.unwrap(),
            "env GIT_DIR" => channel.set_env(true, "GIT_DIR", "/tmp").await.unwrap(),
            "env GIT_PROTOCOL" => channel.set_env(true, "GIT_PROTOCOL", "version=2;id").await.unwrap(),
            "env good" => channel.set_env(true, "GIT_PROTOCOL", "version=2").await.unwrap(),
            "subsystem" => channel.request_subsystem(true, "sftp").await.unwrap(),
            "agent" => channel.agent_forward(true).await.unwrap(),
            "x11" => channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0).await.unwrap(),
            "pty" => channel.request_pty(true, "xterm\x1b[2J", 80, 24, 0, 0, &[]).await.unwrap(),
            _ => channel.exec(true, "stuck").await.unwrap(),
        }
        let answer = loop {
            match channel.wait().await.unwrap() {
                ChannelMsg::Success => break true,
                ChannelMsg::Failure => break false,
                _ => {}
            }
        };
        assert_eq!(answer, good, "{what}");
    }
    while world.handler.calls.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let calls = world.handler.calls.lock().clone();
    let tty = ClientTerminal::new("dumb", TerminalSize::new(80, 24), Vec::new());
    assert_eq!(calls.len(), 1);
    assert_eq!((calls[0].2.as_deref(), calls[0].3.as_ref()), (Some("version=2"), Some(&tty)));
    // Ctrl-C interrupts the request, and lines have carriage returns.
    channel.data(&b"\x03"[..]).await.unwrap();
    let (mut output, mut order) = (Vec::new(), Vec::new());
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } => output.extend_from_slice(&data),
            ChannelMsg::ExitStatus { .. } => order.push("status"),
            ChannelMsg::Eof => order.push("eof"),
            ChannelMsg::Close => order.push("close"),
            _ => {}
        }
    }
    assert_eq!(order, ["status", "eof", "close"]);
    assert!(output.is_empty() || output == b"stuck\r\n", "{output:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_is_notified_when_client_is_gone() {
    let world = World::new().await;
    let mut child = world.ssh("alice").args(["git@127.0.0.1", "stuck"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    child.kill().await.unwrap();
    world.handler.finished.notified().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_key_stops_working_in_open_connections() {
    let world = World::new().await;
    let mut handle = connect(&world).await;
    assert!(login(&mut handle, 1).await.success());
    world.handler.keys.lock().clear();
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "true").await.unwrap();
    let (mut told, mut status) = (String::new(), None);
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::ExtendedData { data, .. } => told += &text(&data),
            ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
            _ => {}
        }
    }
    assert_eq!(status, Some(3), "refused, not a usage error");
    assert!(told.contains("removed") && world.handler.calls.lock().is_empty(), "{told}");
    world.end().await;
}

/// Reads until the server closes the connection.
async fn hung_up(mut stream: TcpStream) {
    let mut sink = vec![0; 4096];
    loop {
        match stream.read(&mut sink).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_and_slow_clients_are_disconnected() {
    let world = World::with(|config| {
        config.limits.handshake = Duration::from_millis(700);
        config.limits.login_grace = Duration::from_millis(1400);
    })
    .await;
    // The first client sends nothing.
    hung_up(TcpStream::connect(world.address).await.unwrap()).await;
    // The second client sends its greeting, then nothing.
    let mut greeted = TcpStream::connect(world.address).await.unwrap();
    greeted.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    hung_up(greeted).await;
    // The third client sends endless data instead of a greeting.
    let mut chatty = TcpStream::connect(world.address).await.unwrap();
    while chatty.write_all(&[b'x'; 65536]).await.is_ok() {}
    // The fourth client never logs in, but keeps the connection busy.
    let handle = connect(&world).await;
    while !handle.is_closed() {
        let _ = handle.send_keepalive(false).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // On a busy machine, an honest login can exceed the limit as well, so the login is retried.
    while !world.run("alice", &["true"]).await.status.success() {}
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connection_ends_but_running_request_stays() {
    let world = World::with(|config| config.limits.idle = Duration::from_secs(1)).await;
    let mut idle = connect(&world).await;
    assert!(login(&mut idle, 1).await.success());
    let mut busy = connect(&world).await;
    assert!(login(&mut busy, 1).await.success());
    let mut channel = busy.channel_open_session().await.unwrap();
    channel.exec(true, "cat").await.unwrap();
    while !idle.is_closed() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!busy.is_closed());
    channel.data(&b"still here"[..]).await.unwrap();
    channel.eof().await.unwrap();
    let mut output = Vec::new();
    while let Some(message) = channel.wait().await {
        if let ChannelMsg::Data { data } = message {
            output.extend_from_slice(&data);
        }
    }
    assert_eq!(output, b"still here");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_lets_running_request_finish() {
    let world = World::new().await;
    let mut handle = connect(&world).await;
    assert!(login(&mut handle, 1).await.success());
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "cat").await.unwrap();
    channel.data(&b"one"[..]).await.unwrap();
    while !matches!(channel.wait().await.unwrap(), ChannelMsg::Data { .. }) {}
    world.shutdown.cancel();
    // New connections are refused.
    while TcpStream::connect(world.address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    channel.data(&b"two"[..]).await.unwrap();
    channel.eof().await.unwrap();
    let (mut output, mut status) = (Vec::new(), None);
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } => output.extend_from_slice(&data),
            ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
            _ => {}
        }
    }
    assert_eq!((output.as_slice(), status), (&b"two"[..], Some(0)));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_ends_stuck_request_after_drain() {
    let world = World::with(|config| config.drain = Duration::from_millis(100)).await;
    let mut handle = connect(&world).await;
    assert!(login(&mut handle, 1).await.success());
    let channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "stuck").await.unwrap();
    while world.handler.calls.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn login_succeeds_during_connection_flood() {
    let world = World::with(|config| config.limits.handshake = Duration::from_millis(500)).await;
    let mut flood = Vec::new();
    for _ in 0..300 {
        flood.push(TcpStream::connect(world.address).await.unwrap());
    }
    // The server keeps 64 connections of the flood for half a second. Then new connections are accepted.
    loop {
        if world.run("alice", &["true"]).await.status.success() {
            break;
        }
    }
    drop(flood);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stuck_request_does_not_grow_memory() {
    let world = World::new().await;
    let mut handle = connect(&world).await;
    assert!(login(&mut handle, 1).await.success());
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "stuck").await.unwrap();
    while !matches!(channel.wait().await.unwrap(), ChannelMsg::Data { .. }) {}
    // The client offers far more data than fit into the window. The server accepts only a few windows.
    let mut taken = 0;
    let (_, write) = channel.split();
    let block = bytes::Bytes::from(vec![b'x'; 256 * 1024]);
    while taken < 200 {
        match tokio::time::timeout(Duration::from_millis(500), write.data_bytes(block.clone())).await {
            Ok(sent) => sent.unwrap(),
            Err(_) => break,
        }
        taken += 1;
    }
    assert!((4..=32).contains(&taken), "{taken}");
    handle.disconnect(russh::Disconnect::ByApplication, "", "").await.unwrap();
    world.end().await;
}

const FEW_FILES: &str = "LARDER_TEST_FEW_FILES";

/// The limit on descriptors applies to a whole process, so this test starts itself again and floods the new process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptor_exhaustion_is_survived() {
    if let Some(path) = std::env::var_os(FEW_FILES) {
        let world = World::with(|config| {
            config.limits.handshake = Duration::from_secs(60);
            config.limits.unauthenticated = 1000;
        })
        .await;
        let few = rustix::process::Rlimit { current: Some(48), maximum: Some(48) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
        let draft = Path::new(&path).with_extension("draft");
        fs::write(&draft, world.address.to_string()).unwrap();
        fs::rename(&draft, &path).unwrap();
        // The first process closes this pipe when its test is done.
        let _ = tokio::io::stdin().read(&mut [0]).await;
        std::process::exit(0);
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("address");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "surface::ssh::tests::hostile::descriptor_exhaustion_is_survived"])
        .env(FEW_FILES, &path)
        // The new process exits without deleting its temporary directory.
        .env("TMPDIR", directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let address: SocketAddr = loop {
        assert!(child.try_wait().unwrap().is_none(), "the server ended");
        match fs::read_to_string(&path) {
            Ok(address) => break address.parse().unwrap(),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let mut flood = Vec::new();
    for _ in 0..120 {
        flood.push(TcpStream::connect(address).await.unwrap());
    }
    // The server has no descriptor left for the last connection, and closes this connection at once.
    hung_up(flood.pop().unwrap()).await;
    drop(flood);
    loop {
        let mut greeting = [0; 14];
        let mut stream = TcpStream::connect(address).await.unwrap();
        if stream.read_exact(&mut greeting).await.is_ok() {
            assert_eq!(&greeting, b"SSH-2.0-larder");
            break;
        }
    }
    drop(child.stdin.take());
    child.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panic_ends_one_connection_only() {
    let world = World::with(|config| config.limits.unauthenticated = 2).await;
    let mut other = connect(&world).await;
    assert!(login(&mut other, 1).await.success());
    let mut channel = other.channel_open_session().await.unwrap();
    channel.exec(true, "cat").await.unwrap();
    // There are more attempts than permits for unauthenticated connections, so each permit must have been returned.
    for _ in 0..4 {
        let mut handle = loop {
            match client::connect(Arc::default(), world.address, Trusting).await {
                Ok(handle) => break handle,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let key = PrivateKeyWithHashAlg::new(Arc::new(new_key(PANIC)), None);
        let result = handle.authenticate_publickey("git", key).await;
        assert!(!matches!(result, Ok(AuthResult::Success)));
    }
    channel.data(&b"fine"[..]).await.unwrap();
    channel.eof().await.unwrap();
    let mut output = Vec::new();
    while let Some(message) = channel.wait().await {
        if let ChannelMsg::Data { data } = message {
            output.extend_from_slice(&data);
        }
    }
    assert_eq!(output, b"fine");
    world.end().await;
}

async fn inside(world: &World, seed: u8) -> client::Handle<Trusting> {
    let mut handle = connect(world).await;
    assert!(login(&mut handle, seed).await.success());
    handle
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_per_user_are_limited() {
    let world = World::with(|config| config.limits.connections_per_user = 2).await;
    let (first, second) = (inside(&world, 1).await, inside(&world, 1).await);
    let third = inside(&world, 1).await;
    while !third.is_closed() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let other = inside(&world, 2).await;
    for handle in [&first, &second, &other] {
        handle.channel_open_session().await.unwrap();
    }
    drop(first);
    loop {
        let again = inside(&world, 1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        if !again.is_closed() {
            break;
        }
    }
    drop((second, other));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finite_field_key_exchange_is_not_offered() {
    let world = World::new().await;
    for costly in [russh::kex::DH_G14_SHA256, russh::kex::DH_G16_SHA512, russh::kex::DH_G18_SHA512, russh::kex::DH_GEX_SHA256] {
        let mut client = client::Config::default();
        client.preferred.kex = std::borrow::Cow::Owned(vec![costly]);
        assert!(client::connect(Arc::new(client), world.address, Trusting).await.is_err(), "{costly:?}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_profile_offers_only_post_quantum_key_exchange() {
    let world = World::with(|config| config.profile = Profile::Strict).await;
    let mut handle = connect(&world).await;
    assert!(login(&mut handle, 1).await.success());
    let mut old = client::Config::default();
    old.preferred.kex = std::borrow::Cow::Borrowed(&[russh::kex::CURVE25519]);
    assert!(client::connect(Arc::new(old), world.address, Trusting).await.is_err());
    world.end().await;
}
