//! Persistent paths: `/app/<path>` becomes a link to `/data/<path>`, so that what is written there outlives the release.
//!
//! It runs as the environment's run user inside the sandbox, so a link that the project or the application planted leads nowhere
//! that the application could not go by itself.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// Links each of `paths`. The first time, what the release brings at a path becomes the beginning of its data. Safe to repeat.
pub fn link(app: &Path, data: &Path, paths: &[String]) -> io::Result<()> {
    for path in paths {
        one(&app.join(path), &data.join(path)).map_err(|error| io::Error::other(format!("linking {path} to data: {error}")))?;
    }
    Ok(())
}

fn one(here: &Path, there: &Path) -> io::Result<()> {
    let brought = fs::symlink_metadata(here).ok();
    if fs::symlink_metadata(there).is_err() {
        begin(here, there, brought.as_ref())?;
    }
    match brought {
        Some(found) if found.is_symlink() && fs::read_link(here)? == there => return Ok(()),
        Some(found) if found.is_dir() => fs::remove_dir_all(here)?,
        Some(_) => fs::remove_file(here)?,
        None => fs::create_dir_all(here.parent().unwrap_or(here))?,
    }
    symlink(there, here)
}

/// Makes the data complete under another name and renames it, so that a worker that is killed here leaves no half copy.
fn begin(here: &Path, there: &Path, brought: Option<&fs::Metadata>) -> io::Result<()> {
    let parent = there.parent().unwrap_or(there);
    fs::create_dir_all(parent)?;
    let half = half_name(there);
    let _ = fs::remove_dir_all(&half).or_else(|_| fs::remove_file(&half));
    match brought {
        Some(found) if found.is_dir() => {
            let options = fs_extra::dir::CopyOptions::new().copy_inside(true);
            fs_extra::dir::copy(here, &half, &options).map_err(io::Error::other)?;
        }
        Some(found) if found.is_file() => drop(fs::copy(here, &half)?),
        _ => fs::create_dir(&half)?,
    }
    fs::rename(&half, there)
}

fn half_name(there: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".larder-new-");
    name.push(there.file_name().unwrap_or_default());
    there.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_begins_with_what_the_release_brings_and_then_stays() {
        let world = tempfile::tempdir().unwrap();
        let (app, data) = (world.path().join("app"), world.path().join("data"));
        fs::create_dir_all(app.join("uploads/deep")).unwrap();
        fs::write(app.join("uploads/deep/a.txt"), "brought").unwrap();
        fs::create_dir(&data).unwrap();
        let paths = [String::from("uploads"), String::from("var/cache")];
        for _ in 0..2 {
            link(&app, &data, &paths).unwrap();
            assert_eq!(fs::read_link(app.join("uploads")).unwrap(), data.join("uploads"));
            assert_eq!(fs::read_to_string(app.join("uploads/deep/a.txt")).unwrap(), "brought");
            assert!(app.join("var/cache").is_dir());
        }
        fs::write(data.join("uploads/deep/a.txt"), "changed by users").unwrap();
        let next = world.path().join("next");
        fs::create_dir_all(next.join("uploads/deep")).unwrap();
        fs::write(next.join("uploads/deep/a.txt"), "brought again").unwrap();
        link(&next, &data, &paths).unwrap();
        assert_eq!(fs::read_to_string(next.join("uploads/deep/a.txt")).unwrap(), "changed by users");
    }
}
