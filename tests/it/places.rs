//! Remotes that are stores of files. A directory, a web server and a bucket must pass the same suite; a web server without ranges has a
//! test of its own.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use larder::{
    host::root::Root,
    model::Remote,
    remote::{
        DeliverableStore, DeliverableStores, Offer, ProgressFn, Publication, Pulled, RemoteError, TransferLimits, discard,
        publish, pull, ssh::PullKey,
    },
};

use crate::harness::{Repo, World, in_one_mode, link::Link, within};

in_one_mode!(
    directory_store_resumes_and_verifies_pulls,
    web_server_store_resumes_and_verifies_pulls,
    web_server_without_ranges_verifies_pulls,
    bucket_store_resumes_and_verifies_pulls
);

/// A store, as its publisher and as its readers open it.
struct Shared {
    publish: DeliverableStore,
    read: DeliverableStore,
    /// The network link between the readers and the store, if there is one.
    link: Option<Link>,
    runtime: tokio::runtime::Runtime,
}

fn stores(world: &World) -> DeliverableStores {
    let key = PullKey::load_or_make(&world.directory().join("home/pull-key")).unwrap();
    DeliverableStores::new(key, TransferLimits::default())
}

fn open(stores: &DeliverableStores, url: &str) -> DeliverableStore {
    let remote =
        Remote { name: "shared".parse().unwrap(), url: url.to_owned(), host_key: None, trust: Vec::new(), publish: true };
    stores.open(&remote, &"shop".parse().unwrap()).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Builds two releases of a site with pictures on the server. Returns the releases, oldest first.
fn cooked(world: &World) -> Vec<Publication> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    for number in 0..4 {
        repo.write(&format!("pictures/{number}.jpg"), noise(number, 1 << 20));
    }
    repo.page("version one");
    repo.push().accepted();
    repo.write("pictures/2.jpg", noise(77, 1 << 20));
    repo.page("version two");
    repo.push().accepted();
    let offers: Vec<Offer> = serde_json::from_str(world.larder(&["deliverable", "list", "shop", "--json"]).ok()).unwrap();
    let releases = world.environment("shop").join("releases");
    let share = |offer: &Offer| Publication {
        archive: releases.join(format!("{}.tar.zst", offer.release)),
        manifest: releases.join(format!("{}.manifest.json", offer.release)),
        health: Some(b"{\"as\":\"it was\"}".to_vec()),
        offer: offer.clone(),
    };
    offers.iter().rev().map(share).collect()
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..bytes / 8).flat_map(|_| next().to_le_bytes()).collect()
}

/// Runs the tests that every kind of store must pass.
fn suite(world: &World, shared: &Shared) {
    let shares = cooked(world);
    let [old, new] = shares.as_slice() else { panic!("{shares:?}") };
    let root = Root::new(world.directory().join("home/puller"));
    let paths = root.environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
    fs::create_dir_all(paths.releases()).unwrap();
    let run = &shared.runtime;
    let list = || run.block_on(shared.read.list());
    let quiet: ProgressFn = Arc::new(|_, _| {});
    // Before the first publication there is an empty list or no list.
    assert!(
        list().map_or_else(|error| matches!(error, RemoteError::NotFound { .. }), |offers| offers.is_empty()),
        "{:?}",
        list()
    );
    for share in [old, new] {
        let sent = run.block_on(publish(&shared.publish, share)).unwrap();
        assert!(sent > share.offer.archive_bytes, "{sent}");
    }
    // A repeated publication sends only small files.
    let again = run.block_on(publish(&shared.publish, old)).unwrap();
    assert!(again < 20_000, "{again}");
    assert_eq!(list().unwrap(), [new.offer.clone(), old.offer.clone()]);
    // The pull is aborted and the link is cut many times. Each attempt resumes the previous attempt.
    if let Some(link) = &shared.link {
        link.cut_after((1..24).map(|n| n * 20_011));
        link.slow_to(4 << 20);
    }
    let mut attempts = 0;
    let pulled: Pulled = loop {
        attempts += 1;
        assert!(attempts < 100, "the pull makes no progress");
        let pulling = pull(&shared.read, &old.offer, &[], &paths, &quiet);
        match run.block_on(async { tokio::time::timeout(Duration::from_millis(20 + 40 * attempts), pulling).await }) {
            Ok(pulled) => break pulled.unwrap(),
            Err(_) => assert!(!paths.archive(old.offer.release).exists()),
        }
    };
    if let Some(link) = &shared.link {
        assert!(link.cuts() > 5 && attempts > 2, "{} cuts, {attempts} attempts: nothing was tested", link.cuts());
        link.slow_to(0);
    }
    assert_eq!(fs::read(pulled.archive().unwrap()).unwrap(), fs::read(&old.archive).unwrap());
    assert_eq!(fs::read(pulled.health().unwrap()).unwrap(), b"{\"as\":\"it was\"}");
    fs::rename(pulled.archive().unwrap(), paths.archive(old.offer.release)).unwrap();
    fs::rename(pulled.manifest().unwrap(), paths.manifest(old.offer.release)).unwrap();
    discard(pulled);
    // Of the next release, only changes are fetched.
    let pulled = run.block_on(pull(&shared.read, &new.offer, &[old.offer.release], &paths, &quiet)).unwrap();
    assert_eq!(fs::read(pulled.archive().unwrap()).unwrap(), fs::read(&new.archive).unwrap());
    let whole = new.offer.archive_bytes;
    assert!(pulled.fetched < whole / 5 * 4 && pulled.reused > whole / 5, "{} fetched, {} reused", pulled.fetched, pulled.reused);
    discard(pulled);
}

/// Changes one byte of the published archive `file`, and asserts that its release is refused.
fn altered(world: &World, shared: &Shared, release: &Offer, file: &Path) {
    let root = Root::new(world.directory().join("home/another"));
    let paths = root.environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
    let quiet: ProgressFn = Arc::new(|_, _| {});
    let mut bytes = fs::read(file).unwrap();
    bytes[700_000] ^= 1;
    fs::write(file, bytes).unwrap();
    let refused = shared.runtime.block_on(pull(&shared.read, release, &[], &paths, &quiet)).unwrap_err();
    assert!(matches!(refused, RemoteError::Damaged { .. }), "{refused}");
    assert!(!paths.incoming().join(release.release.to_string()).join("archive.tar.zst").exists());
}

/// Returns the offer of the newest release, and the path of its archive in a published directory.
fn newest(world: &World, directory: &Path) -> (Offer, PathBuf) {
    let offers: Vec<Offer> = serde_json::from_str(world.larder(&["deliverable", "list", "shop", "--json"]).ok()).unwrap();
    let file = directory.join("shop").join(format!("{}.tar.zst", offers[0].release));
    (offers[0].clone(), file)
}

fn directory_store_resumes_and_verifies_pulls(world: &World) {
    let directory = world.directory().join("home/shared");
    fs::create_dir(&directory).unwrap();
    let store = open(&stores(world), &format!("file://{}", directory.display()));
    let shared = Shared { publish: store.clone(), read: store, link: None, runtime: runtime() };
    suite(world, &shared);
    let (offer, file) = newest(world, &directory);
    altered(world, &shared, &offer, &file);
    let words = shared.runtime.block_on(shared.read.exec(&[String::from("whoami")]));
    assert!(words.unwrap_err().to_string().contains("is not a larder server"));
}

fn web_server_store_resumes_and_verifies_pulls(world: &World) {
    let directory = world.directory().join("home/shared");
    fs::create_dir(&directory).unwrap();
    let web = Web::serve(&directory, true);
    let link = Link::to(web.port);
    let stores = stores(world);
    let read = open(&stores, &format!("http://127.0.0.1:{}", link.port));
    let publish = open(&stores, &format!("file://{}", directory.display()));
    let shared = Shared { publish, read, link: Some(link), runtime: runtime() };
    suite(world, &shared);
    let (offer, file) = newest(world, &directory);
    altered(world, &shared, &offer, &file);
}

/// A web server without ranges, such as `python3 -m http.server`.
fn web_server_without_ranges_verifies_pulls(world: &World) {
    let directory = world.directory().join("home/shared");
    fs::create_dir(&directory).unwrap();
    let web = Web::serve(&directory, false);
    let (stores, runtime) = (stores(world), runtime());
    let publisher = open(&stores, &format!("file://{}", directory.display()));
    let reader = open(&stores, &format!("http://127.0.0.1:{}", web.port));
    for share in cooked(world) {
        runtime.block_on(publish(&publisher, &share)).unwrap();
    }
    let offer = runtime.block_on(reader.list()).unwrap().remove(0);
    let paths = Root::new(world.directory().join("home/puller"));
    let paths = paths.environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
    let quiet: ProgressFn = Arc::new(|_, _| {});
    let refused = runtime.block_on(pull(&reader, &offer, &[], &paths, &quiet)).unwrap_err();
    assert!(refused.to_string().contains("refused to send a part of the manifest"), "{refused}");
}

fn bucket_store_resumes_and_verifies_pulls(world: &World) {
    let Some(bucket) = Bucket::serve(world) else { return };
    let link = Link::to(bucket.port);
    let publish = open(&stores(world).with_buckets(settings(bucket.port)), "s3://deliverables/ours");
    let read = open(&stores(world).with_buckets(settings(link.port)), "s3://deliverables/ours");
    let shared = Shared { publish, read, link: Some(link), runtime: runtime() };
    suite(world, &shared);
    // The server reads the settings of the bucket from its environment.
    let settings = settings(bucket.port);
    world.restart(&settings.each_ref().map(|(name, value)| (name.as_str(), value.as_str())));
    world.larder(&["remote", "add", "shop", "shared", "s3://deliverables/ours", "--publish"]).ok();
    world
        .larder(&["remote", "check", "shop", "shared"])
        .says("the remote offers 2 deliverables")
        .says("nothing is pulled from this remote");
}

/// Returns the settings for the bucket that is reached through this port.
pub fn settings(port: u16) -> [(String, String); 5] {
    let endpoint = format!("http://127.0.0.1:{port}");
    let pairs = [
        ("AWS_ACCESS_KEY_ID", "tester"),
        ("AWS_SECRET_ACCESS_KEY", "secret-of-the-tester"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned()))
}

/// A minimal web server for one directory.
pub struct Web {
    pub port: u16,
    stop: Arc<AtomicBool>,
}

impl Web {
    pub fn serve(directory: &Path, ranges: bool) -> Web {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, directory) = (Arc::new(AtomicBool::new(false)), directory.to_owned());
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), directory) = (client, directory.clone()) else { continue };
                std::thread::spawn(move || while answer(&client, &directory, ranges).is_some() {});
            }
        });
        Web { port, stop }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// Answers one request. Returns `None` if the client has disconnected.
fn answer(mut client: &TcpStream, directory: &Path, ranges: bool) -> Option<()> {
    let (mut first, mut range) = (String::new(), None);
    let mut lines = BufReader::new(client);
    lines.read_line(&mut first).ok().filter(|read| *read > 0)?;
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(asked) = line.trim().to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (start, end) = asked.split_once('-')?;
            range = Some((start.parse::<u64>().ok()?, end.parse::<u64>().ok()?));
        }
    }
    let path = first.split(' ').nth(1)?.trim_start_matches('/').to_owned();
    let Ok(mut file) = fs::File::open(directory.join(path)) else {
        client.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").ok()?;
        return Some(());
    };
    let size = file.metadata().ok()?.len();
    let head = match range.filter(|_| ranges) {
        Some((start, end)) => {
            let end = end.min(size - 1);
            file.seek(SeekFrom::Start(start)).ok()?;
            let length = end + 1 - start;
            client
                .write_all(
                    format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{end}/{size}\r\nContent-Length: {length}\r\n\r\n")
                        .as_bytes(),
                )
                .ok()?;
            length
        }
        None => {
            client.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").as_bytes()).ok()?;
            size
        }
    };
    std::io::copy(&mut file.take(head), &mut client).ok()?;
    Some(())
}

/// A third-party S3 server with one bucket.
pub struct Bucket {
    pub port: u16,
    process: Child,
}

impl Bucket {
    pub fn serve(world: &World) -> Option<Bucket> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let directory = world.directory().join("home/buckets");
        fs::create_dir_all(directory.join("deliverables")).unwrap();
        let (address, shown) = (port.to_string(), directory.display().to_string());
        let mut s3s = Command::new("s3s-fs");
        s3s.args(["--host", "127.0.0.1", "--port", &address, "--access-key", "tester"]);
        s3s.args(["--secret-key", "secret-of-the-tester", &shown]);
        let mut moto = Command::new("moto_server");
        moto.args(["-H", "127.0.0.1", "-p", &address]);
        let quiet = |command: &mut Command| {
            command.current_dir(&directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
        };
        let process = quiet(&mut s3s).or_else(|| quiet(&mut moto)).or_else(|| {
            let python = crate::libraries::python_with(world, "moto[server]", "moto.server")?;
            quiet(Command::new(python).args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &address]))
        });
        let Some(process) = process else {
            eprintln!("SKIPPED: no S3 server is installed: neither s3s-fs nor moto_server");
            return None;
        };
        let bucket = Bucket { port, process };
        // If the server stores buckets as directories, the bucket exists already. Otherwise, this request creates the bucket.
        let made = within(Duration::from_secs(60), || {
            let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
            let asked = "PUT /deliverables HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let mut answer = String::new();
            stream.write_all(asked.as_bytes()).is_ok()
                && stream.read_to_string(&mut answer).is_ok()
                && answer.starts_with("HTTP/1.1")
        });
        assert!(made, "the S3 server does not answer");
        Some(bucket)
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = (self.process.kill(), self.process.wait());
    }
}
