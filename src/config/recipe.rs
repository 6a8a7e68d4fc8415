//! The recipe: `larder.yml` of a repository, in which a project describes its own deployment. Every key is optional.
//!
//! [`Recipe::parse`] checks the whole file, and a [`Recipe`] contains the YAML tree of the file. The settings of an environment are merged
//! from two levels of the tree: the top level of the file and the environment's entry in `environments`. Each merge reads both levels
//! again, with the table [`super::settings::KEYS`].

use super::{
    error::ConfigError,
    keys::{self, KeyRow, Mapping},
    reader::ConfigReader,
    settings::{Draft, ENVIRONMENTS, KEYS, Settings},
    yaml::{self, FileLimits, Node},
};
use crate::model::EnvironmentName;

/// The name of the file, for errors.
const FILE: &str = "larder.yml";

/// A recipe that was parsed without problems.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recipe {
    root: Node,
}

impl Recipe {
    /// Parses a recipe. The first 20 problems of the file are reported together.
    pub fn parse(bytes: &[u8]) -> Result<Recipe, Vec<ConfigError>> {
        let root = yaml::parse_tree(FILE, bytes, FileLimits::RECIPE).map_err(|error| vec![error])?;
        let mut reader = ConfigReader::new(FILE);
        read_level(&mut reader, &root, None, &mut Draft::new(Settings::default()));
        if let Some(node) = root.child(ENVIRONMENTS) {
            for (name, key, node) in reader.pairs(node, ENVIRONMENTS, "a mapping, such as {staging: {scale: {web: 1}}}") {
                if let Err(error) = name.parse::<EnvironmentName>() {
                    reader.problem(key, error.to_string());
                    continue;
                }
                read_level(&mut reader, node, Some(name), &mut Draft::new(Settings::default()));
            }
        }
        reader.finish(Recipe { root })
    }

    /// Returns the settings of an environment from the recipe and the defaults alone, without the other files of the project.
    pub fn for_environment(&self, environment: &EnvironmentName) -> Settings {
        self.apply(environment, Settings::default())
    }

    /// Merges the recipe over settings from other files.
    pub(super) fn apply(&self, environment: &EnvironmentName, settings: Settings) -> Settings {
        // This reader finds no new problems: `parse` has already read the same tree and reported every problem.
        let mut reader = ConfigReader::new(FILE);
        let mut draft = Draft::new(settings);
        read_level(&mut reader, &self.root, None, &mut draft);
        if let Some(node) = self.root.child(ENVIRONMENTS).and_then(|node| node.child(environment.as_str())) {
            read_level(&mut reader, node, Some(environment.as_str()), &mut draft);
        }
        draft.finish()
    }
}

/// Reads one level into `draft`: the top level of the file, or the entry of `environment`.
fn read_level(reader: &mut ConfigReader, node: &Node, environment: Option<&str>, draft: &mut Draft) {
    let name = environment.map_or_else(|| "the file".to_owned(), |name| format!("{ENVIRONMENTS}.{name}"));
    let mapping = Mapping { name: &name, prefix: "", example: "{env: {KEY: value}}" };
    // The last row of the table is `environments`, which is not allowed inside an environment.
    let keys: &[KeyRow<Draft>] = match KEYS {
        [keys @ .., _] if environment.is_some() => keys,
        keys => keys,
    };
    keys::read(reader, node, &mapping, keys, draft);
    report_double_keys(reader, node);
}

/// Reports each setting that has two names if a level uses both names.
fn report_double_keys(reader: &mut ConfigReader, level: &Node) {
    let mut both = |node: &Node, first: &str, second: &str| {
        reader.problem(node, format!("both {first} and {second} are given")).hint = Some("keep one of them".to_owned());
    };
    if let (Some(node), Some(_)) = (level.child("buildpack"), level.child("buildpacks")) {
        both(node, "buildpack", "buildpacks");
    }
    if let (Some(node), Some(_)) =
        (level.child("release"), level.child("upgrade").filter(|node| node.text().is_some() || node.child("run").is_some()))
    {
        both(node, "release", "upgrade");
    }
    let timeout = |section: &str, key: &str| level.child(section).and_then(|node| node.child(key));
    if let (Some(node), Some(_)) = (timeout("build", "timeout"), timeout("timeouts", "build")) {
        both(node, "build.timeout", "timeouts.build");
    }
    for (key, node) in level.child("scale").into_iter().flat_map(Node::children) {
        let process = level.child("processes").and_then(|processes| processes.child(key));
        if process.and_then(|process| process.child("scale")).is_some() {
            both(node, &format!("scale.{key}"), &format!("processes.{key}.scale"));
        }
    }
}
