//! The proxy's own responses, in HTML, JSON or plain text. The responses reveal nothing about other applications of the server.

use bytes::Bytes;
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{self, HeaderValue},
};
use minijinja::{Environment, context};

/// The methods that are forwarded to applications, as the value of the header `Allow` (RFC 9110, section 15.5.6).
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// The reason why a request is not answered by an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Page {
    UnknownHost,
    Empty,
    Starting,
    Failed(String),
    Stopped,
    Maintenance,
    /// The maintenance page of the project, in HTML. Clients that do not accept HTML get [`Page::Maintenance`].
    OwnMaintenance(Bytes),
    BadGateway,
    GatewayTimeout,
    BadRequest(&'static str),
    Method,
    Expectation,
    UploadTimeout,
    TooManyRequests,
}

impl Page {
    fn status(&self) -> StatusCode {
        match self {
            Self::UnknownHost => StatusCode::NOT_FOUND,
            Self::Empty | Self::Starting | Self::Failed(_) | Self::Stopped | Self::Maintenance | Self::OwnMaintenance(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::UploadTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// Returns the value of `error` in the JSON form.
    fn code(&self) -> &'static str {
        match self {
            Self::UnknownHost => "unknown_host",
            Self::Empty => "nothing_deployed",
            Self::Starting => "starting",
            Self::Failed(_) => "failed",
            Self::Stopped => "stopped",
            Self::Maintenance | Self::OwnMaintenance(_) => "maintenance",
            Self::BadGateway => "no_answer",
            Self::GatewayTimeout => "timeout",
            Self::BadRequest(_) => "bad_request",
            Self::Method => "method_not_allowed",
            Self::Expectation => "expectation_failed",
            Self::UploadTimeout => "upload_timeout",
            Self::TooManyRequests => "too_many_requests",
        }
    }

    fn title(&self) -> &'static str {
        match self {
            Self::UnknownHost => "There is no application at this address",
            Self::Empty => "Nothing is deployed here yet",
            Self::Starting => "The application is starting",
            Self::Failed(_) => "The application failed to start",
            Self::Stopped => "The application is stopped",
            Self::Maintenance | Self::OwnMaintenance(_) => "Back in a moment",
            Self::BadGateway => "The application does not answer",
            Self::GatewayTimeout => "The application takes too long",
            Self::BadRequest(_) => "This request is invalid",
            Self::Method => "This method is not allowed",
            Self::Expectation => "This Expect header is not supported",
            Self::UploadTimeout => "The request did not arrive in time",
            Self::TooManyRequests => "Too many requests",
        }
    }

    fn text(&self) -> &'static str {
        match self {
            Self::UnknownHost => "No application is served under this host name. Check the address for a typing error.",
            Self::Empty => "The application appears here after the first successful push.",
            Self::Starting => "The application answers as soon as it is ready. Try again in a few seconds.",
            Self::Failed(_) => "The reason is in the application's log, which its owner can read with `larder logs`.",
            Self::Stopped => {
                "No web process is configured to run. The application answers again after its owner starts a web process."
            }
            Self::Maintenance | Self::OwnMaintenance(_) => "The application is under maintenance. Try again in a few seconds.",
            Self::BadGateway => {
                "The application refused or closed the connection. Its owner can read the application's log with `larder logs`."
            }
            Self::GatewayTimeout => "The application did not begin to answer the request in time.",
            Self::BadRequest(why) => why,
            Self::Method => "CONNECT and TRACE are not forwarded.",
            Self::Expectation => "The only supported expectation is 100-continue.",
            Self::UploadTimeout => "The client stopped sending the body of the request. Send the request again.",
            Self::TooManyRequests => "Too many requests from the same address are in flight. Try again in a few seconds.",
        }
    }

    /// Returns the value of `Retry-After`, in seconds.
    fn retry_after(&self) -> Option<&'static str> {
        match self {
            Self::Starting | Self::Maintenance | Self::OwnMaintenance(_) | Self::TooManyRequests => Some("3"),
            Self::BadGateway | Self::GatewayTimeout => Some("10"),
            Self::Empty | Self::Failed(_) | Self::Stopped => Some("60"),
            _ => None,
        }
    }

    /// Returns true if the connection must be closed after the page. Otherwise the proxy could read the rest of a rejected request as the
    /// next request.
    fn closes(&self) -> bool {
        matches!(self, Self::BadRequest(_) | Self::Method | Self::Expectation | Self::UploadTimeout)
    }
}

/// The renderer of the pages, with their template.
pub(super) struct Pages {
    templates: Environment<'static>,
}

/// The form in which a page is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Html,
    Json,
    Text,
}

impl Form {
    /// Returns the form with the highest weight in the `Accept` header (RFC 9110, section 12.5.1). Of several forms with the highest
    /// weight, the first form in the header is selected. If the header names no form, plain text is selected. Ranges such as `*/*` are
    /// ignored.
    fn of(headers: &HeaderMap) -> Self {
        let lists = headers.get_all(header::ACCEPT).iter().filter_map(|list| list.to_str().ok());
        let mut best = (Self::Text, 0.0);
        for item in lists.flat_map(|list| list.split(',')) {
            let mut pieces = item.split(';').map(str::trim);
            let Some(form) = pieces.next().and_then(Self::named) else { continue };
            let weight = weight(pieces);
            if weight > best.1 {
                best = (form, weight);
            }
        }
        best.0
    }

    /// Returns the form for a media type, or `None` if no form has this type.
    fn named(media_type: &str) -> Option<Self> {
        let media_type = media_type.to_ascii_lowercase();
        match media_type.as_str() {
            "text/html" => Some(Self::Html),
            "text/plain" => Some(Self::Text),
            "application/json" => Some(Self::Json),
            _ => media_type.ends_with("+json").then_some(Self::Json),
        }
    }
}

/// Returns the weight of a list item, which is the parameter `q` (RFC 9110, section 12.4.2). The weight is 1 if no parameter is a valid
/// weight. The name `q` is case-insensitive.
fn weight<'a>(mut parameters: impl Iterator<Item = &'a str>) -> f32 {
    let named = parameters.find_map(|piece| piece.split_once('=').filter(|(name, _)| name.trim().eq_ignore_ascii_case("q")));
    named.and_then(|(_, weight)| weight.trim().parse().ok()).unwrap_or(1.0)
}

impl Pages {
    pub fn new() -> Self {
        let mut templates = Environment::new();
        // The tests below fail if the template cannot be parsed. A server with an invalid template would send pages as plain text.
        if let Err(error) = templates.add_template("page.html", include_str!("pages/page.html")) {
            tracing::error!(%error, "cannot parse the template of the error pages");
        }
        Self { templates }
    }

    /// Renders `page` in the form that the `Accept` header in `headers` requests. The page shows the reason of a failure only if
    /// `reveal` is true.
    pub fn answer(&self, page: &Page, headers: &HeaderMap, request_id: Option<&HeaderValue>, reveal: bool) -> Response<Bytes> {
        let status = page.status();
        let id = request_id.and_then(|id| id.to_str().ok());
        let detail = match page {
            Page::Failed(reason) if reveal => Some(reason.as_str()),
            _ => None,
        };
        let form = Form::of(headers);
        let html = match (form, page) {
            (Form::Html, Page::OwnMaintenance(own)) => Some(own.clone()),
            (Form::Html, _) => self.html(page, id, detail).map(Bytes::from),
            _ => None,
        };
        let (kind, body) = match (html, form) {
            (Some(html), _) => ("text/html; charset=utf-8", html),
            (None, Form::Json) => {
                let body = serde_json::json!({
                    "error": page.code(), "status": status.as_u16(), "title": page.title(), "text": page.text(), "detail": detail, "request_id": id,
                });
                ("application/json", Bytes::from(format!("{body}\n")))
            }
            (None, _) => {
                let detail = detail.map(|detail| format!("{detail}\n")).unwrap_or_default();
                ("text/plain; charset=utf-8", Bytes::from(format!("{}\n{}\n{detail}", page.title(), page.text())))
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(seconds) = page.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if *page == Page::Method {
            headers.insert(header::ALLOW, HeaderValue::from_static(METHODS));
        }
        if let Some(id) = request_id {
            headers.insert(super::headers::REQUEST_ID, id.clone());
        }
        if page.closes() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Returns the response to an OPTIONS request that the proxy answers itself, because its `Max-Forwards` is 0.
    pub fn options() -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(METHODS));
        response
    }

    fn html(&self, page: &Page, id: Option<&str>, detail: Option<&str>) -> Option<String> {
        let status = page.status();
        let refresh = matches!(page, Page::Starting | Page::Maintenance).then_some(3);
        let values = context! {
            title => page.title(), text => page.text(), detail, refresh, request_id => id,
            code => status.as_u16(), reason => status.canonical_reason(),
        };
        let rendered = self.templates.get_template("page.html").and_then(|template| template.render(values));
        rendered.inspect_err(|error| tracing::error!(%error, "cannot render an error page")).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(page: &Page, accept: &str, reveal: bool) -> (Response<Bytes>, String) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        let response = Pages::new().answer(page, &headers, Some(&HeaderValue::from_static("id-1")), reveal);
        let text = String::from_utf8(response.body().to_vec()).unwrap();
        (response, text)
    }

    #[test]
    fn page_form_follows_accept_header() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        let (response, html) = render(&Page::Starting, browser, false);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "3");
        assert!(
            html.starts_with("<!doctype html>") && html.contains("http-equiv=\"refresh\"") && html.contains("id-1"),
            "{html}"
        );
        let (response, json) = render(&Page::UnknownHost, "application/json", false);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["error"], "unknown_host");
        let (_, text) = render(&Page::Stopped, "*/*", false);
        assert!(text.starts_with("The application is stopped\n"), "{text}");
    }

    #[test]
    fn page_form_follows_the_weights_of_the_accept_header() {
        let form = |accept: &str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            match Form::of(&headers) {
                Form::Html => "html",
                Form::Json => "json",
                Form::Text => "text",
            }
        };
        for (accept, expected) in [
            ("text/html;q=0.1, application/json", "json"),
            ("application/json;q=0.5,text/html;Q=0.9", "html"),
            ("text/html;q=0, application/json;q=0.2", "json"),
            ("text/html; q=0", "text"),
            ("text/plain;q=0.9, text/html", "html"),
            ("application/problem+json", "json"),
            ("TEXT/HTML", "html"),
            ("text/html, application/json", "html"),
            ("application/json, text/html", "json"),
            ("text/*", "text"),
            ("text/*;q=0.5, application/json", "json"),
            ("application/jsonlines", "text"),
            ("text/html;q=x", "html"),
            ("", "text"),
            ("*/*", "text"),
        ] {
            assert_eq!(form(accept), expected, "{accept}");
        }
    }

    #[test]
    fn maintenance_page_of_the_project_is_sent_to_browsers() {
        let own = Page::OwnMaintenance(Bytes::from_static(b"<h1>We are painting</h1>"));
        let (response, html) = render(&own, "text/html", false);
        assert_eq!((response.status().as_u16(), html.as_str()), (503, "<h1>We are painting</h1>"));
        assert_eq!(response.headers()["retry-after"], "3");
        let (_, json) = render(&own, "application/json", false);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["error"], "maintenance");
        assert!(render(&own, "*/*", false).1.starts_with("Back in a moment\n"));
    }

    #[test]
    fn failure_reason_is_shown_only_if_revealed_and_is_escaped() {
        let page = Page::Failed("<script>alert(1)</script>".into());
        let (_, closed) = render(&page, "text/html", false);
        assert!(!closed.contains("alert"), "{closed}");
        let (_, open) = render(&page, "text/html", true);
        assert!(open.contains("alert(1)") && !open.contains("<script>"), "{open}");
    }

    #[test]
    fn page_of_every_kind_renders_in_every_form() {
        let pages = [
            Page::UnknownHost,
            Page::Empty,
            Page::Starting,
            Page::Failed("x".into()),
            Page::Stopped,
            Page::Maintenance,
            Page::BadGateway,
            Page::GatewayTimeout,
            Page::BadRequest("why"),
            Page::Method,
            Page::Expectation,
            Page::UploadTimeout,
            Page::TooManyRequests,
        ];
        for page in pages {
            for accept in ["text/html", "application/json", "*/*"] {
                let (response, text) = render(&page, accept, false);
                assert!(text.contains(page.title()), "{page:?} {accept}");
                assert_eq!(response.headers().contains_key("connection"), page.closes());
            }
        }
    }
}
