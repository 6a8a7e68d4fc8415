//! Tests of archives: round trips, reuse of frames, and refusal of damaged archives.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
};

use super::*;
use crate::{ArchiveInfo, Confined, Digest, Entry, EntryKind};

/// Returns bytes that do not compress, and that depend only on the seed.
pub(super) fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; size];
    reader.fill(&mut bytes);
    bytes
}

/// A sink that collects all files.
#[derive(Default)]
pub(super) struct Collect {
    pub(super) files: Vec<(String, Vec<u8>)>,
}

impl Sink for Collect {
    fn begin(&mut self, _: usize, entry: &Entry) -> Result<bool, ArchiveError> {
        self.files.push((entry.path.clone(), Vec::new()));
        Ok(true)
    }
    fn data(&mut self, part: &[u8]) -> Result<(), ArchiveError> {
        self.files.last_mut().unwrap().1.extend_from_slice(part);
        Ok(())
    }
    fn end(&mut self) -> Result<(), ArchiveError> {
        Ok(())
    }
}

/// Returns text that compresses about as well as source code.
pub(super) fn text(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(size + 16);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        writeln!(bytes, "fn f{:x}() {{ {} }}", state % 5000, state % 91).unwrap();
    }
    bytes.truncate(size);
    bytes
}

fn item(path: &str, kind: ItemKind) -> Item {
    Item { path: path.into(), kind }
}

/// Writes a tree of a directory, a link and `count` files, whose mean size is about 40 kB. Returns the items of the tree.
pub(super) fn tree(dir: &Path, count: usize) -> Vec<Item> {
    let mut items = vec![item("d", ItemKind::Dir)];
    std::fs::create_dir(dir.join("d")).unwrap();
    for n in 0..count {
        let path = format!("d/f{n:05}");
        let content = text(n as u64, (n * 7919) % 80_000);
        std::fs::write(dir.join(&path), &content).unwrap();
        items.push(item(&path, ItemKind::File { size: content.len() as u64, digest: None, executable: n % 7 == 0 }));
    }
    items.push(item("link", ItemKind::Link { target: "d/f00000".into() }));
    items
}

pub(super) fn make(dir: &Path, items: &[Item], previous: Option<(&File, &Written)>, threads: usize) -> (File, Written) {
    let root = Confined::open(dir).unwrap();
    let file = tempfile::tempfile().unwrap();
    let previous = previous.map(|(file, w)| Previous { file, entries: &w.entries, info: &w.info });
    let written = write(&root, items, previous, &file, threads, u64::MAX).unwrap();
    (file, written)
}

fn bytes(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

pub(super) fn read(file: &File, entries: &[Entry], info: &ArchiveInfo) -> Result<Vec<(String, Vec<u8>)>, ArchiveError> {
    let archive = Archive::open(file, entries, info, &ArchiveLimits::default())?;
    let mut reader = FrameReader::new()?;
    let mut collect = Collect::default();
    for frame in 0..archive.frames().len() {
        archive.read(frame, &mut reader, &mut collect)?;
    }
    Ok(collect.files)
}

#[test]
fn archive_round_trips_and_does_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let items = tree(dir.path(), 400);
    let (file, written) = make(dir.path(), &items, None, 1);
    assert!(written.info.frames.len() >= 3, "{:?}", written.info.frames.len());
    let (again, _) = make(dir.path(), &items, None, 4);
    assert!(bytes(&file) == bytes(&again));
    let files = read(&file, &written.entries, &written.info).unwrap();
    assert_eq!(files.len(), 400);
    for (path, content) in files {
        assert!(std::fs::read(dir.path().join(path)).unwrap() == content);
    }
    // Independent frames are at most 2 % larger than one frame.
    let mut tar = Vec::new();
    for item in &items {
        header::encode(&item.path, &item.kind, &mut tar);
        if let ItemKind::File { size, .. } = &item.kind {
            tar.extend(std::fs::read(dir.path().join(&item.path)).unwrap());
            header::pad(&mut tar, *size);
        }
    }
    let whole = zstd::bulk::compress(&tar, LEVEL).unwrap().len() as u64;
    assert!(written.info.bytes * 100 <= whole * 102, "{} for {whole}", written.info.bytes);
}

#[test]
fn edit_changes_one_frame_and_reuse_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let items = tree(dir.path(), 600);
    let (file, first) = make(dir.path(), &items, None, 2);
    let edited = dir.path().join("d/f00300");
    let mut content = std::fs::read(&edited).unwrap();
    content[100] ^= 1;
    std::fs::write(&edited, content).unwrap();
    let (fresh, without) = make(dir.path(), &items, None, 2);
    let (copied, with) = make(dir.path(), &items, Some((&file, &first)), 2);
    assert!(bytes(&fresh) == bytes(&copied));
    assert_eq!((with.copied, &with.info), (first.info.frames.len() - 1, &without.info));
    let different = first.info.frames.iter().zip(&with.info.frames).filter(|(a, b)| a.digest != b.digest).count();
    assert_eq!(different, 1);

    // An unchanged file with a known digest is not even opened.
    let known: Vec<Item> = with.entries.iter().map(Item::from).collect();
    std::fs::remove_file(dir.path().join("d/f00001")).unwrap();
    let (_, all) = make(dir.path(), &known, Some((&copied, &with)), 2);
    assert_eq!(all.copied, with.info.frames.len());
    // No frame is copied from a truncated archive.
    std::fs::write(dir.path().join("d/f00001"), text(1, 7919)).unwrap();
    copied.set_len(with.info.bytes - 1).unwrap();
    let (repaired, all) = make(dir.path(), &known, Some((&copied, &with)), 2);
    assert_eq!(all.copied, 0);
    assert!(bytes(&repaired) == bytes(&fresh));
}

/// If frames with other settings were copied, the bytes of an archive would depend on the version of larder that wrote the previous
/// archive.
#[test]
fn frames_of_other_settings_are_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let items = tree(dir.path(), 100);
    let (file, first) = make(dir.path(), &items, None, 2);
    for settings in [0, first.info.settings + 1] {
        let info = ArchiveInfo { settings, ..first.info.clone() };
        let other = Written { info, entries: first.entries.clone(), copied: 0 };
        let (again, written) = make(dir.path(), &items, Some((&file, &other)), 2);
        assert_eq!(written.copied, 0, "settings {settings}");
        assert_eq!(written.info, first.info);
        assert!(bytes(&again) == bytes(&file));
    }
}

#[test]
fn damaged_frame_is_not_copied_from_the_previous_archive() {
    let dir = tempfile::tempdir().unwrap();
    let mut items = tree(dir.path(), 600);
    std::fs::write(dir.path().join("large"), text(7, 9 << 20)).unwrap();
    items.push(item("large", ItemKind::File { size: 9 << 20, digest: None, executable: false }));
    items.sort_by(|a, b| a.path.cmp(&b.path));
    let (file, first) = make(dir.path(), &items, None, 2);
    let fresh = bytes(&file);
    let known: Vec<Item> = first.entries.iter().map(Item::from).collect();
    let large = first.info.frames.iter().position(|frame| frame.raw > 9 << 20).unwrap();
    for damaged in [0, large] {
        let place = first.info.frames[damaged].offset + 1000;
        file.write_all_at(&[fresh[place as usize] ^ 1], place).unwrap();
        for items in [&items, &known] {
            let (repaired, again) = make(dir.path(), items, Some((&file, &first)), 2);
            assert_eq!(again.copied, first.info.frames.len() - 1, "frame {damaged}");
            assert!(bytes(&repaired) == fresh, "frame {damaged}");
        }
        file.write_all_at(&fresh, 0).unwrap();
    }
}

#[test]
fn large_files_have_the_same_bytes_with_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let content = text(9, 21_000_000);
    std::fs::write(dir.path().join("big"), &content).unwrap();
    std::fs::write(dir.path().join("small"), "x").unwrap();
    let file = |size: usize| ItemKind::File { size: size as u64, digest: None, executable: false };
    let items = [item("big", file(content.len())), item("small", file(1))];
    let (one, written) = make(dir.path(), &items, None, 1);
    let (three, _) = make(dir.path(), &items, None, 3);
    assert!(bytes(&one) == bytes(&three));
    let files = read(&one, &written.entries, &written.info).unwrap();
    assert!(files[0].1 == content && files[1].1 == b"x");
    let (_, again) = make(dir.path(), &items, Some((&one, &written)), 2);
    assert_eq!(again.copied, 2);
    // Damage in the middle of the large frame is found.
    let frame = written.info.frames[0];
    let mut byte = [0];
    one.read_exact_at(&mut byte, frame.bytes / 2).unwrap();
    one.write_all_at(&[byte[0] ^ 4], frame.bytes / 2).unwrap();
    let refused = read(&one, &written.entries, &written.info).unwrap_err();
    assert!(matches!(refused, ArchiveError::FrameDigest { frame: 0 }), "{refused}");
}

#[test]
fn archive_bytes_are_fixed_for_the_number_of_the_settings() {
    let dir = tempfile::tempdir().unwrap();
    let mut items = tree(dir.path(), 100);
    let large = text(5, 9 << 20);
    std::fs::write(dir.path().join("z"), &large).unwrap();
    items.push(item("z", ItemKind::File { size: large.len() as u64, digest: None, executable: false }));
    let (_, written) = make(dir.path(), &items, None, 2);
    let frames = &written.info.frames;
    assert!(frames.iter().any(|frame| frame.raw < 8 << 20) && frames.iter().any(|frame| frame.raw > 8 << 20), "{frames:?}");
    let known = (1, "f2b963b5f0ff83d0ea028b9b843ef883b6cc97376d513bedaf128cfd202a9b68");
    let found = written.info.digest.to_string();
    assert_eq!((written.info.settings, found.as_str()), known, "if the digest changes, change the number in settings.rs, too");
}

#[test]
fn empty_tree_makes_an_archive() {
    let dir = tempfile::tempdir().unwrap();
    let (file, written) = make(dir.path(), &[], None, 2);
    assert_eq!(read(&file, &written.entries, &written.info).unwrap().len(), 0);
}

#[test]
fn plain_tar_opens_an_archive() {
    let dir = tempfile::tempdir().unwrap();
    let tree_dir = dir.path().join("tree");
    std::fs::create_dir(&tree_dir).unwrap();
    let mut items = tree(&tree_dir, 60);
    let deep = format!("{}/{}", "p".repeat(120), "q".repeat(120));
    std::fs::create_dir(tree_dir.join("p".repeat(120))).unwrap();
    std::fs::write(tree_dir.join(&deep), "deep").unwrap();
    items.push(item(&"p".repeat(120), ItemKind::Dir));
    items.push(item(&deep, ItemKind::File { size: 4, digest: None, executable: false }));
    items.sort_by(|a, b| a.path.cmp(&b.path));
    let (file, written) = make(&tree_dir, &items, None, 2);
    std::fs::write(dir.path().join("a.tar.zst"), bytes(&file)).unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let mut tar = std::process::Command::new("tar");
    tar.args(["--zstd", "-xf"]).arg(dir.path().join("a.tar.zst")).arg("-C").arg(&out);
    match tar.output() {
        Ok(done) if done.status.success() => assert!(done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr)),
        Ok(done) if String::from_utf8_lossy(&done.stderr).contains("zstd: Cannot exec") => {
            eprintln!("skipped: this tar finds no zstd");
            return;
        }
        Ok(done) => panic!("{}", String::from_utf8_lossy(&done.stderr)),
        Err(e) => {
            eprintln!("skipped: no tar here: {e}");
            return;
        }
    }
    for entry in &written.entries {
        let path = out.join(&entry.path);
        match &entry.kind {
            EntryKind::Dir => assert!(path.is_dir()),
            EntryKind::Link { target } => assert_eq!(std::fs::read_link(path).unwrap(), Path::new(target)),
            EntryKind::File { digest, executable, .. } => {
                assert_eq!(Digest::of(&std::fs::read(&path).unwrap()), *digest);
                assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o111 != 0, *executable);
            }
        }
    }
}

#[test]
fn truncated_and_damaged_archives_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (file, written) = make(dir.path(), &tree(dir.path(), 12), None, 2);
    let good = bytes(&file);
    let with = |bytes: &[u8]| {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        read(&file, &written.entries, &written.info)
    };
    assert!(with(&good).is_ok());
    for percent in 0..100 {
        let cut = &good[..good.len() * percent / 100];
        assert!(matches!(with(cut), Err(ArchiveError::ArchiveSize { .. })), "{percent} %");
        let mut flipped = good.clone();
        flipped[good.len() * percent / 100] ^= 1 << (percent % 8);
        assert!(matches!(with(&flipped), Err(ArchiveError::FrameDigest { .. } | ArchiveError::SeekTable)), "{percent} %");
    }
    for back in 1..30 {
        let mut flipped = good.clone();
        *flipped.iter_mut().rev().nth(back - 1).unwrap() ^= 0x10;
        assert!(with(&flipped).is_err(), "{back} from the end");
    }
    let twice: Vec<u8> = good.iter().chain(&good).copied().collect();
    let refused = with(&twice).unwrap_err();
    assert!(refused.to_string().contains("has bytes after its end"), "{refused}");
}

#[test]
fn writer_stops_soon_after_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let mut noise = vec![0; 40 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    for (names, size) in [(&["a", "b", "c", "d", "e"][..], 1 << 20), (&["large"], noise.len())] {
        let items: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(number, name)| {
                std::fs::write(dir.path().join(name), &noise[number..number + size - names.len()]).unwrap();
                let size = (size - names.len()) as u64;
                item(name, ItemKind::File { size, digest: None, executable: false })
            })
            .collect();
        let (root, out) = (Confined::open(dir.path()).unwrap(), tempfile::tempfile().unwrap());
        let limit = 2 << 20;
        let refused = write(&root, &items, None, &out, 2, limit);
        assert!(matches!(refused, Err(ArchiveError::TooLarge { limit: 2097152 })), "{refused:?}");
        assert!(out.metadata().unwrap().len() < limit + (16 << 20), "the writer did not stop at its limit");
        write(&root, &items, None, &out, 2, 64 << 20).unwrap();
    }
}

#[test]
fn file_that_changes_while_it_is_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "abc").unwrap();
    let root = Confined::open(dir.path()).unwrap();
    let try_with = |size, digest| {
        let items = [item("f", ItemKind::File { size, digest, executable: false })];
        write(&root, &items, None, &tempfile::tempfile().unwrap(), 1, u64::MAX)
    };
    assert!(try_with(3, None).is_ok() && try_with(3, Some(Digest::of(b"abc"))).is_ok());
    for wrong in [try_with(2, None), try_with(4, None), try_with(3, Some(Digest::of(b"abd")))] {
        assert!(matches!(wrong, Err(ArchiveError::Changed { .. })));
    }
    std::fs::remove_file(dir.path().join("f")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("f")).unwrap();
    assert!(try_with(3, None).is_err());
}
