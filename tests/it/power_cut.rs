//! Cuts of the power during pushes, held upgrades, captures and restores, on ext4 and xfs. After the file system has replayed its log, the
//! server recovers by itself, and everything that was acknowledged is there.
//!
//! By default, the power is cut once on each file system. `LARDER_TEST_CUTS` sets the number of cuts; `LARDER_TEST_SEED` repeats a run.

use std::{thread, time::Duration};

use crate::{
    backup::{data, id, sh, walk},
    harness::{Repo, World, disk::Disk, installed, thorough},
};

const RECIPE: &str = "data: [media/]\nupgrade: echo up >> media/log\n";

fn cuts() -> u64 {
    let set = std::env::var("LARDER_TEST_CUTS").ok().and_then(|text| text.parse().ok());
    set.unwrap_or(if thorough() { 24 } else { 1 })
}

/// Returns pseudo-random numbers (splitmix64).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = *state;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn power_is_cut_at_random_instants(kind: &str) {
    if !["/usr/sbin/xfs_io", "/usr/bin/xfs_io"].iter().any(|path| std::path::Path::new(path).exists()) {
        installed("xfs_io");
        return;
    }
    let Some(disk) = Disk::for_world(kind, 620) else { return };
    let seed = std::env::var("LARDER_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(11);
    let mut state = seed;
    let world = World::on_disk(&disk);
    world.project("shop");
    // The clone of the developer is on another disk, which keeps its power.
    let clone = tempfile::tempdir().unwrap();
    let repo = Repo::at(&world, "shop", clone.path());
    repo.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", RECIPE);
    repo.page("version 1");
    repo.push().accepted();
    sh(&world, "for i in $(seq 30); do echo old > media/$i; done");
    let point = world.larder(&["--json", "backup", "take", "shop"]).json();
    let (mut version, mut acknowledged) = (1, 0);
    for cut in 0..cuts() {
        sh(&world, &format!("echo {cut} > media/cut"));
        rustix::fs::syncfs(std::fs::File::open(disk.path()).unwrap()).unwrap();
        let old = walk(&data(&world).join("media"));
        let (what, delay) = (random(&mut state) % 3, Duration::from_millis(random(&mut state) % 1500));
        let commit = if what == 0 { repo.page(&format!("version {}", version + 1)) } else { repo.head() };
        let words: &[&str] = match what {
            1 => &["--json", "backup", "take", "shop"],
            _ => &["backup", "restore", "shop", id(&point), "--yes"],
        };
        let said = thread::scope(|scope| {
            let acting = scope.spawn(|| if what == 0 { repo.push().0 } else { world.larder(words) });
            thread::sleep(delay);
            disk.cut_power();
            world.kill9_everything();
            acting.join().unwrap()
        });
        disk.power_on();
        world.start(&[]);
        crate::harness::until("every deployment has its end", || world.has_ended("shop"));
        world.is_consistent("shop");
        let now = walk(&data(&world).join("media"));
        let is_done = said.status == 0;
        acknowledged += u32::from(is_done);
        match what {
            0 => {
                let is_live = repo.live().as_ref() == Some(&commit);
                assert!(is_live || !is_done, "cut {cut} (seed {seed}): an acknowledged push is lost: {said}");
                version += u32::from(is_live);
                if !is_live {
                    crate::backup::same(&now, &old);
                    repo.git(&["reset", "--quiet", "--hard", "HEAD~1"]).ok();
                }
                world.serves("shop", &format!("version {version}"));
            }
            1 => {
                crate::backup::same(&now, &old);
                if is_done {
                    world.larder(&["backup", "show", "shop", id(&said.json())]).ok();
                }
            }
            _ => {
                let is_restored = !now.contains_key(std::path::Path::new("cut"));
                assert!(is_restored || !is_done, "cut {cut} (seed {seed}): an acknowledged restore is lost: {said}");
                if !is_restored {
                    crate::backup::same(&now, &old);
                }
            }
        }
    }
    eprintln!("power cuts on {kind}: {}, of which {acknowledged} came after the acknowledgement (seed {seed})", cuts());
    world.end();
}

#[test]
fn power_cut_on_ext4_keeps_acknowledged_state() {
    power_is_cut_at_random_instants("ext4");
}

#[test]
fn power_cut_on_xfs_keeps_acknowledged_state() {
    power_is_cut_at_random_instants("xfs");
}
