//! The command `larder quickstart`, which starts a server in a separate directory, and pushes an example to the server as a user would.

use std::{
    fs, io,
    io::Write as _,
    net::TcpListener,
    os::unix::{
        fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use crate::control::{CommandError, ErrorKind};

/// Start a server in a separate directory, and push an example to it over ssh
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "The command creates a key, a user and a project, pushes the example, prints its address, and serves it in the foreground.\nWithout --root, the server uses a directory in /var/tmp. Ctrl-C stops the server; the directory stays, and can be deleted.\n\nExample: larder quickstart --root ~/larder"
)]
pub struct Args {
    /// Set up the example in a server that was just started
    #[arg(long, hide = true, value_name = "PID")]
    guide: Option<i32>,
}

/// The files of the example, a static site, which needs no language runtime.
const EXAMPLE: [(&str, &str); 4] = [
    ("index.html", include_str!("../../../examples/static/index.html")),
    ("404.html", include_str!("../../../examples/static/404.html")),
    ("style.css", include_str!("../../../examples/static/style.css")),
    ("release.js", include_str!("../../../examples/static/release.js")),
];
/// The preferred ports for ssh and HTTP. A port that is in use is replaced by a free port.
const PORTS: (u16, u16) = (2222, 8080);
/// The time within which the server must be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts a child that sets up the example, and replaces this process by the server, so that the server receives Ctrl-C and other signals
/// directly.
pub fn main(root: Option<&Path>, args: &Args) -> Result<ExitCode, CommandError> {
    let root = root.map_or_else(default_root, Path::to_path_buf);
    if let Some(server) = args.guide {
        return guide(&root).map(|()| ExitCode::SUCCESS).inspect_err(|_| stop(server));
    }
    if !["git", "ssh"].into_iter().all(is_installed) && rustix::process::geteuid().is_root() {
        install();
    }
    for program in ["git", "ssh", "ssh-keygen"] {
        if !is_installed(program) {
            return Err(CommandError::new(ErrorKind::NotFound, format!("cannot set up the example: {program} is not installed"))
                .hint("install git and ssh, on Debian with: apt-get install git openssh-client"));
        }
    }
    if root.join("state").exists() {
        let why = format!("cannot create a server in {}: the directory contains a server already", root.display());
        return Err(CommandError::new(ErrorKind::Refused, why).hint(format!(
            "start that server with `larder serve --root {0}`, or delete the directory: rm -rf {0}",
            root.display()
        )));
    }
    create_root(&root)?;
    say("Starting a server ...");
    let program = std::env::current_exe().map_err(|error| CommandError::internal(&error))?;
    let own = std::process::id().to_string();
    let child = Command::new(&program).arg("--root").arg(&root).args(["quickstart", "--guide", &own]).spawn();
    child.map_err(|error| CommandError::internal(&error))?;
    let (ssh, http) = (free(PORTS.0), free(PORTS.1));
    let error = Command::new(program)
        .arg("--root")
        .arg(&root)
        .args(["serve", "--ssh", &format!("127.0.0.1:{ssh}"), "--http", &format!("127.0.0.1:{http}")])
        .env("LARDER_LOG", std::env::var("LARDER_LOG").unwrap_or_else(|_| String::from("warn")))
        .stdout(Stdio::null())
        .exec();
    Err(CommandError::internal(&error))
}

fn is_installed(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("-V").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Installs git and ssh with Debian's package manager. If the installation fails, the caller reports the missing program.
fn install() {
    say("Installing git and openssh-client ...");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !(apt(&["-qq", "update"]) && apt(&["-qq", "-y", "install", "--no-install-recommends", "git", "openssh-client"])) {
        say("The installation failed.");
    }
}

/// Returns the default directory. The directory is not below the home directory, because larder's own users must be able to enter it.
fn default_root() -> PathBuf {
    PathBuf::from(format!("/var/tmp/larder-quickstart-{}", rustix::process::geteuid().as_raw()))
}

/// Creates the directory. If the directory exists, checks that no other user can have created its content, because every user can write in
/// /var/tmp.
fn create_root(root: &Path) -> Result<(), CommandError> {
    let failed = |error: io::Error| CommandError::new(ErrorKind::Internal, format!("cannot create {}: {error}", root.display()));
    if let Some(parent) = root.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match fs::DirBuilder::new().mode(0o755).create(root) {
        // The mode is set regardless of the umask, because larder's own users must be able to enter the directory.
        Ok(()) => fs::set_permissions(root, fs::Permissions::from_mode(0o755)).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(root).map_err(failed)?;
            let own = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
            if own {
                return Ok(());
            }
            let why = format!(
                "cannot use {}: it is not a directory, belongs to another user, or can be written by other users",
                root.display()
            );
            Err(CommandError::new(ErrorKind::Refused, why).hint(
                "choose another directory with --root, or check and delete this directory: another user may have created it",
            ))
        }
        Err(error) => Err(failed(error)),
    }
}

fn free(wanted: u16) -> u16 {
    let is_free = TcpListener::bind(("127.0.0.1", wanted)).is_ok();
    if is_free { wanted } else { 0 }
}

fn stop(server: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(server) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Runs the commands that a user would type.
fn guide(root: &Path) -> Result<(), CommandError> {
    let guide = Guide { root: root.to_owned(), client: root.join("client") };
    guide.wait()?;
    fs::create_dir_all(&guide.client).map_err(|error| CommandError::internal(&error))?;
    let key = guide.client.join("id_ed25519");
    let key = key.display().to_string();
    guide.run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "quickstart", "-f", &key]))?;
    guide.larder(&["user", "add", "you", "--admin", "--key-file", &format!("{key}.pub")])?;
    let created = guide.larder(&["project", "create", "hello", "--mode", "cooking", "--json"])?;
    let created: serde_json::Value = serde_json::from_str(&created).map_err(|error| CommandError::internal(&error))?;
    let port = created.get("ssh_port").map(ToString::to_string).unwrap_or_default();
    let url = created.get("url").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let site = guide.client.join("hello");
    fs::create_dir_all(&site).map_err(|error| CommandError::internal(&error))?;
    for (name, text) in EXAMPLE {
        fs::write(site.join(name), text).map_err(|error| CommandError::internal(&error))?;
    }
    let ssh = format!(
        "ssh -i {key} -o IdentitiesOnly=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={}/known_hosts",
        guide.client.display()
    );
    let remote = format!("ssh://larder@127.0.0.1:{port}/hello");
    for arguments in [
        &["init", "--quiet", "--initial-branch=main"][..],
        &["config", "user.name", "you"],
        &["config", "user.email", "you@localhost"],
        &["config", "core.sshCommand", &ssh],
        &["remote", "add", "prod", &remote],
        &["add", "."],
        &["commit", "--quiet", "--message", "Hello, larder"],
    ] {
        guide.run(Command::new("git").arg("-C").arg(&site).args(arguments))?;
    }
    say(&format!("\n$ cd {}\n$ git push prod main", site.display()));
    // The caller's `GIT_SSH_COMMAND` would override `core.sshCommand` above, and ssh would use another key.
    let mut push = Command::new("git");
    let pushed = push.arg("-C").arg(&site).args(["push", "prod", "main"]).env_remove("GIT_SSH_COMMAND").status();
    if !pushed.is_ok_and(|status| status.success()) {
        return Err(CommandError::new(ErrorKind::Deployment, "cannot push the example: git push failed"));
    }
    let host = url.trim_start_matches("http://");
    let program = std::env::current_exe().map_err(|error| CommandError::internal(&error))?;
    say(&format!(
        "\nThe example is live: {url}\n\
         (if this name does not resolve: curl -H 'Host: {host}' http://127.0.0.1:{})\n\n\
         Now change it:\n\n  cd {}\n  edit index.html\n  git commit -am 'My first change'\n  git push prod main\n\n\
         And look around:\n\n  {larder} status\n  {larder} releases hello\n  {larder} logs hello -f\n\n\
         Your own project: `{larder} project create NAME`, then push to ssh://larder@127.0.0.1:{port}/NAME\n\
         with the key {key}. Ctrl-C stops the server.",
        host.rsplit(':').next().unwrap_or("80"),
        site.display(),
        larder = format_args!("{} --root {}", program.display(), root.display()),
    ));
    Ok(())
}

struct Guide {
    root: PathBuf,
    client: PathBuf,
}

impl Guide {
    fn wait(&self) -> Result<(), CommandError> {
        let begun = Instant::now();
        while self.larder(&["whoami"]).is_err() {
            if begun.elapsed() > READY_TIMEOUT {
                return Err(CommandError::new(ErrorKind::Internal, "cannot reach the server: it was not ready after 1 minute")
                    .hint("run `larder quickstart` again with LARDER_LOG=debug to see the reason"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn larder(&self, arguments: &[&str]) -> Result<String, CommandError> {
        let program = std::env::current_exe().map_err(|error| CommandError::internal(&error))?;
        self.run(Command::new(program).arg("--root").arg(&self.root).args(arguments))
    }

    fn run(&self, command: &mut Command) -> Result<String, CommandError> {
        let output = command.stdin(Stdio::null()).output().map_err(|error| CommandError::internal(&error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(CommandError::new(ErrorKind::Internal, format!("{program} failed: {said}")))
    }
}

fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn directory_that_others_could_prepare_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("a/q");
        create_root(&root).unwrap();
        create_root(&root).unwrap();
        let refused = |path: &Path| create_root(path).unwrap_err().kind == ErrorKind::Refused;
        for mode in [0o775, 0o757, 0o1777] {
            fs::set_permissions(&root, fs::Permissions::from_mode(mode)).unwrap();
            assert!(refused(&root), "{mode:o}");
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        let link = directory.path().join("link");
        symlink(&root, &link).unwrap();
        assert!(refused(&link), "a symlink");
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refused(&file));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&root, Some(54_321), None).unwrap();
            assert!(refused(&root), "a directory of another user");
        }
    }
}
