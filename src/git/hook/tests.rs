//! Tests of the whole protocol: a real `git push`, a real receive-pack with the settings of a served push, the hooks and the listener. The
//! hook program is a relay: named pipes connect its input and output to the hook code, which runs in the test process.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{File, OpenOptions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::{wire::ClientFrame, *};
use crate::{
    git::{
        Expected, MoveRef, ServeLimits, refs, serve,
        source::{self, SourceJob, SourceLimits, SourceReport},
        testing::{World, git},
    },
    model::CommitId,
};

const RELAY: &str = r#"#!/bin/sh
exec 3<&0
d="${0%/*}/$2"
printf %s "$GIT_QUARANTINE_PATH" >"$d.quarantine"
cat <&3 >"$d.in" & feeder=$!
cat "$d.err" >&2 & talker=$!
cat "$d.out"
wait $talker
kill $feeder 2>/dev/null
exit "$(cat "$d.code")"
"#;

struct Push {
    world: World,
    registry: PushRegistry<&'static str>,
    listener: Listener<&'static str>,
    socket: PathBuf,
    commit: CommitId,
    client: tempfile::TempDir,
}

impl Push {
    fn new() -> Push {
        let world = World::new();
        let socket = world.dir.path().join("hook.sock");
        let registry = PushRegistry::new();
        let listener = Listener::bind(&socket, 0o600, Some(rustix::process::geteuid().as_raw()), registry.clone()).unwrap();
        let client = tempfile::tempdir().unwrap();
        for args in
            [&["init", "-q", "-b", "main", "."][..], &["commit", "-q", "--allow-empty", "-m", "one"], &["branch", "other"]]
        {
            assert!(git(client.path(), args, b"").status.success());
        }
        let head = git(client.path(), &["rev-parse", "HEAD"], b"").stdout;
        let commit = String::from_utf8(head).unwrap().trim().parse().unwrap();
        Push { world, registry, listener, socket, commit, client }
    }

    /// Starts `git push` with `args`. The task returns the exit code and the output.
    fn start(&self, token: &str, args: &[&str]) -> tokio::task::JoinHandle<(i32, String)> {
        let dir = self.world.dir.path();
        let relay = dir.join("relay");
        script(&relay, RELAY);
        for kind in ["pre-receive", "proc-receive"] {
            lend(dir, kind, &self.socket, token);
        }
        let hooks = dir.join("hooks");
        std::fs::create_dir_all(&hooks).unwrap();
        for kind in ["pre-receive", "proc-receive"] {
            script(&hooks.join(kind), &format!("#!/bin/sh\nexec '{}' hook {kind}\n", relay.display()));
        }
        let push = serve::PushSettings { hooks: &hooks, socket: &self.socket, token, limits: ServeLimits::default() };
        let command = serve::settings(None, Some(&push)).command(Path::new("git"));
        let mut text = String::from("#!/bin/sh\nexec env -i \\\n");
        for (name, value) in command.get_envs() {
            text.push_str(&format!("'{}={}' \\\n", name.to_str().unwrap(), value.unwrap().to_str().unwrap()));
        }
        text.push_str("git receive-pack --end-of-options \"$1\"\n");
        let receive = dir.join("receive");
        script(&receive, &text);
        let mut all = vec![String::from("push"), format!("--receive-pack={}", receive.display())];
        all.extend(args.iter().take_while(|arg| arg.starts_with('-')).map(|arg| String::from(*arg)));
        all.push(self.world.repository().to_str().unwrap().to_owned());
        all.extend(args.iter().skip_while(|arg| arg.starts_with('-')).map(|arg| String::from(*arg)));
        let client = self.client.path().to_owned();
        tokio::task::spawn_blocking(move || {
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            let output = git(&client, &all, b"");
            (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
        })
    }

    fn refs(&self) -> String {
        self.world.git(&["for-each-ref", "--format=%(refname)"], b"")
    }
}

fn script(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Starts a thread that runs the code of the hook `kind`. Named pipes connect the code to the hook's relay.
fn lend(dir: &Path, kind: &'static str, socket: &Path, token: &str) {
    let at = |end: &str| dir.join(format!("{kind}.{end}"));
    for end in ["in", "out", "err"] {
        rustix::fs::mknodat(rustix::fs::CWD, at(end), rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)
            .unwrap();
    }
    let (input, output, error, code) = (at("in"), at("out"), at("err"), at("code"));
    let quarantine = at("quarantine");
    let mut env: HashMap<&str, OsString> =
        HashMap::from([("LARDER_HOOK_SOCKET", socket.into()), ("LARDER_PUSH_TOKEN", token.into())]);
    std::thread::spawn(move || {
        let open = |path| OpenOptions::new().write(true).open(path).unwrap();
        let mut stdin = File::open(input).unwrap();
        let (mut stderr, mut stdout) = (open(error), open(output));
        let quarantine = std::fs::read_to_string(quarantine).unwrap();
        if !quarantine.is_empty() {
            env.insert("GIT_QUARANTINE_PATH", quarantine.into());
        }
        let exit = client::main(kind, &mut stdin, &mut stdout, &mut stderr, &|name| env.get(name).cloned());
        std::fs::write(code, exit.to_string()).unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn push_of_several_refs_gets_one_verdict_per_ref() {
    let mut push = Push::new();
    let ticket = push.registry.issue("shop").unwrap();
    let done = push.start(&ticket.token().to_hex(), &["-opt", "main", "other", "main:refs/heads/stored"]);

    let first = push.listener.accept().await.unwrap();
    assert_eq!((first.ticket, first.request.kind, first.request.refs.len()), ("shop", HookKind::PreReceive, 3));
    // The recipe is read from git's quarantine, before the push is accepted.
    let inspect = |quarantine| SourceJob {
        commit: push.commit.clone(),
        limits: SourceLimits::default(),
        export: false,
        fresh: false,
        quarantine,
        tags: Vec::new(),
    };
    let paths = &push.world.paths;
    assert!(first.request.quarantine.is_some());
    assert!(matches!(source::perform(paths, &inspect(None)), SourceReport::Failed(_)));
    assert!(matches!(source::perform(paths, &inspect(first.request.quarantine.clone())), SourceReport::Ready(_)));
    first.accept().await;

    let second = push.listener.accept().await.unwrap();
    assert_eq!((second.request.kind, second.request.quarantine.as_ref()), (HookKind::ProcReceive, None));
    assert_eq!(second.request.options, ["pt"]);
    let change = second.request.refs.iter().find(|change| change.refname == "refs/heads/main").unwrap();
    assert!(change.old.is_zero() && change.new == push.commit);
    second.line("-----> Building\u{1b}[2J");
    let moved = MoveRef {
        refname: change.refname.clone(),
        expected: Expected::from(change.old.clone()),
        new: Some(change.new.clone()),
        keep: None,
        forget: Vec::new(),
    };
    refs::move_ref(&push.world.repository(), &moved).unwrap();
    let no = RefVerdict::Refused { reason: String::from("build:\nnpm exited 1") };
    let verdicts = [("main", RefVerdict::Ok), ("other", no), ("stored", RefVerdict::FallThrough)];
    second.finish(verdicts.map(|(name, verdict)| (format!("refs/heads/{name}"), verdict)).to_vec()).await;

    let (code, seen) = done.await.unwrap();
    assert_eq!(code, 1, "{seen}");
    assert!(seen.contains("remote: -----> Building"), "{seen}");
    assert!(seen.contains("[remote rejected] other -> other (build: npm exited 1)"), "{seen}");
    assert!(seen.contains("[new branch]      main -> main"), "{seen}");
    assert_eq!(push.refs(), "refs/heads/main\nrefs/heads/stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn pre_receive_refusal_refuses_every_ref_with_the_reason() {
    let mut push = Push::new();
    let ticket = push.registry.issue("shop").unwrap();
    let done = push.start(&ticket.token().to_hex(), &["main"]);
    let session = push.listener.accept().await.unwrap();
    session.refuse(&[String::from(" !     larder.yml:3: unknown key")], "the recipe is wrong").await;
    let (code, seen) = done.await.unwrap();
    assert_eq!(code, 1);
    assert!(seen.contains("larder.yml:3: unknown key") && seen.contains("the recipe is wrong"), "{seen}");
    assert!(seen.contains("pre-receive hook declined"), "{seen}");
    assert_eq!(push.refs(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_closes_the_connection_refuses_the_push() {
    let mut push = Push::new();
    let ticket = push.registry.issue("shop").unwrap();
    let done = push.start(&ticket.token().to_hex(), &["main"]);
    push.listener.accept().await.unwrap().accept().await;
    drop(push.listener.accept().await.unwrap());
    let (code, seen) = done.await.unwrap();
    assert_eq!(code, 1);
    assert!(
        seen.contains("[remote rejected] main -> main (cannot read the verdict: the connection to the larder server failed"),
        "{seen}"
    );
    assert_eq!(push.refs(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_token_refuses_the_push() {
    let push = Push::new();
    let (code, seen) = push.start(&"0".repeat(32), &["main"]).await.unwrap();
    assert_eq!(code, 1);
    assert!(seen.contains("the push token belongs to no push in progress"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_ref_is_refused_by_git_and_other_refs_are_stored() {
    let mut push = Push::new();
    let ticket = push.registry.issue("shop").unwrap();
    let done = push.start(&ticket.token().to_hex(), &["main:refs/larder/keep/x", "main"]);
    let first = push.listener.accept().await.unwrap();
    assert_eq!(first.request.refs.len(), 2);
    first.accept().await;
    let second = push.listener.accept().await.unwrap();
    assert_eq!(second.request.refs.len(), 1);
    second.finish(vec![(String::from("refs/heads/main"), RefVerdict::FallThrough)]).await;
    let (code, seen) = done.await.unwrap();
    assert_eq!(code, 1);
    assert!(seen.contains("hidden ref"), "{seen}");
    assert_eq!(push.refs(), "refs/heads/main");
}

fn run(kind: &str, input: &[u8], env: &[(&str, &str)]) -> (u8, String, String) {
    let env: HashMap<&str, OsString> = env.iter().map(|(name, value)| (*name, OsString::from(value))).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = client::main(kind, &mut &input[..], &mut out, &mut err, &|name| env.get(name).cloned());
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn hook_without_a_server_refuses_the_push() {
    let (zero, id) = ("0".repeat(40), "a".repeat(40));
    let line = format!("{zero} {id} refs/heads/main");
    let mut packets = Vec::new();
    pktline::write(&mut packets, b"version=1\0push-options atomic").unwrap();
    pktline::flush(&mut packets).unwrap();
    pktline::write(&mut packets, line.as_bytes()).unwrap();
    pktline::flush(&mut packets).unwrap();
    pktline::flush(&mut packets).unwrap();
    let token = "0".repeat(32);
    for (env, why) in [
        (&[][..], "LARDER_HOOK_SOCKET is not set"),
        (&[("LARDER_HOOK_SOCKET", "/nonexistent/sock")], "LARDER_PUSH_TOKEN is not set"),
        (&[("LARDER_HOOK_SOCKET", "/nonexistent/sock"), ("LARDER_PUSH_TOKEN", "xyz")], "LARDER_PUSH_TOKEN is not a push token"),
        (
            &[("LARDER_HOOK_SOCKET", "/nonexistent/sock"), ("LARDER_PUSH_TOKEN", token.as_str())],
            "cannot connect to the larder server",
        ),
    ] {
        let (code, _, err) = run("pre-receive", format!("{line}\n").as_bytes(), env);
        assert!(code == 1 && err.contains(why), "{err}");
        let (code, out, _) = run("proc-receive", &packets, env);
        assert!(code == 0 && out.contains("ng refs/heads/main ") && out.contains(why) && out.ends_with("0000"), "{out}");
    }
    assert_eq!(run("update", b"", &[]).0, 1);
    assert_eq!(run("proc-receive", b"000eversion=2\n0000", &[]).0, 1);
    assert_eq!(run("pre-receive", b"nonsense\n", &[]).0, 1);
}

async fn say(stream: &mut UnixStream, frame: &ClientFrame) {
    wire::send(stream, frame).await.unwrap();
}

fn hello(token: [u8; 16]) -> ClientFrame {
    ClientFrame::Hello { version: wire::VERSION, token, kind: HookKind::PreReceive, atomic: false, quarantine: None }
}

#[tokio::test]
async fn invalid_request_is_rejected_and_later_requests_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let registry = PushRegistry::new();
    let me = rustix::process::geteuid().as_raw();
    let mut listener = Listener::bind(&path, 0o600, Some(me), registry.clone()).unwrap();
    let ticket = registry.issue(7).unwrap();
    let token = registry::parse_token(&ticket.token().to_hex()).unwrap();

    // Invalid requests: a frame length of four gigabytes, an incomplete frame, and a ref name with a line break.
    let mut huge = UnixStream::connect(&path).await.unwrap();
    huge.write_all(&[0xff; 8]).await.unwrap();
    assert!(matches!(wire::receive(&mut huge).await.unwrap(), wire::ServerFrame::Refused(_)));
    let mut stalled = UnixStream::connect(&path).await.unwrap();
    stalled.write_all(&[0, 0]).await.unwrap();
    let other = registry.issue(8).unwrap();
    let mut odd = UnixStream::connect(&path).await.unwrap();
    say(&mut odd, &hello(registry::parse_token(&other.token().to_hex()).unwrap())).await;
    let id: CommitId = "a".repeat(40).parse().unwrap();
    let refs = vec![RefChange { old: id.clone(), new: id, refname: String::from("refs/heads/a\nb") }];
    say(&mut odd, &ClientFrame::Refs(refs)).await;
    assert!(matches!(wire::receive(&mut odd).await.unwrap(), wire::ServerFrame::Refused(_)));

    let mut good = UnixStream::connect(&path).await.unwrap();
    say(&mut good, &hello(token)).await;
    say(&mut good, &ClientFrame::Go).await;
    let session = listener.accept().await.unwrap();
    assert_eq!(session.ticket, 7);

    let mut replay = UnixStream::connect(&path).await.unwrap();
    say(&mut replay, &hello(token)).await;
    assert!(matches!(wire::receive(&mut replay).await.unwrap(), wire::ServerFrame::Refused(_)));

    // `gone` completes after the hook has closed the connection.
    let gone = session.gone();
    drop(good);
    tokio::time::timeout(Duration::from_secs(30), gone).await.unwrap();
}

#[tokio::test]
async fn process_of_another_user_gets_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let stranger = rustix::process::geteuid().as_raw() + 1;
    let _listener = Listener::bind(&path, 0o600, Some(stranger), PushRegistry::<()>::new()).unwrap();
    let mut stream = UnixStream::connect(&path).await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn stalled_reader_does_not_delay_the_deployment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let registry = PushRegistry::new();
    let mut listener = Listener::bind(&path, 0o600, None, registry.clone()).unwrap();
    let ticket = registry.issue(Arc::new(())).unwrap();
    let mut stream = UnixStream::connect(&path).await.unwrap();
    say(&mut stream, &hello(registry::parse_token(&ticket.token().to_hex()).unwrap())).await;
    say(&mut stream, &ClientFrame::Go).await;
    let session = listener.accept().await.unwrap();
    let line = "x".repeat(1000);
    for _ in 0..10_000 {
        session.line(&line);
    }
    let end = tokio::spawn(session.accept());
    let (mut lines, mut note) = (0, false);
    loop {
        match wire::receive(&mut stream).await.unwrap() {
            wire::ServerFrame::Line(line) if line.contains("left out") => note = true,
            wire::ServerFrame::Line(_) => lines += 1,
            wire::ServerFrame::Done => break,
            _ => {}
        }
    }
    end.await.unwrap();
    assert!(note && lines < 10_000, "{lines}");
}
