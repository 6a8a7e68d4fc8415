//! The checkout that `larder dev` runs, and the directories that belong to it.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    buildpack::builtin,
    config::ProjectFiles,
    control::{CommandError, ErrorKind},
};

/// A checkout on a developer's machine.
#[derive(Debug, Clone)]
pub(super) struct Checkout {
    /// The directory of the application.
    pub root: PathBuf,
    /// The name of the directory, for `LARDER_PROJECT`.
    pub name: String,
    /// The build cache of this checkout.
    pub cache: PathBuf,
    /// The built-in buildpacks.
    pub buildpacks: PathBuf,
    /// The developer's home directory.
    pub home: PathBuf,
}

impl Checkout {
    /// Finds the checkout of a directory: the directory itself if it has a file of a recipe, or else the work tree of git that contains it. Creates
    /// the cache of the checkout, and unpacks the built-in buildpacks.
    pub fn find(directory: &Path) -> Result<Checkout, CommandError> {
        let directory = directory.canonicalize().map_err(|error| CommandError::internal(&error))?;
        let has_recipe = ProjectFiles::default().by_path().iter().any(|(name, _)| directory.join(name).is_file());
        let tree = directory.ancestors().find(|parent| parent.join(".git").exists());
        let root = match (has_recipe, tree) {
            (true, _) => directory.clone(),
            (false, Some(tree)) => tree.to_owned(),
            (false, None) => directory.clone(),
        };
        let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute()).ok_or_else(|| {
            CommandError::new(ErrorKind::Configuration, "cannot find a directory for the build cache: HOME is not set")
                .hint("set HOME to your home directory")
        })?;
        let caches = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let caches = caches.unwrap_or_else(|| home.join(".cache")).join("larder");
        let name = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_else(|| String::from("app"));
        let number = blake3::hash(root.as_os_str().as_encoded_bytes()).to_hex();
        let number = number.get(..16).unwrap_or_default();
        let cache = caches.join("dev").join(number);
        let failed = |error: io::Error| {
            CommandError::new(ErrorKind::Internal, format!("cannot write the cache in {}: {error}", caches.display()))
        };
        create(&cache).map_err(failed)?;
        let buildpacks = unpack(&caches).map_err(failed)?;
        Ok(Checkout { root, name, cache, buildpacks, home })
    }

    /// Returns the directory of the scripts that every process sources at its start.
    pub fn profile(&self) -> PathBuf {
        self.cache.join("profile.d")
    }

    /// Reads the files of the recipe.
    pub fn files(&self) -> ProjectFiles {
        let mut files = ProjectFiles::default();
        for (name, content) in files.by_path() {
            *content = fs::read(self.root.join(name)).ok();
        }
        files
    }

    /// Returns the commit that is checked out, or an empty text.
    pub fn commit(&self) -> String {
        let found = Command::new("git").arg("-C").arg(&self.root).args(["rev-parse", "--verify", "--quiet", "HEAD"]).output();
        let found = found.ok().filter(|output| output.status.success());
        found.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    }

    /// Returns those of the paths that git tracks. Returns all paths if the checkout is no repository.
    pub fn tracked(&self, paths: impl IntoIterator<Item = String>) -> Vec<String> {
        let paths: Vec<_> = paths.into_iter().collect();
        if paths.is_empty() {
            return paths;
        }
        let mut command = Command::new("git");
        command.arg("-C").arg(&self.root).args(["--literal-pathspecs", "ls-files", "-z", "--"]).args(&paths);
        match command.output() {
            Ok(output) if output.status.success() => {
                let listed = String::from_utf8_lossy(&output.stdout).into_owned();
                listed.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect()
            }
            _ => paths,
        }
    }
}

/// Creates a directory that only the user can read, because builds write variables into files there.
fn create(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Unpacks the built-in buildpacks of this program, and returns their directory. Each content has its own directory, so a newer program does not
/// change the buildpacks of an older program that runs.
fn unpack(caches: &Path) -> io::Result<PathBuf> {
    let mut hasher = blake3::Hasher::new();
    for file in builtin::FILES {
        hasher.update(file.path.as_bytes()).update(&[0, u8::from(file.executable)]).update(file.text.as_bytes()).update(&[0]);
    }
    let name = format!("buildpacks-{}", hasher.finalize().to_hex().get(..16).unwrap_or_default());
    let directory = caches.join(name);
    if directory.is_dir() {
        return Ok(directory);
    }
    let staged = tempfile::Builder::new().prefix(".buildpacks-").tempdir_in(caches)?;
    for file in builtin::FILES {
        let path = staged.path().join(file.path);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(&path, file.text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(if file.executable { 0o755 } else { 0o644 }))?;
    }
    match rustix::fs::rename(staged.path(), &directory) {
        Ok(()) => drop(staged.keep()),
        // Another process has unpacked the same files.
        Err(_) if directory.is_dir() => {}
        Err(error) => return Err(error.into()),
    }
    Ok(directory)
}
