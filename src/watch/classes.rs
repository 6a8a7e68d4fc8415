//! The classes of saved files: files of the recipe, files that no process reads, and the content of the application.

/// The files of the recipe, which larder reads, and processes do not.
pub const RECIPE_FILES: [&str; 4] = ["larder.yml", "Procfile", "app.json", ".buildpacks"];
/// The files that no process reads.
const NO_CONTENT: [&str; 4] = [".gitignore", ".gitattributes", ".larderignore", ".editorconfig"];

/// Returns true if a process may read the file. `path` is relative to the checkout.
pub fn is_content(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    !RECIPE_FILES.contains(&path) && !NO_CONTENT.contains(&name)
}

/// Returns true for a script of the project, which the build may run.
pub fn is_script(path: &str) -> bool {
    path.starts_with(".larder/")
}

/// Returns the `watch` patterns of a process, with the default for its command: larder's own file server reads each file again, so that no saved
/// file restarts it.
pub fn patterns_of<'a>(command: &str, watch: Option<&'a [String]>) -> Option<&'a [String]> {
    let reads_again = command.trim_start().starts_with("larder static-server");
    if reads_again && watch.is_none() { Some(&[]) } else { watch }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipe_counts_only_at_the_top() {
        assert!(!is_content("larder.yml") && is_content("docs/larder.yml"));
        assert!(!is_content("static/.gitignore") && is_content(".env") && is_content("app.py"));
        assert!(is_script(".larder/build") && !is_script("src/.larder/build"));
    }

    #[test]
    fn file_server_of_larder_needs_no_restart() {
        let own = [String::from("*.html")];
        assert_eq!(patterns_of("larder static-server public", None), Some(&[][..]));
        assert_eq!(patterns_of("larder static-server public", Some(&own)), Some(&own[..]));
        assert_eq!(patterns_of("python app.py", None), None);
    }
}
