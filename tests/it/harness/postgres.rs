//! A PostgreSQL server of a test: an unprivileged process with its own data directory and a free port on loopback.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::chown,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{World, within};

/// The user of the server if the tests run as root: `nobody`. PostgreSQL refuses to run as root, and as a user without a name.
const USER: u32 = 65_534;

/// A running server with the role and database `shop`. Dropping the value ends the server.
pub struct Postgres {
    bin: PathBuf,
    directory: PathBuf,
    pub port: u16,
    server: Option<Child>,
}

/// Returns the directory of the newest installed server, or prints `SKIPPED:` and returns `None`.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> =
        versions.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path()))).collect();
    found.sort();
    let found = found.into_iter().rev().map(|(_, path)| path.join("bin")).chain(["/usr/local/bin".into(), "/usr/bin".into()]);
    let found =
        found.into_iter().find(|bin| ["postgres", "initdb", "psql", "pg_dump"].iter().all(|name| bin.join(name).is_file()));
    if found.is_none() {
        eprintln!("SKIPPED: postgresql is not installed");
    }
    found
}

impl Postgres {
    /// The password of the role `shop`. It contains characters that need an escape in a URL.
    pub const PASSWORD: &str = "geheim/p@ss";

    /// Starts a server below the directory of a world.
    pub fn start(world: &World) -> Option<Postgres> {
        let bin = programs()?;
        let directory = world.directory().join("pg");
        fs::create_dir(&directory).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(&directory, Some(USER), Some(USER)).unwrap();
        }
        let mut postgres = Postgres { bin, directory, port: 0, server: None };
        let data = postgres.directory.join("data");
        let made = postgres
            .program("initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--pgdata"])
            .arg(&data)
            .stdout(Stdio::null())
            .status();
        assert!(made.unwrap().success());
        let rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), rules).unwrap();
        postgres.up();
        postgres.sql("postgres", &format!("create role shop login password '{}'", Postgres::PASSWORD));
        postgres.sql("postgres", "create database shop owner shop");
        Some(postgres)
    }

    fn program(&self, name: &str) -> Command {
        let program = self.bin.join(name);
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            let user = USER.to_string();
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
        command
    }

    /// Starts the server. A restarted server has the same port.
    pub fn up(&mut self) {
        for _ in 0..10 {
            // Another program may take the free port before the server binds it, so the start is repeated.
            let port = match self.port {
                0 => TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
                known => known,
            };
            let log = fs::File::options().create(true).append(true).open(self.directory.join("log")).unwrap();
            let mut command = self.program("postgres");
            command.arg("-D").arg(self.directory.join("data")).args(["-p", &port.to_string()]);
            for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "shared_buffers=16MB"] {
                command.args(["-c", setting]);
            }
            let mut server = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
            self.port = port;
            if within(Duration::from_secs(30), || self.answers() || server.try_wait().unwrap().is_some()) && self.answers() {
                self.server = Some(server);
                return;
            }
            let _ = server.kill();
            let _ = server.wait();
        }
        panic!("PostgreSQL does not start: {}", fs::read_to_string(self.directory.join("log")).unwrap());
    }

    fn answers(&self) -> bool {
        self.psql("postgres").args(["-c", "select 1"]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }

    /// Ends the server at once.
    pub fn down(&mut self) {
        if let Some(mut server) = self.server.take() {
            let pid = Pid::from_child(&server);
            let _ = kill_process(pid, Signal::QUIT);
            let _ = server.wait();
        }
    }

    /// Returns the URL of the database `shop` with a password.
    pub fn url(&self, password: &str) -> String {
        let password = password.replace('/', "%2F").replace('@', "%40");
        format!("postgres://shop:{password}@127.0.0.1:{}/shop", self.port)
    }

    fn psql(&self, database: &str) -> Command {
        let mut command = self.program("psql");
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-w",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-d",
            database,
        ]);
        command.args(["-p", &self.port.to_string()]);
        command
    }

    /// Returns a client of the superuser.
    pub fn client(&self, database: &str) -> Command {
        self.psql(database)
    }

    /// Runs statements as the superuser, and returns their output.
    #[track_caller]
    pub fn sql(&self, database: &str, statements: &str) -> String {
        let output = self.psql(database).args(["-c", statements]).output().unwrap();
        assert!(output.status.success(), "{statements}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs statements as the owner of the database `shop`.
    #[track_caller]
    pub fn shop(&self, statements: &str) -> String {
        self.sql("shop", &format!("set session authorization shop; {statements}"))
    }

    /// Returns the whole content of the database `shop`, as the script of `pg_dump` without its random key. The rows of a table `bulk`, which
    /// a test uses for its size only, are left out.
    pub fn content(&self) -> String {
        let mut command = self.program("pg_dump");
        command.args([
            "-w",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-p",
            &self.port.to_string(),
            "--exclude-table-data=bulk",
            "shop",
        ]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Returns the path of `psql`.
    pub fn psql_path(&self) -> PathBuf {
        self.bin.join("psql")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.down();
    }
}
