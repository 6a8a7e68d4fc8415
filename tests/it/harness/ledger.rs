//! An application that keeps a ledger in a database of any engine and in a file, its databases as a test reads them, and a client that remembers
//! the acknowledged writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{
    World,
    cli::Output,
    databases::{MariaDb, Redis},
    http,
    postgres::Postgres,
    until,
};

/// Returns an application for all engines. It acknowledges a write after the write is in the database and in a file.
pub fn application() -> String {
    super::python::application(APPLICATION)
}

const APPLICATION: &str = r#"
import os, socket, sqlite3, subprocess, threading, time, urllib.parse, urllib.request

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
        return answer

def sql(statement):
    if URL.scheme == "postgres":
        return client(["psql", "-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", os.environ["DATABASE_URL"], "-c"], statement)
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

def mild():
    # The old release can write to the ledger afterwards.
    sql("alter table notes drop column author; create table added (x integer)")
    os.remove(DATA + "/uploads/deep/two")

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

def notes():
    if IS_REDIS:
        return "ok" if redis("HLEN", "note:1") == b":2\r\n" else "changed"
    statement = "select count(author) from notes"
    if URL.scheme == "sqlite":
        with sqlite3.connect(DATA + "/app.sqlite3", timeout=10) as connection:
            number = connection.execute(statement).fetchone()[0]
    else:
        number = "".join(c for c in sql(statement) if c.isdigit())
    return "ok" if str(number) == "2" else "changed"

def state():
    with open(DATA + "/uploads/deep/two") as upload:
        return "notes " + notes() + ", upload " + ("ok" if upload.read() == "deep/two" * 500 else "changed")

def drill():
    """Checks the copy of a drill through the web process on the copy, and then damages the copy."""
    with urllib.request.urlopen("http://127.0.0.1:" + os.environ["PORT"] + "/state") as answer:
        seen = answer.read().decode()
    print("seen:", seen, "in", os.environ["LARDER_RESTORE_POINT"][:2], "by", os.environ["LARDER_RELEASE"])
    if seen != "notes ok, upload ok" or os.path.exists("drill-fails"):
        sys.exit("the restored data is not as expected")
    upgrade()
    while os.path.exists("drill-hangs"):
        time.sleep(0.1)

class Handler(Base):
    def do_GET(self):
        if self.path == "/state":
            return self.answer(200, state())
        broken = self.path == "/health" and os.path.exists("broken")
        self.answer(500 if broken else 200, open("version").read())

    def do_POST(self):
        try:
            write(self.body())
        except Exception as error:
            return self.answer(500, str(error))
        self.answer(200, "kept")

if sys.argv[1] == "create":
    create()
elif sys.argv[1] == "upgrade":
    upgrade()
elif sys.argv[1] == "mild":
    mild()
elif sys.argv[1] == "drill":
    drill()
else:
    serve(Handler)
"#;

/// The recipe without the line of the upgrade.
pub const RECIPE: &str = "data: [uploads/, app.sqlite3]\nhealth: {path: /health, timeout: 1s, interval: 50ms}\n";

/// A database of the application, as the test reads it.
pub trait Database {
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

/// Returns the lines of a text as a set.
pub fn lines(text: &str) -> BTreeSet<String> {
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

/// Returns the directory of the persistent data.
pub fn data(world: &World) -> PathBuf {
    world.environment("shop").join("data")
}

/// Returns all entries of the data with owner, mode, time and content, except the ledger and the files of SQLite.
pub fn files(world: &World) -> BTreeMap<PathBuf, String> {
    let mut all = crate::backup::walk(&data(world));
    all.retain(|path, _| {
        let path = path.to_str().unwrap();
        path != ".larder-seed" && path != "uploads/ledger" && !path.starts_with("app.sqlite3")
    });
    all.into_iter().map(|(path, seen)| (path, format!("{seen:?}"))).collect()
}

/// A client that writes numbered lines to the application of the project `shop`, and remembers the acknowledged lines.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Writer {
    /// Starts a client whose lines begin with `name`.
    pub fn start(world: &World, name: &str) -> Writer {
        let port = world.http_port();
        Writer::sending(name, move |line| {
            let length = line.len();
            let head = "POST / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close";
            let request = format!("{head}\r\nContent-Length: {length}\r\n\r\n{line}");
            http::request(port, &request).is_ok_and(|answer| answer.status == 200)
        })
    }

    /// Starts a client that sends its lines with `send`, which returns true if the line was acknowledged.
    pub fn sending(name: &str, send: impl Fn(&str) -> bool + Send + 'static) -> Writer {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted, name) = (stop.clone(), count.clone(), name.to_owned());
        let thread = std::thread::spawn(move || {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                if stopped.load(Relaxed) {
                    break;
                }
                let line = format!("{name}-{number}");
                if send(&line) {
                    acknowledged.push(line);
                    counted.fetch_add(1, Relaxed);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            acknowledged
        });
        Writer { stop, acknowledged: count, thread: Some(thread) }
    }

    /// Waits until further lines were acknowledged.
    pub fn goes_on(&self) {
        let before = self.acknowledged.load(Relaxed);
        until("further writes are acknowledged", || self.acknowledged.load(Relaxed) >= before + 2);
    }

    /// Ends the client, and returns the acknowledged lines.
    pub fn stop(mut self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}
