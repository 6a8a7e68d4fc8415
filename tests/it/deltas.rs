//! Deltas between two environments, with real workers in their sandboxes.

use std::{
    fs::{self, File},
    path::Path,
    sync::LazyLock,
};

use larder::{
    host::root::{EnvironmentPaths, Root},
    model::{EnvId, Manifest, Mode, ProjectId, ReleaseId},
    release::{
        self, ReleaseError, SigningKey, WorkerContext,
        bundle::{self, BundleJob},
        delta,
        manifest::Head,
        store,
    },
};

use crate::keeper_world::{World, grounds};

/// Returns the context of one of the two environments of the world.
fn context<'a>(world: &'a World, number: u32, paths: &'a EnvironmentPaths) -> WorkerContext<'a> {
    let (project, environment) = (ProjectId(number), EnvId(number + 2));
    // The key signs nothing in these tests, but the context needs a key.
    static SIGNING: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::ephemeral().unwrap());
    let (signing, archive_limit) = (&*SIGNING, u64::MAX);
    WorkerContext { launcher: &world.launcher, project, environment, paths, output: None, threads: 2, signing, archive_limit }
}

fn paths(world: &World, project: &str) -> EnvironmentPaths {
    Root::new(&world.root).environment(&project.parse().unwrap(), &"live".parse().unwrap())
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap()
}

/// Writes the archive and the manifest of a tree to `releases/`, as the step `bundle.archive` does.
fn cook(paths: &EnvironmentPaths, tree: &Path, second: i64) -> Manifest {
    let created = jiff::Timestamp::from_second(second).unwrap();
    let head = Head {
        project: "shop".parse().unwrap(),
        environment: "live".parse().unwrap(),
        release: ReleaseId::new(created),
        commit: "a".repeat(40).parse().unwrap(),
        source: None,
        build: 1,
        tag: None,
        mode: Mode::Cooking,
        buildpacks: vec![],
        processes: vec![],
        created,
    };
    let (archive, manifest) = (open(&paths.archive(head.release)), open(&paths.manifest(head.release)));
    let path = paths.manifest(head.release);
    let places = bundle::BundlePaths { app: tree.into(), source: None, upper: None };
    let job = BundleJob { head, previous: false, threads: 2, limit: u64::MAX, secrets: Default::default() };
    bundle::work(job, &places, &archive, &manifest, None).into_result().unwrap();
    store::read(&path).unwrap()
}

/// Stores a delta and the manifest that the delta contains in the receiving environment. Nothing is installed yet.
fn receive(paths: &EnvironmentPaths, from: &Path, old: &Manifest) -> Manifest {
    let file = File::open(from).unwrap();
    let (base, release) = delta::endpoints(&file).unwrap();
    assert_eq!(base, old.release);
    let manifest = delta::manifest(&file, old.clone()).unwrap();
    fs::copy(from, paths.delta(release)).unwrap();
    fs::write(paths.manifest(release), serde_json::to_vec(&manifest).unwrap()).unwrap();
    manifest
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn delta_installs_a_release_of_another_environment() {
    for ground in grounds() {
        let world = World::new(ground).await;
        let (staging, production) = (paths(&world, "shop"), paths(&world, "other"));
        let (cook_side, serve_side) = (context(&world, 1, &staging), context(&world, 2, &production));
        let work = tempfile::tempdir().unwrap();
        let tree = work.path().join("tree");
        for n in 0..200 {
            fs::create_dir_all(tree.join(format!("d{}", n % 9))).unwrap();
            fs::write(tree.join(format!("d{}/{n}", n % 9)), format!("file {n}\n").repeat(n + 50)).unwrap();
        }
        let old = cook(&staging, &tree, 1000);
        fs::write(tree.join("d1/1"), "file 1, edited\n".repeat(51)).unwrap();
        fs::write(tree.join("new"), "new\n").unwrap();
        fs::remove_file(tree.join("d2/2")).unwrap();
        let new = cook(&staging, &tree, 2000);

        // Both environments have the archive of the first release, and install it. Staging also has the archive of the second release.
        for path in [staging.archive(old.release), staging.manifest(old.release)] {
            fs::copy(&path, production.releases().join(path.file_name().unwrap())).unwrap();
        }
        for side in [&cook_side, &serve_side] {
            release::install(side, old.release, None, None, None).await.unwrap();
        }
        let path = release::make_delta(&cook_side, old.release, new.release).await.unwrap();
        let first = fs::read(&path).unwrap();
        assert!(first.len() < 1000, "{}", first.len());
        let made = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(release::make_delta(&cook_side, old.release, new.release).await.unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), made, "the delta was made twice");
        assert_eq!(names(&staging.deltas()), [format!("{}..{}", old.release, new.release)]);
        // The bytes of a delta do not depend on its sources: the installed trees, the archives, or, if one tree is damaged, the archive
        // instead of this tree.
        release::install(&cook_side, new.release, Some(old.release), None, None).await.unwrap();
        fs::remove_file(staging.tree(new.release).join("d3/3")).unwrap();
        fs::remove_file(&path).unwrap();
        release::make_delta(&cook_side, old.release, new.release).await.unwrap();
        assert!(fs::read(&path).unwrap() == first);
        let unknown = ReleaseId::new(jiff::Timestamp::UNIX_EPOCH);
        assert!(matches!(
            release::make_delta(&cook_side, unknown, new.release).await,
            Err(ReleaseError::Unknown { release, .. }) if release == unknown
        ));

        // Production installs the release into a spare tree, as a deployment does. The spare tree has the id of the new release.
        let told = receive(&production, &path, &old);
        assert!(told.archive.frames.is_empty() && told.tree == new.tree);
        let seal = release::spare(&serve_side, new.release, old.release).await.unwrap().report.fingerprint;
        let installed = release::install(&serve_side, new.release, Some(old.release), seal, None).await.unwrap();
        assert_eq!((installed.report.linked, installed.report.unpacked), (198, 2));
        assert_eq!(release::verify(&production.tree(new.release), &new).unwrap(), []);
        // If a release has no archive, its spare tree is made from its installed tree.
        let spare = release::spare(&serve_side, unknown, new.release).await.unwrap();
        assert_eq!((spare.report.linked, spare.report.unpacked), (200, 0));

        // The archive is rebuilt byte for byte, or nothing changes.
        let edited = production.tree(new.release).join("new");
        let text = fs::read(&edited).unwrap();
        fs::write(&edited, "NEW\n").unwrap();
        let before = names(&production.releases());
        let refused = release::rebuild(&serve_side, new.release).await.unwrap_err().to_string();
        assert!(refused.contains("\"new\" changed"), "{refused}");
        assert_eq!(names(&production.releases()), before);
        fs::write(&edited, text).unwrap();
        let (mut larger, mut otherwise) = (told.clone(), told.clone());
        larger.archive.bytes += 1;
        otherwise.archive.settings += 1;
        for other in [larger, otherwise] {
            fs::write(production.manifest(new.release), serde_json::to_vec(&other).unwrap()).unwrap();
            let refused = release::rebuild(&serve_side, new.release).await.unwrap_err().to_string();
            assert!(refused.contains("the new archive differs from the archive in its manifest"), "{refused}");
            assert_eq!(names(&production.releases()), before);
        }
        fs::write(production.manifest(new.release), serde_json::to_vec(&told).unwrap()).unwrap();
        for _ in 0..2 {
            assert_eq!(release::rebuild(&serve_side, new.release).await.unwrap(), new);
            assert!(!production.delta(new.release).exists());
            assert_eq!(store::read(&production.manifest(new.release)).unwrap(), new);
            assert!(fs::read(production.archive(new.release)).unwrap() == fs::read(staging.archive(new.release)).unwrap());
        }

        // A delta without its base is not used.
        for path in [production.archive(new.release), production.tree(old.release)] {
            if path.is_dir() { fs::remove_dir_all(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
        }
        receive(&production, &path, &old);
        let refused = release::install(&serve_side, new.release, None, None, None).await.unwrap_err();
        assert!(matches!(refused, ReleaseError::Unknown { .. }), "{refused}");
    }
}
