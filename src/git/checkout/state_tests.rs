//! Tests of checkouts in unusual states: a checkout that was killed in the middle, a damaged repository, and files that are no files of a commit.

use std::fs;

use jiff::Timestamp;

use super::{
    program::run,
    tests::{Place, conflicts},
    *,
};

fn id() -> DeploymentId {
    DeploymentId::new(Timestamp::now())
}

/// A file with its content in the commits `one` and `two`.
type TwoContents = (&'static str, Option<&'static str>, Option<&'static str>);

/// The files of the commits `one` and `two`. git writes them in this order.
const FILES: [TwoContents; 5] = [
    ("a", Some("1"), Some("two two")),
    ("gone", Some("1"), None),
    ("sub/b", Some("1"), Some("two two")),
    ("sub/new", None, Some("two two")),
    ("z", Some("one one"), Some("2")),
];

fn commits(place: &Place) -> (CommitId, CommitId) {
    let of = |which: fn(&TwoContents) -> Option<&'static str>| {
        let files = FILES.iter().filter_map(move |file| Some((file.0, false, which(file)?.as_bytes())));
        files.chain([("other", false, b"1".as_slice())]).collect::<Vec<_>>()
    };
    let one = place.commit(None, &of(|file| file.1));
    let two = place.commit(Some(&one), &of(|file| file.2));
    (one, two)
}

/// Leaves the checkout as a git that was killed while it replaced the file `at`: `HEAD` names `head`, and `at` is missing or has a part of its content.
fn kill(place: &Place, head: &CommitId, at: usize, is_back: bool, is_missing: bool) {
    place.git(&["update-ref", "refs/heads/main", head.as_str()]);
    place.git(&["read-tree", head.as_str()]);
    for (number, (name, one, two)) in FILES.into_iter().enumerate() {
        let (old, new) = if is_back { (two, one) } else { (one, two) };
        let content = match number.cmp(&at) {
            std::cmp::Ordering::Less => new,
            std::cmp::Ordering::Equal if is_missing => None,
            std::cmp::Ordering::Equal => new.map(|new| &new[..new.len() / 2]),
            std::cmp::Ordering::Greater => old,
        };
        match content {
            Some(content) => place.write(name, content),
            None => drop(fs::remove_file(place.app.join(name))),
        }
    }
    fs::write(place.app.join(".git/larder-working"), "checkout").unwrap();
    fs::write(place.app.join(".git/index.lock"), "").unwrap();
}

fn has_files_of(place: &Place, is_two: bool, case: &str) {
    for (name, one, two) in FILES {
        let found = fs::read_to_string(place.app.join(name)).ok();
        assert_eq!(found.as_deref(), if is_two { two } else { one }, "{name}: {case}");
    }
    assert_eq!(place.edits(), [(String::from("other"), EditKind::Changed)], "{case}");
    assert_eq!((place.read("other").as_str(), place.state().stashes), ("mine", Vec::new()), "{case}");
}

#[test]
fn checkout_that_was_killed_in_the_middle_is_finished_or_reverted() {
    for at in 0..=FILES.len() {
        for is_missing in [false, true] {
            for is_reverted in [false, true] {
                let case = format!("killed at {at}, missing: {is_missing}, reverted: {is_reverted}");
                let place = Place::new();
                let (one, two) = commits(&place);
                place.update(&one).unwrap();
                place.write("other", "mine");
                let deployment = id();
                place.update_with(deployment, &two, false).unwrap();
                kill(&place, &one, at, false, is_missing);
                if is_reverted {
                    assert_eq!(place.revert(deployment), CheckoutRevert::default(), "{case}");
                } else {
                    let report = place.update_with(deployment, &two, false);
                    assert!(matches!(report, Ok(CheckoutAnswer::Updated { .. })), "{report:?}: {case}");
                }
                has_files_of(&place, !is_reverted, &case);
            }
        }
    }
}

#[test]
fn revert_that_was_killed_in_the_middle_is_finished() {
    for at in 0..=FILES.len() {
        let place = Place::new();
        let (one, two) = commits(&place);
        place.update(&one).unwrap();
        place.write("other", "mine");
        let deployment = id();
        place.update_with(deployment, &two, false).unwrap();
        kill(&place, &two, at, true, false);
        assert_eq!(place.revert(deployment), CheckoutRevert::default(), "{at}");
        has_files_of(&place, false, &at.to_string());
    }
}

#[test]
fn first_checkout_that_was_killed_is_finished_by_the_next_push() {
    let place = Place::new();
    let (one, two) = commits(&place);
    place.write("other", "1");
    place.update(&one).unwrap();
    place.write("a", "");
    fs::remove_file(place.app.join("z")).unwrap();
    fs::remove_file(place.app.join(".git/index")).unwrap();
    place.git(&["update-ref", "-d", "refs/heads/main"]);
    fs::write(place.app.join(".git/larder-working"), "checkout").unwrap();
    let report = place.update(&two);
    assert!(matches!(report, Ok(CheckoutAnswer::Updated { .. })), "{report:?}");
    assert_eq!((place.read("a").as_str(), place.read("z").as_str(), place.edits()), ("two two", "2", Vec::new()));
}

#[test]
fn directory_becomes_a_file_and_a_file_becomes_a_directory() {
    let place = Place::new();
    let one = place.commit(None, &[("deep/in/a", false, b"1"), ("flat", false, b"1")]);
    place.update(&one).unwrap();
    let two = place.commit(Some(&one), &[("deep", false, b"2"), ("flat/in/a", false, b"2")]);
    let deployment = id();
    let report = place.update_with(deployment, &two, false);
    assert!(matches!(report, Ok(CheckoutAnswer::Updated { .. })), "{report:?}");
    assert_eq!((place.read("deep").as_str(), place.read("flat/in/a").as_str()), ("2", "2"));
    place.revert(deployment);
    assert_eq!((place.read("deep/in/a").as_str(), place.read("flat").as_str()), ("1", "1"));
    // A file that git ignores is in the way.
    place.write(".git/info/exclude", "*.log\n");
    place.write("deep/in/my.log", "mine");
    assert_eq!(conflicts(place.update(&two)), [(String::from("deep/in/my.log"), EditKind::Added)]);
    let deployment = id();
    let Ok(CheckoutAnswer::Updated { stashed, .. }) = place.update_with(deployment, &two, true) else { panic!() };
    assert_eq!((stashed.len(), place.read("deep").as_str()), (1, "2"));
    assert_eq!(place.revert(deployment), CheckoutRevert::default());
    assert_eq!((place.read("deep/in/my.log").as_str(), place.read("deep/in/a").as_str()), ("mine", "1"));
}

#[test]
fn unusual_names_are_kept_and_stashed() {
    let names = ["-dash", ":colon", "*", "two\nlines", " space", "ümläut", ":(top)x"];
    let place = Place::new();
    let one = place.commit(None, &[("a", false, b"1")]);
    place.update(&one).unwrap();
    for name in names {
        place.write(name, "mine");
    }
    let entries: Vec<_> = names.iter().map(|name| ("100644", name.as_bytes(), place.world.blob(b"theirs"))).collect();
    let mut entries: Vec<_> = entries.iter().map(|(mode, name, blob)| (*mode, *name, blob.as_str())).collect();
    entries.sort_by_key(|entry| entry.1);
    let two = place.world.commit_tree(&place.world.tree_object(&entries));
    assert_eq!(conflicts(place.update(&two)).len(), names.len());
    let deployment = id();
    let Ok(CheckoutAnswer::Updated { stashed, .. }) = place.update_with(deployment, &two, true) else { panic!() };
    assert_eq!(stashed.len(), names.len());
    for name in names {
        assert_eq!(place.read(name), "theirs", "{name}");
    }
    assert_eq!(place.revert(deployment), CheckoutRevert::default());
    for name in names {
        assert_eq!(place.read(name), "mine", "{name}");
    }
}

#[test]
fn results_of_builds_are_no_changes_by_hand() {
    let place = Place::new();
    let one = place.commit(None, &[("a", false, b"1"), ("node_modules/kept", false, b"1")]);
    place.update(&one).unwrap();
    for result in [".venv/bin/python", ".profile.d/python.sh", "node_modules/b", "sub/__pycache__/c"] {
        place.write(result, "built");
    }
    place.write("new", "mine");
    place.write("node_modules/kept", "mine");
    let expected = [("new", EditKind::Added), ("node_modules/kept", EditKind::Changed)];
    assert_eq!(place.edits(), expected.map(|(path, edit)| (path.to_owned(), edit)));
    // The patterns are added once, after those of a person.
    place.write(".git/info/exclude", "mine.log");
    place.update(&one).unwrap();
    place.update(&one).unwrap();
    let text = place.read(".git/info/exclude");
    assert!(text.starts_with("mine.log\n#") && text.matches("/.venv/").count() == 1, "{text}");
}

#[test]
fn damaged_index_is_replaced() {
    let place = Place::new();
    let one = place.commit(None, &[("a", false, b"1"), ("b", false, b"1")]);
    place.update(&one).unwrap();
    place.write("b", "mine");
    fs::write(place.app.join(".git/index"), "damaged").unwrap();
    let two = place.commit(Some(&one), &[("a", false, b"2"), ("b", false, b"1")]);
    let deployment = id();
    let report = place.update_with(deployment, &two, false);
    assert!(matches!(report, Ok(CheckoutAnswer::Updated { .. })), "{report:?}");
    assert_eq!((place.read("a").as_str(), place.edits()), ("2", vec![(String::from("b"), EditKind::Changed)]));
    assert_eq!(place.read(".git/index.damaged"), "damaged");
    fs::write(place.app.join(".git/index"), "damaged").unwrap();
    place.revert(deployment);
    assert_eq!((place.read("a").as_str(), place.read("b").as_str()), ("1", "mine"));
}

#[test]
fn repository_that_is_no_directory_is_refused() {
    let place = Place::new();
    let one = place.commit(None, &[("a", false, b"1")]);
    place.update(&one).unwrap();
    fs::rename(place.app.join(".git"), place.app.join("elsewhere")).unwrap();
    fs::write(place.app.join(".git"), "gitdir: elsewhere\n").unwrap();
    assert_eq!(place.update(&one), Ok(CheckoutAnswer::Objection(CheckoutObjection::NoDirectory)));
    fs::remove_file(place.app.join(".git")).unwrap();
    std::os::unix::fs::symlink("elsewhere", place.app.join(".git")).unwrap();
    assert_eq!(place.update(&one), Ok(CheckoutAnswer::Objection(CheckoutObjection::NoDirectory)));
    assert_eq!(files::drop_all(&place.app), Ok(CheckoutAnswer::Objection(CheckoutObjection::NoDirectory)));
}

#[test]
fn repository_inside_of_the_checkout_is_not_committed() {
    for is_staged in [false, true] {
        let place = Place::new();
        let one = place.commit(None, &[("a", false, b"1")]);
        place.update(&one).unwrap();
        place.write("vendor/lib/x", "mine");
        let inner = place.app.join("vendor/lib");
        run(&place.app, &["init", "--quiet", "vendor/lib"], "make a repository").unwrap();
        for words in [["add", "x", "--"].as_slice(), &["commit", "--quiet", "-m", "x"]] {
            assert!(crate::git::testing::git(&inner, words, b"").status.success());
        }
        if is_staged {
            place.git(&["add", "--force", "vendor/lib"]);
        }
        let refused = CheckoutAnswer::Objection(CheckoutObjection::Nested(String::from("vendor/lib")));
        assert_eq!(files::commit_all(&place.app, "by hand", "ann", &"main".parse().unwrap()), Ok(refused));
        assert_eq!((place.state().head, place.read("vendor/lib/x").as_str()), (Some(one), "mine"));
    }
}
