//! Two machines that share only a network cable: staging has build tools and internet access, production has neither.

use std::{collections::BTreeMap, fs, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::Path};

use larder::model::Digest;

use crate::{
    harness::{Machine, Repo, World, installed, machine::WebProxy, state::names, until},
    promotion::{introduce, live_manifest},
};

const STAGING: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PRODUCTION: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// All programs of production: the programs that larder needs, and the interpreters of the applications.
const PRODUCTION_HAS: [&str; 5] = ["sh", "bash", "git", "python3", "node"];

/// The script that prints the available build tools.
const LOOK_FOR_TOOLS: &str = "for tool in cc gcc g++ cpp ld as make cmake pip pip3 npm npx yarn pnpm corepack composer cargo rustc go \
    javac mvn gem bundle uv poetry pipenv curl wget; do command -v $tool; done; python3 -m pip --version; exit 0";

/// An application with a virtual environment and a compiled package.
const FLASK: &str = r#"
import sys
import flask, gunicorn, markupsafe._speedups

app = flask.Flask(__name__)


@app.get("/")
def home():
    return f"{VERSION}: {flask.__file__} {markupsafe._speedups.__file__} in {sys.prefix}"
"#;

/// An application with transitive packages.
const NODE: &str = r#"
const isOdd = require('is-odd');
require('http').createServer((request, response) => {
  response.end(`${VERSION}: ${require.resolve('is-odd')} says ${isOdd(3)}`);
}).listen(process.env.PORT, '127.0.0.1');
"#;

fn flask(repo: &Repo<'_>, version: &str) -> String {
    repo.write("requirements.txt", "Flask==3.0.3\ngunicorn==22.0.0\n");
    repo.write("Procfile", "web: gunicorn app:app --bind 127.0.0.1:$PORT\n");
    repo.write("app.py", format!("VERSION = \"{version}\"\n{FLASK}"));
    repo.commit(version)
}

fn node(repo: &Repo<'_>, version: &str) -> String {
    let package =
        r#"{"name": "panel", "version": "1.0.0", "dependencies": {"is-odd": "3.0.1"}, "scripts": {"start": "node server.js"}}"#;
    repo.write("package.json", package).write("server.js", format!("const VERSION = '{version}';\n{NODE}"));
    repo.commit(version)
}

const FLASK_IS_THERE: &str = "/app/.venv/lib/python3";
const NODE_IS_THERE: &str = "/app/node_modules/is-odd/index.js says true";

#[test]
fn production_without_tools_internet_and_staging_serves() {
    let programs = ["python3", "node", "npm"].map(installed);
    if programs.iter().any(Option::is_none) {
        return;
    }
    let (Some(kitchen), Some(counter)) = (Machine::new(), Machine::new()) else { return };
    kitchen.connect(STAGING, &counter, PRODUCTION);
    counter.keep_only(&PRODUCTION_HAS);
    let way_out = WebProxy::on(&kitchen);
    let staging = World::on(&kitchen, &format!("env:\n  HTTPS_PROXY: http://{}\n", way_out.address));
    let production = World::on(&counter, "");
    introduce(
        (&production, &PRODUCTION.to_string(), production.ssh_port()),
        (&staging, &STAGING.to_string(), staging.ssh_port()),
        &["shop", "panel"],
    );

    // Staging builds.
    let (shop, panel) = (Repo::new(&staging, "shop"), Repo::new(&staging, "panel"));
    flask(&shop, "version one");
    node(&panel, "version one");
    for repo in [&shop, &panel] {
        let pushed = kitchen.inside(|| repo.push());
        if pushed.0.stderr.contains("cannot be reached from this server") {
            eprintln!("SKIPPED: no package registry is reached from here");
            return;
        }
        pushed.accepted();
    }
    kitchen.inside(|| {
        staging.serves("shop", FLASK_IS_THERE);
        staging.serves("panel", NODE_IS_THERE);
    });

    // Production has neither build tools nor a route to the internet. The same searches do find tools and caches on staging, so an empty
    // result on production is meaningful.
    let (devices, networks) = counter.network();
    assert_eq!((devices.len(), networks), (2, vec![Ipv4Addr::new(192, 0, 2, 0).into()]), "{devices:?}");
    for project in ["shop", "panel"] {
        let pulled = production.larder(&["pull", project]);
        pulled.says("from the remote staging").says("v1 is live").ok();
        assert_eq!(tools(&production, project), Vec::<String>::new());
        assert_eq!(names(&production.environment(project).join("cache")), Vec::<String>::new());
        assert!(!names(&staging.environment(project).join("cache")).is_empty());
        same_release(&production, &staging, project);
        production.larder(&["drift", project]).says("The installed tree matches its manifest.");
    }
    let found = tools(&staging, "shop");
    assert!(["cc", "make", "npm"].iter().all(|tool| found.iter().any(|path| path.ends_with(tool))), "{found:?}");
    let out = ["run", "shop", "--", "python3", "-c", "import socket; socket.create_connection(('198.51.100.1', 443), 5)"];
    production.larder(&out).says("Network is unreachable");
    counter.inside(|| {
        production.serves("shop", "version one");
        production.serves("shop", FLASK_IS_THERE);
        production.serves("panel", NODE_IS_THERE);
    });

    // The second release of panel is deployed by `promote`, and the second release of shop by a push to production.
    let (second, _) = (flask(&shop, "version two"), node(&panel, "version two"));
    kitchen.inside(|| [&shop, &panel].map(|repo| repo.push().accepted().says("v2 is live").0.status));
    staging.larder(&["promote", "panel", "v2", "--to", "prod"]).says("v2 is live");
    let here = Repo::new(&production, "shop");
    here.git(&["pull", "--quiet", shop.path().to_str().unwrap(), "HEAD"]).ok();
    counter.inside(|| {
        here.push().accepted().says("v2 is live");
        production.serves("shop", "version two");
        production.serves("panel", "version two");
    });
    for project in ["shop", "panel"] {
        until("the archive is rebuilt", || {
            live_manifest(&production, "production", project) == live_manifest(&staging, "production", project)
        });
        same_release(&production, &staging, project);
        never_built(&production, project);
    }

    // Staging is switched off, which also removes the cable.
    staging.end();
    drop(way_out);
    drop(kitchen);
    until("the cable is gone", || counter.network() == (vec![String::from("lo")], Vec::new()));
    production.larder(&["pull", "shop"]).exits(3).says("cannot reach a remote");
    for project in ["shop", "panel"] {
        let serves = |version: &str| counter.inside(|| production.serves(project, version));
        production.larder(&["restart", project]).ok();
        serves("version two");
        production.larder(&["deploy", project]).ok();
        serves("version two");
        production.larder(&["rollback", project]).ok();
        serves("version one");
        production.larder(&["rollback", project, "v2"]).ok();
        serves("version two");
    }
    production.larder(&["rollback", "shop", "v1"]).ok();
    counter.inside(|| {
        assert_ne!(here.live().as_deref(), Some(&*second));
        here.push().accepted();
        assert_eq!(here.live().as_deref(), Some(&*second));
    });
    // Keeper and server are killed, as by a power cut.
    production.kill9_all();
    production.start(&[]);
    counter.inside(|| {
        for (project, there) in [("shop", FLASK_IS_THERE), ("panel", NODE_IS_THERE)] {
            until("the project serves again", || production.get(project, "/").status == 200);
            production.serves(project, "version two");
            production.serves(project, there);
            production.is_consistent(project);
        }
    });
    for project in ["shop", "panel"] {
        assert_eq!(tools(&production, project), Vec::<String>::new());
        never_built(&production, project);
    }
    production.end();
}

/// Returns the build tools that an application finds.
fn tools(world: &World, project: &str) -> Vec<String> {
    world.larder(&["run", project, "--", "sh", "-c", LOOK_FOR_TOOLS]).ok().lines().map(str::to_owned).collect()
}

/// Asserts that the live releases of both servers have equal manifests, archives, files and modes.
fn same_release(production: &World, staging: &World, project: &str) {
    let manifest = live_manifest(staging, "production", project);
    assert_eq!(live_manifest(production, "production", project), manifest);
    let parts = [staging, production].map(|world| {
        let top = world.environment(project);
        let release = fs::read_link(top.join("deploy/current")).unwrap();
        let archive = fs::read(top.join("releases").join(format!("{}.tar.zst", release.display()))).unwrap();
        let mut files = BTreeMap::new();
        tree(&top.join("deploy").join(release), Path::new(""), &mut files);
        (archive, files)
    });
    let [(archive, files), (archive_here, files_here)] = parts;
    assert!(archive == archive_here, "the archives of {project} differ");
    let packages = files.keys().filter(|path| path.starts_with(".venv/") || path.starts_with("node_modules/")).count();
    assert!(packages > 5 && files.len() > packages, "{:?}", files.keys());
    assert_eq!(files.keys().collect::<Vec<_>>(), files_here.keys().collect::<Vec<_>>());
    for (path, file) in &files {
        assert!(files_here[path] == *file, "{path} of {project} differs");
    }
    let entries = manifest["entries"].as_array().unwrap();
    assert_eq!(entries.len(), files.len());
    for entry in entries.iter().filter(|entry| entry["type"] == "file") {
        let (_, contents) = &files_here[entry["path"].as_str().unwrap()];
        assert_eq!(Digest::of(contents).to_string(), entry["digest"].as_str().unwrap(), "{entry}");
    }
}

/// Adds all entries below a directory to `files`, with their modes and contents.
fn tree(top: &Path, below: &Path, files: &mut BTreeMap<String, (u32, Vec<u8>)>) {
    for name in names(&top.join(below)) {
        let (path, at) = (below.join(&name), top.join(below).join(&name));
        let found = fs::symlink_metadata(&at).unwrap();
        let contents = if found.is_symlink() {
            fs::read_link(&at).unwrap().into_os_string().into_encoded_bytes()
        } else if found.is_dir() {
            tree(top, &path, files);
            Vec::new()
        } else {
            fs::read(&at).unwrap()
        };
        files.insert(path.to_str().unwrap().to_owned(), (found.permissions().mode(), contents));
    }
}

/// Checks that no deployment had a build step.
fn never_built(world: &World, project: &str) {
    let text = world.journals(project).concat().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(text.contains("deploy.switch"), "{text}");
    for step in ["\"build.", "\"post_build.", "\"bundle."] {
        assert!(!text.contains(step), "{step} in {text}");
    }
}
