//! Templates: rendered files of each release and configuration, their errors, and the pushes of `larder push`.

use std::{fs, os::unix::fs::MetadataExt as _};

use crate::{
    configuration::config,
    harness::{Laptop, Repo, World, in_each_mode, in_one_mode, python},
    pillar::pillar,
};

in_each_mode!(templates_are_rendered_for_each_release_and_configuration);
in_one_mode!(template_with_an_error_keeps_the_release_live, code_and_pillar_are_pushed_in_one_deployment);

/// The application: `/` shows the rendered file.
const APPLICATION: &str = r#"
import os

class Show(Base):
    def do_GET(self):
        self.answer(200, open("config/app.conf").read() + open("code").read())

serve(Show)
"#;

/// Creates the project `shop`, whose page shows its rendered file.
fn shop(world: &World) -> Repo<'_> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("app.py", python::application(APPLICATION)).write("Procfile", "web: exec python3 app.py $PORT\n");
    repo.write("code", "code one").write("larder.yml", "health:\n  timeout: 20s\ndrain: 1s\ntemplates: [config/app.conf.j2]\n");
    repo.write("config/app.conf.j2", "{{ database.password }} {{ env.LEVEL }} {{ larder.environment }} {{ larder.domains[0] }} ");
    repo.commit("code one");
    repo
}

fn templates_are_rendered_for_each_release_and_configuration(world: &World) {
    let repo = shop(world);
    let pillar = pillar(world);
    pillar.write("init.yml", "database: {password: hunter2hunter2}\nenv: {LEVEL: debug}\n").commit("values");
    pillar.push().accepted();
    repo.push().accepted().says("1 template rendered").0.keeps_quiet_about("hunter2");
    let page = "hunter2hunter2 debug production shop.localhost code one";
    world.serves("shop", page);
    // Only the user of the processes can read the file, and the release does not have it.
    let slot = fs::canonicalize(world.environment("shop").join("run")).unwrap();
    let file = slot.join("upper/config/app.conf");
    let file = if file.exists() { file } else { slot.join("config/app.conf") };
    let found = fs::metadata(&file).unwrap();
    assert_eq!(
        (found.mode() & 0o7777, found.uid()),
        (0o600, fs::metadata(world.environment("shop").join("data")).unwrap().uid())
    );
    let tree = fs::canonicalize(world.environment("shop").join("deploy/current")).unwrap();
    assert!(tree.join("config/app.conf.j2").exists() && !tree.join("config/app.conf").exists());
    world.larder(&["config", "render", "shop", "config/app.conf"]).says("hunter2hunter2 debug production").ok();
    world.larder(&["config", "render", "shop"]).says("hunter2hunter2 debug production").ok();
    world.larder(&["config", "render", "shop", "config/app.cnf"]).exits(4).says("did you mean config/app.conf?");
    // A change of the configuration and a push of the pillar render the file again.
    config(world, &["set", "shop", "LEVEL=info"]).says("1 template rendered").ok();
    world.serves("shop", "hunter2hunter2 info production");
    pillar.write("production.yml", "database: {password: other2other2}\n").commit("another password");
    pillar.push().accepted();
    world.serves("shop", "other2other2 info production");
    world.larder(&["drift", "shop"]).says("runs as it was released").ok();
    world.larder(&["rollback", "shop", "v1"]).ok();
    world.serves("shop", page);
    world.larder(&["restart", "shop"]).ok();
    world.serves("shop", page);
    world.kill9_all();
    world.start(&[]);
    world.serves("shop", page);
    world.is_consistent("shop");
}

fn template_with_an_error_keeps_the_release_live(world: &World) {
    let repo = shop(world);
    let pillar = pillar(world);
    pillar.write("init.yml", "database: {password: hunter2hunter2}\nenv: {LEVEL: debug}\n").commit("values");
    pillar.push().accepted();
    repo.push().accepted();
    let good = repo.head();
    for (recipe, template, reason) in [
        (
            "templates: [config/app.conf.j2]\n",
            "\n{{ database.passwort }}",
            "cannot render config/app.conf.j2: line 2: database.passwort has no value",
        ),
        ("templates: [config/app.conf.j2]\n", "{{ database.password", "cannot render config/app.conf.j2: line 1: "),
        ("templates: [config/missing.j2]\n", "", "cannot render config/missing.j2: the file does not exist in the release"),
        ("templates: [{from: config/app.conf.j2, to: ../outside}]\n", "", "templates.to: \"../outside\" has"),
        ("templates: [{from: config/app.conf.j2, to: /etc/cron.d/x}]\n", "", "is outside of /app"),
        ("data: [config/]\ntemplates: [config/app.conf.j2]\n", "", "writes into the persistent path config/"),
        ("templates: [{from: config/app.conf.j2, to: link/x}]\n", "x", "cannot write link/x: the path leads through a link"),
        (
            "templates: [{from: config/app.conf.j2, mode: \"0644\"}]\n",
            "{{ database.password }}",
            "its mode is 0644; use the mode \"0600\"",
        ),
    ] {
        repo.write("larder.yml", format!("{recipe}health: {{timeout: 20s}}\n")).write("config/app.conf.j2", template);
        let _ = std::os::unix::fs::symlink("config", repo.path().join("link"));
        repo.commit("an error");
        let push = repo.push();
        push.says(reason);
        push.rejected();
        push.0.keeps_quiet_about("hunter2");
        world.serves("shop", "hunter2hunter2 debug");
        repo.git(&["reset", "--quiet", "--hard", &good]).ok();
    }
    // The pillar loses a value that the template needs.
    pillar.write("init.yml", "env: {LEVEL: debug}\n").commit("no password");
    pillar.push().rejected_with("cannot render config/app.conf.j2: line 1: database.password has no value");
    world.serves("shop", "hunter2hunter2 debug");
    world.is_consistent("shop");
}

fn code_and_pillar_are_pushed_in_one_deployment(world: &World) {
    let repo = shop(world);
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.git("", &["clone", "--quiet", repo.path().to_str().unwrap(), "shop"]).ok();
    laptop.git("shop", &["remote", "remove", "origin"]).ok();
    laptop.git("shop", &["remote", "add", "production", &laptop.url("shop")]).ok();
    laptop.git("", &["clone", "--quiet", &format!("{}/pillar", laptop.url("shop")), "shop-pillar"]).ok();
    let values = |text: &str| {
        fs::write(laptop.directory("shop-pillar").join("init.yml"), text).unwrap();
        laptop.git("shop-pillar", &["add", "--all"]).ok();
        laptop.git("shop-pillar", &["commit", "--quiet", "--message", "values"]).ok();
    };
    let code = |text: &str| {
        fs::write(laptop.directory("shop").join("code"), text).unwrap();
        laptop.git("shop", &["commit", "--quiet", "--all", "--message", text]).ok();
    };
    let push = || laptop.larder("shop", &["push", "production"]);
    values("database: {password: first-value}\nenv: {LEVEL: a}\n");
    push().exits(0).says("v1 is live");
    world.serves("shop", "first-value a production shop.localhost code one");
    // Both change: one deployment.
    values("database: {password: second-value}\nenv: {LEVEL: b}\n");
    code("code two");
    push().exits(0).says("the next deployment of shop/production uses these values").says("v2 is live");
    world.serves("shop", "second-value b production shop.localhost code two");
    assert_eq!(world.journals("shop").len(), 2);
    // Only the pillar changes.
    values("database: {password: third-value}\nenv: {LEVEL: c}\n");
    push().exits(0).says("v3 is live").says("Everything up-to-date");
    world.serves("shop", "third-value c");
    // A rejected pillar: the code is not pushed.
    values("database:\n  password: ${nothing}\n");
    code("code three");
    push()
        .exits(1)
        .says("init.yml line 2: database.password: the reference ${nothing} names no value")
        .says("the pillar was refused, so the code was not pushed");
    world.serves("shop", "third-value c production shop.localhost code two");
    assert_eq!(world.journals("shop").len(), 3);
    // Rejected code: the values wait.
    values("database: {password: fourth-value}\nenv: {LEVEL: d}\n");
    fs::write(laptop.directory("shop").join("larder.yml"), "templates: [config/missing.j2]\n").unwrap();
    code("code four");
    push()
        .exits(1)
        .says("does not exist in the release")
        .says("the pillar was accepted and the code was not: shop/production uses the new values with its next deployment");
    world.serves("shop", "third-value c production shop.localhost code two");
    // Without the pillar.
    laptop.git("shop", &["checkout", "--quiet", "HEAD~1", "--", "larder.yml"]).ok();
    code("code five");
    values("not: pushed\n");
    laptop.larder("shop", &["push", "production", "--no-pillar"]).exits(0).says("v4 is live");
    world.serves("shop", "fourth-value d production shop.localhost code five");
    laptop.git("shop", &["config", "larder.pillar", "nowhere"]).ok();
    push().exits(4).says("larder.pillar names \"nowhere\", which is no clone with a commit");
    world.is_consistent("shop");
}
