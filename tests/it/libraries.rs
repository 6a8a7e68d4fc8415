//! Programs that push with a library instead of git. Each program must see the verdict with its reason.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::harness::{Repo, World, cli::Output, in_one_mode, installed};

in_one_mode!(dulwich_sees_the_verdict, libgit2_sees_the_verdict, jgit_sees_the_verdict, go_git_sees_the_verdict);

/// Makes a good push, a bad push and a fix. `push` pushes the head of the clone and returns the output of the program.
fn verdicts(world: &World, push: impl Fn(&Repo) -> Output) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    push(&repo).exits(0).says("v1 is live");
    world.serves("shop", "version one");
    repo.write("Procfile", "web: exit 6\n");
    repo.commit("broken");
    let refused = push(&repo);
    assert_ne!(refused.status, 0, "{refused}");
    // The program receives the reason with the ref, not only in the output of the server.
    assert!(refused.stdout.contains("web.1 exited 6") && refused.stdout.contains("v1 still live"), "{refused}");
    world.serves("shop", "version one");
    repo.remove("Procfile");
    repo.page("version two");
    push(&repo).exits(0).says("v2 is live");
    world.serves("shop", "version two");
    assert_eq!(repo.live(), Some(repo.head()));
}

/// Returns a Python that can import `module` of `package`: the machine's Python, or a Python in a new virtual environment.
pub fn python_with(world: &World, package: &str, module: &str) -> Option<PathBuf> {
    let own = installed("python3")?;
    let imports = |python: &Path| Command::new(python).args(["-c", &format!("import {module}")]).output();
    let has = |python: &Path| imports(python).is_ok_and(|output| output.status.success());
    if has(&own) {
        return Some(own);
    }
    let place = world.directory().join("python");
    // The commands use the settings of the account that runs the tests, because these settings name the package index. A directory of packages
    // takes less time than a virtual environment.
    let packages = world.directory().join("packages");
    let mut pip = Command::new(&own);
    pip.args(["-m", "pip", "install", "--quiet", "--no-compile", "--target"]).arg(&packages).arg(package);
    if pip.output().is_ok_and(|output| output.status.success()) {
        let python = world.directory().join("python-with-packages");
        let script = format!("#!/bin/sh\nPYTHONPATH={} exec {} \"$@\"\n", packages.display(), own.display());
        fs::write(&python, script).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        if has(&python) {
            return Some(python);
        }
    }
    let venv = Command::new(&own).args(["-m", "venv"]).arg(&place).output();
    let pip = place.join("bin/pip");
    let installed = venv.is_ok_and(|output| output.status.success())
        && Command::new(pip).args(["install", "--quiet", package]).output().is_ok_and(|output| output.status.success());
    let python = place.join("bin/python");
    if installed && has(&python) {
        return Some(python);
    }
    eprintln!("SKIPPED: python3 has no {package}, and pip cannot install it");
    None
}

/// A program that pushes, and prints the server's reason for the ref.
const DULWICH: &str = "
import os, sys
from dulwich.client import get_transport_and_path
from dulwich.repo import Repo
repo = Repo('.')
client, path = get_transport_and_path(sys.argv[1], ssh_command=os.environ['GIT_SSH_COMMAND'])
result = client.send_pack(path, lambda refs: {b'refs/heads/main': repo.head()}, repo.generate_pack_data,
    progress=lambda data: sys.stderr.buffer.write(data))
reason = (result.ref_status or {}).get(b'refs/heads/main')
print(reason)
sys.exit(1 if reason else 0)
";

fn dulwich_sees_the_verdict(world: &World) {
    let Some(python) = python_with(world, "dulwich", "dulwich.porcelain") else { return };
    let options = world.ssh_options("alice").join(" ");
    let with = |repo: &Repo, script: &str| {
        let mut command = world.client(python.to_str().unwrap());
        command.current_dir(repo.path()).env("GIT_SSH_COMMAND", format!("ssh {options}")).args(["-c", script, &repo.url()]);
        Output::of(&mut command)
    };
    verdicts(world, |repo| with(repo, DULWICH));
    let clone = "import os, sys; from dulwich import porcelain\n\
                 print(porcelain.clone(sys.argv[1], 'copy', ssh_command=os.environ['GIT_SSH_COMMAND']).head().decode())";
    let repo = Repo::site(world, "shop", "another clone");
    assert_eq!(Some(with(&repo, clone).ok().trim().to_owned()), repo.live());
}

/// A program that pushes with libgit2 and its SSH library libssh2, as graphical clients do.
const LIBGIT2: &str = "
import sys, pygit2
url, key = sys.argv[1:]
class Calls(pygit2.RemoteCallbacks):
    reason = None
    def credentials(self, url, username, allowed):
        return pygit2.Keypair('larder', key + '.pub', key, '')
    def certificate_check(self, certificate, valid, host):
        return True
    def sideband_progress(self, text):
        sys.stderr.write(text)
    def push_update_reference(self, name, reason):
        self.reason = reason
calls = Calls()
repo = pygit2.Repository('.')
repo.remotes.create_anonymous(url).push(['refs/heads/main:refs/heads/main'], callbacks=calls)
print(calls.reason)
if calls.reason:
    sys.exit(1)
pygit2.clone_repository(url, 'copy-' + str(repo.head.target), callbacks=calls, bare=True)
print('cloned')
";

fn libgit2_sees_the_verdict(world: &World) {
    let Some(python) = python_with(world, "pygit2", "pygit2") else { return };
    verdicts(world, |repo| {
        let mut command = world.client(python.to_str().unwrap());
        command.current_dir(repo.path()).args(["-c", LIBGIT2, &repo.url()]).arg(world.private_key("alice"));
        let output = Output::of(&mut command);
        assert!(output.status != 0 || output.stdout.contains("cloned"), "{output}");
        output
    });
}

/// JGit pushes through OpenSSH, because the SSH library of Debian's JGit dates from 2016 and supports no algorithm that larder offers.
fn jgit_sees_the_verdict(world: &World) {
    let Some(jgit) = installed("jgit") else { return };
    let ssh = world.directory().join("home/jgit-ssh");
    fs::write(&ssh, format!("#!/bin/sh\nexec ssh {} \"$@\"\n", world.ssh_options("alice").join(" "))).unwrap();
    fs::set_permissions(&ssh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // Debian's own script names only the first of these files.
    let jars = ["org.eclipse.jgit.lfs", "org.eclipse.jgit.http.apache", "httpclient", "httpcore", "commons-logging-1.2"];
    let jars: Vec<String> = jars.iter().map(|jar| format!("/usr/share/java/{jar}.jar")).collect();
    verdicts(world, |repo| {
        let mut command = world.client(jgit.to_str().unwrap());
        command.current_dir(repo.path()).env("GIT_SSH", &ssh).env("JGIT_CLASSPATH", jars.join(":"));
        let mut output = Output::of(command.args(["push", &repo.url(), "HEAD:refs/heads/main"]));
        // JGit shows a refused ref as git does, but exits 0.
        if output.stdout.contains("[remote rejected]") {
            output.status = output.status.max(1);
        }
        output
    });
}

const GO_GIT: &str = r#"
package main

import (
	"fmt"
	"os"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing/transport/ssh"
	"github.com/go-git/go-git/v5/storage/memory"
	insecure "golang.org/x/crypto/ssh"
)

func main() {
	url, key := os.Args[1], os.Args[2]
	auth, err := ssh.NewPublicKeysFromFile("larder", key, "")
	if err != nil {
		panic(err)
	}
	auth.HostKeyCallback = insecure.InsecureIgnoreHostKey()
	repo, err := git.PlainOpen(".")
	if err != nil {
		panic(err)
	}
	remote := git.NewRemote(repo.Storer, &config.RemoteConfig{Name: "live", URLs: []string{url}})
	err = remote.Push(&git.PushOptions{
		RemoteName: "live", RefSpecs: []config.RefSpec{"refs/heads/main:refs/heads/main"}, Auth: auth, Progress: os.Stderr,
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if _, err = git.Clone(memory.NewStorage(), nil, &git.CloneOptions{URL: url, Auth: auth}); err != nil {
		fmt.Println("clone:", err)
		os.Exit(2)
	}
}
"#;

/// The program uses Debian's package of go-git, and the SSH library of Go.
fn go_git_sees_the_verdict(world: &World) {
    let Some(go) = installed("go") else { return };
    let sources = Path::new("/usr/share/gocode");
    if !sources.join("src/github.com/go-git/go-git").exists() {
        eprintln!("SKIPPED: golang-github-go-git-go-git-dev is not installed");
        return;
    }
    // The program is in the tree where Go looks for sources, and has a module file, so that Go accepts the "/v5" of a package path.
    let place = world.directory().join("home/go");
    let source = place.join("src/push");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("main.go"), GO_GIT).unwrap();
    fs::write(source.join("go.mod"), "module push\n\ngo 1.17\n").unwrap();
    let mut build = world.client(go.to_str().unwrap());
    build.current_dir(&source).env("GO111MODULE", "off").env("GOPATH", format!("{}:{}", place.display(), sources.display()));
    build.env("GOCACHE", place.join("cache")).env("CGO_ENABLED", "0").args(["build", "-o", "../../push", "."]);
    // This command has no time limit, because compiling may take long.
    let built = build.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    verdicts(world, |repo| {
        let mut command = world.client(place.join("push").to_str().unwrap());
        Output::of(command.current_dir(repo.path()).arg(repo.url()).arg(world.private_key("alice")))
    });
}
