//! Pulls from malicious servers: production must neither accept their data nor run out of memory, disk or time.

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
    remote::{
        Blob, DeliverableStore, DeliverableStores, Offer, ProgressFn, RemoteError, TransferLimits, pull, pull_pack, ssh::PullKey,
    },
    surface::ssh::{
        self, Credential, ExecCall, ExecHandler, ExecRequest, KeyAnswer, KeyRefusal, SshIdentity, SshServerConfig, keys,
    },
};
use tokio_util::sync::CancellationToken;

/// The misbehaviour of a server.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Misbehaviour {
    /// Every answer is endless.
    Endless,
    /// The content differs from the offer.
    Lies,
    /// The content is truncated, with exit code 0.
    Short,
    /// Error messages contain terminal escape sequences.
    Escapes,
    /// The standard error is endless.
    Chatters,
}

struct Hostile {
    wrong: Misbehaviour,
    offer: Offer,
}

impl ExecHandler for Hostile {
    fn authenticate(&self, credential: &Credential, _source: IpAddr) -> Result<SshIdentity, KeyRefusal> {
        let Credential::Key(key) = credential else { panic!("a certificate, although none is accepted") };
        Ok(SshIdentity { user: "production".parse().unwrap(), key: key.fingerprint_sha256.clone(), certificate: None })
    }

    fn accepts_certificates(&self) -> bool {
        false
    }

    fn recheck_after(&self, _identity: &SshIdentity) -> Option<std::time::Duration> {
        None
    }

    fn answered(&self, _answer: KeyAnswer) {}

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
                    Misbehaviour::Chatters => while err.write_all(b"just a moment, please\n").is_ok() {},
                    Misbehaviour::Endless => while out.write_all(&[b'['; 65_536]).is_ok() {},
                    _ if listing => drop(serde_json::to_writer(&mut out, &[&offer])),
                    Misbehaviour::Lies => while out.write_all(&[0x55; 65_536]).is_ok() {},
                    Misbehaviour::Short => drop(out.write_all(&[0; 10])),
                    Misbehaviour::Escapes => {
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

/// Runs `ask` against a server with this misbehaviour.
fn against<T>(
    wrong: Misbehaviour,
    ask: impl AsyncFnOnce(&DeliverableStore, &Offer, &larder::host::root::EnvironmentPaths) -> T,
) -> T {
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
    let mut config = SshServerConfig::new(host_key);
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
    let limits = TransferLimits { pack_bytes: 1 << 20, ..TransferLimits::default() };
    let store = DeliverableStores::new(key, limits).open(&remote, &"shop".parse().unwrap()).unwrap();
    let paths = Root::new(directory.path()).environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
    std::fs::create_dir_all(paths.releases()).unwrap();
    let result = runtime.block_on(async {
        let result = ask(&store, &offer, &paths).await;
        store.leave().await;
        stop.cancel();
        let _ = server.await;
        result
    });
    // The server filled no more of the disk than it had offered.
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
fn endless_list_is_rejected() {
    let error = against(Misbehaviour::Endless, async |remote, _, _| remote.list().await.unwrap_err());
    assert!(matches!(error, RemoteError::TooLarge { .. }), "{error}");
}

#[test]
fn endless_standard_error_ends_the_request() {
    let error = against(Misbehaviour::Chatters, async |remote, _, _| remote.list().await.unwrap_err());
    assert!(matches!(error, RemoteError::TooLarge { .. }) && error.to_string().contains("standard error"), "{error}");
    let quiet: ProgressFn = Arc::new(|_, _| {});
    let error = against(Misbehaviour::Chatters, async |remote, offer, paths| {
        tokio::time::timeout(Duration::from_secs(60), pull(remote, offer, &[], paths, &quiet)).await.unwrap().unwrap_err()
    });
    assert!(error.to_string().contains("standard error"), "{error}");
}

#[test]
fn file_larger_than_its_offer_is_rejected() {
    let quiet: ProgressFn = Arc::new(|_, _| {});
    let error =
        against(Misbehaviour::Endless, async |remote, offer, paths| pull(remote, offer, &[], paths, &quiet).await.unwrap_err());
    assert!(
        matches!(&error, RemoteError::Damaged { what, .. } | RemoteError::TooLarge { what, .. } if what == "manifest"),
        "{error}"
    );
    let error = against(Misbehaviour::Endless, async |remote, offer, paths| {
        pull_pack(remote, offer.release, &[], paths).await.unwrap_err()
    });
    assert!(matches!(error, RemoteError::TooLarge { limit: 1_048_576, .. }), "{error}");
}

#[test]
fn content_that_differs_from_its_offer_is_not_kept() {
    let quiet: ProgressFn = Arc::new(|_, _| {});
    for wrong in [Misbehaviour::Lies, Misbehaviour::Short] {
        let error = against(wrong, async |remote, offer, paths| {
            assert_eq!(remote.list().await.unwrap(), std::slice::from_ref(offer));
            let error = pull(remote, offer, &[], paths, &quiet).await.unwrap_err();
            assert!(!paths.incoming().join(offer.release.to_string()).join("manifest.json").exists());
            error
        });
        assert!(matches!(&error, RemoteError::Damaged { .. } | RemoteError::TooLarge { .. }), "{wrong:?}: {error}");
    }
}

#[test]
fn error_message_of_a_remote_is_sanitised() {
    let quiet: ProgressFn = Arc::new(|_, _| {});
    let error =
        against(Misbehaviour::Escapes, async |remote, offer, paths| pull(remote, offer, &[], paths, &quiet).await.unwrap_err());
    let shown = error.to_string();
    assert!(shown.contains("such thing") && !shown.contains('\x1b') && !shown.contains('\x07'), "{shown:?}");
    assert!(matches!(error, RemoteError::Refused { code: 3, .. }));
}
