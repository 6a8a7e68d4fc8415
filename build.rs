//! The build script, which embeds the files of `buildpacks/` in the binary. The script writes the list that `src/buildpack/builtin.rs`
//! includes.

use std::{
    env,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let variable = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .ok_or_else(|| io::Error::other(format!("the environment variable {name} is not set")))
    };
    let folder = variable("CARGO_MANIFEST_DIR")?.join("buildpacks");
    // Cargo watches every file below this directory, including new files.
    println!("cargo:rerun-if-changed=buildpacks");
    let mut files = Vec::new();
    collect(&folder, &folder, &mut files)?;
    files.sort();
    let mut list = String::from("&[\n");
    for path in &files {
        // All files below bin/ are programs. The mode of a source file is not used, because a copy of the repository may have lost the
        // modes.
        let executable = path.contains("/bin/");
        let source = folder.join(path);
        let line = writeln!(list, "BuiltinFile {{ path: {path:?}, text: include_str!({source:?}), executable: {executable} }},");
        line.map_err(io::Error::other)?;
    }
    list.push(']');
    fs::write(variable("OUT_DIR")?.join("buildpacks.rs"), list)
}

/// Adds the paths of all files below `directory` to `files`, relative to `folder`.
fn collect(folder: &Path, directory: &Path, files: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(folder, &path, files)?;
        } else if let Some(path) = path.strip_prefix(folder).ok().and_then(Path::to_str) {
            files.push(path.to_owned());
        }
    }
    Ok(())
}
