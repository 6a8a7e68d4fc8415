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

/// An action on the store. With `kill`, a process of its own executes the action and is killed at this step, if the action has so many steps.
#[derive(Debug, Clone)]
enum Action {
    Edit(Vec<Edit>),
    Take {
        previous: usize,
        kill: Option<u64>,
    },
    Remove {
        at: usize,
        kill: Option<u64>,
    },
    Sweep {
        kill: Option<u64>,
    },
    Restore {
        at: usize,
    },
    Verify {
        at: usize,
    },
    /// Turns a restore point into the form of version 1.
    MakeOld {
        at: usize,
    },
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let kill = || prop::option::of(1_u64..40);
    let action = prop_oneof![
        3 => edits().prop_map(Action::Edit),
        4 => (0_usize..4, kill()).prop_map(|(previous, kill)| Action::Take { previous, kill }),
        3 => (0_usize..4, kill()).prop_map(|(at, kill)| Action::Remove { at, kill }),
        1 => kill().prop_map(|kill| Action::Sweep { kill }),
        1 => (0_usize..4).prop_map(|at| Action::Restore { at }),
        1 => (0_usize..4).prop_map(|at| Action::Verify { at }),
        1 => (0_usize..4).prop_map(|at| Action::MakeOld { at }),
    ];
    prop::collection::vec(action, 4..24)
}

/// Executes an action: `take ID [PREVIOUS]`, `remove ID` or `sweep`.
fn act(base: &Path, store: &Store, words: &[&str]) -> Result<()> {
    let sources = [Source::directory("uploads")];
    let options = CaptureOptions { threads: 1, ..options() };
    match words {
        ["take", id, previous @ ..] => {
            let captured = capture(store, base, id, &sources, previous.first().copied(), &options)?;
            assert!(captured.is_exact(), "{captured:?}");
            Ok(())
        }
        ["remove", id] => store.remove(id),
        _ => store.sweep().map(drop),
    }
}

#[test]
#[ignore = "a child of the test below"]
fn child_acts() {
    let dir = PathBuf::from(std::env::var_os("POINTS_DIR").unwrap());
    let act_of = std::env::var("POINTS_ACT").unwrap();
    let store = Store::create(&dir.join("store")).unwrap();
    act(&dir.join("base"), &store, &act_of.split(' ').collect::<Vec<_>>()).unwrap();
}

/// Executes an action in this process, or in a process that is killed. Returns true if the action was finished.
fn perform(scene: &Scene, words: &[&str], kill: Option<u64>) -> bool {
    let Some(kill) = kill else {
        act(&scene.base, &scene.store, words).unwrap();
        return true;
    };
    let mut command = child("tests::model::child_acts", scene.dir.path());
    let status = command.env("POINTS_ACT", words.join(" ")).env("POINTS_KILL_AT", kill.to_string()).status().unwrap();
    assert!(status.success() || std::os::unix::process::ExitStatusExt::signal(&status) == Some(9), "{words:?}: {status}");
    status.success()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn store_agrees_with_its_model_after_random_actions_and_kills(actions in actions()) {
        let scene = Scene::new();
        fs::create_dir(scene.path("uploads")).unwrap();
        // The model: the trees of all restore points, and the names that were removed.
        let mut points: BTreeMap<String, BTreeMap<PathBuf, Node>> = BTreeMap::new();
        let mut next = 0;
        for action in &actions {
            let nth = |at: usize| points.keys().nth(at % points.len().max(1)).cloned();
            let mut is_swept = false;
            match action {
                Action::Edit(edits) => {
                    for edit in edits {
                        let _ = apply(&scene, edit);
                    }
                    let _ = fs::create_dir(scene.path("uploads"));
                }
                Action::Take { previous, kill } => {
                    next += 1;
                    let id = format!("p{next:03}");
                    let previous = nth(*previous);
                    let words: Vec<&str> = ["take", &id].into_iter().chain(previous.as_deref()).collect();
                    let live = tree(&scene.base);
                    let is_done = perform(&scene, &words, *kill);
                    let exists = scene.store.list().unwrap().contains(&id);
                    prop_assert!(exists || !is_done);
                    if exists {
                        points.insert(id, live);
                    }
                }
                Action::Remove { at, kill } => {
                    let Some(id) = nth(*at) else { continue };
                    let is_done = perform(&scene, &["remove", &id], *kill);
                    let exists = scene.store.list().unwrap().contains(&id);
                    prop_assert!(!exists || !is_done);
                    if !exists {
                        points.remove(&id);
                    }
                }
                Action::Sweep { kill } => is_swept = perform(&scene, &["sweep"], *kill),
                Action::Restore { at } => {
                    let Some(id) = nth(*at) else { continue };
                    // Each restore has its own ticket.
                    next += 1;
                    scene.restore(&id, &format!("t{next}"), None).unwrap();
                    prop_assert_eq!(&tree(&scene.base), &points[&id]);
                }
                Action::Verify { at } => {
                    let Some(id) = nth(*at) else { continue };
                    let report = scene.store.point(&id).unwrap().verify(&crate::VerifyOptions::default()).unwrap();
                    prop_assert_eq!(report.damages, []);
                }
                Action::MakeOld { at } => {
                    let Some(id) = nth(*at) else { continue };
                    if scene.store.point(&id).unwrap().has_shared_contents() {
                        super::shared::turn_into_version_1(&scene, &id);
                        scene.store.collect().unwrap();
                    }
                }
            }
            prop_assert_eq!(scene.store.list().unwrap(), points.keys().cloned().collect::<Vec<_>>());
            if is_swept {
                scene.has_only_used_contents();
            }
        }
        scene.store.sweep().unwrap();
        scene.has_only_used_contents();
        for (id, expected) in &points {
            let report = scene.store.point(id).unwrap().verify(&crate::VerifyOptions::default()).unwrap();
            prop_assert_eq!(report.damages, []);
            prop_assert_eq!(&scene.restored(id), expected);
        }
    }
}
