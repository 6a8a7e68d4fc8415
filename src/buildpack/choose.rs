//! Which buildpacks there are, and how a recipe names one.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// Its directory below `buildpacks/`, and the name that recipes use.
    pub name: &'static str,
    /// What it is for, one line.
    pub about: &'static str,
    /// Files of which a project has at least one where its `bin/detect` says yes; without any, nobody needs to ask the script.
    pub signs: &'static [&'static str],
}

/// Ours, in the order in which they are asked. A language that often brings a `package.json` for its assets stands before
/// `node`; what nearly every project has stands last.
pub const REGISTRY: &[Registered] = &[
    Registered { name: "ruby", about: "Gemfile: gems by bundler, assets of Rails", signs: &["Gemfile"] },
    Registered {
        name: "python",
        about: "requirements.txt, uv.lock, poetry.lock, Pipfile, pyproject.toml: packages in .venv",
        signs: &[
            "requirements.txt",
            "uv.lock",
            "poetry.lock",
            "Pipfile",
            "Pipfile.lock",
            "pyproject.toml",
            "setup.py",
            "manage.py",
        ],
    },
    Registered {
        name: "php",
        about: "composer.json or index.php: packages by composer, PHP's own server",
        signs: &["composer.json", "index.php", "public/index.php"],
    },
    Registered {
        name: "java",
        about: "pom.xml or build.gradle: Maven or Gradle, by the project's wrapper",
        signs: &["pom.xml", "build.gradle", "build.gradle.kts", "settings.gradle", "settings.gradle.kts"],
    },
    Registered { name: "go", about: "go.mod: main packages of the root and of cmd/ in bin/", signs: &["go.mod"] },
    Registered { name: "rust", about: "Cargo.toml: release binaries in bin/", signs: &["Cargo.toml"] },
    Registered {
        name: "node",
        about: "package.json: packages by npm, pnpm or yarn, and the script build",
        signs: &["package.json"],
    },
    Registered {
        name: "static",
        about: "index.html, static.json, or a package.json that only builds: files served by larder",
        signs: &["static.json", "index.html", "public/index.html", "package.json"],
    },
    Registered { name: "procfile", about: "only a Procfile: run as it is", signs: &["Procfile"] },
];

/// A buildpack as a recipe names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuildpackRef {
    /// One of ours or of the operator's, by name.
    Named(String),
    /// From a git repository.
    Git {
        /// Where.
        url: String,
        /// A full commit id; or a tag or branch, which is looked up at every build; or nothing, for the repository's default.
        reference: Option<String>,
    },
    /// A directory of the project itself, relative to its root.
    Directory(String),
}

impl BuildpackRef {
    /// How people recognise it.
    pub fn label(&self) -> String {
        match self {
            BuildpackRef::Named(name) => name.clone(),
            BuildpackRef::Directory(path) => format!("./{path}"),
            BuildpackRef::Git { url, reference: None } => url.clone(),
            BuildpackRef::Git { url, reference: Some(reference) } => format!("{url}#{reference}"),
        }
    }
}

impl FromStr for BuildpackRef {
    type Err = String;

    /// `node`, `heroku/nodejs`, `https://example.com/pack.git#v12`, `./tools/pack`.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() || text.len() > 1000 || text.chars().any(char::is_control) {
            return Err(format!("{:?} names no buildpack", text.chars().take(80).collect::<String>()));
        }
        if let Some(path) = text.strip_prefix("./") {
            let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
            return match path.trim_end_matches('/').split('/').all(plain) {
                true => Ok(BuildpackRef::Directory(path.trim_end_matches('/').to_owned())),
                false => Err(format!("{text:?} leaves the project; a directory is named as ./DIRECTORY")),
            };
        }
        if text.contains("://") || (text.contains('@') && text.contains(':')) {
            let (url, reference) = match text.split_once('#') {
                Some((url, reference)) if !reference.is_empty() => (url, Some(reference.to_owned())),
                Some((url, _)) => (url, None),
                None => (text, None),
            };
            if url.starts_with('-') || reference.as_deref().is_some_and(|name| !is_reference(name)) {
                return Err(format!("{text:?} is not URL#COMMIT"));
            }
            return Ok(BuildpackRef::Git { url: url.to_owned(), reference });
        }
        // Heroku's names of its official buildpacks.
        let name = match text {
            "heroku/nodejs" => "node",
            "heroku/gradle" | "heroku/jvm" => "java",
            "heroku-community/static" => "static",
            other => other.strip_prefix("heroku/").unwrap_or(other),
        };
        if is_name(name) {
            Ok(BuildpackRef::Named(name.to_owned()))
        } else {
            let names: Vec<&str> = REGISTRY.iter().map(|one| one.name).collect();
            Err(format!("{text:?} names no buildpack: one of {}, or URL#COMMIT, or ./DIRECTORY", names.join(", ")))
        }
    }
}

/// Whether this can be the name of a directory of a buildpack.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_')
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name != "lib"
}

/// Whether this can be the name of a commit, tag or branch; stricter than git.
pub(super) fn is_reference(name: &str) -> bool {
    !name.starts_with('-')
        && name.len() <= 200
        && !name.contains("..")
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-' | b'/' | b'+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spellings_of_recipes() {
        let git = |url: &str, reference: Option<&str>| BuildpackRef::Git {
            url: url.to_owned(),
            reference: reference.map(str::to_owned),
        };
        let named = |name: &str| BuildpackRef::Named(name.to_owned());
        assert_eq!("node".parse(), Ok(named("node")));
        assert_eq!("heroku/nodejs".parse(), Ok(named("node")));
        assert_eq!("heroku/python".parse(), Ok(named("python")));
        assert_eq!("https://h/p.git#abc".parse(), Ok(git("https://h/p.git", Some("abc"))));
        assert_eq!("https://h/p.git".parse(), Ok(git("https://h/p.git", None)));
        assert_eq!("git@h:p.git#v1".parse(), Ok(git("git@h:p.git", Some("v1"))));
        assert_eq!("./tools/pack/".parse(), Ok(BuildpackRef::Directory("tools/pack".into())));
        for bad in
            ["", "./..", "./a/../../b", "../x", "a b", "lib", "https://h/p#--upload-pack=x", "-x://y", "x\ny", "Node", "/etc"]
        {
            assert!(bad.parse::<BuildpackRef>().is_err(), "{bad:?}");
        }
    }
}
