//! The built-in buildpacks: files of `buildpacks/`, embedded in the binary. The keeper writes these files to a directory that
//! build workers can read.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::config::yaml::{self, FileLimits};

/// A file below `buildpacks/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltinFile {
    /// The path relative to `buildpacks/`.
    pub path: &'static str,
    /// The file's content.
    pub text: &'static str,
    /// True if the file is a program.
    pub executable: bool,
}

/// All files below `buildpacks/`, sorted by path. `build.rs` writes this list.
pub const FILES: &[BuiltinFile] = include!(concat!(env!("OUT_DIR"), "/buildpacks.rs"));

/// A built-in buildpack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BuiltinPack {
    /// The name of the buildpack's directory. Recipes use this name.
    pub name: &'static str,
    /// The files that `bin/detect` looks for. If a project has none of these files, and the recipe does not name the buildpack, the script
    /// is not started.
    pub signs: Vec<String>,
}

/// A buildpack's `pack.yml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PackFile {
    order: u32,
    signs: Vec<String>,
}

/// The built-in buildpacks, in the order of detection. Buildpacks of languages whose projects often have a `package.json` for assets come
/// before `node`. Buildpacks that look for a file of most projects, such as a Procfile, come last.
pub(super) static PACKS: LazyLock<Vec<BuiltinPack>> = LazyLock::new(|| {
    let mut packs: Vec<(u32, BuiltinPack)> = FILES
        .iter()
        .filter_map(|file| {
            let name = file.path.strip_suffix("/pack.yml")?;
            // A test parses every `pack.yml`, so no released binary contains an invalid file.
            let pack: PackFile = yaml::parse(file.path, file.text.as_bytes(), FileLimits::RECIPE).ok()?;
            Some((pack.order, BuiltinPack { name, signs: pack.signs }))
        })
        .collect();
    packs.sort_by_key(|(order, pack)| (*order, pack.name));
    packs.into_iter().map(|(_, pack)| pack).collect()
});

/// Returns true if a directory of a buildpack can have this name.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_')
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name != "lib"
}

#[cfg(test)]
#[path = "contract_tests.rs"]
mod tests;
