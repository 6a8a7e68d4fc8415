//! The section `http` of the server file: where the front door listens, and what stands before it.

use std::net::{IpAddr, SocketAddr};

use super::{error::shown, reader::Reader, server::address, yaml::Node};

pub(super) const HTTP: [&str; 3] = ["listen", "trusted", "scheme"];

/// The HTTP front door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The addresses of the proxies in front of it, whose word about visitors is believed.
    pub trusted: Vec<IpAddr>,
    /// What visitors speak.
    pub scheme: HttpScheme,
}

/// What visitors speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpScheme {
    /// Plain HTTP, to the front door itself.
    Http,
    /// TLS, which a proxy ends in front of it, at the usual port.
    Https,
}

impl HttpConfig {
    /// How visitors write the address of `host`, where the front door listens on `port`.
    pub fn url(&self, host: &str, port: u16) -> String {
        match (self.scheme, port) {
            (HttpScheme::Https, _) => format!("https://{host}"),
            (HttpScheme::Http, 80) => format!("http://{host}"),
            (HttpScheme::Http, port) => format!("http://{host}:{port}"),
        }
    }
}

pub(super) fn read(reader: &mut Reader, node: &Node, config: &mut HttpConfig) {
    let http = reader.section(node, "http", &HTTP, "{listen: \"0.0.0.0:8080\"}");
    if let Some(listen) = address(reader, &http, "http.listen") {
        config.listen = listen;
    }
    if let Some(node) = http.get("trusted") {
        let expected = "the address of a proxy, such as 127.0.0.1 or \"::1\"";
        for node in reader.list(node, "http.trusted", "[127.0.0.1, \"::1\"]") {
            let trusted = reader.value(node, "http.trusted", expected, |text| {
                // The front door knows its peers in this form.
                text.parse::<IpAddr>().map(|ip| ip.to_canonical()).map_err(|_| format!("{} is not an address", shown(text)))
            });
            config.trusted.extend(trusted);
        }
    }
    let schemes = [("http", HttpScheme::Http), ("https", HttpScheme::Https)];
    if let Some(scheme) = http.get("scheme").and_then(|node| reader.choice(node, "http.scheme", &schemes)) {
        config.scheme = scheme;
    }
}
