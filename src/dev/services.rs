//! Finds the services that the project needs and this machine does not have.

use std::{net::ToSocketAddrs as _, time::Duration};

use url::Url;

use crate::{
    config::{DatabaseLocation, Settings},
    model::ConfigVariables,
};

/// The time limit for a connection to a service.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// The schemes of URLs of databases, with their usual ports.
const SCHEMES: [(&str, u16); 7] = [
    ("postgres", 5432),
    ("postgresql", 5432),
    ("mysql", 3306),
    ("mysql2", 3306),
    ("mariadb", 3306),
    ("redis", 6379),
    ("rediss", 6379),
];

/// Returns one sentence for each database of the recipe without a URL.
pub(super) fn without_url(settings: &Settings, variables: &ConfigVariables) -> Vec<String> {
    let mut missing = Vec::new();
    for (name, spec) in settings.databases.iter().flatten() {
        let DatabaseLocation::Variable(variable) = &spec.location else { continue };
        let has_value = settings.env.contains_key(variable)
            || variables.get(variable.as_str()).is_some()
            || std::env::var_os(variable.as_str()).is_some();
        if !has_value {
            missing.push(format!("the database {name} has no URL: add a line {variable}=URL to .env"));
        }
    }
    missing
}

/// Returns one sentence for each URL of a database at which no server answers.
pub(super) async fn without_server(values: Vec<(String, String)>) -> Vec<String> {
    let mut missing = Vec::new();
    for (name, value) in values {
        let Some((host, port)) = address(&value) else { continue };
        let place = format!("{host}:{port}");
        let resolved = tokio::task::spawn_blocking(move || (host.as_str(), port).to_socket_addrs().map(Vec::from_iter)).await;
        let why = match resolved {
            Ok(Ok(addresses)) => {
                let connecting = tokio::net::TcpStream::connect(addresses.as_slice());
                match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                    Ok(Ok(_)) => continue,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => String::from("no answer"),
                }
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => continue,
        };
        missing.push(format!("no server answers at the address of {name}, {place}: {why}"));
    }
    missing
}

/// Returns host and port of the URL of a database server. The text may contain a password, so no part of it but these is shown.
fn address(value: &str) -> Option<(String, u16)> {
    let url = Url::parse(value).ok()?;
    let (_, usual) = SCHEMES.iter().find(|(scheme, _)| *scheme == url.scheme())?;
    let host = url.host_str().filter(|host| !host.is_empty())?.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), url.port().unwrap_or(*usual)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_a_database_is_read_without_its_password() {
        assert_eq!(address("postgres://shop:hunter2@db/shop"), Some((String::from("db"), 5432)));
        assert_eq!(address("redis://[::1]:7000/0"), Some((String::from("::1"), 7000)));
        assert_eq!(address("https://example.com"), None);
        assert_eq!(address("postgres:///shop"), None);
        assert_eq!(address("not a url"), None);
    }

    #[tokio::test]
    async fn server_that_does_not_answer_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = |port: u16| (String::from("DATABASE_URL"), format!("postgres://x:hunter2@127.0.0.1:{port}/x"));
        assert!(without_server(vec![url(port)]).await.is_empty());
        drop(listener);
        let [missing] = &without_server(vec![url(port)]).await[..] else { panic!("no server answers") };
        assert!(
            missing.contains("DATABASE_URL") && missing.contains(&port.to_string()) && !missing.contains("hunter2"),
            "{missing}"
        );
    }
}
