//! Any bytes as an export: the reader of containers refuses them, or returns parts that fit into them. Parts named like a manifest or a health
//! record are passed to their readers.

#![no_main]

use larder::release::trust::{read_manifest, read_record};
use larder_archive::container::{ARCHIVE, Container, ContainerError, HEALTH, MANIFEST};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = read(bytes);
});

fn read(bytes: &[u8]) -> Result<(), ContainerError> {
    let mut from = Container::new(bytes);
    let mut taken = 0;
    for name in [MANIFEST, HEALTH, ARCHIVE] {
        let Some(size) = from.next(name, 1 << 20)? else { continue };
        let mut content = Vec::new();
        if from.content(size, &mut content)?.is_err() {
            assert!((content.len() as u64) < size);
            return Ok(());
        }
        assert_eq!(content.len() as u64, size);
        taken += content.len();
        assert!(taken < bytes.len());
        match name {
            MANIFEST => drop(read_manifest(&content)),
            HEALTH => drop(read_record(&content)),
            _ => {}
        }
    }
    from.end()
}
