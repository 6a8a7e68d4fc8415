//! File systems of projects (`space: {storage: ext4 | xfs}`): an application that fills its file system gets an error alone, and the file system
//! grows, survives kills, and ends with its project.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    backup::sh,
    harness::{Repo, World, cli::Output, until},
};

/// A world whose projects have file systems of their own. Without root or loop devices, prints `SKIPPED:` and returns `None`.
fn world(kind: &str) -> Option<World> {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        eprintln!("SKIPPED: file systems of projects need root and loop devices");
        return None;
    }
    let program = format!("mkfs.{kind}");
    if !["/usr/sbin", "/sbin"].iter().any(|directory| Path::new(directory).join(&program).is_file()) {
        eprintln!("SKIPPED: {program} is not installed");
        return None;
    }
    World::configured(&format!("space: {{storage: {kind}, limit: 400M, enlarge: auto, ceiling: 640M, ballast: off}}\n"))
}

/// Returns the directory of a project as the keeper sees it. The mounts are only in the keeper's namespace.
fn inside(world: &World, project: &str) -> PathBuf {
    let keeper = world.with(|server| server.keeper());
    let root = world.root().strip_prefix("/").unwrap().to_owned();
    Path::new("/proc").join(keeper.to_string()).join("root").join(root).join("projects").join(project)
}

/// Returns the line of the mount of a project in the keeper's namespace.
fn mount(world: &World, project: &str) -> Option<String> {
    let keeper = world.with(|server| server.keeper());
    let at = world.root().join("projects").join(project);
    let mounts = fs::read_to_string(format!("/proc/{keeper}/mountinfo")).unwrap();
    mounts.lines().find(|line| line.split(' ').nth(4) == at.to_str()).map(str::to_owned)
}

/// Returns the loop devices of the images below the root.
fn devices(world: &World) -> usize {
    let backing = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("loop/backing_file")).ok();
    let all = fs::read_dir("/sys/block").unwrap().flatten().filter_map(backing);
    all.filter(|file| file.starts_with(world.root().to_str().unwrap())).count()
}

/// Returns true if root may enlarge a mounted ext4; some containers take this capability away.
fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() & 1 << 24 != 0
}

fn application_fills_only_its_own_file_system(kind: &str) {
    let Some(world) = world(kind) else { return };
    let (shop, blog) = (Repo::with_media(&world, "shop"), Repo::with_media(&world, "blog"));
    let line = mount(&world, "shop").expect("the project has no file system");
    let options = line.split(' ').nth(5).unwrap();
    assert!(options.contains("nosuid") && options.contains("nodev") && line.contains(&format!(" - {kind} ")), "{line}");
    let full = world.larder(&["run", "shop", "--", "sh", "-c", "dd if=/dev/zero of=/data/media/fill bs=1M"]);
    full.exits(1).says("No space left on device");
    world
        .larder(&["run", "shop", "--", "sh", "-c", "dd if=/dev/zero of=/app/fill bs=1M"])
        .exits(1)
        .says("No space left on device");
    // The other project deploys, and the full application still serves.
    blog.page("version two");
    blog.push().accepted();
    world.serves("blog", "version two");
    world.serves("shop", "version one");
    // The deployment of the full project needs more than the ceiling allows.
    shop.page("version two");
    let push = shop.push();
    push.rejected();
    world.serves("shop", "version one");
    sh(&world, "rm -f /data/media/fill /app/fill; echo kept > /data/media/kept");
    shop.push().accepted();
    world.serves("shop", "version two");
    let report = world.disk("shop");
    assert_eq!(report["method"], kind, "{report}");
    assert!(report["total"].as_u64().unwrap() > 300 << 20 && report["total"].as_u64().unwrap() <= 400 << 20, "{report}");
    // Every kind of files is counted inside of the file system.
    let data = inside(&world, "shop").join("production/data");
    let du = Output::of(Command::new("du").args(["-s", "-B1"]).arg(&data));
    let du: u64 = du.ok().split_whitespace().next().unwrap().parse().unwrap();
    let counted =
        report["environments"][0]["kinds"].as_array().unwrap().iter().find(|kind| kind["kind"] == "data").unwrap().clone();
    assert_eq!(counted["bytes"], du, "{report}");
    assert!(world.larder(&["disk"]).ok().contains("shop has its own file system"));
    world.ssh("alice", &["status"]).says(&format!("shop ({kind})"));

    // The file system grows while it is mounted, and never shrinks.
    world.larder(&["project", "trim", "shop"]).exits(3).says("cannot become smaller while it is mounted");
    let enlarged = world.larder(&["project", "enlarge", "shop", "480M"]);
    shop.page("version three");
    if kind == "ext4" && !has_sys_resource() {
        eprintln!("SKIPPED: the growth of ext4 needs CAP_SYS_RESOURCE");
        enlarged.exits(3).says("cannot enlarge shop").says("Operation not permitted");
        assert!(world.disk("shop")["total"].as_u64().unwrap() <= 400 << 20);
        shop.push().accepted();
    } else {
        enlarged.ok();
        until("the file system has grown", || world.disk("shop")["total"].as_u64().unwrap() > 400 << 20);
        // A deployment that does not fit enlarges the file system up to the ceiling.
        let free = world.disk("shop")["free"].as_u64().unwrap();
        sh(&world, &format!("dd if=/dev/zero of=/data/media/fill bs=1M count={}", (free >> 20).saturating_sub(40)));
        shop.push().accepted().says("The file system of shop is enlarged from");
        sh(&world, "rm /data/media/fill");
    }

    // Restarts, kills and reboots mount the same file system again.
    let before = fs::metadata(inside(&world, "shop")).unwrap().dev();
    assert_ne!(before, fs::metadata(world.root()).unwrap().dev());
    for kill in [false, true] {
        if kill {
            world.kill9_everything();
            world.start(&[]);
        } else {
            world.restart(&[]);
        }
        // An emulated machine is slow: the server opens before the application is running again.
        until("the application is running", || world.get("shop", "/").status == 200);
        world.serves("shop", "version three");
        assert!(mount(&world, "shop").is_some());
        assert_eq!(world.larder(&["run", "shop", "--", "cat", "/data/media/kept"]).ok(), "kept\n");
    }
    world.with(crate::harness::server::Server::kill9_role);
    until("the server is back", || world.get("shop", "/").status == 200);
    world.serves("shop", "version three");
    shop.page("version four");
    shop.push().accepted();
    assert_eq!(devices(&world), 2);

    // A removed project leaves neither its image nor its device.
    world.larder(&["project", "destroy", "shop", "--confirm", "shop"]).ok();
    until("the file system is gone", || devices(&world) == 1 && mount(&world, "shop").is_none());
    assert_eq!(fs::read_dir(world.root().join("keeper/volumes")).unwrap().count(), 1);
    assert!(!world.root().join("projects/shop").exists());
    world.serves("blog", "version two");
    let root = world.root().to_owned();
    world.stop();
    until("no loop device is left", || {
        let backing = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("loop/backing_file")).ok();
        !fs::read_dir("/sys/block").unwrap().flatten().filter_map(backing).any(|file| file.starts_with(root.to_str().unwrap()))
    });
    world.start(&[]);
    world.end();
}

#[test]
fn application_fills_only_its_own_ext4() {
    application_fills_only_its_own_file_system("ext4");
}

#[test]
fn application_fills_only_its_own_xfs() {
    application_fills_only_its_own_file_system("xfs");
}

#[test]
fn damaged_file_system_stops_only_its_project() {
    let Some(world) = world("ext4") else { return };
    let _shop = Repo::with_media(&world, "shop");
    let blog = Repo::with_media(&world, "blog");
    world.stop();
    // The first project has the smallest number. Its super block and the first groups are destroyed.
    let images = fs::read_dir(world.root().join("keeper/volumes")).unwrap().flatten().map(|entry| entry.path());
    let image = images.min().unwrap();
    let file = fs::File::options().write(true).open(&image).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xa5; 100 << 20], 0).unwrap();
    drop(file);
    world.start(&[]);
    world.serves("blog", "version one");
    blog.page("version two");
    blog.push().accepted();
    assert!(mount(&world, "shop").is_none());
    assert_ne!(world.get("shop", "/").status, 200);
    // The project is listed with the reason, also for its users.
    world.larder(&["status"]).says("shop/production").says("unavailable: ").says("e2fsck");
    world.ssh("alice", &["status"]).says("unavailable: ");
    world.larder(&["disk"]).says("shop is not available: ");
    assert_eq!(world.larder(&["--json", "disk", "shop"]).json()["projects"][0]["bytes"], 0);
    world.end();
}

#[test]
fn keeper_serves_while_a_file_system_is_prepared() {
    let Some(world) = world("ext4") else { return };
    let shop = Repo::with_media(&world, "shop");
    // The process that prepares a file system waits for this lock.
    let lock = fs::File::open(world.root().join("keeper/volumes")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let creation = scope.spawn(|| world.larder(&["project", "create", "blog"]));
        until("the preparation has begun", || world.root().join("projects/blog").exists());
        shop.page("version two");
        shop.push().accepted();
        world.serves("shop", "version two");
        assert!(!creation.is_finished() && mount(&world, "blog").is_none());
        drop(lock);
        creation.join().unwrap().ok();
    });
    assert!(mount(&world, "blog").is_some());
    world.end();
}
