//! A terminal window in which a person runs a program: a pseudo-terminal whose other end the program has as its controlling terminal.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    process::Signal,
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use super::{World, until, within};

/// A terminal window with its program. Dropping the window kills the program.
pub struct Terminal {
    master: File,
    child: Child,
    seen: Arc<Mutex<Vec<u8>>>,
    /// The end of the output that [`Terminal::shows`] has found.
    found: usize,
    is_paused: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Runs a command in a new window. Without the program `setsid`, prints `SKIPPED:` and returns `None`.
    pub fn open(command: &Command, columns: u16, rows: u16) -> Option<Terminal> {
        super::installed("setsid")?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let device = ioctl_tiocgptpeer(&master, flags).unwrap();
        set_size(&master, columns, rows);
        fcntl_setfl(&master, fcntl_getfl(&master).unwrap() | OFlags::NONBLOCK).unwrap();
        let mut program = Command::new("setsid");
        program.arg("--ctty").arg(command.get_program()).args(command.get_args()).env_clear();
        program.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm-256color");
        if let Some(directory) = command.get_current_dir() {
            program.current_dir(directory);
        }
        program.stdin(device.try_clone().unwrap()).stdout(device.try_clone().unwrap()).stderr(device);
        let child = program.spawn().unwrap();
        // The command holds copies of the device, and the end of the output needs that none is open.
        drop(program);
        let (seen, is_paused) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let master = File::from(master);
        let (mut from, to, pause) = (master.try_clone().unwrap(), seen.clone(), is_paused.clone());
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            loop {
                while pause.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                match from.read(&mut buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(2)),
                    // The error of a terminal that no process has open.
                    Ok(0) | Err(_) => return,
                    Ok(count) => to.lock().extend_from_slice(&buffer[..count]),
                }
            }
        });
        Some(Terminal { master, child, seen, found: 0, is_paused, reader: Some(reader) })
    }

    /// Runs `ssh -t larder@server WORDS...` as a user, in a window of 100 columns and 37 rows.
    pub fn ssh(world: &World, user: &str, words: &[&str]) -> Option<Terminal> {
        let mut command = world.client("ssh");
        command.args(world.ssh_options(user)).args(["-t", "-e", "none", "larder@127.0.0.1"]).args(words);
        Terminal::open(&command, 100, 37)
    }

    /// Types bytes.
    pub fn types(&mut self, bytes: impl AsRef<[u8]>) {
        type_bytes(&self.master, bytes.as_ref(), &|| false);
    }

    /// Returns another handle of the keyboard, for a thread that types.
    pub fn keyboard(&self) -> File {
        self.master.try_clone().unwrap()
    }

    /// Waits until the program shows `text`, after the text of the last call.
    #[track_caller]
    pub fn shows(&mut self, text: &str) {
        let at = || self.seen.lock()[self.found..].windows(text.len()).position(|part| part == text.as_bytes());
        if !within(Duration::from_secs(60), || at().is_some()) {
            panic!("{text:?} is not in {:?}", self.output());
        }
        self.found += at().unwrap() + text.len();
    }

    /// Changes the size of the window.
    pub fn resize(&self, columns: u16, rows: u16) {
        set_size(&self.master, columns, rows);
    }

    /// Stops reading the output of the program, or reads on.
    pub fn pause(&self, is_paused: bool) {
        self.is_paused.store(is_paused, Ordering::Relaxed);
    }

    /// Returns the output so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock()).into_owned()
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.seen.lock().clone()
    }

    /// Kills the program, as a crash of the laptop does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end of the program. Returns its exit status and all output.
    #[track_caller]
    pub fn ends(mut self) -> (i32, Vec<u8>) {
        let mut status = None;
        until("the program in the terminal ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.reader.take().unwrap().join().unwrap();
        (status.unwrap().code().unwrap_or(-1), self.bytes())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.pause(false);
        if let Ok(None) = self.child.try_wait() {
            super::processes::signal(self.child.id() as i32, Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// Types bytes until all of them are typed, or `is_over` returns true. A write never blocks, because a write to a terminal whose program is killed
/// would block forever.
pub fn type_bytes(mut keyboard: &File, mut bytes: &[u8], is_over: &dyn Fn() -> bool) {
    while !bytes.is_empty() && !is_over() {
        match keyboard.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => panic!("cannot type: {error}"),
        }
    }
}

fn set_size(terminal: impl std::os::fd::AsFd, columns: u16, rows: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

/// Returns the memory of a process in kibibytes.
pub fn memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
