//! Signing keys, imports and health records. An import with a valid signature is accepted; other imports are refused with the reason and
//! removed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::harness::{Repo, World, cli::Output, in_one_mode, processes, state::names, until};

in_one_mode!(
    releases_are_signed_and_keys_are_trusted_by_name,
    export_is_accepted_elsewhere_and_altered_exports_are_refused,
    health_record_has_periods_checks_and_restarts,
);

/// Exports a release to a file.
pub fn export(world: &World, release: &str, to: &Path) {
    let mut command = world.larder_command();
    command.args(["release", "export", "shop", release]).stdout(File::create(to).unwrap());
    let status = command.status().unwrap();
    assert!(status.success(), "{status}");
}

pub fn import(world: &World, project: &str, bytes: &[u8]) -> Output {
    let path = world.directory().join("import");
    fs::write(&path, bytes).unwrap();
    let mut command = world.larder_command();
    command.args(["release", "import", project]).stdin(File::open(path).unwrap());
    Output::of(&mut command)
}

/// Returns the parts of an export: name and content.
pub fn parts(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    let part = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    };
    archive.entries().unwrap().map(part).collect()
}

/// Writes parts as larder writes an export.
pub fn container(parts: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in parts {
        let mut header = tar::Header::new_ustar();
        header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(946_684_800);
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn record(world: &World, release: &str) -> Value {
    let path = world.directory().join("record");
    export(world, release, &path);
    let parts = parts(&fs::read(path).unwrap());
    let (_, content) = parts.iter().find(|(name, _)| name == "health.json").expect("a record");
    serde_json::from_slice(content).unwrap()
}

fn signing_key(world: &World) -> String {
    world.larder(&["key", "show", "--json"]).json()["signing"].as_str().unwrap().to_owned()
}

fn releases(world: &World) -> PathBuf {
    world.environment("shop").join("releases")
}

fn releases_are_signed_and_keys_are_trusted_by_name(world: &World) {
    world.project("shop");
    Repo::site(world, "shop", "one").push().accepted();
    let key = signing_key(world);
    assert!(key.starts_with("ed25519:"), "{key}");
    let release = names(&releases(world)).into_iter().find(|name| name.ends_with(".manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&fs::read(releases(world).join(release)).unwrap()).unwrap();
    assert_eq!(manifest["signature"]["key"], key);

    // The key is created once and readable only by the server.
    let path = world.root().join("state/signing_ed25519_key");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    world.restart(&[]);
    assert_eq!(signing_key(world), key);
    world.larder(&["key", "show"]).says(&format!("signing key  {key}")).says("host key     ssh-ed25519 ").says("SHA256:");

    let other = key.replace(&key[10..14], "AAAA");
    world
        .larder(&["key", "trust", "shop", &other, "--name", "lab"])
        .says(&format!("shop accepts deliverables that {other} has signed"));
    world.larder(&["key", "trust", "shop", &other]).exits(3).says("trusts").says("already");
    world.larder(&["key", "trust", "blog", &other]).exits(4).says("there is no project blog");
    world.larder(&["key", "trust", "shop", "ed25519:xyz"]).exits(2).says("is not a signing key").says("larder key show");
    let rows = world.larder(&["key", "trust", "shop", "--json"]).json();
    assert_eq!((&rows[0]["key"], &rows[0]["name"]), (&other.as_str().into(), &"lab".into()));
    world.larder(&["key", "untrust", "shop", &other]).says("accepts no further deliverables");
    world.larder(&["key", "untrust", "shop", &other]).exits(4).says("the project shop itself does not trust");
    assert_eq!(world.larder(&["key", "trust", "shop", "--json"]).json(), Value::Array(Vec::new()));
}

fn export_is_accepted_elsewhere_and_altered_exports_are_refused(staging: &World) {
    staging.project("shop");
    let repo = Repo::site(staging, "shop", "one");
    repo.push().accepted();
    let path = staging.directory().join("shop-v1.tar");
    export(staging, "v1", &path);
    let good = fs::read(&path).unwrap();
    let whole = parts(&good);
    assert_eq!(
        whole.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["manifest.json", "health.json", "archive.tar.zst"]
    );
    assert_eq!(container(&whole), good, "an export is a plain tar");
    let key = signing_key(staging);

    let Some(production) = World::any() else { return };
    production.project("shop").project("blog");
    let before = names(&releases(&production));
    let refused = |what: &str, project: &str, bytes: &[u8], text: &str, hint: &str| {
        import(&production, project, bytes).exits(3).says(text).says(hint);
        let now: Vec<_> = names(&releases(&production)).into_iter().filter(|name| name != ".incoming").collect();
        assert_eq!(now, before, "{what} has left something");
        let incoming = releases(&production).join(".incoming");
        assert!(!incoming.exists() || names(&incoming).is_empty(), "{what} has left something");
    };
    // For the first import, the key is not trusted. Each further import has one other defect.
    refused(
        "unknown",
        "shop",
        &good,
        &format!("is signed by {key}, which is not trusted for shop"),
        "larder key trust shop ed25519:",
    );
    production.larder(&["key", "trust", "shop", &key]).ok();
    production.larder(&["key", "trust", "blog", &key]).ok();

    let with = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut parts = whole.clone();
        parts.iter_mut().filter(|(found, _)| found == name).for_each(|(_, content)| change(content));
        container(&parts)
    };
    let replaced = |from: &str, to: &str| {
        with("manifest.json", &|content| {
            let text = String::from_utf8(content.clone()).unwrap();
            assert!(text.contains(from), "{from} is not in the manifest");
            *content = text.replacen(from, to, 1).into_bytes();
        })
    };
    refused("another project's", "blog", &good, "belongs to the project shop (expected blog)", "correct the address");
    refused("altered", "shop", &replaced("\"build\":1", "\"build\":7"), "does not match its manifest", "fetch the release again");
    refused("newer", "shop", &replaced("\"format\":1", "\"format\":2"), "has the format 2 (expected at most 1)", "update larder");
    refused(
        "unsigned",
        "shop",
        &replaced(",\"signature\":{", ",\"unsigned\":{"),
        "is not signed",
        "deploy the commit there again",
    );
    let size = whole[2].1.len();
    for percent in [0, 1, 37, 50, 99] {
        let cut = size * percent / 100;
        let end = good.len() - 1024 - size.next_multiple_of(512) + cut;
        refused(
            "cut",
            "shop",
            &good[..end],
            &format!("is truncated: it has {cut} bytes (expected {size})"),
            "fetch the release again",
        );
        if percent > 0 {
            let altered = with("archive.tar.zst", &|content| content[cut] ^= 0x10);
            refused("altered", "shop", &altered, "was altered or damaged", "fetch the release again");
        }
    }
    refused("headless", "shop", &good[..100], "cannot read the export: it is cut off", "larder release export");
    refused("nothing", "shop", b"", "it is cut off", "larder release export");
    refused("else", "shop", &[b'x'; 5000], "it is not an export of a release", "larder release export");
    refused("more", "shop", &[&good[..], b"more"].concat(), "it has bytes after its archive", "larder release export");
    // The archive has one byte more than its manifest states.
    let longer = with("archive.tar.zst", &|content| content.push(0));
    refused("longer", "shop", &longer, "and its manifest disagree", "deploy the commit again");

    // A valid import over ssh is accepted. A second import of the same release changes nothing.
    production.key("dora");
    production.larder(&["user", "add", "dora", "--key-file", &production.public_key("dora")]).ok();
    production.larder(&["user", "grant", "dora", "shop", "deploy"]).ok();
    let mut ssh = production.client("ssh");
    ssh.args(production.ssh_options("dora")).args(["larder@127.0.0.1", "release", "import", "shop"]);
    Output::of(ssh.stdin(File::open(&path).unwrap())).says("shop/production has release ").says("nothing was deployed").exits(0);
    let manifest: Value = serde_json::from_slice(&whole[0].1).unwrap();
    let id = manifest["release"].as_str().unwrap();
    let read = |name: String| fs::read(releases(&production).join(name)).unwrap();
    assert_eq!(read(format!("{id}.tar.zst")), whole[2].1);
    assert_eq!(serde_json::from_slice::<Value>(&read(format!("{id}.manifest.json"))).unwrap(), manifest);
    assert_eq!(read(format!("{id}.health.json")), whole[1].1);
    import(&production, "shop", &good).exits(0);
    assert_eq!(names(&releases(&production).join(".incoming")), Vec::<String>::new());
    // The right to view permits an export, but no import.
    production.larder(&["user", "grant", "dora", "shop", "view"]).ok();
    let again = production.directory().join("again");
    let mut ssh = production.client("ssh");
    ssh.args(production.ssh_options("dora")).args(["larder@127.0.0.1", "release", "export", "shop", id]);
    assert!(ssh.stdout(File::create(&again).unwrap()).status().unwrap().success());
    let found = parts(&fs::read(again).unwrap());
    assert_eq!((&found[1].1, &found[2].1), (&whole[1].1, &whole[2].1), "the second export differs from the first export");
    production.ssh("dora", &["release", "import", "shop"]).exits(3).says("dora may not deploy to shop");
    production.end();
}

fn health_record_has_periods_checks_and_restarts(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "one");
    repo.write("larder.yml", "smoke: [/]\n");
    repo.program(".larder/post_build", "#!/bin/sh\nexit 0\n");
    repo.commit("checks");
    repo.push().accepted();
    let first = record(world, "v1");
    let checks: Vec<_> = first["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(checks, ["health", "smoke", "tests"]);
    assert_eq!(first["served"].as_array().unwrap().len(), 1);
    assert_eq!(first["served"][0]["until"], Value::Null);
    assert_eq!(first["restarts"], Value::Array(Vec::new()));
    assert_eq!(first["signature"]["key"], signing_key(world));

    let victim = world.application("shop")[0];
    processes::signal(victim, rustix::process::Signal::KILL);
    until("the end of the process is in the record", || {
        record(world, "v1")["restarts"].as_array().is_some_and(|ends| ends.iter().any(|end| end["process"] == "web.1"))
    });
    // The record survives a restart of the server. When the next release goes live, the old release's period of service ends.
    world.restart(&[]);
    repo.page("two");
    repo.push().accepted();
    let old = record(world, "v1");
    assert_eq!(old["restarts"][0]["exit"], "was killed by signal 9");
    let new = record(world, "v2");
    assert_eq!(old["served"][0]["until"], new["served"][0]["since"]);
    assert_eq!(new["restarts"], Value::Array(Vec::new()));
}
