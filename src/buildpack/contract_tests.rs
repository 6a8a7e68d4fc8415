//! What holds for every buildpack of ours, the next one included.

use std::{collections::BTreeSet, path::PathBuf, process::Command};

use super::*;
use crate::buildpack::REGISTRY;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn files_below(folder: &Path) -> BTreeSet<String> {
    let files = walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap).filter(|entry| !entry.file_type().is_dir());
    files.map(|entry| entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned()).collect()
}

fn detects(pack: &str, project: &Path) -> bool {
    let output = Command::new(folder("buildpacks").join(pack).join("bin/detect")).arg(project).output().unwrap();
    assert!(output.stderr.is_empty(), "{pack} on {}: {}", project.display(), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{pack}\n"));
    }
    output.status.success()
}

#[test]
fn every_file_of_the_folder_is_embedded() {
    let there = files_below(&folder("buildpacks"));
    let embedded: BTreeSet<String> = FILES.iter().map(|file| file.path.to_owned()).collect();
    assert_eq!(there, embedded, "src/buildpack/embedded.rs lists the files below buildpacks/");
    for file in FILES {
        let mode = fs::metadata(folder("buildpacks").join(file.path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o111 != 0, file.executable, "{}", file.path);
    }
    assert!(FILES.windows(2).all(|pair| pair[0].path < pair[1].path), "sorted, each once");
}

#[test]
fn every_buildpack_is_registered_whole_and_has_an_example() {
    let folders = fs::read_dir(folder("buildpacks")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let folders: BTreeSet<String> = folders.filter(|name| name != "lib").collect();
    let registered: BTreeSet<String> = REGISTRY.iter().map(|one| one.name.to_owned()).collect();
    assert_eq!(folders, registered);
    for name in &registered {
        for script in ["bin/detect", "bin/compile", "bin/release"] {
            let path = format!("{name}/{script}");
            let file = FILES.iter().find(|file| file.path == path).unwrap_or_else(|| panic!("{path} is missing"));
            assert!(file.executable && file.text.starts_with("#!/bin/sh\n"), "{path}");
        }
        assert!(folder("examples").join(name).join("README.md").is_file(), "examples/{name}/README.md is missing");
    }
}

#[test]
fn every_script_is_posix_shell() {
    for file in FILES.iter().filter(|file| !file.path.ends_with(".php")) {
        let output = Command::new("/bin/sh").arg("-n").arg(folder("buildpacks").join(file.path)).output().unwrap();
        assert!(output.status.success(), "{}: {}", file.path, String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn an_example_is_recognised_by_its_buildpack_and_no_other_takes_it() {
    for example in fs::read_dir(folder("examples")).unwrap().map(Result::unwrap) {
        let name = example.file_name().into_string().unwrap();
        let own = name.split('-').next().unwrap();
        let project = example.path();
        let yes: Vec<&str> = REGISTRY.iter().map(|one| one.name).filter(|pack| detects(pack, &project)).collect();
        assert_eq!(yes.first(), Some(&own), "examples/{name}: in the order of the registry {yes:?} say yes");
        // A Procfile may stand in any project, and that buildpack is the last to be asked.
        assert!(yes.iter().all(|pack| *pack == own || *pack == "procfile"), "examples/{name}: {yes:?} say yes");
    }
}

#[test]
fn what_a_detect_script_looks_for_is_a_sign() {
    for one in REGISTRY {
        let path = format!("{}/bin/detect", one.name);
        let script = FILES.iter().find(|file| file.path == path).unwrap().text;
        let code = script.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
        let words = code.split(|c: char| !(c.is_ascii_alphanumeric() || "._/-".contains(c)));
        let looks_like_a_file = |word: &str| {
            (word.ends_with("file") && word.starts_with(char::is_uppercase)) || (word.contains('.') && word.len() > 4)
        };
        let names =
            words.map(|word| word.trim_start_matches("1/").trim_start_matches('/')).filter(|word| looks_like_a_file(word));
        let named: BTreeSet<&str> = names.filter(|name| !name.ends_with("look.sh") && !name.starts_with('.')).collect();
        let signs: BTreeSet<&str> = one.signs.iter().copied().collect();
        assert!(named.is_subset(&signs), "{path} looks for {named:?}, its signs are {signs:?}");
        assert!(!signs.is_empty(), "{path}");
    }
}

#[test]
fn front_ends_and_servers_are_told_apart() {
    let cases: &[(&str, &str, &str)] = &[
        ("static", "", r#"{"scripts":{"build":"vite build"}}"#),
        ("static", "", "{\n \"scripts\": {\n  \"build\": \"x \\\"start\\\" }\",\n \"test\": \"start\"\n }, \"start\": \"1\"\n}"),
        ("static", "", r#"{"name":"start","scripts":{"dev":"vite \\","build":"vite build"},"x":{"start":"y"}}"#),
        ("node", "", r#"{"scripts":{"build":"tsc","start":"node ."}}"#),
        ("node", "", "{\"scripts\" : { \"build\": \"echo ${A} }\", \"start\" : \"node .\" } }"),
        ("node", "server.js", r#"{"scripts":{"build":"tsc"}}"#),
        ("node", "Procfile", r#"{"scripts":{"build":"tsc"}}"#),
        ("static", "static.json", r#"{"scripts":{"start":"vite"}}"#),
        ("static", "index.html", r#"{"devDependencies":{"prettier":"3"}}"#),
        ("static", "public/index.html", r#"{"scripts":{"lint":"eslint"}}"#),
        ("node", "", r#"{"main":"index.js"}"#),
        ("node", "", "{"),
        ("node", "", r#"{"scripts":{"buil"#),
    ];
    for (expected, beside, package) in cases {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("package.json"), package).unwrap();
        fs::create_dir(temp.path().join("public")).unwrap();
        if !beside.is_empty() {
            fs::write(temp.path().join(beside), "").unwrap();
        }
        for pack in ["node", "static"] {
            assert_eq!(detects(pack, temp.path()), pack == *expected, "{pack} on {package} with {beside:?}");
        }
        // Beside another buildpack it may well only build assets; and what starts a server for its author may be a site all the same.
        for pack in ["node", "static"] {
            let mut named = Command::new(folder(&format!("buildpacks/{pack}/bin/detect")));
            assert!(named.arg(temp.path()).env("LARDER_NAMED", "1").output().unwrap().status.success(), "{pack} on {package}");
        }
    }
    // A page beside what starts a server is the server's.
    for (beside, package) in [("server.js", "{}"), ("Procfile", "{}"), ("README", r#"{"scripts":{"start":"node ."}}"#)] {
        let temp = tempfile::tempdir().unwrap();
        for (name, text) in [("package.json", package), ("index.html", ""), (beside, "")] {
            fs::write(temp.path().join(name), text).unwrap();
        }
        assert!(detects("node", temp.path()), "{beside} {package}");
    }
    let temp = tempfile::tempdir().unwrap();
    for (name, text) in [("package.json", "{}"), ("static.json", "{}"), ("Procfile", "web: x")] {
        fs::write(temp.path().join(name), text).unwrap();
    }
    assert!(detects("node", temp.path()));
}

#[test]
fn a_node_process_needs_no_npm_unless_its_script_does() {
    let cases: &[(&str, &str)] = &[
        (r#"{"scripts":{"start":"node ."}}"#, "node ."),
        (r#"{"scripts":{"build":"start","start":"A=1 node \"a b.js\" --x='\\\\y'","x":"z"}}"#, r#"A=1 node "a b.js" --x='\\y'"#),
        (r#"{"scripts":{"start":"node . # %s:\t{x}"}}"#, "node . # %s:\t{x}"),
        (r#"{"scripts":{"prestart":"tsc","start":"node ."}}"#, "npm start"),
        (r#"{"scripts":{"start":"node .","poststart":"rm x"}}"#, "npm start"),
        (r#"{"scripts":{"start":"node . $npm_package_version"}}"#, "npm start"),
        (r#"{"scripts":{"start":"node \u0061"}}"#, "npm start"),
        (r#"{"scripts":{"start":"node .\nnode x"}}"#, "npm start"),
        (r#"{"scripts":{"start":""}}"#, "npm start"),
        (r#"{"name":"start"}"#, "node server.js"),
        (r#"{"files":["scripts","{"],"name":"scripts","scripts" :	{"start":"node ."}}"#, "node ."),
        (r#"{"directories":{"scripts":"bin"},"x":{"start":"y"}}"#, "node server.js"),
        (r#"{"files":["scripts", "start"]}"#, "node server.js"),
    ];
    for (package, expected) in cases {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("package.json"), package).unwrap();
        fs::write(temp.path().join("server.js"), "").unwrap();
        let output = Command::new(folder("buildpacks/node/bin/release")).arg(temp.path()).output().unwrap();
        let read = crate::buildpack::release::parse(&output.stdout).unwrap();
        assert_eq!(read, [("web".parse().unwrap(), (*expected).to_owned())], "{package}");
    }
}

/// What `why` of `lib/common.sh` says about the output of a tool that failed.
fn why(output: &str) -> String {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("output"), output).unwrap();
    let script = format!(". '{}'; BUILD_DIR=/app; TMP=$1; why", folder("buildpacks/lib/common.sh").display());
    let output = Command::new("/bin/sh").args(["-c", &script, "sh"]).arg(temp.path()).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn the_cause_of_a_failure_is_found_in_the_output_of_tools() {
    let lost = |host: &str| format!("{host} cannot be reached from this server");
    let cases: &[(&str, String)] = &[
        (
            "npm error code ENOTFOUND\nnpm error syscall getaddrinfo\nnpm error network request to https://npm.example failed, \
             reason: getaddrinfo ENOTFOUND npm.example\n",
            lost("npm.example"),
        ),
        ("Failed to download x: getaddrinfo for api.example failed: Name or service not known\n", lost("api.example")),
        ("fatal: unable to access 'https://git.example/x.git/': Could not resolve host: git.example\n", lost("git.example")),
        ("Could not reach host index.gems.example. Check your network\n", lost("index.gems.example")),
        ("[ERROR] x: Unknown host maven.example: Name or service not known -> [Help 1]\n", lost("maven.example")),
        ("go: x: Get \"https://x\": dial tcp: lookup go.example on 10.0.0.1:53: no such host\n", lost("go.example")),
        (
            "npm error code E404\nnpm error 404 Not Found - GET https://x/lef\nnpm error 404\n",
            "404 Not Found - GET https://x/lef".into(),
        ),
        ("sh: 1: gulp: not found\n", "gulp: not found".into()),
        ("/bin/bash: line 1: vite: command not found\n", "vite: command not found".into()),
        ("a\nsrc/x.ts(1,7): error TS2304: Cannot find name 'y'.\n", "src/x.ts(1,7): error TS2304: Cannot find name 'y'.".into()),
        (
            "          throw new Error(`No compatible\n\nError: No compatible signature found in package metadata\n",
            "the registry gives no signatures, which corepack asks for: put the hash into packageManager (corepack use does), or set \
             COREPACK_INTEGRITY_KEYS=0"
                .into(),
        ),
        ("    throw new Error(\n\nError: Cannot find module '/app/x'\n    at y\n", "Error: Cannot find module 'x'".into()),
        (
            "Traceback (most recent call last):\n  File \"x\"\nModuleNotFoundError: No module named 'y'\n",
            "ModuleNotFoundError: No module named 'y'".into(),
        ),
        ("\u{1b}[1m[\u{1b}[31mERROR\u{1b}[m] COMPILATION ERROR : \n", "COMPILATION ERROR :".into()),
        ("error: failed to select a version\n", "failed to select a version".into()),
        ("0 errors\nall is well\n", String::new()),
    ];
    for (output, expected) in cases {
        assert_eq!(why(output).trim(), expected, "{output}");
    }
}

#[test]
fn a_failed_tool_is_named_with_its_status_and_its_cause() {
    let temp = tempfile::tempdir().unwrap();
    let script = format!(
        ". '{}'; prepare \"$1\" \"$1/cache\"; must 'npm ci' sh -c 'echo fetching; echo npm error 404 Not Found; exit 7'",
        folder("buildpacks/lib/common.sh").display()
    );
    let output = Command::new("/bin/sh").args(["-c", &script, "sh"]).arg(temp.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("\n !     npm ci exited 7: 404 Not Found\n"), "{text}");
}

#[test]
fn an_empty_project_and_one_with_odd_names_are_nobodys() {
    let temp = tempfile::tempdir().unwrap();
    let odd = temp.path().join("a 'b' \"c\" $(touch x) ;\n*");
    fs::create_dir(&odd).unwrap();
    fs::create_dir(odd.join("package.json")).unwrap();
    for one in REGISTRY {
        assert!(!detects(one.name, &odd), "{}", one.name);
    }
    fs::write(odd.join("Procfile"), "web: true\n").unwrap();
    assert!(detects("procfile", &odd));
}

#[test]
fn install_writes_all_and_repairs_what_was_changed() {
    let temp = tempfile::tempdir().unwrap();
    install(temp.path()).unwrap();
    let expected: BTreeSet<String> = FILES.iter().map(|file| file.path.to_owned()).collect();
    assert_eq!(files_below(temp.path()), expected);
    let script = temp.path().join("node/bin/compile");
    let before = fs::metadata(temp.path().join("node/bin/detect")).unwrap().modified().unwrap();
    fs::remove_file(&script).unwrap();
    fs::write(&script, "broken").unwrap();
    install(temp.path()).unwrap();
    assert!(fs::read_to_string(&script).unwrap().starts_with("#!/bin/sh"));
    assert_eq!(fs::metadata(&script).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::metadata(temp.path().join("node/bin/detect")).unwrap().modified().unwrap(), before);
    assert_eq!(files_below(temp.path()), expected);
}
