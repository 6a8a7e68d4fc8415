//! Deployments in place of applications that resist: a process that goes on writing, protected files, a very large tree, links out of the
//! tree, an upgrade that hangs, and a disk that fills up during the sync.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use crate::{
    harness::{Repo, World, disk::Disk, in_each_mode, in_one_mode, installed, processes, thorough, until},
    in_place::{IN_PLACE, data, differences_from_the_manifest, shop, tree},
};

in_each_mode!(daemon_of_the_old_release_ends_before_the_sync);
in_one_mode!(
    protected_files_are_refused_with_their_path_and_the_old_release_serves,
    tree_of_many_files_is_replaced,
    links_to_the_system_are_removed_and_never_followed,
    upgrade_that_hangs_ends_at_its_time_limit,
);

fn run(world: &World, script: &str) -> String {
    world.larder(&["run", "shop", "--", "sh", "-ec", script]).ok().to_owned()
}

/// A daemon that ignores the stop signal and has left the session of its parent.
const DAEMON: &str = "#!/bin/sh\n\
    setsid sh -c 'trap \"\" TERM HUP INT; while :; do date >> /app/noise; date >> store/noise; date > /app/index.html; done' &\n\
    exec larder static-server --root .\n";

fn daemon_of_the_old_release_ends_before_the_sync(world: &World) {
    if !world.larder(&["status"]).stdout.contains("in namespaces") {
        return eprintln!("SKIPPED: there are no namespaces here");
    }
    world.project("shop");
    let repo = Repo::new(world, "shop");
    // larder cannot save a file as drift while the file grows.
    let recipe = format!("{IN_PLACE}drift: {{ignore: [/noise, /index.html]}}\n");
    repo.write("Procfile", "web: exec sh start.sh\n").write("start.sh", DAEMON).write("larder.yml", &recipe).page("version one");
    repo.push().accepted();
    until("the daemon writes", || tree(world).join("noise").exists() && data(world).contains_key(Path::new("store/noise")));
    // The upgrade fails after the daemon has ended, so the data is exactly that of the restore point.
    repo.write("larder.yml", format!("{recipe}upgrade: rm store/noise; exit 5\n"));
    repo.write("Procfile", "web: exec larder static-server --root .\n").page("version two");
    repo.push().rejected_with("the release command exited 5");
    assert!(data(world).contains_key(Path::new("store/noise")));
    repo.write("larder.yml", recipe).page("version three");
    repo.push().accepted();
    world.serves("shop", "version three");
    assert_eq!(differences_from_the_manifest(world, &["store"]), Vec::<String>::new());
    let daemons = || {
        processes::of(world.directory()).into_iter().filter(|one| one.arguments.iter().any(|word| word.contains("/app/noise")))
    };
    assert_eq!(daemons().count(), 0, "{:?}", daemons().collect::<Vec<_>>());
    world.is_consistent("shop");
}

/// Removes an attribute from all files of a directory when the test ends, so that the world can be removed.
struct Unprotected<'a>(&'a World);

impl Drop for Unprotected<'_> {
    fn drop(&mut self) {
        let _ = Command::new("chattr").args(["-R", "-f", "-i", "-a"]).arg(self.0.root()).status();
    }
}

fn chattr(flag: &str, path: &Path) -> bool {
    Command::new("chattr").arg(flag).arg(path).output().is_ok_and(|done| done.status.success())
}

fn protected_files_are_refused_with_their_path_and_the_old_release_serves(world: &World) {
    if !rustix::process::geteuid().is_root() || installed("chattr").is_none() {
        return eprintln!("SKIPPED: only root can protect a file");
    }
    let repo = shop(world, "");
    let _unprotected = Unprotected(world);
    run(world, "mkdir -p deep/er; echo more > deep/er/file; mkdir kept; echo more > kept/log");
    let (deep, kept) = (tree(world).join("deep/er/file"), tree(world).join("kept"));
    if !chattr("+i", &deep) {
        return eprintln!("SKIPPED: this file system has no attributes");
    }
    // The tree moves to the archive as it is, and is the base of the next sync but one.
    repo.page("version two");
    repo.push().accepted();
    world.serves("shop", "version two");
    repo.page("version three");
    let push = repo.push();
    push.rejected_with("deep/er/file: the file or directory is immutable");
    push.says("v2 is still live");
    world.serves("shop", "version two");
    world.is_consistent("shop");
    // The failed tree is in the archive, so the next push begins without the protected file.
    repo.push().accepted();
    world.serves("shop", "version three");
    assert_eq!(differences_from_the_manifest(world, &["store"]), Vec::<String>::new());
    world.is_consistent("shop");
    // A directory to which files can only be added, and a protected top directory, which cannot move.
    assert!(!kept.exists() && chattr("+i", &tree(world)));
    repo.page("version four");
    repo.push().accepted();
    repo.page("version five");
    repo.push().rejected_with("the file or directory is immutable");
    world.serves("shop", "version four");
    repo.push().accepted();
    let slot = tree(world).parent().unwrap().to_owned();
    assert!(chattr("+i", &slot));
    repo.page("version six");
    let push = repo.push();
    push.rejected_with("slots/in-place");
    world.serves("shop", "version five");
    assert!(chattr("-i", &slot));
    repo.push().accepted();
    world.serves("shop", "version six");
    world.is_consistent("shop");
}

/// The number of files that the application creates.
fn many() -> u32 {
    if thorough() { 100_000 } else { 1_000 }
}

fn tree_of_many_files_is_replaced(world: &World) {
    let repo = shop(world, "");
    let many = many();
    let create =
        format!("seq {many} | split -l 1 -a 6 - flat-; mkdir -p many/below; seq {many} | (cd many/below; split -l 1 -a 6 - x)");
    run(world, &create);
    repo.page("version two");
    repo.push().accepted();
    // The large tree is the base of this sync.
    repo.page("version three");
    repo.push().accepted();
    assert_eq!(differences_from_the_manifest(world, &["store"]), Vec::<String>::new());
    // A failed deployment brings a large tree back by one rename.
    run(world, &create);
    repo.write("larder.yml", format!("{IN_PLACE}upgrade: exit 4\n")).page("version four");
    repo.push().rejected_with("the release command exited 4");
    world.serves("shop", "version three");
    assert_eq!(fs::read_dir(tree(world).join("many/below")).unwrap().count(), many as usize);
    world.is_consistent("shop");
}

fn links_to_the_system_are_removed_and_never_followed(world: &World) {
    let repo = shop(world, "");
    let names = ["passwd", "group", "hostname", "hosts", "shadow"];
    let state = || {
        names.map(|name| {
            let found = fs::metadata(Path::new("/etc").join(name)).ok();
            found.map(|found| (found.len(), found.modified().unwrap(), std::os::unix::fs::MetadataExt::ctime(&found)))
        })
    };
    let before = state();
    run(
        world,
        "ln -s /etc system; rm index.html; ln -s /etc/passwd index.html; mkdir inner; ln -s ../../../../../../etc inner/up
         ln -s /etc store/system; ln -s /etc/passwd store/passwd; mkdir store/inner; echo one > store/inner/file",
    );
    let stored = data(world);
    let damage = "rm -r store/inner; ln -s /etc store/inner; rm store/passwd; echo mine > store/passwd; exit 6";
    repo.write("larder.yml", format!("{IN_PLACE}upgrade: {damage}\n")).page("version two");
    repo.push().rejected_with("the release command exited 6");
    assert_eq!(data(world), stored);
    // The whole persistent path is a link out of the data.
    run(world, "mv $LARDER_DATA/store $LARDER_DATA/moved; ln -s /etc $LARDER_DATA/store");
    let stored = data(world);
    repo.push().rejected();
    assert_eq!(data(world), stored);
    run(world, "rm $LARDER_DATA/store; mv $LARDER_DATA/moved $LARDER_DATA/store");
    repo.write("larder.yml", IN_PLACE).page("version three");
    repo.push().accepted();
    repo.page("version four");
    repo.push().accepted();
    assert_eq!(differences_from_the_manifest(world, &["store"]), Vec::<String>::new());
    assert_eq!(state(), before);
    world.is_consistent("shop");
}

fn upgrade_that_hangs_ends_at_its_time_limit(world: &World) {
    let repo = shop(world, "");
    run(world, "echo kept > store/kept");
    let stored = data(world);
    let hang = "trap '' TERM; echo damaged > store/kept; while :; do sleep 1; done";
    repo.write("larder.yml", format!("{IN_PLACE}timeouts: {{deploy: 2s}}\nupgrade: \"{hang}\"\n")).page("version two");
    let push = repo.push();
    push.rejected_with("deploy: took longer than 2.0 s").says("the application was interrupted for");
    world.serves("shop", "version one");
    assert_eq!(data(world), stored);
    world.is_consistent("shop");
}

/// The disk holds the files of the release as an export and as an installed tree, and not a third time as the synced directory. The commit and
/// the archive are small, because they are compressed.
#[test]
fn disk_that_fills_up_during_the_sync_brings_the_old_release_back() {
    let Some(disk) = Disk::for_world("ext4", 620) else { return };
    let world = World::on_disk(&disk);
    world.project("shop");
    let clone = tempfile::tempdir().unwrap();
    let repo = Repo::at(&world, "shop", clone.path());
    repo.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", IN_PLACE).page("version one");
    repo.push().accepted();
    run(&world, "echo kept > store/kept; echo handmade > handmade");
    let (stored, live): (BTreeMap<_, _>, _) = (data(&world), repo.live());
    // A file uses the disk except 212 MiB. After two copies of 72 MiB, more than the reserve and less than a third copy is free.
    let free = rustix::fs::statvfs(disk.path()).unwrap();
    let filler = fs::File::create(disk.path().join("filler")).unwrap();
    let (free, usable) = (free.f_bavail * free.f_frsize, 212 << 20);
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, free.saturating_sub(usable)).unwrap();
    repo.write("zeros", vec![0; 72 << 20]).page("version two");
    let push = repo.push();
    push.rejected_with("No space left on device");
    let failed = world.journals("shop").last().unwrap().iter().find(|record| record["event"] == "failed").cloned();
    assert_eq!(failed.unwrap()["step"], "deploy.sync", "{}", push.0);
    world.serves("shop", "version one");
    assert_eq!((data(&world), repo.live()), (stored, live));
    assert_eq!(fs::read_to_string(tree(&world).join("handmade")).unwrap(), "handmade\n");
    world.is_consistent("shop");
    repo.remove("zeros").page("version three");
    repo.push().accepted();
    world.serves("shop", "version three");
    world.end();
}
