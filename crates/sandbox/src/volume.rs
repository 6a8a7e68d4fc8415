//! Volumes: file systems in image files, each mounted at a directory of the root, so that the files in this directory cannot use more space
//! than the image.
//!
//! The space of an image is allocated when the image is created or grows. A full disk can therefore not make a write inside of a volume fail,
//! which would damage the file system. The mounts belong to the mount namespace of this process and end with the namespace, so
//! [`ensure_volume`] mounts a volume again after a restart. If the kernel still has the mount of an earlier process, both mounts share one
//! loop device and one instance of the file system.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, FallocateFlags, FlockOperation, StatxAttributes, StatxFlags, fallocate, flock, fsync, statx, unlinkat},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use super::{directory::RootDirectory, sys, trash::VOLUME_TRASH, user::UnixUser};

/// The time limit for the end of the mounts of an earlier process.
const MOUNTED_BEFORE: Duration = Duration::from_secs(5);

/// The kind of file system of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    Ext4,
    Xfs,
}

/// The parts of a volume. Paths are relative to the root directory.
#[derive(Debug)]
pub struct VolumeSpec<'a> {
    /// The image file, in a directory that only this process can enter.
    pub image: &'a Path,
    /// The mount point, which only this process can rename.
    pub target: &'a Path,
    pub kind: VolumeKind,
    /// The size of the image, in bytes.
    pub bytes: u64,
}

impl VolumeKind {
    fn name(self) -> &'static str {
        match self {
            VolumeKind::Ext4 => "ext4",
            VolumeKind::Xfs => "xfs",
        }
    }

    fn format(self) -> (&'static str, &'static [&'static str]) {
        match self {
            // `nodiscard` keeps the allocated space of the image.
            VolumeKind::Ext4 => ("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "nodiscard"]),
            VolumeKind::Xfs => ("mkfs.xfs", &["-q", "-f", "-K"]),
        }
    }
}

fn failed(doing: &str, path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("cannot {doing} {}: {error}", path.display()))
}

/// Returns true if a file system is mounted at the directory.
pub fn is_volume(root: &RootDirectory, target: &Path) -> bool {
    let found = root.open(target).and_then(|directory| Ok(statx(&directory, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?));
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Creates and mounts a volume, unless it exists and is mounted, and enlarges it to `bytes`. A volume never becomes smaller. The call may be
/// repeated after a kill. The call runs the tools of the file system, so the caller must be a process of its own.
pub fn ensure_volume(root: &RootDirectory, spec: &VolumeSpec<'_>) -> io::Result<()> {
    let image = root.path().join(spec.image);
    let lock = lock(&image)?;
    if !image.exists() {
        create(&image, spec, &lock)?;
    }
    if !is_volume(root, spec.target) {
        if !free_of_earlier_mounts(&image) {
            tracing::warn!(image = %image.display(), "the volume is still mounted; its file system is not checked");
        } else if spec.kind == VolumeKind::Ext4 {
            check(&image, &lock)?;
        }
        let device = device_of(&image)?;
        let directory = root.open(spec.target)?;
        let at = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        mount(&device.0, &at, spec.kind.name(), flags, c"").map_err(|error| failed("mount", &image, error))?;
        drop(device);
        let mounted = root.open(spec.target)?;
        let _ = unlinkat(&mounted, "lost+found", AtFlags::REMOVEDIR);
        drop(mounted);
        root.make(spec.target, UnixUser::current(), 0o755)?;
        root.make(spec.target.join(VOLUME_TRASH), UnixUser::current(), 0o711)?;
    }
    grow(root, &image, spec)
}

/// Waits until no tool of an earlier process works on the image. Tools inherit the lock, and may outlive this process.
fn lock(image: &Path) -> io::Result<File> {
    let directory = image.parent().unwrap_or(image);
    let file = File::open(directory).map_err(|error| failed("open", directory, error))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Creates the image under another name, and renames the image after its file system is complete.
fn create(image: &Path, spec: &VolumeSpec<'_>, lock: &File) -> io::Result<()> {
    let new = image.with_extension("new");
    let _ = fs::remove_file(&new);
    let file = File::options().read(true).write(true).create_new(true).open(&new)?;
    let made = allocate(&file, image, spec.bytes).and_then(|()| {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        let (program, words) = spec.kind.format();
        run(program, words, &new, &[0], lock)?;
        fsync(&file)?;
        fs::rename(&new, image)?;
        image.parent().map_or(Ok(()), |parent| Ok(fsync(File::open(parent)?)?))
    });
    made.inspect_err(|_| drop(fs::remove_file(&new)))
}

/// Allocates the space of an image up to `bytes`. Fails without a change if the disk does not have the space.
fn allocate(file: &File, image: &Path, bytes: u64) -> io::Result<()> {
    let before = file.metadata()?.len();
    fallocate(file, FallocateFlags::empty(), 0, bytes).map_err(|error| {
        let _ = file.set_len(before);
        failed(&format!("reserve {bytes} bytes for"), image, error)
    })
}

/// Runs a program of the file system's tools, found in the usual directories of the system. The program inherits `lock`.
fn run(program: &str, words: &[&str], image: &Path, good: &[i32], lock: &File) -> io::Result<()> {
    let found =
        ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|directory| Path::new(directory).join(program)).find(|path| path.is_file());
    let path = found.ok_or_else(|| io::Error::other(format!("cannot run {program}: it is not installed")))?;
    let mut command = Command::new(&path);
    command.args(words).arg(image).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
    let done = command.stdin(lock.try_clone()?).output()?;
    if done.status.code().is_some_and(|code| good.contains(&code)) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&done.stderr).into_owned() + &String::from_utf8_lossy(&done.stdout);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Err(failed(&format!("run {program} on"), image, format_args!("{} {last}", done.status)))
}

/// Replays the journal, and repairs what can be repaired without a person.
fn check(image: &Path, lock: &File) -> io::Result<()> {
    // Exit status 1: errors were corrected.
    run("e2fsck", &["-p"], image, &[0, 1], lock)
}

/// Returns the numbers of the loop devices of an image.
fn devices(image: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let of_image = |name: &std::ffi::OsString| {
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        fs::read_to_string(backing).is_ok_and(|text| Path::new(text.trim_end_matches('\n')) == image)
    };
    listed.map(|entry| entry.file_name()).filter(of_image).map(|name| Path::new("/dev").join(name)).collect()
}

/// Waits until no earlier process has the image mounted. Returns false if the image is still mounted.
fn free_of_earlier_mounts(image: &Path) -> bool {
    let begun = Instant::now();
    while !devices(image).is_empty() {
        if begun.elapsed() > MOUNTED_BEFORE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Returns the loop device of an image, and its open descriptor. The kernel frees the device after the last use.
fn device_of(image: &Path) -> io::Result<(PathBuf, File)> {
    if let Some(path) = devices(image).into_iter().next() {
        let file = File::options().read(true).write(true).open(&path)?;
        return Ok((path, file));
    }
    let file = File::options().read(true).write(true).open(image)?;
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .map_err(|e| failed("open", Path::new("/dev/loop-control"), e))?;
    // Another process can take the free device first.
    let mut last = io::Error::other("no loop device is free");
    for _ in 0..16 {
        let path = PathBuf::from(format!("/dev/loop{}", sys::free_loop_device(control.as_fd())?));
        let device = File::options().read(true).write(true).open(&path).map_err(|error| failed("open", &path, error))?;
        match sys::configure_loop_device(device.as_fd(), file.as_fd()) {
            Ok(()) => return Ok((path, device)),
            Err(error) => last = error,
        }
    }
    Err(failed("attach", image, last))
}

/// Enlarges image, device and file system, in this order. An earlier call may have been killed after it had enlarged the image, so the file
/// system is enlarged in each call, and the result counts only if this call has enlarged the image.
fn grow(root: &RootDirectory, image: &Path, spec: &VolumeSpec<'_>) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(image)?;
    let before = file.metadata()?.len();
    if before < spec.bytes {
        allocate(&file, image, spec.bytes)?;
        fsync(&file)?;
    }
    let Some(device) = devices(image).into_iter().next() else { return Ok(()) };
    let device = File::options().read(true).open(device)?;
    sys::update_loop_capacity(device.as_fd())?;
    let mounted = root.open(spec.target)?;
    let blocks = before.max(spec.bytes) / rustix::fs::fstatvfs(&mounted)?.f_frsize.max(1);
    let resized = match spec.kind {
        VolumeKind::Ext4 => sys::grow_ext4(mounted.as_fd(), blocks),
        VolumeKind::Xfs => sys::grow_xfs(mounted.as_fd(), blocks),
    };
    match resized {
        Err(error) if before < spec.bytes => {
            // The file system still has its old size, so the space beyond this size is unused.
            file.set_len(before)?;
            sys::update_loop_capacity(device.as_fd())?;
            Err(failed("enlarge the file system in", image, error))
        }
        _ => Ok(()),
    }
}

/// Unmounts a volume and deletes its image. A missing volume counts as removed.
pub fn remove_volume(root: &RootDirectory, image: &Path, target: &Path) -> io::Result<()> {
    if is_volume(root, target) {
        let parent = root.open(target.parent().unwrap_or(Path::new("")))?;
        let at = format!("/proc/self/fd/{}/{}", parent.as_raw_fd(), target.file_name().unwrap_or_default().to_string_lossy());
        unmount(&at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    match fs::remove_file(root.path().join(image)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
