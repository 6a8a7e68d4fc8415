//! Internal addresses, to which larder sends no webhook: a project must not reach services of the operator's network through larder.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::AddressRange;

/// IPv4 ranges that are not global (RFC 6890 and the IANA registry of special-purpose addresses), with their prefix lengths.
const INTERNAL_V4: [([u8; 4], u32); 16] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
    ([255, 255, 255, 255], 32),
];

/// The only IPv6 range of global unicast addresses (RFC 4291, section 2.4).
const GLOBAL_V6: (u128, u32) = (0x2000 << 112, 3);

/// Ranges inside of [`GLOBAL_V6`] that are not global: IETF protocol assignments with Teredo, documentation, 6to4.
const INTERNAL_V6: [(u128, u32); 4] = [(0x2001 << 112, 23), (0x2001_0db8 << 96, 32), (0x2002 << 112, 16), (0x3fff << 112, 20)];

/// Returns true if an address belongs to this machine, to a private network, or to a range without global meaning.
pub(super) fn is_internal(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => INTERNAL_V4.iter().any(|(network, length)| is_in_v4(ip, Ipv4Addr::from(*network), *length)),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => is_internal(IpAddr::V4(ip)),
            None => !is_in_v6(ip, GLOBAL_V6) || INTERNAL_V6.iter().any(|range| is_in_v6(ip, *range)),
        },
    }
}

fn is_in_v4(ip: Ipv4Addr, network: Ipv4Addr, length: u32) -> bool {
    let shift = 32_u32.saturating_sub(length);
    ip.to_bits().checked_shr(shift) == network.to_bits().checked_shr(shift)
}

fn is_in_v6(ip: Ipv6Addr, (network, length): (u128, u32)) -> bool {
    let shift = 128_u32.saturating_sub(length);
    ip.to_bits().checked_shr(shift) == network.checked_shr(shift)
}

/// Returns the addresses to which a connection may be made. If one of the addresses is internal and not in `allowed`, no address may be used,
/// because an attacker may have added the address to the answer of a name server.
///
/// # Errors
/// The internal address, as text for the operator.
pub(super) fn checked(addresses: &[SocketAddr], allowed: &[AddressRange]) -> Result<(), String> {
    if addresses.is_empty() {
        return Err(String::from("the host has no address"));
    }
    let is_refused = |ip: IpAddr| is_internal(ip) && !allowed.iter().any(|range| range.contains(ip));
    match addresses.iter().find(|address| is_refused(address.ip())) {
        Some(_) => {
            Err(String::from("the host has an internal address, which `webhooks.allow` of the server file does not allow"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_addresses_are_refused() {
        for text in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2001::1",
        ] {
            assert!(is_internal(text.parse().unwrap()), "{text}");
        }
        for text in
            ["1.1.1.1", "9.255.255.255", "11.0.0.0", "172.32.0.1", "100.128.0.1", "193.0.0.1", "2606:4700::1111", "2a00:1450::1"]
        {
            assert!(!is_internal(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn one_internal_address_refuses_the_host_unless_it_is_allowed() {
        let socket = |text: &str| text.parse::<SocketAddr>().unwrap();
        let both = [socket("1.1.1.1:443"), socket("127.0.0.1:443")];
        assert!(checked(&both, &[]).is_err() && checked(&[], &[]).is_err() && checked(&both[..1], &[]).is_ok());
        assert!(checked(&both, &["127.0.0.0/8".parse().unwrap()]).is_ok());
        assert!(checked(&both, &["10.0.0.0/8".parse().unwrap()]).is_err());
        assert!(checked(&[socket("[::ffff:127.0.0.1]:80")], &["127.0.0.1".parse().unwrap()]).is_ok());
    }
}
