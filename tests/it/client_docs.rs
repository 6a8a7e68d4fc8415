//! docs/client.md: every command of the page runs, with the files of the page.

use std::fs;

use crate::harness::{Laptop, Repo, World, cli::Output, docs::Page, in_one_mode};

in_one_mode!(every_command_of_the_page_runs);

fn every_command_of_the_page_runs(world: &World) {
    world.project("shop");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    repo.push_as(&["HEAD:refs/heads/next"]).accepted();
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.git("", &["clone", "--quiet", repo.path().to_str().unwrap(), "shop"]).ok();
    laptop.git("shop", &["remote", "remove", "origin"]).ok();
    let page = Page::read("docs/client.md");
    // Two names of the world's server stand for all servers of the page.
    let port = world.ssh_port();
    let replaced = |text: &str| {
        let text = text.replace("web2.example.com:2222", &format!("localhost:{port}")).replace("web2.example.com", "localhost");
        let here = format!("127.0.0.1:{port}");
        ["web1.example.com:2222", "staging.example.com:2222", "lab.example.com:2222", "HOST:2222"]
            .iter()
            .fold(text, |text, name| text.replace(name, &here))
    };
    let [file] = page.blocks("json")[..] else { panic!("the page has one JSON file") };
    fs::write(laptop.directory("shop").join("larder-environments.json"), replaced(file)).unwrap();
    let [file] = page.blocks("yaml")[..] else { panic!("the page has one YAML file") };
    laptop.servers(&replaced(file));
    laptop.program("larder", &format!("exec {} \"$@\"\n", env!("CARGO_BIN_EXE_larder")));
    let run = |line: &str, directory: &str| {
        page.ran(line);
        // A stream that never ends is shown up to its last line, and an interactive program runs a command.
        let line = replaced(line).replace(" --follow", "").replace("-- bash", "-- bash -c true");
        Output::of(laptop.command("sh", directory).args(["-euc", &line])).keeps_quiet_about("panicked").clone()
    };
    for line in page.commands() {
        run(&line, "shop").exits(0);
    }
    assert_eq!(laptop.git("shop", &["remote"]).ok().trim(), "prod");
    // The commands in the sentences.
    run("git push prod main", "shop").exits(0);
    run("larder -r production@web2.example.com logs", "shop").exits(0);
    run("larder domains:add shop.example.com", "shop").exits(2).says("larder has no command domains:add");
    page.ran("larder has no command domains:add");
    let refused = world.ssh_on_terminal("alice", &["run", "shop", "bash"], "exit 3\n");
    page.ran("ssh -t -p PORT larder@HOST run shop bash");
    refused.exits(3);
    // The suite `terminal` has the tests of these programs at a terminal.
    laptop.larder("shop", &["-r", "prod", "run", "--", "true"]).exits(0);
    page.ran("larder run");
    laptop.larder("shop", &["-r", "prod", "db", "shell"]).exits(4).says("has no database");
    page.ran("larder db shell");
    // The suite `dev` runs this command until a signal ends it.
    page.ran("larder dev");
    laptop.site("clone", "version one");
    run("git remote add prod ssh://larder@HOST:2222/shop", "clone").exits(0);
    laptop.larder("clone", &["-r", "prod", "releases"]).exits(0);
    page.has_no_other_command();
}
