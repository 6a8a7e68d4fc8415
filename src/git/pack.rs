//! Exports and imports commits as packs, with git's own programs. This code runs in a git worker.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use git2::Oid;

use super::{
    job::{GitAnswer, GitFailure, GitReport},
    libgit,
    program::{self, GitSettings},
};
use crate::model::{CommitId, sanitise_reason};

/// The maximum number of `haves` that [`export`] uses. Further `haves` are ignored.
const MAX_HAVES: usize = 64;

fn git(path: &Path, words: &[&str]) -> Result<Command, GitFailure> {
    let git = program::find().ok_or(GitFailure::NoGit)?;
    let settings =
        GitSettings::new().config("pack.threads", "1").config("pack.windowMemory", "64m").config("core.bigFileThreshold", "64m");
    let mut command = settings.command(&git);
    command.arg("--git-dir").arg(path).args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Ok(command)
}

fn failed(doing: &str, why: impl std::fmt::Display) -> GitFailure {
    GitFailure::Failed { doing: doing.to_owned(), why: sanitise_reason(&why.to_string()) }
}

/// Runs a command and waits until it exits. Writes `input` to its standard input.
fn run(mut command: Command, input: Option<&str>, doing: &str) -> Result<(), GitFailure> {
    let mut child = command.spawn().map_err(|error| failed(doing, error))?;
    if let Some((input, mut stdin)) = input.zip(child.stdin.take()) {
        // A command that exits before it has read its input reports the reason on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(doing, error))?;
    if output.status.success() { Ok(()) } else { Err(failed(doing, String::from_utf8_lossy(&output.stderr).trim())) }
}

/// Writes a pack to the standard output. The pack contains all objects reachable from `want`, except the objects reachable from `haves`,
/// which are commits that the receiver has.
pub fn export(path: &Path, want: &CommitId, haves: &[CommitId]) -> GitReport {
    let doing = format!("pack {}", want.short());
    let repository = libgit::open(path).map_err(|error| failed(&doing, error.message()))?;
    let is_here = |commit: &CommitId| Oid::from_str(commit.as_str()).is_ok_and(|id| repository.find_commit(id).is_ok());
    if !is_here(want) {
        return Err(GitFailure::NotFound(format!("commit {}", want.short())));
    }
    // git fails on the id of a missing object, so commits that the repository does not have are left out.
    let known = haves.iter().take(MAX_HAVES).filter(|have| is_here(have)).map(|have| format!("^{have}\n"));
    let list: String = known.chain([format!("{want}\n")]).collect();
    let mut command = git(path, &["pack-objects", "--revs", "--thin", "--stdout", "--delta-base-offset", "-q"])?;
    command.stdin(Stdio::piped()).stdout(Stdio::inherit());
    run(command, Some(&list), &doing)?;
    Ok(GitAnswer::Done)
}

/// Imports a pack of at most `bytes` bytes from the standard input, and checks that all objects reachable from `want` are in the
/// repository.
pub fn import(path: &Path, want: &CommitId, bytes: u64) -> GitReport {
    let doing = format!("import {}", want.short());
    let limit = format!("--max-input-size={bytes}");
    let mut command = git(path, &["index-pack", "--stdin", "--fix-thin", "--strict", &limit])?;
    command.stdin(Stdio::inherit());
    run(command, None, &doing)?;
    complete(path, want)?;
    Ok(GitAnswer::Done)
}

/// Checks that all objects reachable from a commit are in the repository, as `git fetch` does.
fn complete(path: &Path, want: &CommitId) -> Result<(), GitFailure> {
    let doing = format!("find all objects reachable from {} in the pack", want.short());
    run(git(path, &["rev-list", "--objects", "--quiet", want.as_str(), "--not", "--all", "--"])?, None, &doing)
}

#[cfg(test)]
mod tests {
    use super::{super::testing::World, *};

    /// Returns the pack that [`export`] would write. A test cannot capture the standard output that `export` writes to.
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
        run(command, None, "import a pack")?;
        complete(&to.repository(), want)
    }

    #[test]
    fn thin_pack_is_imported_completely_or_rejected() {
        let (here, there) = (World::new(), World::new());
        let first = here.commit(&[("a", false, &[b'x'; 5000])]);
        here.git(&["update-ref", "refs/heads/main", first.as_str()], b"");
        take(&there, &pack(&here, &format!("{first}\n")), &first, 1 << 20).unwrap();
        there.git(&["update-ref", "refs/heads/main", first.as_str()], b"");
        let second = here.commit(&[("a", false, &[b'x'; 5000]), ("b", true, b"new")]);
        let thin = pack(&here, &format!("^{first}\n{second}\n"));
        take(&there, &thin, &second, 1 << 20).unwrap();
        assert_eq!(there.git(&["cat-file", "-t", second.as_str()], b""), "commit");
        // A pack that is truncated, too large or incomplete is rejected with the reason.
        let third = here.commit(&[("c", false, b"third")]);
        let whole = pack(&here, &format!("{third}\n"));
        assert!(take(&there, &whole[..whole.len() - 9], &third, 1 << 20).is_err());
        assert!(take(&there, &whole, &third, 10).unwrap_err().to_string().contains("import"));
        let tree = here.git(&["rev-parse", &format!("{third}^{{tree}}")], b"");
        let commit_only = here.git(&["cat-file", "commit", third.as_str()], b"");
        assert!(commit_only.contains(&tree));
        assert!(complete(&there.repository(), &third).is_err());
    }

    #[test]
    fn export_of_missing_commit_is_not_found() {
        let here = World::new();
        let nowhere: CommitId = "00000000000000000000000000000000000000ab".parse().unwrap();
        assert!(matches!(export(&here.repository(), &nowhere, &[]), Err(GitFailure::NotFound(_))));
    }
}
