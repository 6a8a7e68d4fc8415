//! The owners and modes of all paths below a root, compared with the layout.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use larder::layout::{Layout, LayoutKind, Owner};

/// Returns the paths whose kind, owner or mode differs from the layout, one line each.
pub fn differences(root: &Path, layout: &Layout) -> Vec<String> {
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
        // Tests themselves create files in trees.
        let of_the_test = inside && found.uid() == rustix::process::geteuid().as_raw();
        if let Some(owner) = users.uid(entry.owner, &path).filter(|owner| *owner != found.uid() && !of_the_test) {
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
            let name = |at: usize| path.components().nth(at)?.as_os_str().to_str();
            let (project, environment) = (name(1)?, name(2)?);
            let environments = self.registry["environments"].as_object()?;
            let is_it =
                |names: &serde_json::Value| names[1] == environment && self.registry["projects"][names[0].to_string()] == project;
            let (number, _) = environments.iter().find(|(_, names)| is_it(names))?;
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
