//! An upgrade that drops a column, deletes uploads and fails its check, with each engine of databases: database and files are afterwards as
//! before, and no acknowledged write is lost, also if the server, the keeper or a worker is killed at a random moment.
//!
//! By default, each engine has one kill with a hold, and none with the strategy in-place. With `LARDER_TEST_THOROUGH`, each engine has 25
//! kills with each strategy, and `LARDER_TEST_KILLS` sets another number.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::harness::{
    Repo, World, cli::Output, databases::MariaDb, databases::Redis, http, in_one_mode, installed, postgres::Postgres, processes,
    until,
};

in_one_mode!(
    failed_upgrade_with_postgres_loses_nothing_despite_kills,
    failed_upgrade_with_mariadb_loses_nothing_despite_kills,
    failed_upgrade_with_sqlite_loses_nothing_despite_kills,
    failed_upgrade_with_redis_loses_nothing_despite_kills,
    failed_upgrade_in_place_with_postgres_restores_database_and_files,
    failed_upgrade_in_place_with_sqlite_restores_database_and_files,
);

/// An application for all engines. It acknowledges a write after the write is in the database and in a file.
const APPLICATION: &str = r#"
import http.server, os, socket, sqlite3, subprocess, sys, threading, urllib.parse

URL = urllib.parse.urlsplit(os.environ["DATABASE_URL"])
DATA = os.environ["LARDER_DATA"]

def client(words, statement, **variables):
    done = subprocess.run(words + [statement], stdout=subprocess.PIPE, env={**os.environ, **variables}, check=True)
    return done.stdout.decode()

def redis(*words):
    with socket.create_connection((URL.hostname, URL.port), 10) as connection:
        asked = [("AUTH", urllib.parse.unquote(URL.password)), ("SELECT", URL.path.strip("/") or "0"), words]
        for command in asked:
            parts = [part.encode() for part in command]
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
            answer = b""
            while not answer.endswith(b"\r\n"):
                answer += connection.recv(4096) or sys.exit("the database is gone")
            if answer.startswith(b"-"):
                raise RuntimeError(answer.decode())

def sql(statement):
    if URL.scheme == "postgres":
        return client(["psql", "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", os.environ["DATABASE_URL"], "-c"], statement)
    if URL.scheme == "mysql":
        words = ["mariadb", "--no-defaults", "--protocol=TCP", "--host=" + URL.hostname, "--port=%d" % URL.port]
        words += ["--user=" + URL.username, URL.path.strip("/"), "--execute"]
        return client(words, statement, MYSQL_PWD=urllib.parse.unquote(URL.password))
    with sqlite3.connect(DATA + "/app.sqlite3", timeout=10) as connection:
        connection.executescript("begin;" + statement + ";commit")

IS_REDIS = URL.scheme == "redis"
LOCK = threading.Lock()

def create():
    os.makedirs(DATA + "/uploads/deep", exist_ok=True)
    for name in ["one", "deep/two", "deep/three"]:
        with open(DATA + "/uploads/" + name, "w") as upload:
            upload.write(name * 500)
    open(DATA + "/uploads/ledger", "w").close()
    if IS_REDIS:
        redis("HSET", "note:1", "text", "first", "author", "a")
        redis("HSET", "note:2", "text", "second", "author", "b")
    else:
        sql("create table notes (id integer primary key, text varchar(50), author varchar(50));"
            "insert into notes values (1, 'first', 'a'), (2, 'second', 'b');"
            "create table ledger (line varchar(100) primary key)")

def upgrade():
    if IS_REDIS:
        redis("HDEL", "note:1", "author")
        redis("DEL", "note:2", "ledger")
        redis("SET", "added", "1")
    else:
        sql("alter table notes drop column author; delete from ledger; create table added (x integer)")
    os.remove(DATA + "/uploads/deep/two")
    os.remove(DATA + "/uploads/ledger")
    with open(DATA + "/uploads/one", "w") as upload:
        upload.write("changed")

def write(line):
    with LOCK:
        if IS_REDIS:
            redis("RPUSH", "ledger", line)
        else:
            sql("insert into ledger values ('%s')" % line)
        with open(DATA + "/uploads/ledger", "a") as ledger:
            ledger.write(line + "\n")
            ledger.flush()
            os.fsync(ledger.fileno())

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        broken = self.path == "/health" and os.path.exists("broken")
        self.answer(500 if broken else 200, open("version").read())

    def do_POST(self):
        try:
            write(self.rfile.read(int(self.headers["Content-Length"])).decode())
        except Exception as error:
            return self.answer(500, str(error))
        self.answer(200, "kept")

    def log_message(self, *arguments):
        pass

if sys.argv[1] == "create":
    create()
elif sys.argv[1] == "upgrade":
    upgrade()
else:
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

/// The recipe without the line of the upgrade.
const RECIPE: &str = "data: [uploads/, app.sqlite3]\nhealth: {path: /health, timeout: 1s, interval: 50ms}\n";

/// The line of the recipe for deployments in place.
const IN_PLACE: &str = "strategy: in-place\n";

/// A database of the application, as the test reads it.
trait Database {
    fn url(&self) -> String;
    /// Returns the whole content without the rows of the ledger.
    fn content(&self) -> String;
    /// Returns the lines of the ledger.
    fn ledger(&self) -> BTreeSet<String>;
}

/// Returns the statements of a dump that do not insert into the ledger. The rows of one statement can be on several lines.
fn without_ledger(text: &str) -> String {
    let (mut kept, mut in_ledger) = (Vec::new(), false);
    for line in text.lines() {
        in_ledger |= ["`ledger`", "\"ledger\""].iter().any(|name| line.starts_with(&format!("INSERT INTO {name}")));
        if !in_ledger {
            kept.push(line);
        }
        in_ledger &= !line.ends_with(';');
    }
    kept.join("\n")
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

impl Database for Postgres {
    fn url(&self) -> String {
        Postgres::url(self, Postgres::PASSWORD)
    }

    fn content(&self) -> String {
        let text = Postgres::content(self);
        // The rows of a table are the lines between its COPY statement and `\.`.
        let (mut kept, mut in_ledger) = (Vec::new(), false);
        for line in text.lines() {
            in_ledger |= line.starts_with("COPY public.ledger ");
            if !in_ledger {
                kept.push(line);
            }
            in_ledger &= line != "\\.";
        }
        kept.join("\n")
    }

    fn ledger(&self) -> BTreeSet<String> {
        lines(&self.sql("shop", "select line from ledger"))
    }
}

impl Database for MariaDb {
    fn url(&self) -> String {
        MariaDb::url(self)
    }

    fn content(&self) -> String {
        without_ledger(&MariaDb::content(self, "shop"))
    }

    fn ledger(&self) -> BTreeSet<String> {
        lines(&self.sql("shop", "select line from ledger"))
    }
}

impl Database for Redis {
    fn url(&self) -> String {
        Redis::url(self, 0)
    }

    fn content(&self) -> String {
        self.digest(0).split(' ').filter(|entry| !entry.starts_with("ledger=")).collect::<Vec<_>>().join(" ")
    }

    fn ledger(&self) -> BTreeSet<String> {
        lines(&self.ask(0, &["LRANGE", "ledger", "0", "-1"]))
    }
}

/// An SQLite database in the data.
pub struct Sqlite(pub PathBuf);

impl Sqlite {
    /// Runs Python with the open database `c`, and returns its output.
    pub fn ask(&self, script: &str) -> String {
        let mut python = std::process::Command::new("python3");
        python.args(["-c", &format!("import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=10)\n{script}")]).arg(&self.0);
        Output::of(&mut python).ok().to_owned()
    }
}

impl Database for Sqlite {
    fn url(&self) -> String {
        String::from("sqlite:////data/app.sqlite3")
    }

    fn content(&self) -> String {
        without_ledger(&self.ask("print('\\n'.join(c.iterdump()))"))
    }

    fn ledger(&self) -> BTreeSet<String> {
        lines(&self.ask("for row in c.execute('select line from ledger'): print(row[0])"))
    }
}

fn data(world: &World) -> PathBuf {
    world.environment("shop").join("data")
}

/// Returns all entries of the data with owner, mode, time and content, except the ledger and the files of SQLite.
fn files(world: &World) -> BTreeMap<PathBuf, String> {
    let mut all = crate::backup::walk(&data(world));
    all.retain(|path, _| {
        let path = path.to_str().unwrap();
        path != ".larder-seed" && path != "uploads/ledger" && !path.starts_with("app.sqlite3")
    });
    all.into_iter().map(|(path, seen)| (path, format!("{seen:?}"))).collect()
}

/// A client that writes numbered lines and remembers the acknowledged lines.
struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<String>>,
}

impl Writer {
    fn start(port: u16, name: &str) -> Writer {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted, name) = (stop.clone(), count.clone(), name.to_owned());
        let thread = std::thread::spawn(move || {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                if stopped.load(Relaxed) {
                    break;
                }
                let line = format!("{name}-{number}");
                let length = line.len();
                let head = "POST / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close";
                let request = format!("{head}\r\nContent-Length: {length}\r\n\r\n{line}");
                if http::request(port, &request).is_ok_and(|answer| answer.status == 200) {
                    acknowledged.push(line);
                    counted.fetch_add(1, Relaxed);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            acknowledged
        });
        Writer { stop, acknowledged: count, thread }
    }

    /// Waits until further lines were acknowledged.
    fn goes_on(&self) {
        let before = self.acknowledged.load(Relaxed);
        until("further writes are acknowledged", || self.acknowledged.load(Relaxed) >= before + 2);
    }

    fn stop(self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

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
    let usual = if std::env::var_os("LARDER_TEST_THOROUGH").is_some() { 25 } else { few };
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
    repo.write("Procfile", "web: exec python3 app.py $PORT\n").write("app.py", APPLICATION).write("version", "version one\n");
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
    let writer = Writer::start(world.http_port(), "first");
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
        let writer = Writer::start(world.http_port(), &format!("kill{number}"));
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
    keeps_everything(world, &database, "", kills(1));
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
