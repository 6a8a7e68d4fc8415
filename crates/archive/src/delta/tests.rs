//! Tests of deltas without installed releases: forged lists, the seeds of the fuzzer, and random bytes.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use proptest::prelude::*;

use super::{
    Changes, ContentOrigin, Delta, DeltaEndpoint, DeltaError, FileSource,
    entries::Columns,
    forge::{FIT_ENTRIES, FIT_GROUPS, Forged, Planted, TEXTS, plant},
    format::{self, Outline},
    groups::{self, Member, Part, PatchGroup},
    make,
};
use crate::{ArchiveError, Confined, Entry, EntryKind, Sink, tree_digest};

const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/delta");

/// Takes a delta apart. If `with_head` is false, the head of the columns is left out.
fn taken_apart(delta: &File, old: &DeltaEndpoint<'_>, with_head: bool) -> Forged {
    let outline = Outline::read(delta).unwrap();
    let columns = outline.read_columns(delta, &old.head).unwrap();
    let mut columns: Columns = format::decode(&columns, "columns").unwrap();
    if !with_head {
        columns.head.clear();
    }
    let mut patches = vec![0; outline.patches as usize];
    delta.read_exact_at(&mut patches, outline.patches_at()).unwrap();
    let (digests, groups) = (outline.read_digests(delta).unwrap(), outline.read_groups(delta).unwrap());
    Forged { mode: 0, columns: postcard::to_stdvec(&columns).unwrap(), digests, groups, patches }
}

/// Edits the tree that [`plant`] has written.
fn edit(tree: &Path) {
    let lines = fs::read_to_string(tree.join("a/edited")).unwrap();
    fs::write(tree.join("a/edited"), lines.replace("30: 900", "thirty")).unwrap();
    fs::remove_file(tree.join("a/gone")).unwrap();
    fs::copy(tree.join("a/same"), tree.join("b/copy")).unwrap();
    let mut noise = fs::read(tree.join("b/noise")).unwrap();
    noise.splice(2000..2010, *b"no noise");
    fs::write(tree.join("b/noise"), noise).unwrap();
    fs::write(tree.join("b/tool"), "#!/bin/bash\n").unwrap();
    fs::create_dir(tree.join("c")).unwrap();
    fs::write(tree.join("c/new"), "not like anything").unwrap();
    fs::write(tree.join("c/twice"), "not like anything").unwrap();
    fs::remove_file(tree.join("link")).unwrap();
    std::os::unix::fs::symlink("c/new", tree.join("link")).unwrap();
}

/// Edits only one file, so that its patch contains no other file.
fn edit_one(tree: &Path) {
    let mut noise = fs::read(tree.join("b/noise")).unwrap();
    noise.splice(1000..1500, [7; 90]);
    fs::write(tree.join("b/noise"), noise).unwrap();
}

/// A sink that collects the files of a delta by path. The second field is the path of the current file.
#[derive(Default)]
struct Collected(BTreeMap<String, Vec<u8>>, String);

impl Sink for Collected {
    fn begin(&mut self, _: usize, entry: &Entry) -> Result<bool, ArchiveError> {
        self.1.clone_from(&entry.path);
        Ok(self.0.insert(entry.path.clone(), Vec::new()).is_none())
    }

    fn data(&mut self, part: &[u8]) -> Result<(), ArchiveError> {
        self.0.get_mut(&self.1).unwrap().extend(part);
        Ok(())
    }

    fn end(&mut self) -> Result<(), ArchiveError> {
        Ok(())
    }
}

fn file_with(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

type Applied = (Vec<Entry>, BTreeMap<String, Vec<u8>>);

/// Applies a delta. Returns the new entries, and the content of each file that comes from a patch or from an old file.
fn applied(bytes: &[u8], old: &Planted, tree: &Path) -> Result<Applied, DeltaError> {
    let (file, tree, end) = (file_with(bytes), Confined::open(tree)?, old.endpoint());
    let changes = Changes::read(&file, &end.id, &end.tree, &end.head)?;
    let (id, head) = (changes.id().to_owned(), changes.head().to_vec());
    let entries = changes.entries(old.entries.clone())?;
    let new = DeltaEndpoint { id, tree: tree_digest(&entries), entries: &entries, archive: end.archive, head };
    let delta = Delta::open(&file, &end, &tree, &new)?;
    let (mut reader, mut collected) = (delta.reader(), Collected::default());
    for group in delta.groups() {
        delta.read(group, &mut reader, &mut collected)?;
    }
    for (index, entry) in entries.iter().enumerate() {
        if let (ContentOrigin::Old(from), EntryKind::File { .. }) = (delta.origin(index), &entry.kind) {
            reader.copy(from, index, entry, &mut collected)?;
        }
    }
    drop(reader);
    drop(delta);
    Ok((entries, collected.0))
}

fn find<'a>(entries: &'a [Entry], path: &str) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.path == path)
}

/// With `LARDER_SEEDS=write` in the environment, this test writes the seeds.
#[test]
fn fuzzer_seeds_are_valid_deltas() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let old = plant(one.path()).unwrap();
    let before = Confined::open(one.path()).unwrap();
    plant(other.path()).unwrap();
    let mut seeds = BTreeMap::new();
    for (name, edit) in [("one", edit_one as fn(&Path)), ("many", edit)] {
        edit(other.path());
        let new = Planted::read(other.path()).unwrap();
        let (delta, after) = (tempfile::tempfile().unwrap(), Confined::open(other.path()).unwrap());
        make(&old.endpoint(), FileSource::Tree(&before), &new.endpoint(), FileSource::Tree(&after), &delta, 1).unwrap();
        let forged = taken_apart(&delta, &old.endpoint(), false);
        // A delta that was taken apart and put together again gives the same files.
        let (entries, files) = applied(&forged.clone().delta(&old.endpoint()).unwrap(), &old, one.path()).unwrap();
        assert_eq!(entries, new.entries);
        for (path, content) in &files {
            assert!(fs::read(other.path().join(path)).unwrap() == *content, "{path}");
        }
        let known =
            |path: &String| old.entries.iter().any(|entry| Some(&entry.kind) == find(&new.entries, path).map(|new| &new.kind));
        let files: BTreeMap<_, _> = files.into_iter().filter(|(path, _)| !known(path)).collect();
        // The members of these groups have no base, and each group has two parts.
        let texts: Vec<_> = files.values().flatten().copied().collect();
        let part = |raw| Part { packed: 0, raw, told: 0, digest: [0; 32], from: 0, reference: 0 };
        let group = |file: &Vec<u8>| PatchGroup {
            members: vec![Member { skip: 0, base: 0, head: 0, tail: 0 }],
            parts: vec![part(9), part(file.len() as u32 - 9)],
        };
        let mut groups: Vec<_> = files.values().map(group).collect();
        groups.iter_mut().enumerate().for_each(|(index, group)| group.members[0].skip = index as u32);
        let groups = groups::encode(&groups).unwrap();
        seeds.insert(format!("{name}-as-it-is"), forged.clone());
        seeds.insert(
            format!("{name}-texts"),
            Forged { mode: FIT_ENTRIES | FIT_GROUPS | TEXTS, groups, patches: texts, ..forged.clone() },
        );
        seeds.insert(format!("{name}-with-head"), Forged { mode: FIT_ENTRIES, ..taken_apart(&delta, &old.endpoint(), true) });
        seeds.insert(name.to_owned(), Forged { mode: FIT_ENTRIES | FIT_GROUPS, ..forged });
    }
    if std::env::var_os("LARDER_SEEDS").is_some_and(|what| what == "write") {
        fs::create_dir_all(SEEDS).unwrap();
        seeds.iter().for_each(|(name, forged)| fs::write(Path::new(SEEDS).join(name), forged.bytes()).unwrap());
    }
    for (name, forged) in seeds {
        assert_eq!(Forged::of(&forged.bytes()), forged);
        applied(&forged.delta(&old.endpoint()).unwrap(), &old, one.path()).expect(&name);
        let seed = fs::read(Path::new(SEEDS).join(&name)).expect(&name);
        applied(&Forged::of(&seed).delta(&old.endpoint()).unwrap(), &old, one.path()).expect(&name);
    }
}

/// Files with the same content must have the same size, whether the content comes from an old file or from another new file.
#[test]
fn copy_with_a_wrong_size_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let old = plant(directory.path()).unwrap();
    let seed = Forged::of(&fs::read(Path::new(SEEDS).join("many")).unwrap());
    let columns: Columns = format::decode(&seed.columns, "columns").unwrap();
    assert_eq!((columns.sizes.len(), columns.known.len()), (6, 1));
    for (path, at) in [("b/copy", 1), ("c/twice", 5)] {
        for more in [-1, 1] {
            let mut columns: Columns = format::decode(&seed.columns, "columns").unwrap();
            columns.sizes[at] += more;
            let lie = Forged { mode: FIT_GROUPS, columns: postcard::to_stdvec(&columns).unwrap(), ..seed.clone() };
            let why = applied(&lie.delta(&old.endpoint()).unwrap(), &old, directory.path()).unwrap_err().to_string();
            assert!(why.contains(&format!("the size of {path:?} differs")), "{why}");
        }
    }
}

/// Two trees and the delta between them.
struct World {
    old_tree: tempfile::TempDir,
    _new_tree: tempfile::TempDir,
    old: Planted,
    new: Planted,
    delta: File,
}

impl World {
    /// Returns two releases that differ in two texts, a link, a removed file, an added file and a moved file.
    fn changed() -> World {
        let text = |mark: &str| format!("{}{mark}{}", "some text that stays\n".repeat(20), "and its end\n".repeat(20));
        let (old_tree, new_tree) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |tree: &tempfile::TempDir, files: &[(&str, String)], link: &str| {
            fs::create_dir(tree.path().join("c")).unwrap();
            for (path, content) in files {
                fs::write(tree.path().join(path), content).unwrap();
            }
            std::os::unix::fs::symlink(link, tree.path().join("l")).unwrap();
            Planted::read(tree.path()).unwrap()
        };
        let old = write(&old_tree, &[("a", text("old")), ("b", text("b")), ("c/d", "d".into()), ("x", "x".into())], "a");
        let new = write(&new_tree, &[("a", text("new")), ("b", text("B!")), ("c/e", "eee".into()), ("m", "x".into())], "b");
        let delta = tempfile::tempfile().unwrap();
        let (before, after) = (Confined::open(old_tree.path()).unwrap(), Confined::open(new_tree.path()).unwrap());
        make(&old.endpoint(), FileSource::Tree(&before), &new.endpoint(), FileSource::Tree(&after), &delta, 2).unwrap();
        World { old_tree, _new_tree: new_tree, old, new, delta }
    }

    fn apply(&self, delta: &File) -> Result<Applied, DeltaError> {
        applied(&bytes_of(delta), &self.old, self.old_tree.path())
    }
}

/// Returns the delta of `world` with `list` as its list of groups, and with a matching outline.
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

/// Returns the delta of `world` with `columns` as its columns, and with a matching outline.
fn with_columns(world: &World, columns: Vec<u8>) -> File {
    let outline = Outline::read(&world.delta).unwrap();
    let bytes = bytes_of(&world.delta);
    let (packed, section) = format::pack(columns, &world.old.endpoint().head).unwrap();
    let start = outline.patches_at() - outline.columns.bytes - outline.digests.bytes;
    let rest = bytes[(start + outline.columns.bytes) as usize..].to_vec();
    let mut outline = outline;
    outline.columns = section;
    file_with(&[outline.bytes().unwrap(), packed, rest].concat())
}

#[test]
fn patch_list_with_a_false_value_is_refused() {
    let world = World::changed();
    let outline = Outline::read(&world.delta).unwrap();
    let list = outline.read_groups(&world.delta).unwrap();
    let good: Vec<groups::PatchGroup> = format::decode(&list, "list").unwrap();
    assert_eq!(good.len(), 1);
    world.apply(&with_groups(&world, list)).unwrap();
    type Lie = Box<dyn Fn(&mut Vec<groups::PatchGroup>)>;
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
        let refused = world.apply(&with_groups(&world, groups::encode(&groups).unwrap()));
        assert!(refused.is_err(), "lie {number}");
    }
    // The new file takes one byte less from the start of its base, and one byte more from the end. The sizes match, but the digest does not
    // match.
    let mut groups = good;
    let (one, other) = (groups[0].members[0].head, groups[0].members[0].tail);
    (groups[0].members[0].head, groups[0].members[0].tail) = (one - 1, other + 1);
    let refused = world.apply(&with_groups(&world, groups::encode(&groups).unwrap())).unwrap_err();
    let refused = format!("{refused:?}");
    assert!(refused.contains("Digest") || refused.contains("Patch"), "{refused}");
}

/// A member takes four bytes in the list, and many more bytes in memory.
#[test]
fn endless_patch_list_is_refused_early() {
    let world = World::changed();
    let refused = |list: Vec<u8>| world.apply(&with_groups(&world, list)).unwrap_err().to_string();
    let member = groups::Member { skip: 0, base: 0, head: 0, tail: 0 };
    let endless = groups::PatchGroup { members: vec![member; 1_000_001], parts: Vec::new() };
    let why = refused(groups::encode(&[endless]).unwrap());
    assert!(why.contains("cannot be read"), "{why}");
    // The second group repeats the files of the first group. The list has no further bytes after these groups, although it states 100
    // groups.
    let good: Vec<groups::PatchGroup> =
        format::decode(&Outline::read(&world.delta).unwrap().read_groups(&world.delta).unwrap(), "list").unwrap();
    let mut list = groups::encode(&[good[0].clone(), good[0].clone()]).unwrap();
    list[0] = 100;
    let why = refused(list.clone());
    assert!(why.contains("contradicts itself"), "{why}");
    list[0] = 1;
    let why = refused(list);
    assert!(why.contains("contradicts itself"), "{why}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// A forged delta has correct digests, so only the checks after the comparison of digests can refuse the delta.
    #[test]
    fn forged_deltas_reach_the_checks_behind_digests(bytes in prop::collection::vec(any::<u8>(), 0..200), edits in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..4)) {
        let directory = tempfile::tempdir().unwrap();
        let old = plant(directory.path()).unwrap();
        let mut seed = fs::read(Path::new(SEEDS).join("many")).unwrap();
        for (at, byte) in edits {
            let at = at.index(seed.len());
            seed[at] = byte;
        }
        for forged in [Forged::of(&bytes), Forged::of(&seed)] {
            let fitted = Forged { mode: forged.mode | FIT_ENTRIES | FIT_GROUPS, ..forged };
            if let Err(why) = applied(&fitted.delta(&old.endpoint()).unwrap(), &old, directory.path()) {
                let why = why.to_string();
                prop_assert!(!why.contains("damaged") && !why.contains("cut off") && !why.contains("tree digest"), "{why}");
            }
        }
    }

    #[test]
    fn changed_lists_give_the_right_tree_or_an_error(at in any::<prop::sample::Index>(), to in any::<u8>(), columns in any::<bool>()) {
        let world = World::changed();
        let outline = Outline::read(&world.delta).unwrap();
        let mut list = if columns {
            outline.read_columns(&world.delta, &world.old.endpoint().head).unwrap()
        } else {
            outline.read_groups(&world.delta).unwrap()
        };
        let at = at.index(list.len());
        list[at] = to;
        let lie = if columns { with_columns(&world, list) } else { with_groups(&world, list) };
        // The head is not checked here. The entries must match the tree digest of the outline, and the files must match their digests.
        if let Ok((entries, _)) = world.apply(&lie) {
            prop_assert_eq!(entries, world.new.entries);
        }
    }
}
