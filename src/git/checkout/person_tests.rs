//! Tests of a person who works in the checkout while larder updates or reverts it, and of interrupted jobs.

use std::{fs, time::Duration};

use jiff::Timestamp;

use super::{
    tests::{Place, conflicts},
    *,
};

fn id() -> DeploymentId {
    DeploymentId::new(Timestamp::now())
}

/// Returns a checkout of the commit `one`, and the commit `two`, which changes the file `a`.
fn two_commits() -> (Place, CommitId, CommitId) {
    let place = Place::new();
    let one = place.commit(None, &[("a", false, b"1"), ("b", false, b"1"), ("c", false, b"1")]);
    place.update(&one).unwrap();
    let two = place.commit(Some(&one), &[("a", false, b"2"), ("b", false, b"1"), ("c", false, b"1")]);
    (place, one, two)
}

#[test]
fn commit_that_a_person_makes_during_a_failing_update_gets_a_branch() {
    let (place, one, two) = two_commits();
    let deployment = id();
    place.update_with(deployment, &two, false).unwrap();
    place.write("b", "mine");
    let own = place.commit_by_hand();
    let kept = place.revert(deployment);
    assert_eq!((place.state().head, place.read("a").as_str(), place.read("b").as_str()), (Some(one), "1", "1"));
    let [branch] = kept.branches.as_slice() else { panic!("{kept:?}") };
    assert_eq!(place.git(&["rev-parse", branch]), own);
    // The branch is not made twice, and an update keeps it.
    assert_eq!(place.revert(deployment), CheckoutRevert::default());
    place.update(&two).unwrap();
    assert_eq!(place.git(&["show", &format!("{branch}:b")]), "mine");
}

#[test]
fn branch_with_commits_of_a_person_is_kept_while_another_is_checked_out() {
    let (place, one, two) = two_commits();
    place.write("b", "mine");
    let own = place.commit_by_hand();
    place.git(&["checkout", "--quiet", "--detach", one.as_str()]);
    let Ok(CheckoutAnswer::Updated { branches, .. }) = place.update_with(id(), &two, false) else { panic!() };
    let [branch] = branches.as_slice() else { panic!("{branches:?}") };
    assert_eq!((place.git(&["rev-parse", branch]), place.git(&["rev-parse", "main"])), (own.clone(), two.to_string()));
    // A branch of the person needs no second name.
    place.git(&["checkout", "--quiet", "-b", "topic"]);
    place.write("c", "mine");
    place.commit_by_hand();
    place.git(&["checkout", "--quiet", "main"]);
    let three = place.commit(Some(&two), &[("a", false, b"3"), ("b", false, b"1"), ("c", false, b"1")]);
    let Ok(CheckoutAnswer::Updated { branches, .. }) = place.update_with(id(), &three, false) else { panic!() };
    assert_eq!(branches, Vec::<String>::new());
    // `larder edits commit` moves the branch of the environment to a detached commit.
    place.git(&["checkout", "--quiet", "--detach"]);
    place.write("b", "again");
    assert!(matches!(
        files::commit_all(&place.app, "by hand", "ann", &"main".parse().unwrap()),
        Ok(CheckoutAnswer::Committed(_))
    ));
    assert_eq!(
        (place.git(&["show", "main:b"]), place.git(&["branch", "--list", "kept-*"]).lines().count()),
        (String::from("again"), 1)
    );
}

#[test]
fn file_that_a_person_changes_during_a_failing_update_is_stashed() {
    let (place, one, two) = two_commits();
    place.write("b", "mine");
    let deployment = id();
    place.update_with(deployment, &two, false).unwrap();
    place.write("a", "mine");
    place.write("c", "mine");
    let kept = place.revert(deployment);
    assert_eq!(kept.stashed, [EditedFile { path: String::from("a"), edit: EditKind::Changed }]);
    let state = place.state();
    assert_eq!((state.head, state.stashes.len()), (Some(one), 1));
    assert_eq!((place.read("a").as_str(), place.read("b").as_str(), place.read("c").as_str()), ("1", "mine", "mine"));
    assert_eq!(place.git(&["show", "stash@{0}:a"]), "mine");
}

#[test]
fn file_that_is_stashed_and_changed_again_keeps_both_contents() {
    let (place, _, two) = two_commits();
    place.write("a", "first");
    let deployment = id();
    place.update_with(deployment, &two, true).unwrap();
    place.write("a", "second");
    let kept = place.revert(deployment);
    assert_eq!((kept.stashed.len(), place.read("a").as_str()), (1, "first"));
    let state = place.state();
    assert!(state.stashes.len() == 1 && state.stashes[0].contains("changed during the deployment"), "{:?}", state.stashes);
    assert_eq!(place.git(&["show", "stash@{0}:a"]), "second");
}

#[test]
fn staged_content_that_differs_from_the_file_stays_in_the_stash() {
    let (place, _, two) = two_commits();
    place.write("a", "staged");
    place.git(&["add", "a"]);
    place.write("a", "mine");
    let deployment = id();
    place.update_with(deployment, &two, true).unwrap();
    let kept = place.revert(deployment);
    assert_eq!((kept.stashed.len(), place.read("a").as_str()), (1, "mine"));
    assert_eq!(place.git(&["show", "stash@{0}^2:a"]), "staged");
}

/// Returns a checkout whose files a person changed, and a commit that changes the same files.
fn changed_files() -> (Place, CommitId, CommitId) {
    let place = Place::new();
    let one = place.commit(None, &[("a", false, b"1"), ("b", false, b"1")]);
    place.update(&one).unwrap();
    let two = place.commit(Some(&one), &[("a", false, b"2"), ("b", false, b"2"), ("link", false, b"x"), ("new", false, b"x")]);
    place.write("a", "mine");
    fs::remove_file(place.app.join("b")).unwrap();
    std::os::unix::fs::symlink("a", place.app.join("link")).unwrap();
    place.write("new", "mine");
    (place, one, two)
}

/// Brings the first `count` files back from the newest entry of the stash, as an interrupted git does.
fn bring_back(place: &Place, count: usize) {
    for (name, from) in [("a", "stash@{0}"), ("b", ""), ("link", "stash@{0}^3"), ("new", "stash@{0}^3")].into_iter().take(count) {
        match from {
            "" => fs::remove_file(place.app.join(name)).unwrap(),
            from => drop(place.git(&["restore", "--source", from, "--worktree", "--", name])),
        }
    }
}

fn files_are_those_of_the_person(place: &Place, one: &CommitId, case: &str) {
    assert_eq!((place.read("a").as_str(), place.read("new").as_str()), ("mine", "mine"), "{case}");
    assert!(!place.app.join("b").exists(), "{case}");
    assert_eq!(fs::read_link(place.app.join("link")).unwrap().to_str(), Some("a"), "{case}");
    let state = place.state();
    assert_eq!((state.stashes, state.head.as_ref()), (Vec::new(), Some(one)), "{case}");
}

#[test]
fn interrupted_stash_is_finished_by_the_repeated_update() {
    for left in 0..=4 {
        let (place, one, two) = changed_files();
        let deployment = id();
        place.git(&["stash", "push", "--quiet", "--all", "--message", &update::message(deployment)]);
        bring_back(&place, left);
        fs::write(place.app.join(".git/larder-working"), "").unwrap();
        fs::write(place.app.join(".git/index.lock"), "").unwrap();
        place.update_with(deployment, &two, true).unwrap();
        assert_eq!((place.read("a").as_str(), place.read("b").as_str(), place.read("new").as_str()), ("2", "2", "x"), "{left}");
        assert_eq!(place.revert(deployment), CheckoutRevert::default(), "{left}");
        files_are_those_of_the_person(&place, &one, &left.to_string());
    }
}

#[test]
fn interrupted_restore_is_finished_by_the_repeated_revert() {
    for restored in 0..=4 {
        let (place, one, two) = changed_files();
        let deployment = id();
        place.update_with(deployment, &two, true).unwrap();
        place.git(&["checkout", "--quiet", "-B", "main", one.as_str()]);
        bring_back(&place, restored);
        fs::write(place.app.join(".git/larder-working"), "").unwrap();
        fs::write(place.app.join(".git/refs/stash.lock"), "").unwrap();
        assert_eq!(place.revert(deployment), CheckoutRevert::default(), "{restored}");
        files_are_those_of_the_person(&place, &one, &restored.to_string());
    }
}

#[test]
fn lock_of_a_killed_job_is_removed_at_once_and_the_lock_of_a_person_is_the_reason() {
    let (place, one, two) = two_commits();
    let deployment = id();
    place.update_with(deployment, &two, false).unwrap();
    for lock in ["index.lock", "HEAD.lock", "refs/heads/main.lock", "packed-refs.lock"] {
        fs::write(place.app.join(".git").join(lock), "").unwrap();
    }
    fs::write(place.app.join(".git/larder-working"), "").unwrap();
    let begin = std::time::Instant::now();
    place.revert(deployment);
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert_eq!(place.state().head, Some(one.clone()));
    fs::write(place.app.join(".git/index.lock"), "").unwrap();
    let refused = CheckoutAnswer::Objection(CheckoutObjection::Locked(String::from(".git/index.lock")));
    assert_eq!(place.update(&two), Ok(refused));
    place.revert(id());
    assert!(place.app.join(".git/index.lock").exists() && !place.app.join(".git/larder-working").exists());
    // A lock that a command gives back in time is no reason.
    let lock = place.app.join(".git/index.lock");
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        fs::remove_file(lock).unwrap();
    });
    assert!(matches!(place.update(&two), Ok(CheckoutAnswer::Updated { .. })));
    ending.join().unwrap();
}

#[test]
fn operation_in_progress_is_refused_and_does_not_stop_an_undo() {
    let (place, one, two) = two_commits();
    place.git(&["checkout", "--quiet", "-b", "topic"]);
    place.write("a", "topic");
    place.commit_by_hand();
    place.git(&["checkout", "--quiet", "main"]);
    let deployment = id();
    place.update_with(deployment, &two, false).unwrap();
    assert!(run_fails(&place, &["merge", "--quiet", "topic"]));
    let refused = CheckoutAnswer::Objection(CheckoutObjection::InProgress(String::from("merge")));
    assert_eq!(place.update_with(id(), &one, false), Ok(refused));
    assert!(place.read("a").contains("<<<<<<<"));
    let kept = place.revert(deployment);
    assert_eq!((place.state().head, place.read("a").as_str(), kept.stashed.len()), (Some(one), "1", 1));
    assert!(place.git(&["show", "stash@{0}:a"]).contains("<<<<<<<"));
    assert_eq!(place.git(&["show", "topic:a"]), "topic");
    place.update(&two).unwrap();
    // A conflict without an operation, as after `git stash pop`.
    place.write("a", "mine");
    place.git(&["stash", "push", "--quiet"]);
    place.write("a", "other");
    place.commit_by_hand();
    assert!(run_fails(&place, &["stash", "pop", "--quiet"]));
    assert_eq!(place.update(&two), Ok(CheckoutAnswer::Objection(CheckoutObjection::Unmerged(String::from("a")))));
}

fn run_fails(place: &Place, words: &[&str]) -> bool {
    !program::succeeds(&place.app, words, "work in the checkout").unwrap()
}

#[test]
fn file_that_is_marked_as_unchanged_is_a_conflict() {
    for mark in ["--assume-unchanged", "--skip-worktree"] {
        let (place, _, two) = two_commits();
        place.git(&["update-index", mark, "a", "b"]);
        place.write("a", "mine");
        place.write("b", "mine");
        assert_eq!(conflicts(place.update(&two)), [(String::from("a"), EditKind::Changed)], "{mark}");
        let deployment = id();
        let Ok(CheckoutAnswer::Updated { stashed, .. }) = place.update_with(deployment, &two, true) else { panic!() };
        assert_eq!((stashed.len(), place.read("a").as_str(), place.read("b").as_str()), (1, "2", "mine"), "{mark}");
        place.revert(deployment);
        assert_eq!((place.read("a").as_str(), place.read("b").as_str()), ("mine", "mine"), "{mark}");
    }
}

#[test]
fn settings_of_the_checkout_do_not_lead_elsewhere() {
    let (place, _, two) = two_commits();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("a"), "elsewhere").unwrap();
    place.git(&["config", "core.worktree", elsewhere.path().to_str().unwrap()]);
    place.git(&["config", "core.autocrlf", "true"]);
    place.git(&["config", "diff.orderFile", "missing"]);
    place.git(&["config", "core.safecrlf", "true"]);
    place.write("b", "mine");
    assert!(matches!(place.update(&two), Ok(CheckoutAnswer::Updated { .. })));
    assert_eq!((place.read("a").as_str(), place.read("b").as_str()), ("2", "mine"));
    assert_eq!(fs::read_to_string(elsewhere.path().join("a")).unwrap(), "elsewhere");
}

#[test]
fn failed_first_update_can_be_repeated() {
    let place = Place::new();
    place.write("mine", "mine");
    let one = place.commit(None, &[("a", false, b"1")]);
    let deployment = id();
    place.update_with(deployment, &one, false).unwrap();
    assert_eq!(place.revert(deployment), CheckoutRevert::default());
    let two = place.commit(None, &[("a", false, b"2")]);
    assert!(matches!(place.update(&two), Ok(CheckoutAnswer::Updated { .. })));
    assert_eq!((place.read("a").as_str(), place.read("mine").as_str(), place.state().head), ("2", "mine", Some(two)));
}

#[test]
fn part_of_another_user_is_refused_before_anything_changes() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: the change of an owner needs root");
        return;
    }
    for foreign in ["sub", ".git/refs/heads"] {
        let place = Place::new();
        let one = place.commit(None, &[("a", false, b"1"), ("sub/b", false, b"1")]);
        place.update(&one).unwrap();
        std::os::unix::fs::chown(place.app.join(foreign), Some(12345), None).unwrap();
        let two = place.commit(Some(&one), &[("a", false, b"2"), ("sub/b", false, b"2")]);
        let refused =
            CheckoutAnswer::Objection(CheckoutObjection::Foreign { path: foreign.to_owned(), owner: 12345, expected: 0 });
        assert_eq!(place.update(&two), Ok(refused), "{foreign}");
        assert_eq!((place.read("a").as_str(), place.read("sub/b").as_str(), place.state().head), ("1", "1", Some(one)));
    }
}
