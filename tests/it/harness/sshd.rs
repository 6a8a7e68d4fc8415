//! An OpenSSH server of a world with the subsystem sftp: with its own host key, port and keys of users, ended with the world.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{World, cli::Output, installed, within};

/// A running server.
pub struct Sshd {
    process: Option<Child>,
    directory: PathBuf,
    pub port: u16,
}

impl Sshd {
    /// Starts a server that accepts the key of `alice` for the user `root`. Without root or OpenSSH's server, prints `SKIPPED:` and returns
    /// nothing.
    pub fn start(world: &World) -> Option<Sshd> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: sshd needs root");
            return None;
        }
        let daemon = ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().map(Path::new).find(|path| path.is_file());
        let Some(daemon) = daemon else {
            eprintln!("SKIPPED: sshd is not installed");
            return None;
        };
        installed("ssh-keygen")?;
        let directory = world.directory().join("sshd");
        fs::create_dir(&directory).unwrap();
        for (kind, name) in [("ed25519", "host"), ("ecdsa", "other")] {
            let mut keygen = world.client("ssh-keygen");
            Output::of(keygen.args(["-q", "-t", kind, "-N", "", "-f"]).arg(directory.join(name))).ok();
        }
        fs::copy(world.public_key("alice"), directory.join("authorized")).unwrap();
        let mut sshd = Sshd { process: None, directory, port: 0 };
        let shadow = sshd.directory.join("shadow");
        fs::write(&shadow, "root:*:20000:0:99999:7:::\nsshd:*:20000:0:99999:7:::\n").unwrap();
        fs::set_permissions(&shadow, fs::Permissions::from_mode(0o600)).unwrap();
        for _ in 0..5 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            let shown = sshd.directory.display();
            let text = format!(
                "ListenAddress 127.0.0.1:{port}\nHostKey {shown}/host\nHostKey {shown}/other\nAuthorizedKeysFile {shown}/authorized\n\
                 PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitUserRC no\nPermitRootLogin yes\n\
                 KbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\nForceCommand internal-sftp\nLogLevel ERROR\n"
            );
            fs::write(sshd.directory.join("config"), text).unwrap();
            let log = fs::File::create(sshd.directory.join("log")).unwrap();
            // In a mount namespace of its own, the server has the directory that it demands, and a user who may log in with a key.
            let script =
                "mount -t tmpfs none /run && mkdir /run/sshd && mount --bind \"$1\" /etc/shadow && exec \"$2\" -D -e -f \"$3\"";
            let mut serve = Command::new("unshare");
            serve.args(["--mount", "--", "sh", "-c", script, "sh"]).arg(&shadow).arg(daemon).arg(sshd.directory.join("config"));
            serve.stdin(Stdio::null());
            let mut process = serve.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
            let mut ended = false;
            within(std::time::Duration::from_secs(30), || {
                ended = process.try_wait().unwrap().is_some();
                ended || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
            });
            if !ended {
                (sshd.process, sshd.port) = (Some(process), port);
                return Some(sshd);
            }
        }
        panic!("sshd does not start: {}", sshd.log());
    }

    /// Returns the lines of `known_hosts` for this server, with the key of one kind only.
    pub fn known_hosts(&self) -> String {
        let key = fs::read_to_string(self.directory.join("other.pub")).unwrap();
        format!("[127.0.0.1]:{} {key}", self.port)
    }

    /// Returns the log of the server.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // Each connection has processes of its own, which end with their clients.
        if let Some(process) = &mut self.process {
            let _ = (process.kill(), process.wait());
        }
    }
}
