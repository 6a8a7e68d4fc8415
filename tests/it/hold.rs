//! Upgrades: a push whose upgrade command damages the data and whose check fails leaves data, release and acknowledged writes as they were.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::harness::{
    Repo, World, in_each_mode, in_one_mode, ledger::Writer, postgres::Postgres, python::application, state::names, thorough,
    until,
};

in_each_mode!(failed_upgrade_restores_the_data_and_loses_no_acknowledged_write);
in_one_mode!(
    upgrade_killed_at_its_events_restores_or_keeps_the_data,
    failed_upgrade_restores_a_database_without_files,
    upgrade_without_a_hold_names_the_command_that_restores_the_data,
    hold_beyond_its_limit_shows_the_maintenance_page,
    upgrade_without_changed_paths_is_skipped,
    failed_restore_freezes_the_environment_and_starts_no_process,
    failure_after_the_commit_point_keeps_the_data,
    return_by_an_exchange_killed_at_its_steps_restores_the_data,
    destroyed_project_leaves_no_copy_of_its_database,
);

/// An application that acknowledges a write after the write is in `store/ledger`, and answers 500 to `/health` if `broken` exists.
const APPLICATION: &str = r#"
import os, threading

class Handler(Base):
    lock = threading.Lock()

    def do_GET(self):
        broken = self.path == "/health" and os.path.exists("broken")
        self.answer(500 if broken else 200, open("version").read())

    def do_POST(self):
        text = self.body()
        with self.lock, open("store/ledger", "a") as ledger:
            ledger.write(text + "\n")
            ledger.flush()
            os.fsync(ledger.fileno())
        self.answer(200, "kept")

serve(Handler)
"#;

/// An upgrade that damages everything in the data.
const DAMAGE: &str = "rm -rf store/uploads/deep; echo damaged > store/uploads/one; : > store/ledger; echo new > store/added; \
                      echo top > $LARDER_DATA/top";

fn data(world: &World) -> PathBuf {
    world.environment("shop").join("data")
}

/// Creates the project with a first release and a few files in its data. `recipe` has further lines for the recipe.
fn shop<'w>(world: &'w World, recipe: &str) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec python3 app.py $PORT\nworker: exec sleep 1000\n");
    repo.write("app.py", application(APPLICATION)).write("version", "version one\n");
    repo.write("larder.yml", format!("data: [store/]\nhealth: {{path: /health, timeout: 6s, interval: 50ms}}\n{recipe}"));
    repo.commit("version one");
    repo.push().accepted();
    let populate = ": > store/ledger; mkdir -p store/uploads/deep; echo one > store/uploads/one; echo two > store/uploads/deep/two; \
                    ln store/uploads/one store/uploads/hard; ln -s one store/uploads/link; chmod 600 store/uploads/deep/two";
    world.larder(&["run", "shop", "--", "sh", "-ec", populate]).ok();
    repo
}

/// Commits the next version. `recipe` has further lines for the recipe.
fn version(repo: &Repo<'_>, version: &str, recipe: &str) {
    repo.write("version", format!("{version}\n"));
    repo.write("larder.yml", format!("data: [store/]\nhealth: {{path: /health, timeout: 6s, interval: 50ms}}\n{recipe}"));
    repo.commit(version);
}

/// Returns kind, mode, owner, time and content of every entry below the data, except the ledger.
fn seen(world: &World) -> BTreeMap<PathBuf, String> {
    let mut all = crate::backup::walk(&data(world));
    // larder itself writes `.larder-seed`, the record of the seeded files.
    [".larder-seed", "store/ledger"].into_iter().for_each(|path| drop(all.remove(Path::new(path))));
    all.into_iter().map(|(path, seen)| (path, format!("{seen:?}"))).collect()
}

#[track_caller]
fn keeps(world: &World, acknowledged: &[String]) {
    let ledger = fs::read_to_string(data(world).join("store/ledger")).unwrap();
    let kept: BTreeSet<_> = ledger.lines().collect();
    let lost: Vec<_> = acknowledged.iter().filter(|line| !kept.contains(line.as_str())).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged writes are lost: {lost:?}", lost.len(), acknowledged.len());
}

fn failed_upgrade_restores_the_data_and_loses_no_acknowledged_write(world: &World) {
    if crate::harness::installed("python3").is_none() {
        return;
    }
    let repo = shop(world, "");
    let before = seen(world);
    let writer = Writer::start(world, "a");
    writer.goes_on();
    // The upgrade succeeds, and the new release is not healthy.
    repo.write("broken", "");
    version(&repo, "version two", &format!("upgrade: |\n  {DAMAGE}\n"));
    let push = repo.push();
    push.rejected_with("web.1 answered 500 to GET /health").says("Upgrade with a hold").says("v1 is still live");
    assert_eq!(seen(world), before);
    world.serves("shop", "version one");
    writer.goes_on();
    // The upgrade itself fails.
    version(&repo, "version three", &format!("upgrade: |\n  {DAMAGE}; exit 3\n"));
    repo.push().rejected_with("the release command exited 3");
    assert_eq!(seen(world), before);
    world.serves("shop", "version one");
    writer.goes_on();
    // The next push succeeds, and keeps the changes of its upgrade.
    repo.remove("broken");
    version(&repo, "version four", "upgrade: echo new > store/added\n");
    repo.push().accepted().says("requests waited for");
    world.serves("shop", "version four");
    writer.goes_on();
    let acknowledged = writer.stop();
    keeps(world, &acknowledged);
    assert_eq!(fs::read_to_string(data(world).join("store/added")).unwrap(), "new\n");
    until("nothing is left", || names(&world.environment("shop").join("restoring")).is_empty());
    world.is_consistent("shop");
}

fn failed_upgrade_restores_a_database_without_files(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    world.project("shop");
    let repo = Repo::new(world, "shop");
    let env = format!("env: {{DATABASE_URL: \"{}\"}}\n", postgres.url(Postgres::PASSWORD));
    repo.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", &env);
    repo.page("version one");
    repo.push().accepted();
    postgres.shop("create table orders(id serial primary key, note text); insert into orders(note) values ('one'), ('two')");
    let before = postgres.content();
    let upgrade = "alter table orders drop column note; insert into orders default values; create table added(x int)";
    repo.write("upgrade.sh", format!("exec psql -w -q \"$DATABASE_URL\" -c '{upgrade}'\n"));
    let failing = "health: {path: /missing, timeout: 1s}\nupgrade: sh upgrade.sh\n";
    repo.write("larder.yml", format!("{env}{failing}")).page("version two");
    repo.push().rejected_with("web.1 answered 404 to GET /missing").says("Upgrade with a hold");
    assert_eq!(postgres.content(), before);
    world.serves("shop", "version one");
    repo.write("larder.yml", format!("{env}upgrade: sh upgrade.sh\n")).page("version three");
    repo.push().accepted();
    assert!(postgres.content().contains("added"));
    world.serves("shop", "version three");
}

fn upgrade_without_a_hold_names_the_command_that_restores_the_data(world: &World) {
    if crate::harness::installed("python3").is_none() {
        return;
    }
    let repo = shop(world, "");
    let before = seen(world);
    repo.write("broken", "");
    let damage = DAMAGE.replace(": > store/ledger;", "");
    version(&repo, "version two", &format!("upgrade:\n  safety: online\n  run: |\n    {damage}\n"));
    let processes = world.application("shop");
    let push = repo.push();
    push.rejected_with("v1 still live; the data is not restored").says("Upgrade without a hold").says("safety: online");
    assert_eq!(world.application("shop"), processes, "the old release serves throughout");
    world.serves("shop", "version one");
    assert_ne!(seen(world), before);
    let command =
        push.0.stderr.lines().find_map(|line| line.split_once("larder backup restore ").map(|(_, words)| words)).unwrap();
    world.larder(&["status"]).says("the data is not restored").says(command.trim());
    let words: Vec<_> = command.split_whitespace().collect();
    world.larder(&[&["backup", "restore"], &words[..]].concat()).ok();
    assert_eq!(seen(world), before);
    world.serves("shop", "version one");
    // An estimate above the limit has the same effect.
    version(&repo, "version three", "hold: 10ms\nupgrade: \"true\"\n");
    repo.push().rejected_with("the data is not restored").says("is above the limit of 10 ms");
}

fn hold_beyond_its_limit_shows_the_maintenance_page(world: &World) {
    if crate::harness::installed("python3").is_none() {
        return;
    }
    let repo = shop(world, "");
    let go = data(world).join("go");
    let wait = "while ! test -e $LARDER_DATA/go; do sleep 0.05; done";
    version(&repo, "version two", &format!("hold: 300ms\nupgrade:\n  safety: hold\n  run: {wait}\n"));
    std::thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        let mut page = None;
        until("the maintenance page is shown", || {
            page = Some(world.get("shop", "/")).filter(|page| page.status == 503);
            page.is_some()
        });
        let head = page.unwrap().head.to_ascii_lowercase();
        assert!(head.contains("retry-after:"), "{head}");
        fs::write(go, "").unwrap();
        push.join().unwrap().accepted().says("safety: hold");
    });
    world.serves("shop", "version two");
    world.larder(&["plan", "shop"]).says("according to the recipe of v2").says("with a hold").says("estimate: ");
}

fn upgrade_without_changed_paths_is_skipped(world: &World) {
    if crate::harness::installed("python3").is_none() {
        return;
    }
    let recipe = "upgrade: {run: echo ran >> store/ran, paths: [\"migrations/**\"]}\n";
    let repo = shop(world, recipe);
    repo.write("migrations/one.sql", "one");
    version(&repo, "version two", recipe);
    repo.push().accepted().says("Upgrade with a hold");
    version(&repo, "version three", recipe);
    let push = repo.push();
    push.accepted();
    assert!(!push.0.stderr.to_lowercase().contains("upgrade") && !push.0.stderr.contains("release command"), "{}", push.0);
    // The upgrade ran in the first deployment and for the new migration.
    assert_eq!(world.larder(&["run", "shop", "--", "cat", "store/ran"]).ok(), "ran\nran\n");
    repo.remove("migrations/one.sql");
    version(&repo, "version four", recipe);
    repo.push().accepted().says("Upgrade with a hold");
}

fn failed_restore_freezes_the_environment_and_starts_no_process(world: &World) {
    if crate::harness::installed("python3").is_none() {
        return;
    }
    let repo = shop(world, "");
    let before = seen(world);
    repo.write("broken", "");
    version(&repo, "version two", &format!("upgrade: |\n  {DAMAGE}\n"));
    world.restart(&[("FAILPOINTS", "undo.deploy.quiesce=1*return")]);
    repo.push().rejected_with("the environment is frozen");
    assert_eq!(world.get("shop", "/").status, 503);
    world.restart(&[]);
    assert_eq!(world.get("shop", "/").status, 503);
    assert!(world.application("shop").is_empty(), "no process may write data that an unfreeze discards");
    world.larder(&["restart", "shop"]).exits(1).says("is not restored");
    world.larder(&["deploy", "shop", "--unfreeze"]).ok();
    assert_eq!(seen(world), before);
    world.serves("shop", "version one");
}

/// Visitors have written since the commit point, so the code goes back alone.
fn failure_after_the_commit_point_keeps_the_data(world: &World) {
    if crate::harness::installed("python3").is_none() {
        return;
    }
    let repo = shop(world, "");
    let before = seen(world);
    let damage = DAMAGE.replace(": > store/ledger;", "");
    version(&repo, "version two", &format!("upgrade: |\n  {damage}\n"));
    world.restart(&[("FAILPOINTS", "step.post_deploy.smoke=1*return")]);
    let writer = Writer::start(world, "c");
    writer.goes_on();
    let push = repo.push();
    push.rejected_with("v1 still live; the data is not restored").says("larder backup restore shop");
    keeps(world, &writer.stop());
    assert_ne!(seen(world), before);
    world.serves("shop", "version one");
    world.is_consistent("shop");
    // Smoke pages that fail are found before the commit point.
    let after = seen(world);
    version(
        &repo,
        "version three",
        &format!("smoke: [{{path: /, contains: version nine}}]\nupgrade: |\n  {damage}; rm store/added\n"),
    );
    repo.push().rejected_with("deploy: smoke check /: the answer does not contain");
    assert_eq!(seen(world), after);
}

fn marks(world: &World) -> PathBuf {
    let marks = world.directory().join("marks");
    fs::create_dir(&marks).unwrap();
    fs::set_permissions(&marks, fs::Permissions::from_mode(0o777)).unwrap();
    marks
}

/// Returns the events at which the server is killed: with `LARDER_TEST_THOROUGH`, all events of the steps around the upgrade, otherwise a few
/// of these events.
fn events() -> Vec<String> {
    let few = ["succeeded.deploy.point", "succeeded.deploy.release", "succeeded.deploy.switch", "undo_started.deploy.quiesce"];
    let last = ["started.deploy.resume", "succeeded.deploy.resume"];
    let journal = match thorough() {
        false => few.into_iter().chain(last).map(str::to_owned).collect(),
        true => {
            let steps = ["hold", "quiesce", "point", "release", "boot", "switch", "resume"];
            let words = ["started", "succeeded", "undo_started", "undo_finished"];
            let of = |step| words.iter().map(move |word| format!("{word}.deploy.{step}"));
            // The event `undo_finished.deploy.resume` is left out: the suite `recovery` kills the server at this event, after a failure
            // that follows the commit point.
            let all = steps.into_iter().flat_map(of).filter(|event| !event.ends_with("finished.deploy.resume"));
            all.collect::<Vec<_>>()
        }
    };
    let journal = journal.iter().map(|event| format!("journal.{event}"));
    journal.chain(["restore.returned", "restore.served"].map(str::to_owned)).collect()
}

/// The server is killed once at each event, while the deployment goes on and while it is reverted.
fn upgrade_killed_at_its_events_restores_or_keeps_the_data(world: &World) {
    if crate::harness::installed("python3").is_none() {
        return;
    }
    let repo = shop(world, "");
    let before = seen(world);
    let marks = marks(world);
    let events = events();
    let points: Vec<_> = events.iter().map(|event| format!("{event}=return({})", marks.display())).collect();
    let points = points.join(";");
    let damage = DAMAGE.replace(": > store/ledger;", "");
    version(&repo, "version two", &format!("upgrade: |\n  {damage}\n"));
    let good = repo.live();
    // A restart ends the keeper's backoff, which grows with every kill.
    world.restart(&[("FAILPOINTS", &points)]);
    let mut acknowledged = Vec::new();
    loop {
        let died = names(&marks).len();
        let writer = Writer::start(world, &format!("w{died}"));
        writer.goes_on();
        let push = repo.push();
        until("the deployment has ended", || {
            let now = names(&marks).len();
            world.larder(&["status"]).status == 0 && world.has_ended("shop") && names(&marks).len() == now
        });
        acknowledged.extend(writer.stop());
        keeps(world, &acknowledged);
        if repo.live() != good {
            break;
        }
        assert_ne!(push.0.status, 0);
        world.serves("shop", "version one");
        assert_eq!(seen(world), before, "after {} kills: {}", names(&marks).len(), push.0);
        assert!(names(&marks).len() > died, "{}", push.0);
        world.restart(&[("FAILPOINTS", &points)]);
    }
    world.serves("shop", "version two");
    assert_eq!(fs::read_to_string(data(world).join("store/added")).unwrap(), "new\n");
    let died = names(&marks);
    let missed: Vec<_> = events.iter().filter(|event| !died.contains(event)).collect();
    assert!(missed.is_empty(), "no kill happened at {missed:?}");
    world.is_consistent("shop");
}

/// The worker cannot open a directory of the failed upgrade, so it cannot put single files back. All files are written beside the live data,
/// and exchanged.
fn return_by_an_exchange_killed_at_its_steps_restores_the_data(world: &World) {
    if crate::harness::installed("python3").is_none() {
        return;
    }
    let repo = shop(world, "");
    let before = seen(world);
    let marks = marks(world);
    let events = ["restore.filled", "restore.exchanged", "restore.served"];
    let points = events.map(|event| format!("{event}=return({})", marks.display())).join(";");
    repo.write("broken", "");
    let damage = DAMAGE.replace(": > store/ledger;", "");
    version(&repo, "version two", &format!("upgrade: |\n  {damage}; mkdir store/closed; chmod 000 store/closed\n"));
    let mut acknowledged = Vec::new();
    // A server that is killed in a recovery has a kill of its own, so a deployment can have several kills.
    loop {
        world.restart(&[("FAILPOINTS", &points)]);
        let died = names(&marks).len();
        let writer = Writer::start(world, &format!("w{died}"));
        writer.goes_on();
        let push = repo.push();
        assert_ne!(push.0.status, 0);
        until("the deployment has ended", || {
            let now = names(&marks).len();
            world.larder(&["status"]).status == 0 && world.has_ended("shop") && names(&marks).len() == now
        });
        acknowledged.extend(writer.stop());
        keeps(world, &acknowledged);
        world.serves("shop", "version one");
        assert_eq!(seen(world), before, "after {} kills: {}", names(&marks).len(), push.0);
        if names(&marks).len() == died {
            push.rejected_with("web.1 answered 500 to GET /health").says("v1 is still live");
            break;
        }
    }
    assert_eq!(names(&marks).len(), events.len(), "{:?}", names(&marks));
    until("nothing is left", || names(&world.environment("shop").join("restoring")).is_empty());
    world.is_consistent("shop");
}

/// A frozen environment keeps the copy that its hold made on the database server.
fn destroyed_project_leaves_no_copy_of_its_database(world: &World) {
    let Some(mut postgres) = Postgres::start(world) else { return };
    postgres.sql("postgres", "alter role shop createdb");
    let copies = |postgres: &Postgres| {
        postgres.sql("postgres", "select count(*) from pg_database where datname like '%larder%'").trim().to_owned()
    };
    let env = format!("env: {{DATABASE_URL: \"{}\"}}\n", postgres.url(Postgres::PASSWORD));
    for is_down in [false, true] {
        world.project("shop");
        let repo = Repo::new(world, "shop");
        repo.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", &env);
        repo.page("version one");
        repo.push().accepted();
        let failing = "health: {path: /missing, timeout: 1s}\nupgrade: {run: \"true\", safety: hold}\n";
        repo.write("larder.yml", format!("{env}{failing}")).page("version two");
        world.restart(&[("FAILPOINTS", "undo.deploy.quiesce=return")]);
        repo.push().rejected_with("the environment is frozen");
        assert_eq!(copies(&postgres), "1");
        if is_down {
            postgres.down();
        }
        let destroyed = world.larder(&["project", "destroy", "shop", "--confirm", "shop"]);
        destroyed.ok();
        if is_down {
            destroyed.says("cannot drop the copies of the databases of shop/production for the restore point");
            postgres.up();
            assert_eq!(copies(&postgres), "1");
        } else {
            assert_eq!(copies(&postgres), "0");
        }
    }
}
