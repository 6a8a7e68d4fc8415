//! Deliverables of another server: offers, pulls over unreliable links, and the commands for remotes.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use larder::{
    host::root::{EnvironmentPaths, Root},
    model::{CommitId, ReleaseId, Remote},
    remote::{
        DeliverableStore, DeliverableStores, Offer, ProgressFn, Pulled, PulledContent, RemoteError, TransferLimits, discard,
        pull, pull_pack, ssh::PullKey,
    },
};

use crate::harness::{Repo, World, cli::Output, in_one_mode, link::Link};

in_one_mode!(
    offered_release_can_be_fetched,
    pull_requires_the_view_right,
    interrupted_pull_resumes,
    pull_over_a_slow_link_completes,
    server_with_another_host_key_is_rejected,
    pull_of_a_commit_resumes,
    remotes_are_added_checked_and_removed,
);

/// A server that pulls from a world: a key, and a directory for the releases.
struct Puller {
    directory: tempfile::TempDir,
    places: DeliverableStores,
    paths: EnvironmentPaths,
    runtime: tokio::runtime::Runtime,
}

impl Puller {
    /// Creates a puller with the right to view `shop`.
    fn new(world: &World) -> Puller {
        let puller = Puller::stranger();
        world.larder(&["user", "add", "production", "--key", &puller.places.key().line()]).ok();
        world.larder(&["user", "grant", "production", "shop", "view"]).ok();
        puller
    }

    fn stranger() -> Puller {
        let directory = tempfile::tempdir().unwrap();
        let key = PullKey::load_or_make(&directory.path().join("key")).unwrap();
        let paths = Root::new(directory.path()).environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
        fs::create_dir_all(paths.releases()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Puller { places: DeliverableStores::new(key, TransferLimits::default()), directory, paths, runtime }
    }

    fn place(&self, world: &World, port: u16) -> DeliverableStore {
        self.open(&format!("ssh://larder@127.0.0.1:{port}/shop"), Some(host_key(world)))
    }

    fn open(&self, url: &str, host_key: Option<String>) -> DeliverableStore {
        let remote =
            Remote { name: "staging".parse().unwrap(), url: url.to_owned(), host_key, trust: Vec::new(), publish: false };
        self.places.open(&remote, &"shop".parse().unwrap()).unwrap()
    }

    fn list(&self, place: &DeliverableStore) -> Result<Vec<Offer>, RemoteError> {
        self.runtime.block_on(place.list())
    }

    fn pull(&self, place: &DeliverableStore, offer: &Offer, held: &[ReleaseId]) -> Result<Pulled, RemoteError> {
        let quiet: ProgressFn = Arc::new(|_, _| {});
        self.runtime.block_on(pull(place, offer, held, &self.paths, &quiet))
    }

    fn accept(&self, pulled: Pulled, release: ReleaseId) {
        fs::rename(pulled.archive().unwrap(), self.paths.archive(release)).unwrap();
        fs::rename(pulled.manifest().unwrap(), self.paths.manifest(release)).unwrap();
        discard(pulled);
    }
}

/// Returns the world's host key, as one line.
fn host_key(world: &World) -> String {
    let scanned =
        Output::of(world.client("ssh-keyscan").args(["-t", "ed25519", "-p", &world.ssh_port().to_string(), "127.0.0.1"]));
    let line = scanned.stdout.lines().find(|line| !line.starts_with('#')).unwrap_or_else(|| panic!("{scanned}"));
    line.split_once(' ').unwrap().1.to_owned()
}

/// Returns pseudo-random bytes, which cannot be compressed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..bytes.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(bytes).collect()
}

/// Creates a repository with 12 MiB of pictures, so that the archive of its release has several frames.
fn heavy(world: &World) -> Repo<'_> {
    let repo = Repo::new(world, "shop");
    for number in 0..12 {
        repo.write(&format!("pictures/{number}.jpg"), noise(number + 1, 1 << 20));
    }
    repo.page("version one");
    repo
}

/// Reads a file of a release from the world's disk.
fn file(world: &World, offer: &Offer, ending: &str) -> Vec<u8> {
    fs::read(world.environment("shop").join("releases").join(format!("{}.{ending}", offer.release))).unwrap()
}

/// Returns the output of `ssh ... deliverable get`.
fn get(world: &World, words: &[&str]) -> Vec<u8> {
    let mut command = world.client("ssh");
    command.args(world.ssh_options("alice")).arg("larder@127.0.0.1").args(["deliverable", "get"]).args(words);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn offered_release_can_be_fetched(world: &World) {
    world.project("shop");
    assert_eq!(world.larder(&["deliverable", "list", "shop", "--json"]).json(), serde_json::json!([]));
    world.larder(&["deliverable", "get", "shop", "v1", "archive"]).exits(4).says("has no deliverable yet");
    let repo = heavy(world);
    repo.push().accepted();
    let listed = world.ssh("alice", &["deliverable", "list", "shop", "--json"]);
    let offers: Vec<Offer> = serde_json::from_str(listed.ok()).unwrap();
    let [offer] = offers.as_slice() else { panic!("{listed}") };
    assert_eq!((offer.commit.as_str(), offer.live, offer.build), (repo.head().as_str(), true, 1));
    let (archive, manifest) = (file(world, offer, "tar.zst"), file(world, offer, "manifest.json"));
    assert_eq!((offer.archive_bytes, offer.manifest.bytes), (archive.len() as u64, manifest.len() as u64));
    // The release is fetched by each of its names, completely and in parts.
    let id = offer.release.to_string();
    for name in ["v1", id.as_str(), offer.commit.as_str(), offer.commit.short()] {
        assert_eq!(get(world, &["shop", name, "manifest"]), manifest, "{name}");
    }
    assert_eq!(get(world, &["shop/production", "v1", "archive"]), archive);
    assert_eq!(get(world, &["shop", "v1", "archive", "--offset", "123457"]), archive[123_457..]);
    assert_eq!(get(world, &["shop", "v1", "archive", "--offset", "99999999999"]), b"");
    let parts = get(world, &["shop", "v1", "archive", "--parts", "5+10,1000000+300000,0+1"]);
    assert_eq!(parts, [&archive[5..15], &archive[1_000_000..1_300_000], &archive[..1]].concat());
    let info = world.ssh("alice", &["deliverable", "info", "shop", "v1", "manifest", "--json"]).json();
    assert_eq!(info["digest"], serde_json::json!(offer.manifest.digest));
    // The error for a missing release names the existing releases.
    world.ssh("alice", &["deliverable", "get", "shop", "v7", "archive"]).exits(4).says("has no release v7; available: v1");
    world.ssh("alice", &["deliverable", "get", "shop", "v1", "archive", "--parts", "1-2"]).exits(2).says("OFFSET+LENGTH");
    world.ssh("alice", &["deliverable", "get", "shop", "v1", "delta"]).exits(2).says("--from RELEASE");
    world.ssh("alice", &["deliverable", "get", "shop", "v1", "../../etc/passwd"]).exits(2);
    world.ssh("alice", &["deliverable", "get", "shop", "../v1", "manifest"]).exits(4);
    // A failed deployment offers nothing. A pruned release is reported as pruned.
    repo.program(".larder/build", "#!/bin/sh\nexit 1\n");
    repo.commit("broken");
    repo.push().rejected();
    assert_eq!(world.larder(&["deliverable", "list", "shop", "--json"]).json().as_array().unwrap().len(), 1);
    repo.remove(".larder/build");
    repo.page("version two");
    repo.push().accepted();
    for ending in ["tar.zst", "manifest.json"] {
        fs::remove_file(world.environment("shop").join("releases").join(format!("{id}.{ending}"))).unwrap();
    }
    world.ssh("alice", &["deliverable", "get", "shop", "v1", "archive"]).exits(4).says("v1 of shop was pruned; available: v2");
}

fn pull_requires_the_view_right(world: &World) {
    world.project("shop");
    Repo::site(world, "shop", "version one").push().accepted();
    let stranger = Puller::stranger();
    let place = stranger.place(world, world.ssh_port());
    let error = stranger.list(&place).unwrap_err();
    assert!(matches!(&error, RemoteError::Login { key, .. } if *key == stranger.places.key().line()), "{error}");
    assert!(error.hints()[0].contains("larder user add NAME --key \"ssh-ed25519 "), "{:?}", error.hints());
    // A user without a right on the project gets "no project".
    world.larder(&["user", "add", "production", "--key", &stranger.places.key().line()]).ok();
    let error = stranger.list(&place).unwrap_err();
    assert!(
        matches!(&error, RemoteError::NotFound { .. }) && error.to_string().contains("no project shop that you may see"),
        "{error}"
    );
    world.larder(&["user", "grant", "production", "shop", "view"]).ok();
    assert_eq!(stranger.list(&place).unwrap().len(), 1);
    // The right to view does not permit a deployment.
    let words = ["deploy", "shop"].map(str::to_owned);
    let mut exec = stranger.runtime.block_on(place.exec(&words)).unwrap();
    stranger.runtime.block_on(async { while exec.next().await.unwrap().is_some() {} });
    assert_eq!(exec.code(), Some(3));
}

fn interrupted_pull_resumes(world: &World) {
    world.project("shop");
    let repo = heavy(world);
    repo.push().accepted();
    let puller = Puller::new(world);
    let link = Link::to(world.ssh_port());
    let place = puller.place(world, link.port);
    let first = puller.list(&place).unwrap().remove(0);
    // The link is cut at 20 random positions, and the pull is aborted at random times.
    let random = |n: u64, most: u64| noise(n + 77, 8).iter().fold(0_u64, |sum, b| sum * 31 + u64::from(*b)) % most;
    puller.runtime.block_on(place.leave());
    link.cut_after((0..20).map(|n| 6_000 + random(n, 350_000)));
    let mut attempt = 0;
    let pulled = loop {
        attempt += 1;
        assert!(attempt < 60, "the pull makes no progress; {} bytes passed", link.passed());
        let quiet: ProgressFn = Arc::new(|_, _| {});
        let pulling = pull(&place, &first, &[], &puller.paths, &quiet);
        let limit = Duration::from_millis(300 + random(attempt, 2500));
        if let Ok(pulled) = puller.runtime.block_on(async { tokio::time::timeout(limit, pulling).await }) {
            break pulled.unwrap();
        }
        eprintln!("attempt {attempt}: {} cuts, {} bytes passed", link.cuts(), link.passed());
        // A file with its final name is complete.
        let archive = fs::read(puller.paths.incoming().join(first.release.to_string()).join("archive.tar.zst"));
        assert!(archive.is_err() || archive.unwrap() == file(world, &first, "tar.zst"));
        assert!(!puller.paths.archive(first.release).exists());
    };
    assert!(link.cuts() as u64 + attempt >= 20 && attempt > 2, "{} cuts, {attempt} attempts: nothing was tested", link.cuts());
    assert_eq!(pulled.content, PulledContent::Archive);
    assert_eq!(fs::read(pulled.archive().unwrap()).unwrap(), file(world, &first, "tar.zst"));
    assert_eq!(fs::read(pulled.manifest().unwrap()).unwrap(), file(world, &first, "manifest.json"));
    // The traffic is little more than the release: data before a cut is not fetched again.
    // A killed connection loses at most 2 MiB in flight.
    let most = first.archive_bytes + first.manifest.bytes + 3_000_000 + (attempt - 1) * (2 << 20);
    assert!(link.passed() < most, "{} bytes went over the link for {}", link.passed(), first.archive_bytes);
    puller.accept(pulled, first.release);
    // Of the next release, only changes are fetched.
    repo.write("pictures/3.jpg", noise(99, 1 << 20));
    repo.page("version two");
    repo.push().accepted();
    let before = link.passed();
    let second = puller.list(&place).unwrap().remove(0);
    let pulled = puller.pull(&place, &second, &[first.release]).unwrap();
    assert!(pulled.reused > 2 << 20, "{} of {} bytes were fetched", pulled.fetched, second.archive_bytes);
    assert!(link.passed() - before < second.archive_bytes - (2 << 20));
    if pulled.content == PulledContent::Archive {
        assert_eq!(fs::read(pulled.archive().unwrap()).unwrap(), file(world, &second, "tar.zst"));
    }
    discard(pulled);
    // A delta is even smaller.
    let pulled = puller.pull(&place.clone().with_deltas(), &second, &[first.release]).unwrap();
    assert_eq!(pulled.content, PulledContent::Delta { from: first.release });
    assert!(pulled.fetched < (1 << 20) + 100_000, "{}", pulled.fetched);
    let old = larder::release::store::read(&puller.paths.manifest(first.release)).unwrap();
    let delta = fs::File::open(pulled.delta().unwrap()).unwrap();
    let manifest = larder::release::delta::manifest(&delta, old).unwrap();
    assert_eq!((manifest.release, manifest.tree), (second.release, second.tree));
    // The health record of the second release is signed.
    let record: serde_json::Value = serde_json::from_slice(&fs::read(pulled.health().unwrap()).unwrap()).unwrap();
    assert_eq!((&record["number"], record["signature"]["key"].is_string()), (&serde_json::json!(2), true));
    discard(pulled);
    // The server restarts during the pull.
    fs::remove_file(puller.paths.manifest(first.release)).unwrap();
    fs::remove_file(puller.paths.archive(first.release)).unwrap();
    link.slow_to(2 << 20);
    std::thread::scope(|scope| {
        let pulling = scope.spawn(|| puller.pull(&place, &second, &[]).unwrap());
        std::thread::sleep(Duration::from_millis(1200));
        world.kill9_server();
        let pulled = pulling.join().unwrap();
        assert_eq!(fs::read(pulled.archive().unwrap()).unwrap(), file(world, &second, "tar.zst"));
    });
}

fn pull_over_a_slow_link_completes(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("picture.jpg", noise(5, 700_000));
    repo.page("version one");
    repo.push().accepted();
    let puller = Puller::new(world);
    let link = Link::to(world.ssh_port());
    link.slow_to(125_000);
    let place = puller.place(world, link.port);
    let offer = puller.list(&place).unwrap().remove(0);
    let began = Instant::now();
    let quiet: ProgressFn = Arc::new(|_, _| {});
    // The pull is aborted repeatedly. Each attempt resumes the previous attempt, and has a longer time limit, because the handshake alone
    // may be slow.
    let mut limit = Duration::from_millis(1700);
    let pulled = loop {
        let pulling = pull(&place, &offer, &[], &puller.paths, &quiet);
        if let Ok(pulled) = puller.runtime.block_on(async { tokio::time::timeout(limit, pulling).await }) {
            break pulled.unwrap();
        }
        limit += Duration::from_millis(200);
        assert!(began.elapsed() < Duration::from_secs(60), "the pull makes no progress");
    };
    assert!(began.elapsed() > Duration::from_secs(4), "the link was not slow: {:?}", began.elapsed());
    assert_eq!(fs::read(pulled.archive().unwrap()).unwrap(), file(world, &offer, "tar.zst"));
}

fn server_with_another_host_key_is_rejected(world: &World) {
    world.project("shop");
    Repo::site(world, "shop", "version one").push().accepted();
    let puller = Puller::new(world);
    let url = format!("ssh://larder@127.0.0.1:{}/shop", world.ssh_port());
    let other = PullKey::load_or_make(&puller.directory.path().join("other")).unwrap();
    let error = puller.list(&puller.open(&url, Some(other.line()))).unwrap_err();
    let RemoteError::HostKey { expected, shown, line, .. } = &error else { panic!("{error}") };
    assert_eq!((expected, line), (&other.fingerprint(), &host_key(world)));
    assert!(error.to_string().contains(expected) && error.to_string().contains(shown) && shown.starts_with("SHA256:"), "{error}");
    let error = puller.list(&puller.open(&url, None)).unwrap_err();
    assert!(matches!(&error, RemoteError::Unpinned { line, .. } if *line == host_key(world)), "{error}");
    // The first address has no listener. The second address has a listener that is not an SSH server.
    let absent = puller.open("ssh://larder@127.0.0.1:1/shop", Some(host_key(world)));
    assert!(matches!(puller.list(&absent), Err(RemoteError::Unreachable { .. })));
    let web = format!("ssh://larder@127.0.0.1:{}/shop", world.http_port());
    let error = puller.list(&puller.open(&web, Some(host_key(world)))).unwrap_err();
    assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
}

fn pull_of_a_commit_resumes(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let first: CommitId = repo.head().parse().unwrap();
    repo.push().accepted();
    repo.page("version two");
    repo.push().accepted();
    let puller = Puller::new(world);
    let place = puller.place(world, world.ssh_port());
    let offers = puller.list(&place).unwrap();
    let pack = |haves: &[CommitId]| puller.runtime.block_on(pull_pack(&place, offers[0].release, haves, &puller.paths)).unwrap();
    let fetch = |haves: &[CommitId]| {
        let pack = pack(haves);
        let file = pack.file.try_clone().unwrap();
        pack.discard();
        file
    };
    // A thin pack is smaller than a whole pack, because its base objects must be present already. git accepts the whole pack.
    let whole = fetch(&[]);
    let thin = fetch(&[first]);
    assert!(thin.metadata().unwrap().len() < whole.metadata().unwrap().len());
    let elsewhere = Repo::new(world, "shop");
    let mut take = elsewhere.command();
    take.args(["index-pack", "--stdin", "--strict", "--fix-thin"]).stdin(whole);
    Output::of(&mut take).ok();
    elsewhere.git(&["cat-file", "-e", &repo.head()]).ok();
    elsewhere.git(&["rev-list", "--objects", &repo.head()]).ok();
    let nowhere = "0".repeat(39) + "1";
    assert!(fetch(&[nowhere.parse().unwrap()]).metadata().unwrap().len() > 100);
    // A transfer that is cut at any position resumes there, and gives the same bytes.
    let bytes = |mut file: fs::File| {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        bytes
    };
    let whole = bytes(fetch(&[]));
    let part = || {
        let incoming = puller.paths.incoming().join(format!("{}.commit", offers[0].release));
        incoming.join(crate::harness::state::names(&incoming).into_iter().find(|name| name.ends_with(".part")).unwrap())
    };
    for cut in [1, whole.len() / 2, whole.len() - 1, whole.len()] {
        drop(pack(&[]));
        fs::write(part(), &whole[..cut]).unwrap();
        let rest = pack(&[]);
        assert!(rest.resumed);
        let again = rest.file.try_clone().unwrap();
        rest.discard();
        assert!(bytes(again) == whole, "cut at {cut}");
    }
    assert!(crate::harness::state::names(&puller.paths.incoming()).is_empty());
}

fn remotes_are_added_checked_and_removed(staging: &World) {
    staging.project("shop");
    Repo::site(staging, "shop", "version one").push().accepted();
    let production = World::any().unwrap();
    production.project("shop");
    let url = format!("ssh://larder@127.0.0.1:{}/shop/production", staging.ssh_port());
    // A server is not trusted just because it answers.
    let refused = production.larder(&["remote", "add", "shop", "staging", &url]);
    refused
        .exits(3)
        .says("check the host key of the server: SHA256:")
        .says("rejected this server's key")
        .says("larder remote add shop staging");
    refused.says(&format!("--host-key \"{}\"", host_key(staging)));
    assert_eq!(production.larder(&["remote", "list", "shop", "--json"]).json(), serde_json::json!([]));
    // The commands in the hints grant access on staging. Then the signing key is shown, too.
    let key = refused.stderr.split("--key \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_owned();
    staging.larder(&["user", "add", "production", "--key", &key]).ok();
    staging.larder(&["user", "grant", "production", "shop", "view"]).ok();
    let signing = staging.larder(&["key", "show", "--json"]).json()["signing"].as_str().unwrap().to_owned();
    let refused = production.larder(&["remote", "add", "shop", "staging", &url]);
    refused.exits(3).says(&format!("check the signing key of the server: {signing}")).says(&format!("--trust {signing}"));
    let host = host_key(staging);
    let added = production.larder(&["remote", "add", "shop", "staging", &url, "--host-key", &host, "--trust", &signing]);
    added.exits(0).says("the remote offers one deliverable");
    production.larder(&["remote", "list", "shop"]).says(&signing).says(&url);
    production
        .larder(&["remote", "check", "shop", "staging"])
        .says("the remote offers one deliverable")
        .says("the server signs with a trusted key");
    production
        .larder(&["remote", "add", "shop", "staging", &url, "--host-key", &host, "--trust", &signing])
        .exits(3)
        .says("has a remote of this name");
    // The remote survives a restart, and `check` reports what does not work.
    production.restart(&[]);
    production.larder(&["remote", "check", "shop", "staging"]).says("the remote offers one deliverable");
    staging.larder(&["user", "remove", "production"]).ok();
    production.larder(&["remote", "check", "shop", "staging"]).says("BAD").says("rejected this server's key");
    // Only administrators may add remotes.
    production.key("bob");
    production.larder(&["user", "add", "bob", "--key-file", &production.public_key("bob")]).ok();
    production.larder(&["user", "grant", "bob", "shop", "operate"]).ok();
    production.ssh("bob", &["remote", "add", "shop", "mine", "file:///tmp", "--publish"]).exits(3);
    production.ssh("bob", &["remote", "list", "shop"]).exits(0).says("staging");
    for (words, says) in [
        (&["remote", "add", "shop", "x", "nonsense"][..], "file:///DIRECTORY"),
        (&["remote", "add", "shop", "x", "file:///srv", "--host-key", &host], "only a larder server"),
        (&["remote", "add", "shop", "x", "file:///srv"], "neither a trusted key nor --publish"),
        (
            &["remote", "add", "shop", "x", &url, "--publish", "--host-key", &host, "--trust", &signing],
            "a larder server pulls releases itself",
        ),
        (&["remote", "add", "shop", "x", &url, "--host-key", "SHA256:abc"], "ssh-ed25519 AAAA"),
        (&["remote", "add", "shop", "x", &url, "--trust", "abc"], "ed25519:"),
    ] {
        production.larder(words).exits(2).says(says);
    }
    production.larder(&["remote", "remove", "shop", "nowhere"]).exits(4).says("name a remote of this environment: staging");
    production.larder(&["remote", "remove", "shop", "staging"]).ok();
    assert_eq!(production.larder(&["remote", "list", "shop", "--json"]).json(), serde_json::json!([]));
    production.end();
}
