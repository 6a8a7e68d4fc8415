//! Owners and modes of every path below the root, compared with the layout after deployments of all kinds.

use std::time::Duration;

use larder::layout::Layout;

use crate::{
    harness::{Repo, World, in_each_mode, layout::differences, within},
    promotion::{pair, production, staging},
};

in_each_mode!(path_owners_and_modes_match_the_layout);

fn path_owners_and_modes_match_the_layout(world: &World) {
    pair(world);
    let repo = Repo::site(world, "shop", "version one");
    repo.write("app.json", r#"{"env": {"SECRET": {"generator": "secret"}}}"#).write("larder.yml", "data: [media]\n");
    repo.commit("version one");
    staging(&repo).accepted();
    production(&repo).accepted();
    repo.page("version two");
    staging(&repo).accepted();
    world.larder(&["promote", "shop", "v2", "--to", "production"]).ok();
    world.larder(&["rollback", "shop"]).ok();
    repo.program(".larder/post_build", "#!/bin/sh\nexit 1\n").commit("a failure");
    staging(&repo).rejected();
    world.larder(&["run", "shop", "--", "sh", "-c", "echo x > media/upload; echo changed >> index.html"]).ok();
    world.larder(&["drift", "shop", "--save"]);
    world.larder(&["release", "pin", "shop", "v1"]);
    world.larder(&["backup", "take", "shop"]).ok();
    world.larder(&["backup", "restore", "shop", "latest", "--yes"]).ok();
    world.larder(&["backup", "restore", "shop", "latest", "--into", "copy"]).ok();
    world.larder(&["restart", "shop"]).ok();
    let layout = Layout::standard().unwrap();
    // Drafts of unfinished writes and discarded directories are removed after the verdicts, so the comparison is repeated.
    let mut wrong = Vec::new();
    within(Duration::from_secs(20), || {
        wrong = differences(world.root(), &layout);
        wrong.is_empty()
    });
    assert!(wrong.is_empty(), "{} paths differ from the layout:\n{}", wrong.len(), wrong.join("\n"));
}
