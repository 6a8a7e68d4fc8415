//! Debian's Postfix as the mail server of a test, with its own configuration, queue and mailboxes below the directory of a world.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{World, cli::Output, within};

/// The user of the mailboxes: `nobody`.
const USER: u32 = 65_534;
const PROGRAMS: &str = "/usr/lib/postfix/sbin";

/// A running Postfix that stores the mails to all addresses of example.com. Dropping the value ends the server.
pub struct Postfix {
    pub port: u16,
    directory: PathBuf,
    master: Child,
}

impl Postfix {
    /// Starts a server. Without root or Postfix, prints `SKIPPED:` and returns `None`.
    pub fn start(world: &World) -> Option<Postfix> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: Postfix needs root");
            return None;
        }
        if !Path::new(PROGRAMS).join("master").is_file() {
            eprintln!("SKIPPED: postfix is not installed");
            return None;
        }
        let directory = world.directory().join("postfix");
        for name in ["etc", "queue", "data", "boxes"] {
            fs::create_dir_all(directory.join(name)).unwrap();
        }
        chown(directory.join("boxes"), Some(USER), Some(USER)).unwrap();
        Output::of(Command::new("chown").arg("postfix").arg(directory.join("data"))).ok();
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let place = directory.display();
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {place}/queue\ndata_directory = {place}/data\n\
             command_directory = /usr/sbin\ndaemon_directory = {PROGRAMS}\nmyhostname = mail.example.com\nmydestination =\n\
             virtual_mailbox_domains = example.com\nvirtual_mailbox_base = {place}/boxes\nvirtual_mailbox_maps = static:all/\n\
             virtual_uid_maps = static:{USER}\nvirtual_gid_maps = static:{USER}\nvirtual_minimum_uid = 1\n\
             inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmynetworks = 127.0.0.0/8\n\
             smtpd_relay_restrictions = permit_mynetworks, reject\nalias_maps =\nalias_database =\n\
             maillog_file = {place}/log\nmaillog_file_prefixes = {place}\n"
        );
        let services = [
            (format!("127.0.0.1:{port} inet n - n - -"), "smtpd"),
            (String::from("pickup unix n - n 60 1"), "pickup"),
            (String::from("cleanup unix n - n - 0"), "cleanup"),
            (String::from("qmgr unix n - n 300 1"), "qmgr"),
            (String::from("tlsmgr unix - - n 1000? 1"), "tlsmgr"),
            (String::from("rewrite unix - - n - -"), "trivial-rewrite"),
            (String::from("bounce unix - - n - 0"), "bounce"),
            (String::from("defer unix - - n - 0"), "bounce"),
            (String::from("trace unix - - n - 0"), "bounce"),
            (String::from("proxymap unix - - n - -"), "proxymap"),
            (String::from("error unix - - n - -"), "error"),
            (String::from("retry unix - - n - -"), "error"),
            (String::from("virtual unix - n n - -"), "virtual"),
            (String::from("anvil unix - - n - 1"), "anvil"),
            (String::from("postlog unix-dgram n - n - 1"), "postlogd"),
        ];
        let master: String = services.iter().map(|(service, program)| format!("{service} {program}\n")).collect();
        fs::write(directory.join("etc/main.cf"), main).unwrap();
        fs::write(directory.join("etc/master.cf"), master).unwrap();
        for name in ["etc", "queue", "."] {
            fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        // This command creates the directories of the queue.
        Output::of(Command::new("/usr/sbin/postfix").arg("-c").arg(directory.join("etc")).arg("check"));
        let log = fs::File::create(directory.join("master.log")).unwrap();
        let mut command = Command::new(Path::new(PROGRAMS).join("master"));
        command.arg("-c").arg(directory.join("etc")).arg("-d").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let postfix = Postfix { port, directory, master: command.spawn().unwrap() };
        let listens = within(std::time::Duration::from_secs(30), || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        assert!(listens, "Postfix does not listen: {}", postfix.log());
        Some(postfix)
    }

    /// Returns the stored mails.
    pub fn mails(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.join("boxes/all/new")).into_iter().flatten().flatten();
        entries.map(|entry| fs::read_to_string(entry.path()).unwrap()).collect()
    }

    /// Returns the log, for messages.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.directory.join(name)).unwrap_or_default();
        read("log") + &read("master.log")
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        // The master ends its services.
        let _ = kill_process(Pid::from_child(&self.master), Signal::TERM);
        let _ = self.master.wait();
    }
}
