//! Debian's Postfix as the mail server of a test, with its own configuration, queue and mailboxes below the directory of a world.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{World, cli::Output, mail::Mail, processes, within};

/// The user of the mailboxes: `nobody`.
const USER: u32 = 65_534;
const PROGRAMS: &str = "/usr/lib/postfix/sbin";

/// A running Postfix that stores the mails to all addresses of example.com. Dropping the value ends the server.
pub struct Postfix {
    pub port: u16,
    directory: PathBuf,
    /// The process that starts the services; `None` while the server is down.
    master: Option<Child>,
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
             smtpd_relay_restrictions = permit_mynetworks, reject\nalias_maps =\nalias_database =\nsmtpd_error_sleep_time = 0\n\
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
        let mut postfix = Postfix { port, directory, master: None };
        postfix.up();
        Some(postfix)
    }

    /// Starts the server again on the same port.
    pub fn up(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.directory.join("master.log")).unwrap();
        let mut command = Command::new(Path::new(PROGRAMS).join("master"));
        command.arg("-c").arg(self.directory.join("etc")).arg("-d").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.master = Some(command.spawn().unwrap());
        let listens = within(std::time::Duration::from_secs(30), || TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok());
        assert!(listens, "Postfix does not listen: {}", self.log());
    }

    /// Ends the server and its services. Connections are refused until [`Postfix::up`].
    pub fn down(&mut self) {
        let Some(mut master) = self.master.take() else { return };
        self.go_on_with(&master);
        // The master ends its services.
        let _ = kill_process(Pid::from_child(&master), Signal::TERM);
        let _ = master.wait();
        within(std::time::Duration::from_secs(10), || TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err());
    }

    /// Stops the processes of the server. The kernel still accepts connections, and nothing is answered until [`Postfix::go_on`].
    pub fn hang(&self) {
        let master = self.master.as_ref().unwrap();
        let _ = kill_process(Pid::from_child(master), Signal::STOP);
        services(master).into_iter().for_each(|pid| processes::signal(pid, Signal::STOP));
    }

    /// Continues the processes of the server.
    pub fn go_on(&self) {
        self.go_on_with(self.master.as_ref().unwrap());
    }

    fn go_on_with(&self, master: &Child) {
        services(master).into_iter().for_each(|pid| processes::signal(pid, Signal::CONT));
        let _ = kill_process(Pid::from_child(master), Signal::CONT);
    }

    /// Starts the server anew so that it refuses each recipient for now (450), or so that it no longer does.
    pub fn defer(&mut self, defers: bool) {
        const SETTING: &str = "smtpd_recipient_restrictions = defer\n";
        let path = self.directory.join("etc/main.cf");
        let text = fs::read_to_string(&path).unwrap();
        if text.contains(SETTING) == defers {
            return;
        }
        self.down();
        fs::write(&path, if defers { text + SETTING } else { text.replace(SETTING, "") }).unwrap();
        self.up();
    }

    /// Returns the stored mails, in the order in which the server accepted them.
    pub fn mails(&self) -> Vec<Mail> {
        let log = self.log();
        let entries = fs::read_dir(self.directory.join("boxes/all/new")).into_iter().flatten().flatten();
        let mut mails: Vec<_> = entries
            .map(|entry| {
                let mail = Mail::stored(&fs::read_to_string(entry.path()).unwrap());
                // The queue id is in the header `Received`, and the log has a line with it for each accepted mail.
                let received = mail.header("Received").unwrap();
                let id = received.split(" id ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
                // The log may lag behind.
                (log.find(&format!(": {id}: message-id=")).unwrap_or(usize::MAX), mail)
            })
            .collect();
        mails.sort_by_key(|(at, _)| *at);
        mails.into_iter().map(|(_, mail)| mail).collect()
    }

    /// Returns the log, for messages.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.directory.join(name)).unwrap_or_default();
        read("log") + &read("master.log")
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        self.down();
    }
}

/// Returns the processes that the master has started.
fn services(master: &Child) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", master.id())).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
