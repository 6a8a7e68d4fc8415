//! docs/client.md: every command of the page runs, with the files of the page.

use std::fs;

use crate::harness::{Laptop, Repo, World, cli::Output, in_one_mode, source::top};

in_one_mode!(every_command_of_the_page_runs);

/// Returns the contents of the blocks of a language.
fn blocks<'p>(page: &'p str, language: &str) -> Vec<&'p str> {
    let start = format!("```{language}\n");
    page.split(start.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

fn every_command_of_the_page_runs(world: &World) {
    world.project("shop");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    repo.push_as(&["HEAD:refs/heads/next"]).accepted();
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.git("", &["clone", "--quiet", repo.path().to_str().unwrap(), "shop"]).ok();
    laptop.git("shop", &["remote", "remove", "origin"]).ok();
    let page = fs::read_to_string(top().join("docs/client.md")).unwrap();
    // Two names of the world's server stand for all servers of the page.
    let port = world.ssh_port();
    let replaced = |text: &str| {
        let text = text.replace("web2.example.com:2222", &format!("localhost:{port}")).replace("web2.example.com", "localhost");
        let here = format!("127.0.0.1:{port}");
        ["web1.example.com:2222", "staging.example.com:2222", "lab.example.com:2222", "HOST:2222"]
            .iter()
            .fold(text, |text, name| text.replace(name, &here))
    };
    let [file] = blocks(&page, "json")[..] else { panic!("{page}") };
    fs::write(laptop.directory("shop").join("larder-environments.json"), replaced(file)).unwrap();
    let [file] = blocks(&page, "yaml")[..] else { panic!("{page}") };
    laptop.servers(&replaced(file));
    let lines: Vec<_> = blocks(&page, "sh").into_iter().flat_map(str::lines).filter(|line| !line.is_empty()).collect();
    assert!(lines.len() >= 9, "{lines:#?}");
    laptop.program("larder", &format!("exec {} \"$@\"\n", env!("CARGO_BIN_EXE_larder")));
    for line in lines {
        // A stream that never ends is shown up to its last line.
        let line = replaced(line).replace(" --follow", "");
        Output::of(laptop.command("sh", "shop").args(["-euc", &line])).exits(0).keeps_quiet_about("panicked");
    }
    assert_eq!(laptop.git("shop", &["remote"]).ok().trim(), "prod");
}
