//! Data and dumps that are hostile, damaged, too large or in motion. Each case is a clear refusal or a correct result, and nothing is half
//! restored. Other cases are in `backup.rs` (foreign and newer restore points, links, FIFOs), `databases.rs` and `database_servers.rs` (wrong
//! credentials, servers that are down), and in `crates/points` (directories that are exchanged for links).

use std::{collections::BTreeMap, fs, path::Path};

use crate::{
    backup::{data, id, same, sh, walk},
    harness::{
        Repo, World, cli::Output, databases::MariaDb, databases::Redis, disk::Disk, in_one_mode, installed, postgres::Postgres,
        state::names, thorough, until,
    },
};

in_one_mode!(
    hostile_file_of_sqlite_is_refused_or_restored_as_data,
    hostile_dump_for_postgres_is_refused,
    hostile_dump_for_mariadb_is_refused,
    hostile_dump_for_redis_is_refused,
    files_that_change_during_a_capture_are_whole_or_named,
    many_small_files_are_restored_exactly,
);

/// Returns the project `shop` with an environment variable.
fn shop<'w>(world: &'w World, lines: &str) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec larder static-server --root .\n");
    repo.write("larder.yml", format!("data: [media]\n{lines}"));
    repo.page("version one");
    repo.push().accepted();
    repo
}

/// Runs `larder db load` with a dump.
fn load(world: &World, dump: &[u8]) -> Output {
    let path = world.directory().join("load.dump");
    fs::write(&path, dump).unwrap();
    let mut command = world.larder_command();
    Output::of(command.args(["db", "load", "shop", "--confirm", "shop"]).stdin(fs::File::open(&path).unwrap()))
}

/// Returns the dump of the database of `shop`.
fn dump(world: &World) -> Vec<u8> {
    let mut command = world.larder_command();
    let output = command.args(["db", "dump", "shop"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Loads each dump. Each load is refused with a reason, the content of the database stays, and no command of a dump has run.
fn each_is_refused(world: &World, dumps: &[(&str, Vec<u8>)], content: impl Fn() -> String) {
    let before = content();
    for (name, dump) in dumps {
        let refused = load(world, dump);
        assert_ne!(refused.status, 0, "{name}: {refused}");
        assert!(refused.stderr.contains("error: cannot"), "{name}: {refused}");
        assert_eq!(content(), before, "{name}: a refused dump changed the database: {refused}");
        let data = data(world);
        assert!(
            !data.join("pwned").exists() && !Path::new("/tmp/larder-pwned").exists(),
            "{name}: a command of the dump has run"
        );
    }
    eprintln!("{} hostile dumps are refused: {:?}", dumps.len(), dumps.iter().map(|(name, _)| name).collect::<Vec<_>>());
    world.serves("shop", "version one");
    world.is_consistent("shop");
}

/// Returns a dump with one changed byte in its middle, and the first half of the dump.
fn damaged(good: &[u8]) -> [(&'static str, Vec<u8>); 2] {
    let mut flipped = good.to_vec();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x40;
    [("a changed byte", flipped), ("a dump that is cut off", good[..middle].to_vec())]
}

const COMMANDS: &str = "touch /data/pwned /tmp/larder-pwned";

/// Each file is the application's SQLite database. A file that is no sound database is refused by name; a sound one is captured and restored,
/// and its triggers and views never run.
fn hostile_file_of_sqlite_is_refused_or_restored_as_data(world: &World) {
    let Some(python) = installed("python3") else { return };
    shop(world, "databases: {main: {path: data/media/app.sqlite3}}\n");
    let live = data(world).join("media/app.sqlite3");
    let local = tempfile::tempdir().unwrap();
    let file = |name: &str, script: &str| {
        let path = local.path().join(name);
        let code = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\nc.executescript(sys.argv[2])\nc.close()\n";
        Output::of(std::process::Command::new(&python).args(["-c", code]).arg(&path).arg(script)).ok();
        fs::read(path).unwrap()
    };
    let good = file("good", "create table t(x); insert into t values (randomblob(20000)), ('kept');");
    let place = |bytes: &[u8]| {
        fs::write(&live, bytes).unwrap();
        sh(world, "cp media/app.sqlite3 media/copy 2>/dev/null; mv media/copy media/app.sqlite3 2>/dev/null || true");
    };
    let hook = "create table t(x); create trigger tr after insert on t begin select writefile('/data/pwned', 'x'); end; \
        create view v as select load_extension('/data/evil.so');";
    let mut broken = good.clone();
    broken[4096 + 8..4096 + 2000].fill(0xa5);
    sh(world, "touch media/app.sqlite3");
    let points = || world.larder(&["--json", "backup", "list", "shop"]).json()["points"].as_array().unwrap().len();
    let (mut refused, mut damaged, mut captured) = (0, 0, 0);
    for (name, bytes, is_sound) in [
        ("a sound database", good.clone(), true),
        ("a script of the sqlite3 program", format!(".shell {COMMANDS}\n").into_bytes(), false),
        ("a damaged page", broken, false),
        ("half a database", good[..good.len() / 2].to_vec(), false),
        ("triggers and views that call functions", file("hooks", hook), true),
    ] {
        place(&bytes);
        let known = points();
        let taken = world.larder(&["backup", "take", "shop"]);
        assert!(taken.status == 0 || !is_sound, "{name}: {taken}");
        if is_sound {
            captured += 1;
            world.larder(&["backup", "verify", "shop"]).ok();
            sh(world, "rm media/app.sqlite3");
            world.larder(&["backup", "restore", "shop", "latest", "--yes"]).ok();
            assert!(live.is_file(), "{name}: the database was not restored");
        } else if taken.status == 0 {
            // The capture copies the pages as they are, and the verification names the damage.
            damaged += 1;
            world.larder(&["backup", "verify", "shop"]).exits(1).says("the SQLite file is damaged");
        } else {
            refused += 1;
            assert!(
                taken.stderr.contains("the SQLite ")
                    && taken.stderr.contains("app.sqlite3")
                    && !taken.stderr.contains("choose another"),
                "{name}: {taken}"
            );
            assert_eq!(points(), known, "{name}: a refused capture left a restore point");
        }
        assert!(!data(world).join("pwned").exists() && !Path::new("/tmp/larder-pwned").exists(), "{name}: a command has run");
        world.serves("shop", "version one");
    }
    eprintln!("hostile files of SQLite: {refused} refused, {damaged} found damaged, {captured} captured and restored");
    world.is_consistent("shop");
}

fn hostile_dump_for_postgres_is_refused(world: &World) {
    let Some(server) = Postgres::start(world) else { return };
    shop(world, &format!("env: {{DATABASE_URL: \"{}\"}}\n", server.url(Postgres::PASSWORD)));
    server
        .shop("create table kept(x int); insert into kept values (7); create table odd(\"a\n\\! touch /tmp/larder-pwned\" int)");
    // A name with a newline and a command of psql is data.
    let good = dump(world);
    load(world, &good).ok();
    let [flipped, cut] = damaged(&good);
    let mut dumps = vec![
        ("a script of psql", format!("\\! {COMMANDS}\n\\copy kept from program '{COMMANDS}'\n").into_bytes()),
        ("a restricted script", format!("\\restrict x\n\\unrestrict x\n\\! {COMMANDS}\n").into_bytes()),
        ("a tar file", {
            let mut tar = vec![0; 10240];
            tar[..7].copy_from_slice(b"toc.dat");
            tar
        }),
        ("only the mark of a dump", b"PGDMP".to_vec()),
        ("an empty dump", Vec::new()),
        cut,
    ];
    // A changed byte may be in a part of the dump that no table needs.
    if load(world, &flipped.1).status == 0 {
        load(world, &good).ok();
    } else {
        dumps.push(flipped);
    }
    each_is_refused(world, &dumps, || server.content());
}

fn hostile_dump_for_mariadb_is_refused(world: &World) {
    let Some(server) = MariaDb::start(world) else { return };
    shop(world, &format!("env: {{DATABASE_URL: \"{}\"}}\n", server.url()));
    server.sql("shop", "create table kept(x int); insert into kept values (7)");
    let good = dump(world);
    load(world, &good).ok();
    let script = |text: String| text.into_bytes();
    let dumps = [
        ("a command of the client", script(format!("\\! {COMMANDS}\nsystem {COMMANDS}\n"))),
        ("a command after a new delimiter", script(format!("DELIMITER ;;\n\\! {COMMANDS};;\n"))),
        ("another file", script(String::from("source /etc/passwd\n\\. /etc/passwd\n"))),
        ("another database", script(String::from("USE mysql;\nDROP TABLE user;\nDROP DATABASE shop;\n"))),
        ("an empty dump", Vec::new()),
        ("a dump that is cut off", good[..good.len() / 2].to_vec()),
    ];
    each_is_refused(world, &dumps, || server.content("shop"));
    // Whatever follows the end of a dump is not run.
    let before = server.content("shop");
    load(world, &[&good[..], format!("\n\\! {COMMANDS}\nDROP TABLE kept;\n").as_bytes()].concat());
    assert_eq!(server.content("shop"), before);
    assert!(!data(world).join("pwned").exists() && !Path::new("/tmp/larder-pwned").exists(), "a command after the dump has run");
}

fn hostile_dump_for_redis_is_refused(world: &World) {
    let Some(server) = Redis::start(world, "") else { return };
    shop(world, &format!("env: {{REDIS_URL: \"{}\"}}\n", server.url(0)));
    server.ask(0, &["SET", "kept", "7"]);
    let good = dump(world);
    load(world, &good).ok();
    let [flipped, cut] = damaged(&good);
    let dumps = [
        ("commands", b"*1\r\n$8\r\nFLUSHALL\r\nFLUSHALL\r\nCONFIG SET dir /tmp\r\n".to_vec()),
        ("an empty dump", Vec::new()),
        ("only the mark of a dump", b"REDIS0011".to_vec()),
        flipped,
        cut,
    ];
    each_is_refused(world, &dumps, || server.digest(0));
}

/// Programs of the project replace, extend and truncate files during captures. Each file of a restore point has one of the contents that the
/// file had, or the capture is refused.
fn files_that_change_during_a_capture_are_whole_or_named(world: &World) {
    let repo = shop(world, "");
    let writer = "i=0; touch media/ready; while :; do i=$((i+1)); head -c 200000 /dev/zero | tr '\\0' $((i % 10)) > media/new; mv media/new media/replaced; \
        echo $i >> media/grows; : > media/cut; head -c 100000 /dev/urandom > media/cut; mkdir -p media/dir/$i; rm -rf media/dir; \
        ln -sfn /etc/shadow media/link; rm -f media/fifo; mkfifo media/fifo; done";
    repo.write("larder.yml", "data: [media]\nscale: {writer: 1}\n");
    repo.write("writer.sh", format!("{writer}\n"))
        .write("Procfile", "web: exec larder static-server --root .\nwriter: exec sh writer.sh\n");
    repo.page("version two");
    repo.push().accepted();
    until("the writer runs", || data(world).join("media/ready").exists());
    let (mut whole, mut refused) = (0, 0);
    for _ in 0..4 {
        let taken = world.larder(&["--json", "backup", "take", "shop"]);
        if taken.status != 0 {
            assert!(taken.stderr.contains("changed") || taken.stderr.contains("cannot"), "{taken}");
            refused += 1;
            continue;
        }
        let point = taken.json();
        world.larder(&["backup", "verify", "shop", id(&point)]).says("ok (");
        let files = world.environment("shop").join("archives/points").join(id(&point)).join("files/data/media");
        if let Ok(bytes) = fs::read(files.join("replaced")) {
            assert_eq!(bytes.len(), 200_000, "a replaced file is neither the old nor the new file");
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a replaced file is a mixture");
        }
        assert!(!files.join("link").is_file(), "the target of a link was copied");
        whole += 1;
    }
    eprintln!("captures of files in motion: {whole} whole, {refused} refused");
    let point = world.larder(&["--json", "backup", "list", "shop"]).json()["points"][0].clone();
    if point.is_object() {
        world.larder(&["backup", "restore", "shop", id(&point), "--into", "beside"]).ok();
    }
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

fn many_small_files_are_restored_exactly(world: &World) {
    let count = if thorough() { 100_000 } else { 3_000 };
    shop(world, "");
    sh(world, &format!("i=0; while [ $i -lt {count} ]; do d=media/$((i % 300)); mkdir -p $d; echo $i > $d/$i; i=$((i+1)); done"));
    let before = walk(&data(world));
    assert!(before.len() > count);
    let point = world.larder(&["--json", "backup", "take", "shop"]).json();
    world.larder(&["backup", "verify", "shop", id(&point)]).says("ok (");
    sh(world, "rm -r media/1 media/2; echo changed > media/3/3; echo added > media/added");
    world.larder(&["backup", "restore", "shop", id(&point), "--yes"]).ok();
    same(&walk(&data(world)), &before);
    eprintln!("{count} small files are restored with the same content, mode, owner and time");
    world.is_consistent("shop");
}

/// A database of ten times the usable space is refused with both figures before anything is stopped or written.
#[test]
fn database_larger_than_the_free_space_is_refused_with_the_figures() {
    let Some(disk) = Disk::for_world("ext4", 340) else { return };
    let world = World::on_disk(&disk);
    if installed("python3").is_none() {
        return world.end();
    }
    shop(&world, "databases: {main: {path: data/media/app.sqlite3}}\n");
    sh(
        &world,
        "python3 -c \"import sqlite3; c=sqlite3.connect('/data/media/app.sqlite3'); c.execute('create table t(x)'); \
         c.executemany('insert into t values (randomblob(1000000))', [() for i in range(60)]); c.commit()\"",
    );
    // The server file says that 64 MiB must stay free.
    disk.fill_up_to(70 << 20);
    let processes = world.application("shop");
    let points = world.environment("shop").join("archives/points");
    let before: BTreeMap<_, _> = walk(&data(&world));
    let refused = world.larder(&["backup", "take", "shop"]);
    refused.exits(3).says("are needed").says("bytes are free");
    assert!(names(&points).iter().all(|name| name == "lock"), "{:?}", names(&points));
    assert_eq!(world.application("shop"), processes, "a process was stopped");
    same(&walk(&data(&world)), &before);
    disk.free();
    world.larder(&["backup", "take", "shop"]).ok();
    world.larder(&["backup", "verify", "shop"]).ok();
    world.end();
}
