//! The SSH server with the clients that people use: OpenSSH and git, and Dropbear and PuTTY if they are installed.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_returns_output_errors_and_status() {
    let world = World::new().await;
    let output = world.run("alice", &["both"]).await;
    assert_eq!((text(&output.stdout), text(&output.stderr), output.status.code()), ("out\n".into(), "err\n".into(), Some(3)));
    assert_eq!(world.run("alice", &["true"]).await.status.code(), Some(0));
    assert_eq!(world.run("bob", &["false"]).await.status.code(), Some(1));
    assert_eq!(text(&world.run("bob", &[]).await.stdout), "hello bob\n");
    let calls = world.handler.calls.lock().clone();
    assert_eq!(calls[0].0, "alice");
    assert_eq!(calls[3], (String::from("bob"), ExecRequest::Shell, None, None));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_request_gets_one_error_line() {
    let world = World::new().await;
    for command in ["git-receive-pack '../etc'", "git-upload-archive 'shop'", "git-receive-pack --help", "x 'y"] {
        let output = world.run("alice", &[command]).await;
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command}: {errors}");
        assert!(errors.starts_with("larder: ") && errors.lines().count() == 1, "{command}: {errors}");
    }
    assert!(world.handler.calls.lock().is_empty());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_key_or_login_is_refused() {
    let world = World::new().await;
    let refused =
        |output: &Output| output.status.code() == Some(255) && text(&output.stderr).contains("Permission denied (publickey)");
    assert!(refused(&world.run("stranger", &["true"]).await));
    let wrong_login = world.ssh("alice").args(["root@127.0.0.1", "true"]).output().await.unwrap();
    assert!(refused(&wrong_login));
    world.handler.keys.lock().clear();
    assert!(refused(&world.run("alice", &["true"]).await));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panic_ends_one_request_only() {
    let world = World::new().await;
    assert_eq!(world.run("alice", &["bug"]).await.status.code(), Some(70));
    assert_eq!(world.run("alice", &["true"]).await.status.code(), Some(0));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn git_push_fetch_and_clone_work() {
    let world = World::new().await;
    let root = world.root().to_owned();
    world.git(&root, "", &["init", "--bare", "shop.git"]).await;
    world.git(&root, "", &["init", "work"]).await;
    let work = root.join("work");
    // The file cannot be compressed. Each transfer is therefore several megabytes long, and ssh changes its keys several times.
    let mut noise = vec![0; 6 << 20];
    let mut state = 1_u64;
    for chunk in noise.chunks_mut(8) {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let bytes = (state ^ (state >> 29)).to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
    fs::write(work.join("noise"), &noise).unwrap();
    world.git(&work, "", &["add", "."]).await;
    world.git(&work, "", &["commit", "-m", "one"]).await;
    world.git(&work, "-o RekeyLimit=1M", &["push", &world.url(), "main"]).await;
    world.git(&root, "-o RekeyLimit=1M", &["clone", &world.url(), "copy"]).await;
    assert_eq!(fs::read(root.join("copy/noise")).unwrap(), noise);
    fs::write(work.join("more"), "more").unwrap();
    world.git(&work, "", &["add", "."]).await;
    world.git(&work, "", &["commit", "-m", "two"]).await;
    world.git(&work, "", &["push", &world.url(), "main"]).await;
    world.git(&root.join("copy"), "", &["pull"]).await;
    assert_eq!(fs::read_to_string(root.join("copy/more")).unwrap(), "more");
    let calls = world.handler.calls.lock().clone();
    assert!(calls.iter().any(|(_, _, protocol, _)| protocol.as_deref() == Some("version=2")), "{calls:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_reader_gets_all_output_and_the_status() {
    let world = World::new().await;
    let mut child = world.ssh("alice").args(["git@127.0.0.1", "zeros 12"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut total = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match output.read(&mut buffer).await.unwrap() {
            0 => break,
            count => total += count,
        }
        if total % (1 << 20) < 32 * 1024 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(total, 12 << 20);
    assert_eq!(child.wait().await.unwrap().code(), Some(7));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_input_arrives_and_echo_does_not_deadlock() {
    let world = World::new().await;
    let file = world.root().join("input");
    fs::write(&file, vec![b'i'; 24 << 20]).unwrap();
    let counted = world.ssh("alice").args(["git@127.0.0.1", "count"]).stdin(fs::File::open(&file).unwrap()).output();
    assert_eq!(text(&counted.await.unwrap().stdout), format!("{}\n", 24 << 20));
    let echoed = world.ssh("alice").args(["git@127.0.0.1", "cat"]).stdin(fs::File::open(&file).unwrap()).output();
    let echoed = echoed.await.unwrap();
    assert_eq!((echoed.stdout.len(), echoed.status.code()), (24 << 20, Some(0)));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stuck_channel_does_not_block_other_channels() {
    let world = World::new().await;
    let socket = world.root().join("mux");
    let file = world.root().join("input");
    fs::write(&file, vec![b'i'; 40 << 20]).unwrap();
    let path = socket.display().to_string();
    let mut stuck = world
        .ssh("alice")
        .args(["-M", "-S", &path, "git@127.0.0.1", "stuck"])
        .stdin(fs::File::open(&file).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 6];
    stuck.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    for _ in 0..3 {
        let other = world.ssh("alice").args(["-S", &path, "git@127.0.0.1", "zeros 4"]).output().await.unwrap();
        assert_eq!((other.stdout.len(), other.status.code()), (4 << 20, Some(7)));
    }
    // A channel whose client reads no output does not block other channels, either.
    let mut lazy = world.ssh("alice").args(["-S", &path, "git@127.0.0.1", "zeros 30"]).stdout(Stdio::piped()).spawn().unwrap();
    lazy.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    for _ in 0..3 {
        let other = world.ssh("alice").args(["-S", &path, "git@127.0.0.1", "zeros 4"]).output().await.unwrap();
        assert_eq!((other.stdout.len(), other.status.code()), (4 << 20, Some(7)));
    }
    assert_eq!(world.handler.calls.lock().len(), 8);
    lazy.kill().await.unwrap();
    stuck.kill().await.unwrap();
    world.end().await;
}

/// Returns true if a program is installed, and prints a line if it is not.
fn installed(program: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropbear_client_works() {
    if !installed("dbclient") || !installed("dropbearconvert") {
        return;
    }
    let world = World::new().await;
    let key = world.root().join("alice.db");
    let alice = world.root().join("alice");
    let converted = Command::new("dropbearconvert").args(["openssh", "dropbear"]).arg(alice).arg(&key).output().await.unwrap();
    assert!(converted.status.success(), "{}", text(&converted.stderr));
    let output = Command::new("dbclient")
        .env("HOME", world.root())
        .args(["-y", "-y", "-T", "-p", &world.address.port().to_string(), "-i"])
        .arg(&key)
        .args(["git@127.0.0.1", "zeros 3"])
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert_eq!((output.stdout.len(), output.status.code()), (3 << 20, Some(7)), "{}", text(&output.stderr));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn putty_client_works() {
    if !installed("plink") || !installed("puttygen") {
        return;
    }
    let world = World::new().await;
    let key = world.root().join("alice.ppk");
    let converted =
        Command::new("puttygen").arg(world.root().join("alice")).arg("-o").arg(&key).stdin(Stdio::null()).output().await.unwrap();
    assert!(converted.status.success(), "{}", text(&converted.stderr));
    let (_, fingerprint) = keys::load_or_create_host_key(&world.root().join("host")).unwrap();
    let output = Command::new("plink")
        .env("HOME", world.root())
        .args(["-batch", "-ssh", "-noagent", "-T", "-hostkey", &fingerprint, "-P", &world.address.port().to_string(), "-i"])
        .arg(&key)
        .args(["git@127.0.0.1", "zeros 3"])
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert_eq!((output.stdout.len(), output.status.code()), (3 << 20, Some(7)), "{}", text(&output.stderr));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_accepted_sizes_of_rsa_and_ecdsa_keys_log_in() {
    let world = World::new().await;
    for (kind, bits, good) in [("rsa", "2048", true), ("ecdsa", "256", true), ("rsa", "1024", false), ("ecdsa", "384", false)] {
        let name = format!("{kind}{bits}");
        let path = world.root().join(&name);
        let made =
            Command::new("ssh-keygen").args(["-q", "-N", "", "-t", kind, "-b", bits, "-f"]).arg(&path).output().await.unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        let line = fs::read_to_string(path.with_extension("pub")).unwrap();
        match keys::parse_line(&line) {
            Ok(key) => {
                assert!(good, "{name}");
                let identity = SshIdentity { user: "carol".parse().unwrap(), key: key.openssh_line.clone(), certificate: None };
                world.handler.keys.lock().push((key.openssh_line, identity));
                assert!(world.run(&name, &["true"]).await.status.success(), "{name}");
            }
            Err(error) => assert!(!good, "{name}: {error}"),
        }
    }
    // A signature with SHA-1 is refused, although the key is accepted.
    let old =
        world.ssh("rsa2048").args(["-o", "PubkeyAcceptedAlgorithms=ssh-rsa", "git@127.0.0.1", "true"]).output().await.unwrap();
    assert_eq!(old.status.code(), Some(255));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compression_is_refused_and_terminal_is_granted() {
    let world = World::new().await;
    let output = world.ssh("alice").args(["-v", "-C", "-tt", "git@127.0.0.1", "both"]).output().await.unwrap();
    let log = text(&output.stderr);
    assert!(log.contains("compression: none") && !log.contains("compression: zlib"), "{log}");
    assert!(log.contains("larder"), "{log}");
    assert!(text(&output.stdout).contains("out\r\n"), "{:?}", text(&output.stdout));
    let calls = world.handler.calls.lock().clone();
    assert!(calls[0].3.is_some());
    world.end().await;
}
