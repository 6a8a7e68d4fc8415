//! Databases in restore points: dumps, restores together with the files, kills between the two, and refusals.

use std::{
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::harness::{Repo, World, in_each_mode, in_one_mode, postgres::Postgres, state::names, until};

in_each_mode!(postgres_and_files_are_restored_together);
in_one_mode!(
    restore_killed_at_each_point_leaves_old_or_restored_files_and_databases,
    unreachable_database_fails_a_restore_point_and_nothing_is_stopped,
    failed_replacement_leaves_old_database_and_files,
    failed_upgrade_and_rollback_with_data_return_the_database,
    upgrade_without_the_recognised_database_runs_online_and_with_a_declared_one_is_refused,
    load_excludes_restores_and_other_loads,
    restore_waits_for_a_database_that_is_down_after_a_kill,
    project_with_an_unfinished_restore_can_be_removed,
    sqlite_database_in_use_is_captured_consistently,
);

const PROCFILE: &str = "web: exec larder static-server --root .\n";

fn data(world: &World) -> PathBuf {
    world.environment("shop").join("data")
}

fn shop<'w>(world: &'w World, recipe: &str) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", PROCFILE).write("larder.yml", recipe);
    repo.page("version one");
    repo.push().accepted();
    repo
}

fn sh(world: &World, script: &str) -> String {
    world.larder(&["run", "shop", "--", "sh", "-ec", script]).ok().trim().to_owned()
}

fn take(world: &World) -> serde_json::Value {
    world.larder(&["--json", "backup", "take", "shop"]).json()
}

fn id(point: &serde_json::Value) -> &str {
    point["id"].as_str().unwrap()
}

fn recipe(url: &str) -> String {
    format!("data: [media]\nenv: {{DATABASE_URL: \"{url}\"}}\n")
}

/// Tables, a sequence, a view, a function, an enumeration, a second schema, a foreign key, a large object, and comments.
const SCHEMA: &str =
    "create table orders(id serial primary key, note text not null); insert into orders(note) values ('one'), ('two');
    create schema other; create type other.colour as enum ('red', 'blue');
    create table other.items(id int primary key, \"order\" int references public.orders, colour other.colour);
    insert into other.items values (1, 1, 'red'); create view totals as select count(*) from orders;
    create function twice(x int) returns int language sql as 'select 2 * x'; comment on table orders is 'it''s a table';
    create index on orders(note); select lo_from_bytea(0, 'large');";

/// The damage of a faulty upgrade: a dropped column and table, new objects, changed rows.
const UPGRADE: &str =
    "drop view totals; drop table other.items; alter table orders drop column note; alter table orders add column price int;
    insert into orders(price) values (7); create table added(x int); create schema later; create table later.t(x int);
    drop function twice(int); create function thrice(x int) returns int language sql as 'select 3 * x';
    create type mood as enum ('good'); create domain plain as int; select lo_unlink(oid) from pg_largeobject_metadata;";

/// Returns true if a file below `directory` contains `text`.
fn contains(directory: &Path, text: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            if let Some(found) = contains(&path, text) {
                return Some(found);
            }
        } else if kind.is_file() {
            let mut bytes = Vec::new();
            let _ = fs::File::open(&path).and_then(|file| file.take(8 << 20).read_to_end(&mut bytes));
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                return Some(path);
            }
        }
    }
    None
}

fn postgres_and_files_are_restored_together(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    shop(world, &recipe(&postgres.url(Postgres::PASSWORD)));
    postgres.shop(SCHEMA);
    // An extension that only a superuser could create again stays installed.
    postgres.sql("shop", "create extension file_fdw; comment on extension file_fdw is 'kept'");
    sh(world, "echo old > media/file");
    let point = take(world);
    assert_eq!(point["databases"][0]["name"], "main", "{point}");
    assert_eq!(point["databases"][0]["path"], "databases/main.dump");
    world.larder(&["backup", "show", "shop"]).says("main: PostgreSQL 15").says("databases/main.dump");
    world.larder(&["backup", "verify", "shop"]).says("ok (");
    // The dump has no counterpart among the live files, and does not count as a removed file.
    let diff = world.larder(&["--json", "backup", "diff", "shop", id(&point)]).json();
    assert_eq!((&diff["removed"], &diff["added"], &diff["changed"]), (&0.into(), &0.into(), &0.into()), "{diff}");
    let before = postgres.content();

    postgres.shop(UPGRADE);
    sh(world, "echo new > media/file");
    assert_ne!(postgres.content(), before);
    let after = postgres.content();
    world.larder(&["backup", "restore", "shop", id(&point), "--yes"]).ok();
    assert_eq!(postgres.content(), before);
    assert_eq!(sh(world, "cat media/file"), "old");
    world.serves("shop", "version one");
    // The replaced state is a restore point with the database of that state.
    let list = world.larder(&["--json", "backup", "list", "shop"]).json();
    assert_eq!(list["last_restore"]["end"], "restored", "{list}");
    let fresh = list["points"][0]["id"].as_str().unwrap().to_owned();
    world.larder(&["backup", "restore", "shop", &fresh, "--yes"]).ok();
    assert_eq!(postgres.content(), after);
    assert_eq!(sh(world, "cat media/file"), "new");
    // A copy beside the live data contains the dump, and a standard program reads the dump.
    world.larder(&["backup", "restore", "shop", id(&point), "--into", "copy"]).ok();
    let dump = world.environment("shop").join("archives/restored/copy/databases/main.dump");
    let listed = Command::new("pg_restore").arg("--list").arg(&dump).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("TABLE DATA public orders"), "{listed:?}");
    // The password is in the journal of the deployment, which is the project's configuration, and in no file of a restore point or a log.
    let secret = Postgres::PASSWORD;
    for directory in ["archives", "log", "restoring"] {
        assert_eq!(contains(&world.environment("shop").join(directory), secret), None);
        assert_eq!(contains(&world.environment("shop").join(directory), "geheim%2F"), None);
    }
    let record = fs::read_to_string(world.environment("shop").join("restore.json")).unwrap();
    assert!(!record.contains("geheim"), "{record}");
    world.is_consistent("shop");
}

fn restore_killed_at_each_point_leaves_old_or_restored_files_and_databases(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    shop(world, &recipe(&postgres.url(Postgres::PASSWORD)));
    postgres.shop(SCHEMA);
    sh(world, "echo old > media/file");
    let point = take(world);
    let old = postgres.content();
    let marks = world.directory().join("marks");
    fs::create_dir(&marks).unwrap();
    fs::set_permissions(&marks, fs::Permissions::from_mode(0o777)).unwrap();
    let points =
        [("filled", false), ("taken", false), ("applying", true), ("database", true), ("exchanged", true), ("cleared", true)];
    for (at, restored) in points {
        if postgres.content() == old {
            postgres.shop(UPGRADE);
            sh(world, "echo new > media/file");
        }
        let new = postgres.content();
        world.restart(&[("FAILPOINTS", &format!("restore.{at}=return({})", marks.display()))]);
        let ended = world.larder(&["backup", "restore", "shop", id(&point), "--yes"]);
        assert_ne!(ended.status, 0, "{at}: the server was killed");
        until("the next server answers", || world.larder(&["status"]).status == 0);
        let end = if restored { "succeeded" } else { "did not happen" };
        until("the end is recorded", || world.larder(&["backup", "list", "shop"]).stdout.contains(end));
        until("nothing is left", || names(&world.environment("shop").join("restoring")).is_empty());
        until("the release serves", || world.larder(&["ps", "shop"]).stdout.contains("web.1"));
        assert_eq!(fs::read_to_string(data(world).join("media/file")).unwrap(), if restored { "old\n" } else { "new\n" }, "{at}");
        assert!(postgres.content() == if restored { old.clone() } else { new }, "{at}: the database is {restored}");
        world.serves("shop", "version one");
        world.is_consistent("shop");
    }
}

fn unreachable_database_fails_a_restore_point_and_nothing_is_stopped(world: &World) {
    let Some(mut postgres) = Postgres::start(world) else { return };
    let repo = shop(world, &recipe(&postgres.url("wrong-secret")));
    let points = world.environment("shop").join("archives/points");
    let only_lock = || names(&points).iter().all(|name| name == "lock");
    let refused = world.larder(&["backup", "take", "shop"]);
    refused
        .exits(3)
        .says("PostgreSQL database main at 127.0.0.1")
        .says("password authentication failed")
        .says("hint: correct the password");
    refused.keeps_quiet_about("wrong-secret");
    assert!(only_lock(), "{:?}", names(&points));
    // A good restore point, and then a server that is down.
    repo.write("larder.yml", recipe(&postgres.url(Postgres::PASSWORD)));
    repo.page("version two");
    repo.push().accepted();
    postgres.shop(SCHEMA);
    take(world);
    let processes = world.application("shop");
    postgres.down();
    world.larder(&["backup", "take", "shop"]).exits(3).says("hint: start the database server");
    world.larder(&["backup", "restore", "shop", "latest", "--yes"]).exits(3).says("hint: start the database server");
    postgres.up();
    // A role that owns only a part of the objects cannot replace the database.
    postgres.sql("shop", "create table foreign_table(x int); grant select on foreign_table to shop");
    world
        .larder(&["backup", "restore", "shop", "latest", "--yes"])
        .exits(3)
        .says("does not own 1 of its tables")
        .says("foreign_table");
    assert_eq!(world.application("shop"), processes, "no process was stopped");
    // A dump of a database that the live release does not have is not restored in part.
    repo.write("larder.yml", "data: [media]\ndatabases: {}\n");
    repo.page("version three");
    repo.push().accepted();
    world.larder(&["backup", "restore", "shop", "latest", "--yes"]).exits(3).says("has no PostgreSQL database main");
    world.serves("shop", "version three");
}

fn upgrade_without_the_recognised_database_runs_online_and_with_a_declared_one_is_refused(world: &World) {
    let Some(mut postgres) = Postgres::start(world) else { return };
    let recipe = recipe(&postgres.url(Postgres::PASSWORD)) + "upgrade: echo upgraded > media/mark\n";
    let repo = shop(world, &recipe);
    postgres.down();
    // The application possibly does not use the database that a variable names.
    repo.page("version two");
    let push = repo.push();
    push.accepted();
    push.says("Upgrade without a hold").says("cannot").says("if the deployment fails, the data is not restored");
    assert_eq!(sh(world, "cat media/mark"), "upgraded");
    world.larder(&["backup", "take", "shop"]).exits(3).says("hint: start the database server");
    postgres.up();
    repo.write("larder.yml", recipe + "databases: {main: {url: $DATABASE_URL}}\n").page("version three");
    repo.push().accepted();
    postgres.down();
    repo.page("version four");
    repo.push().rejected_with("PostgreSQL database main");
    world.serves("shop", "version three");
}

fn load_excludes_restores_and_other_loads(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    shop(world, &recipe(&postgres.url(Postgres::PASSWORD)));
    postgres.shop("create table orders(note text); insert into orders values ('one')");
    let point = take(world);
    let before = postgres.content();
    let file = world.directory().join("shop.dump");
    let dump = world.larder_command().args(["db", "dump", "shop"]).stdout(fs::File::create(&file).unwrap()).status();
    assert!(dump.unwrap().success());
    postgres.shop("insert into orders values ('two')");
    let words = ["db", "load", "shop", "--confirm", "shop"];
    let mut load = world.larder_command().args(words).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    until("the load has begun", || world.larder(&["backup", "list", "shop"]).stdout.contains("before a dump was loaded"));
    world.larder(&["backup", "restore", "shop", id(&point), "--yes"]).exits(3).says("a dump is being loaded");
    world.larder(&words).exits(3).says("a dump is being loaded");
    std::io::Write::write_all(&mut load.stdin.take().unwrap(), &fs::read(&file).unwrap()).unwrap();
    assert!(load.wait().unwrap().success());
    assert_eq!(postgres.content(), before);
    world.larder(&["backup", "restore", "shop", id(&point), "--yes"]).ok();
}

fn failed_replacement_leaves_old_database_and_files(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    shop(world, &recipe(&postgres.url(Postgres::PASSWORD)));
    postgres.shop(SCHEMA);
    postgres.sql("shop", "create extension file_fdw");
    sh(world, "echo old > media/file");
    let point = take(world);
    postgres.shop(UPGRADE);
    sh(world, "echo new > media/file");
    // The dump contains an extension that the role may not create, so the transaction fails after most of its work.
    postgres.sql("shop", "drop extension file_fdw");
    let before = postgres.content();
    let failed = world.larder(&["backup", "restore", "shop", id(&point), "--yes"]);
    failed.exits(3).says("permission denied").says("file_fdw");
    assert_eq!(postgres.content(), before);
    assert_eq!(sh(world, "cat media/file"), "new");
    world.serves("shop", "version one");
    world.larder(&["backup", "list", "shop"]).says("did not happen; the data is unchanged");
    postgres.sql("shop", "create extension file_fdw");
    world.larder(&["backup", "restore", "shop", id(&point), "--yes"]).ok();
    assert_eq!(sh(world, "cat media/file"), "old");
}

fn failed_upgrade_and_rollback_with_data_return_the_database(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    let recipe = recipe(&postgres.url(Postgres::PASSWORD)) + "release: sh upgrade.sh\n";
    let upgrade = |end: &str| {
        let psql = postgres.psql_path();
        let statement = "alter table orders drop column note; create table added(x int)";
        format!("{} -qc '{statement}' \"$DATABASE_URL\"\nrm media/file\nexit {end}\n", psql.display())
    };
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", PROCFILE).write("larder.yml", &recipe).write("upgrade.sh", "exit 0\n");
    repo.page("version one");
    repo.push().accepted();
    postgres.shop(SCHEMA);
    sh(world, "echo old > media/file");
    let old = postgres.content();
    // The upgrade changes table and files, and then fails.
    repo.write("upgrade.sh", upgrade("1"));
    repo.page("version two");
    repo.push().rejected_with("release command");
    assert_eq!(postgres.content(), old);
    assert_eq!(sh(world, "cat media/file"), "old");
    world.serves("shop", "version one");
    let point = take(world);
    // The upgrade succeeds, and a person goes back with code and data.
    repo.write("upgrade.sh", upgrade("0"));
    repo.page("version three");
    repo.push().accepted();
    let new = postgres.content();
    assert_ne!(new, old);
    let back = ["rollback", "shop", "v1", "--with-data", "--point", id(&point), "--confirm", "shop"];
    // A failure after the exchange returns the new database and the new files.
    world.restart(&[("FAILPOINTS", "step.deploy.boot=1*return")]);
    assert_ne!(world.larder(&back).status, 0);
    assert_eq!(postgres.content(), new);
    world.serves("shop", "version three");
    world.larder(&back).ok();
    assert_eq!(postgres.content(), old);
    assert_eq!(sh(world, "cat media/file"), "old");
    world.serves("shop", "version one");
    world.is_consistent("shop");
}

fn restore_waits_for_a_database_that_is_down_after_a_kill(world: &World) {
    let Some((mut postgres, point, new)) = unfinished_restore(world) else { return };
    world.larder(&["backup", "restore", "shop", id(&point), "--yes"]).exits(3);
    postgres.up();
    until("the end is recorded", || !world.larder(&["--json", "backup", "list", "shop"]).json()["last_restore"]["end"].is_null());
    until("the release serves", || world.get("shop", "/").status == 200);
    world.serves("shop", "version one");
    let file = fs::read_to_string(data(world).join("media/file")).unwrap();
    assert_eq!(file == "old\n", postgres.content() != new, "files and database belong together: {file}");
}

/// A database that never returns must not prevent the removal.
fn project_with_an_unfinished_restore_can_be_removed(world: &World) {
    let Some((_postgres, ..)) = unfinished_restore(world) else { return };
    world.larder(&["project", "destroy", "shop", "--confirm", "shop"]).ok();
    assert!(!world.environment("shop").exists());
}

/// Kills the server between the databases and the files of a restore, and starts the next server while the database is down. Returns the
/// restore point and the content of the database before the restore.
fn unfinished_restore(world: &World) -> Option<(Postgres, serde_json::Value, String)> {
    let mut postgres = Postgres::start(world)?;
    shop(world, &recipe(&postgres.url(Postgres::PASSWORD)));
    postgres.shop(SCHEMA);
    sh(world, "echo old > media/file");
    let point = take(world);
    postgres.shop(UPGRADE);
    sh(world, "echo new > media/file");
    let new = postgres.content();
    let marks = world.directory().join("marks");
    fs::create_dir(&marks).unwrap();
    fs::set_permissions(&marks, fs::Permissions::from_mode(0o777)).unwrap();
    world.restart(&[("FAILPOINTS", &format!("restore.database=return({})", marks.display()))]);
    let mut restore = world.larder_command();
    restore.args(["backup", "restore", "shop", id(&point), "--yes"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut restore = restore.spawn().unwrap();
    // The failpoint kills the server after the database is replaced. The database server ends before the next server can use it.
    until("the server is killed", || !names(&marks).is_empty());
    postgres.down();
    let _ = restore.wait();
    until("the next server answers", || world.larder(&["status"]).status == 0);
    // The application must not run on restored tables with new files.
    assert_eq!(world.get("shop", "/").status, 503);
    assert!(world.application("shop").is_empty());
    Some((postgres, point, new))
}

fn sqlite_database_in_use_is_captured_consistently(world: &World) {
    if crate::harness::installed("python3").is_none() {
        return;
    }
    let repo = shop(world, "data: [other]\n");
    // Each transaction moves an amount between two rows, so every consistent state has the sum 0. The program never stops by itself.
    repo.write(
        "move.py",
        "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\nc.execute('pragma journal_mode=' + sys.argv[2])\n\
         c.execute('create table if not exists t(id integer primary key, x int, pad)')\n\
         c.executemany('insert or ignore into t values (?, 0, randomblob(500))', [(i,) for i in range(2000)])\nc.commit()\n\
         open(sys.argv[1] + '.ready', 'w').close()\ni = 0\nwhile True:\n    i += 1\n\
         \x20   c.execute('update t set x = x + 1, pad = randomblob(500) where id = ?', (i % 2000,))\n\
         \x20   c.execute('update t set x = x - 1, pad = randomblob(500) where id = ?', ((i * 7 + 1) % 2000,))\n    c.commit()\n",
    );
    repo.write("larder.yml", "data: [other]\ndatabases: {extra: {path: data/other/more.sqlite3}}\nscale: {wal: 1}\n");
    repo.write("Procfile", format!("{PROCFILE}wal: exec python3 move.py other/more.sqlite3 wal\n"));
    repo.page("version two");
    repo.push().accepted();
    until("the writer runs", || data(world).join("other/more.sqlite3.ready").exists());
    for copy in ["1", "2", "3", "4", "5"] {
        let point = take(world);
        assert_eq!(point["databases"][0]["path"], "data/other/more.sqlite3", "{point}");
        world.larder(&["backup", "restore", "shop", id(&point), "--into", copy]).ok();
        let files = world.environment("shop").join("archives/restored").join(copy).join("data/other");
        assert_eq!(names(&files), ["more.sqlite3", "more.sqlite3.ready"]);
        world.larder(&["backup", "verify", "shop", id(&point)]).says("ok (");
        let sum = "import sqlite3, sys\nc = sqlite3.connect('file:' + sys.argv[1] + '?immutable=1', uri=True)\n\
             print(c.execute('select sum(x), count(*) from t').fetchone(), c.execute('pragma integrity_check').fetchone())\n";
        let output = Command::new("python3").args(["-c", sum]).arg(files.join("more.sqlite3")).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "(0, 2000) ('ok',)", "{output:?}");
    }
    world.larder(&["backup", "restore", "shop", "latest", "--yes"]).ok();
    world.serves("shop", "version two");
    // A missing declared file is a clear failure of a restore point.
    world.larder(&["ps", "shop", "--scale", "wal=0"]).ok();
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(data(world).join(format!("other/more.sqlite3{suffix}")));
    }
    world.larder(&["backup", "take", "shop"]).exits(3).says("SQLite database extra").says("more.sqlite3");
    // A restore brings back a database that was lost.
    world.larder(&["backup", "restore", "shop", "latest", "--yes"]).ok();
    assert!(data(world).join("other/more.sqlite3").is_file());
}
