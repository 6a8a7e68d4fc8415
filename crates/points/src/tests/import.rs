//! Tests of the import of restore points whose parts come from another store.

use std::collections::HashMap;

use super::*;
use crate::{Digest, Entry, PointError, PointParts, VerifyOptions};

fn sources() -> Vec<Source> {
    vec![Source::directory("uploads")]
}

/// Returns a store with the restore point "one", and the contents of its files.
fn filled() -> (Scene, HashMap<Digest, Vec<u8>>) {
    let scene = Scene::new();
    for n in 0..6 {
        scene.write(format!("uploads/{n}"), format!("content {}", n % 4));
    }
    scene.write("uploads/sparse", vec![0; 300_000]);
    scene.capture("one", &sources(), None).unwrap();
    let contents = tree(&scene.base).into_values().map(|node| (Digest::of(&node.content), node.content)).collect();
    (scene, contents)
}

fn parts(scene: &Scene) -> PointParts {
    let parts = PointParts::of(&scene.store.point("one").unwrap()).unwrap();
    PointParts::decode(parts.manifest_bytes, parts.index_bytes).unwrap()
}

fn import(store: &Store, parts: &PointParts, contents: &HashMap<Digest, Vec<u8>>) -> Result<()> {
    store.import(parts, 0, &mut |entry: &Entry, write| match entry.kind {
        Kind::File { digest, .. } => contents[&digest].chunks(100_000).try_for_each(write),
        _ => Ok(()),
    })
}

#[test]
fn imported_point_shares_equal_contents_and_repairs_damaged_contents() {
    let (scene, contents) = filled();
    let other = Scene::new();
    other.write("uploads/old", "content 1");
    other.capture("before", &sources(), None).unwrap();
    let shared = other.stored("before", "uploads/old");
    fs::write(&shared, "CONTENT 1").unwrap();
    import(&other.store, &parts(&scene), &contents).unwrap();
    assert_eq!(other.restored("one"), tree(&scene.base));
    assert_eq!(other.contents().len(), 5, "4 different contents, and zeros");
    other.has_only_used_contents();
    for id in ["one", "before"] {
        assert_eq!(other.store.point(id).unwrap().verify(&VerifyOptions::default()).unwrap().damages, [], "{id}");
    }
    assert!(matches!(import(&other.store, &parts(&scene), &contents), Err(PointError::Exists { .. })));
    assert!(fs::metadata(other.stored("one", "uploads/sparse")).unwrap().blocks() == 0, "zeros are a hole");
}

#[test]
fn import_of_a_point_of_version_1_has_the_version_of_the_store() {
    let (scene, contents) = filled();
    shared::turn_into_version_1(&scene, "one");
    let other = Scene::new();
    import(&other.store, &parts(&scene), &contents).unwrap();
    assert_eq!(other.store.point("one").unwrap().manifest.version, 2);
    assert_eq!(other.restored("one"), tree(&scene.base));
}

#[test]
fn import_of_other_content_is_refused_and_leaves_no_content() {
    let (scene, mut contents) = filled();
    let other = Scene::new();
    let digest = Digest::of(b"content 2");
    for wrong in ["content X", "content", "content 2 and more"] {
        contents.insert(digest, wrong.into());
        let refused = import(&other.store, &parts(&scene), &contents);
        assert!(matches!(&refused, Err(PointError::Damaged { id, .. }) if id == "one"), "{wrong}: {refused:?}");
        assert!(other.store.list().unwrap().is_empty() && other.contents().is_empty());
        assert_eq!(other.store.sweep().unwrap(), Vec::<String>::new());
    }
}
