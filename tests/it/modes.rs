//! Owners and modes of every path below the root, compared with the layout after deployments of all kinds.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use larder::layout::{Layout, LayoutKind, Owner};

use crate::{
    harness::{Repo, World, in_each_mode, within},
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

fn differences(root: &Path, layout: &Layout) -> Vec<String> {
    let users = Users::of(root);
    let mut wrong = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let at = root.join(&path);
        let Ok(found) = fs::symlink_metadata(&at) else { continue };
        if found.is_dir() {
            pending.extend(fs::read_dir(&at).into_iter().flatten().flatten().map(|entry| path.join(entry.file_name())));
        }
        let Some((entry, inside)) = layout.entry(&path) else {
            wrong.push(format!("{} is not in the layout", path.display()));
            continue;
        };
        if let Some(owner) = users.uid(entry.owner, &path).filter(|owner| *owner != found.uid()) {
            wrong.push(format!("{}: owner {} (expected {owner}, {:?})", path.display(), found.uid(), entry.owner));
        }
        if inside {
            continue;
        }
        let kind = found.file_type();
        let fits = match entry.kind {
            LayoutKind::Directory | LayoutKind::Tree => kind.is_dir(),
            LayoutKind::Link => kind.is_symlink(),
            LayoutKind::File => kind.is_file(),
            LayoutKind::Socket => kind.is_socket(),
        };
        let mode = found.mode() & 0o7777;
        if !fits || entry.bits().is_some_and(|bits| bits != mode) {
            wrong.push(format!("{}: {kind:?} with mode {mode:04o} (expected {entry:?})", path.display()));
        }
    }
    wrong.sort();
    wrong
}

/// The numbers of the users of a root. In rootless mode, all users have the same number.
struct Users {
    own: u32,
    server: u32,
    first: Option<u32>,
    registry: serde_json::Value,
}

impl Users {
    fn of(root: &Path) -> Users {
        let uid = |path: &Path| fs::metadata(path).unwrap().uid();
        let registry = fs::read(root.join("keeper/registry.json")).unwrap();
        Users {
            own: uid(&root.join("keeper")),
            server: uid(&root.join("state")),
            first: fs::read_to_string(root.join("keeper/numbers")).ok().map(|text| text.trim().parse().unwrap()),
            registry: serde_json::from_slice(&registry).unwrap(),
        }
    }

    fn uid(&self, owner: Owner, path: &Path) -> Option<u32> {
        let Some(first) = self.first else { return (owner != Owner::Operator).then_some(self.own) };
        let of_environment = |which: u32| {
            let name = path.components().nth(2)?.as_os_str().to_str()?;
            let environments = self.registry["environments"].as_object()?;
            let (number, _) = environments.iter().find(|(_, names)| names[1] == name)?;
            Some(first + 1000 + number.parse::<u32>().ok()? * 4 + which)
        };
        match owner {
            Owner::Operator => None,
            Owner::Keeper => Some(self.own),
            Owner::Server => Some(self.server),
            Owner::Git => Some(first + 1),
            Owner::Build => of_environment(0),
            Owner::Unpack => of_environment(1),
            Owner::Run => of_environment(2),
        }
    }
}
