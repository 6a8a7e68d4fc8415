//! Tests of restore points: capture, verification, restores over and beside the live data, kills during a restore, and isolation from
//! applications.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::{
        ffi::OsStringExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::harness::{Repo, World, in_each_mode, in_one_mode, state::names, until};

in_each_mode!(restore_brings_back_every_file_with_owner_and_mode);
in_one_mode!(
    visitors_wait_during_a_restore,
    sqlite_database_is_restored_with_rows_of_its_log,
    damaged_restore_point_is_shown_and_refused,
    restore_killed_at_each_failpoint_leaves_old_or_restored_data,
    restore_killed_at_any_instant_leaves_old_or_restored_data,
    restore_during_a_deployment_is_refused,
    restore_into_a_frozen_environment_is_refused,
    restore_point_of_another_project_or_newer_format_is_refused,
    pusher_may_take_and_operator_may_restore,
    restore_without_a_complete_copy_of_the_live_data_is_refused,
);

const PROCFILE: &str = "web: exec larder static-server --root .\n";

pub(crate) fn data(world: &World) -> PathBuf {
    world.environment("shop").join("data")
}

pub(crate) fn store(world: &World) -> PathBuf {
    world.environment("shop").join("archives/points")
}

/// Returns the path of a stored content.
pub(crate) fn stored(world: &World, content: impl AsRef<[u8]>) -> PathBuf {
    store(world).join(".contents").join(blake3::hash(content.as_ref()).to_string())
}

pub(crate) fn shop(world: &World) -> Repo<'_> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", PROCFILE).write("larder.yml", "data: [media, db.sqlite3]\n");
    repo.page("version one");
    repo.push().accepted();
    repo
}

pub(crate) fn sh(world: &World, script: &str) -> String {
    world.larder(&["run", "shop", "--", "sh", "-ec", script]).ok().trim().to_owned()
}

pub(crate) fn take(world: &World) -> serde_json::Value {
    world.larder(&["--json", "backup", "take", "shop"]).json()
}

pub(crate) fn id(point: &serde_json::Value) -> &str {
    point["id"].as_str().unwrap()
}

/// The properties of an entry, read without code of the program: kind, mode, owner, time, content, links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    pub(crate) content: Vec<u8>,
    /// The smallest path of the hard links to this file; `None` if the file has one link.
    same_as: Option<PathBuf>,
    attributes: Vec<(OsString, Vec<u8>)>,
}

impl Seen {
    /// Makes two entries with different owners equal. The users of two machines have different numbers.
    pub(crate) fn forget_owner(&mut self) {
        self.owner = (0, 0);
    }
}

/// Returns all entries below a directory, except FIFOs and other special files.
pub(crate) fn walk(top: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut all, mut pending, mut names) = (BTreeMap::new(), vec![PathBuf::new()], BTreeMap::<u64, Vec<PathBuf>>::new());
    while let Some(relative) = pending.pop() {
        for entry in fs::read_dir(top.join(&relative)).unwrap() {
            let path = relative.join(entry.unwrap().file_name());
            let at = top.join(&path);
            let found = fs::symlink_metadata(&at).unwrap();
            let (kind, content) = if found.is_symlink() {
                ("link", fs::read_link(&at).unwrap().into_os_string().into_vec())
            } else if found.is_dir() {
                pending.push(path.clone());
                ("directory", Vec::new())
            } else if found.is_file() {
                names.entry(found.ino()).or_default().push(path.clone());
                ("file", fs::read(&at).unwrap())
            } else {
                continue;
            };
            let seen = Seen {
                kind: kind.to_owned(),
                mode: found.mode(),
                owner: (found.uid(), found.gid()),
                modified: (found.mtime(), found.mtime_nsec()),
                content,
                same_as: None,
                attributes: attributes(&at, found.is_symlink()),
            };
            all.insert(path, seen);
        }
    }
    for same in names.values().filter(|same| same.len() > 1) {
        let first = same.iter().min().unwrap();
        same.iter().for_each(|name| all.get_mut(name).unwrap().same_as = Some(first.clone()));
    }
    all
}

fn attributes(path: &Path, link: bool) -> Vec<(OsString, Vec<u8>)> {
    if link {
        return Vec::new();
    }
    let mut value = vec![0; 256];
    match rustix::fs::lgetxattr(path, "user.colour", &mut value) {
        Ok(length) => vec![(OsString::from("user.colour"), value[..length].to_vec())],
        Err(_) => Vec::new(),
    }
}

#[track_caller]
pub(crate) fn same(found: &BTreeMap<PathBuf, Seen>, expected: &BTreeMap<PathBuf, Seen>) {
    let paths = |one: &BTreeMap<PathBuf, Seen>| one.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(found), paths(expected));
    for (path, seen) in expected {
        assert!(&found[path] == seen, "{}: {:?} (expected {seen:?})", path.display(), found[path]);
    }
}

pub(crate) const POPULATE: &str = r#"
echo upload > media/upload; mkdir -p media/deep/er; echo deep > media/deep/er/file
echo secret > media/secret; chmod 600 media/secret
echo script > media/script; chmod 751 media/script
ln -s /etc/shadow media/shadow; ln -s nowhere media/dangling
ln media/upload media/hard
mkfifo media/pipe
truncate -s 3M media/sparse; echo end >> media/sparse
echo odd > "$(printf 'media/caf\351')"
echo top > "$LARDER_DATA/at-the-top"; ln -s media "$LARDER_DATA/link-at-the-top"
mkdir media/closed; echo x > media/closed/inside; chmod 500 media/closed
echo database > db.sqlite3; echo log > "$LARDER_DATA/db.sqlite3-wal"
"#;

const DISTURB: &str = r#"
echo changed > media/upload; echo added > media/added; rm media/deep/er/file; rmdir media/deep/er
chmod 644 media/secret; rm media/shadow; echo file > media/shadow
chmod 700 media/closed; rm -r media/closed
echo newer > db.sqlite3; rm "$LARDER_DATA/db.sqlite3-wal" "$LARDER_DATA/at-the-top"; mkdir "$LARDER_DATA/new"
"#;

fn restore_brings_back_every_file_with_owner_and_mode(world: &World) {
    let repo = shop(world);
    sh(world, POPULATE);
    let _ = rustix::fs::setxattr(data(world).join("media/script"), "user.colour", b"blue", rustix::fs::XattrFlags::empty());
    let before = walk(&data(world));
    let taken = world.larder(&["backup", "take", "shop", "--reason", "before the trial"]);
    taken.says("media/pipe (a FIFO)");
    let list = world.larder(&["--json", "backup", "list", "shop"]).json();
    let point = list["points"][0].clone();
    assert_eq!((point["state"].as_str(), point["reason"].as_str()), (Some("unverified"), Some("before the trial")), "{point}");
    world.larder(&["backup", "list", "shop"]).says("not verified").keeps_quiet_about("ok (");
    world.larder(&["backup", "verify", "shop"]).says("ok (20");
    world.larder(&["backup", "list", "shop"]).says("ok (20").says("before the trial");
    world.larder(&["backup", "show", "shop"]).says("release   v1 (");

    // A second restore point shares the unchanged files with the first restore point.
    sh(world, "echo small > media/small");
    let second = take(world);
    assert!(second["copied_bytes"].as_u64().unwrap() < 100, "{second}");
    assert!(second["shared_files"].as_u64().unwrap() >= 8, "{second}");
    let sparse = data(world).join("media/sparse");
    let content = fs::metadata(stored(world, fs::read(&sparse).unwrap())).unwrap();
    assert_ne!(content.ino(), fs::metadata(&sparse).unwrap().ino(), "never shared with live data");
    assert_eq!(content.nlink(), 1);
    world.larder(&["backup", "diff", "shop", id(&point), id(&second)]).says("1 added").says("data/media/small");

    // Without `--yes`, a restore changes nothing.
    sh(world, DISTURB);
    let disturbed = walk(&data(world));
    world.larder(&["backup", "restore", "shop", id(&point)]).exits(3).says("data/media/added").says("--yes");
    same(&walk(&data(world)), &disturbed);

    let processes = world.application("shop");
    world.larder(&["backup", "restore", "shop", id(&point), "--yes"]).ok();
    same(&walk(&data(world)), &before);
    world.serves("shop", "version one");
    assert!(processes.iter().all(|pid| !world.application("shop").contains(pid)), "the application was restarted");
    assert_eq!(sh(world, "cat media/upload db.sqlite3"), "upload\ndatabase");
    assert_eq!(names(&world.environment("shop").join("restoring")), Vec::<String>::new());
    let list = world.larder(&["--json", "backup", "list", "shop"]).json();
    assert_eq!(list["last_restore"]["end"], "restored", "{list}");
    let fresh = list["points"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(list["points"][0]["reason"].as_str().unwrap(), format!("before the restore of {}", id(&point)));

    // The replaced data can be restored beside the live data.
    let copy = world.environment("shop").join("archives/restored/replaced");
    world.larder(&["backup", "restore", "shop", &fresh, "--into", "replaced"]).says(&copy.display().to_string());
    same(&walk(&copy.join("data")), &disturbed);
    same(&walk(&data(world)), &before);
    world.larder(&["backup", "restore", "shop", &fresh, "--into", "replaced"]).exits(3).says("not empty");
    world.larder(&["backup", "restore", "shop", &fresh, "--into", "../x"]).exits(3);

    // The next deployment uses the restored data. The removal of a restore point does not damage other restore points.
    world.larder(&["backup", "remove", "shop", id(&point)]).ok();
    world.larder(&["backup", "verify", "shop", id(&second)]).says("ok (");
    world.larder(&["backup", "show", "shop", id(&point)]).exits(4);
    world.larder(&["backup", "restore", "shop", id(&point), "--yes"]).exits(4);
    repo.page("version two");
    repo.push().accepted();
    assert_eq!(sh(world, "cat media/secret"), "secret");
    world.is_consistent("shop");
    world.larder(&["project", "destroy", "shop", "--confirm", "shop"]).ok();
    until("the trash is empty", || names(&world.root().join("trash")).is_empty());
}

fn visitors_wait_during_a_restore(world: &World) {
    shop(world);
    sh(world, "echo one > media/file");
    take(world);
    let visitor = world.visitor("shop");
    let restored = world.larder(&["--json", "backup", "restore", "shop", "latest", "--yes"]).json();
    assert!(restored["interrupted_ms"].as_u64().unwrap() > 0, "{restored}");
    visitor.satisfied();
    // If the release is scaled to zero, no process is stopped or started, but the data is exchanged.
    world.larder(&["ps", "shop", "--scale", "web=0"]).ok();
    fs::write(data(world).join("media/file"), "two").unwrap();
    let point = restored["restored"].as_str().unwrap();
    world.larder(&["backup", "restore", "shop", point, "--yes"]).ok();
    assert_eq!(fs::read_to_string(data(world).join("media/file")).unwrap(), "one\n");
}

fn sqlite_database_is_restored_with_rows_of_its_log(world: &World) {
    if crate::harness::installed("python3").is_none() {
        return;
    }
    let repo = shop(world);
    repo.write(
        "add.py",
        "import os, sqlite3\nc = sqlite3.connect('db.sqlite3')\nc.execute('pragma journal_mode=wal')\n\
         c.execute('create table if not exists t(x)')\nc.execute('insert into t values (1)')\nc.commit()\n\
         print(c.execute('select count(*) from t').fetchone()[0], flush=True)\nos._exit(0)\n",
    );
    repo.page("version two");
    repo.push().accepted();
    // The process exits without closing the database, so only the write-ahead log has the last rows.
    assert_eq!(sh(world, "python3 add.py; python3 add.py"), "1\n2");
    let point = take(world);
    // The restore point contains one consistent file without a log.
    world.larder(&["backup", "restore", "shop", id(&point), "--into", "consistent"]).ok();
    let copy = world.environment("shop").join("archives/restored/consistent/data");
    assert_eq!(names(&copy), [".larder-seed", "db.sqlite3", "media"]);
    assert_eq!(sh(world, "python3 add.py; python3 add.py"), "3\n4");
    world.larder(&["backup", "restore", "shop", id(&point), "--yes"]).ok();
    assert_eq!(sh(world, "python3 add.py"), "3");
}

fn damaged_restore_point_is_shown_and_refused(world: &World) {
    shop(world);
    sh(world, "echo upload > media/upload; echo other > media/other");
    take(world);
    let stored = stored(world, "upload\n");
    let mut bytes = fs::read(&stored).unwrap();
    bytes[0] ^= 1;
    fs::write(&stored, bytes).unwrap();
    sh(world, "echo changed > media/upload");
    let before = walk(&data(world));
    // A damaged restore point is refused even if no verification has found the damage yet.
    world.larder(&["backup", "restore", "shop", "latest", "--yes"]).exits(3).says("damaged").says("data/media/upload");
    world.larder(&["backup", "restore", "shop", "latest", "--into", "copy"]).exits(3).says("damaged");
    world.larder(&["backup", "verify", "shop"]).exits(1).says("damaged").says("data/media/upload: its content differs");
    world.larder(&["backup", "list", "shop"]).says("damaged");
    assert_eq!(world.larder(&["--json", "backup", "list", "shop"]).json()["points"][0]["state"], "damaged");
    same(&walk(&data(world)), &before);
    world.serves("shop", "version one");
    assert_eq!(names(&world.environment("shop").join("archives/restored")), Vec::<String>::new());
    // The next restore point does not share the damaged file.
    let next = take(world);
    world.larder(&["backup", "verify", "shop", id(&next)]).says("ok (");
    // A damaged manifest is reported without a verification.
    let index = store(world).join(id(&next)).join("point.json");
    let mut bytes = fs::read(&index).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&index, bytes).unwrap();
    world.larder(&["backup", "list", "shop"]).says("unusable");
    world.larder(&["backup", "restore", "shop", id(&next), "--yes"]).exits(3);
}

fn restore_killed_at_each_failpoint_leaves_old_or_restored_data(world: &World) {
    shop(world);
    sh(world, "echo old > media/file; echo gone > media/gone");
    let point = take(world);
    let old = walk(&data(world));
    sh(world, "echo new > media/file; rm media/gone; echo added > media/added");
    let new = walk(&data(world));
    let marks = world.directory().join("marks");
    fs::create_dir(&marks).unwrap();
    fs::set_permissions(&marks, fs::Permissions::from_mode(0o777)).unwrap();
    for (at, restored) in [("filled", false), ("taken", false), ("exchanged", true), ("cleared", true)] {
        // The failpoint kills the server only if its mark does not exist yet. Without the mark, the failpoint would also kill the next
        // server.
        world.restart(&[("FAILPOINTS", &format!("restore.{at}=return({})", marks.display()))]);
        let ended = world.larder(&["backup", "restore", "shop", id(&point), "--yes"]);
        assert_ne!(ended.status, 0, "{at}: the server was killed");
        until("the next server answers", || world.larder(&["status"]).status == 0);
        world.serves("shop", "version one");
        same(&walk(&data(world)), if restored { &old } else { &new });
        let end = if restored { "succeeded" } else { "did not happen" };
        until("the end is recorded", || world.larder(&["backup", "list", "shop"]).stdout.contains(end));
        until("nothing is left", || names(&world.environment("shop").join("restoring")).is_empty());
        world.is_consistent("shop");
    }
}

const CHANGE: &str = "for i in $(seq 2 300); do echo new > media/$i; done; rm media/1; echo added > media/added";

fn restore_killed_at_any_instant_leaves_old_or_restored_data(world: &World) {
    shop(world);
    sh(world, "for i in $(seq 300); do echo old > media/$i; done");
    let point = take(world);
    let old = walk(&data(world));
    sh(world, CHANGE);
    let mut new = walk(&data(world));
    let mut ends = [0, 0];
    for delay in [20, 60, 120, 200, 300, 450, 700, 1000] {
        let mut command = world.larder_command();
        command.args(["backup", "restore", "shop", id(&point), "--yes"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut restore = command.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        world.kill9_all();
        let _ = restore.wait();
        world.start(&[]);
        world.serves("shop", "version one");
        let found = walk(&data(world));
        let restored = found == old;
        ends[usize::from(restored)] += 1;
        same(&found, if restored { &old } else { &new });
        until("nothing is left", || names(&world.environment("shop").join("restoring")).is_empty());
        if restored {
            sh(world, CHANGE);
            new = walk(&data(world));
        }
    }
    assert!(ends[0] > 0, "no kill came before the exchange: {ends:?}");
}

fn restore_during_a_deployment_is_refused(world: &World) {
    let repo = shop(world);
    take(world);
    repo.program(".larder/post_build", "#!/bin/sh\nwhile ! test -e /cache/go; do sleep 0.05; done\n").page("version two");
    let restore = || world.larder(&["backup", "restore", "shop", "latest", "--yes"]);
    std::thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the push is being deployed", || !world.has_ended("shop"));
        restore().exits(3).says("being deployed");
        // A restore point can be taken during a deployment, because a capture does not change the data.
        take(world);
        let go = world.environment("shop").join("cache/go");
        fs::write(go, "").unwrap();
        push.join().unwrap().accepted();
    });
    until("the deployment is done", || restore().status == 0);
    world.serves("shop", "version two");
}

fn restore_into_a_frozen_environment_is_refused(world: &World) {
    let repo = shop(world);
    sh(world, "echo one > media/file");
    take(world);
    sh(world, "echo two > media/file");
    world.restart(&[("FAILPOINTS", "step.post_deploy.smoke=1*return;undo.deploy.switch=1*return")]);
    repo.page("version two");
    repo.push().rejected_with("frozen");
    let before = walk(&data(world));
    world.larder(&["backup", "restore", "shop", "latest", "--yes"]).exits(3).says("is frozen since").says("--unfreeze");
    same(&walk(&data(world)), &before);
    world.larder(&["backup", "list", "shop"]).keeps_quiet_about("last restore");
    world.larder(&["deploy", "shop", "--unfreeze"]).exits(0);
    world.larder(&["backup", "restore", "shop", "latest", "--yes"]).ok();
    assert_eq!(fs::read_to_string(data(world).join("media/file")).unwrap(), "one\n");
}

fn restore_point_of_another_project_or_newer_format_is_refused(world: &World) {
    shop(world);
    sh(world, "echo shop > media/file");
    let point = take(world);
    world.larder(&["project", "create", "blog", "--mode", "cooking"]).ok();
    let other = world.root().join("projects/blog/production/archives/points");
    let copied = |from: &Path, to: &Path| {
        let copy = std::process::Command::new("cp").args(["-a", "--"]).arg(from).arg(to).status().unwrap();
        assert!(copy.success());
        let owner = std::process::Command::new("chown").arg("-R").arg("--reference").arg(&other).arg(to).status().unwrap();
        assert!(owner.success());
    };
    copied(&store(world).join(id(&point)), &other.join(id(&point)));
    for way in [&["--yes"][..], &["--into", "copy"]] {
        let words = [&["backup", "restore", "blog", id(&point)], way].concat();
        world.larder(&words).exits(3).says("its label is").says("blog");
    }
    assert_eq!(names(&world.root().join("projects/blog/production/data")), Vec::<String>::new());
    let manifest = store(world).join(id(&point)).join("point.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replacen("\"version\": 2", "\"version\": 99", 1)).unwrap();
    world.larder(&["backup", "list", "shop"]).says("unusable");
    world.larder(&["backup", "restore", "shop", id(&point), "--yes"]).exits(3).says("version 99").says("hint: update larder");
}

fn pusher_may_take_and_operator_may_restore(world: &World) {
    shop(world);
    sh(world, "echo one > media/file");
    for user in ["ann", "bob"] {
        world.key(user);
        world.larder(&["user", "add", user, "--key-file", &world.public_key(user)]).ok();
    }
    world.larder(&["user", "grant", "ann", "shop", "deploy"]).ok();
    world.ssh("ann", &["backup", "take", "shop"]).ok();
    world.ssh("ann", &["backup", "list", "shop"]).says("not verified");
    world.ssh("ann", &["backup", "verify", "shop"]).says("ok (");
    for words in [
        &["backup", "restore", "shop", "latest", "--yes"][..],
        &["backup", "restore", "shop", "latest"],
        &["backup", "restore", "shop", "latest", "--into", "x"],
        &["backup", "remove", "shop", "latest"],
    ] {
        world.ssh("ann", words).exits(3).says("may not operate shop");
    }
    world.ssh("bob", &["backup", "list", "shop"]).exits(4);
    world.larder(&["user", "grant", "ann", "shop", "operate"]).ok();
    sh(world, "echo two > media/file");
    world.ssh("ann", &["backup", "restore", "shop", "latest", "--yes"]).says("has the data of");
    assert_eq!(sh(world, "cat media/file"), "one");
    world.ssh("ann", &["backup:remove", "shop", "latest"]).ok();
}

/// The replaced data is kept only as a restore point. An unreadable file is missing in this restore point, so a restore would lose the
/// file.
fn restore_without_a_complete_copy_of_the_live_data_is_refused(world: &World) {
    shop(world);
    sh(world, "echo one > media/file");
    take(world);
    sh(world, "echo two > media/file; echo hidden > media/hidden; chmod 0 media/hidden");
    let before = world.larder(&["backup", "take", "shop"]);
    before.says("media/hidden (unreadable)");
    world.larder(&["backup", "restore", "shop", "latest", "--yes"]).exits(3).says("missing file").says("media/hidden");
    assert_eq!(sh(world, "cat media/file"), "two");
    world.serves("shop", "version one");
}

#[test]
fn applications_cannot_reach_restore_points() {
    let Some(world) = World::system() else { return };
    shop(&world);
    sh(&world, "echo secret > media/file");
    take(&world);
    world.larder(&["project", "create", "blog", "--mode", "cooking"]).ok();
    let blog = Repo::new(&world, "blog");
    blog.write("Procfile", PROCFILE).write("larder.yml", "data: [media]\n");
    blog.page("blog");
    blog.push().accepted();
    let stored = stored(&world, "secret\n");
    let stored = stored.display();
    for project in ["shop", "blog"] {
        let script = format!(
            "cat {stored} 2>/dev/null && exit 9; echo damage 2>/dev/null > {stored} && exit 9; \
             ls /points /restored /restoring 2>/dev/null; find / -name point.json 2>/dev/null; \
             cat /proc/[0-9]*/root/points/*/point.json 2>/dev/null; exit 0"
        );
        let seen = world.larder(&["run", project, "--", "sh", "-c", &script]);
        assert!(!seen.ok().contains("point.json") && !seen.stdout.contains("digest"), "{project}: {}", seen.stdout);
    }
    world.larder(&["backup", "verify", "shop"]).says("ok (");
    assert_eq!(fs::metadata(store(&world)).unwrap().permissions().mode() & 0o7777, 0o700);
    world.end();
}
