//! Each system call of the workers for restore points fails once, fails from then on, or is the last call before a kill. strace injects the
//! errors. The result is a refusal or a success, the live data is unchanged, and the next run without an injection works.
//!
//! By default, a few faults of each job are injected; with `LARDER_TEST_THOROUGH`, all of them. `LARDER_TEST_FAULTS` sets another number of
//! faults of each job.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use larder::{
    backup::{
        BackupFailure, DatabaseAt, DatabaseJob, DumpJob, DumpPaths, DumpReport, PointInfo, PointLabel, PointOwner, PointState,
        RestoreJob, RestorePaths, dump_work, restore_work,
    },
    model::{DatabaseEngine, PointId},
};

use crate::backup::{same, walk};

/// The system calls that are counted and made to fail. The other calls of the workers cannot fail in practice, such as `close` and `mmap`.
const CALLS: [&str; 44] = [
    "openat",
    "openat2",
    "read",
    "pread64",
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "syncfs",
    "sync_file_range",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "mkdir",
    "mkdirat",
    "unlink",
    "unlinkat",
    "rmdir",
    "ftruncate",
    "fallocate",
    "chmod",
    "fchmod",
    "fchmodat",
    "fchown",
    "fchownat",
    "utimensat",
    "fsetxattr",
    "fgetxattr",
    "flistxattr",
    "getdents64",
    "statx",
    "newfstatat",
    "fstat",
    "lseek",
    "ioctl",
    "copy_file_range",
    "statfs",
    "fstatfs",
    "fcntl",
    "flock",
];

/// The faults of calls that write, and the faults of all other calls. `KILL` kills the worker when the call begins.
const WRITING: [&str; 4] = ["ENOSPC", "EIO", "EROFS", "KILL"];
const OTHER: [&str; 3] = ["EIO", "EMFILE", "KILL"];

/// The line of a child that is ready for its job.
const READY: &str = "the child is ready for its job";

/// The exit code of a child whose job is refused.
const REFUSED: i32 = 3;

/// The directories of the workers, without a server.
struct Places {
    directory: PathBuf,
    /// The same directory, if this process removes it at the end.
    _owned: Option<tempfile::TempDir>,
}

impl Places {
    /// Creates live data, the restore point `one`, and changes since this restore point.
    fn new() -> Places {
        let owned = tempfile::Builder::new().prefix("lf").tempdir().unwrap();
        let places = Places { directory: owned.path().to_owned(), _owned: Some(owned) };
        for name in ["data", "points", "restored", "restoring", "copy"] {
            fs::create_dir(places.at(name)).unwrap();
            fs::set_permissions(places.at(name), fs::Permissions::from_mode(0o700)).unwrap();
        }
        let data = places.at("data");
        fs::create_dir_all(data.join("media/deep")).unwrap();
        for (name, content) in [("top", "top"), ("media/one", "one"), ("media/deep/two", "two"), ("media/gone", "gone")] {
            fs::write(data.join(name), content).unwrap();
        }
        fs::hard_link(data.join("media/one"), data.join("media/hard")).unwrap();
        symlink("/etc/shadow", data.join("media/link")).unwrap();
        fs::set_permissions(data.join("media/deep"), fs::Permissions::from_mode(0o500)).unwrap();
        fs::File::create(data.join("media/sparse")).unwrap().set_len(1 << 20).unwrap();
        let _ = rustix::fs::setxattr(data.join("top"), "user.colour", b"blue", rustix::fs::XattrFlags::empty());
        places.sql("create table t(x); insert into t values (1)");
        // A file whose change time is not in the past yet counts as changed in the next capture.
        std::thread::sleep(std::time::Duration::from_millis(20));
        places.take(PointId::new(jiff::Timestamp::from_second(1_700_000_000).unwrap())).unwrap();
        fs::remove_file(data.join("media/gone")).unwrap();
        fs::write(data.join("media/added"), vec![7; 300_000]).unwrap();
        places.sql("insert into t values (2)");
        places
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn sql(&self, text: &str) {
        rusqlite::Connection::open(self.at("data/app.sqlite3")).unwrap().execute_batch(text).unwrap();
    }

    fn dump(&self, job: &DumpJob) -> Result<DumpReport, BackupFailure> {
        let mut last = None;
        // A program that another test has just started may hold the lock of the store until its exec.
        crate::harness::within(std::time::Duration::from_secs(5), || {
            let done = dump_work(job, &DumpPaths { data: self.at("data"), points: self.at("points") });
            let is_busy = matches!(&done, Err(failure) if failure.why.contains("another operation"));
            last = Some(done);
            !is_busy
        });
        last.unwrap()
    }

    fn take(&self, id: PointId) -> Result<(), BackupFailure> {
        self.dump(&take(id)).map(drop)
    }

    fn list(&self) -> Vec<PointInfo> {
        match self.dump(&DumpJob::List) {
            Ok(DumpReport::List(points, _)) => points,
            other => panic!("{other:?}"),
        }
    }

    /// Asserts that a restore point reads back without damage.
    fn is_whole(&self, id: &str) {
        let report = self.dump(&DumpJob::Verify { point: id.to_owned() });
        let Ok(DumpReport::Point(info, damages)) = report else { panic!("{report:?}") };
        assert!(matches!(info.state, PointState::Verified(_)), "{id} is {:?}: {damages:?}", info.state);
    }

    fn restore(&self, job: &RestoreJob) -> Result<(), BackupFailure> {
        let paths = RestorePaths {
            data: self.at("data"),
            points: self.at("points"),
            restored: self.at("restored"),
            restoring: self.at("restoring"),
            copy: self.at("copy"),
            custom: self.at("custom"),
        };
        restore_work(job, &paths, emptied).map(drop)
    }
}

fn emptied(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            for inside in [path.join("media/deep"), path.clone()].iter().filter(|path| path.is_dir()) {
                fs::set_permissions(inside, fs::Permissions::from_mode(0o700))?;
            }
            fs::remove_dir_all(path)?;
        } else {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn owner() -> PointOwner {
    PointOwner { project: "shop".parse().unwrap(), environment: "production".parse().unwrap() }
}

fn take(id: PointId) -> DumpJob {
    let label = PointLabel {
        project: owner().project,
        environment: owner().environment,
        release: None,
        number: None,
        commit: None,
        by: "ann".parse().unwrap(),
        reason: String::from("a test"),
        databases: Vec::new(),
        custom: false,
        sessions: Vec::new(),
        configuration: None,
    };
    let database = DatabaseJob {
        name: "app".parse().unwrap(),
        engine: DatabaseEngine::Sqlite,
        at: DatabaseAt::File("app.sqlite3".into()),
        is_declared: true,
    };
    DumpJob::Take { id, label, exact: false, databases: vec![database], copies: Vec::new() }
}

/// The jobs whose system calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Take,
    Verify,
    Remove,
    Fill,
    Beside,
    Drill,
}

impl Job {
    const ALL: [Job; 6] = [Job::Take, Job::Verify, Job::Remove, Job::Fill, Job::Beside, Job::Drill];

    fn run(self, places: &Places) -> Result<(), BackupFailure> {
        let point = String::from("latest");
        match self {
            Job::Take => places.take(PointId::new(jiff::Timestamp::from_second(1_700_000_100).unwrap())),
            Job::Verify => places.dump(&DumpJob::Verify { point }).and_then(|report| match report {
                DumpReport::Point(info, _) if matches!(info.state, PointState::Verified(_)) => Ok(()),
                _ => Err(BackupFailure {
                    kind: larder::backup::FailureKind::Damaged,
                    why: String::from("the verification found damage"),
                    hint: None,
                }),
            }),
            Job::Remove => places.dump(&DumpJob::Remove { point }).map(drop),
            Job::Fill => places.restore(&RestoreJob::Fill { point, owner: owner(), databases: Vec::new() }),
            Job::Beside => places.restore(&RestoreJob::Beside { point, owner: owner(), name: String::from("copy") }),
            Job::Drill => places.restore(&RestoreJob::Drill { point, owner: owner() }),
        }
    }
}

impl Job {
    /// Asserts that the job succeeds. A program that another test has just started may hold the lock of the store until its exec.
    fn works(self, places: &Places, after: &str) {
        let mut last = Ok(());
        crate::harness::within(std::time::Duration::from_secs(5), || {
            last = self.run(places);
            !matches!(&last, Err(failure) if failure.why.contains("another operation"))
        });
        last.unwrap_or_else(|failure| panic!("{self:?} after {after}: {failure}"));
    }
}

#[test]
#[ignore = "a child of the tests below"]
fn child_runs_a_job() {
    let wanted = std::env::var("FAULTS_JOB").expect("the job of the parent");
    let job = Job::ALL.into_iter().find(|job| format!("{job:?}") == wanted).unwrap();
    let directory = std::env::var_os("FAULTS_DIR").unwrap();
    let places = Places { directory: directory.into(), _owned: None };
    // The parent attaches strace after it has read this line, and before it writes a line. A fault during the start of the program would not be
    // a fault of the job.
    println!("{READY}");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    match job.run(&places) {
        Ok(()) => std::process::exit(0),
        Err(failure) => {
            // A sticky fault of `write` also concerns this line, for which `eprintln` would panic.
            let _ = writeln!(std::io::stderr(), "refused: {failure}");
            std::process::exit(REFUSED);
        }
    }
}

/// The end of a child.
struct End {
    status: ExitStatus,
    stderr: String,
}

/// Runs a job in a child below strace with further arguments. The trace is written to `trace`.
fn traced(strace: &Path, job: Job, places: &Places, arguments: &[String], trace: &Path) -> End {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "syscall_faults::child_runs_a_job", "--ignored", "--nocapture", "--test-threads=1"])
        .env("FAULTS_JOB", format!("{job:?}"))
        .env("FAULTS_DIR", &places.directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(READY) {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child does not start");
    }
    let mut tracer = Command::new(strace)
        .args(["-f", "-o"])
        .arg(trace)
        .args(["-p", &child.id().to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(tracer.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("attached") {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "strace does not attach");
    }
    let _ = child.stdin.take().unwrap().write_all(b"\n");
    let drained = std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    let printed = std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    let end = ended(child);
    let _ = tracer.wait();
    let _ = (drained.join(), printed.join());
    end
}

/// Waits for the end of a child. A child that hangs is killed.
fn ended(mut child: Child) -> End {
    let pid = child.id() as i32;
    let mut status = None;
    let in_time = crate::harness::within(std::time::Duration::from_secs(60), || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    if !in_time {
        crate::harness::processes::signal(pid, rustix::process::Signal::KILL);
    }
    let output = child.wait_with_output().unwrap();
    assert!(in_time, "a worker hangs after a failed system call: {}", String::from_utf8_lossy(&output.stderr));
    End { status: output.status, stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
}

/// Returns the largest number of calls of one thread, for each system call of a job.
fn counted(strace: &Path, job: Job) -> BTreeMap<String, usize> {
    let places = Places::new();
    let trace = places.at("trace");
    let calls = format!("trace={}", CALLS.join(","));
    let end = traced(strace, job, &places, &[String::from("-e"), calls], &trace);
    assert!(end.status.success(), "{job:?} without a fault: {}", end.stderr);
    let text = String::from_utf8_lossy(&fs::read(&trace).unwrap()).into_owned();
    let mut counts = BTreeMap::<(&str, &str), usize>::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
        if CALLS.contains(&call) {
            *counts.entry((thread, call)).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, call), count) in counts {
        let known = most.entry(call.to_owned()).or_default();
        *known = count.max(*known);
    }
    most
}

/// Returns the arguments of strace for each fault of a job.
fn faults(counts: &BTreeMap<String, usize>) -> Vec<String> {
    let mut all = Vec::new();
    for (call, count) in counts {
        let writes =
            ["write", "sync", "rename", "link", "mkdir", "ftruncate", "allocate", "ch", "setxattr", "utimens", "openat", "copy"];
        let errors = if writes.iter().any(|part| call.contains(part)) { &WRITING[..] } else { &OTHER[..] };
        let more = if call.starts_with("openat") { &["EMFILE"][..] } else { &[] };
        for error in errors.iter().chain(more) {
            // The child waits in its first `read` for the line of the parent.
            for number in if call == "read" { 2 } else { 1 }..=*count {
                match *error {
                    "KILL" => all.push(format!("inject={call}:signal=SIGKILL:when={number}")),
                    error => all.extend(["", "+"].map(|sticky| format!("inject={call}:error={error}:when={number}{sticky}"))),
                }
            }
        }
    }
    all
}

/// Asserts the state after a fault, and that the job then works.
fn survives(places: &Places, job: Job, end: &End) {
    let is_done = end.status.success();
    let points = places.list();
    let ids: Vec<_> = points.iter().map(|point| point.id.clone()).collect();
    let (first, second) = (ids.last(), ids.first().filter(|_| ids.len() == 2));
    match job {
        Job::Take => {
            assert!(second.is_some() || !is_done, "the restore point of a successful capture is missing");
            for point in &points {
                assert!(
                    !matches!(point.state, PointState::Verified(_)) || Some(&point.id) == first,
                    "a restore point is ok that was not read back"
                );
            }
        }
        Job::Verify if is_done => {
            assert!(points.iter().all(|point| matches!(point.state, PointState::Verified(_))), "{points:?}")
        }
        _ => {}
    }
    ids.iter().for_each(|id| places.is_whole(id));
    if let Some(second) = second {
        places.dump(&DumpJob::Remove { point: second.clone() }).unwrap();
    }
    places.dump(&DumpJob::Sweep).unwrap();
    let stored: Vec<_> = crate::harness::state::names(&places.at("points"))
        .into_iter()
        .filter(|name| name != "lock" && name != ".contents")
        .collect();
    assert!(stored.iter().all(|name| ids.contains(name)), "leftovers in the store: {stored:?}");
}

/// The result of a job on the disk, without a fault.
fn result(places: &Places, job: Job) -> Option<PathBuf> {
    match job {
        Job::Fill => Some(places.at("restoring")),
        Job::Beside => Some(places.at("restored/copy/data")),
        _ => None,
    }
}

fn each_fault(jobs: &[Job]) {
    let Some(strace) = crate::harness::installed("strace") else { return };
    let limit = std::env::var("LARDER_TEST_FAULTS").ok().and_then(|text| text.parse().ok());
    let limit = limit.unwrap_or(if crate::harness::thorough() { usize::MAX } else { 12 });
    for job in jobs {
        let all = faults(&counted(&strace, *job));
        assert!(all.len() > 50, "{job:?} has only {} faults: does strace work?", all.len());
        let step = all.len().div_ceil(limit.min(all.len()));
        let mut counts = BTreeMap::<&str, usize>::new();
        let mut places = Places::new();
        let mut live = walk(&places.at("data"));
        let expected = result(&places, *job).map(|directory| {
            job.works(&places, "the preparation");
            walk(&directory)
        });
        let mut refusals = BTreeSet::new();
        for fault in all.iter().step_by(step) {
            reset(&places);
            let end = traced(&strace, *job, &places, &[String::from("-e"), fault.clone()], Path::new("/dev/null"));
            let is_killed = end.status.signal() == Some(9) && fault.contains("SIGKILL");
            let is_clean = end.status.success() || is_killed || end.status.code() == Some(REFUSED);
            assert!(is_clean, "{job:?} with {fault}: {}: {}", end.status, end.stderr);
            *counts
                .entry(if is_killed {
                    "killed"
                } else if end.status.success() {
                    "succeeded"
                } else {
                    "refused"
                })
                .or_default() += 1;
            refusals.extend(end.stderr.lines().find(|line| line.starts_with("refused: ")).map(str::to_owned));
            eprintln!("{job:?} with {fault}: {}", end.status);
            same(&walk(&places.at("data")), &live);
            if let (Some(directory), Some(expected), true) = (result(&places, *job), &expected, end.status.success()) {
                same(&walk(&directory), expected);
            }
            survives(&places, *job, &end);
            reset(&places);
            if *job == Job::Remove && places.list().is_empty() {
                places = Places::new();
                live = walk(&places.at("data"));
                continue;
            }
            job.works(&places, fault);
            let left = crate::harness::state::names(&places.at("restored"));
            assert!(left.iter().all(|name| name == "copy"), "{job:?} after {fault} leaves {left:?} in restored/");
            match (result(&places, *job), &expected) {
                (Some(directory), Some(expected)) => same(&walk(&directory), expected),
                // These jobs change the store, so the next fault needs the first store again.
                _ if matches!(job, Job::Take | Job::Remove) => {
                    places = Places::new();
                    live = walk(&places.at("data"));
                }
                _ => {}
            }
        }
        assert!(refusals.iter().all(|line| line.len() > 20), "a refusal has no cause: {refusals:?}");
        eprintln!(
            "system calls of {job:?}: {} of {} faults, {counts:?}, {} different refusals",
            all.len().div_ceil(step),
            all.len(),
            refusals.len()
        );
    }
}

fn reset(places: &Places) {
    emptied(&places.at("copy")).unwrap();
    for name in ["restored/copy", "restored/.drill"] {
        let at = places.at(name);
        if at.exists() {
            emptied(&at).unwrap();
            fs::remove_dir(at).unwrap();
        }
    }
}

#[test]
fn failed_system_call_of_a_dump_worker_is_a_refusal_and_the_next_run_works() {
    each_fault(&[Job::Take, Job::Verify, Job::Remove]);
}

#[test]
fn failed_system_call_of_a_restore_worker_is_a_refusal_and_the_next_run_works() {
    each_fault(&[Job::Fill, Job::Beside, Job::Drill]);
}
