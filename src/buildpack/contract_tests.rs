//! Tests of the rules that every built-in buildpack must keep, and of the shell functions in `buildpacks/lib/`.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::*;

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
fn folder_of_buildpacks_is_embedded_completely() {
    let there = files_below(&folder("buildpacks"));
    let embedded: BTreeSet<String> = FILES.iter().map(|file| file.path.to_owned()).collect();
    assert_eq!(there, embedded);
    for file in FILES {
        let mode = fs::metadata(folder("buildpacks").join(file.path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o111 != 0, file.executable, "{}: all programs, and only programs, are below bin/", file.path);
    }
    assert!(FILES.windows(2).all(|pair| pair[0].path < pair[1].path));
}

#[test]
fn every_pack_is_complete_and_has_an_example() {
    let folders = fs::read_dir(folder("buildpacks")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let folders: BTreeSet<String> = folders.filter(|name| name != "lib").collect();
    let packs: BTreeSet<String> = PACKS.iter().map(|pack| pack.name.to_owned()).collect();
    assert_eq!(folders, packs, "each buildpack has a pack.yml with `order` and `signs`");
    for name in &packs {
        assert!(is_name(name), "{name}");
        for script in ["bin/detect", "bin/compile", "bin/release"] {
            let path = format!("{name}/{script}");
            let file = FILES.iter().find(|file| file.path == path).unwrap_or_else(|| panic!("{path} is missing"));
            assert!(file.executable && file.text.starts_with("#!/bin/sh\n"), "{path}");
        }
        assert!(folder("examples").join(name).join("README.md").is_file(), "examples/{name}/README.md is missing");
    }
}

#[test]
fn packs_are_tried_in_the_documented_order() {
    let page = fs::read_to_string(folder("docs").join("buildpacks.md")).unwrap();
    let table = page.split_once("| name | looks for |").unwrap().1.split("\n\n").next().unwrap();
    let documented: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let tried: Vec<&str> = PACKS.iter().map(|pack| pack.name).collect();
    assert_eq!(tried, documented, "the table in docs/buildpacks.md has one row for each buildpack, in order");
}

#[test]
fn every_script_is_valid_posix_shell() {
    for file in FILES.iter().filter(|file| file.executable || file.path.ends_with(".sh")) {
        let output = Command::new("/bin/sh").arg("-n").arg(folder("buildpacks").join(file.path)).output().unwrap();
        assert!(output.status.success(), "{}: {}", file.path, String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_example_is_accepted_by_its_own_pack_only() {
    for example in fs::read_dir(folder("examples")).unwrap().map(Result::unwrap) {
        let name = example.file_name().into_string().unwrap();
        let own = match name.split('-').next().unwrap() {
            "django" => "python",
            pack => pack,
        };
        let project = example.path();
        let yes: Vec<&str> = PACKS.iter().map(|pack| pack.name).filter(|pack| detects(pack, &project)).collect();
        assert_eq!(yes.first(), Some(&own), "examples/{name}: accepted by {yes:?}, in this order");
        // Any project may have a Procfile, and the buildpack procfile comes last.
        assert!(yes.iter().all(|pack| *pack == own || *pack == "procfile"), "examples/{name}: accepted by {yes:?}");
    }
}

#[test]
fn files_of_detect_scripts_are_signs() {
    for one in PACKS.iter() {
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
        let signs: BTreeSet<&str> = one.signs.iter().map(String::as_str).collect();
        assert!(named.is_subset(&signs), "{path} looks for {named:?}, its signs are {signs:?}");
        assert!(!signs.is_empty(), "{path}");
    }
}

#[test]
fn front_end_package_is_static_and_server_package_is_node() {
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
        // Each buildpack accepts the project if the recipe names the buildpack. For example, node can build the assets for another
        // buildpack, and a static site can have a script `start` for development.
        for pack in ["node", "static"] {
            let mut named = Command::new(folder(&format!("buildpacks/{pack}/bin/detect")));
            assert!(named.arg(temp.path()).env("LARDER_NAMED", "1").output().unwrap().status.success(), "{pack} on {package}");
        }
    }
    // A page beside a server is served by this server.
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
fn start_script_runs_without_npm_if_possible() {
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
        (r#"{"config":{"scripts":{"start":"node wrong.js"}},"scripts":{"start":"node ."}}"#, "node ."),
        (
            r#"{"scripts":{"start":"node wrong.js"},"x":{"scripts":{"start":"node wrong.js"}},"scripts":{"start":"node ."}}"#,
            "node .",
        ),
        (r#"{"scripts":{"st\u0061rt":"node ."}}"#, "node ."),
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

/// Returns the cause that `reason` of `lib/common.sh` finds in the output of a failed tool.
fn reason(output: &str) -> String {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("output"), output).unwrap();
    let script = "lib=$2; . \"$lib/common.sh\"; BUILD_DIR=/app; TMP=$1; reason";
    let mut command = Command::new("/bin/sh");
    let output = command.args(["-c", script, "sh"]).arg(temp.path()).arg(folder("buildpacks/lib")).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn reason_is_found_in_recorded_outputs_of_tools() {
    let outputs = folder("src/buildpack/script_tests/outputs");
    let mut wrong = Vec::new();
    for name in files_below(&outputs) {
        let text = fs::read_to_string(outputs.join(&name)).unwrap();
        let (first, output) = text.split_once('\n').unwrap();
        let (expected, found) = (first.strip_prefix("reason: ").unwrap(), reason(output));
        if found != expected || found.ends_with(':') {
            wrong.push(format!("{name}: {found:?}, expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn reason_is_found_in_single_lines_of_tools() {
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
            "the registry gives no signatures, which corepack checks: put the hash into packageManager (corepack use does), or set \
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
        assert_eq!(reason(output).trim(), expected, "{output}");
    }
}

#[test]
fn every_rule_of_reasons_is_valid() {
    let rules = FILES.iter().find(|file| file.path == "lib/reasons").unwrap().text;
    for rule in rules.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '['])) {
        let output = Command::new("sed").args(["-nE", rule, "/dev/null"]).output().unwrap();
        assert!(output.status.success(), "{rule}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Returns the members of a package.json as `lib/json.awk` prints them; `None` if the script refuses the text.
fn members(json: &str) -> Option<String> {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("x.json"), json).unwrap();
    let mut awk = Command::new("awk");
    let output = awk.arg("-f").arg(folder("buildpacks/lib/json.awk")).arg(temp.path().join("x.json")).output().unwrap();
    assert!(output.stderr.is_empty(), "{json}: {}", String::from_utf8_lossy(&output.stderr));
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn json_members_of_two_levels_are_printed() {
    let json = r#"{"config": {"scripts": {"start":"no"}}, "a":[1,{"scripts":{"start":"x"}},[],[]], "e": {}, "b": [ ],
        "scripts": {"build": "a \"b\" } c\\", "start" : "node \u0061 ."}, "n": -1.5e3, "t":true, "s\u0063ripts2": null}"#;
    let expected = "config\t{\nconfig\tscripts\t{\na\t[\ne\t{\nb\t[\nscripts\t{\nscripts\tbuild\ta \\\"b\\\" } c\\\\\n\
                    scripts\tstart\tnode \\u0061 .\nn\t-1.5e3\nt\ttrue\nscripts2\tnull\n";
    assert_eq!(members(json).as_deref(), Some(expected));
    assert_eq!(members("\u{feff}{\r\n\"a\":\r\n[\r\n],\"b\":\"x\"}\r\n").as_deref(), Some("a\t[\nb\tx\n"));
    assert_eq!(members(&format!("{{\"a\": \"{}\"}}", "x".repeat(200_000))).map(|text| text.len()), Some(200_003));
}

#[test]
fn invalid_json_is_refused() {
    for bad in
        ["", "{", "{\"a\":1,}", "[1", "{\"a\" 1}", "{\"a\":\"x\ty\"}", "{\"scripts\":{\"buil", "{} x", "{\"a\":\"\\x\"}", "{a:1}"]
    {
        assert_eq!(members(bad), None, "{bad}");
    }
}

#[test]
fn failed_tool_is_named_with_status_and_cause() {
    let temp = tempfile::tempdir().unwrap();
    let script = format!(
        "lib='{}'; . \"$lib/common.sh\"; prepare \"$1\" \"$1/cache\"; must 'npm ci' sh -c 'echo fetching; echo npm error 404 Not Found; exit 7'",
        folder("buildpacks/lib").display()
    );
    let output = Command::new("/bin/sh").args(["-c", &script, "sh"]).arg(temp.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("\n !     npm ci exited 7: 404 Not Found\n"), "{text}");
}

#[test]
fn empty_project_and_odd_names_are_not_accepted() {
    let temp = tempfile::tempdir().unwrap();
    let odd = temp.path().join("a 'b' \"c\" $(touch x) ;\n*");
    fs::create_dir(&odd).unwrap();
    fs::create_dir(odd.join("package.json")).unwrap();
    for one in PACKS.iter() {
        assert!(!detects(one.name, &odd), "{}", one.name);
    }
    fs::write(odd.join("Procfile"), "web: true\n").unwrap();
    assert!(detects("procfile", &odd));
}
