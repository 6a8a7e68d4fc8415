//! Worker side: commits that travel between servers, as packs of git's own programs.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use git2::Oid;

use super::{
    job::{GitAnswer, GitFailure, GitReport},
    program::{self, Settings},
    refs,
};
use crate::model::{CommitId, sanitise_reason};

/// Commits of the receiver that are looked at.
const HAVES: usize = 64;

fn git(path: &Path, words: &[&str]) -> Result<Command, GitFailure> {
    let git = program::find().ok_or(GitFailure::NoGit)?;
    let settings =
        Settings::new().config("pack.threads", "1").config("pack.windowMemory", "64m").config("core.bigFileThreshold", "64m");
    let mut command = settings.command(&git);
    command.arg("--git-dir").arg(path).args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Ok(command)
}

fn failed(doing: &str, why: impl std::fmt::Display) -> GitFailure {
    GitFailure::Failed { doing: doing.to_owned(), why: sanitise_reason(&why.to_string()) }
}

/// Runs it to its end, with `input` if there is any.
fn run(mut command: Command, input: Option<&str>, doing: &str) -> Result<(), GitFailure> {
    let mut child = command.spawn().map_err(|error| failed(doing, error))?;
    if let Some((input, mut stdin)) = input.zip(child.stdin.take()) {
        // One that ends before it has read everything says why by itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(doing, error))?;
    if output.status.success() { Ok(()) } else { Err(failed(doing, String::from_utf8_lossy(&output.stderr).trim())) }
}

/// Writes the pack to the standard output.
pub fn export(path: &Path, want: &CommitId, haves: &[CommitId]) -> GitReport {
    let doing = format!("pack {}", want.short());
    let repository = refs::open(path).map_err(|error| failed(&doing, error.message()))?;
    let is_here = |commit: &CommitId| Oid::from_str(commit.as_str()).is_ok_and(|id| repository.find_commit(id).is_ok());
    if !is_here(want) {
        return Err(GitFailure::NotFound(want.to_string()));
    }
    // Names of objects that are not here would make git give up.
    let known = haves.iter().take(HAVES).filter(|have| is_here(have)).map(|have| format!("^{have}\n"));
    let list: String = known.chain([format!("{want}\n")]).collect();
    let mut command = git(path, &["pack-objects", "--revs", "--thin", "--stdout", "--delta-base-offset", "-q"])?;
    command.stdin(Stdio::piped()).stdout(Stdio::inherit());
    run(command, Some(&list), &doing)?;
    Ok(GitAnswer::Done)
}

/// Takes in the pack on the standard input.
pub fn import(path: &Path, want: &CommitId, bytes: u64) -> GitReport {
    let doing = format!("take in {}", want.short());
    let limit = format!("--max-input-size={bytes}");
    let mut command = git(path, &["index-pack", "--stdin", "--fix-thin", "--strict", &limit])?;
    command.stdin(Stdio::inherit());
    run(command, None, &doing)?;
    complete(path, want)?;
    Ok(GitAnswer::Done)
}

/// Whether everything that a commit leads to is there, as `git fetch` makes sure of it.
fn complete(path: &Path, want: &CommitId) -> Result<(), GitFailure> {
    let doing = format!("find all of {} in the pack", want.short());
    run(git(path, &["rev-list", "--objects", "--quiet", want.as_str(), "--not", "--all", "--"])?, None, &doing)
}

#[cfg(test)]
mod tests {
    use super::{super::testing::World, *};

    /// The pack that [`export`] writes to the standard output, which is not a test's to write to.
    fn pack(from: &World, list: &str) -> Vec<u8> {
        let output = super::super::testing::git(
            &from.repository(),
            &["pack-objects", "--revs", "--thin", "--stdout", "--delta-base-offset", "-q"],
            list.as_bytes(),
        );
        assert!(output.status.success());
        output.stdout
    }

    fn take(to: &World, bytes: &[u8], want: &CommitId, limit: u64) -> Result<(), GitFailure> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let limit = format!("--max-input-size={limit}");
        let mut command = git(&to.repository(), &["index-pack", "--stdin", "--fix-thin", "--strict", &limit])?;
        command.stdin(file);
        run(command, None, "take in a pack")?;
        complete(&to.repository(), want)
    }

    #[test]
    fn a_commit_travels_and_what_is_there_does_not() {
        let (here, there) = (World::new(), World::new());
        let first = here.commit(&[("a", false, &[b'x'; 5000])]);
        here.git(&["update-ref", "refs/heads/main", first.as_str()], b"");
        take(&there, &pack(&here, &format!("{first}\n")), &first, 1 << 20).unwrap();
        there.git(&["update-ref", "refs/heads/main", first.as_str()], b"");
        let second = here.commit(&[("a", false, &[b'x'; 5000]), ("b", true, b"new")]);
        let thin = pack(&here, &format!("^{first}\n{second}\n"));
        take(&there, &thin, &second, 1 << 20).unwrap();
        assert_eq!(there.git(&["cat-file", "-t", second.as_str()], b""), "commit");
        // A pack that is cut, too large, or lacks something is refused in words.
        let third = here.commit(&[("c", false, b"third")]);
        let whole = pack(&here, &format!("{third}\n"));
        assert!(take(&there, &whole[..whole.len() - 9], &third, 1 << 20).is_err());
        assert!(take(&there, &whole, &third, 10).unwrap_err().to_string().contains("take in"));
        let tree = here.git(&["rev-parse", &format!("{third}^{{tree}}")], b"");
        let commit_only = here.git(&["cat-file", "commit", third.as_str()], b"");
        assert!(commit_only.contains(&tree));
        assert!(complete(&there.repository(), &third).is_err());
    }

    #[test]
    fn a_commit_that_is_not_here_is_not_promised() {
        let here = World::new();
        let nowhere: CommitId = "00000000000000000000000000000000000000ab".parse().unwrap();
        assert!(matches!(export(&here.repository(), &nowhere, &[]), Err(GitFailure::NotFound(_))));
    }
}
