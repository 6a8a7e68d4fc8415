//! Describes a commit for the pipeline: the files of its recipe, the executable files in `.larder/`, and warnings about files that have no
//! effect or are incomplete.

use git2::{Oid, Repository};

use super::{
    job::{CommitSource, ExportStop, RecipeFiles, SourceJob, SourceRefusal, failed},
    walk::{PlannedEntry, PlannedKind},
};
use crate::model::sanitise_reason;

/// The first bytes of a Git LFS pointer.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/v1";
/// The range of sizes of Git LFS pointers, in bytes. The specification of Git LFS requires fewer than 1024 bytes. The version, the digest
/// and the size in a pointer take more than 100 bytes.
const LFS_SIZES: std::ops::Range<u64> = 100..1024;
/// The maximum number of files that are read to find Git LFS pointers.
const MAX_LFS_LOOKS: usize = 2000;
/// The maximum number of Git LFS pointers that the warning names.
const MAX_LFS_NAMED: usize = 3;
/// The maximum number of `.gitattributes` files that are searched for the LFS filter.
const MAX_ATTRIBUTES_FILES: usize = 100;
/// The path of the page that visitors get while the application is stopped for a deployment.
const MAINTENANCE_PAGE: &str = ".larder/maintenance.html";
/// The maximum size of the maintenance page, in bytes. The page is a fact in the journal of each deployment.
const MAX_MAINTENANCE_PAGE: u64 = 64 * 1024;
/// The maximum number of scripts in `.larder/`.
const MAX_SCRIPTS: usize = 64;
/// The maximum number of reported names in the root directory.
const MAX_ROOT: usize = 1000;

/// Describes a commit whose tree was checked by [`super::walk`].
pub fn describe(repository: &Repository, tree: Oid, plan: &[PlannedEntry], job: &SourceJob) -> Result<CommitSource, ExportStop> {
    let mut warnings = Vec::new();
    let files = RecipeFiles {
        larder_yml: recipe(repository, plan, "larder.yml")?,
        procfile: recipe(repository, plan, "Procfile")?,
        app_json: recipe(repository, plan, "app.json")?,
        buildpacks: recipe(repository, plan, ".buildpacks")?,
        pillar_sample: recipe(repository, plan, RecipeFiles::PILLAR_SAMPLE)?,
    };
    let scripts = scripts(plan, &mut warnings);
    let maintenance_page = maintenance_page(repository, plan, &mut warnings)?;
    large_files(repository, plan, &mut warnings)?;
    let root = plan.iter().filter(|entry| !entry.path.contains('/')).take(MAX_ROOT);
    let root = root.map(|entry| match entry.kind {
        PlannedKind::Dir => format!("{}/", entry.path),
        _ => entry.path.clone(),
    });
    let sizes = plan.iter().map(|entry| match entry.kind {
        PlannedKind::File { size, .. } => size,
        _ => 0,
    });
    Ok(CommitSource {
        commit: job.commit.clone(),
        tree: tree.to_string().parse().map_err(failed("read the id of a tree"))?,
        files,
        scripts,
        maintenance_page,
        root: root.collect(),
        entries: plan.len() as u64,
        bytes: sizes.sum(),
        changed: None,
        tags: Vec::new(),
        warnings,
    })
}

fn find<'p>(plan: &'p [PlannedEntry], path: &str) -> Option<&'p PlannedEntry> {
    plan.binary_search_by(|entry| entry.path.as_str().cmp(path)).ok().and_then(|at| plan.get(at))
}

fn read(repository: &Repository, oid: Oid, path: &str) -> Result<Vec<u8>, ExportStop> {
    let blob = repository.find_blob(oid).map_err(|error| failed(format!("read {path} of the commit"))(error.message()))?;
    Ok(blob.content().to_vec())
}

fn recipe(repository: &Repository, plan: &[PlannedEntry], name: &str) -> Result<Option<Vec<u8>>, ExportStop> {
    let refuse = |reason: String, hint: &str| SourceRefusal { path: Some(name.to_owned()), reason, hint: hint.to_owned() };
    match find(plan, name).map(|entry| &entry.kind) {
        None => Ok(None),
        Some(PlannedKind::File { size, .. }) if *size > RecipeFiles::LIMIT => {
            Err(refuse(format!("has {size} bytes (at most {} are allowed)", RecipeFiles::LIMIT), "shorten the file").into())
        }
        Some(PlannedKind::File { oid, .. }) => read(repository, *oid, name).map(Some),
        Some(PlannedKind::Dir | PlannedKind::Link { .. }) => {
            Err(refuse(String::from("is not a regular file"), "commit the file itself, not a link or a directory").into())
        }
    }
}

fn maintenance_page(
    repository: &Repository,
    plan: &[PlannedEntry],
    warnings: &mut Vec<String>,
) -> Result<Option<Vec<u8>>, ExportStop> {
    match find(plan, MAINTENANCE_PAGE).map(|entry| &entry.kind) {
        Some(PlannedKind::File { oid, size, .. }) if *size <= MAX_MAINTENANCE_PAGE => {
            read(repository, *oid, MAINTENANCE_PAGE).map(Some)
        }
        Some(PlannedKind::File { size, .. }) => {
            warnings.push(format!(
                "{MAINTENANCE_PAGE} is not used: it has {size} bytes (at most {MAX_MAINTENANCE_PAGE} are allowed)"
            ));
            Ok(None)
        }
        _ => Ok(None),
    }
}

fn scripts(plan: &[PlannedEntry], warnings: &mut Vec<String>) -> Vec<String> {
    let mut scripts = Vec::new();
    for entry in plan {
        let Some(name) = entry.path.strip_prefix(".larder/").filter(|name| !name.contains('/')) else { continue };
        match entry.kind {
            PlannedKind::File { executable: true, .. } if scripts.len() < MAX_SCRIPTS => scripts.push(name.to_owned()),
            PlannedKind::File { executable: false, .. } if name.parse::<crate::model::Phase>().is_ok() => warnings.push(format!(
                ".larder/{name} is not executable and will not run; run `git update-index --chmod=+x .larder/{name}` to make the script executable"
            )),
            _ => {}
        }
    }
    scripts
}

/// Warns about Git LFS pointers. The pointers are deployed instead of the files, because the repository does not contain the files.
fn large_files(repository: &Repository, plan: &[PlannedEntry], warnings: &mut Vec<String>) -> Result<(), ExportStop> {
    let mut uses_lfs = false;
    for entry in plan.iter().filter(|entry| entry.path.rsplit('/').next() == Some(".gitattributes")).take(MAX_ATTRIBUTES_FILES) {
        if let PlannedKind::File { oid, size, .. } = entry.kind {
            uses_lfs |= size <= RecipeFiles::LIMIT
                && read(repository, oid, &entry.path)?.windows(b"filter=lfs".len()).any(|window| window == b"filter=lfs");
        }
    }
    if !uses_lfs {
        return Ok(());
    }
    let mut pointers = Vec::new();
    let small = plan.iter().filter_map(|entry| match entry.kind {
        PlannedKind::File { oid, size, .. } if LFS_SIZES.contains(&size) => Some((oid, &entry.path)),
        _ => None,
    });
    for (oid, path) in small.take(MAX_LFS_LOOKS) {
        if read(repository, oid, path)?.starts_with(LFS) {
            pointers.push(sanitise_reason(path));
        }
    }
    if !pointers.is_empty() {
        let named = pointers.iter().take(MAX_LFS_NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = pointers.len().saturating_sub(MAX_LFS_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        warnings
            .push(format!("Git LFS pointers are deployed instead of files that the repository does not contain: {named}{more}"));
        warnings.push(String::from(
            "larder does not fetch from LFS servers; run `git lfs migrate export --include=\"*\"` to commit the files themselves",
        ));
    }
    Ok(())
}
