//! The example `django-postgres` with each engine of databases: a failed migration brings database and uploads back, and loses no note of a
//! visitor who adds notes meanwhile. The build installs
//! packages from PyPI, so these tests run only with `LARDER_TEST_THOROUGH`.

use std::{collections::BTreeMap, fs, path::PathBuf};

use crate::harness::{
    Repo, World,
    databases::{MariaDb, Redis},
    http, in_one_mode, installed,
    ledger::Writer,
    postgres::Postgres,
    thorough,
};

in_one_mode!(
    django_with_postgres_survives_a_failed_migration,
    django_with_mariadb_survives_a_failed_migration,
    django_with_sqlite_and_redis_survives_a_failed_migration,
);

/// A migration that drops a column and deletes the uploads.
const MIGRATION: &str = r#"
import shutil
from django.conf import settings
from django.db import migrations

def delete(apps, schema_editor):
    shutil.rmtree(settings.MEDIA_ROOT / "deep")
    (settings.MEDIA_ROOT / "one.txt").unlink()

class Migration(migrations.Migration):
    dependencies = [("notes", "0001_initial")]
    operations = [migrations.RemoveField("note", "author"), migrations.RunPython(delete)]
"#;

fn is_wanted() -> bool {
    let is_wanted = thorough();
    if !is_wanted {
        eprintln!("SKIPPED: the example with Django needs LARDER_TEST_THOROUGH and PyPI");
    }
    is_wanted && installed("python3").is_some()
}

fn media(world: &World) -> BTreeMap<PathBuf, String> {
    let all = crate::backup::walk(&world.environment("shop").join("data/media"));
    all.into_iter().map(|(path, seen)| (path, format!("{seen:?}"))).collect()
}

/// Deploys the example with `databases` as the value of `databases:` and further `lines` in the recipe, adds notes, and pushes the
/// migration with a health check that fails. `content` returns the content of the databases.
fn survives(world: &World, databases: &str, lines: &str, content: &dyn Fn() -> String) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    crate::examples::copy(&crate::examples::directory("django-postgres"), repo.path());
    let recipe = fs::read_to_string(repo.path().join("larder.yml")).unwrap();
    let declared = "databases:\n  main: {type: postgres, url: $DATABASE_URL}\n";
    assert!(recipe.contains(declared), "{recipe}");
    let data = if databases.contains("app.sqlite3") { "data: [media/, app.sqlite3]" } else { "data: [media/]" };
    let recipe = recipe.replace(declared, &format!("databases: {databases}\n{lines}")).replace("data: [media/]", data);
    repo.write("larder.yml", recipe);
    repo.commit("version one");
    repo.push().accepted();
    let fill = "mkdir -p media/deep; echo one > media/one.txt; echo two > media/deep/two.txt; python manage.py shell -c \
                \"from notes.models import Note; Note.objects.create(text='first', author='ann', upload='one.txt')\"";
    world.larder(&["run", "shop", "--", "sh", "-ec", fill]).ok();
    world.serves("shop", "first (ann)");
    assert_eq!(world.get("shop", "/media/one.txt").body, "one\n");
    let (rows, files) = (content(), media(world));
    repo.write("notes/migrations/0002_damage.py", MIGRATION);
    let views = fs::read_to_string(repo.path().join("notes/views.py")).unwrap();
    repo.write("notes/views.py", views.replace("def health(request):\n", "def health(request):\n    raise RuntimeError\n\n"));
    repo.commit("version two");
    repo.push().rejected_with("web.1 answered 500 to GET /health").says("Upgrade with a hold").says("v1 is still live");
    assert_eq!(content(), rows);
    assert_eq!(media(world), files);
    world.serves("shop", "first (ann)");
    // The same push while a visitor adds notes: each note that the application has accepted is there afterwards.
    let port = world.http_port();
    let visitor = Writer::sending("note", move |line| add_note(port, line).unwrap_or(false));
    visitor.goes_on();
    repo.push().rejected_with("web.1 answered 500 to GET /health").says("Upgrade with a hold");
    visitor.goes_on();
    let acknowledged = visitor.stop();
    let page = world.get("shop", "/").body;
    let lost: Vec<_> = acknowledged.iter().filter(|line| !page.contains(&format!("{line} (visitor)"))).collect();
    assert!(lost.is_empty(), "{} of {} accepted notes are lost: {lost:?}", lost.len(), acknowledged.len());
    assert_eq!(media(world), files);
    eprintln!("{} accepted notes, none lost", acknowledged.len());
}

/// Adds a note as a browser does, with the token of the form. Returns true if the application has accepted the note.
fn add_note(port: u16, text: &str) -> Option<bool> {
    let page = http::get(port, "shop.localhost", "/").ok()?;
    let cookie = page.head.lines().find_map(|line| line.split_once("csrftoken=")?.1.split(';').next())?.to_owned();
    let token = page.body.split_once("name=\"csrfmiddlewaretoken\" value=\"")?.1.split('"').next()?;
    let body = format!("csrfmiddlewaretoken={token}&author=visitor&text={text}");
    let head = "POST / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded";
    let request = format!("{head}\r\nCookie: csrftoken={cookie}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    Some(http::request(port, &request).ok()?.status == 302)
}

fn django_with_postgres_survives_a_failed_migration(world: &World) {
    let Some(server) = is_wanted().then(|| Postgres::start(world)).flatten() else { return };
    let url = format!("env: {{DATABASE_URL: \"{}\"}}\n", server.url(Postgres::PASSWORD));
    survives(world, "{main: {type: postgres, url: $DATABASE_URL}}", &url, &|| server.content());
}

fn django_with_mariadb_survives_a_failed_migration(world: &World) {
    let Some(server) = is_wanted().then(|| MariaDb::start(world)).flatten() else { return };
    let url = format!("env: {{DATABASE_URL: \"{}\"}}\n", server.url());
    survives(world, "{main: {type: mysql, url: $DATABASE_URL}}", &url, &|| server.content("shop"));
}

fn django_with_sqlite_and_redis_survives_a_failed_migration(world: &World) {
    let Some(server) = is_wanted().then(|| Redis::start(world, "")).flatten() else { return };
    let file = world.environment("shop").join("data/app.sqlite3");
    let rows = || {
        let script = "import sqlite3, sys; print('\\n'.join(sqlite3.connect(sys.argv[1]).iterdump()))";
        let output = std::process::Command::new("python3").args(["-c", script]).arg(&file).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let databases = "{main: {path: app.sqlite3}, visits: {type: redis, url: $REDIS_URL}}";
    let url = format!("env: {{REDIS_URL: \"{}\"}}\n", server.url(0));
    survives(world, databases, &url, &rows);
    assert!(server.ask(0, &["KEYS", "*visits"]).contains("visits"));
}
