//! Tests of the export of restore points: the archive opens with plain `tar`, and keeps all metadata.

use std::{fs, path::Path, process::Command};

use crate::{
    backup::{POPULATE, data, id, same, sh, shop, store, stored, take, walk},
    harness::{World, cli::Output, in_one_mode, state::names},
};

in_one_mode!(
    exported_restore_point_opens_with_tar_and_keeps_metadata,
    export_of_damaged_restore_point_is_cut_off,
    export_to_existing_or_remote_file_is_refused,
);

/// Unpacks an archive as root into a new directory.
fn unpack(world: &World, archive: &Path, name: &str) -> (std::path::PathBuf, Output) {
    let to = world.directory().join(name);
    fs::create_dir(&to).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--zstd", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"]).arg(archive).arg("-C").arg(&to);
    let output = Output::of(&mut tar);
    (to, output)
}

fn exported_restore_point_opens_with_tar_and_keeps_metadata(world: &World) {
    shop(world);
    sh(world, POPULATE);
    let more = r#"touch -d 1969-12-31T23:59:58.25Z media/old; echo x > "$(printf 'media/a\\b\nc')"
        long=media/$(printf 'd%.0s' $(seq 90)); mkdir -p $long/$long; echo long > $long/$long/file; ln -s $(printf 't%.0s' $(seq 200)) $long/link
        truncate -s 9M media/hole; truncate -s 1M media/tail; printf x | dd of=media/tail conv=notrunc status=none; : > media/empty"#;
    sh(world, more);
    let _ = rustix::fs::setxattr(data(world).join("media/script"), "user.colour", b"blue", rustix::fs::XattrFlags::empty());
    let before = walk(&data(world));
    let point = take(world);
    let entries = names(&world.environment("shop").join("archives"));

    let archive = world.directory().join("shop.tar.zst");
    let output = format!("--output={}", archive.display());
    world.larder(&["backup", "export", "shop", "latest", &output]).ok();
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&archive).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "only the caller may read private data");
    let (to, unpacked) = unpack(world, &archive, "unpacked");
    unpacked.exits(0);
    let copy = to.join(id(&point));
    same(&walk(&copy.join("data")), &before);
    assert_eq!(names(&copy), ["checksums", "data", "point.json"]);
    assert_eq!(fs::read(copy.join("point.json")).unwrap(), fs::read(store(world).join(id(&point)).join("point.json")).unwrap());
    for name in ["hole", "sparse", "tail"] {
        let found = fs::metadata(copy.join("data/media").join(name)).unwrap();
        assert!(std::os::unix::fs::MetadataExt::blocks(&found) * 512 < found.len() / 2, "{name} has holes");
    }
    let checksums = fs::read(copy.join("checksums")).unwrap();
    let checksums = String::from_utf8_lossy(&checksums);
    let line = |name: &str| checksums.lines().any(|line| line.ends_with(name));
    assert!(line("  data/media/upload") && line("  data/media/a\\\\b\\nc"), "{checksums}");

    // Over ssh, the archive is the standard output.
    let script =
        format!("exec ssh {} larder@127.0.0.1 backup export shop latest > over-ssh", world.ssh_options("alice").join(" "));
    Output::of(world.client("sh").current_dir(world.directory()).args(["-c", &script])).ok();
    assert_eq!(fs::read(world.directory().join("over-ssh")).unwrap(), fs::read(&archive).unwrap());
    assert_eq!(names(&world.environment("shop").join("archives")), entries);
}

fn export_of_damaged_restore_point_is_cut_off(world: &World) {
    shop(world);
    sh(world, "echo first > media/a; head -c 300000 /dev/urandom > media/b; echo last > media/c");
    take(world);
    let stored = stored(world, fs::read(data(world).join("media/b")).unwrap());
    let mut bytes = fs::read(&stored).unwrap();
    bytes[150_000] ^= 1;
    fs::write(&stored, bytes).unwrap();
    let archive = world.directory().join("shop.tar.zst");
    let output = archive.display().to_string();
    world.larder(&["backup", "export", "shop", "latest", "-o", &output]).exits(3).says("data/media/b");
    assert!(!archive.exists() && !archive.with_extension("zst.part").exists());
    let script = format!("ssh {} larder@127.0.0.1 backup export shop latest > cut", world.ssh_options("alice").join(" "));
    Output::of(world.client("sh").current_dir(world.directory()).args(["-c", &script])).exits(3);
    assert_ne!(unpack(world, &world.directory().join("cut"), "cut-tree").1.status, 0);
    world.larder(&["backup", "verify", "shop"]).exits(1);
    world.larder(&["backup", "export", "shop", "latest", "-o", &output]).exits(3).says("stored files are damaged");
}

fn export_to_existing_or_remote_file_is_refused(world: &World) {
    shop(world);
    sh(world, "echo first > media/a");
    take(world);
    let archive = world.directory().join("shop.tar.zst");
    fs::write(&archive, "mine").unwrap();
    let output = archive.display().to_string();
    world.larder(&["backup", "export", "shop", "latest", "--output", &output]).exits(3).says("the file exists");
    assert_eq!(fs::read_to_string(&archive).unwrap(), "mine");
    let other = world.directory().join("other").display().to_string();
    world.ssh("alice", &["backup", "export", "shop", "latest", "--output", &other]).exits(2).says("the caller's machine");
    assert!(!Path::new(&other).exists());
    world.larder(&["backup", "export", "shop", "ffff"]).exits(4);
    world.key("ann");
    world.larder(&["user", "add", "ann", "--key-file", &world.public_key("ann")]).ok();
    world.larder(&["user", "grant", "ann", "shop", "push"]).ok();
    world.ssh("ann", &["backup", "export", "shop", "latest"]).exits(3).says("may not operate shop");
}
