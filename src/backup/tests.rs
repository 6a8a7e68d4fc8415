//! Tests of the workers' functions, in one process and without a sandbox.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use jiff::Timestamp;

use super::*;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        for name in ["data", "points", "restored", "restoring", "copy"] {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::set_permissions(directory.path().join(name), fs::Permissions::from_mode(0o700)).unwrap();
        }
        Place { directory }
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.directory.path().join(path)
    }

    fn dump(&self, job: &DumpJob) -> Result<DumpReport, BackupFailure> {
        let run = || dump_work(job, &DumpPaths { data: self.at("data"), points: self.at("points") });
        // A program that another test starts holds all locks of this process for a moment, between fork(2) and execve(2).
        for _ in 0..50 {
            match run() {
                Err(failure) if failure.to_string().contains("another operation") => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                ended => return ended,
            }
        }
        run()
    }

    fn take(&self) -> PointInfo {
        match self
            .dump(&DumpJob::Take {
                id: PointId::new(Timestamp::now()),
                label: label("shop"),
                exact: true,
                databases: Vec::new(),
                copies: Vec::new(),
            })
            .unwrap()
        {
            DumpReport::Point(info, _) => *info,
            other => panic!("{other:?}"),
        }
    }

    fn restore(&self, job: &RestoreJob) -> Result<Filled, BackupFailure> {
        let paths = RestorePaths {
            data: self.at("data"),
            points: self.at("points"),
            restored: self.at("restored"),
            restoring: self.at("restoring"),
            copy: self.at("copy"),
            custom: self.at("custom"),
        };
        let empty = |path: &Path| {
            for entry in fs::read_dir(path)? {
                let path = entry?.path();
                if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
            }
            Ok(())
        };
        restore_work(job, &paths, empty)
    }
}

fn label(project: &str) -> PointLabel {
    PointLabel {
        project: project.parse().unwrap(),
        environment: "production".parse().unwrap(),
        release: None,
        number: None,
        commit: None,
        by: "ann".parse().unwrap(),
        reason: String::from("asked"),
        databases: Vec::new(),
        custom: false,
        sessions: Vec::new(),
        configuration: None,
    }
}

fn owner(project: &str) -> PointOwner {
    PointOwner { project: project.parse().unwrap(), environment: "production".parse().unwrap() }
}

#[test]
fn data_is_restored_at_the_top_of_the_directory_with_links_and_modes() {
    let place = Place::new();
    fs::write(place.at("data/top"), "top").unwrap();
    symlink("/etc/shadow", place.at("data/link")).unwrap();
    fs::create_dir(place.at("data/closed")).unwrap();
    fs::write(place.at("data/closed/inside"), "x").unwrap();
    fs::set_permissions(place.at("data/closed"), fs::Permissions::from_mode(0o500)).unwrap();
    let point = place.take();
    fs::write(place.at("restoring/left"), "of a killed restore").unwrap();
    let filled =
        place.restore(&RestoreJob::Fill { point: String::from("latest"), owner: owner("shop"), databases: Vec::new() }).unwrap();
    assert_eq!((filled.point.as_str(), filled.files), (point.id.as_str(), 2));
    let mut names: Vec<_> = fs::read_dir(place.at("restoring")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["closed", "link", "top"]);
    assert_eq!(fs::read_link(place.at("restoring/link")).unwrap(), Path::new("/etc/shadow"));
    assert_eq!(fs::metadata(place.at("restoring/closed")).unwrap().permissions().mode() & 0o7777, 0o500);
    assert_eq!(fs::read(place.at("restoring/closed/inside")).unwrap(), b"x");
    place.restore(&RestoreJob::Clear).unwrap();
    assert_eq!(fs::read_dir(place.at("restoring")).unwrap().count(), 0);
}

/// The properties of an entry that a restore must put back.
#[derive(Debug, PartialEq, Eq)]
struct Properties {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    mtime: (i64, i64),
    size: u64,
    xattrs: Vec<(String, Vec<u8>)>,
    /// The first position with data, for files with a hole at the beginning.
    first_data: Option<u64>,
    content: Vec<u8>,
}

/// Reads all entries at and below `root`.
fn properties(root: &Path) -> std::collections::BTreeMap<std::path::PathBuf, Properties> {
    use std::os::unix::{ffi::OsStrExt, fs::MetadataExt};
    let mut found = std::collections::BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let mut one = Properties {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            links: if metadata.is_dir() { 0 } else { metadata.nlink() },
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            size: if metadata.is_dir() { 0 } else { metadata.size() },
            xattrs: Vec::new(),
            first_data: None,
            content: Vec::new(),
        };
        if metadata.is_symlink() {
            one.content = fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec();
        } else if metadata.is_file() || metadata.is_dir() {
            let file = fs::File::open(&path).unwrap();
            let mut list = [0_u8; 4096];
            let length = rustix::fs::flistxattr(&file, list.as_mut_slice()).unwrap_or(0);
            for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                let name = std::str::from_utf8(name).unwrap().to_owned();
                let mut value = [0_u8; 4096];
                let length = rustix::fs::fgetxattr(&file, name.as_str(), value.as_mut_slice()).unwrap();
                one.xattrs.push((name, value[..length].to_vec()));
            }
            one.xattrs.sort();
            if metadata.is_file() {
                one.first_data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).ok();
                one.content = fs::read(&path).unwrap();
            }
        }
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path.strip_prefix(root).unwrap().to_owned(), one);
    }
    found
}

#[test]
fn restored_data_has_all_properties_of_the_data_and_of_its_top_directory() {
    use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, mknodat, setxattr, utimensat};
    let place = Place::new();
    let data = place.at("data");
    fs::create_dir_all(data.join("sub/inner")).unwrap();
    fs::write(data.join("sub/file"), "text").unwrap();
    fs::hard_link(data.join("sub/file"), data.join("second name")).unwrap();
    let sparse = fs::File::create(data.join("sparse")).unwrap();
    sparse.set_len(4 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 3 << 20).unwrap();
    drop(sparse);
    symlink("nowhere", data.join("dangling")).unwrap();
    fs::set_permissions(data.join("sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(data.join("sub"), fs::Permissions::from_mode(0o2750)).unwrap();
    // Version 2, and the entries user::rwx, user:1:rwx, group::rwx, mask::rwx and other::---.
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1_u16, 7_u16, u32::MAX), (2, 7, 1), (4, 7, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)]
    {
        acl.extend([tag.to_le_bytes().as_slice(), &permissions.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    let set = |path: &str, name: &str, value: &[u8]| setxattr(data.join(path), name, value, XattrFlags::empty());
    if set("", "user.mark", b"top").and_then(|()| set("", "system.posix_acl_default", &acl)).is_err() {
        eprintln!("SKIPPED: the file system of the test has no extended attributes or no access lists");
        return;
    }
    set("sub", "system.posix_acl_default", &acl).unwrap();
    set("sub/file", "system.posix_acl_access", &acl).unwrap();
    set("sub/file", "user.mark", b"\0\xff").unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(data.join("dangling"), Some(4321), Some(4322)).unwrap();
        std::os::unix::fs::chown(data.join("sparse"), Some(4321), Some(4322)).unwrap();
        std::os::unix::fs::chown(&data, Some(4321), Some(4322)).unwrap();
    }
    let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
    for (number, path) in ["dangling", "sparse", "sub/file", "sub/inner", "sub", ""].into_iter().enumerate() {
        let number = i64::try_from(number).unwrap();
        let times = Timestamps { last_access: time(1, 0), last_modification: time(1_000_000_000 + number, 123_456_789 - number) };
        utimensat(CWD, data.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let expected = properties(&data);
    for (name, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
        mknodat(CWD, data.join(name), kind, Mode::RWXU, 0).unwrap();
    }
    let times = Timestamps { last_access: time(1, 0), last_modification: time(1_000_000_005, 123_456_784) };
    utimensat(CWD, &data, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    place.take();
    fs::remove_dir_all(&data).unwrap();
    place.restore(&RestoreJob::Fill { point: String::from("latest"), owner: owner("shop"), databases: Vec::new() }).unwrap();
    let restored = properties(&place.at("restoring"));
    assert_eq!(restored.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "special files are left out");
    for (path, expected) in &expected {
        assert_eq!(&restored[path], expected, "{}", path.display());
    }
}

#[test]
fn restore_point_of_another_project_is_refused_and_leaves_nothing() {
    let place = Place::new();
    fs::write(place.at("data/a"), "a").unwrap();
    place.take();
    let job = RestoreJob::Fill { point: String::from("latest"), owner: owner("blog"), databases: Vec::new() };
    let failure = place.restore(&job).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    assert!(failure.why.contains("blog"), "{failure}");
    assert_eq!(fs::read_dir(place.at("restoring")).unwrap().count(), 0);
    let job = RestoreJob::Beside { point: String::from("latest"), owner: owner("blog"), name: String::from("copy") };
    assert_eq!(place.restore(&job).unwrap_err().kind, FailureKind::Refused);
    assert_eq!(fs::read_dir(place.at("restored")).unwrap().count(), 0);
}

#[test]
fn name_of_a_restored_copy_cannot_leave_its_directory() {
    let place = Place::new();
    place.take();
    for name in ["", ".", "..", ".x", "a/b", "/etc", "a\n", &"x".repeat(65)] {
        let job = RestoreJob::Beside { point: String::from("latest"), owner: owner("shop"), name: name.to_owned() };
        assert_eq!(place.restore(&job).unwrap_err().kind, FailureKind::Refused, "{name:?}");
    }
}

#[test]
fn restore_point_is_found_by_id_or_end_of_id_or_latest() {
    let place = Place::new();
    let (first, second) = (place.take(), place.take());
    let show = |name: &str| match place.dump(&DumpJob::Show { point: name.to_owned() }) {
        Ok(DumpReport::Point(info, _)) => Ok(info.id),
        Ok(other) => panic!("{other:?}"),
        Err(failure) => Err(failure.kind),
    };
    assert_eq!(show("latest").unwrap(), second.id);
    assert_eq!(show(&first.id).unwrap(), first.id);
    assert_eq!(show(first.id.get(first.id.len() - 6..).unwrap()).unwrap(), first.id);
    for name in ["", "x", "202", "../data", "lock", first.id.get(..4).unwrap()] {
        assert_eq!(show(name).unwrap_err(), FailureKind::NotFound, "{name:?}");
    }
}

#[test]
fn full_disk_and_newer_format_have_distinct_failure_kinds() {
    let full = larder_points::PointError::Io {
        doing: "write",
        path: "data/x".into(),
        source: std::io::Error::from_raw_os_error(libc::ENOSPC),
    };
    assert_eq!(BackupFailure::from(full).kind, FailureKind::NoSpace);
    let newer = larder_points::PointError::Version { what: "the manifest", id: String::from("x"), found: 9, supported: 1 };
    let failure = BackupFailure::from(newer);
    assert_eq!((failure.kind, failure.hint.as_deref()), (FailureKind::Refused, Some("update larder")));
}

#[test]
fn drill_compares_the_restored_copy_and_leaves_only_the_data() {
    let place = Place::new();
    fs::create_dir(place.at("data/closed")).unwrap();
    fs::write(place.at("data/closed/a"), "content").unwrap();
    symlink("nowhere", place.at("data/link")).unwrap();
    fs::set_permissions(place.at("data/closed"), fs::Permissions::from_mode(0o500)).unwrap();
    let point = place.take();
    // The files of a killed drill do not count.
    fs::create_dir_all(place.at("restored/.drill/data/left")).unwrap();
    let job = RestoreJob::Drill { point: String::from("latest"), owner: owner("shop") };
    assert_eq!(place.restore(&job).unwrap().files, 1);
    assert_eq!(fs::read_dir(place.at("restored")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(place.at("copy/closed/a")).unwrap(), "content");
    assert_eq!(fs::read_dir(place.at("copy")).unwrap().count(), 2);
    let store = larder_points::Store::open(&place.at("points")).unwrap();
    let stored = store.point(&point.id).unwrap().content("data/closed/a").unwrap();
    fs::write(&stored, "Content").unwrap();
    assert_eq!(place.restore(&job).unwrap_err().kind, FailureKind::Damaged);
    assert_eq!(fs::read_dir(place.at("copy")).unwrap().count(), 0);
}

#[test]
fn retention_keeps_verified_points_of_rules_and_of_protected_releases() {
    use crate::config::BackupKeep;
    use crate::model::ReleaseId;
    let place = Place::new();
    fs::write(place.at("data/a"), "a").unwrap();
    let release = ReleaseId::new(Timestamp::now());
    let take = |release: Option<ReleaseId>, verify: bool| {
        let label = PointLabel { release, ..label("shop") };
        let job =
            DumpJob::Take { id: PointId::new(Timestamp::now()), label, exact: true, databases: Vec::new(), copies: Vec::new() };
        let DumpReport::Point(info, _) = place.dump(&DumpJob::Quietly(Box::new(job))).unwrap() else { panic!("no point") };
        if verify {
            place.dump(&DumpJob::Verify { point: info.id.clone() }).unwrap();
        }
        info.id
    };
    let pinned = take(Some(release), true);
    let plain = take(None, true);
    let live = take(Some(ReleaseId::new(Timestamp::now())), true);
    let recent = match place.dump(&DumpJob::Show { point: live.clone() }).unwrap() {
        DumpReport::Point(info, _) => info.label.unwrap().release.unwrap(),
        other => panic!("{other:?}"),
    };
    let newest = take(None, true);
    let unverified = take(None, false);
    let keep = BackupKeep { last: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0, bytes: None };
    let protected = ProtectedReleases { recent: vec![recent], pinned: vec![release] };
    let DumpReport::Plan(plan) = place.dump(&DumpJob::Plan { keep, protected }).unwrap() else { panic!("no plan") };
    let decided: Vec<_> = plan.points.iter().zip(&plan.decisions).map(|(info, decision)| (info.id.as_str(), decision)).collect();
    let expected: [(&str, &[&str]); 5] = [
        (&unverified, &["not verified"]),
        (&newest, &["newest"]),
        (&live, &["live release"]),
        (&plain, &[]),
        (&pinned, &["pinned release"]),
    ];
    for ((id, decision), (expected, reasons)) in decided.iter().zip(expected) {
        assert_eq!(
            (*id, decision.reasons.join(", "), decision.is_kept),
            (expected, reasons.join(", "), !reasons.is_empty()),
            "{decided:#?}"
        );
    }
    // All restore points share the one file.
    assert!(plan.kept_bytes < plan.bytes && plan.bytes < 5 * plan.points[0].counts.stored, "{plan:#?}");
}
