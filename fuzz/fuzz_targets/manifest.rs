//! Any bytes as a manifest: the reader refuses them, or returns a manifest that round-trips.

#![no_main]

use std::path::Path;

use larder::release::manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("fuzzed");
    let Ok(parsed) = manifest::from_bytes(bytes, path) else { return };
    let again = serde_json::to_vec(&parsed).expect("a manifest can be written");
    let read = manifest::from_bytes(&again, path).expect("an accepted manifest is accepted again");
    assert!(read == parsed, "the manifest did not round-trip");
    assert!(read.statement() == parsed.statement());
});
