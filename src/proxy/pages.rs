//! The pages that the front door answers with itself: small, readable, and silent about what else runs here.

use bytes::Bytes;
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{self, HeaderValue},
};
use minijinja::{Environment, context};

/// Why a request is not answered by an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Page {
    UnknownHost,
    Empty,
    Starting,
    Failed(String),
    Stopped,
    Maintenance,
    BadGateway,
    GatewayTimeout,
    BadRequest(&'static str),
    Method,
    UploadTimeout,
    Crowded,
}

impl Page {
    fn status(&self) -> StatusCode {
        match self {
            Self::UnknownHost => StatusCode::NOT_FOUND,
            Self::Empty | Self::Starting | Self::Failed(_) | Self::Stopped | Self::Maintenance | Self::Crowded => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::UploadTimeout => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// A word for programs.
    fn word(&self) -> &'static str {
        match self {
            Self::UnknownHost => "unknown_host",
            Self::Empty => "nothing_deployed",
            Self::Starting => "starting",
            Self::Failed(_) => "failed",
            Self::Stopped => "stopped",
            Self::Maintenance => "maintenance",
            Self::BadGateway => "no_answer",
            Self::GatewayTimeout => "timeout",
            Self::BadRequest(_) => "bad_request",
            Self::Method => "method_not_allowed",
            Self::UploadTimeout => "upload_timeout",
            Self::Crowded => "too_many_requests",
        }
    }

    fn title(&self) -> &'static str {
        match self {
            Self::UnknownHost => "Nothing lives at this address",
            Self::Empty => "Nothing is deployed here yet",
            Self::Starting => "The application is starting",
            Self::Failed(_) => "The application failed to start",
            Self::Stopped => "The application is stopped",
            Self::Maintenance => "Back in a moment",
            Self::BadGateway => "The application does not answer",
            Self::GatewayTimeout => "The application takes too long",
            Self::BadRequest(_) => "This request cannot be understood",
            Self::Method => "This method is not served here",
            Self::UploadTimeout => "The request did not arrive in time",
            Self::Crowded => "Too many requests at a time",
        }
    }

    fn text(&self) -> &'static str {
        match self {
            Self::UnknownHost => "No application is served under this host name. Check the address for a typing error.",
            Self::Empty => "The application appears with the first push that succeeds.",
            Self::Starting => "It will answer as soon as it is ready. Try again in a few seconds.",
            Self::Failed(_) => "Its owner finds the reason in the application's log: larder logs.",
            Self::Stopped => "No web process of it runs now, as its owner wants it. It answers again when one is started.",
            Self::Maintenance => "An upgrade is under way. Nothing is lost; try again in a few seconds.",
            Self::BadGateway => {
                "It refused or broke off the connection. Its owner finds more in the application's log: larder logs."
            }
            Self::GatewayTimeout => "It was asked, but did not begin to answer in time.",
            Self::BadRequest(why) => why,
            Self::Method => "CONNECT and TRACE are not passed on.",
            Self::UploadTimeout => "Its body stopped coming. Send it again.",
            Self::Crowded => "Others from the same address are still under way. Try again in a few seconds.",
        }
    }

    /// Seconds after which trying again makes sense.
    fn retry_after(&self) -> Option<&'static str> {
        match self {
            Self::Starting | Self::Maintenance | Self::Crowded => Some("3"),
            Self::BadGateway | Self::GatewayTimeout => Some("10"),
            Self::Empty | Self::Failed(_) | Self::Stopped => Some("60"),
            _ => None,
        }
    }

    /// Whether the connection is of no further use: the rest of a request that was misunderstood must not become the next one.
    fn closes(&self) -> bool {
        matches!(self, Self::BadRequest(_) | Self::Method | Self::UploadTimeout)
    }
}

/// The pages, ready to be filled in.
pub(super) struct Pages {
    templates: Environment<'static>,
}

#[derive(PartialEq, Eq)]
enum Form {
    Html,
    Json,
    Text,
}

impl Form {
    /// What the client would rather read. Programs that say nothing get text.
    fn of(headers: &HeaderMap) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let of = |part: &str| accept.find(part);
        match (of("text/html"), of("json"), of("text/plain")) {
            (Some(html), json, text) if json.is_none_or(|json| html < json) && text.is_none_or(|text| html < text) => Self::Html,
            (_, Some(json), text) if text.is_none_or(|text| json < text) => Self::Json,
            _ => Self::Text,
        }
    }
}

impl Pages {
    pub fn new() -> Self {
        let mut templates = Environment::new();
        // A template that does not parse shows in the test below; a page is then still answered, as text.
        if let Err(error) = templates.add_template("page.html", include_str!("pages/page.html")) {
            tracing::error!(%error, "the template of the error pages is broken");
        }
        Self { templates }
    }

    /// The answer for `page` in the form that `headers` ask for. `reveal` shows the reason of a failure.
    pub fn answer(&self, page: &Page, headers: &HeaderMap, request_id: Option<&HeaderValue>, reveal: bool) -> Response<Bytes> {
        let status = page.status();
        let id = request_id.and_then(|id| id.to_str().ok());
        let detail = match page {
            Page::Failed(reason) if reveal => Some(reason.as_str()),
            _ => None,
        };
        let form = Form::of(headers);
        let html = if form == Form::Html { self.html(page, id, detail) } else { None };
        let (kind, body) = match (html, form) {
            (Some(html), _) => ("text/html; charset=utf-8", html),
            (None, Form::Json) => {
                let body = serde_json::json!({
                    "error": page.word(), "status": status.as_u16(), "title": page.title(), "text": page.text(), "detail": detail, "request_id": id,
                });
                ("application/json", format!("{body}\n"))
            }
            (None, _) => {
                let detail = detail.map(|detail| format!("{detail}\n")).unwrap_or_default();
                ("text/plain; charset=utf-8", format!("{}\n{}\n{detail}", page.title(), page.text()))
            }
        };
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(seconds) = page.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if let Some(id) = request_id {
            headers.insert(super::headers::REQUEST_ID, id.clone());
        }
        if page.closes() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
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
        rendered.inspect_err(|error| tracing::error!(%error, "an error page cannot be rendered")).ok()
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
    fn a_browser_a_program_and_a_terminal_each_get_their_form() {
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
    fn a_reason_is_only_shown_where_that_was_asked_for_and_never_as_markup() {
        let page = Page::Failed("<script>alert(1)</script>".into());
        let (_, closed) = render(&page, "text/html", false);
        assert!(!closed.contains("alert"), "{closed}");
        let (_, open) = render(&page, "text/html", true);
        assert!(open.contains("alert(1)") && !open.contains("<script>"), "{open}");
    }

    #[test]
    fn every_page_renders_in_every_form() {
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
            Page::UploadTimeout,
            Page::Crowded,
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
