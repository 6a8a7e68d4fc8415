//! Clients that larder does not stop: a session of an operator or a cron job with the URL of the project's database. A hold names these sessions in
//! the push and in its restore point.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpStream},
    process::{Child, Command, Stdio},
};

use crate::harness::{
    Repo, World,
    databases::{MariaDb, PASSWORD, Redis},
    in_one_mode,
    postgres::Postgres,
    until,
};

in_one_mode!(
    hold_names_sessions_of_other_clients_of_postgres,
    hold_names_sessions_of_other_clients_of_mariadb,
    hold_names_sessions_of_other_clients_of_redis,
);

/// A client program with an open session. Dropping the value ends the session.
struct Session(Child);

impl Session {
    /// Starts a client that has answered its first statement.
    fn open(client: &mut Command) -> Session {
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        client.stdin.as_mut().unwrap().write_all(b"select 'open';\n").unwrap();
        let mut answer = String::new();
        let mut lines = BufReader::new(client.stdout.take().unwrap());
        while !answer.contains("open") {
            assert_ne!(lines.read_line(&mut answer).unwrap(), 0, "{answer}");
        }
        Session(client)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Pushes an upgrade with a hold, without another client and then with the client that `open` connects. `first` is the description of the client.
fn names_them<S>(world: &World, url: &str, first: &str, open: &dyn Fn() -> S) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    let recipe = format!("env: {{DATABASE_URL: \"{url}\"}}\nupgrade: {{run: \"true\", safety: hold}}\n");
    repo.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", &recipe);
    repo.page("version one");
    repo.push().accepted();
    let named = format!("1 other session uses the database main, such as {first}");
    let push = repo.page("version two");
    repo.push().accepted().says("Upgrade with a hold").0.keeps_quiet_about("other session");
    world.larder(&["backup", "show", "shop"]).keeps_quiet_about("other session");
    assert_eq!(repo.live(), Some(push));
    let session = open();
    repo.page("version three");
    repo.push()
        .accepted()
        .says(&named)
        .says("if the deployment fails, the writes of other clients since the restore point are lost");
    drop(session);
    world.larder(&["backup", "show", "shop"]).says(&named);
    let shown = world.larder(&["--json", "backup", "show", "shop"]).json();
    assert_eq!((&shown["sessions"][0]["database"], &shown["sessions"][0]["count"]), (&"main".into(), &1.into()), "{shown}");
    connects_after_the_restore_point(world, &repo, &recipe, &named, open);
}

/// The client connects while the upgrade runs. The health check of the new release fails.
fn connects_after_the_restore_point<S>(world: &World, repo: &Repo<'_>, recipe: &str, named: &str, open: &dyn Fn() -> S) {
    let data = world.environment("shop").join("data");
    let waits = "touch $LARDER_DATA/waits; while test -e $LARDER_DATA/waits; do sleep 0.05; done";
    let recipe = recipe.replace("\"true\"", &format!("\"{waits}\""));
    repo.write("larder.yml", format!("{recipe}health: {{path: /missing, timeout: 1s}}\n")).page("version four");
    std::thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the upgrade waits", || data.join("waits").exists());
        let session = open();
        fs::remove_file(data.join("waits")).unwrap();
        let push = push.join().unwrap();
        push.rejected_with("answered 404").says(named).says("the writes of other clients since the restore point are lost");
        drop(session);
    });
    world.serves("shop", "version three");
}

fn hold_names_sessions_of_other_clients_of_postgres(world: &World) {
    let Some(server) = Postgres::start(world) else { return };
    server.sql("postgres", "alter role shop createdb");
    let url = server.url(Postgres::PASSWORD);
    names_them(world, &url, "shop from 127.0.0.1 (psql)", &|| {
        Session::open(Command::new(server.psql_path()).args(["-X", "-q", &url]))
    });
}

fn hold_names_sessions_of_other_clients_of_mariadb(world: &World) {
    let Some(server) = MariaDb::start(world) else { return };
    // The server may show the name of the host instead of its address.
    names_them(world, &server.url(), "shop from ", &|| Session::open(&mut server.client()));
}

fn hold_names_sessions_of_other_clients_of_redis(world: &World) {
    let Some(server) = Redis::start(world, "") else { return };
    let connect = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
        write!(stream, "*2\r\n$4\r\nAUTH\r\n${}\r\n{PASSWORD}\r\n", PASSWORD.len()).unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+OK\r\n");
        stream
    };
    names_them(world, &server.url(0), "a client from 127.0.0.1", &connect);
}
