//! Pseudo-terminals of commands.
//!
//! The worker in the sandbox opens the pseudo-terminal, so that its device belongs to the user of the command and has a name in the view of
//! the command. The worker makes the terminal its own controlling terminal ([`attach`]) and passes the other end, the master, to the server
//! through a socket ([`PtyRequest`]). The worker then becomes the command, so no process runs in between. The server moves bytes between the
//! client and the master ([`PtyMaster`]). The terminal hangs up when the server closes the master or exits.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix,
    },
    time::Duration,
};

use rustix::{
    fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat, major, minor},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::ioctl_tiocsctty,
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, ptsname, unlockpt},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    termios::{
        InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex as Code, Termios, Winsize, tcgetattr, tcsetattr,
        tcsetwinsize,
    },
};
use tokio::{
    io::Interest,
    net::{
        UnixDatagram,
        unix::pipe::{Receiver, Sender},
    },
};

use super::launch::wire;
use crate::model::{ClientTerminal, TerminalSize};

/// The maximum size of a message of the worker, in bytes. Without a descriptor, the message is the reason of a failure.
const MAX_MESSAGE: usize = 1024;
/// The maximum number of terminal modes that are sent to a worker. RFC 4254 has fewer.
const MAX_MODES: usize = 128;
/// The time between two attempts to read from or write to a terminal that no process had open at some time.
const CLOSED_PAUSE: Duration = Duration::from_millis(10);
/// The major and minor number of `/dev/ptmx` (Documentation/admin-guide/devices.txt of the kernel).
const PTMX: (u32, u32) = (5, 2);

/// A request for a pseudo-terminal, which a worker answers with the master.
#[derive(Debug)]
pub struct PtyRequest(UnixDatagram);

impl PtyRequest {
    /// Creates a request. Returns the descriptor for the worker, too.
    pub fn new(terminal: &ClientTerminal) -> io::Result<(PtyRequest, OwnedFd)> {
        let (mine, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut terminal = terminal.clone();
        terminal.modes.truncate(MAX_MODES);
        let message = postcard::to_stdvec(&terminal).map_err(io::Error::other)?;
        wire::send(&mine, &message, &[])?;
        let mine = unix::net::UnixDatagram::from(mine);
        mine.set_nonblocking(true)?;
        Ok((PtyRequest(UnixDatagram::from_std(mine)?), theirs))
    }

    /// Waits for the master. Returns an error if the worker cannot open a terminal, or exits before it has opened one.
    pub async fn master(self) -> io::Result<PtyMaster> {
        let mut buffer = [0; MAX_MESSAGE];
        let receive = || wire::receive(&self.0, &mut buffer);
        let received = self.0.async_io(Interest::READABLE, receive).await;
        // The kernel resets the connection of a worker that exits before it has read the request.
        let reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
        let (length, descriptors) = if received.as_ref().is_err_and(reset) { (0, Vec::new()) } else { received? };
        match (descriptors.into_iter().next(), buffer.get(..length).unwrap_or_default()) {
            (Some(master), _) => PtyMaster::new(master),
            (None, []) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the worker exited")),
            (None, reason) => Err(io::Error::other(String::from_utf8_lossy(reason).into_owned())),
        }
    }
}

/// The server's end of a pseudo-terminal. Dropping this value hangs up the terminal: the session that the terminal controls gets SIGHUP.
#[derive(Debug)]
pub struct PtyMaster {
    reader: Receiver,
    writer: Sender,
}

impl PtyMaster {
    /// Takes over the descriptor that a worker has sent. Returns an error if the descriptor is no master of a pseudo-terminal: a read from
    /// another device or file could block the server.
    fn new(master: OwnedFd) -> io::Result<PtyMaster> {
        let found = fstat(&master)?;
        let is_ptmx = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
            && (major(found.st_rdev), minor(found.st_rdev)) == PTMX;
        if !is_ptmx || ptsname(&master, Vec::new()).is_err() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the worker has sent a descriptor that is no pseudo-terminal",
            ));
        }
        fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        let writer = Sender::from_owned_fd_unchecked(master.try_clone()?)?;
        Ok(PtyMaster { reader: Receiver::from_owned_fd_unchecked(master)?, writer })
    }

    /// Reads output of the command. Returns 0 when no process has the terminal open any more.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let ready = self.reader.ready(Interest::READABLE).await?;
            match self.reader.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => pause_if(ready.is_read_closed()).await,
                other => return until_end(other),
            }
        }
    }

    /// Reads output that the kernel already holds. Returns 0 if there is none.
    pub fn read_remaining(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match rustix::io::read(&self.reader, buffer) {
            Err(Errno::WOULDBLOCK) => Ok(0),
            other => until_end(other.map_err(io::Error::from)),
        }
    }

    /// Writes input for the command. Waits while the command does not read and the kernel's buffer is full.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let ready = self.writer.ready(Interest::WRITABLE).await?;
            match self.writer.try_write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => pause_if(ready.is_write_closed()).await,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Types the character that ends the input, as Ctrl-D does. In the middle of a line, the first of two characters ends the line. A program
    /// that has switched off line editing gets no character, because it would read the character as data.
    pub async fn end_input(&self, is_at_line_start: bool) -> io::Result<()> {
        let modes = tcgetattr(&self.reader)?;
        if !modes.local_modes.contains(LocalModes::ICANON) {
            return Ok(());
        }
        let end = modes.special_codes[Code::VEOF];
        let count = if is_at_line_start { 1 } else { 2 };
        self.write_all(&vec![end; count]).await
    }

    /// Returns the descriptor, in blocking mode, for another process.
    pub fn into_descriptor(self) -> io::Result<OwnedFd> {
        drop(self.writer);
        self.reader.into_blocking_fd()
    }

    /// Sets the size. The kernel sends SIGWINCH to the foreground processes if the size differs.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        set_size(&self.reader, size)
    }
}

/// Waits for [`CLOSED_PAUSE`] if a descriptor is reported as closed. Tokio never takes such a report back, so the next wait for the descriptor
/// ends at once. A write to a full terminal that no process has open, and a read after a process has opened the terminal again, would
/// otherwise be repeated without a pause, and no other task of the thread would run.
async fn pause_if(is_closed: bool) {
    if is_closed {
        tokio::time::sleep(CLOSED_PAUSE).await;
    }
}

/// Turns the error of a master whose other end no process has open into the end of the output.
fn until_end(read: io::Result<usize>) -> io::Result<usize> {
    match read {
        Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(0),
        other => other,
    }
}

fn set_size(terminal: impl AsFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

/// Opens a pseudo-terminal, makes it the controlling terminal and the standard descriptors of this process, and sends the master to the
/// server. Returns the value of `TERM`. This process must be the leader of a session without a terminal, as every worker is.
pub fn attach(socket: &OwnedFd) -> io::Result<String> {
    let mut buffer = [0; MAX_MESSAGE];
    let (length, _) = wire::receive(socket, &mut buffer)?;
    let terminal: ClientTerminal = postcard::from_bytes(buffer.get(..length).unwrap_or_default()).map_err(io::Error::other)?;
    match open(&terminal) {
        Ok(master) => wire::send(socket, &[1], &[master.as_fd()])?,
        Err(error) => {
            let reason = format!("cannot open a pseudo-terminal: {error}");
            // If the server is gone, the result does not matter.
            let _ = wire::send(socket, reason.as_bytes(), &[]);
            return Err(io::Error::new(error.kind(), reason));
        }
    }
    Ok(terminal.term().to_owned())
}

/// Opens both ends. The size and the modes are set before the command starts, so that no program sees other values first.
fn open(terminal: &ClientTerminal) -> io::Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    // The kernel opens the device of this master. A path could name another device.
    let device = ioctl_tiocgptpeer(&master, flags)?;
    let mut modes = tcgetattr(&device)?;
    set_modes(&mut modes, &terminal.modes);
    tcsetattr(&device, OptionalActions::Now, &modes)?;
    set_size(&device, terminal.size)?;
    ioctl_tiocsctty(&device)?;
    dup2_stdin(&device)?;
    dup2_stdout(&device)?;
    dup2_stderr(&device)?;
    Ok(master)
}

/// Sets the modes of a client's terminal. Modes that a pseudo-terminal does not have, such as the speed of a line, are ignored.
fn set_modes(modes: &mut Termios, wanted: &[(u8, u32)]) {
    // RFC 4254 switches a character off with 255, and Linux with 0.
    let character = |value: u32| u8::try_from(value).ok().filter(|value| *value != u8::MAX).unwrap_or_default();
    for &(opcode, value) in wanted {
        let is_set = value != 0;
        match opcode {
            1 => modes.special_codes[Code::VINTR] = character(value),
            2 => modes.special_codes[Code::VQUIT] = character(value),
            3 => modes.special_codes[Code::VERASE] = character(value),
            4 => modes.special_codes[Code::VKILL] = character(value),
            5 => modes.special_codes[Code::VEOF] = character(value),
            6 => modes.special_codes[Code::VEOL] = character(value),
            7 => modes.special_codes[Code::VEOL2] = character(value),
            8 => modes.special_codes[Code::VSTART] = character(value),
            9 => modes.special_codes[Code::VSTOP] = character(value),
            10 => modes.special_codes[Code::VSUSP] = character(value),
            12 => modes.special_codes[Code::VREPRINT] = character(value),
            13 => modes.special_codes[Code::VWERASE] = character(value),
            14 => modes.special_codes[Code::VLNEXT] = character(value),
            34 => modes.input_modes.set(InputModes::INLCR, is_set),
            35 => modes.input_modes.set(InputModes::IGNCR, is_set),
            36 => modes.input_modes.set(InputModes::ICRNL, is_set),
            38 => modes.input_modes.set(InputModes::IXON, is_set),
            39 => modes.input_modes.set(InputModes::IXANY, is_set),
            40 => modes.input_modes.set(InputModes::IXOFF, is_set),
            41 => modes.input_modes.set(InputModes::IMAXBEL, is_set),
            42 => modes.input_modes.set(InputModes::IUTF8, is_set),
            50 => modes.local_modes.set(LocalModes::ISIG, is_set),
            51 => modes.local_modes.set(LocalModes::ICANON, is_set),
            53 => modes.local_modes.set(LocalModes::ECHO, is_set),
            54 => modes.local_modes.set(LocalModes::ECHOE, is_set),
            55 => modes.local_modes.set(LocalModes::ECHOK, is_set),
            56 => modes.local_modes.set(LocalModes::ECHONL, is_set),
            57 => modes.local_modes.set(LocalModes::NOFLSH, is_set),
            58 => modes.local_modes.set(LocalModes::TOSTOP, is_set),
            59 => modes.local_modes.set(LocalModes::IEXTEN, is_set),
            60 => modes.local_modes.set(LocalModes::ECHOCTL, is_set),
            61 => modes.local_modes.set(LocalModes::ECHOKE, is_set),
            70 => modes.output_modes.set(OutputModes::OPOST, is_set),
            72 => modes.output_modes.set(OutputModes::ONLCR, is_set),
            73 => modes.output_modes.set(OutputModes::OCRNL, is_set),
            74 => modes.output_modes.set(OutputModes::ONOCR, is_set),
            75 => modes.output_modes.set(OutputModes::ONLRET, is_set),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (PtyMaster, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let device = ioctl_tiocgptpeer(&master, flags).unwrap();
        (PtyMaster::new(master).unwrap(), device)
    }

    #[tokio::test]
    async fn only_a_master_is_accepted_from_a_worker() {
        let (master, device) = pair();
        assert!(PtyMaster::new(device).is_err(), "the other end");
        for file in ["/dev/null", "/dev/zero", "/proc/self/maps"] {
            assert!(PtyMaster::new(std::fs::File::open(file).unwrap().into()).is_err(), "{file}");
        }
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(PtyMaster::new(reader.into()).is_err(), "a pipe");
        drop(master);
    }

    #[tokio::test]
    async fn worker_without_a_terminal_is_an_error_with_its_reason() {
        let terminal = ClientTerminal::new("xterm", TerminalSize::new(80, 24), Vec::new());
        let (request, worker) = PtyRequest::new(&terminal).unwrap();
        drop(worker);
        assert_eq!(request.master().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (request, worker) = PtyRequest::new(&terminal).unwrap();
        wire::send(&worker, b"no terminal is left", &[]).unwrap();
        assert_eq!(request.master().await.unwrap_err().to_string(), "no terminal is left");
    }

    #[tokio::test]
    async fn input_output_size_and_modes_pass_the_terminal() {
        let (master, device) = pair();
        let mut modes = tcgetattr(&device).unwrap();
        // The erase key is Ctrl-H, the interrupt key is switched off, the echo is off, and unknown opcodes are ignored.
        set_modes(&mut modes, &[(3, 8), (1, 255), (53, 0), (128, 38400), (200, 7)]);
        tcsetattr(&device, OptionalActions::Now, &modes).unwrap();
        let set = tcgetattr(&device).unwrap();
        assert_eq!((set.special_codes[Code::VERASE], set.special_codes[Code::VINTR]), (8, 0));
        assert!(!set.local_modes.contains(LocalModes::ECHO) && set.local_modes.contains(LocalModes::ICANON));
        master.resize(TerminalSize::new(132, 43)).unwrap();
        let size = rustix::termios::tcgetwinsize(&device).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (132, 43));
        master.write_all(b"secret\n").await.unwrap();
        let mut buffer = [0; 64];
        assert_eq!(rustix::io::read(&device, &mut buffer).unwrap(), 7);
        rustix::io::write(&device, b"a\nb").unwrap();
        let count = master.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..count], b"a\r\nb");
        // The end of the input is the end of a line and then an empty read.
        master.write_all(b"rest").await.unwrap();
        master.end_input(false).await.unwrap();
        assert_eq!(rustix::io::read(&device, &mut buffer).unwrap(), 4);
        assert_eq!(rustix::io::read(&device, &mut buffer).unwrap(), 0);
        rustix::io::write(&device, b"last").unwrap();
        drop(device);
        assert_eq!(master.read(&mut buffer).await.unwrap(), 4);
        assert_eq!(master.read(&mut buffer).await.unwrap(), 0);
    }

    #[test]
    fn input_that_no_process_reads_does_not_stop_the_output() {
        let (done, is_done) = std::sync::mpsc::channel();
        // A task that never waits also stops the timers of its thread, so the time limit is on this thread.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (master, device) = pair();
                let mut modes = tcgetattr(&device).unwrap();
                modes.make_raw();
                tcsetattr(&device, OptionalActions::Now, &modes).unwrap();
                let showing = async {
                    // By then the terminal is full of input.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    rustix::io::write(&device, b"last").unwrap();
                    drop(device);
                    let mut buffer = [0; 64];
                    assert_eq!(master.read(&mut buffer).await.unwrap(), 4);
                    tokio::time::sleep(CLOSED_PAUSE * 2).await;
                    assert_eq!(master.read(&mut buffer).await.unwrap(), 0);
                };
                let input = vec![b'y'; 1 << 20];
                tokio::select! {
                    typed = master.write_all(&input) => panic!("the terminal took all input: {typed:?}"),
                    () = showing => {}
                }
            });
            done.send(()).unwrap();
        });
        is_done.recv_timeout(Duration::from_secs(30)).expect("the output ends");
    }
}
