//! A sink that compares each file with its entry, for several targets.

use larder_archive::{ArchiveError, Digest, Entry, EntryKind, Sink, check_path};

/// Panics if a file differs from its entry, or has a path outside the tree.
pub struct Seen {
    hasher: blake3::Hasher,
    entry: Option<Entry>,
}

impl Seen {
    pub fn new() -> Seen {
        Seen { hasher: blake3::Hasher::new(), entry: None }
    }
}

impl Sink for Seen {
    fn begin(&mut self, _: usize, entry: &Entry) -> Result<bool, ArchiveError> {
        assert!(check_path(entry.path.as_bytes()).is_ok());
        assert!(self.entry.is_none(), "the previous file has not ended");
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
