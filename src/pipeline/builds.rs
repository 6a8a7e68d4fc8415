//! Build numbers: they rise with every build of a project, over all its environments on this server, and none is given twice.

use std::{collections::BTreeMap, io, path::PathBuf};

use parking_lot::Mutex;

use crate::{host::files, model::ProjectName};

/// The last number of each project. Kept by name and never forgotten: a project that is made anew goes on where the old one ended,
/// so that whoever compares its numbers (a production server) is not misled.
#[derive(Debug)]
pub struct BuildNumbers {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: BTreeMap<ProjectName, u64>,
    /// Whether the file says less.
    unsaved: bool,
}

/// A file above this size is not ours.
const BYTES_MAX: u64 = 4 << 20;

impl BuildNumbers {
    /// Reads the file at `path`; without one, all projects begin with 1 or after what [`BuildNumbers::seen`] says.
    pub fn open(path: PathBuf) -> io::Result<BuildNumbers> {
        let mut last = BTreeMap::new();
        if path.exists() {
            let bytes = files::read_limited(&path, BYTES_MAX).map_err(io::Error::other)?;
            last = serde_json::from_slice(&bytes).map_err(|error| {
                let advice = "remove it, and numbers go on after those of the releases that are there";
                io::Error::other(format!("{} is damaged ({error}); {advice}", path.display()))
            })?;
        }
        Ok(BuildNumbers { path, state: Mutex::new(State { last, unsaved: false }) })
    }

    /// Says that a build with this number is known; those to come get higher ones.
    pub fn seen(&self, project: &ProjectName, number: u64) {
        let mut state = self.state.lock();
        let last = state.last.entry(project.clone()).or_default();
        if *last < number {
            *last = number;
            state.unsaved = true;
        }
    }

    /// The next number of a project. It is not on the disk before [`BuildNumbers::save`] has returned; nothing that lasts may
    /// follow from it until then.
    pub fn draw(&self, project: &ProjectName) -> u64 {
        let mut state = self.state.lock();
        state.unsaved = true;
        let last = state.last.entry(project.clone()).or_default();
        *last = last.saturating_add(1);
        *last
    }

    /// Writes all numbers that were drawn before this was called; when it returns, they survive a power failure.
    pub fn save(&self) -> io::Result<()> {
        // Held meanwhile, so that an older state never replaces a newer one.
        let mut state = self.state.lock();
        if state.unsaved {
            let mut bytes = serde_json::to_vec_pretty(&state.last).map_err(io::Error::other)?;
            bytes.push(b'\n');
            files::write_atomic(&self.path, &bytes, 0o600).map_err(io::Error::other)?;
            state.unsaved = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_and_are_not_given_again_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("builds.json");
        let (shop, blog) = ("shop".parse().unwrap(), "blog".parse().unwrap());
        let numbers = BuildNumbers::open(path.clone()).unwrap();
        assert_eq!([numbers.draw(&shop), numbers.draw(&shop), numbers.draw(&blog)], [1, 2, 1]);
        numbers.save().unwrap();
        let numbers = BuildNumbers::open(path.clone()).unwrap();
        assert_eq!([numbers.draw(&shop), numbers.draw(&blog)], [3, 2]);
        // What is known from elsewhere raises them, and never lowers them.
        numbers.seen(&shop, 40);
        numbers.seen(&shop, 7);
        assert_eq!(numbers.draw(&shop), 41);
        std::fs::write(&path, "{").unwrap();
        assert!(BuildNumbers::open(path).unwrap_err().to_string().contains("builds.json"));
    }
}
