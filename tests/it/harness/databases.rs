//! Database servers of a world: MariaDB and Redis, each with its own directory, port and passwords, as an unprivileged user.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::Signal;

use super::{World, cli::Output, installed, processes, server::PATH, within};

/// The user of database servers, if the tests run as root.
const USER: u32 = 69_999;

/// The password of each database server. Tests search logs and files for this text.
pub const PASSWORD: &str = "pa ss#\"'\\%/word-7f3a";

/// The password as part of a URL.
pub const PASSWORD_IN_URL: &str = "pa%20ss%23%22%27%5C%25%2Fword-7f3a";

/// Returns a free local port. Another process may take the port before a server binds it, so a start is repeated with another port.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Returns a command of the database user.
fn command(program: &Path) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        let user = USER.to_string();
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"]).arg(program);
        setpriv
    } else {
        Command::new(program)
    };
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8").current_dir("/").stdin(Stdio::null());
    command
}

/// Makes a file readable for the user of larder's server only.
pub fn give_to_larder(world: &World, file: &Path) {
    let owner = fs::metadata(world.root().join("state")).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(file, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

/// Creates a directory of the database user below the world.
fn directory(world: &World, name: &str) -> PathBuf {
    let path = world.directory().join(name);
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(&path, Some(USER), Some(USER)).unwrap();
    }
    path
}

/// Starts a server until a port was free, and waits until the server accepts connections and has written `ready` into its log.
fn start(log: &Path, ready: &str, serve: impl Fn(u16) -> Command) -> (Child, u16) {
    for _ in 0..5 {
        let port = free_port();
        let output = fs::File::create(log).unwrap();
        let mut command = serve(port);
        let mut child = command.stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap();
        let mut ended = false;
        within(std::time::Duration::from_secs(60), || {
            ended = child.try_wait().unwrap().is_some();
            let is_ready = || fs::read_to_string(log).is_ok_and(|text| text.contains(ready));
            ended || (TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() && is_ready())
        });
        if !ended && child.try_wait().unwrap().is_none() {
            return (child, port);
        }
    }
    panic!("no start of the server: {}", fs::read_to_string(log).unwrap_or_default());
}

fn end(child: &mut Child) {
    processes::signal(child.id() as i32, Signal::KILL);
    let _ = child.wait();
}

/// A MariaDB server with the database `shop` of the user `shop`, and the administrator `admin`.
pub struct MariaDb {
    server: Child,
    pub port: u16,
}

impl MariaDb {
    /// Starts a server. Without MariaDB, prints `SKIPPED:` and returns nothing.
    pub fn start(world: &World) -> Option<MariaDb> {
        let [install, _] = ["mariadb-install-db", "mariadb"].map(installed);
        let (install, daemon) = (install?, Path::new("/usr/sbin/mariadbd"));
        if !daemon.is_file() {
            eprintln!("SKIPPED: mariadbd is not installed");
            return None;
        }
        let directory = directory(world, "mariadb");
        let data = directory.join("data");
        let mut install = command(&install);
        install.args([
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--innodb-log-file-size=8M",
        ]);
        install.arg("--innodb-data-file-path=ibdata1:5M:autoextend").arg(format!("--datadir={}", data.display()));
        // The kernel limits the asynchronous requests of all processes of the machine together (fs.aio-max-nr).
        install.arg("--innodb-use-native-aio=0");
        Output::of(&mut install).ok();
        // These statements run before the server accepts connections.
        let quoted = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
        let statements = format!(
            "CREATE DATABASE shop CHARACTER SET utf8mb4;\n\
             CREATE USER shop@'%' IDENTIFIED BY '{quoted}';\n\
             GRANT ALL PRIVILEGES ON shop.* TO shop@'%';\n\
             GRANT ALL PRIVILEGES ON `shop\\_larder\\_%`.* TO shop@'%';\n\
             CREATE USER admin@'%' IDENTIFIED BY '{quoted}';\n\
             GRANT ALL PRIVILEGES ON *.* TO admin@'%' WITH GRANT OPTION;\n\
             DROP USER root@localhost;\nFLUSH PRIVILEGES;\n"
        );
        let first = directory.join("first.sql");
        fs::write(&first, statements).unwrap();
        fs::set_permissions(&first, fs::Permissions::from_mode(0o644)).unwrap();
        let (server, port) = MariaDb::serve(&directory, Some(&first));
        fs::remove_file(first).unwrap();
        Some(MariaDb { server, port })
    }

    fn serve(directory: &Path, first: Option<&Path>) -> (Child, u16) {
        start(&directory.join("log"), "ready for connections", |port| {
            let mut serve = command(Path::new("/usr/sbin/mariadbd"));
            serve.arg("--no-defaults").arg(format!("--datadir={}", directory.join("data").display()));
            // At its start, a server removes the temporary tables of all servers in its directory for temporary files.
            serve.arg(format!("--tmpdir={}", directory.join("data").display()));
            // The socket is relative to the data directory, because the path of a socket has at most 107 bytes.
            serve.args(["--socket=s", "--bind-address=127.0.0.1", "--skip-log-bin", "--performance-schema=0"]);
            serve.args(["--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0"]);
            serve.args(["--key-buffer-size=1M", "--aria-pagecache-buffer-size=1M", "--character-set-server=utf8mb4"]);
            serve.arg(format!("--port={port}")).arg("--innodb-use-native-aio=0");
            serve.args(first.map(|file| format!("--init-file={}", file.display())));
            serve
        })
    }

    /// Returns the URL of the database `shop`.
    pub fn url(&self) -> String {
        format!("mysql://shop:{PASSWORD_IN_URL}@127.0.0.1:{}/shop", self.port)
    }

    /// Returns the URL of the administrator.
    pub fn admin_url(&self) -> String {
        format!("mysql://admin:{PASSWORD_IN_URL}@127.0.0.1:{}/", self.port)
    }

    /// Runs statements as the administrator, and returns the rows of the answers.
    #[track_caller]
    pub fn sql(&self, database: &str, statements: &str) -> String {
        let mut client = command(&installed("mariadb").unwrap());
        client.args(["--no-defaults", "--protocol=TCP", "--host=127.0.0.1", "--user=admin", "--default-character-set=utf8mb4"]);
        client.args(["--batch", "--skip-column-names"]).arg(format!("--port={}", self.port)).arg("--execute").arg(statements);
        client.arg(database).env("MYSQL_PWD", PASSWORD);
        Output::of(&mut client).ok().trim_end().to_owned()
    }

    /// Runs statements in the database `shop` as its user.
    #[track_caller]
    pub fn as_owner(&self, statements: &str) {
        let mut client = command(&installed("mariadb").unwrap());
        client.args(["--no-defaults", "--protocol=TCP", "--host=127.0.0.1", "--user=shop", "--default-character-set=utf8mb4"]);
        client.arg(format!("--port={}", self.port)).args(["--execute", statements, "shop"]).env("MYSQL_PWD", PASSWORD);
        Output::of(&mut client).ok();
    }

    /// Returns a client of the user of the database `shop`, which writes each answer at once.
    pub fn client(&self) -> Command {
        let mut client = command(&installed("mariadb").unwrap());
        client.args(["--no-defaults", "--protocol=TCP", "--host=127.0.0.1", "--user=shop", "--batch", "--unbuffered"]);
        client.arg(format!("--port={}", self.port)).arg("shop").env("MYSQL_PWD", PASSWORD);
        client
    }

    /// Returns all objects and rows of a database, as the server's own dump program writes them.
    #[track_caller]
    pub fn content(&self, database: &str) -> String {
        let mut dump = command(&installed("mariadb-dump").unwrap());
        dump.args(["--no-defaults", "--protocol=TCP", "--host=127.0.0.1", "--user=admin", "--default-character-set=utf8mb4"]);
        dump.args(["--hex-blob", "--routines", "--triggers", "--events", "--skip-dump-date"]).env("MYSQL_PWD", PASSWORD);
        dump.arg(format!("--port={}", self.port)).arg(database);
        Output::of(&mut dump).ok().to_owned()
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        end(&mut self.server);
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A Redis server with a password.
pub struct Redis {
    server: Child,
    pub port: u16,
}

impl Redis {
    /// Starts a server with `lines` in its configuration. Without Redis, prints `SKIPPED:` and returns nothing.
    pub fn start(world: &World, lines: &str) -> Option<Redis> {
        let [daemon, _] = ["redis-server", "redis-cli"].map(installed);
        let daemon = daemon?;
        let directory = directory(world, "redis");
        let (server, port) = start(&directory.join("log"), "Ready to accept connections", |port| {
            let file = directory.join("redis.conf");
            let quoted = PASSWORD.replace('\\', "\\\\").replace('"', "\\\"");
            let text = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsave \"\"\nappendonly no\nrequirepass \"{quoted}\"\n{lines}",
                directory.display()
            );
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
            let mut serve = command(&daemon);
            serve.arg(file);
            serve
        });
        Some(Redis { server, port })
    }

    /// Returns the URL of a database number.
    pub fn url(&self, number: u32) -> String {
        format!("redis://:{PASSWORD_IN_URL}@127.0.0.1:{}/{number}", self.port)
    }

    /// Runs a command in a database number, and returns the answer.
    #[track_caller]
    pub fn ask(&self, number: u32, words: &[&str]) -> String {
        let mut client = command(&installed("redis-cli").unwrap());
        client.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-n", &number.to_string(), "--no-auth-warning"]);
        client.args(words).env("REDISCLI_AUTH", PASSWORD);
        Output::of(&mut client).ok().trim_end().to_owned()
    }

    /// Returns all keys and values of a database number, as the server serialises them, without times of expiry.
    #[track_caller]
    pub fn digest(&self, number: u32) -> String {
        let script = "local keys = redis.call('KEYS', '*') table.sort(keys) local all = {} \
                      for _, key in ipairs(keys) do all[#all + 1] = key .. '=' .. redis.sha1hex(redis.call('DUMP', key)) end \
                      return table.concat(all, ' ')";
        self.ask(number, &["EVAL", script, "0"])
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        end(&mut self.server);
    }
}
