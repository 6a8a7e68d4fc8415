//! Any bytes as the index of a restore point, whole or as changes of another index: the reader refuses them, or returns entries that stay
//! within their sources and round-trip.

#![no_main]

use larder_points::{Digest, Entry, Kind, Source, decode_index, decode_index_changes, encode_index};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let sources = [Source::directory("up"), Source::file("db"), Source::directory("storage/app")];
    // Most inputs would fail at the header: they get a good one.
    let empty = encode_index(&[]).expect("an empty index can be written");
    let mut whole = empty.clone();
    let header = whole.len() - 8;
    whole.truncate(header);
    whole.extend_from_slice(bytes);
    if let Ok(entries) = decode_index(&whole, "fuzzed", &sources) {
        check(&entries, &sources);
    }
    let mut changes = b"larder points delta\n\x01\0\0\0".to_vec();
    changes.extend_from_slice(&Digest::of(&empty).0);
    changes.extend_from_slice(&(empty.len() as u64).to_le_bytes());
    changes.extend_from_slice(bytes);
    if let Ok(entries) = decode_index_changes(&changes, &empty, "fuzzed", &sources) {
        check(&entries, &sources);
    }
});

fn check(entries: &[Entry], sources: &[Source]) {
    for (at, entry) in entries.iter().enumerate() {
        let path = entry.path.as_slice();
        assert!([&b"up"[..], b"db", b"storage/app"].iter().any(|root| path.starts_with(root)));
        assert!(path.split(|c| *c == b'/').all(|part| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0)));
        if let Kind::HardLink { to } = entry.kind {
            assert!((to as usize) < at && matches!(entries[to as usize].kind, Kind::File { .. }));
        }
    }
    let again = encode_index(entries).expect("accepted entries can be written");
    let read = decode_index(&again, "fuzzed", sources).expect("accepted entries are accepted again");
    assert!(read == entries, "the index did not round-trip");
}
