//! Tests with random edits of a tree, and with restore points that share files: each restore must reproduce the captured tree.

use std::{
    fs::{self, File, Permissions},
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, PermissionsExt, symlink},
        },
    },
    time::{Duration, UNIX_EPOCH},
};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Edit {
    Write { at: usize, length: usize, byte: u8 },
    Sparse { at: usize, length: u64 },
    Overwrite { at: usize, byte: u8 },
    Directory { at: usize },
    Link { at: usize, target: Vec<u8> },
    HardLink { from: usize, to: usize },
    Rename { from: usize, to: usize },
    Remove { at: usize },
    Mode { at: usize, mode: u32 },
    Time { at: usize, seconds: u64, nanos: u32 },
    Xattr { at: usize, value: Vec<u8> },
}

/// Returns one of twelve paths, which collide, nest, and sort in surprising ways.
fn path(at: usize) -> PathBuf {
    let names: [&[u8]; 12] =
        [b"a", b"a/b", b"a-b", b"a/b/c", b"a.b", b"\xff\x80", b"a/\xfe", b"z/y/x", b"z/y", b"z", b"a b/\n", b"\xe2\x82\xac"];
    Path::new("uploads").join(OsStr::from_bytes(names[at % names.len()]))
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = 0_usize..12;
    let edit = prop_oneof![
        4 => (at.clone(), 0_usize..200_000, any::<u8>()).prop_map(|(at, length, byte)| Edit::Write { at, length, byte }),
        1 => (at.clone(), 0_u64..3_000_000).prop_map(|(at, length)| Edit::Sparse { at, length }),
        2 => (at.clone(), any::<u8>()).prop_map(|(at, byte)| Edit::Overwrite { at, byte }),
        1 => at.clone().prop_map(|at| Edit::Directory { at }),
        1 => (at.clone(), prop::collection::vec(1_u8..255, 1..20)).prop_map(|(at, target)| Edit::Link { at, target }),
        2 => (at.clone(), at.clone()).prop_map(|(from, to)| Edit::HardLink { from, to }),
        1 => (at.clone(), at.clone()).prop_map(|(from, to)| Edit::Rename { from, to }),
        1 => at.clone().prop_map(|at| Edit::Remove { at }),
        1 => (at.clone(), 0_u32..0o1000).prop_map(|(at, mode)| Edit::Mode { at, mode: mode | 0o700 }),
        1 => (at.clone(), 0_u64..4_000_000_000, 0_u32..1_000_000_000)
            .prop_map(|(at, seconds, nanos)| Edit::Time { at, seconds, nanos }),
        1 => (at, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(at, value)| Edit::Xattr { at, value }),
    ];
    prop::collection::vec(edit, 1..25)
}

/// Applies an edit. An edit that does not fit the tree has no effect.
fn apply(scene: &Scene, edit: &Edit) -> std::io::Result<()> {
    let real = |at: usize| scene.path(path(at));
    let ready = |at: usize| {
        let path = real(at);
        fs::create_dir_all(path.parent().unwrap()).map(|()| path)
    };
    let is_plain = |at: usize| fs::symlink_metadata(real(at)).is_ok_and(|metadata| !metadata.is_symlink());
    match edit {
        Edit::Write { at, length, byte } => {
            let path = ready(*at)?;
            if path.is_symlink() {
                fs::remove_file(&path)?;
            }
            fs::write(path, vec![*byte; *length])
        }
        Edit::Sparse { at, length } => {
            let path = ready(*at)?;
            if path.is_symlink() {
                fs::remove_file(&path)?;
            }
            let file = File::create(path)?;
            file.set_len(*length)?;
            file.write_all_at(b"data", length / 2)
        }
        Edit::Overwrite { at, byte } if is_plain(*at) => File::options().write(true).open(real(*at))?.write_all_at(&[*byte], 0),
        Edit::Directory { at } => fs::create_dir_all(real(*at)),
        Edit::Link { at, target } => symlink(OsStr::from_bytes(target), ready(*at)?),
        Edit::HardLink { from, to } if is_plain(*from) => fs::hard_link(real(*from), ready(*to)?),
        Edit::Rename { from, to } => fs::rename(real(*from), ready(*to)?),
        Edit::Remove { at } => fs::remove_file(real(*at)).or_else(|_| fs::remove_dir_all(real(*at))),
        Edit::Mode { at, mode } if is_plain(*at) => fs::set_permissions(real(*at), Permissions::from_mode(*mode)),
        Edit::Time { at, seconds, nanos } if is_plain(*at) => {
            File::open(real(*at))?.set_modified(UNIX_EPOCH + Duration::new(*seconds, *nanos))
        }
        Edit::Xattr { at, value } if is_plain(*at) => {
            let file = File::open(real(*at))?;
            Ok(rustix::fs::fsetxattr(file.as_fd(), "user.test", value, rustix::fs::XattrFlags::empty())?)
        }
        _ => Ok(()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn points_after_random_edits_restore_exactly(rounds in prop::collection::vec(edits(), 1..4), removed in 0_usize..4) {
        let scene = Scene::new();
        fs::create_dir(scene.path("uploads")).unwrap();
        let sources = [Source::directory("uploads")];
        let mut expected = Vec::new();
        for (round, edits) in rounds.iter().enumerate() {
            for edit in edits {
                let _ = apply(&scene, edit);
            }
            let previous = (round > 0).then(|| format!("p{}", round - 1));
            let captured = scene.capture(&format!("p{round}"), &sources, previous.as_deref()).unwrap();
            prop_assert!(captured.is_exact());
            expected.push(tree(&scene.base));
        }
        if removed < expected.len() {
            scene.store.remove(&format!("p{removed}")).unwrap();
        }
        for (round, expected) in expected.iter().enumerate().filter(|(round, _)| *round != removed) {
            let id = format!("p{round}");
            let report = scene.store.point(&id).unwrap().verify(&crate::VerifyOptions::default()).unwrap();
            prop_assert_eq!(report.damaged, 0);
            prop_assert_eq!(&scene.restored(&id), expected);
            scene.restore(&id, &id, None).unwrap();
            prop_assert_eq!(&tree(&scene.base), expected);
        }
    }
}
