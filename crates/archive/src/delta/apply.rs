//! Applies deltas: creates the files of the new release from patches and from the installed tree of the old release.

use std::{fs::File, os::unix::fs::FileExt, sync::mpsc};

use super::{
    DeltaEndpoint, DeltaError, FileSource, copies,
    entries::{self, Contents},
    format::{self, Outline},
    groups::{self, Part, Resolved, Wanted},
    refused,
    source::{Store, StoreReader},
};
use crate::{ArchiveError, Confined, Digest, Entry, EntryKind, Sink, compare::compared, patch::unpack};

/// A delta whose outline and list of patches have been checked, and the installed tree of the old release.
pub struct Delta<'a> {
    file: &'a File,
    new: &'a [Entry],
    old: &'a DeltaEndpoint<'a>,
    store: Store<'a>,
    known: Contents,
    wanted: Wanted,
    groups: Vec<Resolved>,
}

/// The origin of the content of an entry of the new release. The origin of an unchanged file is the old file at the same path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentOrigin {
    /// The file is empty, or the entry is not a file.
    Nowhere,
    /// A file of the old release, by its index.
    Old(usize),
    /// An earlier file of the new release with the same content, by its index.
    New(usize),
    /// A patch.
    Patch,
}

impl<'a> Delta<'a> {
    /// Opens a delta and checks everything that can be checked without decompressing patches. `base` is the installed
    /// tree of `old`, and `new` is the release that [`Changes`](super::Changes) describes.
    pub fn open(
        file: &'a File,
        old: &'a DeltaEndpoint<'a>,
        base: &'a Confined,
        new: &DeltaEndpoint<'a>,
    ) -> Result<Delta<'a>, DeltaError> {
        let outline = Outline::read(file)?;
        outline.starts_from(&old.id, &old.tree)?;
        if (outline.target.as_str(), &outline.target_tree) != (new.id.as_str(), new.tree.as_bytes()) {
            return Err(refused(format!("it makes release {} (expected {})", outline.target, new.id)));
        }
        let (_, there) = compared(old.entries, new.entries);
        let known = entries::contents(old.entries, new.entries, &there);
        let wanted = Wanted::of(new.entries, old.entries, &there, &known)?;
        let list = outline.read_groups(file)?;
        let groups = groups::decode(&list, old.entries, new.entries, &wanted, outline.patches_at(), outline.patches)?;
        let store = Store::open(FileSource::Tree(base), old, &[], 1)?;
        Ok(Delta { file, new: new.entries, old, store, known, wanted, groups })
    }

    /// Returns the indices of the groups, the largest group first, so that all threads finish at about the same time.
    pub fn groups(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.groups.len()).collect();
        let size =
            |group: &usize| self.groups.get(*group).map_or(0, |group| group.members.iter().map(|file| file.size).sum::<u64>());
        order.sort_by_key(|group| std::cmp::Reverse(size(group)));
        order
    }

    /// Returns the origin of the content of the new entry with index `index`.
    pub fn origin(&self, index: usize) -> ContentOrigin {
        match self.new.get(index) {
            Some(Entry { path, kind: EntryKind::File { size: 1.., digest, .. } }) => {
                match (self.known.get(digest), self.wanted.by_digest.get(digest)) {
                    (Some(old), _) => ContentOrigin::Old(*old),
                    (None, Some(first)) if *first != index => ContentOrigin::New(*first),
                    (None, Some(_)) => ContentOrigin::Patch,
                    // The entry is unchanged.
                    (None, None) => groups::find(self.old.entries, path).map_or(ContentOrigin::Patch, ContentOrigin::Old),
                }
            }
            _ => ContentOrigin::Nowhere,
        }
    }

    /// Returns the old entry with this index.
    pub fn old_entry(&self, index: usize) -> Option<&'a Entry> {
        self.old.entries.get(index)
    }

    /// Returns the buffers for applying groups. Each thread needs its own buffers.
    pub fn reader(&self) -> GroupReader<'_> {
        let [reference, packed, told, text, buffer] = [const { Vec::new() }; 5];
        GroupReader { old: self.store.reader(), reference, packed, told, text, buffer }
    }

    /// Passes the files of one group to `sink`, and checks the digest of each file.
    pub fn read(&self, group: usize, reader: &mut GroupReader<'_>, sink: &mut impl Sink) -> Result<(), DeltaError> {
        let Some(group) = self.groups.get(group) else { return Err(refused("there is no such group")) };
        let done = match group.members.as_slice() {
            [file] => self.one(file, group, reader, sink),
            _ => self.many(group, reader, sink),
        };
        // A damaged file of the old release also makes the new file wrong. The returned error then names the damaged old file.
        if let Err(DeltaError::Archive { source: ArchiveError::Patch { .. } | ArchiveError::Digest { .. }, .. }) = &done {
            for (index, _) in group.members.iter().filter_map(|file| file.base) {
                reader.old.open(index)?.verify(&mut reader.buffer)?;
            }
        }
        done
    }

    fn many(&self, group: &Resolved, reader: &mut GroupReader<'_>, sink: &mut impl Sink) -> Result<(), DeltaError> {
        let Some(part) = group.parts.first() else { return Err(refused("a group has no patch")) };
        reader.reference.clear();
        for file in &group.members {
            let (from, count) = file.piece();
            if let (Some((index, _)), 1..) = (file.base, count) {
                reader.old.open(index)?.append(from, count, &mut reader.reference)?;
            }
        }
        self.unpack(part, group.at, reader)?;
        let mut at = 0;
        for file in &group.members {
            let end = at + file.middle() as usize;
            self.write(file, reader, sink, |reader, give| give(reader.text.get(at..end).unwrap_or_default()))?;
            at = end;
        }
        Ok(())
    }

    fn one(
        &self,
        file: &groups::File,
        group: &Resolved,
        reader: &mut GroupReader<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), DeltaError> {
        if group.parts.len() > 1 {
            return self.write(file, reader, sink, |_, give| self.ahead(file, group, give));
        }
        self.write(file, reader, sink, |reader, give| {
            let Some(part) = group.parts.first() else { return Ok(()) };
            self.part(file, part, group.at, reader)?;
            give(&reader.text)
        })
    }

    /// Passes the parts of a large file to `give`. Each part is unpacked in another thread while the previous part is checked and written.
    fn ahead(
        &self,
        file: &groups::File,
        group: &Resolved,
        give: &mut dyn FnMut(&[u8]) -> Result<(), DeltaError>,
    ) -> Result<(), DeltaError> {
        std::thread::scope(|scope| {
            let (send, texts) = mpsc::sync_channel(1);
            let (give_back, used) = mpsc::channel();
            scope.spawn(move || {
                let (mut reader, mut at) = (self.reader(), group.at);
                for part in &group.parts {
                    reader.text = used.try_recv().unwrap_or_default();
                    let text = self.part(file, part, at, &mut reader).map(|()| std::mem::take(&mut reader.text));
                    let failed = text.is_err();
                    // `send` fails if the receiver was dropped after a write error.
                    if send.send(text).is_err() || failed {
                        return;
                    }
                    at += u64::from(part.packed);
                }
            });
            for text in texts {
                let text = text?;
                give(&text)?;
                let _ = give_back.send(text);
            }
            Ok(())
        })
    }

    /// Unpacks a part to `reader.text`.
    fn part(&self, file: &groups::File, part: &Part, at: u64, reader: &mut GroupReader<'_>) -> Result<(), DeltaError> {
        reader.reference.clear();
        if let (Some((index, _)), 1..) = (file.base, part.reference) {
            reader.old.open(index)?.append(part.from, part.reference, &mut reader.reference)?;
        }
        self.unpack(part, at, reader)
    }

    /// Writes a file: the start and the end from the old version, and `middle` between them. Checks the digest of the file.
    fn write<'r>(
        &self,
        file: &groups::File,
        reader: &mut GroupReader<'r>,
        sink: &mut impl Sink,
        middle: impl FnOnce(&mut GroupReader<'r>, &mut dyn FnMut(&[u8]) -> Result<(), DeltaError>) -> Result<(), DeltaError>,
    ) -> Result<(), DeltaError> {
        let Some(entry) = self.new.get(file.entry) else { return Err(refused("it names a file that is not in the manifest")) };
        let EntryKind::File { digest, .. } = &entry.kind else { return Err(refused("it names an entry that is not a file")) };
        if !sink.begin(file.entry, entry).map_err(format::accepted)? {
            return Ok(());
        }
        let mut hasher = blake3::Hasher::new();
        let mut give = |piece: &[u8]| {
            hasher.update(piece);
            sink.data(piece).map_err(format::accepted)
        };
        if let (Some((index, _)), 1..) = (file.base, file.head) {
            let old = reader.old.open(index)?;
            old.pieces(0, file.head, &mut reader.buffer, &mut give)?;
        }
        middle(reader, &mut give)?;
        if let (Some((index, size)), 1..) = (file.base, file.tail) {
            let old = reader.old.open(index)?;
            old.pieces(size - file.tail, file.tail, &mut reader.buffer, &mut give)?;
        }
        if Digest::from(hasher.finalize()) != *digest {
            return Err(format::accepted(ArchiveError::Digest { path: entry.path.clone() }));
        }
        sink.end().map_err(format::accepted)
    }

    /// Decompresses a patch to `reader.text`. The patch may copy from `reader.reference`.
    fn unpack(&self, part: &Part, at: u64, reader: &mut GroupReader<'_>) -> Result<(), DeltaError> {
        reader.packed.resize(part.packed as usize, 0);
        self.file.read_exact_at(&mut reader.packed, at).map_err(|e| format::failed("read", e))?;
        if *Digest::of(&reader.packed).as_bytes() != part.digest {
            return Err(refused("one of its patches is damaged"));
        }
        let GroupReader { reference, packed, told, text, .. } = reader;
        if part.told == 0 {
            return unpack(reference, packed, part.raw as usize, text).map_err(format::accepted);
        }
        unpack(&[], packed, part.told as usize, told).map_err(format::accepted)?;
        let wrong =
            || format::accepted(ArchiveError::Patch { why: "its list of copies does not give a text of the expected size" });
        copies::copy(reference, told, part.raw as usize, text).ok_or_else(wrong)
    }
}

/// The buffers for applying groups; see [`Delta::reader`].
pub struct GroupReader<'a> {
    old: StoreReader<'a>,
    reference: Vec<u8>,
    packed: Vec<u8>,
    told: Vec<u8>,
    text: Vec<u8>,
    buffer: Vec<u8>,
}

impl GroupReader<'_> {
    /// Passes the content of the old file with index `old` to `sink` as the content of `entry`, the new entry with index `index`.
    pub fn copy(&mut self, old: usize, index: usize, entry: &Entry, sink: &mut impl Sink) -> Result<(), DeltaError> {
        let EntryKind::File { digest, .. } = &entry.kind else { return Err(refused("it names an entry that is not a file")) };
        let content = self.old.open(old)?;
        if !sink.begin(index, entry).map_err(format::accepted)? {
            return Ok(());
        }
        let mut hasher = blake3::Hasher::new();
        content.pieces(0, content.size, &mut self.buffer, |piece| {
            hasher.update(piece);
            sink.data(piece).map_err(format::accepted)
        })?;
        if Digest::from(hasher.finalize()) != *digest {
            return Err(content.damaged());
        }
        sink.end().map_err(format::accepted)
    }
}
