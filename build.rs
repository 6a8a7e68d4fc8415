//! Embeds the files of `buildpacks/` in the binary: writes the list that `src/buildpack/builtin.rs` includes.

use std::{
    env,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let variable =
        |name: &str| env::var_os(name).map(PathBuf::from).ok_or_else(|| io::Error::other(format!("{name} is not set")));
    let folder = variable("CARGO_MANIFEST_DIR")?.join("buildpacks");
    // Cargo watches every file below a directory, new ones included.
    println!("cargo:rerun-if-changed=buildpacks");
    let mut files = Vec::new();
    collect(&folder, &folder, &mut files)?;
    files.sort();
    let mut list = String::from("&[\n");
    for path in &files {
        // Only programs are below bin/. The mode of the file is not used, because a copy of the source may have lost it.
        let executable = path.contains("/bin/");
        let source = folder.join(path);
        let line = writeln!(list, "BuiltinFile {{ path: {path:?}, text: include_str!({source:?}), executable: {executable} }},");
        line.map_err(io::Error::other)?;
    }
    list.push(']');
    fs::write(variable("OUT_DIR")?.join("buildpacks.rs"), list)
}

/// Adds the files below `directory`, as paths relative to `folder`.
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
