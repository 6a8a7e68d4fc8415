//! A small disk: a file system in an image file, on which a world lives. The disk can be filled, and its power can be cut.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A mounted file system, which is unmounted and deleted when this value is dropped.
pub struct Disk {
    directory: tempfile::TempDir,
    kind: String,
}

impl Disk {
    /// Creates a file system for a world: `mib` MiB besides the space for the program under test, whose size depends on its debug
    /// information. See [`Disk::new`].
    pub fn for_world(kind: &str, mib: u64) -> Option<Disk> {
        Disk::new(kind, mib + super::world::program_size().div_ceil(1 << 20))
    }

    /// Creates a file system of a kind, `ext4`, `ext4-inodes` (ext4 with few inodes), `xfs`, `btrfs` or `tmpfs`, with `mib` MiB. Without root or the tools, prints `SKIPPED:` and
    /// returns `None`.
    pub fn new(kind: &str, mib: u64) -> Option<Disk> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a mounted disk needs root");
            return None;
        }
        let (kind, has_few_inodes) = (kind.trim_end_matches("-inodes"), kind.ends_with("-inodes"));
        // A file system in memory needs no image, so `true` makes it.
        let program = if kind == "tmpfs" { String::from("true") } else { format!("mkfs.{kind}") };
        let make = ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|directory| Path::new(directory).join(&program));
        let Some(make) = make.into_iter().find(|path| path.is_file()) else {
            eprintln!("SKIPPED: {program} is not installed");
            return None;
        };
        let directory = tempfile::Builder::new().prefix("ld").rand_bytes(5).tempdir().unwrap();
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let disk = Disk { directory, kind: kind.to_owned() };
        fs::create_dir(disk.path()).unwrap();
        fs::File::create(disk.image()).unwrap().set_len(mib << 20).unwrap();
        // Without blocks for root, root meets the full disk as well.
        let words = match kind {
            "ext4" if has_few_inodes => &["-q", "-F", "-m", "0", "-N", "16000"][..],
            "ext4" => &["-q", "-F", "-m", "0"],
            // Small file systems of btrfs store data and metadata together.
            "btrfs" => &["-q", "-f", "--mixed"],
            _ => &["-q", "-f"],
        };
        assert!(Command::new(make).args(words).arg(disk.image()).status().unwrap().success(), "{program} failed");
        // The disk is unmounted in the namespaces of all worlds at once: the keepers are slaves of this mount.
        run("mount", &["--bind".as_ref(), disk.directory.path(), disk.directory.path()]);
        run("mount", &["--make-shared".as_ref(), disk.directory.path()]);
        if !disk.mount() {
            eprintln!("SKIPPED: cannot mount a file system in a file");
            return None;
        }
        Some(disk)
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Returns the mount point.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("m")
    }

    fn mount(&self) -> bool {
        let mut mount = Command::new("mount");
        match self.kind.as_str() {
            "tmpfs" => mount.args(["-t", "tmpfs", "-o"]).arg(format!("size={}", fs::metadata(self.image()).unwrap().len())),
            kind => mount.args(["-t", kind, "-o", "loop"]),
        };
        mount.arg(self.image()).arg(self.path());
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        if mounted {
            fs::set_permissions(self.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        mounted
    }

    /// Uses up all free bytes.
    pub fn fill(&self) {
        let path = self.path().join("filler");
        let file = fs::File::options().create(true).append(true).open(&path).unwrap();
        let mut chunk = 64 << 20;
        while chunk >= 4096 {
            let at = file.metadata().unwrap().len();
            if rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, chunk).is_err() {
                chunk /= 2;
            }
        }
    }

    /// Uses up the free bytes except for `left`.
    pub fn fill_up_to(&self, left: u64) {
        let found = rustix::fs::statvfs(self.path()).unwrap();
        let bytes = (found.f_bavail * found.f_frsize).saturating_sub(left);
        let file = fs::File::options().create(true).append(true).open(self.path().join("filler")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
    }

    /// Uses up all free inodes, for a disk of ext4.
    pub fn fill_inodes(&self) {
        let directory = self.path().join("fillers");
        let _ = fs::create_dir(&directory);
        let mut number = fs::read_dir(&directory).map(Iterator::count).unwrap_or_default();
        while fs::File::create_new(directory.join(number.to_string())).is_ok() {
            number += 1;
        }
    }

    /// Returns the space of all fillers.
    pub fn free(&self) {
        let _ = fs::remove_file(self.path().join("filler"));
        let _ = fs::remove_dir_all(self.path().join("fillers"));
        // btrfs returns the space of a removed file with its next transaction.
        let _ = fs::File::open(self.path()).map(rustix::fs::syncfs);
    }

    /// Cuts the power: nothing reaches the disk any more.
    pub fn cut_power(&self) {
        // xfs_io calls the ioctl FS_IOC_SHUTDOWN, without a flush of the log.
        run("xfs_io", &["-x".as_ref(), "-c".as_ref(), "shutdown".as_ref(), &self.path()]);
    }

    /// Mounts the disk again after a cut of the power. All processes of the world have ended.
    pub fn power_on(&self) {
        super::until("the disk is unmounted", || {
            Command::new("umount").arg(self.path()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        });
        super::until("the disk is mounted again", || self.mount());
    }
}

fn run(program: &str, words: &[&Path]) {
    let status = Command::new(program).args(words).stdout(Stdio::null()).status();
    assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "{program}: {status:?}");
}

impl Drop for Disk {
    fn drop(&mut self) {
        for path in [self.path(), self.directory.path().to_owned()] {
            super::within(std::time::Duration::from_secs(10), || {
                let status = Command::new("umount").arg(&path).stderr(Stdio::null()).status();
                // Exit code 32 also stands for a path that is not mounted.
                status.is_ok_and(|status| status.success()) || !super::processes::is_mounted(&path)
            });
        }
    }
}
