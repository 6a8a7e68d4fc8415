//! Tests of caches with the real tools: if a change does not alter the lock file, the next build must nevertheless contain the change.

use std::fs;

use super::{real::Real, serve};

/// A Python package below `libs/mylib` with its own build backend, so that no registry is needed.
const PYTHON_PACKAGE: [(&str, &str); 2] = [
    (
        "libs/mylib/pyproject.toml",
        "[project]\nname = \"mylib\"\nversion = \"1.0\"\n\n[build-system]\nrequires = []\nbuild-backend = \"backend\"\n\
         backend-path = [\".\"]\n",
    ),
    (
        "libs/mylib/backend.py",
        r#"import os, zipfile
META = "Metadata-Version: 2.1\nName: mylib\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: own\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
def build_wheel(directory, config_settings=None, metadata_directory=None):
    name = "mylib-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        wheel.write("mylib.py")
        wheel.writestr("mylib-1.0.dist-info/METADATA", META)
        wheel.writestr("mylib-1.0.dist-info/WHEEL", WHEEL)
        wheel.writestr("mylib-1.0.dist-info/RECORD", "mylib.py,,\nmylib-1.0.dist-info/METADATA,,\nmylib-1.0.dist-info/WHEEL,,\nmylib-1.0.dist-info/RECORD,,\n")
    return name
"#,
    ),
];

/// Builds twice and changes `libs/mylib/mylib.py` between the builds. Checks that the second build contains the change. The command `lock`
/// runs before the first build; the second build has the same lock file.
fn python(tools: &[&str], files: &[(&str, &str)], lock: Option<&str>) {
    let Some(real) = Real::new(&[&["python3"], tools].concat()) else { return };
    let mut locked: Option<Vec<(String, String)>> = None;
    for value in ["old", "new"] {
        let module = format!("VALUE = {value:?}\n");
        let mut all: Vec<(&str, &str)> = [files, &PYTHON_PACKAGE, &[("libs/mylib/mylib.py", module.as_str())]].concat();
        if let Some(locked) = &locked {
            all.extend(locked.iter().map(|(name, text)| (name.as_str(), text.as_str())));
        }
        real.source(&all);
        if let (None, Some(lock)) = (&locked, lock) {
            real.shell(lock);
            let names = ["uv.lock", "poetry.lock"].into_iter().filter(|name| real.project.app(name).is_file());
            locked = Some(names.map(|name| (name.to_owned(), fs::read_to_string(real.project.app(name)).unwrap())).collect());
        }
        if real.compile("python").is_none() {
            return;
        }
        assert_eq!(real.shell(".venv/bin/python -c 'import mylib; print(mylib.VALUE)'"), value);
    }
}

#[test]
fn pip_local_package_change_is_built() {
    for line in ["libs/mylib\n", "--no-index\n./libs/mylib # local\n"] {
        python(&[], &[("requirements.txt", line)], None);
    }
}

#[test]
fn pip_local_archive_change_is_built() {
    let Some(real) = Real::new(&["python3"]) else { return };
    for value in ["old", "new"] {
        let module = format!("VALUE = {value:?}\n");
        real.source(
            &[&PYTHON_PACKAGE[..], &[("libs/mylib/mylib.py", &module), ("requirements.txt", "mylib-1.0-py3-none-any.whl\n")]]
                .concat(),
        );
        real.shell("cd libs/mylib && python3 -c 'import backend; backend.build_wheel(\"../..\")'");
        if real.compile("python").is_none() {
            return;
        }
        assert_eq!(real.shell(".venv/bin/python -c 'import mylib; print(mylib.VALUE)'"), value);
    }
}

#[test]
fn uv_local_package_change_is_built() {
    let pyproject = "[project]\nname = \"app\"\nversion = \"1\"\nrequires-python = \">=3.9\"\ndependencies = [\"mylib\"]\n\n\
                     [tool.uv.sources]\nmylib = { path = \"libs/mylib\" }\n";
    python(&["uv"], &[("pyproject.toml", pyproject)], Some("uv lock --offline --python /usr/bin/python3"));
}

#[test]
fn poetry_local_package_change_is_built() {
    let pyproject = "[tool.poetry]\nname = \"app\"\nversion = \"1\"\ndescription = \"\"\nauthors = []\npackage-mode = false\n\n\
                     [tool.poetry.dependencies]\npython = \"^3.9\"\nmylib = { path = \"libs/mylib\" }\n";
    python(&["poetry"], &[("pyproject.toml", pyproject)], Some("poetry lock"));
}

#[test]
fn pipenv_local_package_change_is_built() {
    let pipfile = "[packages]\nmylib = { path = \"./libs/mylib\" }\n";
    let lock = r#"{"_meta":{"hash":{"sha256":""},"pipfile-spec":6,"requires":{},"sources":[]},
        "default":{"mylib":{"path":"./libs/mylib"}},"develop":{}}"#;
    python(&["pipenv"], &[("Pipfile", pipfile), ("Pipfile.lock", lock)], None);
}

/// Builds twice and changes `libs/mylib/index.js` between the builds. Checks that the second build contains the change.
fn node_copy(tool: &str, lock: (&str, &str)) {
    let Some(real) = Real::new(&["node", "npm", tool]) else { return };
    for value in ["old", "new"] {
        let module = format!("module.exports = {value:?}\n");
        real.source(&[
            ("package.json", r#"{"name":"app","version":"1.0.0","dependencies":{"mylib":"file:./libs/mylib"}}"#),
            lock,
            ("libs/mylib/package.json", r#"{"name":"mylib","version":"1.0.0"}"#),
            ("libs/mylib/index.js", &module),
        ]);
        if real.compile("node").is_none() {
            return;
        }
        assert_eq!(real.shell("node -p 'require(\"mylib\")'"), value);
    }
}

#[test]
fn yarn_local_package_change_is_installed() {
    node_copy("yarn", ("yarn.lock", "# yarn lockfile v1\n\n\n\"mylib@file:./libs/mylib\":\n  version \"1.0.0\"\n"));
}

#[test]
fn pnpm_local_package_change_is_installed() {
    let lock = "lockfileVersion: '9.0'\n\nsettings:\n  autoInstallPeers: true\n  excludeLinksFromLockfile: false\n\nimporters:\n\n  .:\n    \
                dependencies:\n      mylib:\n        specifier: file:./libs/mylib\n        version: file:libs/mylib\n\npackages:\n\n  \
                mylib@file:libs/mylib:\n    resolution: {directory: libs/mylib, type: directory}\n\nsnapshots:\n\n  \
                mylib@file:libs/mylib: {}\n";
    node_copy("pnpm", ("pnpm-lock.yaml", lock));
}

#[test]
fn npm_local_package_change_is_installed() {
    let lock = r#"{"name":"app","version":"1.0.0","lockfileVersion":3,"packages":{
        "":{"name":"app","version":"1.0.0","dependencies":{"mylib":"file:./libs/mylib"}},
        "libs/mylib":{"version":"1.0.0"},"node_modules/mylib":{"resolved":"libs/mylib","link":true}}}"#;
    node_copy("npm", ("package-lock.json", lock));
}

/// Builds twice with a dependency whose install script generates code from a file of the project, as Prisma's client does. Checks that the
/// second build contains the code for the changed file.
fn generator(tool: &str, lock_file: &str, lock: &str) {
    let Some(real) = Real::new(&["node", "npm", tool]) else { return };
    let package = r#"{"name":"generator","version":"1.0.0","scripts":{"postinstall":"node generate.js"}}"#;
    let generate = "require('fs').writeFileSync('schema.js', 'module.exports = ' + \
                    JSON.stringify(require('fs').readFileSync(process.env.INIT_CWD + '/schema', 'utf8')))";
    real.source(&[("package.json", package), ("generate.js", generate), ("schema.js", "")]);
    real.shell("npm pack --silent");
    let tarball = real.project.temp.path().join("generator-1.0.0.tgz");
    fs::rename(real.project.app("generator-1.0.0.tgz"), &tarball).unwrap();
    let address = format!("{}/generator-1.0.0.tgz", serve(real.project.temp.path()));
    let package = format!(r#"{{"name":"app","version":"1.0.0","dependencies":{{"generator":"{address}"}}}}"#);
    real.source(&[("package.json", &package), ("schema", "")]);
    real.shell(lock);
    let locked = fs::read_to_string(real.project.app(lock_file)).unwrap();
    for schema in ["old", "new"] {
        real.source(&[("package.json", &package), (lock_file, &locked), ("schema", schema)]);
        if real.compile("node").is_none() {
            return;
        }
        assert_eq!(real.shell("node -p 'require(\"generator/schema.js\")'"), schema, "{tool}");
    }
}

#[test]
fn npm_install_script_reads_the_new_project() {
    generator("npm", "package-lock.json", "npm install --package-lock-only --no-audit --no-fund");
}

#[test]
fn yarn_install_script_reads_the_new_project() {
    generator("yarn", "yarn.lock", "yarn install --ignore-scripts --non-interactive");
}

#[test]
fn pnpm_install_script_reads_the_new_project() {
    generator("pnpm", "pnpm-lock.yaml", "pnpm install --lockfile-only");
}

#[test]
fn composer_path_package_change_is_installed() {
    let Some(real) = Real::new(&["php", "composer"]) else { return };
    let composer = r#"{"name":"x/app","require":{"x/mylib":"*"},"repositories":[
        {"type":"path","url":"libs/mylib","options":{"symlink":false}},{"packagist.org":false}]}"#;
    let library = r#"{"name":"x/mylib","version":"1.0.0","autoload":{"files":["mylib.php"]}}"#;
    let mut lock = None;
    for value in ["old", "new"] {
        let module = format!("<?php function value() {{ return '{value}'; }}\n");
        real.source(&[
            ("composer.json", composer),
            ("libs/mylib/composer.json", library),
            ("libs/mylib/mylib.php", &module),
            ("index.php", "<?php require 'vendor/autoload.php'; echo value();\n"),
        ]);
        if lock.is_none() {
            real.shell("COMPOSER_ALLOW_SUPERUSER=1 composer update --no-install --quiet");
            lock = Some(fs::read_to_string(real.project.app("composer.lock")).unwrap());
        }
        real.project.write("composer.lock", lock.as_ref().unwrap());
        if real.compile("php").is_none() {
            return;
        }
        assert_eq!(real.shell("php index.php"), value);
    }
}

#[test]
fn cargo_change_of_build_target_installs_the_new_binary() {
    let Some(real) = Real::new(&["cargo"]) else { return };
    let version = real.shell("rustc -vV");
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let manifest = "[package]\nname = \"app\"\nversion = \"1.0.0\"\nedition = \"2021\"\n\n[dependencies]\nlibrary = { path = \"library\" }\n";
    let lock = "version = 3\n\n[[package]]\nname = \"app\"\nversion = \"1.0.0\"\ndependencies = [\n \"library\",\n]\n\n\
                [[package]]\nname = \"library\"\nversion = \"1.0.0\"\n";
    for (value, moved) in [("old", false), ("new", true), ("newer", true), ("last", false)] {
        let main = format!("fn main() {{ println!(\"{value} {{}}\", library::VALUE) }}\n");
        let library = format!("pub const VALUE: &str = {value:?};\n");
        let target = format!("[build]\ntarget = \"{host}\"\n");
        let mut files = vec![
            ("Cargo.toml", manifest),
            ("Cargo.lock", lock),
            ("src/main.rs", main.as_str()),
            ("library/Cargo.toml", "[package]\nname = \"library\"\nversion = \"1.0.0\"\nedition = \"2021\"\n"),
            ("library/src/lib.rs", library.as_str()),
        ];
        if moved {
            files.push((".cargo/config.toml", &target));
        }
        real.source(&files);
        if real.compile("rust").is_none() {
            return;
        }
        assert_eq!(real.shell("bin/app"), format!("{value} {value}"));
    }
}
