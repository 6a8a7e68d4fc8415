//! Tests of the strict sync: start states, hostile targets, kills, and random trees.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::{
        ffi::OsStringExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use larder_archive::{Confined, Digest, Entry, EntryKind};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;

/// The content of an entry: text and executable bit of a file, or the target of a symlink.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Dir,
    File(String, bool),
    Link(String),
}

type Tree = BTreeMap<String, Node>;

fn file(text: &str) -> Node {
    Node::File(text.to_owned(), false)
}

fn tree<const N: usize>(nodes: [(&str, Node); N]) -> Tree {
    nodes.into_iter().map(|(path, node)| (path.to_owned(), node)).collect()
}

/// A release with its installed tree, and a target.
struct World {
    base: tempfile::TempDir,
    entries: Vec<Entry>,
}

impl World {
    fn new(release: &Tree) -> World {
        let world = World { base: tempfile::tempdir().unwrap(), entries: entries_of(release) };
        fs::create_dir(world.target()).unwrap();
        world.install(release);
        world
    }

    fn next(&mut self, release: &Tree) {
        self.entries = entries_of(release);
        fs::remove_dir_all(self.release()).unwrap();
        self.install(release);
    }

    fn install(&self, release: &Tree) {
        fs::create_dir(self.release()).unwrap();
        write(&self.release(), release);
    }

    fn release(&self) -> PathBuf {
        self.base.path().join("release")
    }

    fn target(&self) -> PathBuf {
        self.base.path().join("target")
    }

    fn try_sync(&self, previous: Option<&SyncRecord>, policy: &SyncPolicy) -> Result<(SyncReport, SyncRecord), SyncError> {
        let (release, target) = (Confined::open(&self.release()).unwrap(), Confined::open(&self.target()).unwrap());
        sync(&release, &target, &self.entries, previous, policy)
    }

    fn sync(&self, previous: Option<&SyncRecord>) -> (SyncReport, SyncRecord) {
        self.try_sync(previous, &SyncPolicy::default()).unwrap()
    }
}

fn entries_of(release: &Tree) -> Vec<Entry> {
    let kind = |node: &Node| match node {
        Node::Dir => EntryKind::Dir,
        Node::File(text, executable) => {
            EntryKind::File { size: text.len() as u64, digest: Digest::of(text.as_bytes()), executable: *executable }
        }
        Node::Link(target) => EntryKind::Link { target: target.clone() },
    };
    release.iter().map(|(path, node)| Entry { path: path.clone(), kind: kind(node) }).collect()
}

fn write(root: &Path, tree: &Tree) {
    for (path, node) in tree {
        let path = root.join(path);
        match node {
            Node::Dir => fs::create_dir(&path).unwrap(),
            Node::File(text, executable) => {
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(if *executable { 0o755 } else { 0o644 })).unwrap();
            }
            Node::Link(target) => symlink(target, &path).unwrap(),
        }
    }
}

/// Reads a tree without following links. Fails if an entry is not one of a release, or has another mode than an entry of a release.
fn read(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut pending = vec![String::new()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(root.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            let metadata = entry.path().symlink_metadata().unwrap();
            let mode = metadata.mode() & 0o7777;
            let node = if metadata.is_dir() {
                assert_eq!(mode, 0o755, "{path}");
                pending.push(path.clone());
                Node::Dir
            } else if metadata.is_symlink() {
                Node::Link(fs::read_link(entry.path()).unwrap().to_str().unwrap().to_owned())
            } else {
                assert!(metadata.is_file() && metadata.nlink() == 1, "{path}");
                assert!(mode == 0o755 || mode == 0o644, "{path} has the mode {mode:o}");
                Node::File(fs::read_to_string(entry.path()).unwrap(), mode == 0o755)
            };
            found.insert(path, node);
        }
    }
    found
}

fn sample() -> Tree {
    tree([
        ("bin", Node::Dir),
        ("bin/run", Node::File("#!/bin/sh\n".to_owned(), true)),
        ("empty", Node::Dir),
        ("lib", Node::Dir),
        ("lib-a", file("beside the directory")),
        ("lib/a", file("a")),
        ("lib/b", Node::Dir),
        ("lib/b/c", file("")),
        ("lib/current", Node::Link("b".to_owned())),
    ])
}

/// Returns the inode of a path.
fn inode(path: impl AsRef<Path>) -> u64 {
    path.as_ref().symlink_metadata().unwrap().ino()
}

#[test]
fn each_start_state_becomes_the_release() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 14] = [
        ("empty", |target| {
            fs::remove_dir_all(target).unwrap();
            fs::create_dir(target).unwrap();
        }),
        ("unchanged", |_| {}),
        ("changed content of the same size", |target| fs::write(target.join("lib/a"), "b").unwrap()),
        ("changed size", |target| fs::write(target.join("lib/b/c"), "longer").unwrap()),
        ("changed modes", |target| {
            fs::set_permissions(target.join("bin/run"), fs::Permissions::from_mode(0o4777)).unwrap();
            fs::set_permissions(target.join("lib"), fs::Permissions::from_mode(0o2711)).unwrap();
        }),
        ("missing file", |target| fs::remove_file(target.join("lib/a")).unwrap()),
        ("missing directory", |target| fs::remove_dir_all(target.join("lib")).unwrap()),
        ("file for a directory", |target| {
            fs::remove_dir_all(target.join("lib")).unwrap();
            fs::write(target.join("lib"), "file").unwrap();
        }),
        ("directory for a file", |target| {
            fs::remove_file(target.join("lib/a")).unwrap();
            fs::create_dir_all(target.join("lib/a/deep")).unwrap();
            fs::write(target.join("lib/a/deep/file"), "x").unwrap();
        }),
        ("directory for a link", |target| {
            fs::remove_file(target.join("lib/current")).unwrap();
            fs::create_dir_all(target.join("lib/current/deep")).unwrap();
        }),
        ("other target of a link", |target| {
            fs::remove_file(target.join("lib/current")).unwrap();
            symlink("a", target.join("lib/current")).unwrap();
        }),
        ("link for a file", |target| {
            fs::rename(target.join("lib/a"), target.join("lib/copy")).unwrap();
            symlink("copy", target.join("lib/a")).unwrap();
        }),
        ("two names of a file", |target| {
            fs::remove_file(target.join("lib-a")).unwrap();
            fs::hard_link(target.join("lib/a"), target.join("lib-a")).unwrap();
        }),
        ("additional entries", |target| {
            fs::create_dir_all(target.join("var/cache/deep")).unwrap();
            fs::write(target.join("var/cache/deep/file"), "x").unwrap();
            fs::write(target.join("lib/.larder-sync-0"), "of a killed sync").unwrap();
        }),
    ];
    for (name, change) in changes {
        for with_record in [false, true] {
            let world = World::new(&sample());
            let (first, record) = world.sync(None);
            assert_eq!((first.entries, first.changed, first.deleted), (9, 9, 0));
            change(&world.target());
            world.sync(with_record.then_some(&record));
            assert_eq!(read(&world.target()), sample(), "{name}");
            let (again, _) = world.sync(Some(&record));
            assert_eq!((again.changed, again.deleted), (0, 0), "{name}");
        }
    }
}

#[test]
fn only_differences_between_releases_are_written() {
    let mut world = World::new(&sample());
    let (_, record) = world.sync(None);
    let kept = inode(world.target().join("bin/run"));
    let mut next = sample();
    next.insert("lib/a".to_owned(), file("new"));
    next.insert("lib/b/d".to_owned(), Node::File("added".to_owned(), true));
    next.remove("lib/current");
    next.remove("empty");
    world.next(&next);
    let (report, record) = world.sync(Some(&record));
    assert_eq!(report, SyncReport { entries: 8, changed: 2, deleted: 2, bytes: 8 });
    assert_eq!(read(&world.target()), next);
    assert_eq!(inode(world.target().join("bin/run")), kept);
    assert_ne!(inode(world.target().join("lib/a")), inode(world.release().join("lib/a")), "no inode is shared");
    let mtime = |root: PathBuf| fs::metadata(root.join("lib/a")).unwrap().modified().unwrap();
    assert_eq!(mtime(world.target()), mtime(world.release()));
    // A record survives its encoding; a damaged record is not used.
    let bytes = record.encode();
    assert_eq!(SyncRecord::decode(&bytes), Some(record));
    for at in [0, 8, 40, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert_eq!(SyncRecord::decode(&damaged), None);
    }
}

#[test]
fn changed_content_with_restored_time_and_size_is_replaced() {
    let world = World::new(&sample());
    let (_, record) = world.sync(None);
    let path = world.target().join("lib/a");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "X").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    let (report, _) = world.sync(Some(&record));
    assert_eq!((report.changed, fs::read_to_string(&path).unwrap()), (1, "a".to_owned()));
    // The same content with another time stays, and gets the time of the release.
    let inode_before = inode(&path);
    fs::File::options().write(true).open(&path).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let (report, _) = world.sync(Some(&record));
    assert_eq!((report.changed, inode(&path)), (0, inode_before));
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), modified);
}

#[test]
fn links_to_data_stay_and_other_entries_at_their_paths_go() {
    let mut release = sample();
    release.extend(tree([("media", Node::Dir), ("media/seed", file("seed"))]));
    let world = World::new(&release);
    let link = |path: &str| DataLink { path: path.to_owned(), target: format!("/data/{path}") };
    let policy = SyncPolicy {
        data: vec![link("media"), link("var/cache"), link("db.sqlite3"), link("lib/a/below-a-file"), link("../outside")],
        ..SyncPolicy::default()
    };
    let target = world.target();
    world.try_sync(None, &policy).unwrap();
    assert_eq!(read(&target), release, "paths without links are synced");
    fs::remove_dir_all(target.join("media")).unwrap();
    fs::create_dir(target.join("var")).unwrap();
    symlink("/data/media", target.join("media")).unwrap();
    symlink("/data/var/cache", target.join("var/cache")).unwrap();
    fs::write(target.join("var/extra"), "x").unwrap();
    symlink("/data/elsewhere", target.join("db.sqlite3")).unwrap();
    let (report, _) = world.try_sync(None, &policy).unwrap();
    let mut expected = sample();
    expected.extend(tree([
        ("media", Node::Link("/data/media".to_owned())),
        ("var", Node::Dir),
        ("var/cache", Node::Link("/data/var/cache".to_owned())),
    ]));
    assert_eq!(read(&target), expected);
    assert_eq!((report.entries, report.changed, report.deleted), (9, 0, 2));
    // Without the policy, the links go as well.
    world.sync(None);
    assert_eq!(read(&target), release);
}

#[test]
fn hostile_target_becomes_the_release_and_nothing_outside_changes() {
    let world = World::new(&sample());
    let (_, record) = world.sync(None);
    let target = world.target();
    let outside = world.base.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("a"), "secret").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o700)).unwrap();
    // Directories of the release are replaced by links to a directory outside, in which a file has a name of the release.
    fs::remove_dir_all(target.join("lib")).unwrap();
    symlink(&outside, target.join("lib")).unwrap();
    fs::remove_dir_all(target.join("empty")).unwrap();
    symlink("/etc", target.join("empty")).unwrap();
    fs::remove_file(target.join("lib-a")).unwrap();
    symlink(outside.join("a"), target.join("lib-a")).unwrap();
    // Special files.
    mknodat(CWD, target.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    fs::remove_file(target.join("bin/run")).unwrap();
    mknodat(CWD, target.join("bin/run"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    mknodat(CWD, target.join("socket"), FileType::Socket, Mode::RWXU, 0).unwrap();
    // Names of arbitrary bytes, and directories and files without permissions.
    fs::write(target.join(OsString::from_vec(b"\xff\n\x1b[31m*".to_vec())), "x").unwrap();
    fs::write(target.join("-rf"), "x").unwrap();
    fs::create_dir_all(target.join("locked/inner")).unwrap();
    fs::write(target.join("locked/inner/file"), "x").unwrap();
    fs::set_permissions(target.join("locked/inner"), fs::Permissions::from_mode(0o0)).unwrap();
    fs::set_permissions(target.join("locked"), fs::Permissions::from_mode(0o0)).unwrap();
    fs::set_permissions(target.join("bin"), fs::Permissions::from_mode(0o0)).unwrap();
    // A tree whose paths are longer than the system allows.
    let mut at = fs::File::open(&target).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "deep", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "deep", rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap().into();
    }
    world.sync(Some(&record));
    assert_eq!(read(&target), sample());
    assert_eq!(fs::read_to_string(outside.join("a")).unwrap(), "secret");
    assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn many_additional_files_are_deleted() {
    let world = World::new(&sample());
    let (_, record) = world.sync(None);
    let many = if std::env::var_os("LARDER_TEST_THOROUGH").is_some() { 100_000 } else { 5_000 };
    for number in 0..many {
        fs::File::create(world.target().join("lib").join(number.to_string())).unwrap();
    }
    let (report, _) = world.sync(Some(&record));
    assert_eq!((report.changed, report.deleted), (0, many));
    assert_eq!(read(&world.target()), sample());
}

#[test]
fn release_with_the_temporary_names_of_a_sync_is_synced() {
    let release = tree([(".larder-sync-0", file("a")), (".larder-sync-1", Node::Link("x".to_owned())), ("f", file("f"))]);
    let world = World::new(&release);
    world.sync(None);
    assert_eq!(read(&world.target()), release);
}

#[test]
fn damaged_release_is_refused_and_the_old_file_stays() {
    let mut world = World::new(&sample());
    world.sync(None);
    let mut next = sample();
    next.insert("lib/a".to_owned(), file("new"));
    world.next(&next);
    fs::write(world.release().join("lib/a"), "NEW").unwrap();
    let error = world.try_sync(None, &SyncPolicy::default()).unwrap_err();
    assert!(matches!(&error, SyncError::Damaged { path } if path == "lib/a"), "{error}");
    assert_eq!(read(&world.target()), sample());
}

#[test]
fn attributes_and_default_acls_are_removed() {
    let world = World::new(&sample());
    let (_, record) = world.sync(None);
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::setxattr(world.target().join(path), name, value, rustix::fs::XattrFlags::empty())
    };
    // Version 2, and the entries user::rwx, user:1:rwx, group::rwx, mask::rwx and other::rwx.
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, id) in [(1_u16, u32::MAX), (2, 1), (4, u32::MAX), (0x10, u32::MAX), (0x20, u32::MAX)] {
        acl.extend([tag.to_le_bytes().as_slice(), &7_u16.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    if set("lib", "user.mark", b"x").is_err() || set("lib", "system.posix_acl_default", &acl).is_err() {
        eprintln!("skipped: this file system has no extended attributes or no ACLs");
        return;
    }
    set("lib/a", "user.mark", b"x").unwrap();
    fs::remove_file(world.target().join("lib/b/c")).unwrap();
    world.sync(Some(&record));
    assert_eq!(read(&world.target()), sample());
    for path in ["lib", "lib/a", "lib/b/c"] {
        let file = fs::File::open(world.target().join(path)).unwrap();
        assert_eq!(sys::own_attributes(std::os::fd::AsFd::as_fd(&file)).unwrap(), Vec::<Vec<u8>>::new(), "{path}");
    }
}

#[test]
fn protected_entries_are_refused_with_their_paths() {
    let mut world = World::new(&sample());
    let (_, record) = world.sync(None);
    world.next(&tree([("lib", Node::Dir), ("lib/a", file("other"))]));
    let (deep, top) = (world.target().join("lib/b/c"), world.target());
    let chattr = |flag: &str, path: &Path| {
        let done = std::process::Command::new("chattr").arg(flag).arg(path).output();
        done.is_ok_and(|done| done.status.success())
    };
    if !rustix::process::geteuid().is_root() || !chattr("+i", &deep) {
        eprintln!("skipped: files cannot be protected here");
        return;
    }
    let refused = |world: &World| world.try_sync(Some(&record), &SyncPolicy::default()).unwrap_err().to_string();
    assert_eq!(refused(&world), "cannot sync lib/b/c: the file or directory is immutable");
    assert!(chattr("-i", &deep) && chattr("+a", &world.target().join("lib")));
    assert_eq!(refused(&world), "cannot sync lib: the file or directory is append-only");
    // A link at the top cannot be deleted, and is no directory.
    symlink("nowhere", top.join("extra")).unwrap();
    assert!(chattr("-a", &world.target().join("lib")) && chattr("+i", &top));
    assert_eq!(refused(&world), "cannot sync .: the file or directory is immutable");
    assert!(chattr("-i", &top));
    world.sync(Some(&record));
    assert_eq!(read(&world.target()), tree([("lib", Node::Dir), ("lib/a", file("other"))]));
}

#[test]
fn root_gives_all_entries_to_the_owner_of_the_policy() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can change owners");
        return;
    }
    let world = World::new(&sample());
    world.sync(None);
    let policy = SyncPolicy { owner: Some((4321, 4322)), ..SyncPolicy::default() };
    let (report, record) = world.try_sync(None, &policy).unwrap();
    assert_eq!(report.changed, 5, "files and links are replaced, directories are changed");
    assert_eq!(read(&world.target()), sample());
    for path in sample().keys() {
        let found = world.target().join(path).symlink_metadata().unwrap();
        assert_eq!((found.uid(), found.gid()), (4321, 4322), "{path}");
    }
    assert_eq!(world.try_sync(Some(&record), &policy).unwrap().0.changed, 0);
}

/// Trees with few names, so that two trees have many paths in common.
fn any_tree() -> impl Strategy<Value = Tree> {
    let node = prop_oneof![
        Just(Node::Dir),
        ("[ab]{0,2}", any::<bool>()).prop_map(|(text, executable)| Node::File(text, executable)),
        "[abc]{1,3}".prop_map(Node::Link),
    ];
    prop::collection::btree_map(prop::collection::vec("[abc]|a-b", 1..4), node, 0..25).prop_map(|nodes| {
        let mut tree = Tree::new();
        for (parts, node) in nodes {
            let parents = (1..parts.len()).map(|length| parts[..length].join("/"));
            for parent in parents {
                tree.insert(parent, Node::Dir);
            }
            // A directory with content stays a directory.
            tree.entry(parts.join("/")).or_insert(node);
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// After a sync, the target is equal to the release. `partial` stands for the state that a killed sync or the application left.
    #[test]
    fn any_target_becomes_any_release(old in any_tree(), partial in any_tree(), new in any_tree()) {
        let mut world = World::new(&old);
        let (_, record) = world.sync(None);
        prop_assert_eq!(&read(&world.target()), &old);
        world.next(&new);
        for (path, node) in &partial {
            let path = world.target().join(path);
            // A part of the state is overwritten; conflicts with the existing entries are left out.
            match node {
                Node::Dir => drop(fs::create_dir(&path)),
                Node::File(text, _) => drop(fs::write(&path, text)),
                Node::Link(target) => drop(symlink(target, &path)),
            }
        }
        world.sync(Some(&record));
        prop_assert_eq!(&read(&world.target()), &new);
    }
}
