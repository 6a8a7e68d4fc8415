//! A simulated machine: a network namespace and a mount namespace. One process holds both namespaces. When this process exits, the kernel
//! removes the namespaces with their links and mounts.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{cli::Output, server::PATH};

/// The script that removes all programs of a machine, except the programs that the arguments of the script name.
const BARE: &str = r#"
mount -t tmpfs -o mode=755,size=1m none /mnt
mkdir /mnt/bin /mnt/none
for program in "$@"; do
    real=$(readlink -f -- "$(command -v "$program")")
    for name in "${program##*/}" "${real##*/}"; do
        [ ! -e "/mnt/bin/$name" ] || continue
        : >"/mnt/bin/$name"
        mount --bind "$real" "/mnt/bin/$name"
    done
done
for directory in /usr/local/bin /usr/local/sbin /usr/local/lib /usr/games /usr/include /opt /usr/lib/gcc /usr/lib/node_modules \
    /usr/lib/python3/dist-packages /usr/lib/python3*/ensurepip /usr/share/python-wheels /usr/share/nodejs /usr/share/npm; do
    [ ! -d "$directory" ] || mount --bind /mnt/none "$directory"
done
mount --rbind /mnt/bin /usr/sbin
mount --rbind /mnt/bin /usr/bin
"#;

/// A simulated machine.
pub struct Machine {
    holder: Child,
    net: File,
}

impl Machine {
    /// Creates a machine with only a loopback device. If the rights or the program `ip` are missing, prints `SKIPPED:` and returns `None`.
    pub fn new() -> Option<Machine> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a simulated machine needs root");
            return None;
        }
        super::installed("ip")?;
        // When the thread that started the holder ends or is killed, the kernel kills the holder.
        let words =
            ["--pdeathsig", "KILL", "--", "unshare", "--net", "--mount", "--propagation", "private", "--", "sleep", "infinity"];
        let mut holder = Command::new("setpriv");
        holder.args(words).env_clear().env("PATH", PATH).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        let mut holder = holder.stderr(Stdio::piped()).spawn().unwrap();
        let of = format!("/proc/{}", holder.id());
        super::until("the machine is there", || {
            let ready = fs::read_to_string(format!("{of}/comm")).is_ok_and(|name| name.trim() == "sleep");
            ready || holder.try_wait().unwrap().is_some()
        });
        if holder.try_wait().unwrap().is_some() {
            let mut why = String::new();
            let _ = holder.stderr.take().unwrap().read_to_string(&mut why);
            eprintln!("SKIPPED: cannot create a simulated machine: {}", why.trim());
            return None;
        }
        let net = File::open(format!("{of}/ns/net")).unwrap();
        let machine = Machine { holder, net };
        machine.runs(&["ip", "link", "set", "lo", "up"]);
        Some(machine)
    }

    /// Connects two machines, with an address at each end. The kernel removes the link when one of the machines is removed.
    pub fn connect(&self, address: Ipv4Addr, other: &Machine, there: Ipv4Addr) {
        let [here, far] = [self, other].map(|machine| machine.holder.id().to_string());
        let words = ["link", "add", "cable", "netns", &here, "type", "veth", "peer", "name", "cable", "netns", &far];
        Output::of(Command::new("ip").args(words)).ok();
        for (machine, address) in [(self, address), (other, there)] {
            machine.runs(&["ip", "address", "add", &format!("{address}/30"), "dev", "cable"]);
            machine.runs(&["ip", "link", "set", "cable", "up"]);
        }
    }

    /// Removes all programs except `programs` from the directories of programs.
    pub fn keep_only(&self, programs: &[&str]) {
        self.runs(&[&["sh", "-euc", BARE, "sh"], programs].concat());
    }

    /// Returns the start of a command line that runs a command on this machine. The caller appends the command.
    pub fn prefix(&self) -> Vec<String> {
        let holder = self.holder.id().to_string();
        ["nsenter", "--target", &holder, "--net", "--mount", "--"].map(str::to_owned).into()
    }

    fn runs(&self, words: &[&str]) {
        let prefix = self.prefix();
        let mut command = Command::new(&prefix[0]);
        Output::of(command.args(&prefix[1..]).args(words).env_clear().env("PATH", PATH)).ok();
    }

    /// Runs a function, with all programs that it starts, in this machine's network.
    #[track_caller]
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.net.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                act()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Returns the network devices, and the addresses of the networks that are reachable through these devices.
    pub fn network(&self) -> (Vec<String>, Vec<IpAddr>) {
        let read = |name: &str| fs::read_to_string(format!("/proc/{}/net/{name}", self.holder.id())).unwrap();
        let devices = read("dev").lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect();
        let network = |line: &str| {
            let number = u32::from_str_radix(line.split_whitespace().nth(1)?, 16).ok()?;
            Some(IpAddr::from(number.to_ne_bytes()))
        };
        (devices, read("route").lines().skip(1).filter_map(network).collect())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A web proxy on a machine's loopback, which is the machine's only connection to other networks. The proxy forwards `CONNECT` requests,
/// which https clients send.
pub struct WebProxy {
    pub address: SocketAddr,
    machine: File,
    stop: Arc<AtomicBool>,
}

impl WebProxy {
    pub fn on(machine: &Machine) -> WebProxy {
        // A socket stays in the network namespace in which it was created. The threads that connect to the targets are started outside of
        // `inside`, so they are in the namespace of the tests.
        let listener = machine.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let (address, stop) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::spawn(move || carry(client));
            }
        });
        WebProxy { address, machine: machine.net.try_clone().unwrap(), stop }
    }
}

impl Drop for WebProxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let (machine, address) = (&self.machine, self.address);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let _ = move_into_link_name_space(machine.as_fd(), Some(LinkNameSpaceType::Network));
                // The listener's thread checks `stop` only after it has accepted a connection.
                let _ = TcpStream::connect(address);
            });
        });
    }
}

/// Serves one connection through the proxy.
fn carry(client: TcpStream) -> Option<()> {
    let mut asked = BufReader::new(client.try_clone().ok()?);
    let mut line = String::new();
    asked.read_line(&mut line).ok()?;
    let target = line.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    while line.trim() != "" {
        line.clear();
        asked.read_line(&mut line).ok()?;
    }
    let Ok(server) = TcpStream::connect(&target) else {
        (&client).write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").ok()?;
        return None;
    };
    (&client).write_all(b"HTTP/1.1 200 Connected\r\n\r\n").ok()?;
    let mut to = server.try_clone().ok()?;
    let up = std::thread::spawn(move || {
        let _ = std::io::copy(&mut asked, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut &server, &mut &client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = up.join();
    Some(())
}
