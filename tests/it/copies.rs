//! Copies of PostgreSQL databases on their server: a hold takes its restore point by `CREATE DATABASE … TEMPLATE`, a failed upgrade puts the copy
//! back by a rename, and no copy stays.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    process::{Child, Stdio},
    time::Duration,
};

use rustix::process::Signal;

use crate::harness::{Repo, World, in_one_mode, postgres::Postgres, processes, state::names, thorough, until, within};

in_one_mode!(
    failed_upgrade_puts_the_copy_of_the_database_back_by_a_rename,
    committed_upgrade_writes_the_dump_of_its_restore_point_from_the_copy,
    database_that_cannot_be_copied_is_dumped_for_the_named_reason,
    session_that_appears_during_the_hold_does_not_prevent_the_restore,
    upgrade_with_a_copy_killed_at_each_step_leaves_the_old_database_and_no_copy,
    deployment_in_place_puts_the_copy_back_or_writes_its_dump,
    deployment_in_place_with_a_copy_killed_at_each_step_leaves_the_old_database_and_no_copy,
    worker_killed_during_the_copy_leaves_no_copy,
    worker_killed_during_the_return_of_the_copy_is_repeated,
);

const SCHEMA: &str = "create table orders(id serial primary key, note text); insert into orders(note) values ('one'), ('two')";

/// An upgrade that damages the database.
const UPGRADE: &str = "alter table orders drop column note; insert into orders default values; create table added(x int)";

/// Deploys a first release with a database whose role may create databases.
fn shop<'w>(world: &'w World, postgres: &Postgres) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    postgres.sql("postgres", "alter role shop createdb; create role reader");
    let rights = "revoke all on database shop from public; grant connect on database shop to reader; \
                  comment on database shop is 'orders'; alter database shop connection limit 77";
    postgres.sql("postgres", rights);
    repo.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", recipe(postgres, ""));
    repo.write("upgrade.sh", format!("exec psql -w -q \"$DATABASE_URL\" -c '{UPGRADE}'\n"));
    repo.page("version one");
    repo.push().accepted();
    postgres.shop(SCHEMA);
    repo
}

fn recipe(postgres: &Postgres, lines: &str) -> String {
    format!("env: {{DATABASE_URL: \"{}\"}}\n{lines}", postgres.url(Postgres::PASSWORD))
}

/// The lines of a recipe whose upgrade succeeds and whose release is not healthy.
const FAILING: &str = "health: {path: /missing, timeout: 1s}\nupgrade: {run: sh upgrade.sh, safety: hold}\n";

/// Returns the rights, the comment and the limit of the database.
fn settings(postgres: &Postgres) -> String {
    let columns = "coalesce(datacl::text, '-'), shobj_description(oid, 'pg_database'), datconnlimit, datdba::regrole";
    postgres.sql("postgres", &format!("select {columns} from pg_database where datname = 'shop'"))
}

fn oid(postgres: &Postgres) -> String {
    postgres.sql("postgres", "select oid from pg_database where datname = 'shop'")
}

/// Waits until no database of larder is left, and no record of one.
#[track_caller]
fn is_clean(world: &World, postgres: &Postgres) {
    until("no copy is left", || {
        let left = postgres.sql("postgres", "select count(*) from pg_database where datname like '%larder%'");
        left == "0" && !world.environment("shop").join("copies.json").exists()
    });
}

fn points(world: &World) -> Vec<serde_json::Value> {
    world.larder(&["--json", "backup", "list", "shop"]).json()["points"].as_array().cloned().unwrap_or_default()
}

fn failed_upgrade_puts_the_copy_of_the_database_back_by_a_rename(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    let repo = shop(world, &postgres);
    let (before, rights, old) = (postgres.content(), settings(&postgres), oid(&postgres));
    repo.write("larder.yml", recipe(&postgres, FAILING)).page("version two");
    let push = repo.push();
    push.rejected_with("web.1 answered 404 to GET /missing").says("restore point of main: copy on the server of");
    push.says("main was copied on its server in").says("(assumed rate)");
    assert_eq!(postgres.content(), before);
    assert_ne!(oid(&postgres), old, "the database is the copy");
    assert_eq!(settings(&postgres), rights);
    world.serves("shop", "version one");
    is_clean(world, &postgres);
    // The restore point whose database was put back has no dump, so only the earlier restore point stays.
    until("one restore point is left", || points(world).len() == 1);
    world.larder(&["backup", "verify", "shop"]).ok();
    world.is_consistent("shop");
    // The next estimate is measured.
    repo.page("version three");
    repo.push().rejected_with("web.1 answered 404").says("(measured on ");
    assert_eq!(postgres.content(), before);
    world.larder(&["plan", "shop"]).ok();
    is_clean(world, &postgres);
}

fn committed_upgrade_writes_the_dump_of_its_restore_point_from_the_copy(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    let repo = shop(world, &postgres);
    let before = postgres.content();
    repo.write("larder.yml", recipe(&postgres, "upgrade: sh upgrade.sh\n")).page("version two");
    repo.push().accepted().says("Upgrade with a hold").says("main was copied on its server in").says("the dump follows");
    assert!(postgres.content().contains("added"));
    is_clean(world, &postgres);
    let all = points(world);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["state"], "unverified", "{all:?}");
    world.larder(&["backup", "verify", "shop"]).ok();
    let shown = world.larder(&["--json", "release", "show", "shop", "v2"]).json();
    let main = &shown["hold"]["methods"][0];
    assert_eq!((main["what"].as_str(), main["method"].as_str()), (Some("main"), Some("template-copy")), "{shown}");
    assert!(main["took_ms"].is_u64() && main["estimate_ms"].is_u64() && shown["hold"]["held_ms"].is_u64(), "{shown}");
    world.larder(&["plan", "shop"]).says("restore point of main: copy on the server").says("(measured on ");
    world.larder(&["backup", "restore", "shop", "latest", "--yes"]).ok();
    assert_eq!(postgres.content(), before);
    world.is_consistent("shop");
}

/// A client that is connected to the database as the administrator. Dropping the value ends the session.
struct Session(Child);

impl Session {
    fn open(postgres: &Postgres, database: &str) -> Session {
        let mut client = postgres.client(database).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        client.stdin.as_mut().unwrap().write_all(b"select 1;\n").unwrap();
        let count = format!("select count(*) from pg_stat_activity where datname = '{database}' and usename = 'postgres'");
        until("the session is open", || postgres.sql("template1", &count) != "0");
        Session(client)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn database_that_cannot_be_copied_is_dumped_for_the_named_reason(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    let repo = shop(world, &postgres);
    let before = postgres.content();
    repo.write("larder.yml", recipe(&postgres, FAILING)).page("version two");
    let dumped = |why: &str, page: &str| {
        repo.page(page);
        let push = repo.push();
        push.rejected_with("web.1 answered 404").says("restore point of main: dump of").says(&format!("because {why}"));
        assert_eq!(postgres.content(), before);
        is_clean(world, &postgres);
    };
    let session = Session::open(&postgres, "shop");
    dumped("other sessions use the database: 1, of postgres", "version three");
    drop(session);
    postgres.sql("postgres", "alter database shop set work_mem = '5MB'");
    dumped("the database has settings of its own", "version four");
    postgres.sql("postgres", "alter database shop reset work_mem; alter role shop nocreatedb");
    dumped("the role in its URL may not create databases (CREATEDB)", "version five");
}

/// The upgrade opens a session of another role, so the database cannot be renamed, and is restored in one transaction.
fn session_that_appears_during_the_hold_does_not_prevent_the_restore(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    let repo = shop(world, &postgres);
    let (before, old) = (postgres.content(), oid(&postgres));
    let wait = "upgrade: {run: \"sh upgrade.sh && touch $LARDER_DATA/open && while test -e $LARDER_DATA/open; do sleep 0.05; done\", \
                safety: hold}\n";
    repo.write("larder.yml", recipe(&postgres, &FAILING.replace("upgrade: {run: sh upgrade.sh, safety: hold}\n", wait)));
    repo.page("version two");
    let open = world.environment("shop").join("data/open");
    std::thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the upgrade waits", || open.exists());
        let _session = Session::open(&postgres, "shop");
        fs::remove_file(&open).unwrap();
        push.join().unwrap().rejected_with("web.1 answered 404").says("main was copied on its server in");
    });
    assert_eq!(postgres.content(), before);
    assert_eq!(oid(&postgres), old, "the database was not renamed");
    world.serves("shop", "version one");
    is_clean(world, &postgres);
}

/// The line of the recipe for deployments in place.
const IN_PLACE: &str = "strategy: in-place\n";

fn deployment_in_place_puts_the_copy_back_or_writes_its_dump(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    let repo = shop(world, &postgres);
    let (before, rights, old) = (postgres.content(), settings(&postgres), oid(&postgres));
    for page in ["version two", "version three"] {
        repo.write("larder.yml", recipe(&postgres, &format!("{IN_PLACE}{FAILING}"))).page(page);
        let push = repo.push();
        push.rejected_with("web.1 answered 404 to GET /missing").says("Replacing v1 in place");
        push.says("main was copied on its server in");
        assert_eq!(postgres.content(), before);
        assert_ne!(oid(&postgres), old, "the database is the copy");
        assert_eq!(settings(&postgres), rights);
        world.serves("shop", "version one");
        is_clean(world, &postgres);
    }
    until("one restore point of each deployment is left", || points(world).iter().all(|point| point["state"] == "unverified"));
    repo.write("larder.yml", recipe(&postgres, &format!("{IN_PLACE}upgrade: sh upgrade.sh\n"))).page("version four");
    repo.push().accepted().says("Replacing v1 in place").says("the dump follows");
    assert!(postgres.content().contains("added"));
    is_clean(world, &postgres);
    world.larder(&["backup", "verify", "shop"]).ok();
    world.larder(&["backup", "restore", "shop", "latest", "--yes"]).ok();
    assert_eq!(postgres.content(), before);
    world.is_consistent("shop");
}

/// Returns the moments at which the server is killed: before and after the copy, and during each act of the restore, which the undo of
/// `undo` begins.
fn events(undo: &str) -> Vec<String> {
    let journal = ["started.deploy.point", "succeeded.deploy.point", "succeeded.deploy.release"].map(str::to_owned);
    let undo = format!("undo_started.{undo}");
    let restore = ["restore.database", "restore.returned", "restore.served", "restore.completed"];
    let journal = journal.into_iter().chain([undo]).map(|event| format!("journal.{event}"));
    journal.chain(restore.map(str::to_owned)).collect()
}

fn upgrade_with_a_copy_killed_at_each_step_leaves_the_old_database_and_no_copy(world: &World) {
    survives_kills(world, FAILING, &events("deploy.quiesce"));
}

/// By default, the server is killed at two of the steps.
fn deployment_in_place_with_a_copy_killed_at_each_step_leaves_the_old_database_and_no_copy(world: &World) {
    let mut events = events("deploy.stop");
    if !thorough() {
        events.retain(|event| ["journal.succeeded.deploy.point", "restore.database"].contains(&event.as_str()));
    }
    survives_kills(world, &format!("{IN_PLACE}{FAILING}"), &events);
}

/// Pushes a release that fails, and kills the server once at each of `events`. `lines` are the lines of the recipe.
fn survives_kills(world: &World, lines: &str, events: &[String]) {
    let Some(postgres) = Postgres::start(world) else { return };
    let repo = shop(world, &postgres);
    let before = postgres.content();
    let marks = world.directory().join("marks");
    fs::create_dir(&marks).unwrap();
    fs::set_permissions(&marks, fs::Permissions::from_mode(0o777)).unwrap();
    let points: Vec<_> = events.iter().map(|event| format!("{event}=return({})", marks.display())).collect();
    let points = points.join(";");
    world.restart(&[("FAILPOINTS", &points)]);
    for round in 0..=events.len() {
        let died = names(&marks).len();
        if died == events.len() {
            break;
        }
        repo.write("larder.yml", recipe(&postgres, lines)).page(&format!("version {round}"));
        let push = repo.push();
        until("the deployment has ended", || {
            let now = names(&marks).len();
            world.larder(&["status"]).status == 0 && world.has_ended("shop") && names(&marks).len() == now
        });
        assert_ne!(push.0.status, 0);
        assert_eq!(postgres.content(), before, "after {:?}: {}", names(&marks), push.0);
        is_clean(world, &postgres);
        world.serves("shop", "version one");
        within(Duration::from_secs(5), || names(&marks).len() > died);
        world.restart(&[("FAILPOINTS", &points)]);
    }
    let died = names(&marks);
    let missed: Vec<_> = events.iter().filter(|event| !died.contains(event)).collect();
    assert!(missed.is_empty(), "no kill happened at {missed:?}");
    world.is_consistent("shop");
}

/// A transaction of the administrator that makes other sessions wait. Dropping the value ends the transaction.
struct Lock(Child);

impl Lock {
    fn take(postgres: &Postgres, statement: &str) -> Lock {
        let mut client = postgres.client("template1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        client.stdin.as_mut().unwrap().write_all(format!("begin; {statement}; select 'locked';\n").as_bytes()).unwrap();
        let mut answer = String::new();
        let mut lines = BufReader::new(client.stdout.take().unwrap());
        while !answer.contains("locked") {
            assert_ne!(lines.read_line(&mut answer).unwrap(), 0, "{answer}");
        }
        Lock(client)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Waits until a session of the application's role waits in a statement that begins with `statement`, and kills the workers of the world that
/// dump or restore.
fn kill_worker_at(world: &World, postgres: &Postgres, statement: &str) {
    let waiting = format!(
        "select count(*) from pg_stat_activity where usename = 'shop' and state = 'active' \
         and wait_event_type in ('Lock', 'IPC') and query ilike '{statement}%'"
    );
    until(&format!("a session waits in {statement}"), || postgres.sql("postgres", &waiting) != "0");
    let is_worker = |one: &processes::Process| one.arguments.iter().any(|word| word == "dump" || word == "restore");
    let workers: Vec<_> = processes::of(world.directory()).into_iter().filter(is_worker).collect();
    assert!(!workers.is_empty(), "no worker runs");
    workers.iter().for_each(|worker| processes::signal(worker.pid, Signal::KILL));
}

/// The worker is killed while the server is in `CREATE DATABASE`. The deployment fails, and the server's session and its copy go away.
fn worker_killed_during_the_copy_leaves_no_copy(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    let repo = shop(world, &postgres);
    let (before, old) = (postgres.content(), oid(&postgres));
    for (page, strategy) in [("version two", ""), ("version three", IN_PLACE)] {
        repo.write("larder.yml", recipe(&postgres, &format!("{strategy}{FAILING}"))).page(page);
        // `CREATE DATABASE` writes to this table after it has entered the copy, and before it copies the files.
        let lock = Lock::take(&postgres, "lock table pg_shdepend in share mode");
        std::thread::scope(|scope| {
            let push = scope.spawn(|| repo.push());
            kill_worker_at(world, &postgres, "create database");
            push.join().unwrap().rejected_with("the dump worker was killed").says("v1 is still live");
        });
        drop(lock);
        assert_eq!((postgres.content(), oid(&postgres)), (before.clone(), old.clone()));
        world.serves("shop", "version one");
        is_clean(world, &postgres);
    }
    world.is_consistent("shop");
}

/// The worker is killed at the first rename, between the two renames, and while the server commits them. The restore is repeated.
fn worker_killed_during_the_return_of_the_copy_is_repeated(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    let repo = shop(world, &postgres);
    let before = postgres.content();
    let open = world.environment("shop").join("data/open");
    let wait = "upgrade: {run: \"sh upgrade.sh && touch $LARDER_DATA/open && while test -e $LARDER_DATA/open; do sleep 0.05; done\", \
                safety: hold}\n";
    repo.write("larder.yml", recipe(&postgres, &FAILING.replace("upgrade: {run: sh upgrade.sh, safety: hold}\n", wait)));
    let rows = |condition: &str| format!("select 1 from pg_database where {condition} for update");
    // Without a standby of this name, a commit of the role is on the disk, and does not become visible to other sessions.
    let commit = "alter system set synchronous_standby_names = 'none'";
    postgres.sql("postgres", "alter system set synchronous_commit = local");
    postgres.sql("postgres", "select pg_reload_conf()");
    for (locked, statement) in [
        (rows("datname = 'shop'"), "alter database \"shop\" rename"),
        (rows("datname like 'shop_larder_%'"), "alter database \"shop_larder"),
        (String::new(), "commit"),
    ] {
        let old = oid(&postgres);
        repo.page(statement);
        std::thread::scope(|scope| {
            let push = scope.spawn(|| repo.push());
            until("the upgrade waits", || open.exists());
            let lock = (!locked.is_empty()).then(|| Lock::take(&postgres, &locked));
            if lock.is_none() {
                postgres.sql("postgres", commit);
                postgres.sql("postgres", "alter role shop set synchronous_commit = on");
                postgres.sql("postgres", "select pg_reload_conf()");
            }
            fs::remove_file(&open).unwrap();
            kill_worker_at(world, &postgres, statement);
            if lock.is_none() {
                // The next session of the role does not wait. The session of the killed worker still waits.
                postgres.sql("postgres", "alter role shop reset synchronous_commit");
            }
            drop(lock);
            push.join().unwrap().rejected_with("web.1 answered 404").says("v1 is still live");
        });
        postgres.sql("postgres", "alter system reset synchronous_standby_names");
        postgres.sql("postgres", "select pg_reload_conf()");
        assert_eq!(postgres.content(), before, "{statement}");
        assert_ne!(oid(&postgres), old, "{statement}: the database is the copy");
        world.serves("shop", "version one");
        is_clean(world, &postgres);
        world.is_consistent("shop");
    }
}
