//! Arbitrary sections of a delta with matching sizes and digests. The reader must refuse them, or return entries with the digest of the
//! outline, and files that match their entries. `larder_archive::delta::forge` describes the format of an input.

#![no_main]

mod seen;

use std::{fs::File, os::unix::fs::FileExt, sync::LazyLock};

use larder_archive::{
    Confined, EntryKind,
    delta::{
        self, Changes, ContentOrigin, Delta, DeltaEndpoint, DeltaError,
        forge::{self, Planted},
    },
    tree_digest,
};
use libfuzzer_sys::fuzz_target;
use seen::Seen;

/// The release that deltas start from.
struct Old {
    planted: Planted,
    tree: Confined,
}

static OLD: LazyLock<Old> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory").keep();
    let planted = forge::plant(&directory).expect("a small tree");
    Old { planted, tree: Confined::open(&directory).expect("the directory exists") }
});

/// The delta: one file, which is truncated and rewritten for each input.
static FILE: LazyLock<File> = LazyLock::new(|| tempfile::tempfile().expect("a file"));

fuzz_target!(|input: &[u8]| {
    let old = OLD.planted.endpoint();
    // The first byte says whether the rest is a file as it is.
    let bytes = match input.split_first() {
        Some((0xff, rest)) => rest.to_vec(),
        _ => forge::Forged::of(input).delta(&old).expect("any input makes a delta"),
    };
    FILE.set_len(0).expect("the file can be cut");
    FILE.write_all_at(&bytes, 0).expect("space on the disk");
    let _ = delta::endpoints(&FILE);
    let _ = apply(&old);
});

fn apply(old: &DeltaEndpoint<'_>) -> Result<(), DeltaError> {
    let changes = Changes::read(&FILE, &old.id, &old.tree, &old.head)?;
    let (id, tree, head) = (changes.id().to_owned(), changes.tree(), changes.head().to_vec());
    let entries = changes.entries(old.entries.to_vec())?;
    assert!(tree_digest(&entries) == tree);
    let new = DeltaEndpoint { id, tree, archive: old.archive, entries: &entries, head };
    let delta = Delta::open(&FILE, old, &OLD.tree, &new)?;
    let mut reader = delta.reader();
    for (index, entry) in entries.iter().enumerate() {
        match (delta.origin(index), &entry.kind) {
            (ContentOrigin::Old(from), EntryKind::File { digest, .. }) => {
                let found = delta.old_entry(from).expect("an old file");
                assert!(matches!(&found.kind, EntryKind::File { digest: found, .. } if found == digest));
                reader.copy(from, index, entry, &mut Seen::new())?;
            }
            (ContentOrigin::New(first), EntryKind::File { digest, size, .. }) => {
                let first = entries.get(first).expect("a new file");
                assert!(matches!(&first.kind, EntryKind::File { digest: found, size: is, .. } if (found, is) == (digest, size)));
            }
            (ContentOrigin::Patch, EntryKind::File { .. }) | (ContentOrigin::Nowhere, _) => {}
            other => panic!("{other:?}"),
        }
    }
    for group in delta.groups() {
        // An error in one group says nothing about the others.
        let _ = delta.read(group, &mut reader, &mut Seen::new());
    }
    Ok(())
}
