//! Our buildpacks, carried in the binary and written out where workers see them.

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// A file below `buildpacks/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Embedded {
    /// Relative to `buildpacks/`.
    pub path: &'static str,
    /// What is in it.
    pub text: &'static str,
    /// Whether it is a program.
    pub executable: bool,
}

macro_rules! file {
    ($path:literal, $executable:literal) => {
        Embedded { path: $path, text: include_str!(concat!("../../buildpacks/", $path)), executable: $executable }
    };
}

/// All of them, sorted by path.
pub const FILES: &[Embedded] = &[
    file!("go/bin/compile", true),
    file!("go/bin/detect", true),
    file!("go/bin/release", true),
    file!("java/bin/compile", true),
    file!("java/bin/detect", true),
    file!("java/bin/release", true),
    file!("lib/common.sh", false),
    file!("lib/look.sh", false),
    file!("lib/node.sh", false),
    file!("lib/router.php", false),
    file!("node/bin/compile", true),
    file!("node/bin/detect", true),
    file!("node/bin/release", true),
    file!("php/bin/compile", true),
    file!("php/bin/detect", true),
    file!("php/bin/release", true),
    file!("procfile/bin/compile", true),
    file!("procfile/bin/detect", true),
    file!("procfile/bin/release", true),
    file!("python/bin/compile", true),
    file!("python/bin/detect", true),
    file!("python/bin/release", true),
    file!("ruby/bin/compile", true),
    file!("ruby/bin/detect", true),
    file!("ruby/bin/release", true),
    file!("rust/bin/compile", true),
    file!("rust/bin/detect", true),
    file!("rust/bin/release", true),
    file!("static/bin/compile", true),
    file!("static/bin/detect", true),
    file!("static/bin/release", true),
];

/// Writes all files below `to`, readable by everybody and writable by the owner alone. Each is renamed into place whole, and one
/// that is right already is left alone, so that builds may run meanwhile.
pub fn install(to: &Path) -> io::Result<()> {
    for file in FILES {
        let path = to.join(file.path);
        let mode = if file.executable { 0o755 } else { 0o644 };
        if is_right(&path, file.text, mode) {
            continue;
        }
        let parent = path.parent().unwrap_or(to);
        fs::create_dir_all(parent)?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let temporary = parent.join(format!(".{name}.{}", std::process::id()));
        drop(fs::remove_file(&temporary));
        let mut written = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        io::Write::write_all(&mut written, file.text.as_bytes())?;
        // Whatever the umask said.
        fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
        // A program that is open for writing cannot be run.
        drop(written);
        fs::rename(&temporary, &path)?;
    }
    Ok(())
}

fn is_right(path: &Path, text: &str, mode: u32) -> bool {
    let Ok(found) = fs::symlink_metadata(path) else { return false };
    found.is_file() && found.permissions().mode() & 0o7777 == mode && fs::read(path).is_ok_and(|bytes| bytes == text.as_bytes())
}

#[cfg(test)]
#[path = "contract_tests.rs"]
mod tests;
