//! Tests of deltas between installed releases: how deltas are made, applied and refused.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use larder_archive::{
    ArchiveLimits,
    delta::{DeltaError, FileSource, make},
};
use proptest::prelude::*;

use super::delta::{endpoint, endpoints, manifest};
use crate::{
    host::files::Confined,
    model::{Manifest, ReleaseId},
    release::{
        ReleaseError, WorkerAnswer,
        bundle::{self, BundleJob},
        install::{self, ContentSource, UnpackJob, UnpackReport},
        manifest::Head,
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

/// Returns pseudo-random bytes.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; size];
    reader.fill(&mut bytes);
    bytes
}

/// A release with its parsed manifest, the file of the manifest, the archive and the installed tree.
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
    let job = BundleJob {
        head: Head { release: id, ..head() },
        previous: false,
        threads: 2,
        limit: u64::MAX,
        secrets: Default::default(),
    };
    let places = bundle::BundlePaths { app: path.clone(), source: None, upper: None };
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
        make(
            &endpoint(&self.old.manifest)?,
            FileSource::Tree(&old),
            &endpoint(&self.new.manifest)?,
            FileSource::Tree(&new),
            out,
            threads,
        )?;
        Ok(())
    }

    /// Applies a delta to the installed old release, or to a spare copy of it.
    fn apply(&self, delta: &File, spare: bool) -> Result<UnpackReport, ReleaseError> {
        let manifest = manifest(delta, self.old.manifest.clone())?;
        self.install(delta, &manifest, spare)
    }

    fn install(&self, delta: &File, manifest: &Manifest, spare: bool) -> Result<UnpackReport, ReleaseError> {
        let tree = self.target();
        let _ = std::fs::create_dir(&tree);
        let places = install::InstallPaths { tree, deploy: self.dir.path().into() };
        let previous = Some(self.old.manifest.release);
        let job = UnpackJob {
            previous,
            content: ContentSource::Archive,
            spare: None,
            live: None,
            threads: 2,
            limits: ArchiveLimits::default(),
        };
        let copy = || done(install::work(&job, &places, &self.old.archive, &self.old.written, Some(&self.old.written)));
        let spare = if spare { copy()?.fingerprint } else { None };
        let job = UnpackJob {
            previous,
            content: ContentSource::Delta,
            spare,
            live: None,
            threads: 2,
            limits: ArchiveLimits::default(),
        };
        let report = done(install::work(&job, &places, delta, &json(manifest), Some(&self.old.written)))?;
        assert_eq!(verify(&self.target(), &self.new.manifest).unwrap(), [], "an installation with differences succeeded");
        Ok(report)
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join(self.new.manifest.release.to_string())
    }

    fn size(&self) -> u64 {
        self.delta.metadata().unwrap().len()
    }
}

fn done(answer: WorkerAnswer<UnpackReport>) -> Result<UnpackReport, ReleaseError> {
    answer.into_result()
}

/// Checks everything that must hold for any two trees.
fn round_trip(old: &Tree, new: &Tree) -> (World, UnpackReport) {
    let world = World::new(old, new);
    let told = manifest(&world.delta, world.old.manifest.clone()).unwrap();
    let mut expected = world.new.manifest.clone();
    expected.archive.frames.clear();
    assert_eq!(told, expected);
    assert_eq!(endpoints(&world.delta).unwrap(), (world.old.manifest.release, world.new.manifest.release));
    // A delta made by one thread, or made from archives, has the same bytes.
    let bytes = bytes_of(&world.delta);
    let again = tempfile::tempfile().unwrap();
    world.make(&again, 1).unwrap();
    assert!(bytes_of(&again) == bytes, "other bytes with one thread");
    let (again, spools) = (tempfile::tempfile().unwrap(), [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()]);
    let from = |release: &Release, spool| FileSource::Archive {
        archive: Box::leak(Box::new(release.archive.try_clone().unwrap())),
        spool,
    };
    let [one, two] = &spools;
    let ends = (endpoint(&world.old.manifest).unwrap(), endpoint(&world.new.manifest).unwrap());
    make(&ends.0, from(&world.old, one), &ends.1, from(&world.new, two), &again, 2).unwrap();
    assert!(bytes_of(&again) == bytes, "other bytes from archives");
    world.apply(&world.delta, true).unwrap();
    let report = world.apply(&world.delta, false).unwrap();
    assert_eq!(verify(&world.old.tree, &world.old.manifest).unwrap(), []);
    (world, report)
}

#[test]
fn delta_applies_every_kind_of_change() {
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
    // `a/same` and `moved-here` are hard links. `b/mode` is a copy, since all hard links of a file have the same mode.
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
fn unchanged_file_that_cannot_be_linked_is_copied() {
    let old = tree(&[("a", file("the same")), ("b", file("the same")), ("c", file("also the same")), ("d", file("before"))]);
    let new = tree(&[("a", file("the same")), ("c", file("also the same")), ("d", file("after")), ("e", file("the same"))]);
    let world = World::new(&old, &new);
    // A hard link to one of these files would have the same wrong mode.
    for path in ["a", "c"] {
        std::fs::set_permissions(world.old.tree.join(path), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let report = world.apply(&world.delta, false).unwrap();
    assert_eq!((report.linked, report.unpacked), (0, 4));
}

#[test]
fn small_edits_make_a_small_delta() {
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
    // Each file takes 32 bytes for its digest and a few bytes for the edit.
    assert!(world.size() < 200 * 48, "{}", world.size());
}

#[test]
fn large_file_with_moved_content_is_patched_in_parts() {
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
    // A delta turns a large file into a small file, and a second delta reverts this change.
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
fn altered_or_truncated_delta_is_refused() {
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
    assert!(refused.contains("it has bytes after its end"), "{refused}");
    world.apply(&file_with(&bytes), false).unwrap();
}

#[test]
fn delta_with_another_base_or_target_is_refused() {
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
            .contains("it has the format 9, but this larder reads the format 2; update larder")
    );
    let mut older = bytes_of(&world.delta);
    older[8] = 1;
    assert!(
        refused(manifest(&file_with(&older), world.old.manifest.clone()))
            .contains("it has the format 1, but this larder reads the format 2; update larder on the server that wrote it")
    );
    assert!(
        refused(manifest(&file_with(b"PK\x03\x04 something else, but long enough to be looked at"), world.old.manifest.clone()))
            .contains("not a delta")
    );
    assert!(refused(manifest(&file_with(b""), world.old.manifest.clone())).contains("cut off"));
    // A delta is refused with the manifest of another release.
    let mut told = manifest(&world.delta, world.old.manifest.clone()).unwrap();
    told.release = other.release;
    assert!(world.install(&world.delta, &told, false).unwrap_err().to_string().contains("it makes release"));
    // A delta is refused if its base is not installed.
    std::fs::remove_dir_all(&world.old.tree).unwrap();
    assert!(world.apply(&world.delta, false).unwrap_err().to_string().contains("not installed here"));
}

#[test]
fn delta_with_a_damaged_base_file_is_refused_with_its_name() {
    let world = changed();
    let size = std::fs::metadata(world.old.tree.join("a")).unwrap().len() as usize;
    std::fs::write(world.old.tree.join("a"), "x".repeat(size)).unwrap();
    let refused = world.apply(&world.delta, false).unwrap_err().to_string();
    assert!(refused.contains(&format!("\"a\" of release {} differs from the manifest", world.old.manifest.release)), "{refused}");
    // Making a delta from the damaged tree fails as well.
    assert!(matches!(world.make(&tempfile::tempfile().unwrap(), 2), Err(ReleaseError::Delta(DeltaError::Damaged { .. }))));
    let world = changed();
    std::fs::remove_file(world.old.tree.join("b")).unwrap();
    assert!(world.apply(&world.delta, false).unwrap_err().to_string().contains("\"b\" of release"));
}

#[test]
fn delta_with_a_contradictory_head_is_refused() {
    let world = changed();
    let (old, new) = (Confined::open(&world.old.tree).unwrap(), Confined::open(&world.new.tree).unwrap());
    let (release, tree) = (world.new.manifest.release.to_string(), world.new.manifest.tree.to_string());
    let other = ReleaseId::new(jiff::Timestamp::UNIX_EPOCH).to_string();
    for (text, lie, why) in [
        ("\"format\":1", "\"format\":0", "its manifest has the format 0"),
        ("\"format\":1", "\"format\":2", "its manifest has the format 2"),
        (&release, &other, "are of different releases"),
        (&tree, &tree.chars().rev().collect::<String>(), "are of different releases"),
        ("\"entries\":[]", "\"entries\":[{\"path\":\"a\",\"type\":\"dir\"}]", "its manifest contains entries or frames"),
        ("\"format\":1", "\"format\":one", "its manifest cannot be read"),
    ] {
        let mut end = endpoint(&world.new.manifest).unwrap();
        let head = String::from_utf8(end.head).unwrap();
        assert!(head.contains(text), "{head}");
        end.head = head.replacen(text, lie, 1).into_bytes();
        let out = tempfile::tempfile().unwrap();
        make(&endpoint(&world.old.manifest).unwrap(), FileSource::Tree(&old), &end, FileSource::Tree(&new), &out, 1).unwrap();
        let refused = manifest(&out, world.old.manifest.clone()).unwrap_err().to_string();
        assert!(refused.contains(why), "{lie}: {refused}");
    }
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
    fn delta_between_any_two_trees_applies(old in nodes(), new in nodes()) {
        round_trip(&old, &new);
    }

    #[test]
    fn any_bytes_are_refused_as_a_delta(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        let world = release(dir.path(), &Tree::new(), "old", 1000).manifest;
        prop_assert!(manifest(&file_with(&bytes), world.clone()).is_err());
        let head = [&b"larder\x00\xdd\x01\x00\x00\x00"[..], &bytes].concat();
        prop_assert!(manifest(&file_with(&head), world.clone()).is_err());
    }
}
