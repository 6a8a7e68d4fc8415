//! A command in a pseudo-terminal of the server on this machine: this process moves bytes between its own terminal and the master that the
//! server has passed.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read, Write as _},
    os::fd::{AsFd, OwnedFd},
};

use rustix::termios::{OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use tokio::signal::unix::{SignalKind, signal};

use crate::model::{ClientTerminal, TerminalSize};

/// The opcode of the erase key in RFC 4254, and the opcode for input in UTF-8 in RFC 8160.
const ERASE: u8 = 3;
const UTF8: u8 = 42;

/// Returns the terminal of this process, or `None` if the standard input or output is no terminal.
pub(super) fn terminal() -> Option<ClientTerminal> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    if !stdin.is_terminal() || !stdout.is_terminal() {
        return None;
    }
    let size =
        tcgetwinsize(&stdout).map_or(TerminalSize::default(), |size| TerminalSize::new(size.ws_col.into(), size.ws_row.into()));
    let erase = tcgetattr(&stdin).map_or(0x7f, |modes| modes.special_codes[SpecialCodeIndex::VERASE]);
    let term = std::env::var("TERM").unwrap_or_default();
    Some(ClientTerminal::new(&term, size, vec![(ERASE, erase.into()), (UTF8, 1)]))
}

/// The raw mode of this process's terminal. Dropping this value restores the former modes.
struct RawMode {
    terminal: OwnedFd,
    former: Termios,
}

impl RawMode {
    fn enter() -> io::Result<RawMode> {
        let terminal = io::stdin().as_fd().try_clone_to_owned()?;
        let former = tcgetattr(&terminal)?;
        let mut raw = former.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(RawMode { terminal, former })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.former);
    }
}

/// Shows the command until no process has its terminal open.
pub(super) fn show(master: OwnedFd) -> io::Result<()> {
    let raw = RawMode::enter()?;
    let mut screen = File::from(master.try_clone()?);
    let mut keyboard = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let window = master.try_clone()?;
    let mut keys = File::from(master);
    // These threads end with the process.
    std::thread::spawn(move || copy(&mut keyboard, &mut |typed| keys.write_all(typed)));
    std::thread::spawn(move || follow_window(&window));
    let mut stdout = io::stdout().lock();
    copy(&mut screen, &mut |shown| stdout.write_all(shown).and_then(|()| stdout.flush()));
    drop(raw);
    Ok(())
}

/// Copies bytes until an end or an error. The end of a pseudo-terminal is an error.
fn copy(from: &mut impl Read, to: &mut dyn FnMut(&[u8]) -> io::Result<()>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(count @ 1..) if to(buffer.get(..count).unwrap_or_default()).is_ok() => {}
            _ => return,
        }
    }
}

/// Gives the command each new size of the window.
fn follow_window(master: &OwnedFd) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
    runtime.block_on(async {
        let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
        loop {
            // The window may have changed before the signal was registered.
            let size = tcgetwinsize(io::stdout());
            let _ = size.and_then(|size| tcsetwinsize(master, size));
            if changes.recv().await.is_none() {
                return;
            }
        }
    });
}
