//! Tests of refused archives. Each hostile archive is made by hand, mostly with a valid manifest.

use std::{fs::File, io::Write, os::unix::fs::FileExt};

use super::{
    tests::{Collect, make, read, text, tree},
    *,
};
use crate::{ArchiveInfo, Digest, Entry, EntryKind, Frame};

fn file_entry(path: &str, content: &[u8]) -> Entry {
    Entry {
        path: path.into(),
        kind: EntryKind::File { size: content.len() as u64, digest: Digest::of(content), executable: false },
    }
}

fn raw(entries: &[Entry]) -> u64 {
    frames::raw_size(frames::parts(&entries.iter().map(Item::from).collect::<Vec<_>>()), true)
}

/// Reads an archive with the bytes of `tar` in one frame, and a manifest that is right except for these bytes.
fn hostile(entries: &[Entry], mut tar: Vec<u8>) -> Result<Vec<(String, Vec<u8>)>, ArchiveError> {
    tar.resize(raw(entries) as usize, 0);
    hostile_frame(entries, zstd::bulk::compress(&tar, 3).unwrap())
}

/// Reads an archive with the bytes of one compressed frame.
fn hostile_frame(entries: &[Entry], packed: Vec<u8>) -> Result<Vec<(String, Vec<u8>)>, ArchiveError> {
    let (file, info) = in_one_frame(entries, &packed);
    read(&file, entries, &info)
}

fn in_one_frame(entries: &[Entry], packed: &[u8]) -> (File, ArchiveInfo) {
    let frame = Frame {
        offset: 0,
        bytes: packed.len() as u64,
        raw: raw(entries),
        entries: entries.len() as u32,
        digest: Digest::of(packed),
    };
    let info = ArchiveInfo::of_frames(vec![frame]);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(packed, 0).unwrap();
    file.write_all_at(&info.seek_table(), packed.len() as u64).unwrap();
    (file, info)
}

fn raw_header(name: &[u8], kind: u8, mode: u32, size: u64, link: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MTIME);
    header.set_size(size);
    header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name);
    header.as_ustar_mut().unwrap().linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn pax(records: &[u8]) -> Vec<u8> {
    let mut bytes = raw_header(b"pax", b'x', 0o644, records.len() as u64, b"");
    bytes.extend_from_slice(records);
    header::pad(&mut bytes, records.len() as u64);
    bytes
}

fn with_body(mut header: Vec<u8>, body: &[u8]) -> Vec<u8> {
    header.extend_from_slice(body);
    header::pad(&mut header, body.len() as u64);
    header
}

#[test]
fn archive_without_a_defect_is_accepted() {
    let entries = [file_entry("f", b"abc")];
    let files = hostile(&entries, with_body(raw_header(b"f", b'0', 0o644, 3, b""), b"abc")).unwrap();
    assert_eq!(files, [("f".to_owned(), b"abc".to_vec())]);
}

#[test]
fn every_hostile_header_is_refused_with_its_own_reason() {
    use ArchiveError as E;
    let entries = [file_entry("f", b"abc")];
    let refuse = |header: Vec<u8>| {
        let refused = hostile(&entries, with_body(header, b"abc")).unwrap_err();
        assert!(!refused.to_string().is_empty());
        refused
    };
    let named = |name: &[u8]| refuse(raw_header(name, b'0', 0o644, 3, b""));
    for (name, reason) in [
        (&b"/etc/passwd"[..], BadPath::Absolute),
        (b"../f", BadPath::Parent),
        (b"a/../../f", BadPath::Parent),
        (b"./f", BadPath::Here),
        (b"a//f", BadPath::EmptyPart),
        (b"f/", BadPath::EmptyPart),
        (b"", BadPath::Empty),
        (b"f\0g", BadPath::Nul),
        (b"f\n", BadPath::Control),
        (b"f\x1b[2J", BadPath::Control),
        (b"f\xff", BadPath::NotUtf8),
    ] {
        assert!(matches!(named(name), E::Path { why, .. } if why == reason), "{name:?}");
    }
    assert!(matches!(named(b"g"), E::NotInManifest { .. }));
    assert!(matches!(named(b"F"), E::NotInManifest { .. }));
    let typed = |kind: u8, link: &[u8]| refuse(raw_header(b"f", kind, 0o644, 3, link));
    assert!(matches!(typed(b'1', b"/etc/passwd"), E::HardLink { .. }));
    assert!(matches!(typed(b'2', b"/etc"), E::Kind { .. }));
    assert!(matches!(typed(b'3', b""), E::Device { .. }));
    assert!(matches!(typed(b'4', b""), E::Device { .. }));
    assert!(matches!(typed(b'5', b""), E::Kind { .. }));
    assert!(matches!(typed(b'6', b""), E::Fifo { .. }));
    assert!(matches!(typed(b'S', b""), E::Sparse { .. }));
    assert!(matches!(typed(b'V', b""), E::UnknownType { kind: 'V', .. }));
    assert!(matches!(typed(b'L', b""), E::UnknownType { kind: 'L', .. }));
    for mode in [0o4755, 0o2755, 0o1644] {
        assert!(matches!(refuse(raw_header(b"f", b'0', mode, 3, b"")), E::SpecialMode { .. }), "{mode:o}");
    }
    assert!(matches!(refuse(raw_header(b"f", b'0', 0o666, 3, b"")), E::Header { .. }));
    assert!(matches!(refuse(raw_header(b"f", b'0', 0o755, 3, b"")), E::Header { .. }));
    assert!(matches!(refuse(raw_header(b"f", b'0', 0o644, 4, b"")), E::Size { expected: 3, found: 4, .. }));
    assert!(matches!(refuse(vec![0; 512]), E::Missing { .. }));
}

#[test]
fn unknown_pax_records_are_refused() {
    use ArchiveError as E;
    let long = "l".repeat(150);
    let entries = [file_entry(&long, b"abc")];
    let refuse = |records: &[u8]| {
        let mut tar = pax(records);
        tar.extend(with_body(raw_header(b"long", b'0', 0o644, 3, b""), b"abc"));
        hostile(&entries, tar).unwrap_err()
    };
    assert!(matches!(refuse(b"10 size=9\n"), E::PaxSize { .. }));
    assert!(matches!(refuse(b"25 SCHILY.xattr.user.a=b\n"), E::Xattr { .. }));
    assert!(matches!(refuse(b"22 GNU.sparse.major=1\n"), E::Sparse { .. }));
    assert!(matches!(refuse(b"10 mtime=1\n"), E::PaxKey { .. } | E::PaxMalformed));
    assert!(matches!(refuse(b"11 mtime=1\n"), E::PaxKey { .. }));
    assert!(matches!(refuse(b"99999999999999999999 path=x\n"), E::PaxMalformed));
    assert!(matches!(refuse(b"garbage"), E::PaxMalformed));
    assert!(matches!(refuse(b"13 path=/etc\n"), E::Path { why: BadPath::Absolute, .. }));
}

/// A sink that accepts a single file.
struct Picky(&'static str, Collect);

impl Sink for Picky {
    fn begin(&mut self, index: usize, entry: &Entry) -> Result<bool, ArchiveError> {
        Ok(entry.path == self.0 && self.1.begin(index, entry)?)
    }
    fn data(&mut self, part: &[u8]) -> Result<(), ArchiveError> {
        self.1.data(part)
    }
    fn end(&mut self) -> Result<(), ArchiveError> {
        self.1.end()
    }
}

#[test]
fn unwanted_file_may_have_wrong_content_but_no_wrong_header() {
    let large = text(1, 20 << 20);
    // The frame with the short content is decompressed in memory as a whole. The frame with the large content is streamed.
    for content in [&b"abc"[..], &large] {
        let honest = file_entry("f", content);
        let mut lie = file_entry("g", content);
        let EntryKind::File { digest, .. } = &mut lie.kind else { unreachable!() };
        *digest = Digest::of(b"something else");
        let entries = [honest, lie];
        let tar = |second: &[u8]| {
            let part = |name: &[u8]| with_body(raw_header(name, b'0', 0o644, content.len() as u64, b""), content);
            let mut tar = [part(b"f"), part(second)].concat();
            tar.resize(raw(&entries) as usize, 0);
            zstd::bulk::compress(&tar, 3).unwrap()
        };
        let pick = |packed: &[u8], wanted| {
            let (file, info) = in_one_frame(&entries, packed);
            let archive = Archive::open(&file, &entries, &info, &ArchiveLimits::default()).unwrap();
            let mut picky = Picky(wanted, Collect::default());
            archive.read(0, &mut FrameReader::new().unwrap(), &mut picky).map(|()| picky.1.files)
        };
        assert!(pick(&tar(b"g"), "f").unwrap() == [("f".to_owned(), content.to_vec())]);
        assert!(matches!(pick(&tar(b"g"), "g").unwrap_err(), ArchiveError::Digest { path } if path == "g"));
        assert!(matches!(pick(&tar(b"h"), "f").unwrap_err(), ArchiveError::NotInManifest { .. } | ArchiveError::Missing { .. }));
    }
}

#[test]
fn archive_that_differs_from_its_manifest_is_refused() {
    use ArchiveError as E;
    let one = |name: &[u8], content: &[u8]| with_body(raw_header(name, b'0', 0o644, content.len() as u64, b""), content);
    let entries = [file_entry("f", b"abc"), file_entry("g", b"xyz")];
    let parts = |parts: &[Vec<u8>]| hostile(&entries, parts.concat()).unwrap_err();
    assert!(hostile(&entries, [one(b"f", b"abc"), one(b"g", b"xyz")].concat()).is_ok());
    assert!(matches!(parts(&[one(b"f", b"abd"), one(b"g", b"xyz")]), E::Digest { .. }));
    assert!(matches!(parts(&[one(b"f", b"abc"), one(b"f", b"abc")]), E::Duplicate { .. }));
    assert!(matches!(parts(&[one(b"g", b"xyz"), one(b"f", b"abc")]), E::Missing { .. }));
    assert!(matches!(parts(&[one(b"f", b"abc")]), E::Missing { .. }));
    // The padding of a file and the end of the tar contain bytes that are not zero.
    let mut padded = [one(b"f", b"abc"), one(b"g", b"xyz")].concat();
    padded[600] = 1;
    assert!(matches!(parts(&[padded]), E::Trailing { frame: 0 }));
    let three = [one(b"f", b"abc"), one(b"g", b"xyz"), raw_header(b"h", b'0', 0o644, 0, b"")].concat();
    assert!(matches!(parts(&[three]), E::Trailing { frame: 0 }));
    // The target of the link differs from the manifest.
    let link = [Entry { path: "l".into(), kind: EntryKind::Link { target: "a".into() } }];
    assert!(hostile(&link, raw_header(b"l", b'2', 0o777, 0, b"a")).is_ok());
    assert!(matches!(hostile(&link, raw_header(b"l", b'2', 0o777, 0, b"/etc")).unwrap_err(), E::Header { .. }));
}

#[test]
fn frame_that_is_not_one_plain_zstd_frame_is_refused() {
    use ArchiveError as E;
    let entries = [file_entry("f", b"abc")];
    let mut tar = with_body(raw_header(b"f", b'0', 0o644, 3, b""), b"abc");
    tar.resize(raw(&entries) as usize, 0);
    let good = zstd::bulk::compress(&tar, 3).unwrap();
    assert!(hostile_frame(&entries, good.clone()).is_ok());
    let refuse = |packed: Vec<u8>| hostile_frame(&entries, packed).unwrap_err();
    assert!(matches!(refuse([good.clone(), good.clone()].concat()), E::Frame { .. }));
    assert!(matches!(refuse([good.clone(), vec![0; 10]].concat()), E::Frame { .. }));
    let skippable = [&0x184D_2A50_u32.to_le_bytes()[..], &4u32.to_le_bytes(), b"abcd"].concat();
    assert!(matches!(refuse([good.clone(), skippable.clone()].concat()), E::Frame { .. }));
    assert!(matches!(refuse([skippable, good].concat()), E::Frame { .. }));
    assert!(matches!(refuse(b"not zstd at all".to_vec()), E::Frame { .. }));
    // The header of the first frame states no size. The header of the second frame states a wrong size.
    assert!(matches!(refuse(zstd::stream::encode_all(&tar[..], 3).unwrap()), E::Frame { .. }));
    assert!(matches!(refuse(zstd::bulk::compress(&vec![0; 1 << 20], 3).unwrap()), E::Frame { .. }));
}

#[test]
fn decompression_bomb_is_refused_before_it_is_unpacked() {
    use ArchiveError as E;
    // 300 MiB of zeros are compressed to a few kB: the ratio is above a thousand to one.
    let size = 300 << 20;
    let zeros = Entry { path: "z".into(), kind: EntryKind::File { size, digest: Digest::of(b""), executable: false } };
    let entries = [zeros];
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.set_pledged_src_size(Some(raw(&entries))).unwrap();
    let chunk = vec![0; 1 << 20];
    let mut left = raw(&entries) as usize;
    while left > 0 {
        encoder.write_all(&chunk[..left.min(chunk.len())]).unwrap();
        left -= left.min(chunk.len());
    }
    let packed = encoder.finish().unwrap();
    assert!(matches!(hostile_frame(&entries, packed.clone()).unwrap_err(), E::Ratio { .. }));

    // A window of 2 GiB is refused because of the header of the frame; the following bytes are not read.
    let small =
        [Entry { path: "z".into(), kind: EntryKind::File { size: 40 << 20, digest: Digest::of(b""), executable: false } }];
    let mut wide = vec![0x28, 0xB5, 0x2F, 0xFD, 0b1000_0000, 21 << 3];
    wide.extend_from_slice(&u32::try_from(raw(&small)).unwrap().to_le_bytes());
    wide.extend_from_slice(&[0; 20]);
    assert!(matches!(hostile_frame(&small, wide).unwrap_err(), E::Window { window: 2_147_483_648, .. }));

    // The frame has more raw bytes than the manifest states.
    let lying = [file_entry("f", b"abc")];
    assert!(matches!(hostile_frame(&lying, packed).unwrap_err(), E::Frame { .. }));
}

#[test]
fn contradictory_manifest_is_refused() {
    use ArchiveError as E;
    let dir = tempfile::tempdir().unwrap();
    let (file, written) = make(dir.path(), &tree(dir.path(), 200), None, 2);
    let with = |change: &dyn Fn(&mut ArchiveInfo)| {
        let mut info = written.info.clone();
        change(&mut info);
        read(&file, &written.entries, &info)
    };
    assert!(with(&|_| {}).is_ok());
    let changes: [&dyn Fn(&mut ArchiveInfo); 8] = [
        &|info| info.frames[1].offset += 1,
        &|info| info.frames[1].bytes += 1,
        &|info| info.frames[1].raw += 512,
        &|info| info.frames[1].entries += 1,
        &|info| info.frames[0].entries = u32::MAX,
        &|info| info.digest = Digest::of(b""),
        &|info| info.bytes += 1,
        &|info| info.frames.clear(),
    ];
    for change in changes {
        assert!(matches!(with(change), Err(E::Manifest { .. })));
    }
    let mut other = written.entries.clone();
    other.remove(1);
    assert!(read(&file, &other, &written.info).is_err());
    let swapped = with(&|info| {
        info.frames[1].digest = info.frames[0].digest;
        *info = ArchiveInfo::of_frames(info.frames.clone());
    });
    assert!(matches!(swapped, Err(E::FrameDigest { frame: 1 })));
}
