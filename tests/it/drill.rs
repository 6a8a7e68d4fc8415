//! Drills: restores into a scratch place with real database servers, in which the release is started and checked. A drill changes nothing that
//! is live, and leaves nothing behind.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use serde_json::Value;

use crate::{
    backup_schedule::{YEARLY, damage, forget_runs_since, record, summary},
    harness::{
        Repo, World,
        databases::{MariaDb, Redis},
        in_one_mode, installed,
        ledger::{Database, RECIPE, Sqlite, Writer, application, data, files, lines},
        postgres::Postgres,
        processes,
        state::names,
        thorough, until,
    },
};

in_one_mode!(
    drill_with_postgres_starts_the_release_on_a_copy_of_everything,
    drill_with_mariadb_starts_the_release_on_a_copy_of_everything,
    drill_with_sqlite_starts_the_release_on_a_copy_of_everything,
    drill_with_redis_starts_the_release_on_a_copy_of_everything,
    drill_without_a_scratch_database_names_what_it_did_not_prove,
    drill_of_a_created_postgres_database_needs_no_further_rights,
    drill_that_is_killed_at_any_step_leaves_nothing,
    drill_ends_at_its_time_limit_and_at_a_deployment,
);

const PROCFILE: &str = "web: exec python3 app.py $PORT\n";

/// Deploys an application whose script `.larder/drill` checks the copy and then damages it, and takes a restore point.
fn shop<'w>(world: &'w World, database: &dyn Database) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", PROCFILE).write("app.py", application()).write("version", "version one\n");
    repo.program(".larder/drill", "#!/bin/sh\nexec python3 app.py drill\n");
    repo.write("larder.yml", format!("{RECIPE}env: {{DATABASE_URL: \"{}\"}}\n", database.url()));
    repo.commit("version one");
    repo.push().accepted();
    world.larder(&["run", "shop", "--", "python3", "app.py", "create"]).ok();
    world.larder(&["backup", "take", "shop"]).ok();
    repo
}

fn drill(world: &World) -> Value {
    world.larder(&["--json", "backup", "drill", "shop"]).json()
}

fn is_removed(world: &World) {
    let top = world.environment("shop");
    until("the copy is removed", || names(&top.join("data-copy")).is_empty() && !top.join("data-copy.note").exists());
}

/// Returns the processes that work on the copy of a restore point.
fn on_the_copy(world: &World) -> Vec<i32> {
    let marked = |pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable.starts_with(b"LARDER_RESTORE_POINT="))
    };
    processes::of(world.directory()).iter().map(|one| one.pid).filter(marked).collect()
}

/// A drill of an application with a database: everything is proved, nothing that is live changes, and a client that writes throughout loses
/// nothing.
fn proves(world: &World, database: &dyn Database, name: &str, left: &dyn Fn() -> String) {
    let repo = shop(world, database);
    let (rows, uploads, before) = (database.content(), files(world), left());
    let writer = Writer::start(world, "drill");
    writer.goes_on();
    let drilled = drill(world);
    let acknowledged = writer.stop();
    assert_eq!(drilled["failure"], Value::Null, "{drilled}");
    assert_eq!(drilled["databases"][0]["name"], name, "{drilled}");
    assert_eq!(
        (&drilled["release"], &drilled["checks"]),
        (&Value::from(1), &serde_json::json!(["health", "script"])),
        "{drilled}"
    );
    assert_eq!(drilled["unproven"], serde_json::json!([]), "{drilled}");
    assert_eq!(database.content(), rows);
    assert_eq!(files(world), uploads);
    assert_eq!(left(), before, "the scratch database is dropped");
    let of_files = lines(&fs::read_to_string(data(world).join("uploads/ledger")).unwrap());
    for kept in [database.ledger(), of_files] {
        assert!(acknowledged.iter().all(|line| kept.contains(line)), "{acknowledged:?} {kept:?}");
    }
    is_removed(world);
    world.larder(&["backup", "list", "shop"]).says("last drill: ").says(", v1 started, checks passed: health, script");
    world.larder(&["backup", "show", "shop"]).says("drill     ").says("databases loaded: ");
    // The next release fails its check on the restored data.
    repo.write("drill-fails", "").write("version", "version two\n");
    repo.commit("version two");
    repo.push().accepted();
    let failed = world.larder(&["backup", "drill", "shop"]);
    failed.exits(1).says("failed after").says("v2 started on the restored data: .larder/drill exited 1");
    failed.says("seen: notes ok, upload ok in 20 by v2");
    world.larder(&["status"]).says("the drill of ").says("the restored data is not as expected");
    assert_eq!((database.content(), left()), (rows, before));
    is_removed(world);
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

fn drill_with_postgres_starts_the_release_on_a_copy_of_everything(world: &World) {
    let (Some(_), Some(server)) = (installed("python3"), Postgres::start(world)) else { return };
    server.sql("postgres", "alter role shop createdb");
    server.sql("shop", "create extension if not exists plpgsql");
    proves(world, &server, "main", &|| {
        server.sql("postgres", "select string_agg(datname, ' ' order by datname) from pg_database")
    });
}

fn drill_with_mariadb_starts_the_release_on_a_copy_of_everything(world: &World) {
    if !thorough() {
        eprintln!("SKIPPED: the drill with MariaDB needs LARDER_TEST_THOROUGH");
        return;
    }
    let (Some(_), Some(server)) = (installed("python3"), MariaDb::start(world)) else { return };
    proves(world, &server, "main", &|| server.sql("mysql", "show databases"));
}

fn drill_with_sqlite_starts_the_release_on_a_copy_of_everything(world: &World) {
    if installed("python3").is_some() {
        proves(world, &Sqlite(data(world).join("app.sqlite3")), "main", &String::new);
    }
}

fn drill_with_redis_starts_the_release_on_a_copy_of_everything(world: &World) {
    let (Some(_), Some(server)) = (installed("python3"), Redis::start(world, "")) else { return };
    let keyspace =
        || server.ask(0, &["INFO", "keyspace"]).lines().filter_map(|line| line.split(':').next().map(str::to_owned)).collect();
    proves(world, &server, "main", &keyspace);
}

/// The role may not create databases, so the dump is only read, and the release is not started.
fn drill_without_a_scratch_database_names_what_it_did_not_prove(world: &World) {
    let (Some(_), Some(server)) = (installed("python3"), Postgres::start(world)) else { return };
    shop(world, &server);
    let drilled = drill(world);
    let unproven = drilled["unproven"].to_string();
    assert_eq!(
        (&drilled["failure"], &drilled["release"], &drilled["checks"]),
        (&Value::Null, &Value::Null, &serde_json::json!([])),
        "{drilled}"
    );
    assert_eq!(drilled["databases"], serde_json::json!([]), "{drilled}");
    assert!(unproven.contains("the dump of main was read but not loaded: cannot create a scratch database"), "{unproven}");
    assert!(unproven.contains("ALTER ROLE") && unproven.contains("no release was started: its database main"), "{unproven}");
    world.larder(&["backup", "drill", "shop"]).exits(0).says("not proved: the dump of main was read but not loaded");
    world.larder(&["backup", "list", "shop"]).says("not proved: no release was started");
    // A database of the same name that larder did not create is not touched.
    server.sql("postgres", "alter role shop createdb");
    server.sql("postgres", "create database shop_larder_drill owner shop");
    server.sql("shop_larder_drill", "create table foreign_table (x integer)");
    let drilled = drill(world);
    assert!(
        drilled["unproven"].to_string().contains("a database shop_larder_drill exists that larder did not create"),
        "{drilled}"
    );
    assert_eq!(server.sql("shop_larder_drill", "select count(*) from foreign_table"), "0");
    is_removed_except_note(world);
}

/// The copy is removed. The note stays, because a scratch database could not be dropped.
fn is_removed_except_note(world: &World) {
    assert_eq!(names(&world.environment("shop").join("data-copy")), Vec::<String>::new());
}

fn drill_of_a_created_postgres_database_needs_no_further_rights(world: &World) {
    let (Some(_), Some(server)) = (installed("python3"), Postgres::start(world)) else { return };
    let file = world.directory().join("admin.url");
    fs::write(&file, format!("postgresql://postgres@127.0.0.1:{}/postgres", server.port)).unwrap();
    crate::harness::databases::give_to_larder(world, &file);
    let config = world.root().join("larder.yml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}databases: {{postgres: {}}}\n", file.display())).unwrap();
    world.restart(&[]);
    world.project("shop");
    world.larder(&["db", "create", "shop", "postgres"]).ok();
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", PROCFILE).write("app.py", application()).write("version", "version one\n").write("larder.yml", RECIPE);
    repo.program(".larder/drill", "#!/bin/sh\nexec python3 app.py drill\n");
    repo.commit("version one");
    repo.push().accepted();
    world.larder(&["run", "shop", "--", "python3", "app.py", "create"]).ok();
    world.larder(&["backup", "take", "shop"]).ok();
    let drilled = drill(world);
    assert_eq!((&drilled["failure"], &drilled["unproven"]), (&Value::Null, &serde_json::json!([])), "{drilled}");
    assert_eq!(drilled["checks"], serde_json::json!(["health", "script"]), "{drilled}");
    let left = server.sql("postgres", "select count(*) from pg_database where datname like '%larder_drill'");
    assert_eq!(left, "0");
    is_removed(world);
}

/// Each step of a drill kills the server, and the next server removes the copy and the scratch database. By default, two steps are tested.
fn drill_that_is_killed_at_any_step_leaves_nothing(world: &World) {
    let (Some(_), Some(server)) = (installed("python3"), Postgres::start(world)) else { return };
    server.sql("postgres", "alter role shop createdb");
    shop(world, &server);
    let (rows, uploads) = (Database::content(&server), files(world));
    let marks = world.directory().join("marks");
    fs::create_dir(&marks).unwrap();
    fs::set_permissions(&marks, fs::Permissions::from_mode(0o777)).unwrap();
    let all = ["begun", "filled", "created", "loaded", "started", "checked", "stopped", "removed"];
    let chosen = if thorough() { &all[..] } else { &all[2..5] };
    for (number, name) in chosen.iter().filter(|name| chosen.len() > 3 || **name != "loaded").enumerate() {
        world.restart(&[("FAILPOINTS", &format!("drill.{name}=return({})", marks.display()))]);
        let at_the_end = number % 2 == 1;
        assert_ne!(world.larder(&["backup", "drill", "shop"]).status, 0, "{name}");
        if at_the_end {
            // The keeper and everything else is killed as well.
            world.kill9_all();
            processes::kill_all_of_larder(world.directory());
            world.start(&[]);
        }
        until("the next server is ready", || world.larder(&["status"]).status == 0);
        assert!(marks.join(format!("drill.{name}")).exists(), "{name}");
        is_removed(world);
        until("the scratch database is dropped", || {
            server.sql("postgres", "select count(*) from pg_database where datname = 'shop_larder_drill'") == "0"
        });
        assert_eq!((Database::content(&server), files(world)), (rows.clone(), uploads.clone()), "{name}");
        world.serves("shop", "version one");
        until("no process works on the copy", || on_the_copy(world).is_empty());
    }
    world.restart(&[]);
    let drilled = drill(world);
    assert_eq!((&drilled["failure"], &drilled["unproven"]), (&Value::Null, &serde_json::json!([])), "{drilled}");
    world.is_consistent("shop");
}

fn drill_ends_at_its_time_limit_and_at_a_deployment(world: &World) {
    if installed("python3").is_none() {
        return;
    }
    let database = Sqlite(data(world).join("app.sqlite3"));
    let repo = shop(world, &database);
    drill(world);
    let recipe = fs::read_to_string(repo.path().join("larder.yml")).unwrap();
    repo.write("drill-hangs", "").write("larder.yml", format!("{recipe}timeouts: {{post_deploy: 1s}}\n"));
    repo.commit("version one with a limit");
    repo.push().accepted();
    world.larder(&["backup", "drill", "shop"]).exits(1).says(".larder/drill did not exit within 1.0 s");
    is_removed(world);
    repo.write("larder.yml", &recipe);
    repo.commit("version one without a limit");
    repo.push().accepted();
    let copied = world.environment("shop").join("data-copy/uploads/one");
    std::thread::scope(|scope| {
        let drill = scope.spawn(|| world.larder(&["backup", "drill", "shop"]));
        until("the script has damaged the copy", || fs::read(&copied).is_ok_and(|text| text == b"changed"));
        world.larder(&["run", "--restore-point", "latest", "shop", "--", "true"]).exits(3).says("another command on a copy");
        repo.remove("drill-hangs").write("version", "version two\n");
        repo.commit("version two");
        repo.push().accepted();
        drill.join().unwrap().exits(3).says("interrupted the drill");
    });
    // The drill that was interrupted has no result.
    assert!(summary(world)["drill"]["failure"].as_str().unwrap().contains("did not exit within"), "{}", summary(world));
    is_removed(world);
    assert_eq!(drill(world)["failure"], Value::Null);
    world.serves("shop", "version two");
}

fn news(world: &World) -> PathBuf {
    let news = world.directory().join("news");
    fs::write(&news, "").unwrap();
    fs::set_permissions(&news, fs::Permissions::from_mode(0o666)).unwrap();
    news
}

/// One bit of a stored file, of an index and of a dump, and a release that fails on the restored data: one cycle of the schedule shows each of
/// them in `status`, in the list, and to the observers.
#[test]
fn one_cycle_shows_every_flipped_bit_and_a_failing_drill() {
    let Some(world) = World::configured(YEARLY) else { return };
    let (Some(_), Some(server)) = (installed("python3"), Postgres::start(&world)) else { return };
    server.sql("postgres", "alter role shop createdb");
    let repo = shop(&world, &server);
    until("the schedule has begun", || record(&world).exists());
    let points: Vec<String> = (0..3)
        .map(|number| {
            fs::write(data(&world).join("uploads/one"), format!("version {number}")).unwrap();
            let point = world.larder(&["--json", "backup", "take", "shop"]).json();
            let id = point["id"].as_str().unwrap().to_owned();
            world.larder(&["backup", "verify", "shop", &id]).ok();
            id
        })
        .collect();
    // The release of the drill fails on the restored data.
    repo.write("drill-fails", "").write("version", "version two\n");
    repo.commit("version two");
    repo.push().accepted();
    world.stop();
    let stored = world.environment("shop").join("archives/points");
    damage(&stored.join(".contents").join(blake3::hash(b"version 0").to_string()));
    // The index of a restore point contains the digest of its dump.
    let index = fs::read(stored.join(&points[2]).join("index")).unwrap();
    let contents = fs::read_dir(stored.join(".contents")).unwrap().map(|content| content.unwrap().path());
    let mut dumps = contents.filter(|content| {
        let bytes = fs::read(content).unwrap();
        bytes.starts_with(b"PGDMP") && index.windows(32).any(|part| part == blake3::hash(&bytes).as_bytes())
    });
    damage(&dumps.next().unwrap());
    damage(&stored.join(&points[1]).join("index"));
    fs::write(data(&world).join("uploads/one"), "as captured by the run").unwrap();
    forget_runs_since(&world, "2025-01-01T00:00:00Z");
    let news = news(&world);
    world.start(&[("FAILPOINTS", &format!("observer=return({})", news.display()))]);
    until("the run has ended", || summary(&world)["last_run"].is_object());
    let status = summary(&world);
    let list = world.larder(&["--json", "backup", "list", "shop"]).json();
    let state_of = |id: &str| {
        let all = list["points"].as_array().unwrap();
        all.iter().find(|point| point["id"] == id).map(|point| point["state"].as_str().unwrap().to_owned())
    };
    for id in &points {
        assert!(status["damaged"].as_array().unwrap().iter().any(|point| point["id"] == id.as_str()), "{id}: {status}");
        assert!(["damaged", "unusable"].contains(&state_of(id).unwrap().as_str()), "{id}: {list}");
        until("the observers were notified of the damage", || {
            fs::read_to_string(&news).unwrap().lines().any(|line| line.contains("backup_damaged") && line.contains(id))
        });
    }
    world
        .larder(&["status"])
        .says("3 restore points are damaged")
        .says("the drill of ")
        .says("the restored data is not as expected");
    world.larder(&["backup", "list", "shop"]).says("3 restore points are damaged").says("last drill: ").says("failed after");
    until("the observers were notified of the drill", || fs::read_to_string(&news).unwrap().contains("drill_failed"));
    // Only the restore point of the run was read back.
    let newest = status["newest"]["id"].as_str().unwrap();
    assert_eq!((state_of(newest).unwrap().as_str(), points.iter().any(|id| id == newest)), ("ok", false));
    assert_eq!(status["last_run"]["result"]["verified"], newest);
    let drilled = &status["drill"];
    assert_eq!((drilled["point"].as_str(), &drilled["release"]), (Some(newest), &Value::from(2)), "{drilled}");
    drop(server);
    world.end();
}
