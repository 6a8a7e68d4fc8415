//! Sends one webhook, signed as the specification Standard Webhooks describes (<https://www.standardwebhooks.com>).

use std::time::Duration;

use reqwest::{Client, Url, redirect::Policy};
use ring::hmac;

use super::{
    address,
    delivery::DeliveryError,
    message::{MessageRecord, WebhookContent},
};
use crate::config::{AddressRange, WebhookSecret};

/// The time limit of one request, from the resolution of the name to the status of the answer. Standard Webhooks recommends 15 to 30 seconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The statuses after which no attempt follows: redirects, which are not followed, and a receiver that is gone for good.
const REDIRECTS: std::ops::Range<u16> = 300..400;
const GONE: u16 = 410;

/// Sends a webhook.
pub(super) async fn send(allowed: &[AddressRange], record: &MessageRecord, content: WebhookContent) -> Result<(), DeliveryError> {
    let late = || Err(DeliveryError::temporary(format!("the receiver did not answer within {} s", REQUEST_TIMEOUT.as_secs())));
    tokio::time::timeout(REQUEST_TIMEOUT, request(allowed, record, content)).await.unwrap_or_else(|_| late())
}

async fn request(allowed: &[AddressRange], record: &MessageRecord, content: WebhookContent) -> Result<(), DeliveryError> {
    let url = Url::parse(&content.url).map_err(DeliveryError::permanent)?;
    let client = client(&url, Some(allowed)).await?;
    let now = jiff::Timestamp::now().as_second();
    let mut request = client
        .post(url)
        .header("content-type", "application/json")
        .header("user-agent", concat!("larder/", env!("CARGO_PKG_VERSION")))
        .header("webhook-id", record.message_id.as_str())
        .header("webhook-timestamp", now.to_string());
    if !content.secrets.is_empty() {
        request = request.header("webhook-signature", signatures(&content.secrets, &record.message_id, now, &content.body));
    }
    let answer = request.body(content.body).send().await.map_err(|error| DeliveryError::temporary(cause(error)))?;
    let status = answer.status();
    match status.as_u16() {
        _ if status.is_success() => Ok(()),
        code if REDIRECTS.contains(&code) => {
            Err(DeliveryError::permanent(format!("the receiver answered {code}; redirects are not followed")))
        }
        GONE => Err(DeliveryError::permanent("the receiver answered 410: it wants no more messages")),
        code => Err(DeliveryError::temporary(format!("the receiver answered {code} (expected 200-299)"))),
    }
}

/// Returns a client that connects only to the addresses that were checked; `allowed` is `None` if all addresses are allowed. A second resolution of the name, which could give another
/// address, does not happen.
pub(super) async fn client(url: &Url, allowed: Option<&[AddressRange]>) -> Result<Client, DeliveryError> {
    let host = url.host_str().ok_or_else(|| DeliveryError::permanent("the URL has no host"))?.to_owned();
    let port = url.port_or_known_default().ok_or_else(|| DeliveryError::permanent("the URL has no port"))?;
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<_> = tokio::net::lookup_host((literal, port))
        .await
        .map_err(|error| DeliveryError::temporary(format!("cannot resolve {host}: {error}")))?
        .collect();
    // An operator may allow the address later, so this error is not permanent. The name may also resolve to another address later.
    if let Some(allowed) = allowed {
        address::checked(&addresses, allowed).map_err(DeliveryError::temporary)?;
    }
    // The process has one TLS library. The result of a second call is an error without a consequence.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .resolve_to_addrs(&host, &addresses)
        .redirect(Policy::none())
        .no_proxy()
        .pool_max_idle_per_host(0)
        .build()
        .map_err(|error| DeliveryError::temporary(cause(error)))
}

/// Returns an error with its causes, without the URL, which may contain a secret.
pub(super) fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Returns the value of the header `webhook-signature`: one signature for each secret.
fn signatures(secrets: &[WebhookSecret], id: &str, timestamp: i64, body: &str) -> String {
    let signed = format!("{id}.{timestamp}.{body}");
    let sign = |secret: &WebhookSecret| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.bytes());
        format!("v1,{}", data_encoding::BASE64.encode(hmac::sign(&key, signed.as_bytes()).as_ref()))
    };
    secrets.iter().map(sign).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those of the specification's reference implementations.
    #[test]
    fn signature_is_that_of_standard_webhooks() {
        let secret: WebhookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap();
        let signature =
            signatures(std::slice::from_ref(&secret), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, "{\"test\": 2432232314}");
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let other: WebhookSecret = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".parse().unwrap();
        assert_eq!(signatures(&[secret, other], "a", 1, "b").split(' ').count(), 2);
    }
}
