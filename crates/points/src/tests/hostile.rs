//! Tests with hostile indexes and manifests, which no capture writes.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::{Digest, Entry, Kind, PointError, Stamp, Time, Xattr, decode_index, encode_index};

fn entry(path: &[u8], kind: Kind) -> Entry {
    Entry { path: path.to_vec(), kind, mode: 0o644, uid: 0, gid: 0, mtime: Time::default(), xattrs: Vec::new() }
}

fn file(path: &[u8]) -> Entry {
    let (dev, ino, time) = (1, 2, Time::default());
    let stamp = Stamp { dev, ino, size: 0, mtime: time, ctime: time, is_settled: true };
    entry(path, Kind::File { size: 0, digest: Digest::of(b""), is_torn: false, stamp })
}

fn directory(path: &[u8]) -> Entry {
    entry(path, Kind::Directory)
}

fn sources() -> Vec<Source> {
    vec![Source::directory("up"), Source::file("db"), Source::directory("other")]
}

#[test]
fn hostile_entries_are_refused() {
    let good = vec![file(b"db"), file(b"db-wal"), directory(b"other"), directory(b"up"), directory(b"up/d"), file(b"up/d/f")];
    let bytes = encode_index(&good).unwrap();
    assert_eq!(decode_index(&bytes, "x", &sources()).unwrap(), good);
    let long = [b"up/".to_vec(), vec![b'x'; 256]].concat();
    let deep = [b"up".to_vec(), b"/d".repeat(2100)].concat();
    let link = |target: &[u8]| entry(b"up/l", Kind::Symlink { target: target.to_vec() });
    let hard = |to| entry(b"up/l", Kind::HardLink { to });
    let xattr = |name: &[u8]| Entry { xattrs: vec![Xattr { name: name.to_vec(), value: vec![] }], ..file(b"up/x") };
    let up = || directory(b"up");
    let bad: Vec<(&str, Vec<Entry>)> = vec![
        ("absolute", vec![file(b"/etc/passwd")]),
        ("parent", vec![up(), file(b"up/../../x")]),
        ("here", vec![up(), file(b"up/./x")]),
        ("NUL", vec![up(), file(b"up/a\0b")]),
        ("empty part", vec![up(), file(b"up//x")]),
        ("empty", vec![file(b"")]),
        ("long part", vec![up(), file(&long)]),
        ("long path", vec![up(), file(&deep)]),
        ("twice", vec![up(), file(b"up/a"), file(b"up/a")]),
        ("order", vec![up(), file(b"up/b"), file(b"up/a")]),
        ("no source", vec![file(b"elsewhere")]),
        ("beside a source", vec![up(), file(b"up-not")]),
        ("no parent", vec![up(), file(b"up/d/f")]),
        ("below a file", vec![up(), file(b"up/a"), file(b"up/a/b")]),
        ("below a link", vec![up(), link(b"/etc"), file(b"up/l/passwd")]),
        ("hard link to itself", vec![up(), hard(1)]),
        ("hard link forward", vec![up(), hard(2), file(b"up/m")]),
        ("hard link to nothing", vec![up(), hard(9)]),
        ("hard link to a directory", vec![up(), hard(0)]),
        ("hard link to another source", vec![file(b"db"), up(), hard(0)]),
        ("empty target", vec![up(), link(b"")]),
        ("target with NUL", vec![up(), link(b"a\0b")]),
        ("attribute of the kernel", vec![up(), xattr(b"trusted.overlay.opaque")]),
        ("attribute of a module", vec![up(), xattr(b"security.selinux")]),
        ("mode", vec![Entry { mode: 0o100_644, ..up() }]),
        ("owner", vec![Entry { uid: u32::MAX, ..up() }]),
        ("time", vec![Entry { mtime: Time { seconds: 0, nanos: 1_000_000_000 }, ..up() }]),
    ];
    for (what, entries) in bad {
        let bytes = encode_index(&entries).unwrap();
        let error = decode_index(&bytes, "x", &sources()).expect_err(what);
        assert!(matches!(error, PointError::Malformed { .. }), "{what}: {error}");
    }
}

#[test]
fn wrong_counts_and_newer_versions_are_refused() {
    let bytes = encode_index(&[directory(b"up")]).unwrap();
    for count in [0_u64, 2, 1000, u64::MAX, 1 << 40] {
        let mut lying = bytes.clone();
        lying[24..32].copy_from_slice(&count.to_le_bytes());
        assert!(matches!(decode_index(&lying, "x", &sources()), Err(PointError::Malformed { .. })), "{count}");
    }
    let mut newer = bytes.clone();
    newer[20] = 2;
    let error = decode_index(&newer, "x", &sources()).unwrap_err();
    assert!(matches!(error, PointError::Version { found: 2, .. }) && error.to_string().contains("hint: update larder"));
    for length in 0..bytes.len() {
        assert!(decode_index(&bytes[..length], "x", &sources()).is_err(), "{length} bytes");
    }
    assert!(decode_index(&[bytes.as_slice(), b"x"].concat(), "x", &sources()).is_err());
}

#[test]
fn forged_manifest_is_refused() {
    let scene = Scene::new();
    scene.write("uploads/f", "x");
    scene.capture("one", &[Source::directory("uploads")], None).unwrap();
    let dir = scene.store.path().join("one");
    let original = fs::read_to_string(dir.join("point.json")).unwrap();
    let forge = |from: &str, to: &str| {
        let forged = original.replacen(from, to, 1);
        assert_ne!(forged, original, "{from}");
        fs::write(dir.join("checksums"), crate::store::checksum_line(Digest::of(forged.as_bytes()))).unwrap();
        fs::write(dir.join("point.json"), forged).unwrap();
        scene.restore_into("one", "into").unwrap_err()
    };
    for (from, to) in [
        ("\"files\": 1", "\"files\": 2"),
        ("\"bytes\": 1", "\"bytes\": 7"),
        ("\"path\": \"uploads\"", "\"path\": \"../uploads\""),
        ("\"path\": \"uploads\"", "\"path\": \"/uploads\""),
        ("\"path\": \"uploads\"", "\"path\": \"other\""),
        ("\"kind\": \"directory\"", "\"kind\": \"file\""),
        ("\"is_present\": true", "\"is_present\": false"),
        ("\"id\": \"one\"", "\"id\": \"two\""),
        ("\"index_bytes\": 1", "\"index_bytes\": 9999999999"),
        ("\"version\": 2", "\"version\": 0"),
        ("{", "["),
    ] {
        let error = forge(from, to);
        assert!(matches!(error, PointError::Malformed { .. }), "{to}: {error}");
    }
    let newer = forge("\"version\": 2", "\"version\": 3, \"unknown\": []");
    assert!(matches!(newer, PointError::Version { .. }), "{newer}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn indexes_of_random_changes_are_read_exactly(
        rounds in prop::collection::vec(prop::collection::vec((0_u16..260, 0_u64..4), 0..12), 1..6),
    ) {
        let sources = [Source::directory("up")];
        let of = |sizes: &std::collections::BTreeMap<u16, u64>| -> Vec<Entry> {
            let sized = |(name, size): (&u16, &u64)| {
                let mut entry = file(format!("up/{name:03}").as_bytes());
                if let Kind::File { size: of_file, .. } = &mut entry.kind {
                    *of_file = *size;
                }
                entry
            };
            [directory(b"up")].into_iter().chain(sizes.iter().map(sized)).collect()
        };
        let mut sizes: std::collections::BTreeMap<u16, u64> = (0..250).map(|name| (name, 1)).collect();
        let whole = encode_index(&of(&sizes)).unwrap();
        let base = crate::changes::BaseIndex { digest: Digest::of(&whole), bytes: whole.len() as u64 };
        let mut old = crate::changes::ReadIndex::whole(of(&sizes), base, crate::store::INDEX);
        for round in rounds {
            for (name, size) in round {
                if size == 0 { sizes.remove(&name); } else { sizes.insert(name, size); }
            }
            let entries = of(&sizes);
            // All changes together are a small part of the base.
            let bytes = crate::changes::encode(&old, &entries).unwrap().unwrap();
            old = crate::changes::read(&bytes, &whole, "x", &sources).unwrap();
            prop_assert_eq!(&old.entries, &entries);
            prop_assert_eq!(old.base, base);
        }
    }

    #[test]
    fn decoding_of_changed_bytes_never_panics(at in 0_usize..400, byte in any::<u8>(), cut in 0_usize..400) {
        let entries = [file(b"db"), directory(b"up"), entry(b"up/l", Kind::Symlink { target: b"t".to_vec() })];
        let mut bytes = encode_index(&entries).unwrap();
        let length = bytes.len();
        bytes[at % length] = byte;
        bytes.truncate(length - cut % 3);
        if let Ok(entries) = decode_index(&bytes, "x", &sources()) {
            // The new bytes may differ from the old bytes, because the old bytes may encode a number in more bytes than necessary.
            let again = encode_index(&entries).unwrap();
            prop_assert_eq!(decode_index(&again, "x", &sources()).unwrap(), entries);
        }
    }
}
