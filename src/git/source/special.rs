//! What the pipeline wants to know of a commit before it builds: the recipe's files, the project's scripts, and things that will
//! not work as the pusher may think.

use git2::{Oid, Repository};

use super::{
    RecipeFiles, Refusal, Source, SourceJob, Stop, failed,
    walk::{Kind, Planned},
};
use crate::model::sanitise_reason;

/// What a Git LFS pointer begins with.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/v1";
/// The size of LFS pointers, in bytes.
const LFS_SIZES: std::ops::Range<u64> = 100..1024;
/// How many files are looked into for LFS pointers, and how many are named.
const LFS_LOOKS: usize = 2000;
const LFS_NAMED: usize = 3;
/// How many scripts may be in `.larder/`.
const SCRIPTS: usize = 64;
/// How many names of the root are reported.
const ROOT: usize = 1000;

/// Describes a checked commit.
pub fn describe(repository: &Repository, tree: Oid, plan: &[Planned], job: &SourceJob) -> Result<Source, Stop> {
    let mut warnings = Vec::new();
    let files = RecipeFiles {
        larder_yml: recipe(repository, plan, "larder.yml")?,
        procfile: recipe(repository, plan, "Procfile")?,
        app_json: recipe(repository, plan, "app.json")?,
        buildpacks: recipe(repository, plan, ".buildpacks")?,
    };
    let scripts = scripts(plan, &mut warnings);
    large_files(repository, plan, &mut warnings)?;
    let root = plan.iter().filter(|entry| !entry.path.contains('/')).take(ROOT);
    let root = root.map(|entry| match entry.kind {
        Kind::Dir => format!("{}/", entry.path),
        _ => entry.path.clone(),
    });
    let sizes = plan.iter().map(|entry| match entry.kind {
        Kind::File { size, .. } => size,
        _ => 0,
    });
    Ok(Source {
        commit: job.commit.clone(),
        tree: tree.to_string().parse().map_err(failed("name the tree of a commit"))?,
        files,
        scripts,
        root: root.collect(),
        entries: plan.len() as u64,
        bytes: sizes.sum(),
        changed: None,
        tags: Vec::new(),
        warnings,
    })
}

fn find<'p>(plan: &'p [Planned], path: &str) -> Option<&'p Planned> {
    plan.binary_search_by(|entry| entry.path.as_str().cmp(path)).ok().and_then(|at| plan.get(at))
}

fn read(repository: &Repository, oid: Oid, path: &str) -> Result<Vec<u8>, Stop> {
    let blob = repository.find_blob(oid).map_err(|error| failed(format!("read {path} of the commit"))(error.message()))?;
    Ok(blob.content().to_vec())
}

fn recipe(repository: &Repository, plan: &[Planned], name: &str) -> Result<Option<Vec<u8>>, Stop> {
    let refuse = |reason: String, hint: &str| Refusal { path: Some(name.to_owned()), reason, hint: hint.to_owned() };
    match find(plan, name).map(|entry| &entry.kind) {
        None => Ok(None),
        Some(Kind::File { size, .. }) if *size > RecipeFiles::LIMIT => {
            Err(refuse(format!("has {size} bytes; at most {} are read", RecipeFiles::LIMIT), "shorten it").into())
        }
        Some(Kind::File { oid, .. }) => read(repository, *oid, name).map(Some),
        Some(Kind::Dir | Kind::Link { .. }) => {
            Err(refuse(String::from("is not a regular file"), "commit the file itself, not a link or a directory").into())
        }
    }
}

fn scripts(plan: &[Planned], warnings: &mut Vec<String>) -> Vec<String> {
    let mut scripts = Vec::new();
    for entry in plan {
        let Some(name) = entry.path.strip_prefix(".larder/").filter(|name| !name.contains('/')) else { continue };
        match entry.kind {
            Kind::File { executable: true, .. } if scripts.len() < SCRIPTS => scripts.push(name.to_owned()),
            Kind::File { executable: false, .. } if name.parse::<crate::model::Phase>().is_ok() => warnings.push(format!(
                ".larder/{name} is not executable and will not run; if it should: `git update-index --chmod=+x .larder/{name}`"
            )),
            _ => {}
        }
    }
    scripts
}

/// Git LFS keeps only pointers in git. They are deployed as they are, and that has to be said.
fn large_files(repository: &Repository, plan: &[Planned], warnings: &mut Vec<String>) -> Result<(), Stop> {
    let mut uses_lfs = false;
    for entry in plan.iter().filter(|entry| entry.path.rsplit('/').next() == Some(".gitattributes")).take(100) {
        if let Kind::File { oid, size, .. } = entry.kind {
            uses_lfs |= size <= RecipeFiles::LIMIT
                && read(repository, oid, &entry.path)?.windows(b"filter=lfs".len()).any(|window| window == b"filter=lfs");
        }
    }
    if !uses_lfs {
        return Ok(());
    }
    let mut pointers = Vec::new();
    let small = plan.iter().filter_map(|entry| match entry.kind {
        Kind::File { oid, size, .. } if LFS_SIZES.contains(&size) => Some((oid, &entry.path)),
        _ => None,
    });
    for (oid, path) in small.take(LFS_LOOKS) {
        if read(repository, oid, path)?.starts_with(LFS) {
            pointers.push(sanitise_reason(path));
        }
    }
    if !pointers.is_empty() {
        let named = pointers.iter().take(LFS_NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = pointers.len().saturating_sub(LFS_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        warnings.push(format!("{named}{more}: only the Git LFS pointer is in the repository, and that is what is deployed"));
        warnings.push(String::from(
            "larder does not fetch from LFS; to commit the files themselves: `git lfs migrate export --include=\"*\"`",
        ));
    }
    Ok(())
}
