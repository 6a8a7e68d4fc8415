//! Connections that several requests share, with the ControlMaster of OpenSSH.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use super::{World, cli::Output, until};

/// A connection of a user that several requests share.
pub struct Connection<'w> {
    world: &'w World,
    user: String,
    socket: std::path::PathBuf,
    master: Child,
}

impl<'w> Connection<'w> {
    /// Opens a connection of `user`, whose key has the same name.
    pub fn open(world: &'w World, user: &str) -> Connection<'w> {
        let home = world.directory().join("home");
        let socket = (0..).map(|number| home.join(format!("c{number}-{user}"))).find(|path| !path.exists()).unwrap();
        let mut command = world.client("ssh");
        command.args(world.ssh_options(user)).args(["-M", "-N", "-S"]).arg(&socket).arg("larder@127.0.0.1");
        let master = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("the connection is there", || socket.exists());
        Connection { world, user: user.to_owned(), socket, master }
    }

    /// Returns the command of a request on this connection.
    pub fn command(&self, words: &[String]) -> Command {
        let mut command = self.world.client("ssh");
        command.args(self.options());
        command.arg("larder@127.0.0.1").arg(shlex::try_join(words.iter().map(String::as_str)).unwrap());
        command
    }

    /// Carries out a request on this connection.
    pub fn ask(&self, words: &[String]) -> Output {
        Output::of(&mut self.command(words))
    }

    /// Returns the options with which OpenSSH and git use this connection.
    pub fn options(&self) -> Vec<String> {
        let socket = ["-S", self.socket.to_str().unwrap(), "-o", "ControlMaster=no"].map(str::to_owned);
        self.world.ssh_options(&self.user).into_iter().chain(socket).collect()
    }

    pub fn is_open(&mut self) -> bool {
        self.master.try_wait().unwrap().is_none()
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        let _ = self.master.kill();
        let _ = self.master.wait();
        let _ = fs::remove_file(&self.socket);
    }
}
