//! The section `forges:` of the server file: the repositories at GitHub, GitLab, Gitea or Forgejo that get the status of deployments. The
//! operator binds a repository to a project, so that no project can use the token for the repository of another project.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use url::Url;

use super::{reader::ConfigReader, yaml::Node};
use crate::model::ProjectName;

/// The maximum length of the URL of a repository, in bytes.
const MAX_URL: usize = 500;
/// An example of one repository.
const EXAMPLE: &str = "{repository: \"https://github.com/owner/shop\", token_file: /etc/larder/github.token}";

/// The repository of a project at a forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForgeConfig {
    /// The project.
    pub project: ProjectName,
    /// The software of the forge.
    pub kind: ForgeKind,
    /// The scheme and the host of the forge, such as `https://github.com`.
    pub server: String,
    /// The path of the repository, such as `owner/shop`.
    pub repository: String,
    /// The file with the token.
    pub token_file: PathBuf,
}

/// The software of a forge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForgeKind {
    /// GitHub, also GitHub Enterprise Server.
    Github,
    /// GitLab.
    Gitlab,
    /// Gitea, or Forgejo, which has the same API.
    Gitea,
}

impl ForgeKind {
    const WORDS: [(&'static str, ForgeKind); 4] = [
        ("github", ForgeKind::Github),
        ("gitlab", ForgeKind::Gitlab),
        ("gitea", ForgeKind::Gitea),
        ("forgejo", ForgeKind::Gitea),
    ];
}

impl ForgeConfig {
    /// Returns the URL of the forge's API, without a slash at its end.
    pub fn api(&self) -> String {
        match self.kind {
            ForgeKind::Github if self.server == "https://github.com" => String::from("https://api.github.com"),
            ForgeKind::Github => format!("{}/api/v3", self.server),
            ForgeKind::Gitlab => format!("{}/api/v4", self.server),
            ForgeKind::Gitea => format!("{}/api/v1", self.server),
        }
    }
}

/// Reads the section.
pub(super) fn read_forges(reader: &mut ConfigReader, node: &Node, key: &str) -> Vec<ForgeConfig> {
    let mut forges = Vec::new();
    for (name, at, node) in reader.pairs(node, key, &format!("a mapping, such as {{shop: {EXAMPLE}}}")) {
        match name.parse::<ProjectName>() {
            Ok(project) => forges.extend(read_forge(reader, node, &format!("{key}.{name}"), project)),
            Err(error) => drop(reader.problem(at, error.to_string())),
        }
    }
    forges
}

fn read_forge(reader: &mut ConfigReader, node: &Node, key: &str, project: ProjectName) -> Option<ForgeConfig> {
    let section = reader.section(node, key, &["repository", "kind", "token_file"], EXAMPLE);
    let (Some(repository), Some(token)) = (section.get("repository"), section.get("token_file")) else {
        reader.mismatch(node, key, &format!("a mapping with `repository` and `token_file`, such as {EXAMPLE}"));
        return None;
    };
    let expected = "the URL of a repository, such as https://github.com/owner/shop";
    let found = reader.value(repository, &format!("{key}.repository"), expected, split);
    let token_file = reader.value(token, &format!("{key}.token_file"), "an absolute path", |text| {
        // The value may be a token by mistake, so the message does not repeat the value.
        let path = PathBuf::from(text);
        if path.is_absolute() { Ok(path) } else { Err(String::from("the value is not an absolute path")) }
    });
    let kind = match section.get("kind") {
        Some(node) => reader.choice(node, &format!("{key}.kind"), &ForgeKind::WORDS),
        None => {
            let usual = match found.as_ref().map(|(server, _)| server.as_str()) {
                Some("https://github.com") => Some(ForgeKind::Github),
                Some("https://gitlab.com") => Some(ForgeKind::Gitlab),
                Some("https://codeberg.org") => Some(ForgeKind::Gitea),
                _ => None,
            };
            if usual.is_none() && found.is_some() {
                reader.problem(node, format!("{key}.kind is missing")).expected =
                    Some(String::from("github, gitlab, gitea or forgejo"));
            }
            usual
        }
    };
    let (server, repository) = found?;
    Some(ForgeConfig { project, kind: kind?, server, repository, token_file: token_file? })
}

/// Splits the URL of a repository into the server and the path of the repository.
fn split(text: &str) -> Result<(String, String), String> {
    // The URL may contain a token by mistake, so no message repeats the URL.
    let url = Url::parse(text).map_err(|_| "the value is not a URL")?;
    let path = url.path().trim_matches('/').trim_end_matches(".git").to_owned();
    let is_name = |c: u8| c.is_ascii_alphanumeric() || b"._-/".contains(&c);
    let is_good = text.len() <= MAX_URL
        && matches!(url.scheme(), "http" | "https")
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
        && path.contains('/')
        && path.bytes().all(is_name)
        && !path.split('/').any(|part| matches!(part, "" | "." | ".."));
    let host = url.host_str().filter(|_| is_good).ok_or("the value is not the URL of a repository")?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    Ok((format!("{}://{host}{port}", url.scheme()), path))
}

/// Returns the lines of the reference.
pub(super) fn example() -> String {
    String::from(
        "shop:\n  repository: https://github.com/owner/shop\n  # github, gitlab, gitea or forgejo. Default: known for github.com, gitlab.com and codeberg.org.\n  \
         kind: github\n  # The file with the token. The file must belong to larder's user and have mode 0600.\n  token_file: /etc/larder/github.token",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_of_a_repository_is_split() {
        let good = |text: &str| split(text).unwrap();
        assert_eq!(good("https://github.com/owner/shop.git"), (String::from("https://github.com"), String::from("owner/shop")));
        assert_eq!(good("http://127.0.0.1:3000/a/b/c/"), (String::from("http://127.0.0.1:3000"), String::from("a/b/c")));
        for bad in [
            "",
            "owner/shop",
            "https://github.com/shop",
            "https://x:secret@github.com/a/b",
            "https://h/a/b?x",
            "https://h/a%2f../b",
            "ssh://h/a/b",
        ] {
            let why = split(bad).unwrap_err();
            assert!(!why.contains("secret"), "{bad}: {why}");
        }
    }
}
