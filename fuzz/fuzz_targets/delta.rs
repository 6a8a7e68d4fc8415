//! Any contents of a delta's sections, under sizes and digests that are right: refused, or a manifest whose entries have the digest that
//! it names, and files that are exactly what it says. See `larder::release::delta::forge` for what an input is.

#![no_main]

use std::{fs::File, os::unix::fs::FileExt, sync::LazyLock};

use larder::{
    model::{Digest, Entry, EntryKind, Manifest},
    release::{
        self, ReleaseError,
        delta::{self, Delta, From, forge},
        store,
    },
};
use larder_archive::{ArchiveError, Confined, Sink, check_path};
use libfuzzer_sys::fuzz_target;

/// What deltas start from.
struct Old {
    manifest: Manifest,
    tree: Confined,
}

static OLD: LazyLock<Old> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory").keep();
    let manifest = forge::plant(&directory).expect("a small tree");
    Old { manifest, tree: Confined::open(&directory).expect("it is there") }
});

/// One file for all: what was in it before is cut off.
static FILE: LazyLock<File> = LazyLock::new(|| tempfile::tempfile().expect("a file"));

fuzz_target!(|input: &[u8]| {
    // The first byte says whether the rest is a file as it is.
    let bytes = match input.split_first() {
        Some((0xff, rest)) => rest.to_vec(),
        _ => forge::Forged::of(input).delta(&OLD.manifest).expect("any can be made"),
    };
    FILE.set_len(0).expect("it can be cut");
    FILE.write_all_at(&bytes, 0).expect("room");
    let _ = delta::base_of(&FILE);
    let Ok(manifest) = delta::manifest(&FILE, OLD.manifest.clone()) else { return };
    assert!(release::digest(&manifest.entries) == manifest.tree);
    let written = serde_json::to_vec(&manifest).expect("it can be written");
    assert!(store::from_bytes(&written, "again".as_ref()).is_ok_and(|again| again == manifest));
    let _ = apply(&manifest);
});

fn apply(new: &Manifest) -> Result<(), ReleaseError> {
    let delta = Delta::open(&FILE, &OLD.manifest, &OLD.tree, new)?;
    let mut reader = delta.reader();
    for (index, entry) in new.entries.iter().enumerate() {
        match (delta.origin(index), &entry.kind) {
            (From::Old(old), EntryKind::File { digest, .. }) => {
                let found = delta.old_entry(old).expect("an old file");
                assert!(matches!(&found.kind, EntryKind::File { digest: found, .. } if found == digest));
                reader.copy(old, index, entry, &mut Seen::new())?;
            }
            (From::New(first), EntryKind::File { digest, size, .. }) => {
                let first = new.entries.get(first).expect("a new file");
                assert!(matches!(&first.kind, EntryKind::File { digest: found, size: is, .. } if (found, is) == (digest, size)));
            }
            (From::Patch, EntryKind::File { .. }) | (From::Nowhere, _) => {}
            other => panic!("{other:?}"),
        }
    }
    for group in delta.groups() {
        // Others may still be right.
        let _ = delta.read(group, &mut reader, &mut Seen::new());
    }
    Ok(())
}

/// Compares what comes out.
struct Seen {
    hasher: blake3::Hasher,
    entry: Option<Entry>,
}

impl Seen {
    fn new() -> Seen {
        Seen { hasher: blake3::Hasher::new(), entry: None }
    }
}

impl Sink for Seen {
    fn begin(&mut self, _: usize, entry: &Entry) -> Result<bool, ArchiveError> {
        assert!(check_path(entry.path.as_bytes()).is_ok());
        assert!(self.entry.is_none(), "the file before has not ended");
        self.hasher.reset();
        self.entry = Some(entry.clone());
        Ok(true)
    }

    fn data(&mut self, part: &[u8]) -> Result<(), ArchiveError> {
        self.hasher.update(part);
        Ok(())
    }

    fn end(&mut self) -> Result<(), ArchiveError> {
        let Some(Entry { kind: EntryKind::File { size, digest, .. }, .. }) = self.entry.take() else {
            panic!("no file has begun")
        };
        assert_eq!(self.hasher.count(), size);
        assert_eq!(Digest::from(self.hasher.finalize()), digest);
        Ok(())
    }
}
