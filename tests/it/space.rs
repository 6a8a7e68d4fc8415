//! Tests of disk space: its measurement, limits of projects, and the checks before a deployment.

use std::{path::Path, process::Command};

use crate::{
    backup::{sh, shop, take},
    harness::{Repo, World, cli::Output, in_each_mode, in_one_mode, until},
};

in_each_mode!(disk_shows_the_space_that_du_counts);
in_one_mode!(disk_shows_only_visible_projects_and_a_forecast, deployment_over_the_limit_is_refused_with_figures);

/// Returns the allocated bytes of directories, as `du` counts them: an inode with several names counts once.
fn du(paths: &[std::path::PathBuf]) -> u64 {
    let output = Output::of(Command::new("du").args(["-s", "-c", "-B1", "--"]).args(paths));
    let total = output.ok().lines().last().unwrap();
    total.split_whitespace().next().unwrap().parse().unwrap()
}

/// Returns the bytes of a kind in the production environment of `shop`; zero without such files.
fn bytes(report: &serde_json::Value, kind: &str) -> u64 {
    let kinds = report["projects"][0]["environments"][0]["kinds"].as_array().unwrap();
    kinds.iter().find(|found| found["kind"] == kind).map_or(0, |found| found["bytes"].as_u64().unwrap())
}

fn disk_shows_the_space_that_du_counts(world: &World) {
    let repo = shop(world);
    sh(world, "head -c 3000000 /dev/urandom > /data/media/a; ln /data/media/a /data/media/b; truncate -s 1G /data/media/sparse");
    sh(world, "head -c 2000000 /dev/urandom > /app/scratch");
    take(world);
    take(world);
    repo.page("version two");
    repo.push().accepted();
    let environment = world.environment("shop");
    let below = |names: &[&str]| -> Vec<_> { names.iter().map(|name| environment.join(name)).collect() };
    let kinds = [
        ("data", below(&["data"])),
        ("points", below(&["archives/points"])),
        ("trees", below(&["deploy"])),
        ("releases", below(&["releases"])),
        ("cache", below(&["cache"])),
        ("build", below(&["project", "build/upper"])),
        ("slots", below(&["slots/blue/upper", "slots/green/upper", "slots/in-place/upper"])),
        ("git", vec![environment.with_file_name("git")]),
    ];
    // Follow-ups of the deployment change files after the verdict.
    until("disk and du agree on every kind", || {
        let report = world.larder(&["--json", "disk", "shop"]).json();
        let differs = kinds.iter().find(|(kind, paths)| bytes(&report, kind) != du(paths));
        let (total, expected) = (report["projects"][0]["bytes"].as_u64().unwrap(), du(&[project(&environment)]));
        // The kernel's directories of an overlay cannot be entered, and logs grow.
        differs.is_none() && total.abs_diff(expected) <= 64 << 10
    });
    let report = world.larder(&["--json", "disk", "shop"]).json();
    assert!(bytes(&report, "data") > 3_000_000 && bytes(&report, "data") < 4_000_000, "{report}");
    let output = world.larder(&["disk"]);
    let page = output.ok();
    assert!(page.contains("restore points") && page.contains("shop uses"), "{page}");
}

fn project(environment: &Path) -> std::path::PathBuf {
    environment.parent().unwrap().to_owned()
}

fn disk_shows_only_visible_projects_and_a_forecast(world: &World) {
    shop(world);
    world.project("blog");
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    world.larder(&["user", "grant", "bob", "blog", "view"]).ok();
    let output = world.ssh("bob", &["disk"]);
    let page = output.ok();
    assert!(page.contains("blog uses") && !page.contains("shop"), "{page}");
    assert!(page.contains("not enough history yet (0 daily totals, expected at least 3)"), "{page}");
    world.ssh("bob", &["disk", "shop"]).exits(4).says("there is no project shop that you may see");
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let day = |ago: i64, used: u64| {
        let day = today.saturating_sub(jiff::Span::new().days(ago));
        serde_json::json!({"day": day.to_string(), "used": used})
    };
    let history = serde_json::json!({"version": 1, "days": [day(2, 1 << 20), day(1, 2 << 20), day(0, 3 << 20)]});
    let file = world.root().join("state/disk.json");
    std::fs::write(&file, history.to_string()).unwrap();
    if let Ok(state) = std::fs::metadata(world.root().join("state")) {
        use std::os::unix::fs::MetadataExt;
        std::os::unix::fs::chown(&file, Some(state.uid()), Some(state.gid())).unwrap();
    }
    let report = world.larder(&["--json", "disk", "blog"]).json();
    assert_eq!(report["forecast"]["bytes_per_day"], 1 << 20, "{report}");
    let days = report["free"].as_u64().unwrap() >> 20;
    assert_eq!(report["forecast"]["days"], days, "{report}");
    assert!(world.larder(&["disk", "blog"]).ok().contains("at the rate of the last 30 days (1024 KiB per day)"));
}

fn deployment_over_the_limit_is_refused_with_figures(world: &World) {
    let repo = shop(world);
    world.project("blog");
    let report = world.larder(&["--json", "disk", "shop"]).json();
    let used = report["projects"][0]["bytes"].as_u64().unwrap();
    assert!(report["projects"][0]["limit"].is_null() && report["method"] == "accounting", "{report}");
    world.larder(&["project", "trim", "shop", "4K"]).exits(3).says("cannot trim shop to 4096 bytes: shop uses").says("hint:");
    world.larder(&["project", "enlarge", "shop", "4K"]).exits(3).says("shop uses");
    let view = world.larder(&["--json", "project", "trim", "shop"]).json();
    let limit = view["limit"].as_u64().unwrap();
    assert!(limit >= used + (16 << 20) && view["before"].is_null(), "{view}");
    world.larder(&["project", "trim", "shop", "1T"]).exits(3).says("larder project enlarge shop SIZE");
    world.larder(&["project", "enlarge", "shop", "1M"]).exits(3).says("larder project trim shop 1M");
    repo.page("version two");
    repo.push().accepted();
    sh(world, "head -c 40000000 /dev/urandom > /data/media/large");
    repo.page("version three");
    let push = repo.push();
    push.rejected();
    push.says("shop uses").says("of its limit of").says("larder project enlarge shop");
    assert!(world.larder(&["disk", "shop"]).ok().contains("of its limit of"));
    let other = Repo::new(world, "blog");
    other.write("Procfile", "web: exec larder static-server --root .\n").page("the blog");
    other.push().accepted();
    // The limit survives a restart.
    world.restart(&[]);
    repo.push().rejected();
    world.larder(&["project", "enlarge", "shop", "1G"]).ok();
    repo.push().accepted();
    world.ssh("alice", &["status"]).says("checked before each deployment");
}

#[test]
fn limit_is_raised_up_to_the_ceiling_for_a_deployment() {
    let Some(world) = World::configured("space: {limit: 1M, enlarge: auto, ceiling: 60M}\n") else { return };
    world.project("shop");
    let repo = Repo::new(&world, "shop");
    repo.write("Procfile", "web: exec larder static-server --root .\n").write("large", "x".repeat(3 << 20)).page("one");
    let push = repo.push();
    push.accepted();
    push.says("The space limit of shop is raised from 1024 KiB to").says("(ceiling 60 MiB)");
    let report = world.larder(&["--json", "disk", "shop"]).json();
    let limit = report["projects"][0]["limit"].as_u64().unwrap();
    assert!(limit > 16 << 20 && limit <= 60 << 20, "{report}");
    sh(&world, "head -c 60000000 /dev/urandom > /data/large");
    repo.page("two");
    let push = repo.push();
    push.rejected();
    push.says("the ceiling of the server file is 60 MiB");
    world.end();
}

/// A small file system, mounted at the root of a world's server. The mount is removed when this value is dropped.
struct SmallDisk {
    root: std::path::PathBuf,
}

impl SmallDisk {
    /// Moves the root of the server to a new ext4 file system. If the file system cannot be mounted, prints `SKIPPED:` and returns `None`;
    /// the server runs in both cases.
    fn mount(world: &World, megabytes: u64) -> Option<SmallDisk> {
        let (root, image) = (world.root().to_owned(), world.directory().join("disk"));
        let sh = |script: &str| Command::new("sh").args(["-ec", script, "sh"]).arg(&image).arg(&root).output().unwrap();
        world.stop();
        std::fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        let made =
            sh("mkfs.ext4 -q -F -m 0 \"$1\"; mkdir \"$1.mnt\"; mount -o loop \"$1\" \"$1.mnt\"; cp -a \"$2/.\" \"$1.mnt\"; \
            umount \"$1.mnt\"; mount -o loop \"$1\" \"$2\"");
        let disk = made.status.success().then_some(SmallDisk { root });
        if disk.is_none() {
            eprintln!("SKIPPED: cannot mount a file system: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        world.start(&[]);
        disk
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.root).status();
    }
}

/// A process that fills `/app` as soon as the file `go` is in the data.
const FILLER: &str = "(while [ ! -e /data/go ]; do sleep 0.1; done; exec dd if=/dev/zero of=/app/filled bs=1M) &\n\
                      exec larder static-server --root .\n";

#[test]
fn application_that_fills_the_disk_is_stopped_and_other_projects_deploy() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: a loop mount needs root");
    }
    let Some(world) = World::configured("space: {ballast: 100M}\n") else { return };
    if let Some(disk) = SmallDisk::mount(&world, 700) {
        world.project("shop").project("blog");
        let shop = Repo::new(&world, "shop");
        shop.write("Procfile", "web: sh start\n").write("start", FILLER).page("the shop");
        shop.push().accepted();
        let blog = Repo::new(&world, "blog");
        blog.write("Procfile", "web: exec larder static-server --root .\n").page("one");
        blog.push().accepted();
        until("the ballast exists", || world.root().join("state/ballast").exists());
        sh(&world, "touch /data/go");
        until("the application is stopped", || {
            let status = world.larder(&["status"]);
            status.ok().contains("stopped, because its files in /app use")
        });
        until("the ballast is released", || !world.root().join("state/ballast").exists());
        blog.page("two");
        blog.push().accepted();
        std::fs::remove_file(world.environment("shop").join("data/go")).unwrap();
        world.larder(&["restart", "shop"]).ok();
        world.larder(&["status"]).keeps_quiet_about("stopped, because");
        // A deployment that does not fit is refused before it writes, with the needed and the free space.
        blog.write("large", vec![7; 1 << 20]).write("noise", noise(60 << 20)).page("three");
        blog.push().accepted();
        let disk_size = rustix::fs::statvfs(world.root()).unwrap();
        let surplus = (disk_size.f_bavail * disk_size.f_frsize).saturating_sub(200 << 20);
        sh(&world, &format!("head -c {surplus} /dev/zero > /data/large"));
        blog.page("four");
        let push = blog.push();
        push.rejected_with("this deployment needs about");
        push.says("must stay free");
        world.stop();
        drop(disk);
        world.start(&[]);
    }
    world.end();
}

/// Returns bytes that cannot be compressed.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
    bytes
}
