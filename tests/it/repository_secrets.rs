//! Encrypted values in the repository of the code: the defaults in `.larder/pillar.sample.yml`.

use std::{fs, path::PathBuf};

use crate::{
    configuration::{of_bytes, shop},
    configuration_secrecy::{MARKER, forms, found},
    harness::{Repo, World, in_one_mode, processes},
};

in_one_mode!(encrypted_default_of_the_repository_is_a_secret);

/// Encrypts a value for a project, and returns the text of the encrypted value. The project has no secret afterwards.
fn encrypted(world: &World, project: &str, value: &str) -> String {
    let mut set = world.client("ssh");
    set.args(world.ssh_options("alice")).args(["larder@127.0.0.1", "secret", "set", project, "sample.value"]);
    of_bytes(&mut set, value.as_bytes()).ok();
    let path = world.directory().join(format!("clones/{project}-pillar"));
    fs::create_dir_all(&path).unwrap();
    let pillar = Repo::at(world, &format!("{project}/pillar"), &path);
    pillar.git(&["pull", "--quiet", &pillar.url(), "main"]).ok();
    let text = fs::read_to_string(path.join("init.secrets.yml")).unwrap();
    world.ssh("alice", &["secret", "unset", project, "sample.value"]).ok();
    text.lines().find_map(|line| line.trim().strip_prefix("value: ")).unwrap().to_owned()
}

fn encrypted_default_of_the_repository_is_a_secret(world: &World) {
    let repo = shop(world);
    world.larder(&["project", "create", "bank", "--mode", "cooking"]).ok();
    let (own, stolen) = (encrypted(world, "shop", MARKER), encrypted(world, "bank", "money-of-the-bank"));
    let sample = |text: &str| format!("smtp:\n  password: {text}\nenv:\n  TOKEN: ${{smtp.password}}\n");
    repo.write(".larder/pillar.sample.yml", sample(&own));
    repo.program(".larder/post_deploy", "#!/bin/sh\necho \"deployed with ${TOKEN:-nothing}\"\n").commit("a secret");
    repo.push().accepted().says("deployed with [TOKEN]").0.keeps_quiet_about(MARKER);
    let hex: String = MARKER.bytes().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(world.get("shop", "/env/TOKEN").body.trim(), format!("hex:{hex}"));
    world.larder(&["backup", "take", "shop"]).ok();
    assert_eq!(found(world.root()), Vec::<PathBuf>::new());
    assert!(forms().iter().all(|form| !processes::contains(&world.objects("project"), form)));
    // A release must not contain the value.
    let live = repo.head();
    repo.program(".larder/build", "#!/bin/sh\nprintf %s \"$TOKEN\" > leaked\n").commit("a build that writes the secret");
    repo.push().rejected_with("\"leaked\" of the built tree contains the value of ").0.keeps_quiet_about(MARKER);
    repo.git(&["reset", "--quiet", "--hard", &live]).ok();
    // The value of another project, and a damaged value, are refused with their place.
    for (text, reason) in [
        (stolen.as_str(), ".larder/pillar.sample.yml line 2: smtp.password: the value is encrypted for other recipients"),
        ("age:!!", ".larder/pillar.sample.yml line 2: smtp.password: the encrypted value cannot be read"),
    ] {
        repo.write(".larder/pillar.sample.yml", sample(text)).commit("a wrong value");
        repo.push().rejected_with(reason).says("set the value again").0.keeps_quiet_about("money");
        repo.git(&["reset", "--quiet", "--hard", &live]).ok();
    }
    // The server's next start, a restart and a value of the pillar use the secret in the same way.
    world.kill9_all();
    world.start(&[]);
    crate::harness::until("the application serves", || world.get("shop", "/env/TOKEN").body.trim() == format!("hex:{hex}"));
    let path = world.directory().join("clones/shop-pillar");
    let pillar = Repo::at(world, "shop/pillar", &path);
    pillar.git(&["pull", "--quiet", &pillar.url(), "main"]).ok();
    pillar.write("production.yml", "smtp: {password: of-production}\n").commit("a value of one environment");
    pillar.push().accepted();
    let hex: String = b"of-production".iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(world.get("shop", "/env/TOKEN").body.trim(), format!("hex:{hex}"));
    world.is_consistent("shop");
}
