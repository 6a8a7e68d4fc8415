//! The import of a restore point whose parts come from elsewhere. The manifest, the index and all contents are compared with their digests
//! before the restore point gets its name.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    fs::ftruncate,
    io::{Errno, pwrite},
};

use crate::{
    Digest, Entry, Kind, LimitKind, Manifest, Point, PointError, Result, Source, index, manifest,
    publish::NewPoint,
    step,
    store::{self, Space, Store},
};

/// The manifest and the index of a restore point, as they are stored and decoded.
#[derive(Debug)]
pub struct PointParts {
    /// The bytes of `point.json`.
    pub manifest_bytes: Vec<u8>,
    /// The bytes of the index.
    pub index_bytes: Vec<u8>,
    /// The manifest.
    pub manifest: Manifest,
    /// The entries of the index.
    pub entries: Vec<Entry>,
}

impl PointParts {
    /// Reads the parts of a restore point of a store. The returned index is whole, even if the stored index consists of changes of an
    /// earlier index.
    pub fn of(point: &Point) -> Result<PointParts> {
        let entries = point.entries()?;
        let index_bytes = index::encode(&entries)?;
        let index_digest = Digest::of(&index_bytes).to_string();
        let manifest = Manifest { index_bytes: index_bytes.len() as u64, index_digest, ..point.manifest.clone() };
        Ok(PointParts { manifest_bytes: manifest.encode()?, index_bytes, manifest, entries })
    }

    /// Decodes the parts, and compares the index with the manifest.
    pub fn decode(manifest_bytes: Vec<u8>, index_bytes: Vec<u8>) -> Result<PointParts> {
        #[derive(serde::Deserialize)]
        struct Id {
            id: String,
        }
        let wrong = |why: String| PointError::Malformed { what: "the manifest", id: String::from("of the import"), why };
        for (bytes, limit) in [(&manifest_bytes, manifest::MAX_BYTES), (&index_bytes, index::MAX_BYTES)] {
            if bytes.len() as u64 > limit {
                let (what, seen) = (LimitKind::Bytes, bytes.len() as u64);
                return Err(PointError::Limit { what, seen, limit, path: "the import".into() });
            }
        }
        let Id { id } = serde_json::from_slice(&manifest_bytes).map_err(|e| wrong(e.to_string()))?;
        store::check_name(&id)?;
        let manifest = Manifest::decode(&manifest_bytes, &id)?;
        let digest = Digest::of(&index_bytes).to_string();
        if digest != manifest.index_digest {
            let why = format!("its digest is {digest} (expected {})", manifest.index_digest);
            return Err(PointError::Malformed { what: "the index", id, why });
        }
        let sources: Vec<Source> = manifest.sources.iter().map(|record| record.source.clone()).collect();
        let entries = index::decode(&index_bytes, &id, &sources)?;
        manifest.check_entries(&entries)?;
        Ok(PointParts { manifest_bytes, index_bytes, manifest, entries })
    }
}

/// A function that reads the content of a file, and passes the content to the function in the last argument.
pub type Content<'a> = dyn FnMut(&Entry, &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> + 'a;

impl Store {
    /// Stores a restore point. `content` is called for each regular file, in the order of the index. The import leaves at least `free_bytes`
    /// free. A failed import leaves no files behind; a killed import leaves a leftover that [`Store::sweep`] removes.
    pub fn import(&self, parts: &PointParts, free_bytes: u64, content: &mut Content<'_>) -> Result<()> {
        self.create_point(&parts.manifest.id, |new, _| self.write_parts(new, parts, free_bytes, content).map(|point| ((), point)))
    }

    fn write_parts(&self, new: &str, parts: &PointParts, free_bytes: u64, content: &mut Content<'_>) -> Result<NewPoint> {
        let shown = self.path().join(new);
        let (dir, contents) = self.open_new(new)?;
        let space = Space::new(self.fd.as_fd(), free_bytes);
        for entry in &parts.entries {
            let Kind::File { size, digest, .. } = entry.kind else { continue };
            step();
            let failed = |e: Errno| PointError::io("store", OsStr::from_bytes(&entry.path), e);
            let (name, file) = contents.create().map_err(failed)?;
            let id = parts.manifest.id.as_str();
            let mut target = Target { id, file: file.as_fd(), entry, space: &space, at: 0, size, hasher: blake3::Hasher::new() };
            content(entry, &mut |bytes| target.write(bytes))?;
            target.finish(digest)?;
            contents.keep(name, digest).map_err(failed)?;
        }
        // The version is that of this store, also if the restore point comes from a store of an older version.
        let manifest = Manifest { version: manifest::VERSION, ..parts.manifest.clone() }.encode()?;
        store::write_new(dir.as_fd(), store::INDEX, &parts.index_bytes, &shown)?;
        store::write_new(dir.as_fd(), store::MANIFEST, &manifest, &shown)?;
        let line = store::checksum_line(Digest::of(&manifest));
        store::write_new(dir.as_fd(), store::CHECKSUMS, line.as_bytes(), &shown)?;
        Ok(NewPoint { entries: parts.entries.clone(), dir, contents, shared: None })
    }
}

/// A file that is being written.
struct Target<'a> {
    /// The id of the restore point.
    id: &'a str,
    file: BorrowedFd<'a>,
    entry: &'a Entry,
    space: &'a Space<'a>,
    at: u64,
    size: u64,
    hasher: blake3::Hasher,
}

impl Target<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = |e: Errno| PointError::io("store", OsStr::from_bytes(&self.entry.path), e);
        let end = self.at.saturating_add(bytes.len() as u64);
        if end > self.size {
            return Err(self.damaged());
        }
        self.hasher.update(bytes);
        // Zeros become holes. If the captured file had allocated blocks of zeros, the imported file only uses less space.
        if bytes.iter().any(|byte| *byte != 0) {
            self.space.reserve(bytes.len() as u64, &self.entry.path)?;
            let mut rest = bytes;
            let mut at = self.at;
            while !rest.is_empty() {
                let written = match pwrite(self.file, rest, at) {
                    Err(Errno::INTR) => continue,
                    other => other.map_err(failed)?,
                };
                rest = rest.get(written..).unwrap_or_default();
                at = at.saturating_add(written as u64);
            }
        }
        self.at = end;
        Ok(())
    }

    fn finish(self, digest: Digest) -> Result<()> {
        if self.at != self.size || Digest(self.hasher.finalize().into()) != digest {
            return Err(self.damaged());
        }
        ftruncate(self.file, self.size).map_err(|e| PointError::io("store", OsStr::from_bytes(&self.entry.path), e))
    }

    fn damaged(&self) -> PointError {
        PointError::Damaged { id: self.id.to_owned(), count: 1, first: self.entry.shown() }
    }
}
