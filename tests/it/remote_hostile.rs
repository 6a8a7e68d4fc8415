//! Servers that are not what they should be: production must neither believe them nor run out of anything.

use std::{
    fs::File,
    io::Write,
    net::{IpAddr, Ipv4Addr, TcpListener},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use larder::{
    host::root::Root,
    model::{Digest, ReleaseId, Remote},
    remote::{Blob, Limits, Offer, Place, Places, Progress, RemoteError, pull, pull_pack, ssh::PullKey},
    surface::ssh::{self, ExecCall, ExecHandler, ExecRequest, Identity, PublicKeyInfo, SshConfig, keys},
};
use tokio_util::sync::CancellationToken;

/// What a server does wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wrong {
    /// Whatever it is asked for never ends.
    Endless,
    /// It gives its word and then something else.
    Lies,
    /// It stops in the middle, and says that this was all.
    Short,
    /// Its words would do something to a terminal.
    Escapes,
    /// It says more and more beside what it is asked for.
    Chatters,
}

struct Hostile {
    wrong: Wrong,
    offer: Offer,
}

impl ExecHandler for Hostile {
    fn authenticate(&self, _key: &PublicKeyInfo, _source: IpAddr) -> Option<Identity> {
        Some(Identity { user: "production".parse().unwrap() })
    }

    fn key_changes(&self) -> tokio::sync::watch::Receiver<()> {
        let (never, changes) = tokio::sync::watch::channel(());
        std::mem::forget(never);
        changes
    }

    fn exec(&self, call: ExecCall) -> BoxFuture<'static, u32> {
        let ExecRequest::Verb(words) = call.request else { return Box::pin(async { 2 }) };
        let (wrong, offer) = (self.wrong, self.offer.clone());
        Box::pin(async move {
            let (mut out, mut err) = (File::from(call.io.stdout), File::from(call.io.stderr));
            let said = tokio::task::spawn_blocking(move || {
                let listing = words.get(1).is_some_and(|verb| verb == "list");
                match wrong {
                    Wrong::Chatters => while err.write_all(b"just a moment, please\n").is_ok() {},
                    Wrong::Endless => while out.write_all(&[b'['; 65_536]).is_ok() {},
                    _ if listing => drop(serde_json::to_writer(&mut out, &[&offer])),
                    Wrong::Lies => while out.write_all(&[0x55; 65_536]).is_ok() {},
                    Wrong::Short => drop(out.write_all(&[0; 10])),
                    Wrong::Escapes => {
                        let _ = err.write_all(b"error: \x1b]0;owned\x07\x1b[2Jno \xff such thing\n");
                        return 3;
                    }
                }
                0
            });
            said.await.unwrap_or(70)
        })
    }
}

/// Runs `ask` against a server that does this wrong.
fn against<T>(wrong: Wrong, ask: impl AsyncFnOnce(&Place, &Offer, &larder::host::root::EnvironmentPaths) -> T) -> T {
    let directory = tempfile::tempdir().unwrap();
    let offer = Offer {
        project: "shop".parse().unwrap(),
        environment: "staging".parse().unwrap(),
        release: ReleaseId::new(Timestamp::now()),
        number: None,
        build: 1,
        commit: "a".repeat(40).parse().unwrap(),
        source: None,
        tag: None,
        tree: Digest::of(b""),
        created: Timestamp::now(),
        archive_bytes: 3_000_000,
        manifest: Blob { bytes: 200_000, digest: Digest::of(b"") },
        live: false,
        healthy_since: None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (host_key, _) = keys::load_or_create_host_key(&directory.path().join("host")).unwrap();
    let line = keys::host_key_line(&host_key).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let stop = CancellationToken::new();
    let mut config = SshConfig::new(host_key);
    config.drain = Duration::from_secs(1);
    let server = runtime.spawn(ssh::serve(listener, config, Arc::new(Hostile { wrong, offer: offer.clone() }), stop.clone()));
    let key = PullKey::load_or_make(&directory.path().join("key")).unwrap();
    let remote = Remote {
        name: "staging".parse().unwrap(),
        url: format!("ssh://larder@127.0.0.1:{port}/shop"),
        host_key: Some(line),
        trust: Vec::new(),
        publish: false,
    };
    let limits = Limits { pack_bytes: 1 << 20, ..Limits::default() };
    let place = Places::new(key, limits).open(&remote, &"shop".parse().unwrap()).unwrap();
    let paths = Root::new(directory.path()).environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
    std::fs::create_dir_all(paths.releases()).unwrap();
    let result = runtime.block_on(async {
        let result = ask(&place, &offer, &paths).await;
        place.leave().await;
        stop.cancel();
        let _ = server.await;
        result
    });
    // Bytes of theirs on our disk: no more than what was promised.
    let left = walk(&paths.incoming());
    assert!(left <= 3_200_000, "{left} bytes are left");
    result
}

fn walk(directory: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() { walk(&entry.path()) } else { metadata.len() }
    };
    entries.map(size).sum()
}

#[test]
fn a_list_that_never_ends_is_cut() {
    let error = against(Wrong::Endless, async |place, _, _| place.list().await.unwrap_err());
    assert!(matches!(error, RemoteError::TooLarge { .. }), "{error}");
}

#[test]
fn a_server_that_only_talks_is_left() {
    let error = against(Wrong::Chatters, async |place, _, _| place.list().await.unwrap_err());
    assert!(matches!(error, RemoteError::Lost { .. }) && error.to_string().contains("more and more"), "{error}");
    let quiet: Progress = Arc::new(|_, _| {});
    let error = against(Wrong::Chatters, async |place, offer, paths| {
        tokio::time::timeout(Duration::from_secs(60), pull(place, offer, &[], paths, &quiet)).await.unwrap().unwrap_err()
    });
    assert!(error.to_string().contains("more and more"), "{error}");
}

#[test]
fn no_file_gets_larger_than_it_was_promised() {
    let quiet: Progress = Arc::new(|_, _| {});
    let error = against(Wrong::Endless, async |place, offer, paths| pull(place, offer, &[], paths, &quiet).await.unwrap_err());
    assert!(
        matches!(&error, RemoteError::Damaged { what, .. } | RemoteError::TooLarge { what, .. } if what == "manifest"),
        "{error}"
    );
    let error =
        against(Wrong::Endless, async |place, offer, paths| pull_pack(place, offer.release, &[], paths).await.unwrap_err());
    assert!(matches!(error, RemoteError::TooLarge { limit: 1_048_576, .. }), "{error}");
}

#[test]
fn what_is_not_what_was_promised_is_not_kept() {
    let quiet: Progress = Arc::new(|_, _| {});
    for wrong in [Wrong::Lies, Wrong::Short] {
        let error = against(wrong, async |place, offer, paths| {
            assert_eq!(place.list().await.unwrap(), std::slice::from_ref(offer));
            let error = pull(place, offer, &[], paths, &quiet).await.unwrap_err();
            assert!(!paths.incoming().join(offer.release.to_string()).join("manifest.json").exists());
            error
        });
        assert!(matches!(&error, RemoteError::Damaged { .. } | RemoteError::TooLarge { .. }), "{wrong:?}: {error}");
    }
}

#[test]
fn their_words_are_shown_without_what_a_terminal_obeys() {
    let quiet: Progress = Arc::new(|_, _| {});
    let error = against(Wrong::Escapes, async |place, offer, paths| pull(place, offer, &[], paths, &quiet).await.unwrap_err());
    let shown = error.to_string();
    assert!(shown.contains("such thing") && !shown.contains('\x1b') && !shown.contains('\x07'), "{shown:?}");
    assert!(matches!(error, RemoteError::Refused { code: 3, .. }));
}
