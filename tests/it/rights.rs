//! The rights of users on projects and environments: who may do what, for every command, also after a change of the rights.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use larder::{
    control::Scope,
    model::Access,
    surface::cli::{command_needs, server_commands},
};

use crate::harness::{Repo, World, cli::Output, connection::Connection, docs::Page, in_one_mode, processes, thorough, until};

in_one_mode!(
    each_command_is_refused_without_its_right,
    key_of_staging_pushes_nothing_to_production,
    rights_on_environments_are_given_and_taken_away,
    administrator_of_a_project_gives_rights_on_it_only,
    changed_rights_end_requests_of_a_shared_connection,
    lowered_rights_count_on_open_connections,
    revocation_ends_a_push_a_log_and_a_command,
    right_on_one_environment_opens_no_other,
    queued_deployment_is_refused_after_its_right_was_taken_away,
    members_of_a_group_have_its_rights,
    commands_of_the_page_work,
);

/// One or more command lines for each command. `SHOP` is the project or environment that the command concerns.
const SAMPLES: &[(&str, &[&str])] = &[
    ("whoami", &["whoami"]),
    ("user add", &["user add eve"]),
    ("user list", &["user list"]),
    ("user remove", &["user remove nobody"]),
    ("user grant", &["user grant nobody SHOP push"]),
    ("user revoke", &["user revoke nobody SHOP"]),
    (
        "user ca add",
        &["user ca add office --key 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f'"],
    ),
    ("user ca list", &["user ca list"]),
    ("user ca remove", &["user ca remove office"]),
    ("user ca revoke", &["user ca revoke office --serial 7"]),
    ("group add", &["group add crew"]),
    ("group remove", &["group remove crew"]),
    ("group list", &["group list"]),
    ("group grant", &["group grant crew SHOP push"]),
    ("group revoke", &["group revoke crew SHOP"]),
    ("key add", &["key add nobody --key 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f'"]),
    ("key deploy", &["key deploy PROJECT", "key deploy PROJECT --remove"]),
    ("key list", &["key list", "key list nobody"]),
    ("key remove", &["key remove SHA256:none"]),
    ("key show", &["key show"]),
    ("key trust", &["key trust PROJECT", "key trust PROJECT ed25519:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="]),
    ("key untrust", &["key untrust PROJECT ed25519:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="]),
    ("project create", &["project create PROJECT --env other --mode cooking --branch other"]),
    ("project list", &["project list"]),
    ("project info", &["project info PROJECT"]),
    ("project enlarge", &["project enlarge PROJECT 9G"]),
    ("project trim", &["project trim PROJECT"]),
    ("project destroy", &["project destroy PROJECT --confirm PROJECT"]),
    ("deploy", &["deploy SHOP", "deploy SHOP --follow", "deploy SHOP --retry", "deploy SHOP --cancel", "deploy SHOP --unfreeze"]),
    ("rollback", &["rollback SHOP", "rollback SHOP --with-data --confirm PROJECT", "rollback SHOP --with-data --dry-run"]),
    ("config set", &["config set SHOP A=1 --no-restart"]),
    ("config unset", &["config unset SHOP A --no-restart"]),
    ("config show", &["config show SHOP", "config show SHOP A"]),
    ("config diff", &["config diff SHOP 1", "config diff SHOP 1 --values"]),
    ("config import", &["config import SHOP --no-restart"]),
    ("config export", &["config export SHOP"]),
    ("config history", &["config history SHOP"]),
    ("config explain", &["config explain SHOP A"]),
    ("config render", &["config render SHOP"]),
    ("secret set", &["secret set SHOP A"]),
    ("secret unset", &["secret unset SHOP A"]),
    ("secret show", &["secret show SHOP", "secret show SHOP A"]),
    ("secret edit", &["secret edit SHOP --print", "secret edit SHOP --apply"]),
    ("secret rotate", &["secret rotate SHOP A", "secret rotate PROJECT"]),
    (
        "secret recipients",
        &["secret recipients PROJECT", "secret recipients add PROJECT bob", "secret recipients remove PROJECT bob"],
    ),
    ("pull", &["pull SHOP"]),
    ("promote", &["promote SHOP --to staging"]),
    ("freeze", &["freeze SHOP", "freeze SHOP --until 3d --why stocktaking", "freeze SHOP --end"]),
    ("protect", &["protect SHOP", "protect SHOP --approval on"]),
    (
        "approve",
        &[
            "approve SHOP 0123456789012345678901234567890123456789",
            "approve SHOP 0123456789012345678901234567890123456789 --override urgent",
        ],
    ),
    ("plan", &["plan SHOP"]),
    ("releases", &["releases SHOP"]),
    ("release show", &["release show SHOP"]),
    ("release diff", &["release diff SHOP v1"]),
    ("release export", &["release export SHOP v1"]),
    ("release import", &["release import SHOP"]),
    ("release pin", &["release pin SHOP v1"]),
    ("release unpin", &["release unpin SHOP v1"]),
    ("edits", &["edits SHOP", "edits SHOP commit --message x", "edits SHOP drop"]),
    ("drift", &["drift SHOP", "drift SHOP --patches", "drift SHOP --show x", "drift SHOP --save", "drift SHOP --drop x"]),
    ("backup take", &["backup take SHOP"]),
    ("backup list", &["backup list SHOP"]),
    ("backup show", &["backup show SHOP"]),
    ("backup verify", &["backup verify SHOP"]),
    ("backup restore", &["backup restore SHOP latest --yes"]),
    ("backup diff", &["backup diff SHOP latest"]),
    ("backup export", &["backup export SHOP latest"]),
    ("backup remove", &["backup remove SHOP latest"]),
    ("backup prune", &["backup prune SHOP"]),
    ("backup drill", &["backup drill SHOP"]),
    ("backup copy", &["backup copy SHOP"]),
    ("backup import", &["backup import SHOP"]),
    ("db create", &["db create SHOP postgresql"]),
    ("db list", &["db list SHOP"]),
    ("db shell", &["db shell SHOP"]),
    ("db dump", &["db dump SHOP"]),
    ("db load", &["db load SHOP --confirm PROJECT"]),
    ("db destroy", &["db destroy SHOP --confirm PROJECT"]),
    ("notify test", &["notify test SHOP"]),
    ("notify log", &["notify log SHOP", "notify log PROJECT"]),
    ("notify retry", &["notify retry PROJECT"]),
    ("ps", &["ps SHOP", "ps SHOP --scale web=2"]),
    ("restart", &["restart SHOP"]),
    ("logs", &["logs SHOP", "logs SHOP --follow"]),
    ("run", &["run SHOP -- true"]),
    ("remote add", &["remote add SHOP other ssh://larder@localhost/PROJECT"]),
    ("remote list", &["remote list SHOP"]),
    ("remote remove", &["remote remove SHOP other"]),
    ("remote check", &["remote check SHOP other"]),
    ("deliverable list", &["deliverable list SHOP"]),
    ("deliverable info", &["deliverable info SHOP v1 manifest"]),
    ("deliverable get", &["deliverable get SHOP v1 manifest"]),
    ("status", &["status"]),
    ("audit", &["audit", "audit --verify"]),
    ("disk", &["disk", "disk PROJECT"]),
    ("doctor", &["doctor", "doctor keys"]),
];

/// Returns the words of a sample for an environment.
fn words(sample: &str, target: &str) -> Vec<String> {
    let project = target.split('/').next().unwrap();
    shlex::split(&sample.replace("SHOP", target).replace("PROJECT", project)).unwrap()
}

/// Returns a sample as the table of docs/access.md shows it.
fn title(sample: &str) -> String {
    let shown = words(&sample.replace("PROJECT", "shop"), "shop").join(" ");
    let cut = |text: &str, at: &str| text.split(at).next().unwrap_or_default().trim_end().to_owned();
    cut(&cut(&shown, " ssh-ed25519"), " ed25519:").replace("0123456789012345678901234567890123456789", "COMMIT")
}

#[test]
fn every_command_has_a_sample_and_a_row_in_the_table_of_rights() {
    let known: BTreeSet<String> = server_commands().into_iter().collect();
    let sampled: BTreeSet<String> = SAMPLES.iter().map(|(command, _)| (*command).to_owned()).collect();
    assert_eq!(sampled, known, "SAMPLES must have one row for each command of the server");
    let mut rows = String::from("| command | needs |\n| --- | --- |\n");
    for sample in SAMPLES.iter().flat_map(|(_, samples)| *samples) {
        let needs = command_needs(&words(sample, "shop")).unwrap_or_else(|error| panic!("{sample}: {error}"));
        rows.push_str(&format!("| `{}` | {needs} |\n", title(sample)));
    }
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/access.md");
    let text = fs::read_to_string(page).unwrap();
    let (begin, end) = ("<!-- generated: rights -->\n", "<!-- end -->");
    let start = text.find(begin).expect("docs/access.md has no table") + begin.len();
    let stop = start + text[start..].find(end).unwrap();
    if std::env::var_os("LARDER_BLESS").is_some() {
        fs::write(page, format!("{}{rows}{}", &text[..start], &text[stop..])).unwrap();
    } else {
        assert!(text[start..stop] == rows, "docs/access.md is outdated: LARDER_BLESS=1 cargo test --test it rights");
    }
}

/// The number of requests after which a connection is replaced. The server accepts a limited number of requests on a connection.
const REQUESTS: usize = 24;

/// Asks every command of a list on shared connections.
fn ask_all<'s>(
    world: &World,
    user: &str,
    lines: impl IntoIterator<Item = (&'s str, &'s str)>,
) -> BTreeMap<(String, String), Output> {
    let lines: Vec<_> = lines.into_iter().collect();
    let (mut outputs, mut times) = (BTreeMap::new(), BTreeMap::<&str, Vec<Duration>>::new());
    for lines in lines.chunks(REQUESTS) {
        let connection = Connection::open(world, user);
        for (sample, target) in lines {
            let begun = Instant::now();
            outputs.insert(((*sample).to_owned(), (*target).to_owned()), connection.ask(&words(sample, target)));
            times.entry(*target).or_default().push(begun.elapsed());
        }
    }
    // A hidden name and a missing name must not differ in time either. The figures are for people.
    for (target, mut times) in times {
        times.sort();
        eprintln!("{user} {target}: {} requests, median {:?}", times.len(), times[times.len() / 2]);
    }
    outputs
}

fn user(world: &World, name: &str, rights: &[(&str, &str)]) {
    world.key(name);
    world.larder(&["user", "add", name, "--key-file", &world.public_key(name)]).ok();
    for (target, right) in rights {
        world.larder(&["user", "grant", name, target, right]).ok();
    }
}

const ROLES: [Access; 6] = [Access::None, Access::View, Access::Push, Access::Deploy, Access::Operate, Access::Admin];

/// Returns the roles that a run tests: all of them with `LARDER_TEST_THOROUGH`.
fn roles() -> Vec<Access> {
    if thorough() { ROLES.to_vec() } else { vec![Access::View, Access::Deploy] }
}

/// Every command × every role on shop/staging: on this environment, on another environment of the project, and on another project. Each
/// command without the right is refused, and a hidden name gets the same answer as a name that does not exist.
fn each_command_is_refused_without_its_right(world: &World) {
    world.project("shop").project("secret");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    // Everything that a refused command could have changed, without the times of scans.
    let state = || {
        let projects = world.larder(&["--json", "project", "list"]).json();
        projects.as_array().unwrap().iter().map(|row| (row["project"].clone(), row["live"].clone())).collect::<Vec<_>>()
    };
    let before = state();
    let samples: Vec<&str> = SAMPLES.iter().flat_map(|(_, samples)| *samples).copied().collect();
    for role in roles() {
        let name = format!("u-{role}");
        user(world, &name, &[("shop/staging", role.as_str())]);
        let refused = |sample: &&&str| {
            let needs = command_needs(&words(sample, "shop/staging")).unwrap();
            let has = match needs.scope {
                // Every user may view the state of the server.
                Scope::Server => Access::View,
                // A right on an environment includes the view of its project, but no greater right on the project.
                Scope::Project(_) => role.min(Access::View),
                // The right on the pillar is independent of the other rights.
                Scope::Pillar(_) => Access::None,
                _ => role,
            };
            has < needs.right
        };
        let own: Vec<_> = samples.iter().filter(refused).map(|sample| (*sample, "shop/staging")).collect();
        let named: Vec<_> = match thorough() {
            true => samples.iter().filter(|sample| names_an_object(sample)).copied().collect(),
            false => vec![
                "logs SHOP --follow",
                "run SHOP -- true",
                "user grant nobody SHOP push",
                "promote SHOP --to staging",
                "project info PROJECT",
            ],
        };
        let others = named.iter().flat_map(|sample| {
            let environments = ["shop/production", "shop/nothing"].into_iter().filter(|_| sample.contains("SHOP"));
            environments.chain(["secret/production", "nowhere/production"]).map(|target| (*sample, target))
        });
        let outputs = ask_all(world, &name, own.iter().copied().chain(others));
        for (sample, target) in own {
            let output = &outputs[&(sample.to_owned(), target.to_owned())];
            let hidden = role == Access::None && (sample.contains("SHOP") || sample.contains("PROJECT"));
            let server = matches!(command_needs(&words(sample, target)).unwrap().scope, Scope::Server);
            assert_eq!(output.status, if hidden && !server { 4 } else { 3 }, "{role}: {sample} {output}");
        }
        for sample in named {
            let answer = |target: &str| {
                let output = &outputs[&(sample.to_owned(), target.to_owned())];
                assert!(matches!(output.status, 3 | 4), "{role}: {sample} {target} {output}");
                let (project, environment) = target.split_once('/').unwrap();
                let hide = |text: &str| text.replace(project, "P").replace(environment, "E");
                (output.status, hide(&output.stdout), hide(&output.stderr))
            };
            if sample.contains("SHOP") {
                assert_eq!(answer("shop/production"), answer("shop/nothing"), "{role}: {sample}");
            }
            assert_eq!(answer("secret/production"), answer("nowhere/production"), "{role}: {sample}");
        }
        for listing in ["status", "project list", "whoami", "disk"] {
            world.ssh(&name, &[listing]).exits(0).keeps_quiet_about("secret").keeps_quiet_about("production");
        }
    }
    assert_eq!(state(), before, "a refused command had an effect");
    world.serves("shop", "version one");
}

/// Returns true if a sample names a project, and its answer therefore could show that the project exists. A request that only an
/// administrator of the server may make is refused before its name is looked up.
fn names_an_object(sample: &str) -> bool {
    sample.contains("SHOP") || sample.contains("PROJECT")
}

fn key_of_staging_pushes_nothing_to_production(world: &World) {
    world.project("shop");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let live = repo.head();
    user(world, "ci", &[("shop/staging", "push")]);
    let ci = repo.by("ci");
    ci.page("version two");
    let push = |refs: &[&str]| ci.git(&[&["push", &ci.url()], refs].concat());
    push(&["HEAD:refs/heads/next"]).exits(0).says("v1 is live");
    world.serves("staging--shop", "version two");
    // The name of the hidden environment does not appear.
    for refs in [
        &["HEAD:refs/heads/main"][..],
        &["--force", "HEAD:refs/heads/main"],
        &[":refs/heads/main"],
        &["HEAD:refs/heads/topic"],
        &["HEAD:refs/tags/v9"],
    ] {
        push(refs).exits(1).says("you may not push this ref").says("next deploys to staging").keeps_quiet_about("production");
    }
    // The other refs of the same push are judged on their own, and an atomic push is refused as a whole.
    ci.page("version three");
    let both = push(&["HEAD:refs/heads/next", "HEAD:refs/heads/main"]);
    both.exits(1).says("v2 is live").says("you may not push this ref");
    ci.page("version four");
    push(&["--atomic", "HEAD:refs/heads/next", "HEAD:refs/heads/main"]).exits(1).says("another ref of this atomic push");
    world.serves("staging--shop", "version three");
    world.serves("shop", "version one");
    assert_eq!(repo.live(), Some(live));
    let refs = repo.git(&["ls-remote", &repo.url()]);
    refs.keeps_quiet_about("refs/tags/v9").keeps_quiet_about("refs/heads/topic");
    world.ssh("ci", &["run", "shop/staging", "--", "true"]).exits(3);
    world.ssh("ci", &["rollback", "shop/staging"]).exits(3);
    world.ssh("ci", &["logs", "shop"]).exits(4).says("you may not see the default environment of shop");
    // The right to view the other environment shows its name in the refusal.
    world.larder(&["user", "grant", "ci", "shop/production", "view"]).ok();
    push(&["HEAD:refs/heads/main"]).exits(1).says("you may not push to shop/production");
    world.ssh("ci", &["deploy", "shop", "--retry"]).exits(3).says("ci may not push to shop/production");
    world.serves("shop", "version one");
}

fn rights_on_environments_are_given_and_taken_away(world: &World) {
    world.project("shop");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    user(world, "bob", &[("shop", "operate")]);
    let rights = || world.ssh("bob", &["whoami", "--json"]).json()["access"].clone();
    assert_eq!(rights(), serde_json::json!({"shop": "operate"}));
    world.larder(&["user", "grant", "bob", "shop/production", "view"]).exits(0).says("bob has the right view on shop/production");
    assert_eq!(rights(), serde_json::json!({"shop": "operate", "shop/production": "view"}));
    world.ssh("bob", &["restart", "shop"]).exits(3).says("bob may not operate shop/production");
    world.larder(&["user", "revoke", "bob", "shop/production"]).exits(0).says("bob has the right none on shop/production");
    assert_eq!(rights(), serde_json::json!({"shop": "operate"}));
    world.ssh("bob", &["status"]).exits(0).says("shop/staging").keeps_quiet_about("production");
    world.ssh("bob", &["project", "info", "shop"]).exits(0).says("staging").keeps_quiet_about("production");
    world.ssh("bob", &["ps", "shop/production"]).exits(4);
    world.larder(&["user", "list"]).says("shop:operate shop/production:none");
    world.larder(&["user", "grant", "bob", "shop/production", "inherit"]).exits(0).says("the right operate on shop/production");
    world.ssh("bob", &["ps", "shop/production"]).exits(0);
    world.larder(&["user", "grant", "bob", "shop/staging", "admin"]).ok();
    world.larder(&["user", "revoke", "bob", "shop"]).ok();
    assert_eq!(rights(), serde_json::json!({}));
    for (words, status) in [
        (&["user", "grant", "bob", "shop/nothing", "push"][..], 4),
        (&["user", "grant", "bob", "nowhere", "push"], 4),
        (&["user", "grant", "nobody", "shop", "push"], 4),
        (&["user", "grant", "bob", "shop", "owner"], 2),
    ] {
        world.larder(words).exits(status);
    }
    // Rights survive a restart, and end with their project.
    world.larder(&["user", "grant", "bob", "shop/staging", "push"]).ok();
    world.restart(&[]);
    assert_eq!(rights(), serde_json::json!({"shop/staging": "push"}));
    world.larder(&["project", "destroy", "shop", "--confirm", "shop"]).ok();
    world.larder(&["user", "list"]).keeps_quiet_about("staging");
}

fn administrator_of_a_project_gives_rights_on_it_only(world: &World) {
    world.project("shop").project("secret");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    user(world, "lead", &[("shop", "admin")]);
    user(world, "part", &[("shop/staging", "admin")]);
    user(world, "bob", &[]);
    world.ssh("lead", &["user", "grant", "bob", "shop", "push"]).exits(0);
    world.ssh("lead", &["user", "revoke", "bob", "shop/production"]).exits(0);
    world.ssh("part", &["user", "grant", "bob", "shop/staging", "operate"]).exits(0);
    world.ssh("part", &["user", "grant", "bob", "shop", "operate"]).exits(3);
    world.ssh("part", &["user", "grant", "part", "shop", "admin"]).exits(3);
    world.ssh("part", &["user", "grant", "part", "shop/production", "view"]).exits(4);
    for words in [&["user", "add", "eve"][..], &["user", "list"], &["user", "remove", "bob"], &["key", "remove", "SHA256:x"]] {
        world.ssh("lead", words).exits(3).says("lead is not an administrator of this server");
    }
    world.ssh("lead", &["user", "grant", "bob", "secret", "view"]).exits(4);
    world.ssh("lead", &["project", "destroy", "shop", "--confirm", "shop"]).exits(3);
    let rights = world.ssh("bob", &["whoami", "--json"]).json()["access"].clone();
    assert_eq!(rights, serde_json::json!({"shop": "push", "shop/staging": "operate"}));
}

/// Requests that share one connection end when the right that they need is taken away; requests with another need, and the connection
/// itself, continue. Without the key, everything ends.
fn changed_rights_end_requests_of_a_shared_connection(world: &World) {
    world.project("shop");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: sh serve.sh\n").write("serve.sh", "exec larder static-server --root .\n");
    repo.page("version one");
    repo.push().accepted();
    repo.git(&["push", &repo.url(), "HEAD:refs/heads/next"]).ok();
    user(world, "bob", &[("shop", "operate")]);
    let mut connection = Connection::open(world, "bob");
    let start = |connection: &Connection<'_>, line: &str| {
        let mut command = connection.command(&words(line, "shop"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let running =
        |seconds: &str| processes::of(world.directory()).iter().any(|process| process.arguments.contains(&seconds.to_owned()));
    let mut production = start(&connection, "run shop/production -- sleep 98761");
    let mut staging = start(&connection, "run shop/staging -- sleep 98762");
    let mut logs = start(&connection, "logs shop/production --follow");
    until("both commands run", || running("98761") && running("98762"));
    // The right on the project still counts for staging.
    let ends = |what: &str, change: &[&str], condition: &mut dyn FnMut() -> bool| {
        world.larder(change).ok();
        let changed = Instant::now();
        until(what, condition);
        eprintln!("{what}: {} ms after {}", changed.elapsed().as_millis(), change.join(" "));
    };
    ends("the command in production ends", &["user", "grant", "bob", "shop/production", "view"], &mut || {
        production.try_wait().unwrap().is_some() && !running("98761")
    });
    assert!(staging.try_wait().unwrap().is_none() && logs.try_wait().unwrap().is_none(), "another request ended");
    assert_eq!(connection.ask(&words("run SHOP -- true", "shop/production")).status, 3);
    assert_eq!(connection.ask(&words("run SHOP -- true", "shop/staging")).status, 0);
    ends("the log of production ends", &["user", "revoke", "bob", "shop/production"], &mut || logs.try_wait().unwrap().is_some());
    assert!(staging.try_wait().unwrap().is_none(), "a request of another environment ended");
    assert_eq!(connection.ask(&words("logs SHOP", "shop/production")).status, 4);
    assert!(connection.is_open(), "the connection ended with a right");
    let key = world.larder(&["--json", "user", "list"]).json();
    let bob = key.as_array().unwrap().iter().find(|user| user["name"] == "bob").unwrap().clone();
    let fingerprint = bob["keys"][0]["fingerprint"].as_str().unwrap().to_owned();
    ends("the connection of a removed key ends", &["key", "remove", &fingerprint], &mut || {
        staging.try_wait().unwrap().is_some() && !running("98762") && !connection.is_open()
    });
    world.ssh("bob", &["whoami"]).exits(255);
    world.serves("shop", "version one");
}

/// Every command of a role, on connections that were opened before the right was lowered or taken away.
fn lowered_rights_count_on_open_connections(world: &World) {
    world.project("shop");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let thorough = thorough();
    let roles = if thorough { &ROLES[2..] } else { &[Access::Operate][..] };
    let mut refusals = 0;
    for role in roles {
        let name = format!("l-{role}");
        user(world, &name, &[("shop/staging", role.as_str())]);
        let samples = SAMPLES.iter().flat_map(|(_, samples)| *samples).copied();
        let permitted = samples.filter(|sample| {
            let needs = command_needs(&words(sample, "shop/staging")).unwrap();
            let on_environment = matches!(needs.scope, Scope::Environment(_) | Scope::OfMode(..) | Scope::Promotion { .. });
            on_environment && needs.right > Access::View && needs.right <= *role
        });
        let permitted: Vec<&str> = permitted.collect();
        // Each connection carries out its commands twice.
        let chunks: Vec<_> = permitted.chunks(REQUESTS / 2).take(if thorough { usize::MAX } else { 1 }).collect();
        let connections: Vec<_> = chunks.iter().map(|_| Connection::open(world, &name)).collect();
        for (change, status) in
            [(&["user", "grant", &name, "shop/staging", "view"][..], 3), (&["user", "revoke", &name, "shop/staging"], 4)]
        {
            world.larder(change).ok();
            for (connection, samples) in connections.iter().zip(&chunks) {
                for sample in *samples {
                    let output = connection.ask(&words(sample, "shop/staging"));
                    assert_eq!(output.status, status, "{role}, {}: {sample} {output}", change.join(" "));
                    refusals += 1;
                }
            }
        }
        assert!(connections.into_iter().all(|mut connection| connection.is_open()), "a connection ended with a right");
    }
    eprintln!("{refusals} requests were refused on connections that are older than the change");
}

/// A revocation ends the requests of a shared connection: a push whose build runs, a log, and a command with its process. The times are for
/// people.
fn revocation_ends_a_push_a_log_and_a_command(world: &World) {
    let rounds = if thorough() { 51 } else { 3 };
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: sh serve.sh\n").write("serve.sh", "exec larder static-server --root .\n");
    repo.page("version one");
    repo.push().accepted();
    repo.program(".larder/build", "#!/bin/sh\nexec sleep 97531\n").commit("a build without an end");
    let running =
        |argument: &str| processes::of(world.directory()).iter().any(|process| process.arguments.contains(&argument.to_owned()));
    let (mut times, mut all) = (BTreeMap::<(String, &str), Vec<Duration>>::new(), Vec::new());
    for round in 0..rounds {
        let name = format!("r{round}");
        user(world, &name, &[("shop", "operate")]);
        let fingerprint = world.ssh(&name, &["whoami", "--json"]).json()["key"]["fingerprint"].as_str().unwrap().to_owned();
        let change = match round % 3 {
            0 => vec!["key", "remove", &fingerprint],
            1 => vec!["user", "remove", &name],
            _ => vec!["user", "revoke", &name, "shop"],
        };
        let ends_connection = change[1] == "remove";
        let mut connection = Connection::open(world, &name);
        let quiet = |command: &mut std::process::Command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let seconds = (80_000 + round).to_string();
        let mut command = quiet(&mut connection.command(&words(&format!("run SHOP -- sleep {seconds}"), "shop")));
        let mut logs = quiet(&mut connection.command(&words("logs SHOP --follow", "shop")));
        let mut push = repo.command();
        push.env("GIT_SSH_COMMAND", format!("ssh {}", connection.options().join(" ")));
        let mut push = quiet(push.args(["push", &repo.url(), "HEAD:refs/heads/main"]));
        until("the push builds and the command runs", || running("97531") && running(&seconds));
        assert!(logs.try_wait().unwrap().is_none() && push.try_wait().unwrap().is_none(), "a request ended by itself");
        world.larder(&change).ok();
        let begun = Instant::now();
        let mut open: BTreeSet<&str> = ["push", "logs", "command", "process"].into();
        if ends_connection {
            open.insert("connection");
        }
        until("everything ends", || {
            let mut ended = |what: &str| match what {
                "push" => push.try_wait().unwrap().is_some(),
                "logs" => logs.try_wait().unwrap().is_some(),
                "command" => command.try_wait().unwrap().is_some(),
                "process" => !running(&seconds),
                _ => !connection.is_open(),
            };
            let now: Vec<&str> = open.iter().copied().filter(|what| ended(what)).collect();
            for what in now {
                open.remove(what);
                times.entry((change[..2].join(" "), what)).or_default().push(begun.elapsed());
                all.push(begun.elapsed());
            }
            open.is_empty()
        });
        if !ends_connection {
            assert!(connection.is_open(), "the connection ended with a right");
        }
        // The deployment itself belongs to the server.
        world.larder(&["deploy", "shop", "--cancel"]).ok();
        until("the deployment ends", || !running("97531"));
    }
    for ((change, what), mut times) in times {
        times.sort();
        let (median, last) = (times[times.len() / 2].as_millis(), times[times.len() - 1].as_millis());
        eprintln!("{change}: {what} ended after {median} ms (median), at most {last} ms, {} times", times.len());
    }
    eprintln!("{rounds} revocations, the last end after {} ms", all.iter().max().unwrap().as_millis());
    world.serves("shop", "version one");
}

/// The right of the pusher is checked again when a queued deployment begins.
fn queued_deployment_is_refused_after_its_right_was_taken_away(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    user(world, "bob", &[("shop", "push")]);
    user(world, "ann", &[("shop", "push")]);
    let push = |name: &str| {
        let mut command = repo.by(name).command();
        let command = command.args(["push", "--force", &repo.url(), "HEAD:refs/heads/main"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let running =
        |argument: &str| processes::of(world.directory()).iter().any(|one| one.arguments.contains(&argument.to_owned()));
    repo.program(".larder/build", "#!/bin/sh\nexec sleep 97532\n").commit("a build without an end");
    let mut first = push("ann");
    until("the first push builds", || running("97532"));
    repo.remove(".larder/build").page("version two");
    let mut second = push("bob");
    until("the second push waits", || world.larder(&["status"]).stdout.contains("another deployment waits"));
    world.larder(&["user", "revoke", "bob", "shop"]).ok();
    until("the client of the second push ends", || second.try_wait().unwrap().is_some());
    assert!(world.larder(&["status"]).stdout.contains("another deployment waits"), "the queued deployment ended with its client");
    // The right of ann is taken away, too, but her deployment has begun, and ends by a cancel.
    world.larder(&["user", "revoke", "ann", "shop"]).ok();
    world.larder(&["deploy", "shop", "--cancel"]).ok();
    until("both deployments end", || {
        let status = world.larder(&["--json", "status"]).json();
        !running("97532") && status["environments"][0]["state"] == "live" && first.try_wait().unwrap().is_some()
    });
    world.serves("shop", "version one");
    assert_eq!(world.larder(&["--json", "releases", "shop"]).json().as_array().unwrap().len(), 1);
}

/// A user with the right to view one environment tries to read and to change the other environments and projects.
fn right_on_one_environment_opens_no_other(world: &World) {
    world.project("shop").project("secret");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    repo.git(&["push", &repo.url(), "HEAD:refs/heads/next"]).ok();
    let hidden = Repo::site(world, "secret", "a secret page");
    hidden.push().accepted();
    world.larder(&["freeze", "shop/production", "--until", "2999-12-24", "--why", "stocktaking"]).ok();
    world.larder(&["freeze", "shop/staging", "--until", "2999-12-24", "--why", "training"]).ok();
    user(world, "eve", &[("shop/staging", "view")]);
    let production = world.larder(&["--json", "releases", "shop/production"]).json()[0]["release"].as_str().unwrap().to_owned();
    let totals = r#"{"version": 1, "days": [{"day": "2026-11-29", "used": 9000, "projects": {"1": 7654321, "2": 1234567}}]}"#;
    fs::write(world.root().join("state/disk.json"), totals).unwrap();
    // Paths of git: the other project, and ways around the name of the project.
    for path in
        ["secret", "secret.git", "shop/../secret", "./secret", "shop//secret", "../secret", "shop/production", "secret/pillar"]
    {
        for service in ["git-upload-pack", "git-receive-pack", "git-upload-archive", "git-shell"] {
            let answer = world.ssh("eve", &[service, &format!("'/{path}'")]);
            assert_ne!(answer.status, 0, "{answer}");
            answer.keeps_quiet_about(&hidden.head()).keeps_quiet_about("refs/heads");
        }
    }
    let eve = repo.by("eve");
    let head = repo.head();
    eve.page("version of eve");
    for refs in
        ["HEAD:refs/heads/next", "HEAD:refs/heads/main", "HEAD:refs/heads/other", "HEAD:refs/larder/x", ":refs/heads/next"]
    {
        let pushed = eve.git(&["push", "--force", &eve.url(), refs]);
        assert_ne!(pushed.status, 0, "{pushed}");
    }
    // A commit of another project is in no repository that eve may read.
    assert_ne!(eve.git(&["fetch", &eve.url(), &hidden.head()]).status, 0);
    // Releases, logs and restore points of another environment, named through the own environment.
    let words: [&[&str]; 9] = [
        &["release", "show", "shop/staging", &production],
        &["release", "export", "shop/staging", &production],
        &["release", "diff", "shop/staging", "v1", &production],
        &["deliverable", "get", "shop", &production, "manifest"],
        &["deliverable", "get", "shop", &production, "archive"],
        &["logs", "shop/staging/../production"],
        &["logs", "shop/production"],
        &["freeze", "shop/production"],
        &["deploy", "shop/production", "--follow"],
    ];
    for words in words {
        let answer = world.ssh("eve", words);
        assert!(matches!(answer.status, 2..=4), "{answer}");
        answer.keeps_quiet_about("version one").keeps_quiet_about("stocktaking");
    }
    for process in ["../../production/log/web", "../../../secret/production/log/web", "..", "*"] {
        assert_eq!(world.ssh("eve", &["logs", "shop/staging", "--process", process]).stdout, "", "{process}");
    }
    // Listings: no other environment, and no figure that includes one.
    for listing in
        [&["status"][..], &["project", "list"], &["project", "info", "shop"], &["disk", "shop"], &["notify", "log", "shop"]]
    {
        let answer = world.ssh("eve", &[listing, &["--json"]].concat());
        answer.keeps_quiet_about("production").keeps_quiet_about("secret").keeps_quiet_about("stocktaking");
        answer.keeps_quiet_about("7654321").keeps_quiet_about("1234567");
    }
    world.ssh("alice", &["status", "--json"]).says("7654321").says("stocktaking");
    world.ssh("alice", &["status"]).says("release freeze until").says("stocktaking (operator)");
    let status = world.ssh("eve", &["status", "--json"]).json();
    let rows = status["environments"].as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]["environment"], &rows[0]["freeze"]["why"]), (1, &"shop/staging".into(), &"training".into()));
    assert!(rows[0]["disk"].is_null(), "{status:#}");
    let disk = world.ssh("eve", &["disk", "shop", "--json"]).json();
    assert_eq!(disk["projects"][0]["environments"].as_array().unwrap().len(), 1);
    for figure in ["counted", "total", "free"] {
        assert!(disk["projects"][0][figure].is_null(), "{disk:#}");
    }
    world.serves("shop", "version one");
    assert_eq!(repo.ls_remote()["refs/heads/main"], head);
}

fn members_of_a_group_have_its_rights(world: &World) {
    world.project("shop");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    user(world, "bob", &[]);
    user(world, "eve", &[]);
    world.larder(&["group", "add", "crew", "bob", "eve"]).exits(0).says("the group crew has 2 members: bob eve");
    world.larder(&["group", "grant", "crew", "shop", "operate"]).exits(0).says("the group crew has the right operate on shop");
    world.ssh("bob", &["restart", "shop/staging"]).exits(4).says("nothing is live");
    let mut connection = Connection::open(world, "bob");
    let mut command = connection.command(&words("logs SHOP --follow", "shop/staging"));
    let mut logs = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // A right of its own counts instead of the rights of the groups.
    world.larder(&["user", "grant", "bob", "shop/production", "view"]).ok();
    world.ssh("bob", &["restart", "shop/production"]).exits(3);
    world.larder(&["user", "revoke", "bob", "shop/production"]).exits(0).says("bob has the right none on shop/production");
    world.ssh("bob", &["logs", "shop/production"]).exits(4);
    world.larder(&["user", "grant", "bob", "shop/production", "inherit"]).exits(0).says("the right operate on shop/production");
    assert!(logs.try_wait().unwrap().is_none(), "a request with another need ended");
    // The rights of a group end with the membership, also for open requests.
    world.larder(&["group", "remove", "crew", "bob"]).exits(0).says("the group crew has 1 member: eve");
    until("the log of a former member ends", || logs.try_wait().unwrap().is_some());
    assert!(connection.is_open());
    world.ssh("bob", &["logs", "shop"]).exits(4);
    world.restart(&[]);
    world.ssh("eve", &["logs", "shop"]).exits(0);
    world.larder(&["group", "list"]).says("shop:operate");
    world.larder(&["user", "remove", "eve"]).ok();
    world.larder(&["group", "list"]).keeps_quiet_about("eve");
    world.larder(&["group", "remove", "crew"]).exits(0).says("was removed");
    for words in
        [&["group", "remove", "crew"][..], &["group", "grant", "crew", "shop", "push"], &["group", "add", "crew", "nobody"]]
    {
        world.larder(words).exits(4);
    }
}

/// Carries out every command of the examples in docs/access.md, in the order of the page.
fn commands_of_the_page_work(world: &World) {
    world.project("shop");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    for name in ["bob", "ci", "laptop", "ca", "runner-ca", "notebook", "token", "bob-ci"] {
        world.key(name);
    }
    let fingerprint = || {
        let keys = world.larder(&["--json", "key", "list", "bob"]).json();
        let laptop = keys.as_array().unwrap().iter().find(|key| key["name"] == "laptop").unwrap().clone();
        laptop["fingerprint"].as_str().unwrap().to_owned()
    };
    let page = Page::read("docs/access.md");
    let run = |line: &str| {
        page.ran(line);
        let mut words = shlex::split(line).unwrap();
        for word in &mut words {
            *word = match word.as_str() {
                "SHA256:..." => fingerprint(),
                "COMMIT" => "0123456789".repeat(4),
                "WHY" => String::from("fix for the payment page"),
                file if file.ends_with(".pub") => world.directory().join("home").join(file).display().to_string(),
                other => other.to_owned(),
            };
        }
        match words.remove(0).as_str() {
            "larder" => world.larder(&words.iter().map(String::as_str).collect::<Vec<_>>()),
            "ssh-keygen" => {
                let made = Output::of(world.client("ssh-keygen").args(&words));
                world.ssh("notebook", &["whoami"]).exits(0).says("certificate \"bob-notebook\" serial 7 of the authority office");
                made
            }
            // `login_keys` has the test of a jump host.
            "git" => {
                let clone = world.directory().join("home/clone");
                Output::of(world.client("git").args(["init", "--quiet"]).arg(&clone)).ok();
                Output::of(world.client("git").arg("-C").arg(&clone).args(&words))
            }
            other => panic!("the page has a command {other}"),
        }
    };
    for line in page.commands() {
        run(&line).ok();
    }
    // The page revokes the certificate at the end.
    world.ssh("notebook", &["whoami"]).exits(255);
    let rights = |user: &str| world.ssh(user, &["whoami", "--json"]).json()["access"].clone();
    assert_eq!(rights("bob"), serde_json::json!({"shop": "push", "shop/production": "view"}));
    assert_eq!(rights("ci"), serde_json::json!({"shop/staging": "push"}));
    // The key of the page is limited to addresses that this machine does not have.
    world.ssh("bob-ci", &["whoami"]).exits(255);
    world.larder(&["doctor", "keys"]).says("192.0.2.0/24");
    world.ssh("laptop", &["whoami"]).exits(255);
    // The commands in the sentences, in an order in which each of them succeeds.
    world.key("eve");
    world.larder(&["user", "add", "eve", "--key-file", &world.public_key("eve"), "--admin"]).ok();
    page.ran("larder user add NAME --admin");
    page.ran("ssh larder@HOST");
    for line in [
        "larder user grant bob shop pillar",
        "larder user grant bob shop/production no-pillar",
        "larder user grant bob shop/staging pillar",
        "larder group add developers alice bob",
        "larder group grant developers shop push",
        "larder user grant bob shop/production inherit",
        "larder user revoke bob shop/production",
        "larder user revoke bob shop",
        "larder group remove developers bob",
        "larder approve shop/production COMMIT --override WHY",
        "larder --json audit",
        "larder audit --verify",
        "larder whoami",
    ] {
        run(line).ok();
    }
    assert_eq!(rights("bob"), serde_json::json!({}));
    // Nothing is frozen.
    world.larder(&["deploy", "shop", "--unfreeze"]).exits(4);
    page.ran("larder deploy --unfreeze");
    page.has_no_other_command();
}
