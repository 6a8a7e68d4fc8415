//! Any bytes as a manifest: refused, or a manifest that says the same when it is written and read again.

#![no_main]

use std::path::Path;

use larder::release::store;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("fuzzed");
    let Ok(manifest) = store::from_bytes(bytes, path) else { return };
    let again = serde_json::to_vec(&manifest).expect("a manifest can be written");
    let read = store::from_bytes(&again, path).expect("what was accepted is accepted again");
    assert!(read == manifest, "another manifest was read from what was written");
    assert!(read.statement() == manifest.statement());
});
