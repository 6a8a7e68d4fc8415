//! Listening sockets, which are bound before privileges are dropped.

use std::{io, net::SocketAddr, os::fd::OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

/// The maximum number of connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Listens on `address`. If `both` is true, `[::]` also accepts IPv4 connections.
pub fn listen(address: SocketAddr, both: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !both)?;
    }
    bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn ipv6_wildcard_listener_accepts_ipv4_if_both() {
        for both in [true, false] {
            let Ok(socket) = listen("[::]:0".parse().unwrap(), both) else {
                eprintln!("SKIPPED: this machine has no IPv6");
                return;
            };
            let port = TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap().port();
            assert_eq!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(), both);
        }
    }
}
