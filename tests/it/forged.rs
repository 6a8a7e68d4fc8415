//! Forged deliverables: an attacker controls the store of a remote, and in some tests also a trusted signing key. Each forgery is refused
//! with its reason and leaves nothing behind.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use larder::{
    model::{Digest, HealthRecord, Manifest, ReleaseId, Remote},
    release::SigningKey,
    remote::{Blob, DeliverableStore, DeliverableStores, Offer, Publication, TransferLimits, publish, ssh::PullKey},
};

use crate::{
    harness::{Repo, World, cli::Output, in_one_mode, state::names},
    promotion::{live_manifest, pair, production, staging},
    refusals::{container, export, import, parts},
};

in_one_mode!(
    forged_deliverables_of_a_remote_are_refused_with_the_reason,
    old_build_offered_as_the_newest_is_refused,
    release_of_another_environment_is_refused,
    contradictory_statements_about_one_release_are_refused,
    health_record_counts_only_with_a_trusted_signature,
);

/// A remote from which production pulls, and a key that production trusts. An attacker controls both.
struct Forge<'w> {
    world: &'w World,
    repo: Repo<'w>,
    key: SigningKey,
    directory: PathBuf,
    place: DeliverableStore,
    runtime: tokio::runtime::Runtime,
}

impl<'w> Forge<'w> {
    /// Sets up a world in which version one serves in production and version two on staging.
    fn new(world: &'w World, recipe: &str) -> Forge<'w> {
        pair(world);
        let repo = Repo::new(world, "shop");
        repo.write("larder.yml", recipe);
        repo.page("version one");
        staging(&repo).accepted();
        let first = world.larder(&["pull", "shop/production", "--override", "the first one"]);
        first.ok();
        repo.page("version two");
        staging(&repo).accepted();
        let directory = world.directory().join("home/evil");
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let (key, url) = (SigningKey::ephemeral().unwrap(), format!("file://{}", directory.display()));
        world.larder(&["remote", "add", "shop/production", "evil", &url, "--trust", &key.public().to_string()]).ok();
        let pull_key = PullKey::load_or_make(&world.directory().join("home/pull-key")).unwrap();
        let remote = Remote { name: "evil".parse().unwrap(), url, host_key: None, trust: Vec::new(), publish: true };
        let place = DeliverableStores::new(pull_key, TransferLimits::default()).open(&remote, &"shop".parse().unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Forge { world, repo, key, directory, place, runtime }
    }

    /// Returns manifest and archive of the release that staging serves.
    fn genuine(&self) -> (Manifest, PathBuf) {
        let manifest: Manifest = serde_json::from_value(live_manifest(self.world, "staging", "shop")).unwrap();
        let releases = self.world.root().join("projects/shop/staging/releases");
        let archive = releases.join(format!("{}.tar.zst", manifest.release));
        (manifest, archive)
    }

    /// Returns the manifest of a changed release, with a new id and a signature of the trusted key.
    fn forged(&self, of: &Manifest, change: impl FnOnce(&mut Manifest)) -> Manifest {
        let created = jiff::Timestamp::now();
        let mut manifest = Manifest { release: ReleaseId::new(created), created, signature: None, ..of.clone() };
        change(&mut manifest);
        manifest.signature = Some(self.key.sign(&manifest.statement()));
        manifest
    }

    /// Makes the remote offer only this release; `lie` changes the offer.
    fn offers(&self, manifest: &Manifest, archive: &Path, health: Option<Vec<u8>>, lie: impl FnOnce(&mut Offer)) {
        self.offers_text(manifest, &serde_json::to_vec(manifest).unwrap(), archive, health, lie);
    }

    fn offers_text(
        &self,
        manifest: &Manifest,
        text: &[u8],
        archive: &Path,
        health: Option<Vec<u8>>,
        lie: impl FnOnce(&mut Offer),
    ) {
        let _ = fs::remove_dir_all(self.directory.join("shop"));
        let path = self.world.directory().join("home/manifest");
        fs::write(&path, text).unwrap();
        let mut offer = Offer {
            project: "shop".parse().unwrap(),
            environment: manifest.environment.clone(),
            release: manifest.release,
            number: None,
            build: manifest.build,
            commit: manifest.commit.clone(),
            source: manifest.source.clone(),
            tag: None,
            tree: manifest.tree,
            created: manifest.created,
            archive_bytes: manifest.archive.bytes,
            manifest: Blob { bytes: text.len() as u64, digest: Digest::of(text) },
            live: true,
            healthy_since: None,
        };
        lie(&mut offer);
        let share = Publication { offer, archive: archive.to_owned(), manifest: path, health };
        self.runtime.block_on(publish(&self.place, &share)).unwrap();
    }

    fn pull(&self) -> Output {
        self.world.larder(&["pull", "shop", "--from", "evil"])
    }

    /// Asserts that `ask` is refused with reason and hint, and changes nothing.
    #[track_caller]
    fn refuses(&self, ask: impl FnOnce() -> Output, text: &str, hint: &str) {
        let accepted = || fs::read_to_string(self.world.environment("shop").join("accepted.json")).unwrap_or_default();
        let before = (self.world.snapshot("shop"), self.repo.live());
        let known = accepted();
        ask().exits(1).says(text).says(hint);
        assert_eq!((self.world.snapshot("shop"), self.repo.live()), before, "{text}: something stays");
        let incoming = names(&self.world.environment("shop").join("releases/.incoming"));
        assert!(incoming.is_empty(), "{text}: {incoming:?} stays");
        self.world.serves("shop", "version one");
        match self.world.outcomes("shop").pop().flatten().as_deref() {
            Some("refused") => assert_eq!(accepted(), known, "{text}: the build counts as accepted"),
            // The deployment accepted the manifest before it failed, so `accepted.json` keeps the build.
            Some("rolled_back") => {}
            other => panic!("{text}: {other:?}"),
        }
    }
}

fn forged_deliverables_of_a_remote_are_refused_with_the_reason(world: &World) {
    let forge = Forge::new(world, "");
    let (second, archive) = forge.genuine();
    let trusted = forge.key.public();
    let honest = |_: &mut Offer| {};
    let pull = || forge.pull();

    let unsigned = Manifest { signature: None, ..forge.forged(&second, |_| {}) };
    forge.offers(&unsigned, &archive, None, honest);
    let text = format!("release {} is not signed", unsigned.release);
    forge.refuses(pull, &text, "hint: update larder on the server that cooked the release, then deploy the commit there again");

    let stranger = SigningKey::ephemeral().unwrap();
    let mut unknown = forge.forged(&second, |_| {});
    unknown.signature = Some(stranger.sign(&unknown.statement()));
    forge.offers(&unknown, &archive, None, honest);
    let text = format!("release {} is signed by {}, which is not trusted for shop", unknown.release, stranger.public());
    forge.refuses(pull, &text, &format!("if they are the same, run: larder key trust shop {}", stranger.public()));

    let mut altered = forge.forged(&second, |_| {});
    altered.build += 100;
    forge.offers(&altered, &archive, None, honest);
    let text = format!(
        "the signature of release {} does not match its manifest: the manifest was altered after {trusted} signed it",
        altered.release
    );
    forge.refuses(
        pull,
        &text,
        "hint: fetch the release again from the server that cooked it; if the error persists, check who can write to the store of the remote",
    );

    let blog = forge.forged(&second, |manifest| manifest.project = "blog".parse().unwrap());
    forge.offers(&blog, &archive, None, honest);
    let text = format!("release {} belongs to the project blog (expected shop)", blog.release);
    forge.refuses(pull, &text, "hint: correct the address of the remote: it has the deliverables of blog");

    let (old, newer) = (forge.forged(&second, |_| {}), ReleaseId::new(jiff::Timestamp::now()));
    forge.offers(&old, &archive, None, |offer| {
        offer.release = newer;
        offer.build += 1;
    });
    let text = format!("the file of release {newer} contains release {}", old.release);
    forge.refuses(pull, &text, "hint: check who can write to the store of the remote; its files were renamed or exchanged");

    // The offer claims a commit that was never cooked.
    let staged = forge.repo.head();
    let commit = forge.repo.page("version three");
    let other = forge.forged(&second, |_| {});
    forge.offers(&other, &archive, None, |offer| {
        offer.commit = commit.parse().unwrap();
        offer.source = None;
    });
    let text = format!("release {} was built from commit {} (expected {})", other.release, &staged[..10], &commit[..10]);
    forge.refuses(
        || production(&forge.repo).0,
        &text,
        &format!("deploy {} on the server that cooks, then try again", &commit[..10]),
    );

    let format = forge.forged(&second, |_| {});
    let newer = serde_json::to_string(&format).unwrap().replacen("\"format\":1", "\"format\":2", 1);
    forge.offers_text(&format, newer.as_bytes(), &archive, None, honest);
    forge.refuses(pull, "the manifest has the format 2 (expected at most 1)", "hint: update larder on this server");

    // The signature is trusted, but the archive has other files than the manifest.
    let first: Manifest = serde_json::from_value(live_manifest(world, "production", "shop")).unwrap();
    let first_archive = world.environment("shop").join("releases").join(format!("{}.tar.zst", first.release));
    let disagreeing = forge.forged(&second, |manifest| manifest.archive = first.archive.clone());
    forge.offers(&disagreeing, &first_archive, None, honest);
    let text = format!("the archive of release {} and its manifest disagree: ", disagreeing.release);
    forge.refuses(pull, &text, "hint: deploy the commit again on the server that cooked the release");
    let lying = forge.forged(&second, |manifest| {
        manifest.entries.retain(|entry| entry.path != "index.html");
        manifest.tree = larder_archive::tree_digest(&manifest.entries);
    });
    forge.offers(&lying, &archive, None, honest);
    let text = format!("the archive of release {} and its manifest disagree: ", lying.release);
    forge.refuses(pull, &text, "hint: deploy the commit again on the server that cooked the release");

    // The bytes of the archive do not match the signed digest.
    let good = forge.forged(&second, |_| {});
    let bytes = fs::read(&archive).unwrap();
    let bad = world.directory().join("home/archive");
    for (change, why) in [("altered", "its digest does not match"), ("cut", "")] {
        let mut bytes = bytes.clone();
        let middle = bytes.len() / 3;
        if change == "altered" {
            bytes[middle] ^= 1
        } else {
            bytes.truncate(middle)
        }
        fs::write(&bad, bytes).unwrap();
        forge.offers(&good, &bad, None, honest);
        let said = forge.pull();
        said.exits(1).says("the archive from evil").says("is damaged: ").says(why).says("hint: ask the operator of that remote");
        world.serves("shop", "version one");
        assert!(!world.environment("shop").join("releases").join(format!("{}.manifest.json", good.release)).exists());
    }

    // A release with the same key and store, but without a forgery, is accepted. Each case above was therefore refused for its forgery.
    forge.offers(&good, &archive, None, honest);
    forge.pull().ok();
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

fn old_build_offered_as_the_newest_is_refused(world: &World) {
    let forge = Forge::new(world, "");
    let (made, archive) = forge.genuine();
    // The builds are a second apart, because release names have a resolution of seconds.
    let now = jiff::Timestamp::now();
    let build = |number: i64| {
        forge.forged(&made, |manifest| {
            manifest.created = now + jiff::SignedDuration::from_secs(number);
            manifest.release = ReleaseId::new(manifest.created);
            manifest.build = number as u64;
        })
    };
    let (old, middle, new) = (build(10), build(11), build(12));
    let pull = |release: &Manifest| world.larder(&["pull", "shop", &release.release.to_string(), "--from", "evil"]);
    for release in [&old, &new] {
        forge.offers(release, &archive, None, |_| {});
        pull(release).ok();
    }
    // The newest release was rolled back. The attacker now hides this release, and offers an older release as the newest.
    world.larder(&["rollback", "shop/production", &old.release.to_string()]).ok();
    forge.offers(&middle, &archive, None, |_| {});
    let before = world.snapshot("shop");
    let said = forge.pull();
    said.exits(1).says(&format!(
        "release {} (build 11) is offered as the newest, but release {} (build 12) of the same server was accepted before: an old release is offered again",
        middle.release, new.release
    ));
    said.says(&format!("hint: to deploy the older release, request it by its id: {}", middle.release));
    assert_eq!(world.snapshot("shop"), before);
    assert_eq!(names(&world.environment("shop").join("releases/.incoming")), Vec::<String>::new());
    // A release older than the live release is refused before a deployment begins.
    world.larder(&["rollback", "shop/production", &new.release.to_string()]).ok();
    forge.pull().exits(3).says("is older than the live release");
    pull(&middle).ok();
    assert_eq!(live_manifest(world, "production", "shop")["build"], 11);
}

fn release_of_another_environment_is_refused(world: &World) {
    let forge = Forge::new(world, "");
    let (made, archive) = forge.genuine();
    // The manifest is signed by this server itself; only the environment differs.
    let copy = world.directory().join("home/signing-key");
    fs::write(&copy, fs::read(world.root().join("state/signing_ed25519_key")).unwrap()).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
    let own = SigningKey::load_or_make(&copy).unwrap();
    let lab = Manifest { environment: "lab".parse().unwrap(), signature: None, ..made.clone() };
    let lab = Manifest { signature: Some(own.sign(&lab.statement())), ..lab };
    let path = archive.with_file_name(format!("{}.manifest.json", made.release));
    let good = fs::read(&path).unwrap();
    fs::write(&path, serde_json::to_vec(&lab).unwrap()).unwrap();
    let pull = || world.larder(&["pull", "shop/production", &made.release.to_string()]);
    let text = format!("release {} was built by the environment lab (expected staging)", made.release);
    forge.refuses(pull, &text, "hint: if releases of lab are expected, name lab in the address of the remote");
    fs::write(&path, good).unwrap();
    pull().ok();
    world.serves("shop", "version two");
}

fn contradictory_statements_about_one_release_are_refused(world: &World) {
    let forge = Forge::new(world, "");
    let path = world.directory().join("home/export");
    export(world, "v1", &path);
    let mut parts = parts(&fs::read(&path).unwrap());
    let first: Manifest = serde_json::from_slice(&parts[0].1).unwrap();
    let mut other = Manifest { build: first.build + 7, signature: None, ..first.clone() };
    other.signature = Some(forge.key.sign(&other.statement()));
    parts[0].1 = serde_json::to_vec(&other).unwrap();
    let before = world.snapshot("shop");
    let refused = import(world, "shop/production", &container(&parts));
    refused
        .exits(3)
        .says(&format!("the store already has release {} with another manifest", first.release))
        .says("hint: check who has the signing key of the server that cooked the release; a release never changes");
    assert_eq!(world.snapshot("shop"), before);
    assert_eq!(live_manifest(world, "production", "shop"), serde_json::to_value(&first).unwrap());
    world.serves("shop", "version one");
}

/// Returns a health record of staging that claims five hours of service.
fn boasting(world: &World, of: &Manifest) -> HealthRecord {
    let path = world.directory().join("home/record");
    let mut command = world.larder_command();
    command.args(["release", "export", "shop/staging", "v2"]).stdout(fs::File::create(&path).unwrap());
    assert!(command.status().unwrap().success());
    let parts = parts(&fs::read(path).unwrap());
    let (_, record) = parts.into_iter().find(|(name, _)| name == "health.json").unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    record["served"][0]["since"] = (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(5)).to_string().into();
    let record: HealthRecord = serde_json::from_value(record).unwrap();
    HealthRecord { release: of.release, signature: None, ..record }
}

fn health_record_counts_only_with_a_trusted_signature(world: &World) {
    let policy = "environments:\n  production:\n    promote:\n      min_healthy: 1h\n";
    let forge = Forge::new(world, policy);
    let (made, archive) = forge.genuine();
    let release = forge.forged(&made, |_| {});
    let record = boasting(world, &release);
    let signed = |key: &SigningKey, record: &HealthRecord| {
        let signature = Some(key.sign(&record.statement()));
        serde_json::to_vec(&HealthRecord { signature, ..record.clone() }).unwrap()
    };
    let stranger = SigningKey::ephemeral().unwrap();
    let other = HealthRecord { release: made.release, ..record.clone() };
    let unsigned = serde_json::to_vec(&record).unwrap();
    let about = format!("cannot accept the health record of release {}: ", release.release);
    for (what, bad, why) in [
        ("none", None, String::new()),
        ("an unsigned", Some(unsigned), format!("{about}it is not signed")),
        (
            "a stranger's",
            Some(signed(&stranger, &record)),
            format!("{about}it is signed by {}, which is not trusted for shop", stranger.public()),
        ),
        ("another's", Some(signed(&forge.key, &other)), format!("{about}it belongs to release {}", made.release)),
    ] {
        forge.offers(&release, &archive, bad, |_| {});
        let said = forge.pull();
        said.exits(1)
            .says(&why)
            .says("not fit for promotion: the release has no health record of another environment or server, but `promote` requires a record");
        world.serves("shop", "version one");
        let kept = world.environment("shop").join("releases").join(format!("{}.health.json", release.release));
        assert!(!kept.exists(), "{what} record was kept");
    }
    forge.offers(&release, &archive, Some(signed(&forge.key, &record)), |_| {});
    forge.pull().ok();
    world.serves("shop", "version two");
}
