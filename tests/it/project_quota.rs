//! Project quotas of the kernel: an application that fills its quota gets an error alone, and cannot leave the quota. These tests need a
//! temporary directory on ext4 or XFS with `prjquota`; `tests/vm/run` has one.

use std::{fs, path::Path, process::Command};

use crate::{
    backup::sh,
    harness::{Repo, World, cli::Output, until},
};

/// A world on a file system with project quotas. Without root or quotas, prints `SKIPPED:` and returns `None`.
fn world() -> Option<World> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: project quotas need root");
        return None;
    }
    let directory = std::env::temp_dir();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = |line: &&str| line.split(' ').nth(4).is_some_and(|at| directory.starts_with(at));
    let mount = mounts.lines().filter(below).max_by_key(|line| line.split(' ').nth(4).map(str::len)).unwrap();
    if !mount.split([' ', ',']).any(|option| option == "prjquota") {
        eprintln!("SKIPPED: {} is not on a file system with project quotas; use tests/vm/run", directory.display());
        return None;
    }
    World::configured("space: {limit: 300M, enlarge: auto, ceiling: 400M, ballast: off}\n")
}

fn number(report: &serde_json::Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("no {key} in {report}"))
}

/// Fills a directory of `shop` with one file of at most `mib` MiB. Returns true if the quota ended the write.
fn fill(world: &World, path: &str, mib: u64) -> bool {
    let output = world.larder(&["run", "shop", "--", "sh", "-c", &format!("dd if=/dev/zero of={path} bs=1M count={mib} 2>&1")]);
    // The kernel returns ENOSPC on XFS, and EDQUOT on ext4.
    let refused = ["No space left on device", "Disk quota exceeded"].iter().any(|error| output.stdout.contains(error));
    assert_eq!(output.status, i32::from(refused), "{output}");
    refused
}

/// Compares the count of the kernel with `du`. Both count every file below the directory of the project.
fn kernel_and_du_agree(world: &World) {
    until("the kernel and du agree", || {
        let du = Output::of(Command::new("du").args(["-s", "-B1"]).arg(world.root().join("projects/shop")));
        let du: u64 = du.ok().split_whitespace().next().unwrap().parse().unwrap();
        let counted = number(&world.disk("shop"), "counted");
        eprintln!("the kernel counts {counted} bytes, du {du} bytes");
        counted == du
    });
}

#[test]
fn application_fills_only_its_own_project_quota() {
    let Some(world) = world() else { return };
    let (shop, blog) = (Repo::with_media(&world, "shop"), Repo::with_media(&world, "blog"));
    let report = world.disk("shop");
    assert_eq!((&report["method"], number(&report, "total")), (&"quota".into(), 300 << 20), "{report}");
    world.ssh("alice", &["status"]).says("the kernel enforces the limits of shop (quota), blog (quota)");
    assert!(fill(&world, "/data/media/fill", 1000) && fill(&world, "/app/fill", 1000));
    assert!(number(&world.disk("shop"), "free") < 1 << 20);
    // The other project deploys, and the full application still serves.
    blog.page("version two");
    blog.push().accepted();
    world.serves("blog", "version two");
    world.serves("shop", "version one");
    // The deployment of a project that is nearly full needs the reserve of 64 MiB, which the ceiling allows.
    sh(&world, "rm -f /app/fill /data/media/fill");
    let free = number(&world.disk("shop"), "free") >> 20;
    assert!(!fill(&world, "/data/media/fill", free - 30));
    shop.page("version two");
    shop.push().accepted().says("The quota of shop is enlarged from 300 MiB");
    world.serves("shop", "version two");
    assert!(number(&world.disk("shop"), "total") > 300 << 20);
    let free = number(&world.disk("shop"), "free") >> 20;
    assert!(!fill(&world, "/data/media/more", free - 30));
    shop.page("version three");
    // The ceiling does not allow the reserve any more.
    let push = shop.push();
    push.rejected();
    push.says("the space of the project is nearly used up").says("expected at least 64 MiB");
    sh(&world, "rm -f /data/media/fill /data/media/more");
    shop.push().accepted();
    world.serves("shop", "version three");
    kernel_and_du_agree(&world);
    let output = world.larder(&["disk"]);
    assert!(output.ok().contains("shop has a quota of"), "{}", output.ok());
    world.end();
}

#[test]
fn project_quota_follows_enlarge_and_trim_and_survives_kills() {
    let Some(world) = world() else { return };
    let shop = Repo::with_media(&world, "shop");
    sh(&world, "head -c 30000000 /dev/urandom > /data/media/kept");
    world.larder(&["project", "trim", "shop", "20M"]).exits(3).says("cannot trim shop to 20 MiB: shop uses");
    world.larder(&["project", "trim", "shop", "120M"]).ok();
    assert!(fill(&world, "/data/media/fill", 100));
    world.larder(&["project", "enlarge", "shop", "350M"]).ok();
    assert!(!fill(&world, "/data/media/fill", 100));
    assert_eq!(number(&world.disk("shop"), "total"), 350 << 20);
    sh(&world, "rm /data/media/fill");
    // Restore points, rollbacks and deployments rename and link only files of the same project number.
    world.larder(&["backup", "take", "shop"]).ok();
    shop.page("version two");
    shop.push().accepted();
    world.larder(&["backup", "restore", "shop", "latest", "--yes"]).ok();
    world.larder(&["rollback", "shop"]).ok();
    world.serves("shop", "version one");
    for kill in [false, true] {
        if kill {
            world.kill9_everything();
            world.start(&[]);
        } else {
            world.restart(&[]);
        }
        // The emulated machine is slow: the server opens before the application is running again.
        until("the application is running", || world.get("shop", "/").status == 200);
        world.serves("shop", "version one");
        assert_eq!(number(&world.disk("shop"), "total"), 350 << 20);
        assert!(fill(&world, "/data/media/fill", 1000));
        sh(&world, "rm /data/media/fill");
    }
    world.larder(&["restart", "shop"]).ok();
    kernel_and_du_agree(&world);
    world.end();
}

#[test]
fn application_cannot_leave_its_project_quota() {
    let Some(world) = world() else { return };
    let _shop = Repo::with_media(&world, "shop");
    if !Path::new("/usr/bin/chattr").exists() {
        return eprintln!("SKIPPED: chattr is not installed");
    }
    sh(&world, "mkdir /data/media/own; echo x > /data/media/own/file");
    for change in ["-p 0 /data/media/own/file", "-P /data/media/own"] {
        let left = world.larder(&["run", "shop", "--", "sh", "-c", &format!("chattr {change} 2>&1")]);
        left.exits(1).says("Operation not permitted");
    }
    world.end();
}

#[test]
fn removed_project_leaves_no_quota_to_the_next_project() {
    let Some(world) = world() else { return };
    let _shop = Repo::with_media(&world, "shop");
    assert!(fill(&world, "/data/media/fill", 1000));
    world.larder(&["project", "destroy", "shop", "--confirm", "shop"]).ok();
    let shop = Repo::with_media(&world, "shop");
    assert!(number(&world.disk("shop"), "counted") < 50 << 20);
    assert!(!fill(&world, "/data/media/fill", 100));
    shop.page("version two");
    shop.push().accepted();
    world.serves("shop", "version two");
    world.end();
}
