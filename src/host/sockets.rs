//! Finds the user who owns a listening socket. All projects share the ports of the machine, so the proxy checks the owner of each
//! upstream's port.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR` and `NLM_F_REQUEST` of `linux/netlink.h`.
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
/// The size of `struct nlmsghdr` of `linux/netlink.h`, in bytes.
const HEADER: usize = 16;
/// The offset of the uid in an answer. In `struct inet_diag_msg`, the uid follows four bytes, the socket's identity (48 bytes) and three
/// numbers of four bytes.
const UID: usize = HEADER + 4 + 48 + 12;

/// Returns the user id of the listener that accepts connections to `address`, or `None` if no process listens at `address`. If a process
/// listens, the call takes a few microseconds, independently of the number of sockets.
pub fn listener(address: SocketAddr) -> io::Result<Option<u32>> {
    match query(address) {
        Ok(Some(uid)) => Ok(Some(uid)),
        // A kernel without the sock_diag interface returns the same answer as for an address without a listener. Therefore the kernel's
        // lists are searched.
        Ok(None) | Err(_) => search(address),
    }
}

/// Queries the kernel for the user id of the socket that would accept a new connection (sock_diag(7)).
fn query(address: SocketAddr) -> io::Result<Option<u32>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))?;
    send(&socket, &request(address), SendFlags::empty())?;
    let mut answer = [0; 1024];
    // The answer is in the socket before `send` returns, so `recv` does not wait.
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let answer = answer.get(..length).unwrap_or_default();
    let number = |at: usize| answer.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes);
    let kind = answer.get(4..).and_then(|rest| rest.first_chunk()).copied().map(u16::from_ne_bytes);
    match (kind, number(HEADER)) {
        (Some(BY_FAMILY), _) => number(UID).map(Some).ok_or_else(|| io::Error::other("the kernel's answer is too short")),
        (Some(ERROR), Some(code)) => match i32::from_ne_bytes(code.to_ne_bytes()).checked_neg() {
            Some(libc::ENOENT) => Ok(None),
            code => Err(io::Error::from_raw_os_error(code.unwrap_or_default())),
        },
        _ => Err(io::Error::other("the kernel's answer has an unknown type")),
    }
}

fn request(address: SocketAddr) -> Vec<u8> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let ip = |address: IpAddr| match address {
        IpAddr::V4(address) => [&address.octets()[..], &[0; 12]].concat(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut body = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(address.port().to_be_bytes());
    // The port of the peer is 0. No connection has a peer with port 0, so only a listener matches.
    body.extend(0_u16.to_be_bytes());
    body.extend([ip(address.ip()), ip(address.ip())].concat());
    body.extend(0_u32.to_ne_bytes());
    body.extend(u64::MAX.to_ne_bytes());
    let mut message = u32::try_from(HEADER.saturating_add(body.len())).unwrap_or_default().to_ne_bytes().to_vec();
    message.extend([BY_FAMILY, REQUEST].map(u16::to_ne_bytes).concat());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Searches the kernel's lists of all TCP sockets, `/proc/net/tcp` and `/proc/net/tcp6`, for the listener at `address`.
fn search(address: SocketAddr) -> io::Result<Option<u32>> {
    let old = fs::read_to_string("/proc/net/tcp")?;
    // On a machine without IPv6, `/proc/net/tcp6` does not exist.
    let new = fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
    Ok(listed(&format!("{old}{new}"), address))
}

fn listed(lists: &str, address: SocketAddr) -> Option<u32> {
    let hex = |octets: &[u8]| {
        let words = octets.chunks(4).filter_map(|word| word.first_chunk().copied().map(u32::from_ne_bytes));
        words.map(|word| format!("{word:08X}")).collect::<String>()
    };
    let (exact, mapped) = match address.ip() {
        IpAddr::V4(ip) => (hex(&ip.octets()), hex(&ip.to_ipv6_mapped().octets())),
        IpAddr::V6(ip) => (hex(&ip.octets()), String::new()),
    };
    // The addresses are in the kernel's order of preference: a listener on an earlier address gets the connection.
    let addresses = [exact, mapped, hex(&Ipv4Addr::UNSPECIFIED.octets()), "0".repeat(32)];
    let port = format!("{:04X}", address.port());
    let listening = lists.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, number) = fields.next()?.split_once(':')?;
        let listens = fields.nth(1)? == "0A" && number == port;
        let uid = fields.nth(3)?.parse().ok()?;
        let rank = addresses.iter().position(|known| known == local)?;
        listens.then_some((rank, uid))
    });
    listening.min_by_key(|(rank, _)| *rank).map(|(_, uid)| uid)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn listener_is_found_on_specific_and_wildcard_addresses() {
        let me = rustix::process::geteuid().as_raw();
        for host in ["127.0.0.1", "0.0.0.0", "[::]", "[::1]"] {
            let gone = || {
                let Ok(listener) = TcpListener::bind(format!("{host}:0")) else { return true };
                let port = listener.local_addr().unwrap().port();
                let address = format!("{}:{port}", if host == "[::1]" { host } else { "127.0.0.1" }).parse().unwrap();
                // An open connection must not hide the listener.
                let _open = std::net::TcpStream::connect(address).unwrap();
                assert_eq!(super::listener(address).unwrap(), Some(me), "{host}");
                assert_eq!(search(address).unwrap(), Some(me), "{host}");
                drop(listener);
                // The child that another test forks at this moment holds the socket until the child runs its program.
                let mut waits = (0..100).map(|_| std::thread::sleep(std::time::Duration::from_millis(20)));
                super::listener(address).unwrap().is_none() || waits.any(|()| super::listener(address).unwrap().is_none())
            };
            // Another test may bind the port as soon as the port is free, but not five times in succession.
            assert!((0..5).any(|_| gone()), "{host}");
        }
    }

    #[test]
    fn sockets_are_ranked_in_the_order_of_the_kernel() {
        let line = |place: &str, state: &str, uid: u32| {
            format!("   0: {place}:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5}        0 1 1 0\n")
        };
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let address = "127.0.0.1:8080".parse().unwrap();
        let any = line("00000000", "0A", 1);
        let exact = line(&format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1])), "0A", 2);
        let new = line(&"0".repeat(32), "0A", 3);
        let open = line(&format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1])), "01", 4);
        assert_eq!(listed(&format!("{head}{open}{any}{exact}{head}{new}"), address), Some(2));
        assert_eq!(listed(&format!("{head}{open}{any}{head}{new}"), address), Some(1));
        assert_eq!(listed(&format!("{head}{open}{head}{new}"), address), Some(3));
        assert_eq!(listed(&format!("{head}{open}"), address), None);
        assert_eq!(listed(&exact, "127.0.0.1:8081".parse().unwrap()), None);
    }
}
