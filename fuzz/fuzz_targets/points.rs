//! Any bytes as the index of a restore point: the reader refuses them, or returns entries that stay within their sources and round-trip.

#![no_main]

use larder_points::{Kind, Source, decode_index, encode_index};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let sources = [Source::directory("up"), Source::file("db"), Source::directory("storage/app")];
    // Most inputs would fail at the header: they get a good one.
    let mut whole = encode_index(&[]).expect("an empty index can be written");
    let header = whole.len() - 8;
    whole.truncate(header);
    whole.extend_from_slice(bytes);
    let Ok(entries) = decode_index(&whole, "fuzzed", &sources) else { return };
    for (at, entry) in entries.iter().enumerate() {
        let path = entry.path.as_slice();
        assert!([&b"up"[..], b"db", b"storage/app"].iter().any(|root| path.starts_with(root)));
        assert!(path.split(|c| *c == b'/').all(|part| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0)));
        if let Kind::HardLink { to } = entry.kind {
            assert!((to as usize) < at && matches!(entries[to as usize].kind, Kind::File { .. }));
        }
    }
    let again = encode_index(&entries).expect("accepted entries can be written");
    let read = decode_index(&again, "fuzzed", &sources).expect("accepted entries are accepted again");
    assert!(read == entries, "the index did not round-trip");
});
