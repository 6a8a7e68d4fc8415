//! Deltas from end to end: two trees, their manifests and archives, made, applied, damaged.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use larder_archive::Limits;
use proptest::prelude::*;

use super::{
    Source, base_of,
    format::{self, Outline},
    groups, make, manifest,
};
use crate::{
    host::files::Confined,
    model::{Manifest, ReleaseId},
    release::{
        Answer, ReleaseError,
        bundle::{self, BundleJob, Head},
        install::{self, Content, UnpackJob, UnpackReport},
        store,
        tests::head,
        verify::verify,
    },
};

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Dir,
    File(Vec<u8>, bool),
    Link(String),
}

type Tree = BTreeMap<String, Node>;

fn file(text: &str) -> Node {
    Node::File(text.as_bytes().to_vec(), false)
}

fn tree(nodes: &[(&str, Node)]) -> Tree {
    nodes.iter().map(|(path, node)| ((*path).to_owned(), node.clone())).collect()
}

/// Bytes without any pattern.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; size];
    reader.fill(&mut bytes);
    bytes
}

/// A release: its manifest, its archive, its installed tree.
struct Release {
    manifest: Manifest,
    written: File,
    archive: File,
    tree: PathBuf,
}

struct World {
    dir: tempfile::TempDir,
    old: Release,
    new: Release,
    delta: File,
}

fn release(dir: &Path, tree: &Tree, name: &str, second: i64) -> Release {
    let id = ReleaseId::new(jiff::Timestamp::from_second(second).unwrap());
    let path = dir.join(if name == "old" { id.to_string() } else { name.to_owned() });
    std::fs::create_dir(&path).unwrap();
    for (name, node) in tree {
        let path = path.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match node {
            Node::Dir => std::fs::create_dir_all(&path).unwrap(),
            Node::Link(target) => symlink(target, &path).unwrap(),
            Node::File(bytes, executable) => {
                std::fs::write(&path, bytes).unwrap();
                let mode = if *executable { 0o755 } else { 0o644 };
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            }
        }
    }
    let (archive, written) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let job = BundleJob { head: Head { release: id, ..head() }, previous: false, threads: 2, limit: u64::MAX };
    let places = bundle::Places { app: path.clone(), source: None, upper: None };
    bundle::work(job, &places, &archive, &written, None).into_result().unwrap();
    let manifest = store::parse(&written, Path::new("m")).unwrap();
    Release { manifest, written, archive, tree: path }
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn file_with(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn json(manifest: &Manifest) -> File {
    file_with(&serde_json::to_vec(manifest).unwrap())
}

impl World {
    fn new(old: &Tree, new: &Tree) -> World {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (release(dir.path(), old, "old", 1000), release(dir.path(), new, "new", 2000));
        let delta = tempfile::tempfile().unwrap();
        let world = World { dir, old, new, delta };
        world.make(&world.delta, 2).unwrap();
        world
    }

    fn make(&self, out: &File, threads: usize) -> Result<(), ReleaseError> {
        let (old, new) = (Confined::open(&self.old.tree)?, Confined::open(&self.new.tree)?);
        make(&self.old.manifest, Source::Tree(&old), &self.new.manifest, Source::Tree(&new), out, threads).map(drop)
    }

    /// Applies it where `old` is installed; on a spare copy of it, if asked for.
    fn apply(&self, delta: &File, spare: bool) -> Result<UnpackReport, ReleaseError> {
        let manifest = manifest(delta, self.old.manifest.clone())?;
        self.install(delta, &manifest, spare)
    }

    fn install(&self, delta: &File, manifest: &Manifest, spare: bool) -> Result<UnpackReport, ReleaseError> {
        let tree = self.target();
        let _ = std::fs::create_dir(&tree);
        let places = install::Places { tree, deploy: self.dir.path().into() };
        let previous = Some(self.old.manifest.release);
        let job = UnpackJob { previous, content: Content::Archive, spare: None, threads: 2, limits: Limits::default() };
        let copy = || done(install::work(&job, &places, &self.old.archive, &self.old.written, Some(&self.old.written)));
        let spare = if spare { copy()?.seal } else { None };
        let job = UnpackJob { previous, content: Content::Delta, spare, threads: 2, limits: Limits::default() };
        let report = done(install::work(&job, &places, delta, &json(manifest), Some(&self.old.written)))?;
        assert_eq!(verify(&self.target(), &self.new.manifest).unwrap(), [], "it said that it was well");
        Ok(report)
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join(self.new.manifest.release.to_string())
    }

    fn size(&self) -> u64 {
        self.delta.metadata().unwrap().len()
    }
}

fn done(answer: Answer<UnpackReport>) -> Result<UnpackReport, ReleaseError> {
    answer.into_result()
}

/// Everything that must hold for any two trees.
fn round_trip(old: &Tree, new: &Tree) -> (World, UnpackReport) {
    let world = World::new(old, new);
    let told = manifest(&world.delta, world.old.manifest.clone()).unwrap();
    let mut expected = world.new.manifest.clone();
    expected.archive.frames.clear();
    assert_eq!(told, expected);
    assert_eq!(base_of(&world.delta).unwrap(), (world.old.manifest.release, world.new.manifest.release));
    // The same bytes whatever the number of threads, and from archives.
    let bytes = bytes_of(&world.delta);
    let again = tempfile::tempfile().unwrap();
    world.make(&again, 1).unwrap();
    assert!(bytes_of(&again) == bytes, "not the same with one thread");
    let (again, spools) = (tempfile::tempfile().unwrap(), [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()]);
    let from =
        |release: &Release, spool| Source::Archive { archive: Box::leak(Box::new(release.archive.try_clone().unwrap())), spool };
    let [one, two] = &spools;
    make(&world.old.manifest, from(&world.old, one), &world.new.manifest, from(&world.new, two), &again, 2).unwrap();
    assert!(bytes_of(&again) == bytes, "not the same from archives");
    world.apply(&world.delta, true).unwrap();
    let report = world.apply(&world.delta, false).unwrap();
    assert_eq!(verify(&world.old.tree, &world.old.manifest).unwrap(), []);
    (world, report)
}

#[test]
fn every_kind_of_change_arrives() {
    let long = |mark: &str| file(&format!("{}{mark}{}", "the same start\n".repeat(500), "the same end\n".repeat(500)));
    let old = tree(&[
        ("a/edited", long("old")),
        ("a/gone", file("gone")),
        ("a/same", file("same")),
        ("b/mode", Node::File(b"mode".to_vec(), false)),
        ("b/moved", file(&"moved and long enough to be seen\n".repeat(50))),
        ("b/was-empty", file("")),
        ("c", Node::Link("a".into())),
        ("dir-to-file/x", file("x")),
        ("dir-to-link/x", file("x")),
        ("file-to-dir", file("file")),
        ("file-to-link", file("file")),
        ("link-to-dir", Node::Link("a".into())),
        ("link-to-file", Node::Link("a".into())),
        ("shrunk", file(&"shrunk ".repeat(100))),
    ]);
    let new = tree(&[
        ("a/added", file("added")),
        ("a/again", file(&"twice in the new one ".repeat(9))),
        ("a/edited", long("NEW")),
        ("a/same", file("same")),
        ("b/mode", Node::File(b"mode".to_vec(), true)),
        ("b/was-empty", file("no longer")),
        ("c", Node::Link("b".into())),
        ("dir-to-file", file("file now")),
        ("dir-to-link", Node::Link("a".into())),
        ("empty", file("")),
        ("empty-dir", Node::Dir),
        ("file-to-dir/y", file("y")),
        ("file-to-link", Node::Link("/etc/passwd".into())),
        ("link-to-dir/z", file("z")),
        ("link-to-file", file("now a file")),
        ("moved-here", file(&"moved and long enough to be seen\n".repeat(50))),
        ("shrunk", file("shrunk ")),
        ("twice", file(&"twice in the new one ".repeat(9))),
    ]);
    let (world, report) = round_trip(&old, &new);
    // `a/same` and `moved-here` are links; the mode's file is a copy, since modes are shared with links.
    assert_eq!(report.linked, 2);
    assert!(world.size() < 1800, "{}", world.size());
    round_trip(&new, &old);
    round_trip(&Tree::new(), &new);
    round_trip(&old, &Tree::new());
    let (world, report) = round_trip(&old, &old);
    assert_eq!((report.linked, report.unpacked), (11, 0));
    assert!(world.size() < 600, "{}", world.size());
}

#[test]
fn what_did_not_change_and_cannot_be_linked_is_copied() {
    let old = tree(&[("a", file("the same")), ("b", file("the same")), ("c", file("also the same")), ("d", file("before"))]);
    let new = tree(&[("a", file("the same")), ("c", file("also the same")), ("d", file("after")), ("e", file("the same"))]);
    let world = World::new(&old, &new);
    // A link would have this mode as well.
    for path in ["a", "c"] {
        std::fs::set_permissions(world.old.tree.join(path), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let report = world.apply(&world.delta, false).unwrap();
    assert_eq!((report.linked, report.unpacked), (0, 4));
}

#[test]
fn small_edits_cost_what_they_are() {
    let text = |seed: u64, edited: bool| {
        let mut lines: Vec<String> =
            (0..300).map(|n| format!("line {n} of {seed}: {:x}", u64::from(noise(seed, 300)[n]) << 7)).collect();
        if edited {
            lines[150] = format!("let edited_{seed} = {seed};");
        }
        file(&lines.join("\n"))
    };
    let all = |edited: bool| (0..200u64).map(|n| (format!("src/{}/{n}.js", n % 7), text(n, edited))).collect::<Tree>();
    let (world, report) = round_trip(&all(false), &all(true));
    assert_eq!(report.unpacked, 200);
    // 32 bytes are the digest; a handful tell the edit.
    assert!(world.size() < 200 * 48, "{}", world.size());
}

#[test]
fn a_large_file_goes_in_parts_and_finds_what_moved() {
    let base = noise(1, 41 << 20);
    let mut edited = base.clone();
    edited.splice(30 << 20..30 << 20, noise(2, 70_000));
    edited.splice(1 << 20..1 << 20, noise(3, 1000));
    edited.truncate(edited.len() - 5);
    let old = tree(&[("large", Node::File(base, true)), ("gone-large", Node::File(noise(9, 6 << 20), false))]);
    let new =
        tree(&[("large", Node::File(edited, true)), ("large-2", Node::File(noise(4, 5 << 20), false)), ("small", file("s"))]);
    let world = World::new(&old, &new);
    world.apply(&world.delta, false).unwrap();
    let patched = world.size() - (5 << 20);
    assert!(patched < 150_000, "{patched}");
    // Small against large, large against small.
    let one = tree(&[("x", Node::File(noise(1, 9 << 20), false))]);
    let other = tree(&[("x", Node::File(noise(1, 9 << 20)[..1000].to_vec(), false))]);
    round_trip(&one, &other);
    round_trip(&other, &one);
}

fn changed() -> World {
    let text = |mark: &str| file(&format!("{}{mark}{}", "some text that stays\n".repeat(20), "and its end\n".repeat(20)));
    let old = tree(&[("a", text("old")), ("b", text("b")), ("c/d", file("d")), ("l", Node::Link("a".into())), ("x", file("x"))]);
    let new =
        tree(&[("a", text("new")), ("b", text("B!")), ("c/e", file("eee")), ("l", Node::Link("b".into())), ("m", file("x"))]);
    World::new(&old, &new)
}

#[test]
fn no_byte_can_be_changed_and_none_be_missing() {
    let world = changed();
    let bytes = bytes_of(&world.delta);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        let refused = world.apply(&file_with(&damaged), false);
        assert!(refused.is_err(), "byte {at} of {}", bytes.len());
    }
    for percent in 0..100 {
        let cut = file_with(&bytes[..bytes.len() * percent / 100]);
        let refused = manifest(&cut, world.old.manifest.clone()).unwrap_err().to_string();
        assert!(refused.contains("cut off"), "{refused}");
        assert!(world.install(&cut, &world.new.manifest, false).is_err());
    }
    let refused = manifest(&file_with(&[&bytes[..], b"x"].concat()), world.old.manifest.clone()).unwrap_err().to_string();
    assert!(refused.contains("something follows"), "{refused}");
    world.apply(&file_with(&bytes), false).unwrap();
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let world = changed();
    let refused = |result: Result<Manifest, ReleaseError>| result.unwrap_err().to_string();
    let mut other = world.old.manifest.clone();
    other.release = ReleaseId::new(jiff::Timestamp::UNIX_EPOCH);
    assert!(refused(manifest(&world.delta, other.clone())).contains("it starts from release"));
    assert!(refused(manifest(&world.delta, world.new.manifest.clone())).contains("it starts from release"));
    let mut newer = bytes_of(&world.delta);
    newer[8] = 9;
    assert!(
        refused(manifest(&file_with(&newer), world.old.manifest.clone()))
            .contains("it has the format 9, this larder reads 2; update larder")
    );
    assert!(
        refused(manifest(&file_with(b"PK\x03\x04 something else, but long enough to be looked at"), world.old.manifest.clone()))
            .contains("not a delta")
    );
    assert!(refused(manifest(&file_with(b""), world.old.manifest.clone())).contains("cut off"));
    // A manifest of another release does not go with it.
    let mut told = manifest(&world.delta, world.old.manifest.clone()).unwrap();
    told.release = other.release;
    assert!(world.install(&world.delta, &told, false).unwrap_err().to_string().contains("it leads to release"));
    // Nor does a release that is not installed.
    std::fs::remove_dir_all(&world.old.tree).unwrap();
    assert!(world.apply(&world.delta, false).unwrap_err().to_string().contains("not installed here"));
}

#[test]
fn a_damaged_base_is_named_and_the_delta_is_not_blamed() {
    let world = changed();
    let size = std::fs::metadata(world.old.tree.join("a")).unwrap().len() as usize;
    std::fs::write(world.old.tree.join("a"), "x".repeat(size)).unwrap();
    let refused = world.apply(&world.delta, false).unwrap_err().to_string();
    assert!(refused.contains(&format!("\"a\" of release {} is not what", world.old.manifest.release)), "{refused}");
    // Nor is a delta made from it.
    assert!(matches!(world.make(&tempfile::tempfile().unwrap(), 2), Err(ReleaseError::Damaged { .. })));
    let world = changed();
    std::fs::remove_file(world.old.tree.join("b")).unwrap();
    assert!(world.apply(&world.delta, false).unwrap_err().to_string().contains("\"b\" of release"));
}

/// The same delta with another list of groups, as somebody could make who knows the format.
fn with_groups(world: &World, list: Vec<u8>) -> File {
    let mut outline = Outline::read(&world.delta).unwrap();
    let (packed, section) = format::pack(list, &[]).unwrap();
    let end = outline.patches_at() + outline.patches;
    outline.groups = section;
    let mut bytes = bytes_of(&world.delta);
    bytes.truncate(end as usize);
    bytes.extend(packed);
    let head = outline.bytes().unwrap();
    bytes.splice(..head.len(), head);
    file_with(&bytes)
}

/// The same with other columns.
fn with_columns(world: &World, columns: Vec<u8>) -> File {
    let outline = Outline::read(&world.delta).unwrap();
    let bytes = bytes_of(&world.delta);
    let reference = super::entries::head(&world.old.manifest).unwrap();
    let (packed, section) = format::pack(columns, &reference).unwrap();
    let start = outline.patches_at() - outline.columns.bytes - outline.digests.bytes;
    let rest = bytes[(start + outline.columns.bytes) as usize..].to_vec();
    let mut outline = outline;
    outline.columns = section;
    file_with(&[outline.bytes().unwrap(), packed, rest].concat())
}

#[test]
fn a_list_of_patches_that_lies_is_refused() {
    let world = changed();
    let outline = Outline::read(&world.delta).unwrap();
    let list = outline.read_groups(&world.delta).unwrap();
    let good: Vec<groups::Group> = format::decode(&list, "list").unwrap();
    assert_eq!(good.len(), 1);
    world.apply(&with_groups(&world, list), false).unwrap();
    type Lie = Box<dyn Fn(&mut Vec<groups::Group>)>;
    let lies: Vec<Lie> = vec![
        Box::new(|groups| drop(groups.pop())),
        Box::new(|groups| groups.push(groups[0].clone())),
        Box::new(|groups| groups[0].members.truncate(1)),
        Box::new(|groups| groups[0].members[0].skip = 7),
        Box::new(|groups| groups[0].members[1].skip = u32::MAX),
        Box::new(|groups| groups[0].members[0].base = 99),
        Box::new(|groups| groups[0].members[0].head += 1),
        Box::new(|groups| groups[0].members[0].tail = u64::MAX),
        Box::new(|groups| groups[0].parts[0].packed -= 1),
        Box::new(|groups| groups[0].parts[0].packed = u32::MAX),
        Box::new(|groups| groups[0].parts[0].raw = u32::MAX),
        Box::new(|groups| groups[0].parts[0].from = 1),
        Box::new(|groups| groups[0].parts[0].reference = 1 << 40),
        Box::new(|groups| groups[0].parts.clear()),
    ];
    for (number, lie) in lies.iter().enumerate() {
        let mut groups = good.clone();
        lie(&mut groups);
        let refused = world.apply(&with_groups(&world, groups::encode(&groups).unwrap()), false);
        assert!(refused.is_err(), "lie {number}");
    }
    // A member's start taken from its base where it is not the same: sizes fit, the digest does not.
    let mut groups = good;
    let (one, other) = (groups[0].members[0].head, groups[0].members[0].tail);
    (groups[0].members[0].head, groups[0].members[0].tail) = (one - 1, other + 1);
    let refused = world.apply(&with_groups(&world, groups::encode(&groups).unwrap()), false).unwrap_err().to_string();
    assert!(refused.contains("content of \"a\"") || refused.contains("patch"), "{refused}");
}

/// A member takes four bytes in the list and many more in memory.
#[test]
fn a_list_of_patches_without_end_is_not_read_to_its_end() {
    let world = changed();
    let refused = |list: Vec<u8>| world.apply(&with_groups(&world, list), false).unwrap_err().to_string();
    let member = groups::Member { skip: 0, base: 0, head: 0, tail: 0 };
    let endless = groups::Group { members: vec![member; 1_000_001], parts: Vec::new() };
    let why = refused(groups::encode(&[endless]).unwrap());
    assert!(why.contains("cannot be read"), "{why}");
    // The second group has what the first one has; what comes after it is no group at all.
    let good: Vec<groups::Group> =
        format::decode(&Outline::read(&world.delta).unwrap().read_groups(&world.delta).unwrap(), "list").unwrap();
    let mut list = groups::encode(&[good[0].clone(), good[0].clone()]).unwrap();
    list[0] = 100;
    let why = refused(list.clone());
    assert!(why.contains("contradicts itself"), "{why}");
    list[0] = 1;
    let why = refused(list);
    assert!(why.contains("contradicts itself"), "{why}");
}

fn nodes() -> impl Strategy<Value = Tree> {
    let name = prop::sample::select(vec!["a", "b", "c", "d/e", "d/f", "d/g/h", "i", "i-1.2.js", "i-1.3.js", "k"]);
    let text = prop_oneof![
        (0u64..4, 0usize..4).prop_map(|(seed, size)| noise(seed, [0, 1, 700, 5000][size])),
        (0u64..4, 0usize..3000, 0usize..300).prop_map(|(seed, at, length)| {
            let mut bytes = noise(seed, 4000);
            bytes.splice(at..at + length / 2, noise(7, length));
            bytes
        }),
    ];
    let node = prop_oneof![
        6 => (text, any::<bool>()).prop_map(|(bytes, executable)| Node::File(bytes, executable)),
        1 => Just(Node::Link("a".into())),
        1 => Just(Node::Link("/nowhere".into())),
        1 => Just(Node::Dir),
    ];
    prop::collection::btree_map(name.prop_map(str::to_owned), node, 0..10).prop_map(|mut tree| {
        tree.remove("d");
        tree.remove("d/g");
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_two_trees_make_a_delta_that_arrives(old in nodes(), new in nodes()) {
        round_trip(&old, &new);
    }

    #[test]
    fn whoever_knows_the_format_gets_the_right_tree_or_none(at in any::<prop::sample::Index>(), to in any::<u8>(), columns in any::<bool>()) {
        let world = changed();
        let outline = Outline::read(&world.delta).unwrap();
        let mut list = if columns {
            outline.read_columns(&world.delta, &super::entries::head(&world.old.manifest).unwrap()).unwrap()
        } else {
            outline.read_groups(&world.delta).unwrap()
        };
        let at = at.index(list.len());
        list[at] = to;
        let lie = if columns { with_columns(&world, list) } else { with_groups(&world, list) };
        // The manifest's other fields are what its signature is for; the entries must be those of the tree digest.
        if let Ok(told) = manifest(&lie, world.old.manifest.clone()) {
            prop_assert_eq!(crate::release::digest(&told.entries), told.tree);
            let same = told.entries == world.new.manifest.entries;
            let _ = world.install(&lie, &told, false).map(|_| assert!(same));
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        let world = release(dir.path(), &Tree::new(), "old", 1000).manifest;
        prop_assert!(manifest(&file_with(&bytes), world.clone()).is_err());
        let head = [&b"larder\x00\xdd\x01\x00\x00\x00"[..], &bytes].concat();
        prop_assert!(manifest(&file_with(&head), world.clone()).is_err());
    }
}
