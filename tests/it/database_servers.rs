//! Tests of databases on real MariaDB and Redis servers: dump, load, restore points, wrong passwords, kills, and `larder db`.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::harness::{
    Repo, World,
    cli::Output,
    databases::{MariaDb, PASSWORD, PASSWORD_IN_URL, Redis, give_to_larder},
    in_each_mode, in_one_mode,
    postgres::Postgres,
    processes, thorough,
};

in_each_mode!(mariadb_dump_restores_every_object, redis_dump_restores_one_database_number);
in_one_mode!(
    mariadb_load_killed_at_any_instant_leaves_old_or_loaded_tables,
    redis_load_killed_at_any_instant_leaves_old_or_loaded_keys,
    unreachable_or_foreign_database_is_refused_with_the_cause,
    created_database_is_used_by_the_application_and_dropped_after_a_restore_point,
    created_postgres_database_is_restored_and_dropped,
);

const PROCFILE: &str = "web: exec larder static-server --root .\n";

/// Deploys the project `shop` with a variable.
fn shop<'w>(world: &'w World, variable: &str, url: &str) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", PROCFILE).write("larder.yml", format!("env:\n  {variable}: \"{url}\"\n"));
    repo.page("version one");
    repo.push().accepted();
    repo
}

/// Runs `larder` with a file as its input.
fn with_input(world: &World, words: &[&str], input: &Path) -> Output {
    let mut command = world.larder_command();
    Output::of(command.args(words).stdin(fs::File::open(input).unwrap()))
}

/// Writes the dump of a database to a file of the world.
fn dump(world: &World, name: &str) -> std::path::PathBuf {
    let path = world.directory().join(name);
    let mut command = world.larder_command();
    command.args(["db", "dump", "shop"]).stdout(fs::File::create(&path).unwrap()).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    path
}

/// Runs `larder db load` and kills it after `delay`, with all processes that it has started.
fn load_and_kill(world: &World, file: &Path, delay: std::time::Duration) {
    let mut command: Command = world.larder_command();
    command.args(["db", "load", "shop", "--confirm", "shop"]).stdin(fs::File::open(file).unwrap());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(delay);
    let workers = processes::of(world.directory());
    for worker in workers.iter().filter(|process| process.arguments.iter().any(|word| word == "dump")) {
        processes::signal(worker.pid, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
    // The worker is gone when the next job of the same kind succeeds.
    world.larder(&["backup", "list", "shop"]).ok();
}

const OBJECTS: &str = r"
CREATE TABLE parents (id INT PRIMARY KEY, name VARCHAR(50));
CREATE TABLE children (id INT PRIMARY KEY AUTO_INCREMENT, parent INT, CONSTRAINT named FOREIGN KEY (parent) REFERENCES parents (id) ON DELETE CASCADE);
CREATE TABLE odd (text TEXT, bytes BLOB, at DATETIME(6), made INT AS (1 + 1) STORED, `odd``name` INT);
CREATE TABLE notes (at INT);
INSERT INTO parents VALUES (1, 'a'), (2, 'ü😀\n\\ \'');
INSERT INTO children (parent) VALUES (1), (2);
INSERT INTO odd (text, bytes) VALUES ('line\n-- larder 00 end\n\\! touch /tmp/pwned', x'00ff1a0a0d27');
CREATE VIEW names AS SELECT name FROM parents;
CREATE TRIGGER noted AFTER INSERT ON parents FOR EACH ROW INSERT INTO notes VALUES (new.id);
CREATE PROCEDURE nothing() SELECT 1;
CREATE FUNCTION three() RETURNS INT DETERMINISTIC RETURN 3;
CREATE EVENT daily ON SCHEDULE EVERY 1 DAY DO DELETE FROM notes;
CREATE SEQUENCE numbers;
";

fn mariadb_dump_restores_every_object(world: &World) {
    let Some(server) = MariaDb::start(world) else { return };
    shop(world, "DATABASE_URL", &server.url());
    server.as_owner(OBJECTS);
    let before = server.content("shop");
    assert!(before.contains("TRIGGER") && before.contains("EVENT"), "{before}");
    let list = world.larder(&["--json", "db", "list", "shop"]).json();
    let location = format!("127.0.0.1:{}/shop", server.port);
    assert_eq!((list[0]["engine"].as_str(), list[0]["location"].as_str()), (Some("mysql"), Some(location.as_str())), "{list}");

    let file = dump(world, "shop.dump");
    // A restore point contains the dump as well, and a verification reads the dump back.
    world.larder(&["backup", "take", "shop"]).ok();
    world.larder(&["backup", "verify", "shop"]).says("ok (");

    server.as_owner(
        "DROP TABLE children; DELETE FROM parents WHERE id = 1; ALTER TABLE odd DROP COLUMN text; DROP VIEW names; DROP FUNCTION three;
         CREATE TABLE names (x INT); CREATE TABLE fresh (x INT); CREATE VIEW later AS SELECT 1; DROP TRIGGER noted;",
    );
    with_input(world, &["db", "load", "shop"], &file).exits(3).says("--confirm shop");
    with_input(world, &["db", "load", "shop", "--confirm", "blog"], &file).exits(2);
    with_input(world, &["db", "load", "shop", "--confirm", "shop"], &file).exits(0).says("was replaced");
    assert_eq!(server.content("shop"), before);
    assert_eq!(server.sql("mysql", "SHOW DATABASES LIKE 'shop%'"), "shop");
    let reasons = world.larder(&["backup", "list", "shop"]);
    reasons.says("before a dump was loaded into the database main");
    // A restore of a restore point brings files and database back together.
    let point = world.larder(&["--json", "backup", "take", "shop"]).json();
    server.as_owner("DELETE FROM children; DROP VIEW names; DROP TRIGGER noted;");
    world.larder(&["backup", "restore", "shop", point["id"].as_str().unwrap(), "--yes"]).ok();
    assert_eq!(server.content("shop"), before);
    world.serves("shop", "version one");
    // A dump that is cut changes nothing.
    let text = fs::read(&file).unwrap();
    fs::write(&file, &text[..text.len() - 1]).unwrap();
    with_input(world, &["db", "load", "shop", "--confirm", "shop"], &file).exits(3).says("cannot use the dump");
    assert_eq!(server.content("shop"), before);
    assert!(!Path::new("/tmp/pwned").exists());

    let answer = with_input(world, &["db", "shell", "shop"], &{
        let script = world.directory().join("script.sql");
        fs::write(&script, "SELECT CONCAT('parents: ', COUNT(*)) FROM parents;\n").unwrap();
        script
    });
    answer.exits(0).says("parents: 2");
    let log = fs::read_to_string(crate::harness::server::log_file(world.directory())).unwrap();
    assert!(!log.contains(PASSWORD) && !log.contains(PASSWORD_IN_URL), "the server's log has the password");
}

fn redis_dump_restores_one_database_number(world: &World) {
    let Some(server) = Redis::start(world, "databases 4\n") else { return };
    shop(world, "REDIS_URL", &server.url(0));
    server.ask(2, &["SET", "other", "application"]);
    for words in [
        &["SET", "text", "a\nb"][..],
        &["SET", "brief", "x", "PX", "3600000"],
        &["RPUSH", "list", "1", "2"],
        &["HSET", "hash", "a", "b"],
        &["ZADD", "sorted", "1.5", "x"],
        &["XADD", "stream", "1-1", "a", "b"],
    ] {
        server.ask(0, words);
    }
    let before = server.digest(0);
    let file = dump(world, "redis.dump");
    world.larder(&["backup", "take", "shop"]).ok();
    world.larder(&["backup", "verify", "shop"]).says("ok (");
    server.ask(0, &["DEL", "text", "hash"]);
    server.ask(0, &["SET", "later", "x"]);
    with_input(world, &["db", "load", "shop", "--confirm", "shop"], &file).exits(0);
    assert_eq!(server.digest(0), before);
    assert!(server.ask(0, &["PTTL", "brief"]).parse::<u64>().unwrap() > 3_000_000);
    assert_eq!((server.ask(2, &["GET", "other"]), server.ask(3, &["DBSIZE"])), ("application".into(), "0".into()));
    let point = world.larder(&["--json", "backup", "take", "shop"]).json();
    server.ask(0, &["SET", "text", "lost"]);
    world.larder(&["backup", "restore", "shop", point["id"].as_str().unwrap(), "--yes"]).ok();
    assert_eq!(server.digest(0), before);
    // Without an empty number, a restore is refused and changes nothing.
    server.ask(1, &["SET", "x", "y"]);
    server.ask(3, &["SET", "x", "y"]);
    with_input(world, &["db", "load", "shop", "--confirm", "shop"], &file).exits(3).says("empty database number");
    assert_eq!(server.digest(0), before);
}

/// The number of kills of one test.
fn kills() -> u64 {
    if thorough() { 100 } else { 4 }
}

fn mariadb_load_killed_at_any_instant_leaves_old_or_loaded_tables(world: &World) {
    let Some(server) = MariaDb::start(world) else { return };
    shop(world, "DATABASE_URL", &server.url());
    let state = |version: u32| {
        (0..20)
            .map(|table| format!("CREATE OR REPLACE TABLE t{table} (x INT); INSERT INTO t{table} VALUES ({version});"))
            .collect::<String>()
    };
    server.as_owner(&state(1));
    let file = dump(world, "shop.dump");
    let sum = (0..20).map(|table| format!("SELECT x FROM t{table}")).collect::<Vec<_>>().join(" UNION ALL ");
    let versions = || server.sql("shop", &format!("SELECT GROUP_CONCAT(DISTINCT x) FROM ({sum}) AS t"));
    for kill in 0..kills() {
        server.as_owner(&state(2));
        load_and_kill(world, &file, std::time::Duration::from_millis(100 + kill * 997 % 700));
        let seen = versions();
        assert!(seen == "1" || seen == "2", "a mixture: {seen}");
    }
    with_input(world, &["db", "load", "shop", "--confirm", "shop"], &file).exits(0);
    assert_eq!(versions(), "1");
    assert_eq!(server.sql("mysql", "SHOW DATABASES LIKE 'shop%'"), "shop");
}

fn redis_load_killed_at_any_instant_leaves_old_or_loaded_keys(world: &World) {
    let Some(server) = Redis::start(world, "") else { return };
    shop(world, "REDIS_URL", &server.url(0));
    let fill = "redis.call('FLUSHDB') for key = 1, 20000 do redis.call('SET', 'key' .. key, ARGV[1]) end";
    let seen = "local seen = {} for _, key in ipairs(redis.call('KEYS', '*')) do seen[redis.call('GET', key)] = true end \
                local all = {} for value in pairs(seen) do all[#all + 1] = value end return table.concat(all, ',')";
    server.ask(0, &["EVAL", fill, "0", "1"]);
    let file = dump(world, "redis.dump");
    for kill in 0..kills() {
        server.ask(0, &["EVAL", fill, "0", "2"]);
        load_and_kill(world, &file, std::time::Duration::from_millis(100 + kill * 997 % 700));
        let values = server.ask(0, &["EVAL", seen, "0"]);
        assert!(values == "1" || values == "2", "a mixture: {values}");
        assert_eq!(server.ask(0, &["DBSIZE"]), "20000");
    }
    with_input(world, &["db", "load", "shop", "--confirm", "shop"], &file).exits(0);
    assert_eq!((server.ask(0, &["EVAL", seen, "0"]), server.ask(15, &["DBSIZE"])), ("1".into(), "0".into()));
}

fn unreachable_or_foreign_database_is_refused_with_the_cause(world: &World) {
    let Some(mut server) = MariaDb::start(world) else { return };
    let repo = shop(world, "DATABASE_URL", &server.url().replace("word-7f3a", "wrong"));
    for words in [&["backup", "take", "shop"][..], &["db", "dump", "shop"]] {
        let output = world.larder(words);
        output.exits(3).says("Access denied").says("hint: check the user and the password").keeps_quiet_about("wrong");
    }
    let push = |text: String| {
        repo.write("larder.yml", &text).page("version one");
        repo.push().accepted();
    };
    push(format!("env:\n  DATABASE_URL: \"{}none\"\n", server.url().strip_suffix("shop").unwrap()));
    world.larder(&["backup", "take", "shop"]).exits(3).says("none");
    push(format!("env:\n  DATABASE_URL: \"{}\"\n", server.url()));
    world.larder(&["backup", "take", "shop"]).ok();
    // The user of the URL may not create the scratch databases of a restore, so the dump is refused before anything is changed.
    let file = dump(world, "shop.dump");
    server.as_owner("CREATE TABLE kept (x INT)");
    server.sql("mysql", "REVOKE ALL PRIVILEGES ON `shop\\_larder\\_%`.* FROM shop@'%'");
    let refused = with_input(world, &["db", "load", "shop", "--confirm", "shop"], &file);
    refused.exits(3).says("GRANT ALL PRIVILEGES ON `shop\\_larder\\_%`.* TO 'shop'@'%'");
    assert_eq!(server.sql("shop", "SHOW TABLES"), "kept");
    server.kill();
    world.larder(&["backup", "take", "shop"]).exits(3).says("check that the server runs");
    world.larder(&["db", "dump", "shop"]).exits(3).says("check that the server runs");
    world.serves("shop", "version one");
}

fn created_database_is_used_by_the_application_and_dropped_after_a_restore_point(world: &World) {
    let Some(server) = MariaDb::start(world) else { return };
    world.project("shop");
    world.larder(&["db", "create", "shop", "mariadb"]).exits(3).says("databases: {mariadb: FILE}");
    administrate(world, "mariadb", &server.admin_url());
    let created = world.larder(&["db", "create", "shop", "mariadb"]);
    created.exits(0).says("shop__production").says("DATABASE_URL").keeps_quiet_about(PASSWORD_IN_URL);
    world.larder(&["db", "create", "shop", "mariadb"]).exits(3).says("already has a database");
    let secrets = world.environment("shop").join("generated.json");
    let stored: serde_json::Value = serde_json::from_slice(&fs::read(&secrets).unwrap()).unwrap();
    let url = stored["DATABASE_URL"].as_str().unwrap();
    let password = url.split([':', '@']).nth(2).unwrap();
    assert_eq!(password.len(), 64, "{url}");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&secrets).unwrap().permissions()) & 0o777, 0o600);

    let repo = Repo::new(world, "shop");
    repo.write("Procfile", PROCFILE).page("version one");
    repo.push().accepted();
    let found = world.larder(&["run", "shop", "--", "sh", "-c", "echo $DATABASE_URL"]);
    assert_eq!(found.ok().trim(), url);
    let script = world.directory().join("script.sql");
    fs::write(&script, "CREATE TABLE orders (x INT); INSERT INTO orders VALUES (42);\n").unwrap();
    with_input(world, &["db", "shell", "shop"], &script).exits(0);
    assert_eq!(server.sql("shop__production", "SELECT x FROM orders"), "42");
    let list = world.larder(&["db", "list", "shop"]);
    list.exits(0).says("larder db create").keeps_quiet_about(password);

    // A user with the right to deploy sees the list, and may not do more.
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    world.larder(&["user", "grant", "bob", "shop", "deploy"]).ok();
    world.ssh("bob", &["db", "list", "shop"]).exits(0).says("shop__production");
    for verb in ["shell", "dump", "load", "destroy"] {
        world.ssh("bob", &["db", verb, "shop"]).exits(3).says("may not operate");
    }
    world.ssh("bob", &["db", "create", "shop", "mariadb"]).exits(3).says("may not operate");

    world.larder(&["db", "destroy", "shop"]).exits(3).says("would be dropped");
    assert_eq!(server.sql("shop__production", "SELECT x FROM orders"), "42");
    world.larder(&["db", "destroy", "shop", "--confirm", "shop"]).exits(0).says("restore point");
    assert_eq!(server.sql("mysql", "SHOW DATABASES LIKE 'shop__production'"), "");
    assert_eq!(server.sql("mysql", "SELECT COUNT(*) FROM user WHERE User = 'shop__production'"), "0");
    world.larder(&["backup", "list", "shop"]).says("before the database shop__production was dropped");
    world.larder(&["db", "destroy", "shop", "--confirm", "shop"]).exits(4);
}

/// Names a database server with its administrator in the server file.
fn administrate(world: &World, key: &str, url: &str) {
    let file = world.directory().join("admin.url");
    fs::write(&file, url).unwrap();
    give_to_larder(world, &file);
    world.add_settings(&format!("databases:\n  {key}: {}\n", file.display()));
}

fn created_postgres_database_is_restored_and_dropped(world: &World) {
    let Some(server) = Postgres::start(world) else { return };
    world.project("my-shop");
    administrate(world, "postgres", &format!("postgres://postgres@127.0.0.1:{}/postgres", server.port));
    world.larder(&["db", "create", "my-shop", "postgres"]).exits(0).says("PostgreSQL");
    let list = world.larder(&["--json", "db", "list", "my-shop"]).json();
    let name = list[0]["location"].as_str().unwrap().rsplit_once('/').unwrap().1.to_owned();
    assert!(name.starts_with("my_shop__production_") && name.len() <= 32, "{name}");
    let repo = Repo::new(world, "my-shop");
    repo.write("Procfile", PROCFILE).page("version one");
    repo.push().accepted();
    let script = world.directory().join("script.sql");
    fs::write(&script, "create table orders (x int);\ninsert into orders values (42);\n").unwrap();
    with_input(world, &["db", "shell", "my-shop"], &script).exits(0);
    world.larder(&["backup", "take", "my-shop"]).ok();
    fs::write(&script, "delete from orders;\n").unwrap();
    with_input(world, &["db", "shell", "my-shop"], &script).exits(0);
    world.larder(&["backup", "restore", "my-shop", "latest", "--yes"]).ok();
    assert_eq!(server.sql(&name, "select x from orders").trim(), "42");
    world.larder(&["db", "destroy", "my-shop", "--confirm", "my-shop"]).exits(0);
    let left = format!(
        "select (select count(*) from pg_database where datname = '{name}') + (select count(*) from pg_roles where rolname = '{name}')"
    );
    assert_eq!(server.sql("postgres", &left).trim(), "0");
}
