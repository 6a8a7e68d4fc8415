//! An upgrade that drops a column, deletes uploads and fails its check, with each engine of databases: database and files are afterwards as
//! before, and no acknowledged write is lost, also if the server, the keeper or a worker is killed at a random moment.
//!
//! By default, each engine has one kill with a hold, and none with the strategy in-place. With `LARDER_TEST_THOROUGH`, each engine has 25
//! kills with each strategy, and `LARDER_TEST_KILLS` sets another number. A database of 5 GB is part of the thorough run only.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::harness::{
    Repo, World,
    databases::{MariaDb, Redis},
    in_one_mode, installed,
    ledger::{Database, RECIPE, Sqlite, Writer, application, data, files, lines},
    postgres::Postgres,
    processes, thorough, until,
};

in_one_mode!(
    failed_upgrade_with_postgres_loses_nothing_despite_kills,
    failed_upgrade_with_mariadb_loses_nothing_despite_kills,
    failed_upgrade_with_sqlite_loses_nothing_despite_kills,
    failed_upgrade_with_redis_loses_nothing_despite_kills,
    failed_upgrade_in_place_with_postgres_restores_database_and_files,
    failed_upgrade_in_place_with_sqlite_restores_database_and_files,
    failed_upgrade_in_place_with_mariadb_restores_database_and_files,
    failed_upgrade_in_place_with_redis_restores_database_and_files,
    upgrade_above_the_limit_runs_online_and_keeps_every_acknowledged_write,
    upgrade_of_five_gigabytes_runs_online_and_keeps_every_acknowledged_write,
    killed_worker_of_a_restore_is_repeated_once,
);

/// The line of the recipe for deployments in place.
const IN_PLACE: &str = "strategy: in-place\n";

/// The targets of a kill.
#[derive(Debug, Clone, Copy)]
enum Target {
    Server,
    /// The keeper with all processes of the world.
    Everything,
    /// The workers that dump or restore at this moment.
    Workers,
}

/// A generator of the moments and targets of kills (xorshift64). Each run of the tests has other kills, and a failure names its seed.
struct Chance(u64);

impl Chance {
    fn new() -> Chance {
        let seed = std::env::var("LARDER_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        Chance(seed.unwrap_or(time | 1))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn target(&mut self) -> Target {
        match self.below(10) {
            0..=5 => Target::Server,
            6..=7 => Target::Everything,
            _ => Target::Workers,
        }
    }
}

/// The number of kills of each engine: by default `few`.
fn kills(few: u32) -> u32 {
    let usual = if thorough() { 25 } else { few };
    std::env::var("LARDER_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Kills a target. Waits for the next server if the keeper starts one.
fn kill(world: &World, target: Target) {
    match target {
        Target::Server => world.with(crate::harness::server::Server::shoot_role),
        Target::Everything => {
            world.kill9_all();
            processes::kill_all_of_larder(world.directory());
            world.start(&[]);
        }
        Target::Workers => {
            let is_worker = |one: &processes::Process| one.arguments.iter().any(|word| word == "dump" || word == "restore");
            for worker in processes::of(world.directory()).iter().filter(|one| is_worker(one)) {
                processes::signal(worker.pid, Signal::KILL);
            }
        }
    }
}

/// Deploys an upgrade that fails, first without a kill and then with `kills` kills. `strategy` is a line of the recipe, or empty.
fn keeps_everything(world: &World, database: &dyn Database, strategy: &str, kills: u32) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec python3 app.py $PORT\n").write("app.py", application()).write("version", "version one\n");
    let recipe = format!("{strategy}{RECIPE}env: {{DATABASE_URL: \"{}\"}}\n", database.url());
    repo.write("larder.yml", &recipe);
    repo.commit("version one");
    repo.push().accepted();
    world.larder(&["run", "shop", "--", "python3", "app.py", "create"]).ok();
    let (rows, uploads) = (database.content(), files(world));
    assert!(rows.contains("note"), "{rows}");

    // The upgrade succeeds, and the new release is not healthy.
    repo.write("broken", "").write("version", "version two\n");
    repo.write("larder.yml", format!("{recipe}upgrade: {{run: python3 app.py upgrade, safety: hold}}\n"));
    repo.commit("version two");
    let writer = Writer::start(world, "first");
    writer.goes_on();
    let begun = Instant::now();
    let push = repo.push();
    let case = if strategy.is_empty() { "Upgrade with a hold" } else { "Replacing v1 in place" };
    push.rejected_with("web.1 answered 500 to GET /health").says(case).says("v1 is still live");
    let whole = begun.elapsed();
    writer.goes_on();
    let mut acknowledged = writer.stop();
    let as_before = |acknowledged: &[String], about: &str| {
        world.serves("shop", "version one");
        assert_eq!(database.content(), rows, "{about}");
        assert_eq!(files(world), uploads, "{about}");
        let of_files = lines(&fs::read_to_string(data(world).join("uploads/ledger")).unwrap());
        for (place, kept) in [("the database", database.ledger()), ("the files", of_files)] {
            let lost: Vec<_> = acknowledged.iter().filter(|line| !kept.contains(*line)).collect();
            assert!(
                lost.is_empty(),
                "{about}: {} of {} acknowledged writes are lost in {place}: {lost:?}",
                lost.len(),
                acknowledged.len()
            );
        }
    };
    as_before(&acknowledged, "without a kill");
    if strategy == IN_PLACE {
        let failed = world.journals("shop").last().unwrap()[0]["deployment"].as_str().unwrap().to_owned();
        let kept = world.environment("shop").join("archives/run").join(failed).join("upper");
        assert!(kept.join("broken").exists(), "the failed tree is not in {}", kept.display());
        assert_eq!(fs::read_to_string(world.environment("shop").join("run/version")).unwrap(), "version one\n");
        world.is_consistent("shop");
    }

    let mut chance = Chance::new();
    for number in 0..kills {
        let seed = chance.0;
        let (target, delay) = (chance.target(), Duration::from_millis(chance.below(whole.as_millis() as u64 + 200)));
        let about = format!("kill {number} of {target:?} after {delay:?}, LARDER_TEST_SEED={seed}");
        eprintln!("{about}");
        let writer = Writer::start(world, &format!("kill{number}"));
        writer.goes_on();
        std::thread::scope(|scope| {
            let push = scope.spawn(|| repo.push());
            std::thread::sleep(delay);
            kill(world, target);
            assert_ne!(push.join().unwrap().0.status, 0, "{about}");
        });
        acknowledged.extend(writer.stop());
        until("the deployment has ended", || world.larder(&["status"]).status == 0 && world.has_ended("shop"));
        if matches!(target, Target::Workers) && world.larder(&["status"]).stdout.contains("frozen") {
            // The worker that restored the data was killed. The operator repeats the restore.
            eprintln!("{about}: frozen");
            world.larder(&["deploy", "shop", "--unfreeze"]).ok();
        }
        until("the release serves", || world.get("shop", "/").status == 200);
        as_before(&acknowledged, &about);
        world.is_consistent("shop");
        // A restart ends the keeper's backoff, which grows with every kill.
        world.restart(&[]);
    }
    eprintln!("{kills} kills, {} acknowledged writes, none lost", acknowledged.len());
}

fn failed_upgrade_with_postgres_loses_nothing_despite_kills(world: &World) {
    let (Some(_), Some(database)) = (installed("python3"), Postgres::start(world)) else { return };
    // The hold copies the database on its server.
    database.sql("postgres", "alter role shop createdb");
    keeps_everything(world, &database, "", kills(1));
    until("no copy is left", || {
        database.sql("postgres", "select count(*) from pg_database where datname like '%larder%'") == "0"
    });
}

fn failed_upgrade_with_mariadb_loses_nothing_despite_kills(world: &World) {
    let (Some(_), Some(database)) = (installed("python3"), MariaDb::start(world)) else { return };
    keeps_everything(world, &database, "", kills(1));
}

fn failed_upgrade_with_sqlite_loses_nothing_despite_kills(world: &World) {
    if installed("python3").is_some() {
        keeps_everything(world, &Sqlite(data(world).join("app.sqlite3")), "", kills(1));
    }
}

fn failed_upgrade_with_redis_loses_nothing_despite_kills(world: &World) {
    let (Some(_), Some(database)) = (installed("python3"), Redis::start(world, "")) else { return };
    keeps_everything(world, &database, "", kills(1));
}

fn failed_upgrade_in_place_with_postgres_restores_database_and_files(world: &World) {
    let (Some(_), Some(database)) = (installed("python3"), Postgres::start(world)) else { return };
    keeps_everything(world, &database, IN_PLACE, kills(0));
}

fn failed_upgrade_in_place_with_sqlite_restores_database_and_files(world: &World) {
    if installed("python3").is_some() {
        keeps_everything(world, &Sqlite(data(world).join("app.sqlite3")), IN_PLACE, kills(0));
    }
}

fn failed_upgrade_in_place_with_mariadb_restores_database_and_files(world: &World) {
    let (Some(_), Some(database)) = (installed("python3"), MariaDb::start(world)) else { return };
    keeps_everything(world, &database, IN_PLACE, kills(0));
}

fn failed_upgrade_in_place_with_redis_restores_database_and_files(world: &World) {
    let (Some(_), Some(database)) = (installed("python3"), Redis::start(world, "")) else { return };
    keeps_everything(world, &database, IN_PLACE, kills(0));
}

/// The recorded copy of the database took a minute, so the estimate is above the limit.
fn upgrade_above_the_limit_runs_online_and_keeps_every_acknowledged_write(world: &World) {
    let (Some(_), Some(database)) = (installed("python3"), Postgres::start(world)) else { return };
    let limit = "hold: 20s\n";
    let repo = with_database(world, &database, limit);
    let size = database.sql("shop", "select pg_database_size('shop')");
    let run = format!(
        "{{\"at\":\"2026-11-29T10:00:00Z\",\"what\":\"main\",\"method\":\"template-copy\",\"bytes\":{size},\"ms\":60000,\"fallback\":\"\"}}"
    );
    let record = world.environment("shop").join("durations.json");
    fs::write(&record, format!("{{\"version\":1,\"points\":[],\"holds\":[],\"methods\":[{run}]}}")).unwrap();
    crate::harness::databases::give_to_larder(world, &record);
    runs_online(world, &repo, &database, limit, "is above the limit of 20.0 s", "(measured on 2026-11-29)");
}

/// A database of 5 GB with the default limit, without a record of an earlier copy.
fn upgrade_of_five_gigabytes_runs_online_and_keeps_every_acknowledged_write(world: &World) {
    if !thorough() {
        return;
    }
    let (Some(_), Some(database)) = (installed("python3"), Postgres::start(world)) else { return };
    let repo = with_database(world, &database, "");
    let rows = "select g, repeat(md5(g::text), 30) from generate_series(1, 5000000) g";
    database.shop(&format!("create table bulk as {rows}"));
    database.sql("postgres", "checkpoint");
    let size = database.sql("shop", "select pg_database_size('shop')");
    assert!(size.parse::<u64>().unwrap() > 5_000_000_000, "{size}");
    runs_online(world, &repo, &database, "", "is above the limit of 30.0 s", "(assumed rate)");
    assert_eq!(database.sql("shop", "select count(*) from bulk"), "5000000");
}

/// Deploys an application with a database. `limit` is a line of the recipe, or empty.
fn with_database<'w>(world: &'w World, database: &Postgres, limit: &str) -> Repo<'w> {
    database.sql("postgres", "alter role shop createdb");
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec python3 app.py $PORT\n").write("app.py", application()).write("version", "version one\n");
    repo.write("larder.yml", with_url(database, limit));
    repo.commit("version one");
    repo.push().accepted();
    world.larder(&["run", "shop", "--", "python3", "app.py", "create"]).ok();
    repo
}

fn with_url(database: &Postgres, limit: &str) -> String {
    format!("{RECIPE}{limit}env: {{DATABASE_URL: \"{}\"}}\n", Database::url(database))
}

/// Deploys an upgrade that succeeds and one that fails. Both must run without a hold, because the estimate `above` is based on `basis`. After
/// the failure, every acknowledged write is kept, and the named command restores the data.
fn runs_online(world: &World, repo: &Repo<'_>, database: &Postgres, limit: &str, above: &str, basis: &str) {
    let recipe = with_url(database, limit);
    repo.write("version", "version two\n").write("larder.yml", format!("{recipe}upgrade: \"true\"\n"));
    repo.commit("version two");
    let push = repo.push();
    push.accepted().says("Upgrade without a hold: the estimate of").says(above);
    push.says("restore point of main: copy on the server").says(basis);
    let plan = world.larder(&["plan", "shop"]);
    plan.says("without a hold; a failure does not restore the data: the estimate of").says(basis);
    let (rows, uploads, processes) = (Database::content(database), files(world), world.application("shop"));

    let writer = Writer::start(world, "online");
    writer.goes_on();
    repo.write("broken", "").write("version", "version three\n");
    repo.write("larder.yml", format!("{recipe}upgrade: python3 app.py mild\n"));
    repo.commit("version three");
    let push = repo.push();
    push.rejected_with("v2 still live; the data is not restored").says("Upgrade without a hold");
    writer.goes_on();
    let acknowledged = writer.stop();
    assert_eq!(world.application("shop"), processes, "the old release serves throughout");
    let of_files = lines(&fs::read_to_string(data(world).join("uploads/ledger")).unwrap());
    for (place, kept) in [("the database", database.ledger()), ("the files", of_files)] {
        let lost: Vec<_> = acknowledged.iter().filter(|line| !kept.contains(*line)).collect();
        assert!(lost.is_empty(), "{} of {} acknowledged writes are lost in {place}: {lost:?}", lost.len(), acknowledged.len());
    }
    assert_ne!(Database::content(database), rows);
    let commands: Vec<_> = push
        .0
        .stderr
        .lines()
        .filter_map(|line| line.split_once("larder backup restore ").map(|(_, words)| words.trim()))
        .collect();
    let [command] = commands.as_slice() else { panic!("not one command: {commands:?}") };
    let status = world.larder(&["status"]);
    status.says("the data is not restored").says(command).says("ran without a hold: the estimate of");
    status.says("restore point of main: copy on the server").says(basis);
    let words: Vec<_> = command.split_whitespace().collect();
    world.larder(&[&["backup", "restore"], &words[..]].concat()).ok();
    assert_eq!(Database::content(database), rows);
    assert_eq!(files(world), uploads);
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

/// The server kills each worker of the restore once, after which the restore is repeated. A worker that is killed twice freezes the environment.
fn killed_worker_of_a_restore_is_repeated_once(world: &World) {
    let Some(database) = Postgres::start(world) else { return };
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec larder static-server --root .\n");
    repo.program(".larder/backup", "#!/bin/sh\necho kept > $LARDER_RESTORE_POINT/file\n");
    repo.program(".larder/restore", "#!/bin/sh\ncp $LARDER_RESTORE_POINT/file $LARDER_DATA/restored\n");
    let recipe = format!("data: [store/]\nenv: {{DATABASE_URL: \"{}\"}}\n", Database::url(&database));
    repo.write("larder.yml", &recipe).page("version one");
    repo.push().accepted();
    database.shop("create table notes (text text); insert into notes values ('one')");
    world.larder(&["run", "shop", "--", "sh", "-c", "echo kept > store/file"]).ok();
    let (rows, marks, open) = (Database::content(&database), crate::recovery::marks(world), data(world).join("open"));
    let jobs = ["Show", "Database", "PutBack", "Custom"];
    let once: Vec<_> = jobs.iter().map(|job| format!("worker.{job}=return({}/{job})", marks.display())).collect();
    world.restart(&[("FAILPOINTS", &once.join(";"))]);
    repo.write("upgrade.sh", "psql -w -q \"$DATABASE_URL\" -c 'drop table notes'\necho damaged > store/file\n");
    let wait = "touch $LARDER_DATA/open && while test -e $LARDER_DATA/open; do sleep 0.05; done";
    let failing = "health: {path: /missing, timeout: 1s}\nupgrade: {safety: hold, run: \"sh upgrade.sh";
    repo.write("larder.yml", format!("{recipe}{failing} && {wait}\"}}\n")).page("version two");
    let is_restored = |about: &str| {
        assert_eq!(Database::content(&database), rows, "{about}");
        assert_eq!(fs::read_to_string(data(world).join("store/file")).unwrap(), "kept\n", "{about}");
        assert_eq!(fs::read_to_string(data(world).join("restored")).unwrap(), "kept\n", "{about}");
        world.serves("shop", "version one");
    };
    for job in jobs {
        let mark = marks.join(job);
        std::thread::scope(|scope| {
            let push = scope.spawn(|| repo.push());
            until("the upgrade waits", || open.exists());
            fs::write(&mark, "").unwrap();
            fs::remove_file(&open).unwrap();
            push.join().unwrap().rejected_with("web.1 answered 404").says("v1 is still live");
        });
        assert!(!mark.exists(), "no worker was killed for the job {job}");
        is_restored(job);
    }
    world.is_consistent("shop");
    world.restart(&[("FAILPOINTS", "worker.Database=return")]);
    repo.write("larder.yml", format!("{recipe}{failing}\"}}\n")).page("version three");
    repo.push().rejected_with("the environment is frozen");
    world.restart(&[]);
    world.larder(&["deploy", "shop", "--unfreeze"]).ok();
    is_restored("after the unfreeze");
}
