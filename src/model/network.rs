//! A range of network addresses.

use std::{fmt, net::IpAddr, str::FromStr};

use super::text_form;

/// A range of addresses, such as `192.0.2.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    /// Any address in the range.
    pub address: IpAddr,
    /// The number of leading bits that all addresses of the range share.
    pub prefix: u8,
}

impl Network {
    /// Returns true if an address is in this range. An IPv4 address mapped into IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address.to_canonical(), address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let shift = 32_u32.saturating_sub(self.prefix.into());
                ours.to_bits().checked_shr(shift).unwrap_or(0) == theirs.to_bits().checked_shr(shift).unwrap_or(0)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let shift = 128_u32.saturating_sub(self.prefix.into());
                ours.to_bits().checked_shr(shift).unwrap_or(0) == theirs.to_bits().checked_shr(shift).unwrap_or(0)
            }
            _ => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is not a range of addresses (expected an address or a range such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32)"
)]
/// The reason why a text is not a range of addresses.
pub struct NetworkError {
    given: String,
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Network, NetworkError> {
        let wrong = || NetworkError { given: text.chars().take(60).collect() };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => digits.parse().map_err(|_| wrong())?,
            Some(_) => return Err(wrong()),
        };
        let network = Network { address, prefix };
        // A range whose address has bits after the prefix is probably a typing error.
        if prefix > bits || network.host_bits() { Err(wrong()) } else { Ok(network) }
    }
}

impl Network {
    /// Returns true if the address has bits after the prefix.
    fn host_bits(&self) -> bool {
        let prefix = u32::from(self.prefix);
        match self.address {
            IpAddr::V4(address) => address.to_bits().checked_shl(prefix).unwrap_or(0) != 0,
            IpAddr::V6(address) => address.to_bits().checked_shl(prefix).unwrap_or(0) != 0,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        match self.prefix == bits {
            true => self.address.fmt(f),
            false => write!(f, "{}/{}", self.address, self.prefix),
        }
    }
}

text_form!(Network, NetworkError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_ranges_are_accepted() {
        for good in ["192.0.2.7", "192.0.2.0/24", "0.0.0.0/0", "2001:db8::/32", "::1", "::/0", "10.0.0.0/8"] {
            assert_eq!(good.parse::<Network>().unwrap().to_string(), good);
        }
        assert_eq!("192.0.2.7/32".parse::<Network>().unwrap().to_string(), "192.0.2.7");
        for bad in
            ["", "192.0.2", "192.0.2.0/33", "192.0.2.7/24", "::1/64", "::/129", "192.0.2.0/", "192.0.2.0/+8", "office", "*"]
        {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn range_contains_its_addresses_only() {
        let contains = |range: &str, address: &str| range.parse::<Network>().unwrap().contains(address.parse().unwrap());
        assert!(contains("192.0.2.0/24", "192.0.2.255") && contains("192.0.2.0/24", "::ffff:192.0.2.9"));
        assert!(!contains("192.0.2.0/24", "192.0.3.0") && !contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("::/0", "2001:db8::1") && contains("2001:db8::/32", "2001:db8:1::1"));
        assert!(!contains("::1", "::2"));
    }
}
