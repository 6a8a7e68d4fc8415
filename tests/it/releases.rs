//! Releases: names, build numbers, comparisons and retention.

use crate::harness::{Repo, World, in_one_mode, state::names, until};

in_one_mode!(
    build_numbers_rise_over_all_environments,
    tag_names_release_of_its_commit,
    release_diff_lists_files_and_commits,
    pinned_release_is_not_pruned,
    pin_before_pruning_begins_keeps_release,
    retention_follows_recipe_of_live_release,
    releases_beyond_size_limit_are_pruned,
    imports_that_were_never_live_displace_no_release_that_was_live,
    kill_while_pruning_leaks_no_ref,
    records_of_an_environment_that_was_never_live_are_pruned,
    configurations_of_pruned_deployments_are_removed,
    delayed_pruning_keeps_current_live_release,
);

fn manifest(world: &World, project: &str, environment: &str) -> serde_json::Value {
    let top = world.root().join("projects").join(project).join(environment);
    let current = std::fs::read_link(top.join("deploy/current")).unwrap();
    let path = top.join("releases").join(format!("{}.manifest.json", current.display()));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn build_numbers_rise_over_all_environments(world: &World) {
    world.project("shop");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let repo = Repo::site(world, "shop", "one");
    repo.push().accepted().says("build 1: ");
    repo.push_as(&["HEAD:refs/heads/next"]).accepted();
    // A deployment that fails after the bundle uses up its build number.
    repo.write("Procfile", "web: exit 3\n").commit("broken");
    repo.push().rejected();
    repo.remove("Procfile").page("two");
    world.restart(&[]);
    repo.push().accepted().says("build 4: ").says("v2 is live");
    let builds = |environment| manifest(world, "shop", environment)["build"].as_u64();
    assert_eq!((builds("production"), builds("staging")), (Some(4), Some(2)));
    // Each project has its own numbers; a recreated project continues after the last number of the destroyed project.
    world.project("blog");
    Repo::site(world, "blog", "one").push().accepted().says("build 1: ");
    world.larder(&["project", "destroy", "shop", "--confirm", "shop"]).ok();
    world.project("shop");
    repo.push().accepted().says("build 5: ").says("v1 is live");
    let rows = world.larder(&["releases", "shop", "--json"]).json();
    assert_eq!((&rows[0]["build"], &rows[0]["number"]), (&5.into(), &1.into()));
    // Without the file of build numbers, the server continues after the highest number in the records.
    world.stop();
    std::fs::remove_file(world.root().join("state/builds.json")).unwrap();
    world.start(&[]);
    repo.page("three");
    repo.push().accepted().says("build 6: ");
}

fn tag_names_release_of_its_commit(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "one");
    // The first tag is pushed with its commit: the manifest has the tag, although git stores the tag after the deployment.
    repo.git(&["tag", "--annotate", "--message", "first", "v1.4.0"]).ok();
    repo.push_as(&["HEAD:refs/heads/main", "refs/tags/v1.4.0"]).accepted();
    assert_eq!(manifest(world, "shop", "production")["tag"], "v1.4.0");
    // The second tag is pushed before its commit is deployed.
    repo.page("two");
    repo.git(&["tag", "v1.5.0"]).ok();
    repo.push_as(&["refs/tags/v1.5.0"]).accepted();
    repo.push().accepted();
    assert_eq!(manifest(world, "shop", "production")["tag"], "v1.5.0");
    // Two tags are pushed after the deployment: the tags are shown, and the manifest stays as it is.
    repo.page("three");
    repo.push().accepted();
    let before = manifest(world, "shop", "production");
    assert!(before.get("tag").is_none());
    repo.git(&["tag", "v1.6.0-rc1"]).ok();
    repo.git(&["tag", "v1.6.0"]).ok();
    repo.push_as(&["refs/tags/v1.6.0-rc1", "refs/tags/v1.6.0"]).accepted();
    assert_eq!(manifest(world, "shop", "production"), before);
    let rows = world.larder(&["releases", "shop", "--json"]).json();
    let tags: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["tag"].as_str().unwrap()).collect();
    assert_eq!(tags, ["v1.6.0", "v1.5.0", "v1.4.0"]);
    let show = |name: &str| world.larder(&["release", "show", "shop", name, "--json"]).json()["number"].as_u64();
    let commit = repo.head();
    let id = rows[2]["release"].as_str().unwrap();
    for (name, number) in [("v1.4.0", 1), ("v1.6.0-rc1", 3), ("v2", 2), (&commit[..8], 3), (id, 1), ("refs/tags/v1.5.0", 2)] {
        assert_eq!(show(name), Some(number), "{name}");
    }
    world.larder(&["release", "show", "shop"]).says("v1.6.0, v1.6.0-rc1").says("live").says("by alice: went live as v3");
    world.larder(&["release", "show", "shop", "v9"]).exits(4).says("there is no release v9 in shop/production");
    world.larder(&["release", "show", "shop", "v1.4.1"]).exits(4).says("did you mean v1.4.0?");
    world.larder(&["release", "show", "shop", "\x1b[31m"]).exits(2);
    // A name such as v1 is always a number, even if a tag has this name.
    repo.git(&["tag", "v1"]).ok();
    repo.push_as(&["refs/tags/v1"]).accepted();
    world.larder(&["rollback", "shop", "v1"]).exits(0);
    world.serves("shop", "one");
    world.larder(&["rollback", "shop", "refs/tags/v1"]).exits(0);
    world.serves("shop", "three");
}

fn release_diff_lists_files_and_commits(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("old.txt", "12345").write("same.txt", "same").program("tool.sh", "#!/bin/sh\n").page("one");
    repo.push().accepted();
    repo.remove("old.txt").write("new/file.txt", "123").page("two, which is longer");
    repo.push().accepted();
    let out = world.larder(&["release", "diff", "shop", "v1", "v2"]);
    out.exits(0)
        .says("2 added, 1 changed, 1 removed")
        .says("M index.html")
        .says("D old.txt  (5 bytes)")
        .says("A new/file.txt  (3 bytes)");
    out.says("two, which is longer (Alice)").keeps_quiet_about("same.txt");
    let json = world.ssh("alice", &["release", "diff", "shop", "v2", "v1", "--json"]).json();
    assert_eq!(json["commits"]["removed"][0]["subject"], "two, which is longer");
    let removed: Vec<_> = json["files"].as_array().unwrap().iter().filter(|file| file["change"] == "removed").collect();
    assert_eq!(removed.len(), 2, "{json}");
    world.larder(&["release", "diff", "shop", "v2"]).exits(0).says("The trees are equal.");
}

/// Releases that were imported and never deployed do not count against the limit, and displace no release that was live.
fn imports_that_were_never_live_displace_no_release_that_was_live(world: &World) {
    crate::promotion::pair(world);
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", "keep: {releases: 3}\n");
    let releases = world.root().join("projects/shop/production/releases");
    let ids = || {
        let stored = names(&releases).into_iter();
        stored.filter_map(|name| name.strip_suffix(".manifest.json").map(str::to_owned)).collect::<Vec<_>>()
    };
    let mut made = Vec::new();
    for round in 1..=5 {
        repo.page(&format!("version {round}"));
        crate::promotion::staging(&repo).accepted();
        let id = crate::promotion::live_manifest(world, "staging", "shop")["release"].as_str().unwrap().to_owned();
        if round == 1 || round % 2 == 0 {
            let file = world.directory().join("exported");
            let mut export = world.larder_command();
            export.args(["release", "export", "shop/staging", &id]).stdout(std::fs::File::create(&file).unwrap());
            assert!(export.status().unwrap().success());
            crate::refusals::import(world, "shop/production", &std::fs::read(&file).unwrap()).exits(0);
            // The import is made two hours old, because pruning keeps an import for one hour.
            let manifest = std::fs::File::options().write(true).open(releases.join(format!("{id}.manifest.json"))).unwrap();
            manifest.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(7200)).unwrap();
        }
        if round == 1 {
            // A missing live release is not a usage error.
            world.larder(&["release", "diff", "shop/production", &id]).exits(4).says("nothing is live in shop/production yet");
        }
        if round % 2 == 1 {
            world.larder(&["pull", "shop/production", &id]).exits(0);
        }
        made.push(id);
    }
    let wanted: Vec<_> = made.iter().step_by(2).cloned().collect();
    until("the unused imports are pruned", || ids().len() <= 3);
    assert_eq!(ids(), wanted, "of {made:?}");
}

/// The refs that keep the commits of releases are removed with the releases, even if the server is killed during the pruning.
/// The server is killed twice: after the refs of an old release are removed, and after its files are removed.
fn kill_while_pruning_leaks_no_ref(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", "keep: {releases: 2}\n");
    for page in ["one", "two"] {
        repo.page(page);
        repo.push().accepted();
    }
    let marks = world.directory().join("marks");
    std::fs::create_dir(&marks).unwrap();
    std::fs::set_permissions(&marks, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let points = ["followups.refs-pruned", "followups.files-pruned"];
    world.restart(&[("FAILPOINTS", &points.map(|point| format!("{point}=return({})", marks.display())).join(";"))]);
    repo.page("three");
    let _ = repo.push();
    until("the server was killed twice", || points.iter().all(|point| marks.join(point).exists()));
    until("two releases are left", || releases_on_disk(world) == 2);
    let kept = || world.refs("shop").into_iter().filter(|line| line.starts_with("refs/larder/keep/")).collect::<Vec<_>>();
    until("two refs are left", || kept().len() <= 2);
    let stored = names(&world.environment("shop").join("releases"));
    for line in kept() {
        let release = line.split(' ').next().unwrap().rsplit('/').next().unwrap().to_owned();
        assert!(stored.contains(&format!("{release}.manifest.json")), "{line} keeps a release that is gone: {stored:?}");
    }
    repo.page("four");
    repo.push().accepted();
    until("two releases are left", || releases_on_disk(world) == 2 && kept().len() == 2);
    world.is_consistent("shop");
}

/// Failed deployments leave records, which are pruned although no release ever went live.
fn records_of_an_environment_that_was_never_live_are_pruned(world: &World) {
    world.add_settings("keep: {deployments: 10}\n");
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.program(".larder/build", "#!/bin/sh\nexit 1\n");
    repo.page("never");
    for _ in 0..13 {
        repo.push().rejected_with("nothing is live yet");
    }
    until("ten records are left", || names(&world.environment("shop").join("deployments")).len() == 10);
}

/// Each push and each change of the configuration is a deployment with a configuration of its own.
fn configurations_of_pruned_deployments_are_removed(world: &World) {
    world.add_settings("keep: {deployments: 10}\n");
    let repo = crate::configuration::shop(world);
    repo.write("larder.yml", "health: {timeout: 20s}\ndrain: 1s\nkeep: {releases: 2}\n");
    for round in 0..7 {
        repo.write("code", format!("code {round}")).commit("next");
        repo.push().accepted();
        crate::configuration::config(world, &["set", "shop", &format!("PAGE=page-{round}")]).ok();
    }
    let numbers = || names(&world.environment("shop").join("config"));
    until("old configurations are removed", || !numbers().contains(&String::from("1.age")));
    assert!(numbers().contains(&String::from("7.age")) && numbers().len() < 7, "{:?}", numbers());
    world.serves("shop", "page: page-6, code code 6");
    world.larder(&["rollback", "shop"]).ok();
    world.serves("shop", "page: page-5, code code 6");
    crate::configuration::config(world, &["set", "shop", "PAGE=last"]).ok();
    assert!(numbers().contains(&String::from("8.age")), "{:?}", numbers());
    world.is_consistent("shop");
}

fn releases_on_disk(world: &World) -> usize {
    names(&world.environment("shop").join("releases")).iter().filter(|name| name.ends_with(".manifest.json")).count()
}

fn pinned_release_is_not_pruned(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", "keep: {releases: 2}\n").page("one");
    repo.push().accepted();
    world.larder(&["release", "pin", "shop", "v1"]).exits(0).says("stays until it is unpinned");
    world.larder(&["release", "pin", "shop", "v1"]).exits(0).says("already");
    for page in ["two", "three", "four"] {
        repo.page(page);
        repo.push().accepted();
    }
    until("only v1, v3 and v4 are left", || releases_on_disk(world) == 3);
    let rows = world.larder(&["releases", "shop", "--json"]).json();
    let kept: Vec<_> = rows.as_array().unwrap().iter().map(|row| !row["archive_bytes"].is_null()).collect();
    assert_eq!(kept, [true, true, false, true], "{rows}");
    assert_eq!(rows[3]["pinned"], true);
    world.larder(&["release", "pin", "shop", "v2"]).exits(4).says("it was pruned");
    world.larder(&["release", "show", "shop", "v2"]).exits(0).says("pruned");
    world.larder(&["release", "diff", "shop", "v2", "v4"]).exits(4).says("was pruned");
    world.larder(&["release", "unpin", "shop", "v1"]).exits(0);
    repo.page("five");
    repo.push().accepted();
    until("only v4 and v5 are left", || releases_on_disk(world) == 2);
    world.is_consistent("shop");
}

/// A release that is pinned before its removal begins is kept.
fn pin_before_pruning_begins_keeps_release(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", "keep: {releases: 2}\n");
    for page in ["one", "two"] {
        repo.page(page);
        repo.push().accepted();
    }
    // The pruning of every deployment waits, also the pruning that an earlier server left to this server.
    world.restart(&[("FAILPOINTS", "followups.prune=sleep(60000)")]);
    repo.page("three");
    repo.push().accepted();
    assert_eq!(releases_on_disk(world), 3);
    world.larder(&["release", "pin", "shop", "v1"]).exits(0).says("stays until it is unpinned");
    world.kill9_all();
    world.start(&[]);
    repo.page("four");
    repo.push().accepted();
    until("only v1, v3 and v4 are left", || releases_on_disk(world) == 3);
    world.larder(&["release", "show", "shop", "v1"]).exits(0).keeps_quiet_about("pruned");
    world.larder(&["release", "show", "shop", "v2"]).exits(0).says("pruned");
    world.is_consistent("shop");
}

/// The limits in the recipe of a failed deployment or a dry run have no effect.
fn retention_follows_recipe_of_live_release(world: &World) {
    world.add_settings("keep: {releases: 2}\n");
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", "keep: {releases: 10}\n");
    for page in ["one", "two", "three", "four"] {
        repo.page(page);
        repo.push().accepted();
    }
    let pruned = || std::thread::sleep(std::time::Duration::from_millis(700));
    // A recipe that keeps fewer releases is used in a dry run, and in a push that fails.
    repo.write("larder.yml", "keep: {releases: 2}\n").program(".larder/build", "#!/bin/sh\nexit 1\n");
    repo.page("five");
    repo.push_as(&["HEAD:refs/heads/topic"]).accepted();
    world.larder(&["deploy", "shop", "--ref", "topic", "--only", "pre_install"]).exits(0);
    pruned();
    repo.push().rejected_with("build: ");
    pruned();
    // A deployment fails before its recipe is read.
    world.restart(&[("FAILPOINTS", "step.gather.source=1*return")]);
    repo.push().rejected_with("stopped by a failpoint");
    pruned();
    assert_eq!(releases_on_disk(world), 4);
    // After the recipe went live, its limits apply.
    world.restart(&[]);
    repo.remove(".larder/build").page("six");
    repo.push().accepted();
    until("two are left", || releases_on_disk(world) == 2);
    world.is_consistent("shop");
}

fn releases_beyond_size_limit_are_pruned(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    // Each archive has at least 300 KiB that cannot be compressed.
    repo.write("larder.yml", "keep: {releases: 10, bytes: 700K}\n");
    for page in 0..4_u32 {
        let mut noise = blake3::Hasher::new().update(&page.to_le_bytes()).finalize_xof();
        let mut bytes = vec![0; 300 * 1024];
        noise.fill(&mut bytes);
        repo.write("noise", bytes).page(&page.to_string());
        repo.push().accepted();
    }
    until("two releases are left (two fit into the limit, and two always stay)", || releases_on_disk(world) == 2);
    world.is_consistent("shop");
}

/// Pruning runs after the verdict, when later deployments may have ended already.
fn delayed_pruning_keeps_current_live_release(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", "keep: {releases: 2}\n");
    for page in ["one", "two", "three"] {
        repo.page(page);
        repo.push().accepted();
    }
    until("only v2 and v3 are left", || releases_on_disk(world) == 2);
    world.restart(&[("FAILPOINTS", "followups.prune=3*sleep(4000)")]);
    let mut commits = Vec::new();
    for page in ["four", "five"] {
        commits.push(repo.page(page));
        repo.push().accepted();
    }
    until("only v4 and v5 are left", || releases_on_disk(world) == 2);
    world.is_consistent("shop");
    assert_eq!(repo.live(), commits.pop());
    world.larder(&["rollback", "shop"]).exits(0);
    world.serves("shop", "four");
}
