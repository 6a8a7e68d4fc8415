//! A developer's clone, with real git over real ssh.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::{World, cli::Output};

/// A repository from which a user pushes to a project.
pub struct Repo<'w> {
    world: &'w World,
    path: PathBuf,
    project: String,
    user: String,
}

impl<'w> Repo<'w> {
    /// Creates an empty repository of alice for a project.
    pub fn new(world: &'w World, project: &str) -> Repo<'w> {
        let clones = world.directory().join("clones");
        fs::create_dir_all(&clones).unwrap();
        let path = (1..).map(|number| clones.join(format!("{project}-{number}"))).find(|path| !path.exists()).unwrap();
        fs::create_dir(&path).unwrap();
        Repo::at(world, project, &path)
    }

    /// Creates an empty repository of alice in an empty directory.
    pub fn at(world: &'w World, project: &str, path: &Path) -> Repo<'w> {
        let repo = Repo { world, path: path.to_owned(), project: project.to_owned(), user: String::from("alice") };
        repo.git(&["init", "--quiet"]).ok();
        repo
    }

    /// Creates a repository with one committed page.
    pub fn site(world: &'w World, project: &str, page: &str) -> Repo<'w> {
        let repo = Repo::new(world, project);
        repo.page(page);
        repo
    }

    /// Creates a project with one page and the persistent directory `media`, and deploys it.
    pub fn with_media(world: &'w World, project: &str) -> Repo<'w> {
        world.project(project);
        let repo = Repo::new(world, project);
        repo.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", "data: [media/]\n");
        repo.page("version one");
        repo.push().accepted();
        repo
    }

    /// Returns the same clone for another user.
    pub fn by(&self, user: &str) -> Repo<'w> {
        Repo { world: self.world, path: self.path.clone(), project: self.project.clone(), user: user.to_owned() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the URL to push to. The URL contains the port, which changes when the server restarts.
    pub fn url(&self) -> String {
        format!("ssh://larder@127.0.0.1:{}/{}", self.world.ssh_port(), self.project)
    }

    /// Runs git in this clone.
    pub fn git(&self, arguments: &[&str]) -> Output {
        Output::of(self.command().args(arguments))
    }

    /// Returns a git command in this clone.
    pub fn command(&self) -> Command {
        let mut command = self.world.client("git");
        let ssh = self.world.ssh_options(&self.user).join(" ");
        command.current_dir(&self.path).env("GIT_SSH_COMMAND", format!("ssh {ssh}")).env("GIT_SSH_VARIANT", "ssh");
        command.env("GIT_AUTHOR_DATE", "2026-01-02T03:04:05Z").env("GIT_COMMITTER_DATE", "2026-01-02T03:04:05Z");
        command
    }

    /// Writes a file.
    pub fn write(&self, path: &str, contents: impl AsRef<[u8]>) -> &Repo<'w> {
        let path = self.path.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
        self
    }

    /// Writes an executable file.
    pub fn program(&self, path: &str, contents: &str) -> &Repo<'w> {
        self.write(path, contents);
        fs::set_permissions(self.path.join(path), fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// Removes a file.
    pub fn remove(&self, path: &str) -> &Repo<'w> {
        fs::remove_file(self.path.join(path)).unwrap();
        self
    }

    /// Commits all files, even without a change, and returns the commit.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]).ok();
        self.git(&["commit", "--quiet", "--allow-empty", "--message", message]).ok();
        self.head()
    }

    /// Writes and commits the page of a site.
    pub fn page(&self, text: &str) -> String {
        self.write("index.html", format!("<!doctype html>\n<title>{text}</title>\n{text}\n"));
        self.commit(text)
    }

    /// Returns the commit that is checked out.
    pub fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"]).ok().trim().to_owned()
    }

    /// Pushes `main`.
    pub fn push(&self) -> Push {
        self.push_as(&["HEAD:refs/heads/main"])
    }

    /// Pushes with further arguments: options and refspecs.
    pub fn push_as(&self, arguments: &[&str]) -> Push {
        let (options, refs): (Vec<&str>, Vec<&str>) = arguments.iter().partition(|argument| argument.starts_with('-'));
        let mut command = self.command();
        command.arg("push").args(options).arg(self.url()).args(refs);
        Push(Output::of(&mut command))
    }

    /// Returns the refs as the server reports them.
    pub fn ls_remote(&self) -> BTreeMap<String, String> {
        let listed = self.git(&["ls-remote", &self.url()]);
        let pairs = listed.ok().lines().filter_map(|line| line.split_once('\t'));
        pairs.map(|(commit, name)| (name.to_owned(), commit.to_owned())).collect()
    }

    /// Returns the live commit as the server reports it.
    pub fn live(&self) -> Option<String> {
        self.ls_remote().remove("refs/heads/main")
    }
}

/// The result of a push.
#[derive(Debug)]
pub struct Push(pub Output);

impl Push {
    /// Asserts that the push was accepted.
    #[track_caller]
    pub fn accepted(&self) -> &Push {
        assert_eq!(self.0.status, 0, "the push was rejected: {}", self.0);
        self
    }

    /// Asserts that the server rejected the push, and returns the reason as git shows it.
    #[track_caller]
    pub fn rejected(&self) -> String {
        assert_eq!(self.0.status, 1, "the push should have been rejected: {}", self.0);
        let line = self.0.stderr.lines().find_map(|line| line.trim_start().strip_prefix("! [remote rejected]"));
        let line = line.unwrap_or_else(|| panic!("git shows no rejected ref: {}", self.0));
        let reason = line.split_once('(').and_then(|(_, reason)| reason.strip_suffix(')'));
        reason.unwrap_or_else(|| panic!("git shows no reason: {}", self.0)).to_owned()
    }

    /// Asserts that the push was rejected with a reason that contains `text`.
    #[track_caller]
    pub fn rejected_with(&self, text: &str) -> &Push {
        let reason = self.rejected();
        assert!(reason.contains(text), "the reason {reason:?} does not hold {text:?}: {}", self.0);
        self
    }

    /// Asserts that the output of the push contains `text`.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Push {
        self.0.says(text);
        self
    }

    /// Returns the lines that the server wrote, without git's `remote: `.
    pub fn remote(&self) -> Vec<String> {
        let lines = self.0.stderr.lines().filter_map(|line| line.strip_prefix("remote: "));
        lines.map(|line| line.trim_end().to_owned()).collect()
    }
}
