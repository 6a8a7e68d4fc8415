//! A developer's clone, with real git over real ssh.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::{World, cli::Output};

/// A repository whose `larder` remote is a project.
pub struct Repo<'w> {
    world: &'w World,
    path: PathBuf,
    project: String,
    user: String,
}

impl<'w> Repo<'w> {
    /// An empty repository of alice's, for a project.
    pub fn new(world: &'w World, project: &str) -> Repo<'w> {
        let clones = world.directory().join("clones");
        fs::create_dir_all(&clones).unwrap();
        let path = (1..).map(|number| clones.join(format!("{project}-{number}"))).find(|path| !path.exists()).unwrap();
        fs::create_dir(&path).unwrap();
        let repo = Repo { world, path, project: project.to_owned(), user: String::from("alice") };
        repo.git(&["init", "--quiet"]).ok();
        repo
    }

    /// A repository with a site of one page, committed.
    pub fn site(world: &'w World, project: &str, page: &str) -> Repo<'w> {
        let repo = Repo::new(world, project);
        repo.page(page);
        repo
    }

    /// The same clone, used by somebody else.
    pub fn by(&self, user: &str) -> Repo<'w> {
        Repo { world: self.world, path: self.path.clone(), project: self.project.clone(), user: user.to_owned() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The URL to push to; it has the port, so it changes when the server starts again.
    pub fn url(&self) -> String {
        format!("ssh://larder@127.0.0.1:{}/{}", self.world.ssh_port(), self.project)
    }

    /// git in this clone.
    pub fn git(&self, arguments: &[&str]) -> Output {
        Output::of(self.command().args(arguments))
    }

    /// git in this clone, to be completed.
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

    /// Writes a program.
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

    /// Commits everything that is there, even if nothing changed, and gives the commit.
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

    /// The commit that is checked out.
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

    /// What the server says its refs are.
    pub fn ls_remote(&self) -> BTreeMap<String, String> {
        let listed = self.git(&["ls-remote", &self.url()]);
        let pairs = listed.ok().lines().filter_map(|line| line.split_once('\t'));
        pairs.map(|(commit, name)| (name.to_owned(), commit.to_owned())).collect()
    }

    /// The commit that the server says is live.
    pub fn live(&self) -> Option<String> {
        self.ls_remote().remove("refs/heads/main")
    }
}

/// A push that has ended.
#[derive(Debug)]
pub struct Push(pub Output);

impl Push {
    /// It must have been accepted.
    #[track_caller]
    pub fn accepted(&self) -> &Push {
        assert_eq!(self.0.status, 0, "the push was rejected: {}", self.0);
        self
    }

    /// It must have been rejected, by the server and with a reason; gives the reason as git itself shows it.
    #[track_caller]
    pub fn rejected(&self) -> String {
        assert_eq!(self.0.status, 1, "the push should have been rejected: {}", self.0);
        let line = self.0.stderr.lines().find_map(|line| line.trim_start().strip_prefix("! [remote rejected]"));
        let line = line.unwrap_or_else(|| panic!("git shows no rejected ref: {}", self.0));
        let reason = line.split_once('(').and_then(|(_, reason)| reason.strip_suffix(')'));
        reason.unwrap_or_else(|| panic!("git shows no reason: {}", self.0)).to_owned()
    }

    /// It must have been rejected with a reason that holds `text`.
    #[track_caller]
    pub fn rejected_with(&self, text: &str) -> &Push {
        let reason = self.rejected();
        assert!(reason.contains(text), "the reason {reason:?} does not hold {text:?}: {}", self.0);
        self
    }

    /// The pusher's screen must hold `text`.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Push {
        self.0.says(text);
        self
    }

    /// The lines that the server wrote, without git's `remote: `.
    pub fn remote(&self) -> Vec<String> {
        let lines = self.0.stderr.lines().filter_map(|line| line.strip_prefix("remote: "));
        lines.map(|line| line.trim_end().to_owned()).collect()
    }
}
