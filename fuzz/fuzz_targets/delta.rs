//! Any bytes as a delta: refused, or a manifest whose entries have the digest that it names.

#![no_main]

use std::{io::Write, sync::LazyLock};

use larder::{
    model::Manifest,
    release::{self, delta, store},
};
use libfuzzer_sys::fuzz_target;

/// What the delta starts from.
static OLD: LazyLock<Manifest> = LazyLock::new(|| {
    let bytes = include_bytes!("../seeds/manifest/small");
    store::from_bytes(bytes, "small".as_ref()).expect("the seed is a manifest")
});

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("room");
    let _ = delta::base_of(&file);
    if let Ok(manifest) = delta::manifest(&file, &OLD) {
        assert!(release::digest(&manifest.entries) == manifest.tree);
        let _ = store::from_bytes(&serde_json::to_vec(&manifest).expect("it can be written"), "again".as_ref());
    }
});
