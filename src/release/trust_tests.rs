//! Tests of the checks of a deliverable: accepted manifests, archives and health records, and the reasons for a refusal.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use larder_archive::{ArchiveInfoExt, ArchiveLimits, tree_digest};

use super::{
    Refusal, SigningKey, check, store,
    tests::{Made, bundle_dir, put},
    trust::{Accepted, Expectation, accept, accept_record, read_manifest, read_record},
};
use crate::model::{ArchiveInfo, Digest, EntryKind, HealthRecord, Manifest, PublicKey, ReleaseId, ReleaseNumber};

fn key() -> SigningKey {
    SigningKey::ephemeral().unwrap()
}

fn signed(manifest: &Manifest, key: &SigningKey) -> Manifest {
    Manifest { signature: Some(key.sign(&manifest.statement())), ..manifest.clone() }
}

fn small() -> (tempfile::TempDir, Made) {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a/one.txt", "one");
    put(dir.path(), "b/two.txt", &"two ".repeat(500));
    std::os::unix::fs::symlink("a/one.txt", dir.path().join("link")).unwrap();
    let made = bundle_dir(dir.path(), None).unwrap();
    (dir, made)
}

/// Returns a release with at least two frames.
fn large() -> (tempfile::TempDir, Made) {
    let dir = tempfile::tempdir().unwrap();
    let mut state = 7_u64;
    for n in 0..24 {
        let mut bytes = vec![0; 400_000];
        for byte in &mut bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 33) as u8 & 0x3f;
        }
        std::fs::write(dir.path().join(format!("f{n:02}")), bytes).unwrap();
    }
    let made = bundle_dir(dir.path(), None).unwrap();
    assert!(made.parsed.archive.frames.len() > 1);
    (dir, made)
}

fn shop() -> Expectation {
    Expectation::of("shop".parse().unwrap())
}

fn refusal(expect: &Expectation, manifest: &Manifest, trust: &[PublicKey]) -> Refusal {
    accept(expect, manifest, trust, &Accepted::default()).unwrap_err()
}

fn look(file: &File, manifest: &Manifest) -> Result<(), Refusal> {
    let quick = check::verdict(manifest, check::read_digests(file, manifest, &ArchiveLimits::default())).unwrap();
    let whole = check::verdict(manifest, check::read_all(file, manifest, &ArchiveLimits::default(), 2)).unwrap();
    // The thorough check refuses everything that the quick check refuses. The quick check may accept an archive that the thorough check
    // refuses.
    assert!(quick.is_ok() || whole.is_err(), "{quick:?} {whole:?}");
    whole
}

fn copy(made: &Made) -> (tempfile::NamedTempFile, Vec<u8>) {
    let size = made.archive.metadata().unwrap().len();
    let mut bytes = vec![0; size as usize];
    made.archive.read_exact_at(&mut bytes, 0).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    (file, bytes)
}

#[test]
fn signed_release_of_a_trusted_server_is_accepted() {
    let (_dir, made) = small();
    let key = key();
    let manifest = signed(&made.parsed, &key);
    let trust = [SigningKey::ephemeral().unwrap().public(), key.public()];
    let exact = Expectation {
        environments: vec!["production".parse().unwrap(), "staging".parse().unwrap()],
        release: Some(manifest.release),
        commit: Some(manifest.commit.clone()),
        newest: true,
        ..shop()
    };
    for expect in [shop(), exact] {
        accept(&expect, &manifest, &trust, &Accepted::default()).unwrap();
    }
    look(&made.archive, &manifest).unwrap();
    let bytes = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(read_manifest(&bytes).unwrap(), manifest);
}

#[test]
fn unsigned_untrusted_and_forged_releases_are_refused() {
    let (_dir, made) = small();
    let (key, other) = (key(), key());
    let trust = [key.public()];
    let plain = &made.parsed;
    let release = plain.release;
    let found = refusal(&shop(), plain, &trust);
    assert_eq!(found.to_string(), format!("release {release} is not signed"));

    let found = refusal(&shop(), &signed(plain, &other), &trust);
    assert_eq!(found.to_string(), format!("release {release} is signed by {}, which is not trusted for shop", other.public()));
    assert!(found.hint().contains(&format!("larder key trust shop {}", other.public())), "{}", found.hint());
    assert!(matches!(refusal(&shop(), &signed(plain, &key), &[]), Refusal::UnknownSigner { .. }), "no key is trusted");

    // The first forgery is signed by an untrusted key and names a trusted key. The second forgery has a signature of the trusted key for
    // another statement.
    let mut forged = signed(plain, &other);
    forged.signature.as_mut().unwrap().key = key.public();
    let found = refusal(&shop(), &forged, &trust);
    assert_eq!(
        found.to_string(),
        format!(
            "the signature of release {release} does not match its manifest: the manifest was altered after {} signed it",
            key.public()
        )
    );
    let mut changed = signed(plain, &key);
    changed.build += 1;
    assert!(matches!(refusal(&shop(), &changed, &trust), Refusal::BadSignature { .. }));
}

#[test]
fn release_of_another_project_environment_id_or_commit_is_refused() {
    let (_dir, made) = small();
    let key = key();
    let trust = [key.public()];
    let manifest = signed(&made.parsed, &key);
    let release = manifest.release;
    let found = refusal(&Expectation::of("blog".parse().unwrap()), &manifest, &trust);
    assert_eq!(found.to_string(), format!("release {release} belongs to the project shop (expected blog)"));

    let expect = Expectation { environments: vec!["qa".parse().unwrap(), "beta".parse().unwrap()], ..shop() };
    let found = refusal(&expect, &manifest, &trust);
    assert_eq!(found.to_string(), format!("release {release} was built by the environment staging (expected qa, beta)"));

    let wanted = ReleaseId::new(jiff::Timestamp::now());
    let found = refusal(&Expectation { release: Some(wanted), ..shop() }, &manifest, &trust);
    assert_eq!(found.to_string(), format!("the file of release {wanted} contains release {release}"));

    let wanted = "b".repeat(40).parse().unwrap();
    let found = refusal(&Expectation { commit: Some(wanted), ..shop() }, &manifest, &trust);
    assert_eq!(found.to_string(), format!("release {release} was built from commit aaaaaaaaaa (expected bbbbbbbbbb)"));
    assert!(found.hint().contains("deploy bbbbbbbbbb"), "{}", found.hint());

    // Another commit with the same git tree is accepted. Two unknown git trees do not count as the same.
    let wanted = || Some("b".repeat(40).parse().unwrap());
    let source = || Some("c".repeat(40).parse().unwrap());
    let same = signed(&Manifest { source: source(), ..made.parsed.clone() }, &key);
    let expect = Expectation { commit: wanted(), source: source(), ..shop() };
    accept(&expect, &same, &trust, &Accepted::default()).unwrap();
    assert!(matches!(refusal(&expect, &manifest, &trust), Refusal::OtherCommit { .. }));
    assert!(matches!(refusal(&Expectation { commit: wanted(), ..shop() }, &manifest, &trust), Refusal::OtherCommit { .. }));
}

#[test]
fn old_build_offered_as_the_newest_is_refused() {
    let (_dir, made) = small();
    let (key, other) = (key(), key());
    let trust = [key.public(), other.public()];
    let build = |number: u64, key: &SigningKey| {
        let created = jiff::Timestamp::from_second(1_700_000_000 + number as i64).unwrap();
        signed(&Manifest { build: number, created, release: ReleaseId::new(created), ..made.parsed.clone() }, key)
    };
    let (five, six, seven) = (build(5, &key), build(6, &key), build(7, &key));
    let mut accepted = Accepted::default();
    assert!(accepted.note(&six) && !accepted.note(&six) && !accepted.note(&five));
    let newest = Expectation { newest: true, ..shop() };
    let found = accept(&newest, &five, &trust, &accepted).unwrap_err();
    assert_eq!(
        found.to_string(),
        format!(
            "release {} (build 5) is offered as the newest, but release {} (build 6) of the same server was accepted before: an old release is offered again",
            five.release, six.release
        )
    );
    // An old release that was requested by its id is accepted. The newest accepted release is not old. A mark
    // records the newest accepted release, and each signer has its own marks.
    let named = Expectation { release: Some(five.release), ..shop() };
    accept(&named, &five, &trust, &accepted).unwrap();
    accept(&newest, &six, &trust, &accepted).unwrap();
    accept(&newest, &seven, &trust, &accepted).unwrap();
    accept(&newest, &build(5, &other), &trust, &accepted).unwrap();
    // An earlier release with the same build number is old. A raised build number makes the signature invalid.
    assert!(matches!(
        accept(&newest, &signed(&Manifest { build: 6, ..five.clone() }, &key), &trust, &accepted),
        Err(Refusal::Replayed { .. })
    ));
    assert!(matches!(
        accept(&newest, &Manifest { build: 9, ..five.clone() }, &trust, &accepted),
        Err(Refusal::BadSignature { .. })
    ));
    // The marks are stored in a file, and their number is limited.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("accepted.json");
    assert_eq!(Accepted::load(&path).unwrap(), Accepted::default());
    for n in 0..300 {
        let environment = format!("env{n}").parse().unwrap();
        accepted.note(&Manifest { environment, ..seven.clone() });
    }
    accepted.save(&path).unwrap();
    assert_eq!(Accepted::load(&path).unwrap(), accepted);
    assert!(std::fs::metadata(&path).unwrap().len() < 200_000);
}

#[test]
fn signer_with_many_environments_displaces_only_its_own_marks() {
    let (_dir, made) = small();
    let (key, inventor) = (key(), key());
    let trust = [key.public(), inventor.public()];
    let build = |number: u64, key: &SigningKey, environment: &str| {
        let created = jiff::Timestamp::from_second(1_700_000_000 + number as i64).unwrap();
        let environment = environment.parse().unwrap();
        signed(&Manifest { build: number, created, environment, release: ReleaseId::new(created), ..made.parsed.clone() }, key)
    };
    let mut accepted = Accepted::default();
    let (old, new) = (build(5, &key, "production"), build(6, &key, "production"));
    assert!(accepted.note(&new));
    let invented: Vec<Manifest> = (0..600).map(|n| build(1000 + n, &inventor, &format!("env{n}"))).collect();
    for manifest in &invented {
        assert!(accepted.note(manifest));
    }
    let newest = Expectation { newest: true, ..shop() };
    let replayed = accept(&newest, &old, &trust, &accepted);
    assert!(matches!(replayed, Err(Refusal::Replayed { .. })), "{replayed:?}");
    // The number of marks of one signer is limited; its newest marks stay.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("accepted.json");
    accepted.save(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap().matches("\"signer\"").count(), 1 + 256);
    let before = build(1598, &inventor, "env599");
    assert!(matches!(accept(&newest, &before, &trust, &accepted), Err(Refusal::Replayed { .. })));
}

#[test]
fn newer_format_and_malformed_file_are_refused() {
    let (_dir, made) = small();
    let text = serde_json::to_string(&made.parsed).unwrap();
    let newer = text.replacen("\"format\":1", "\"format\":2,\"novelty\":[]", 1);
    let found = read_manifest(newer.as_bytes()).unwrap_err();
    assert_eq!(found.to_string(), "the manifest has the format 2 (expected at most 1)");
    assert_eq!(found.hint(), "update larder on this server");
    // A newer format is reported even if the manifest has no other valid field.
    assert!(matches!(read_manifest(b"{\"format\":9,\"entries\":7}"), Err(Refusal::NewerFormat { format: 9, .. })));
    let older = text.replacen("\"format\":1", "\"format\":0", 1);
    for bad in ["", "{}", "[]", "null", "\u{0}", &text[1..], &text[..text.len() - 1], &older, &"[".repeat(100_000)] {
        assert!(matches!(read_manifest(bad.as_bytes()), Err(Refusal::Unreadable { .. })), "{:.60}", bad);
    }
    assert!(matches!(read_record(b"{\"format\":2}"), Err(Refusal::NewerFormat { format: 2, .. })));
    assert!(matches!(read_record(b"{\"format\":1}"), Err(Refusal::Unreadable { .. })));
}

/// Changes every byte of the manifest in several ways. A manifest that is still accepted has the same value.
#[test]
fn manifest_with_a_changed_byte_is_refused_or_equal() {
    let (_dir, made) = small();
    let key = key();
    let manifest = signed(&made.parsed, &key);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let mut harmless = 0;
    for at in 0..bytes.len() {
        for change in [|b: u8| b ^ 1, |b: u8| b ^ 0x20, |b: u8| b.wrapping_add(1), |_| b'0', |_| b' ', |_| b'"', |_| 0] {
            let mut altered = bytes.clone();
            altered[at] = change(altered[at]);
            if altered == bytes {
                continue;
            }
            let Ok(read) = read_manifest(&altered) else { continue };
            if accept(&shop(), &read, &[key.public()], &Accepted::default()).is_err() {
                continue;
            }
            // The signed statement contains the archive digest, but not the frames, which are compared with this digest.
            if look(&made.archive, &read).is_err() {
                continue;
            }
            assert_eq!(read, manifest, "byte {at} became {:?}", altered[at] as char);
            harmless += 1;
        }
    }
    // For example, a digest with an upper-case digit has the same value.
    assert!(harmless > 0 && harmless < bytes.len(), "{harmless}");
}

#[test]
fn truncated_or_altered_archive_is_refused() {
    let (_dir, made) = large();
    let manifest = &made.parsed;
    let (file, bytes) = copy(&made);
    let open = || File::options().read(true).write(true).open(file.path()).unwrap();
    look(&open(), manifest).unwrap();
    let size = bytes.len() as u64;
    let release = manifest.release;
    for percent in 0..100 {
        let cut = size * percent / 100;
        open().set_len(cut).unwrap();
        let found = look(&open(), manifest).unwrap_err();
        assert_eq!(
            found.to_string(),
            format!("the archive of release {release} is truncated: it has {cut} bytes (expected {size})")
        );
        std::fs::write(file.path(), &bytes).unwrap();
    }
    open().set_len(size - 1).unwrap();
    assert!(matches!(look(&open(), manifest), Err(Refusal::Truncated { .. })));
    std::fs::write(file.path(), &bytes).unwrap();

    // The loop changes bytes at the start, in the middle and at the end of each frame, in the seek table, and at every hundredth of the
    // archive.
    let mut places: Vec<u64> = (0..100).map(|percent| size * percent / 100).collect();
    for frame in &manifest.archive.frames {
        places.extend((0..20).map(|n| frame.offset + n));
        places.extend((1..=8).map(|n| frame.offset + frame.bytes - n));
        places.push(frame.offset + frame.bytes / 2);
    }
    let table = manifest.archive.seek_table().len() as u64;
    places.extend(size - table..size);
    for at in places {
        let old = bytes[at as usize];
        for new in [old ^ 1, old ^ 0x80, !old] {
            open().write_all_at(&[new], at).unwrap();
            let quick = check::read_digests(&open(), manifest, &ArchiveLimits::default());
            let found = check::verdict(manifest, quick).unwrap().unwrap_err();
            assert!(matches!(found, Refusal::Altered { .. }), "byte {at}: {found}");
            assert!(found.to_string().starts_with(&format!("the archive of release {release} was altered or damaged: ")));
        }
        assert!(look(&open(), manifest).is_err(), "byte {at}");
        open().write_all_at(&[old], at).unwrap();
    }
    look(&open(), manifest).unwrap();
    // An archive with bytes after its end is refused.
    open().write_all_at(b"x", size).unwrap();
    assert!(matches!(look(&open(), manifest), Err(Refusal::Altered { .. })));
}

/// A signed manifest of a trusted server is still compared with the archive.
#[test]
fn signed_manifest_that_contradicts_its_archive_is_refused() {
    let (_dir, made) = small();
    let key = key();
    let lie = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = made.parsed.clone();
        change(&mut manifest);
        manifest.tree = tree_digest(&manifest.entries);
        let manifest = signed(&manifest, &key);
        accept(&shop(), &manifest, &[key.public()], &Accepted::default()).unwrap();
        look(&made.archive, &manifest).unwrap_err().to_string()
    };
    let starts = format!("the archive of release {} and its manifest disagree: ", made.parsed.release);
    let content = lie(&|manifest| {
        for entry in &mut manifest.entries {
            if let EntryKind::File { digest, .. } = &mut entry.kind {
                *digest = Digest::of(b"else");
            }
        }
    });
    assert!(content.starts_with(&starts) && content.contains("one.txt"), "{content}");
    let size = lie(&|manifest| {
        for entry in &mut manifest.entries {
            if let EntryKind::File { size, .. } = &mut entry.kind {
                *size += 1;
            }
        }
    });
    assert!(size.starts_with(&starts), "{size}");
    let name = lie(&|manifest| manifest.entries.last_mut().unwrap().path = "lonk".to_owned());
    assert!(name.starts_with(&starts) && name.contains("\"link\" is in the archive but not in the manifest"), "{name}");
    let target = lie(&|manifest| {
        manifest.entries.last_mut().unwrap().kind = EntryKind::Link { target: "/etc/passwd".to_owned() };
    });
    assert!(target.starts_with(&starts), "{target}");
    let missing = lie(&|manifest| drop(manifest.entries.pop()));
    assert!(missing.starts_with(&starts), "{missing}");
    let frames = lie(&|manifest| manifest.archive.frames[0].entries -= 1);
    assert!(frames.starts_with(&starts), "{frames}");
    let digest = lie(&|manifest| manifest.archive.digest = Digest::of(b"x"));
    assert!(digest.starts_with(&starts), "{digest}");
    let bytes = lie(&|manifest| manifest.archive.bytes += 1);
    assert!(bytes.starts_with(&starts), "{bytes}");
    // The archive and the frames of another release do not match the entries.
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a/one.txt", "two");
    let other = bundle_dir(dir.path(), None).unwrap();
    let swapped = Manifest { archive: ArchiveInfo::of_frames(other.parsed.archive.frames.clone()), ..made.parsed.clone() };
    assert!(matches!(look(&other.archive, &swapped), Err(Refusal::Disagrees { .. })));
}

#[test]
fn health_record_of_another_release_or_signer_is_refused() {
    let (_dir, made) = small();
    let (key, other) = (key(), key());
    let manifest = &made.parsed;
    let mut record = HealthRecord {
        format: HealthRecord::FORMAT,
        project: manifest.project.clone(),
        environment: manifest.environment.clone(),
        release: manifest.release,
        number: ReleaseNumber(1),
        tree: manifest.tree,
        served: Vec::new(),
        as_of: manifest.created,
        checks: Vec::new(),
        restarts: Vec::new(),
        signature: None,
    };
    let why = |record: &HealthRecord| accept_record(record, manifest, &[key.public()]).unwrap_err().to_string();
    assert!(why(&record).ends_with("it is not signed"), "{}", why(&record));
    record.signature = Some(other.sign(&record.statement()));
    assert!(why(&record).contains("which is not trusted for shop"), "{}", why(&record));
    record.signature = Some(key.sign(&record.statement()));
    accept_record(&record, manifest, &[key.public()]).unwrap();
    let bytes = serde_json::to_vec(&record).unwrap();
    assert_eq!(read_record(&bytes).unwrap(), record);
    let altered = HealthRecord { number: ReleaseNumber(2), ..record.clone() };
    assert!(why(&altered).contains("altered"), "{}", why(&altered));
    let mut elsewhere = HealthRecord { release: ReleaseId::new(manifest.created), ..record };
    elsewhere.signature = Some(key.sign(&elsewhere.statement()));
    assert!(why(&elsewhere).contains("it belongs to release"), "{}", why(&elsewhere));
}

#[test]
fn older_health_record_does_not_replace_newer_record() {
    let (_dir, made) = small();
    let key = key();
    let manifest = &made.parsed;
    let root = tempfile::tempdir().unwrap();
    let paths = crate::host::root::Root::new(root.path()).environment(&manifest.project, &"production".parse().unwrap());
    std::fs::create_dir_all(paths.releases()).unwrap();
    let take = |age: i64| {
        let mut record = HealthRecord {
            format: HealthRecord::FORMAT,
            project: manifest.project.clone(),
            environment: manifest.environment.clone(),
            release: manifest.release,
            number: ReleaseNumber(1),
            tree: manifest.tree,
            served: Vec::new(),
            as_of: manifest.created - jiff::SignedDuration::from_secs(age),
            checks: Vec::new(),
            restarts: Vec::new(),
            signature: None,
        };
        record.signature = Some(key.sign(&record.statement()));
        let file = root.path().join("record");
        std::fs::write(&file, serde_json::to_vec(&record).unwrap()).unwrap();
        let known = super::accept_record(&paths, &file, manifest, &[key.public()]).unwrap();
        assert_eq!(super::known_record(&paths, manifest, &[key.public()]).unwrap(), known);
        manifest.created.duration_since(known.as_of).as_secs()
    };
    assert_eq!([take(10), take(20), take(5)], [10, 10, 5]);
}

/// The statement of a manifest begins with the kind of the statement, so the signature of a manifest is never valid for a health record.
#[test]
fn statement_of_a_manifest_begins_with_its_kind() {
    let (_dir, made) = small();
    let bytes = made.parsed.statement();
    assert!(bytes.starts_with(b"{\"larder\":\"release manifest\","));
    let _ = store::from_bytes(&bytes, Path::new("statement")).unwrap_err();
}
