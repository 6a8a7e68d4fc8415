//! The fuzzer's seeds, which are real deltas taken apart; and that nothing which is put together ends at a digest.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use larder_archive::{ArchiveError, Sink};
use proptest::prelude::*;

use super::{
    Delta, Source,
    entries::{self, Columns},
    forge::{FIT_ENTRIES, FIT_GROUPS, Forged, TEXTS, bundled, plant},
    format::{self, Outline},
    groups::{self, Group, Member, Part},
    make, manifest,
};
use crate::{
    host::files::Confined,
    model::{Entry, Manifest},
    release::ReleaseError,
};

const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/delta");

/// Takes a delta apart; the head of its columns is left out, `with_head` or not.
fn taken_apart(delta: &File, old: &Manifest, with_head: bool) -> Forged {
    let outline = Outline::read(delta).unwrap();
    let columns = outline.read_columns(delta, &entries::head(old).unwrap()).unwrap();
    let mut columns: Columns = format::decode(&columns, "columns").unwrap();
    if !with_head {
        columns.head.clear();
    }
    let mut patches = vec![0; outline.patches as usize];
    delta.read_exact_at(&mut patches, outline.patches_at()).unwrap();
    let (digests, groups) = (outline.read_digests(delta).unwrap(), outline.read_groups(delta).unwrap());
    Forged { mode: 0, columns: postcard::to_stdvec(&columns).unwrap(), digests, groups, patches }
}

/// Changes what `plant` has written.
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

/// Only one file, so that its patch stands alone.
fn edit_one(tree: &Path) {
    let mut noise = fs::read(tree.join("b/noise")).unwrap();
    noise.splice(1000..1500, [7; 90]);
    fs::write(tree.join("b/noise"), noise).unwrap();
}

#[derive(Default)]
struct Kept(BTreeMap<String, Vec<u8>>, String);

impl Sink for Kept {
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

/// The entries that the delta leads to, and the files that it has patches for.
fn applied(bytes: &[u8], old: &Manifest, tree: &Path) -> Result<(Manifest, BTreeMap<String, Vec<u8>>), ReleaseError> {
    let (file, tree) = (file_with(bytes), Confined::open(tree)?);
    let new = manifest(&file, old.clone())?;
    let delta = Delta::open(&file, old, &tree, &new)?;
    let (mut reader, mut kept) = (delta.reader(), Kept::default());
    for group in delta.groups() {
        delta.read(group, &mut reader, &mut kept)?;
    }
    drop(reader);
    drop(delta);
    Ok((new, kept.0))
}

/// With `LARDER_SEEDS=write` in the environment it writes them.
#[test]
fn the_seeds_of_the_fuzzer_are_deltas_that_arrive() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let old = plant(one.path()).unwrap();
    let before = Confined::open(one.path()).unwrap();
    plant(other.path()).unwrap();
    let mut seeds = BTreeMap::new();
    for (name, edit) in [("one", edit_one as fn(&Path)), ("many", edit)] {
        edit(other.path());
        let new = bundled(other.path()).unwrap();
        let (delta, after) = (tempfile::tempfile().unwrap(), Confined::open(other.path()).unwrap());
        make(&old, Source::Tree(&before), &new, Source::Tree(&after), &delta, 1).unwrap();
        let forged = taken_apart(&delta, &old, false);
        // As it was: nothing was lost on the way.
        let (told, files) = applied(&forged.clone().delta(&old).unwrap(), &old, one.path()).unwrap();
        assert_eq!(told.entries, new.entries);
        for (path, content) in &files {
            assert!(fs::read(other.path().join(path)).unwrap() == *content, "{path}");
        }
        // Without any base, every file in two parts.
        let texts: Vec<_> = files.values().flatten().copied().collect();
        let part = |raw| Part { packed: 0, raw, told: 0, digest: [0; 32], from: 0, reference: 0 };
        let group = |file: &Vec<u8>| Group {
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
        seeds.insert(format!("{name}-with-head"), Forged { mode: FIT_ENTRIES, ..taken_apart(&delta, &old, true) });
        seeds.insert(name.to_owned(), Forged { mode: FIT_ENTRIES | FIT_GROUPS, ..forged });
    }
    if std::env::var_os("LARDER_SEEDS").is_some_and(|what| what == "write") {
        fs::create_dir_all(SEEDS).unwrap();
        seeds.iter().for_each(|(name, forged)| fs::write(Path::new(SEEDS).join(name), forged.bytes()).unwrap());
    }
    for (name, forged) in seeds {
        assert_eq!(Forged::of(&forged.bytes()), forged);
        applied(&forged.delta(&old).unwrap(), &old, one.path()).expect(&name);
        let seed = fs::read(Path::new(SEEDS).join(&name)).expect(&name);
        applied(&Forged::of(&seed).delta(&old).unwrap(), &old, one.path()).expect(&name);
    }
}

/// As of a manifest that comes alone: what is written down in the end has to be read again.
#[test]
fn a_manifest_of_another_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let old = plant(directory.path()).unwrap();
    let seed = Forged::of(&fs::read(Path::new(SEEDS).join("one-with-head")).unwrap());
    for format in [0, 2] {
        let mut columns: Columns = format::decode(&seed.columns, "columns").unwrap();
        let head = String::from_utf8(columns.head).unwrap();
        columns.head = head.replacen("\"format\":1", &format!("\"format\":{format}"), 1).into_bytes();
        let lie = Forged { columns: postcard::to_stdvec(&columns).unwrap(), ..seed.clone() };
        let why = applied(&lie.delta(&old).unwrap(), &old, directory.path()).unwrap_err().to_string();
        assert!(why.contains(&format!("its manifest has the format {format}")), "{why}");
    }
}

/// What is copied from the old release, or from another new file, has the size that its digest has elsewhere.
#[test]
fn a_size_that_the_same_content_does_not_have_is_refused() {
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
            let why = applied(&lie.delta(&old).unwrap(), &old, directory.path()).unwrap_err().to_string();
            assert!(why.contains(&format!("{path:?} has not the size")), "{why}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_forged_delta_ends_at_a_digest(bytes in prop::collection::vec(any::<u8>(), 0..200), edits in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..4)) {
        let directory = tempfile::tempdir().unwrap();
        let old = plant(directory.path()).unwrap();
        let mut seed = fs::read(Path::new(SEEDS).join("many")).unwrap();
        for (at, byte) in edits {
            let at = at.index(seed.len());
            seed[at] = byte;
        }
        for forged in [Forged::of(&bytes), Forged::of(&seed)] {
            let fitted = Forged { mode: forged.mode | FIT_ENTRIES | FIT_GROUPS, ..forged };
            if let Err(why) = applied(&fitted.delta(&old).unwrap(), &old, directory.path()) {
                let why = why.to_string();
                prop_assert!(!why.contains("damaged") && !why.contains("cut off") && !why.contains("tree digest"), "{why}");
            }
        }
    }
}
