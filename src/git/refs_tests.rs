//! Tests of refs, lookups and maintenance with real repositories.

use super::{
    job::{CommitSpec, Expected, GitAnswer, GitFailure, MoveRef, ReleaseRef},
    libgit::open,
    lookup::{log, resolve, tags, tags_of},
    maintenance::gc,
    refs::{init, move_ref, read_refs},
    testing::World,
};
use crate::model::CommitId;

fn change(refname: &str, expected: Expected, new: Option<&CommitId>) -> MoveRef {
    MoveRef { refname: refname.into(), expected, new: new.cloned(), keep: None, forget: Vec::new() }
}

fn release() -> ReleaseRef {
    let release = crate::model::ReleaseId::new(jiff::Timestamp::from_second(1_700_000_000).unwrap());
    ReleaseRef { environment: crate::model::EnvId(3), release }
}

#[test]
fn init_is_idempotent_and_sets_head() {
    let world = World::new();
    let commit = world.commit(&[("a", false, b"1")]);
    init(&world.repository(), &"release".parse().unwrap()).unwrap();
    assert_eq!(world.git(&["symbolic-ref", "HEAD"], b""), "refs/heads/release");
    assert_eq!(world.git(&["cat-file", "-t", commit.as_str()], b""), "commit");
    assert!(!world.repository().join("hooks").join("pre-push.sample").exists());
}

#[test]
fn ref_without_the_expected_value_is_not_moved() {
    let world = World::new();
    let path = world.repository();
    let (one, two) = (world.commit(&[("a", false, b"1")]), world.commit(&[("a", false, b"2")]));
    let main = "refs/heads/main";
    move_ref(&path, &change(main, Expected::Missing, Some(&one))).unwrap();
    // A repeated move, as after a restart, succeeds.
    move_ref(&path, &change(main, Expected::Missing, Some(&one))).unwrap();
    let moved = move_ref(&path, &change(main, Expected::Missing, Some(&two))).unwrap_err();
    assert!(matches!(&moved, GitFailure::Moved { actual: Some(actual), .. } if *actual == one), "{moved}");
    let release = release();
    let keep = MoveRef { keep: Some((release, two.clone())), ..change(main, Expected::At(one.clone()), Some(&two)) };
    move_ref(&path, &keep).unwrap();
    assert_eq!(world.git(&["rev-parse", main, &release.refname()], b""), format!("{two}\n{two}"));
    let GitAnswer::Refs { refs, more } = read_refs(&path, 10).unwrap() else { panic!() };
    assert_eq!((refs.len(), more, refs[0].refname.as_str()), (1, false, main), "larder's own refs are not listed");
    let delete = MoveRef { forget: vec![release], ..change(main, Expected::At(two), None) };
    move_ref(&path, &delete).unwrap();
    move_ref(&path, &delete).unwrap();
    assert_eq!(world.git(&["for-each-ref"], b""), "");
}

#[test]
fn ref_name_like_an_option_or_command_is_only_a_name() {
    let world = World::new();
    let commit = world.commit(&[("a", false, b"1")]);
    for bad in ["HEAD", "main", "refs/heads/a..b", "refs/heads/a b", "refs/heads/a\nb", "refs/heads/a\0b", "-o", "refs/../x"] {
        let error = move_ref(&world.repository(), &change(bad, Expected::Anything, Some(&commit))).unwrap_err();
        assert!(matches!(error, GitFailure::BadName(_)), "{bad:?}: {error}");
    }
    for odd in ["refs/heads/-o", "refs/heads/--upload-pack=x", "refs/heads/$(id)", "refs/heads/a;b", "refs/heads/\u{202e}x"] {
        move_ref(&world.repository(), &change(odd, Expected::Missing, Some(&commit))).unwrap();
        assert_eq!(world.git(&["rev-parse", "--verify", odd], b""), commit.as_str(), "{odd}");
        move_ref(&world.repository(), &change(odd, Expected::At(commit.clone()), None)).unwrap();
    }
    // A ref cannot name a missing object.
    let missing = "b".repeat(40).parse().unwrap();
    let error = move_ref(&world.repository(), &change("refs/heads/x", Expected::Missing, Some(&missing))).unwrap_err();
    assert!(matches!(error, GitFailure::Failed { .. }), "{error}");
}

#[test]
fn resolve_finds_commit_by_branch_tag_digits_and_release() {
    let world = World::new();
    let path = world.repository();
    let commit = world.commit(&[("a", false, b"1")]);
    let release = release();
    let keep = MoveRef { keep: Some((release, commit.clone())), ..change("refs/heads/f/x", Expected::Missing, Some(&commit)) };
    move_ref(&path, &keep).unwrap();
    world.git(&["tag", "-a", "-m", "annotated", "v1", commit.as_str()], b"");
    let text = |text: &str| resolve(&path, &CommitSpec::Text(text.into()));
    for good in ["f/x", "v1", commit.as_str(), commit.short(), &commit.as_str()[..4]] {
        assert_eq!(text(good), Ok(GitAnswer::Commit(commit.clone())), "{good}");
    }
    assert_eq!(resolve(&path, &CommitSpec::Release(release)), Ok(GitAnswer::Commit(commit.clone())));
    assert_eq!(resolve(&path, &CommitSpec::Branch("f/x".parse().unwrap())), Ok(GitAnswer::Commit(commit.clone())));
    for bad in ["f/x~0", "HEAD^{tree}", ":/a", "@{1}", "--all", "", "f/x\n", &"a".repeat(40), "abc", "\u{1b}[2J"] {
        let error = text(bad).unwrap_err();
        assert!(matches!(error, GitFailure::BadName(_) | GitFailure::NotFound(_)), "{bad:?}: {error}");
        assert!(!error.to_string().contains('\u{1b}'));
    }
}

#[test]
fn log_is_limited_and_sanitised() {
    let world = World::new();
    let tree = world.git(&["mktree"], b"");
    let mut ids: Vec<CommitId> = Vec::new();
    for number in 0..60 {
        let message = format!("change {number}\u{1b}[31m\n\nbody");
        let mut args = vec!["commit-tree", tree.as_str(), "-m", message.as_str()];
        if let Some(parent) = ids.last() {
            args.extend(["-p", parent.as_str()]);
        }
        let id = world.git(&args, b"").parse().unwrap();
        ids.push(id);
    }
    let GitAnswer::Log { entries, more } = log(&world.repository(), Some(&ids[56]), &ids[59], 100, None).unwrap() else {
        panic!()
    };
    let subjects: Vec<&str> = entries.iter().map(|entry| entry.subject.as_str()).collect();
    assert_eq!((subjects, more), (vec!["change 59", "change 58", "change 57"], false));
    let GitAnswer::Log { entries, more } = log(&world.repository(), None, &ids[59], 100, None).unwrap() else { panic!() };
    assert_eq!((entries.len(), more), (50, true));
}

#[test]
fn log_of_a_push_in_progress_reads_its_quarantine_only() {
    let world = World::new();
    let tree = world.git(&["mktree"], b"");
    let live: CommitId = world.commit_tree(&tree);
    let pushed: CommitId = world.git(&["commit-tree", &tree, "-p", live.as_str(), "-m", "pushed"], b"").parse().unwrap();
    let objects = world.repository().join("objects");
    let (name, object) = ("tmp_objdir-incoming-Ab12", pushed.as_str().split_at(2));
    let inside = objects.join(name).join(object.0);
    std::fs::create_dir_all(&inside).unwrap();
    std::fs::rename(objects.join(object.0).join(object.1), inside.join(object.1)).unwrap();
    let read = |quarantine| log(&world.repository(), Some(&live), &pushed, 20, quarantine);
    let GitAnswer::Log { entries, more } = read(Some(name)).unwrap() else { panic!() };
    let subjects: Vec<&str> = entries.iter().map(|entry| entry.subject.as_str()).collect();
    assert_eq!((subjects, more), (vec!["pushed"], false));
    for quarantine in [None, Some("pack"), Some("../objects/tmp_objdir-incoming-Ab12"), Some("tmp_objdir-incoming-Cd34")] {
        assert!(read(quarantine).is_err(), "{quarantine:?}");
    }
}

#[test]
fn release_ref_of_another_environment_is_kept() {
    let world = World::new();
    let (path, one) = (world.repository(), world.commit(&[("a", false, b"1")]));
    let (staging, production) = (release(), ReleaseRef { environment: crate::model::EnvId(4), ..release() });
    for kept in [staging, production] {
        let keep = MoveRef { keep: Some((kept, one.clone())), ..change("refs/heads/main", Expected::Anything, Some(&one)) };
        move_ref(&path, &keep).unwrap();
    }
    let forget = MoveRef { forget: vec![production], ..change("refs/heads/main", Expected::Anything, Some(&one)) };
    move_ref(&path, &forget).unwrap();
    assert_eq!(resolve(&path, &CommitSpec::Release(staging)), Ok(GitAnswer::Commit(one)));
    assert!(resolve(&path, &CommitSpec::Release(production)).is_err());
}

#[test]
fn gc_keeps_objects_of_releases() {
    let world = World::new();
    let path = world.repository();
    let commit = world.commit(&[("a", false, b"1")]);
    let release = release();
    let keep = MoveRef { keep: Some((release, commit.clone())), ..change("refs/heads/main", Expected::Missing, Some(&commit)) };
    move_ref(&path, &keep).unwrap();
    move_ref(&path, &change("refs/heads/main", Expected::At(commit.clone()), None)).unwrap();
    gc(&path).unwrap();
    world.git(&["prune", "--expire=now"], b"");
    assert_eq!(resolve(&path, &CommitSpec::Release(release)), Ok(GitAnswer::Commit(commit)));
}

#[test]
fn lightweight_or_annotated_tag_is_listed_with_its_commit() {
    let world = World::new();
    let (one, two) = (world.commit(&[("a", false, b"1")]), world.commit(&[("a", false, b"2")]));
    world.git(&["tag", "v1.0.0", one.as_str()], b"");
    let who = ["-c", "user.name=A", "-c", "user.email=a@example.com"];
    world.git(&[&who[..], &["tag", "--annotate", "--message", "x", "shop/v2", two.as_str()]].concat(), b"");
    world.git(&["tag", "tree", &format!("{one}^{{tree}}")], b"");
    let GitAnswer::Refs { refs, more } = tags(&world.repository()).unwrap() else { panic!() };
    let found: Vec<_> = refs.iter().map(|entry| (entry.refname.as_str(), &entry.id)).collect();
    assert_eq!((found, more), (vec![("shop/v2", &two), ("v1.0.0", &one)], false));

    let repository = open(&world.repository()).unwrap();
    assert_eq!(tags_of(&repository, &two, &[]), ["shop/v2"]);
    // The push contains the new tag `v3`, moves `v1.0.0` to `two`, and contains a tag of a missing object.
    let object: CommitId = world.git(&["rev-parse", "refs/tags/shop/v2"], b"").parse().unwrap();
    let coming =
        [("v3".to_owned(), object), ("v1.0.0".to_owned(), two.clone()), ("lost".to_owned(), "b".repeat(40).parse().unwrap())];
    assert_eq!(tags_of(&repository, &two, &coming), ["shop/v2", "v3", "v1.0.0"]);
    assert_eq!(tags_of(&repository, &one, &coming), Vec::<String>::new());
}
