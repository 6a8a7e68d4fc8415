//! The section "Restore on a new machine from the off-site copy alone" of docs/data.md, followed as a new user follows it: the commands of the
//! page run in the order of the page, on a second server that has only the store, the password and the repository of the project.

use std::{fs, os::unix::fs::MetadataExt, process::Command};

use crate::{
    backup::{POPULATE, data, id, same, sh, store, take, walk},
    harness::{Repo, World, cli::Output, databases::give_to_larder, in_one_mode, postgres::Postgres, until},
    offsite::{PASSWORD, configure_with, copy, directory},
};

in_one_mode!(restore_on_a_new_machine_from_the_off_site_copy_alone);

const SECTION: &str = "\n## Restore on a new machine from the off-site copy alone\n";

/// Returns the lines of the shell blocks of the section, without their indentation.
fn commands() -> Vec<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/data.md");
    let text = fs::read_to_string(page).unwrap();
    let section = text.split_once(SECTION).unwrap().1;
    let section = section.split("\n## ").next().unwrap();
    let mut lines = Vec::new();
    for block in section.split("```sh\n").skip(1) {
        let block = block.split("```").next().unwrap();
        lines.extend(block.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()));
    }
    lines
}

fn administrate(world: &World, server: &Postgres) {
    let file = world.directory().join("admin.url");
    fs::write(&file, format!("postgres://postgres@127.0.0.1:{}/postgres", server.port)).unwrap();
    give_to_larder(world, &file);
    world.add_settings(&format!("databases:\n  postgres: {}\n", file.display()));
}

fn restore_on_a_new_machine_from_the_off_site_copy_alone(world: &World) {
    let Some(server) = Postgres::start(world) else { return };
    // The old machine: files and a database, with a copy in a store.
    world.project("shop");
    administrate(world, &server);
    world.larder(&["db", "create", "shop", "postgres"]).ok();
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", "data: [media]\n");
    repo.page("version one");
    repo.push().accepted();
    sh(world, POPULATE);
    let script = world.directory().join("script.sql");
    fs::write(
        &script,
        "create table orders (id serial primary key, note text);\ninsert into orders(note) values ('one'), ('two');\n",
    )
    .unwrap();
    let mut shell = world.larder_command();
    Output::of(shell.args(["db", "shell", "shop"]).stdin(fs::File::open(&script).unwrap())).ok();
    let store_of_old = directory(world, "store");
    configure_with(world, store_of_old.to_str().unwrap(), "verify: 0", "keep: {last: 3}");
    let files = walk(&data(world));
    let point = take(world);
    assert_eq!(copy(world)["verified"], 1);

    // The new machine has the store, and a person with the password and the repository.
    let Some(other) = World::any() else { return };
    let Some(new_server) = Postgres::start(&other) else { return };
    administrate(&other, &new_server);
    let mounted = other.directory().join("mounted");
    Output::of(Command::new("cp").arg("-a").arg(&store_of_old).arg(&mounted)).ok();
    let owner = fs::metadata(other.root().join("state")).unwrap();
    let owner = format!("{}:{}", owner.uid(), owner.gid());
    Output::of(Command::new("chown").args(["-R", &owner]).arg(&mounted)).ok();
    let etc = directory(&other, "etc");
    let lines = commands();
    assert!(lines.len() >= 8, "{lines:#?}");
    let replace = |line: &str| {
        line.replace("NEW-HOST:2222", &format!("127.0.0.1:{}", other.ssh_port()))
            .replace("/mnt/backup", mounted.to_str().unwrap())
            .replace("/etc/larder", etc.to_str().unwrap())
            .replace("-o larder", &format!("-o {}", owner.split(':').next().unwrap()))
    };
    let mut words: Vec<String> = Vec::new();
    let larder = other.larder_command();
    words.push(larder.get_program().to_str().unwrap().to_owned());
    words.extend(larder.get_args().map(|word| word.to_str().unwrap().to_owned()));
    let larder = shlex::try_join(words.iter().map(String::as_str)).unwrap();
    let clone = Repo::new(&other, "shop");
    // The clone of the new user has the commits of the project.
    clone.git(&["pull", "-q", repo.path().to_str().unwrap(), "main"]).ok();
    let script: String = lines.iter().map(|line| replace(line) + "\n").collect();
    let script = format!("set -eu\nlarder() {{ {larder} \"$@\"; }}\n{script}");
    let mut shell = clone.command();
    // The same variables for git, with another program.
    let variables: Vec<_> = shell.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
    shell = other.client("sh");
    shell.args(["-c", &script]).current_dir(clone.path());
    for (name, value) in variables {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    let followed = Output::of_input(&mut shell, &format!("{PASSWORD}\n"));
    followed.exits(0).says(id(&point)).keeps_quiet_about(PASSWORD);

    // Files and database are those of the old machine.
    let note = std::path::Path::new(".larder-seed");
    let comparable = |mut seen: std::collections::BTreeMap<std::path::PathBuf, crate::backup::Seen>| {
        seen.remove(note);
        seen.values_mut().for_each(crate::backup::Seen::forget_owner);
        seen
    };
    same(&comparable(walk(&data(&other))), &comparable(files));
    assert_eq!(new_server.sql("shop__production", "select string_agg(note, ' ' order by id) from orders"), "one two");
    other.serves("shop", "version one");
    assert!(store(&other).join(id(&point)).is_dir());
    // The last step of the page: new restore points are copied to the same store.
    configure_with(&other, mounted.to_str().unwrap(), "verify: 0", "keep: {last: 3}");
    take(&other);
    until("the new restore point was copied", || copy(&other)["verified"].as_u64() >= Some(2));
    drop(new_server);
    other.end();
}
