//! A developer's machine without a server: its own home with `ssh` and `larder`, and real git and OpenSSH.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use super::{World, cli::Output};

/// The options that OpenSSH reads for every host. Forwarding is on, so that a test sees that the client switches it off.
const SSH_CONFIG: &str = "\
Host *
\tIdentitiesOnly yes
\tIdentityAgent none
\tStrictHostKeyChecking accept-new
\tBatchMode yes
\tLogLevel ERROR
\tForwardAgent yes
\tRequestTTY no
\tConnectTimeout 20
";

/// A developer's machine. The user is `alice` unless another user is named.
pub struct Laptop<'w> {
    world: &'w World,
    directory: PathBuf,
}

impl<'w> Laptop<'w> {
    /// Creates a machine with the key of a user. A command without `--root` concerns the server of this machine, if one runs: with a server in
    /// the default directory, prints `SKIPPED:` and returns `None`.
    pub fn new(world: &'w World, user: &str) -> Option<Laptop<'w>> {
        if std::path::Path::new("/srv/larder").exists() {
            eprintln!("SKIPPED: this machine has a server in /srv/larder, so it cannot stand for a laptop");
            return None;
        }
        let laptops = world.directory().join("laptops");
        let directory = (1..).map(|number| laptops.join(format!("{user}-{number}"))).find(|path| !path.exists()).unwrap();
        let laptop = Laptop { world, directory };
        for path in ["home/.ssh", "home/.config/larder", "bin", "work"] {
            fs::create_dir_all(laptop.directory.join(path)).unwrap();
        }
        let home = laptop.home();
        let config = format!(
            "{SSH_CONFIG}\tIdentityFile {}\n\tUserKnownHostsFile {}\n",
            world.private_key(user).display(),
            home.join(".ssh/known_hosts").display()
        );
        fs::write(home.join(".ssh/config"), config).unwrap();
        // OpenSSH reads its files from the home of the account, so a wrapper names the configuration. The wrapper also records its words.
        laptop.program("ssh", "printf '%s\\n' \"$*\" >> \"$HOME/ssh.log\"\nexec /usr/bin/ssh -F \"$HOME/.ssh/config\" \"$@\"\n");
        fs::copy(world.directory().join("home/gitconfig"), home.join(".gitconfig")).unwrap();
        Some(laptop)
    }

    pub fn home(&self) -> PathBuf {
        self.directory.join("home")
    }

    /// Returns a directory below the directory in which the developer works, and creates it.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.directory.join("work").join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Installs a shell script as a program.
    pub fn program(&self, name: &str, script: &str) {
        let path = self.directory.join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Writes the user's file with the servers.
    pub fn servers(&self, text: &str) {
        fs::write(self.home().join(".config/larder/config.yml"), text).unwrap();
    }

    /// Returns the address of a project on the world's server, or of the server itself.
    pub fn url(&self, project: &str) -> String {
        let address = format!("ssh://larder@127.0.0.1:{}", self.world.ssh_port());
        if project.is_empty() { address } else { format!("{address}/{project}") }
    }

    /// Returns a command that runs in a directory of the developer.
    pub fn command(&self, program: &str, directory: &str) -> Command {
        let mut command = self.world.client(program);
        let path = format!("{}:{}", self.directory.join("bin").display(), super::server::PATH);
        command.env("HOME", self.home()).env("PATH", path).env_remove("GIT_CONFIG_GLOBAL");
        command.current_dir(self.directory(directory));
        command
    }

    /// Runs larder in a directory of the developer.
    pub fn larder(&self, directory: &str, words: &[&str]) -> Output {
        Output::of(self.larder_command(directory).args(words))
    }

    /// Returns a larder command in a directory of the developer.
    pub fn larder_command(&self, directory: &str) -> Command {
        self.command(env!("CARGO_BIN_EXE_larder"), directory)
    }

    /// Runs git in a directory of the developer.
    pub fn git(&self, directory: &str, words: &[&str]) -> Output {
        Output::of(self.command("git", directory).args(words))
    }

    /// Creates a clone with one committed page, without a remote.
    pub fn site(&self, directory: &str, page: &str) {
        self.git(directory, &["init", "--quiet"]).ok();
        self.page(directory, page);
    }

    /// Writes and commits a page.
    pub fn page(&self, directory: &str, page: &str) {
        fs::write(self.directory(directory).join("index.html"), format!("<title>{page}</title>\n{page}\n")).unwrap();
        self.git(directory, &["add", "--all"]).ok();
        self.git(directory, &["commit", "--quiet", "--allow-empty", "--message", page]).ok();
    }

    /// Returns the words of each `ssh` since the last call.
    pub fn ssh_calls(&self) -> Vec<String> {
        let path = self.home().join("ssh.log");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text.lines().map(str::to_owned).collect()
    }
}
