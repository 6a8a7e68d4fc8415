//! Tests of updates: what a person changed is never lost.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Stdio};

use jiff::Timestamp;

use super::{program::run, update, *};
use crate::git::testing::World;

/// A repository and a checkout.
pub(super) struct Place {
    pub world: World,
    pub app: PathBuf,
}

impl Place {
    pub fn new() -> Place {
        let world = World::new();
        let app = world.dir.path().join("app");
        fs::create_dir(&app).unwrap();
        Place { world, app }
    }

    /// Commits files on top of a commit.
    pub fn commit(&self, parent: Option<&CommitId>, files: &[(&str, bool, &[u8])]) -> CommitId {
        let plain = self.world.commit(files);
        let tree = self.world.git(&["rev-parse", &format!("{plain}^{{tree}}")], b"");
        match parent {
            None => plain,
            Some(parent) => self.world.git(&["commit-tree", &tree, "-p", parent.as_str(), "-m", "next"], b"").parse().unwrap(),
        }
    }

    pub fn update_with(&self, deployment: DeploymentId, commit: &CommitId, stash: bool) -> CheckoutReport {
        let pack = crate::git::testing::git(
            &self.world.repository(),
            &["pack-objects", "--revs", "--stdout", "-q"],
            format!("{commit}\n").as_bytes(),
        );
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&pack.stdout).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let branch = "main".parse().unwrap();
        update::update(
            &self.app,
            &CheckoutUpdate { deployment, branch, commit: commit.clone(), stash, live: None, is_complete: true },
            Stdio::from(file),
        )
    }

    pub fn update(&self, commit: &CommitId) -> CheckoutReport {
        self.update_with(DeploymentId::new(Timestamp::now()), commit, false)
    }

    pub fn revert(&self, deployment: DeploymentId) -> CheckoutRevert {
        match update::revert(&self.app, deployment, &"main".parse().unwrap()) {
            Ok(CheckoutAnswer::Reverted(kept)) => kept,
            other => panic!("{other:?}"),
        }
    }

    /// Runs git in the checkout as a person does.
    pub fn git(&self, words: &[&str]) -> String {
        String::from_utf8(run(&self.app, words, "work in the checkout").unwrap()).unwrap().trim().to_owned()
    }

    /// Commits all files of the checkout as a person does.
    pub fn commit_by_hand(&self) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "-m", "by hand"]);
        self.git(&["rev-parse", "HEAD"])
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.app.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.app.join(name)).unwrap_or_else(|error| format!("{name}: {error}"))
    }

    pub fn state(&self) -> CheckoutState {
        files::look(&self.app).unwrap()
    }

    pub fn edits(&self) -> Vec<(String, EditKind)> {
        self.state().edits.into_iter().map(|file| (file.path, file.edit)).collect()
    }
}

pub(super) fn conflicts(report: CheckoutReport) -> Vec<(String, EditKind)> {
    match report.unwrap() {
        CheckoutAnswer::Conflicts(files) => files.into_iter().map(|file| (file.path, file.edit)).collect(),
        other => panic!("{other:?}"),
    }
}

fn kept(report: CheckoutReport) -> usize {
    match report.unwrap() {
        CheckoutAnswer::Updated { kept, stashed, branches } if stashed.is_empty() && branches.is_empty() => kept,
        other => panic!("{other:?}"),
    }
}

const RUN: (&str, bool, &[u8]) = ("run.sh", true, b"#!/bin/sh\n");

#[test]
fn update_keeps_files_that_the_commit_does_not_change() {
    let place = Place::new();
    let one = place.commit(None, &[("a", false, b"1"), ("b", false, b"1"), ("sub/c", false, b"1"), RUN]);
    assert_eq!(kept(place.update(&one)), 0);
    assert_eq!(fs::metadata(place.app.join("run.sh")).unwrap().permissions().mode() & 0o111, 0o111);
    place.write("a", "mine");
    place.write("new", "mine");
    fs::remove_file(place.app.join("sub/c")).unwrap();
    let two = place.commit(Some(&one), &[("a", false, b"1"), ("b", false, b"2"), ("sub/c", false, b"1"), RUN]);
    assert_eq!(kept(place.update(&two)), 3);
    assert_eq!((place.read("a").as_str(), place.read("b").as_str(), place.read("new").as_str()), ("mine", "2", "mine"));
    let state = place.state();
    assert_eq!((state.head, state.base, state.branch.as_deref()), (Some(two.clone()), Some(two.clone()), Some("main")));
    use EditKind::{Added, Changed, Deleted};
    let expected = [("a", Changed), ("new", Added), ("sub/c", Deleted)].map(|(path, edit)| (path.to_owned(), edit));
    assert_eq!(place.edits(), expected);
    // A commit that is not based on the live commit is checked out, too, as after a forced push.
    let other = place.commit(None, &[("a", false, b"1"), ("b", false, b"3"), ("sub/c", false, b"1"), RUN]);
    assert_eq!(kept(place.update(&other)), 3);
    assert_eq!(place.edits(), expected);
}

#[test]
fn file_that_both_changed_is_refused_with_its_name() {
    let place = Place::new();
    let files: &[(&str, bool, &[u8])] =
        &[("a", false, b"1"), ("gone", false, b"1"), ("dropped", false, b"1"), ("mode", false, b"1")];
    let one = place.commit(None, files);
    place.update(&one).unwrap();
    place.write("a", "mine");
    fs::remove_file(place.app.join("gone")).unwrap();
    place.write("dropped", "mine");
    place.write("added", "mine");
    place.write("ignored.log", "mine");
    place.write(".git/info/exclude", "*.log\n");
    place.write("folder", "mine");
    place.write("deep/inside", "mine");
    fs::set_permissions(place.app.join("mode"), fs::Permissions::from_mode(0o755)).unwrap();
    let two = place.commit(
        Some(&one),
        &[
            ("a", false, b"2"),
            ("gone", false, b"2"),
            ("mode", false, b"2"),
            ("added", false, b"theirs"),
            ("ignored.log", false, b"theirs"),
            ("folder/file", false, b"theirs"),
            ("deep", false, b"theirs"),
        ],
    );
    use EditKind::{Added, Changed, Deleted};
    let all = [
        ("a", Changed),
        ("added", Added),
        ("deep/inside", Added),
        ("dropped", Changed),
        ("folder", Added),
        ("gone", Deleted),
        ("ignored.log", Added),
        ("mode", Changed),
    ];
    assert_eq!(conflicts(place.update(&two)), all.map(|(path, edit)| (path.to_owned(), edit)));
    for name in ["a", "dropped", "added", "ignored.log", "folder", "deep/inside"] {
        assert_eq!(place.read(name), "mine", "{name}");
    }
    assert_eq!(place.state().head, Some(one.clone()), "a refused update changes nothing");
    // A file that a person has already changed to the new content is no conflict.
    let three = place.commit(
        Some(&one),
        &[
            ("a", false, b"mine"),
            ("gone", false, b"1"),
            ("dropped", false, b"1"),
            ("mode", true, b"1"),
            ("added", false, b"mine"),
        ],
    );
    let report = place.update(&three);
    assert!(matches!(report, Ok(CheckoutAnswer::Updated { .. })), "{report:?}");
    assert_eq!(place.read("ignored.log"), "mine");
}

#[test]
fn stashed_files_come_back_when_the_update_is_reverted() {
    let place = Place::new();
    let one = place.commit(None, &[("a", false, b"1"), ("b", false, b"1")]);
    place.update(&one).unwrap();
    place.write("a", "mine");
    place.write("added", "mine");
    place.write("other", "mine");
    let two = place.commit(Some(&one), &[("a", false, b"2"), ("b", false, b"1"), ("added", false, b"theirs")]);
    let deployment = DeploymentId::new(Timestamp::now());
    let Ok(CheckoutAnswer::Updated { stashed, kept, .. }) = place.update_with(deployment, &two, true) else { panic!() };
    assert_eq!((stashed.len(), kept), (2, 1));
    assert_eq!((place.read("a").as_str(), place.read("added").as_str(), place.read("other").as_str()), ("2", "theirs", "mine"));
    assert_eq!(place.state().stashes.len(), 1);
    // The job may be repeated after a kill, and so may its undo.
    let Ok(CheckoutAnswer::Updated { .. }) = place.update_with(deployment, &two, true) else { panic!() };
    for _ in 0..2 {
        assert_eq!(
            update::revert(&place.app, deployment, &"main".parse().unwrap()),
            Ok(CheckoutAnswer::Reverted(CheckoutRevert::default()))
        );
        assert_eq!(
            (place.read("a").as_str(), place.read("added").as_str(), place.read("other").as_str()),
            ("mine", "mine", "mine")
        );
        let state = place.state();
        assert_eq!((state.head, state.base, state.stashes.len()), (Some(one.clone()), Some(one.clone()), 0));
    }
}

#[test]
fn commit_of_a_person_is_refused_until_the_push_contains_it() {
    let place = Place::new();
    let one = place.commit(None, &[("a", false, b"1")]);
    place.update(&one).unwrap();
    place.write("b", "mine");
    run(&place.app, &["checkout", "--quiet", "--detach"], "detach").unwrap();
    run(&place.app, &["add", "b"], "add").unwrap();
    run(&place.app, &["commit", "--quiet", "-m", "mine"], "commit").unwrap();
    let own = place.state().head.unwrap();
    let two = place.commit(Some(&one), &[("a", false, b"2")]);
    assert_eq!(place.update(&two), Ok(CheckoutAnswer::Ahead(own.clone())));
    assert_eq!(place.state().head, Some(own.clone()));
    // The commit comes back by a fetch, is merged, and is pushed.
    let fetch = ["fetch", "--quiet", place.app.to_str().unwrap(), "HEAD"];
    let fetched = std::process::Command::new("git").arg("--git-dir").arg(place.world.repository()).args(fetch).status().unwrap();
    assert!(fetched.success());
    let merged = place.commit(Some(&own), &[("a", false, b"2"), ("b", false, b"mine")]);
    assert_eq!(kept(place.update(&merged)), 0);
    assert_eq!((place.state().branch.as_deref(), place.read("a").as_str()), (Some("main"), "2"));
}

#[test]
fn failed_first_update_leaves_an_empty_record() {
    let place = Place::new();
    let missing = "00000000000000000000000000000000000000ab".parse().unwrap();
    let deployment = DeploymentId::new(Timestamp::now());
    let empty = tempfile::tempfile().unwrap();
    let job = CheckoutUpdate {
        deployment,
        branch: "main".parse().unwrap(),
        commit: missing,
        stash: false,
        live: None,
        is_complete: true,
    };
    assert!(update::update(&place.app, &job, Stdio::from(empty)).is_err());
    assert_eq!(
        update::revert(&place.app, deployment, &"main".parse().unwrap()),
        Ok(CheckoutAnswer::Reverted(CheckoutRevert::default()))
    );
    assert_eq!(place.state().head, None);
    place.write("a", "mine");
    let one = place.commit(None, &[("a", false, b"1")]);
    assert_eq!(conflicts(place.update_with(deployment, &one, true)), [(String::from("a"), EditKind::Added)]);
    assert_eq!(place.read("a"), "mine");
}

#[test]
fn commit_of_all_changes_comes_back_as_a_pack() {
    let place = Place::new();
    let one = place.commit(None, &[("a", false, b"1"), ("b", false, b"1")]);
    place.update(&one).unwrap();
    place.write("a", "mine");
    place.write("new", "mine");
    fs::remove_file(place.app.join("b")).unwrap();
    run(&place.app, &["checkout", "--quiet", "--detach"], "detach").unwrap();
    let branch = "main".parse().unwrap();
    let Ok(CheckoutAnswer::Committed(commit)) = files::commit_all(&place.app, "by hand", "ann", &branch) else { panic!() };
    assert_eq!(
        (place.edits(), place.state().branch.as_deref(), place.state().head),
        (Vec::new(), Some("main"), Some(commit.clone()))
    );
    let mut packed = tempfile::tempfile().unwrap();
    let known = [one, "00000000000000000000000000000000000000ab".parse().unwrap()];
    let answer = files::pack(&place.app, &commit, &known, Stdio::from(packed.try_clone().unwrap()));
    assert_eq!(answer, Ok(CheckoutAnswer::Packed));
    let mut bytes = Vec::new();
    io::Seek::rewind(&mut packed).unwrap();
    io::Read::read_to_end(&mut packed, &mut bytes).unwrap();
    place.world.git(&["index-pack", "--stdin", "--fix-thin", "--strict"], &bytes);
    assert_eq!(place.world.git(&["log", "-1", "--format=%an %s", commit.as_str()], b""), "ann by hand");
    assert_eq!(place.world.git(&["ls-tree", "--name-only", commit.as_str()], b""), "a\nnew");
    // Dropped files are in the stash.
    place.write("a", "again");
    place.write("other", "again");
    let Ok(CheckoutAnswer::Dropped(dropped)) = files::drop_all(&place.app) else { panic!() };
    assert_eq!((dropped.len(), place.read("a").as_str(), place.state().stashes.len()), (2, "mine", 1));
    run(&place.app, &["stash", "pop", "--quiet"], "pop").unwrap();
    assert_eq!((place.read("a").as_str(), place.read("other").as_str()), ("again", "again"));
}
