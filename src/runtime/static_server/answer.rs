//! Builds the response to a request. [`Site`] selects the file, the encoding and the range, and evaluates conditional headers.

use std::{fs::File, io, os::unix::fs::FileExt};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Frame,
    header::{self, HeaderName, HeaderValue},
};

use super::{
    files::{self, Directory, Opened, ServedEntry},
    settings::{StaticError, StaticSettings, matches},
};

/// The maximum number of bytes of a file that one read returns. A file up to this size is sent as one piece.
const PIECE: u64 = 64 * 1024;

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Answer = Response<Body>;

/// The served site: a directory and its settings.
#[derive(Debug)]
pub(super) struct Site {
    settings: StaticSettings,
    directory: Directory,
}

impl Site {
    /// Opens the directory `settings.root`.
    pub fn new(settings: StaticSettings) -> Result<Site, StaticError> {
        let wrong = |error| StaticError::Settings(format!("cannot serve the directory {}: {error}", settings.root.display()));
        let data = std::env::var_os("LARDER_DATA").unwrap_or_else(|| "/data".into());
        let directory = Directory::open(&settings.root).map_err(wrong)?.with_data(data.as_ref());
        Ok(Site { settings, directory })
    }

    /// Returns the path of the directory, for messages.
    pub fn root(&self) -> String {
        self.settings.root.display().to_string()
    }

    /// Returns the response to a request. If the system fails to open or read a file, the response has status 503.
    pub async fn answer<B>(&self, request: &Request<B>) -> Answer {
        let path = request.uri().path();
        let mut answer = match *request.method() {
            Method::GET | Method::HEAD => {
                let found = self.find(path, request.uri().query(), request);
                found.unwrap_or_else(|_| unavailable())
            }
            Method::OPTIONS => allow(StatusCode::NO_CONTENT),
            _ => allow(StatusCode::METHOD_NOT_ALLOWED),
        };
        let headers = answer.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(release) = &self.settings.release {
            headers.insert(HeaderName::from_static("larder-release"), release.clone());
        }
        for (pattern, pairs) in &self.settings.headers {
            if matches(pattern, path) {
                for (name, value) in pairs {
                    headers.insert(name.clone(), value.clone());
                }
            }
        }
        if request.method() == Method::HEAD {
            // The header `Content-Length` keeps the value of the response to a GET request (RFC 9110, section 9.3.2).
            *answer.body_mut() = empty();
        }
        answer
    }

    /// Selects the file for a path, and returns the response with this file, a redirect or an error page.
    fn find<B>(&self, path: &str, query: Option<&str>, request: &Request<B>) -> io::Result<Answer> {
        let Some(parts) = files::decode(path) else {
            return Ok(text(StatusCode::BAD_REQUEST, "The path of the request is invalid.\n"));
        };
        let name = parts.join("/");
        let with_slash = path.ends_with('/');
        match self.directory.entry(&name)? {
            Some(ServedEntry::File(opened)) if !with_slash => {
                if self.settings.clean_urls
                    && let Some(clean) = clean_parts(&parts)
                {
                    return Ok(moved(&clean, query));
                }
                return self.send(&name, opened, StatusCode::OK, request);
            }
            Some(ServedEntry::Directory) => {
                let index = if name.is_empty() { String::from("index.html") } else { format!("{name}/index.html") };
                if let Some(opened) = self.directory.file(&index)? {
                    if with_slash || name.is_empty() {
                        return self.send(&index, opened, StatusCode::OK, request);
                    }
                    // Without the slash at the end of the path, relative links of the page would lead to the parent directory.
                    return Ok(moved(&format!("{}/", files::encode(&parts)), query));
                }
            }
            Some(ServedEntry::File(_)) | None => {}
        }
        if !with_slash && !name.is_empty() {
            let page = format!("{name}.html");
            if let Some(opened) = self.directory.file(&page)? {
                return self.send(&page, opened, StatusCode::OK, request);
            }
        }
        for (pattern, target) in &self.settings.routes {
            if matches(pattern, path)
                && let Some(opened) = self.directory.file(target)?
            {
                return self.send(target, opened, StatusCode::OK, request);
            }
        }
        for page in [self.settings.error_page.as_deref(), Some("404.html")].into_iter().flatten() {
            if let Some(opened) = self.directory.file(page)? {
                return self.send(page, opened, StatusCode::NOT_FOUND, request);
            }
        }
        Ok(text(StatusCode::NOT_FOUND, "Not found\n"))
    }

    /// Returns the response with a file or with a part of a file, or a response with status 304, 412 or 416.
    fn send<B>(&self, name: &str, opened: Opened, status: StatusCode, request: &Request<B>) -> io::Result<Answer> {
        let asked = request.headers();
        let found = status == StatusCode::OK;
        // The header `Range` is defined only for GET requests (RFC 9110, section 14.2).
        let ranged = found && request.method() == Method::GET && asked.contains_key(header::RANGE);
        let mut opened = opened;
        let mut encoding = None;
        let mut varies = false;
        for (end, word) in [("br", "br"), ("gz", "gzip")] {
            if let Some(sibling) = self.directory.file(&format!("{name}.{end}"))? {
                varies = true;
                // A range refers to the bytes of the requested file, not of its compressed variant.
                if encoding.is_none() && !ranged && accepts(asked, word) {
                    encoding = Some(word);
                    opened = sibling;
                }
            }
        }
        let mut answer = Response::new(empty());
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, content_type(name));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if varies {
            headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        if let Some(encoding) = encoding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        if found && let Ok(tag) = HeaderValue::try_from(opened.tag.as_str()) {
            headers.insert(header::ETAG, tag);
            // `If-Match` is evaluated before `If-None-Match`, and both headers before `Range` (RFC 9110, section 13.2.2).
            if asked.contains_key(header::IF_MATCH) && !any_tag(asked, header::IF_MATCH, &opened.tag, Comparison::Strong) {
                headers.remove(header::CONTENT_TYPE);
                headers.remove(header::CONTENT_ENCODING);
                *answer.status_mut() = StatusCode::PRECONDITION_FAILED;
                return Ok(answer);
            }
            if any_tag(asked, header::IF_NONE_MATCH, &opened.tag, Comparison::Weak) {
                headers.remove(header::CONTENT_TYPE);
                headers.remove(header::CONTENT_ENCODING);
                *answer.status_mut() = StatusCode::NOT_MODIFIED;
                return Ok(answer);
            }
        }
        let (mut from, mut length) = (0, opened.length);
        let same = !asked.contains_key(header::IF_RANGE) || exact_tag(asked, &opened.tag);
        if ranged && same {
            let total = opened.length;
            match asked.get(header::RANGE).and_then(|range| range.to_str().ok()).map_or(Part::Whole, |range| part(range, total)) {
                Part::Whole => {}
                Part::Some { first, last } => {
                    *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
                    if let Ok(range) = HeaderValue::try_from(format!("bytes {first}-{last}/{total}")) {
                        answer.headers_mut().insert(header::CONTENT_RANGE, range);
                    }
                    (from, length) = (first, last - first + 1);
                }
                Part::None => {
                    let mut answer = text(StatusCode::RANGE_NOT_SATISFIABLE, "The range is outside the file.\n");
                    if let Ok(range) = HeaderValue::try_from(format!("bytes */{total}")) {
                        answer.headers_mut().insert(header::CONTENT_RANGE, range);
                    }
                    return Ok(answer);
                }
            }
        }
        answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        *answer.body_mut() = body(opened.file, from, length)?;
        Ok(answer)
    }
}

/// Returns the content type of a file with this name. Text files are assumed to be UTF-8, except XML files, which declare their own
/// encoding.
fn content_type(name: &str) -> HeaderValue {
    let guess = mime_guess::from_path(name).first_or_octet_stream();
    let is_text = guess.type_() == mime_guess::mime::TEXT && guess.subtype() != mime_guess::mime::XML;
    let value = match guess.subtype() {
        // `text/javascript` is the only media type for JavaScript (RFC 9239).
        mime_guess::mime::JAVASCRIPT => String::from("text/javascript; charset=utf-8"),
        _ if is_text => format!("{guess}; charset=utf-8"),
        _ => guess.to_string(),
    };
    HeaderValue::try_from(value).unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"))
}

/// The part of a file that a `Range` header requests.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// The whole file.
    Whole,
    /// The bytes from `first` to `last`, both included.
    Some { first: u64, last: u64 },
    /// No part, because the range is outside the file.
    None,
}

/// Parses a `Range` header with one range. A header with several ranges, or an invalid header, selects the whole file, as RFC 9110, section
/// 14.2, allows.
fn part(range: &str, total: u64) -> Part {
    // The names of range units are case-insensitive (RFC 9110, section 14.1).
    let bytes = range.split_once('=').filter(|(unit, _)| unit.eq_ignore_ascii_case("bytes"));
    let Some((first, last)) = bytes.and_then(|(_, range)| range.split_once('-')) else { return Part::Whole };
    let number = |text: &str| text.bytes().all(|c| c.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    match (first.trim(), last.trim()) {
        ("", count) => match number(count) {
            Some(0) => Part::None,
            Some(_) if total == 0 => Part::None,
            Some(count) => Part::Some { first: total.saturating_sub(count), last: total - 1 },
            None => Part::Whole,
        },
        (first, last) => match (number(first), if last.is_empty() { Some(u64::MAX) } else { number(last) }) {
            (Some(first), Some(last)) if first > last => Part::Whole,
            (Some(first), Some(_)) if first >= total => Part::None,
            (Some(first), Some(last)) => Part::Some { first, last: last.min(total - 1) },
            _ => Part::Whole,
        },
    }
}

/// Returns true if `Accept-Encoding` accepts the encoding `word` (RFC 9110, section 12.5.3). The weight of the encoding must be greater
/// than 0. If the header does not name the encoding, the weight of `*` applies.
fn accepts(headers: &HeaderMap, word: &str) -> bool {
    let lists = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|list| list.to_str().ok());
    let (mut named, mut any) = (None, None);
    for item in lists.flat_map(|list| list.split(',')) {
        let mut pieces = item.split(';').map(str::trim);
        match pieces.next() {
            Some(name) if name.eq_ignore_ascii_case(word) => named = named.or(Some(weight(pieces))),
            Some("*") => any = any.or(Some(weight(pieces))),
            _ => {}
        }
    }
    named.or(any).is_some_and(|weight| weight > 0.0)
}

/// Returns the weight of a list item, which is the parameter `q` (RFC 9110, section 12.4.2). The weight is 1 if no parameter is a valid
/// weight. The name `q` is case-insensitive.
fn weight<'a>(mut parameters: impl Iterator<Item = &'a str>) -> f32 {
    let named = parameters.find_map(|piece| piece.split_once('=').filter(|(name, _)| name.trim().eq_ignore_ascii_case("q")));
    named.and_then(|(_, weight)| weight.trim().parse().ok()).unwrap_or(1.0)
}

/// The comparison of entity tags (RFC 9110, section 8.8.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    /// A weak tag never matches.
    Strong,
    /// A weak tag matches a strong tag with the same value.
    Weak,
}

/// Returns true if the header `name` contains `tag` or is `*`.
fn any_tag(headers: &HeaderMap, name: HeaderName, tag: &str, comparison: Comparison) -> bool {
    let lists = headers.get_all(name).iter().filter_map(|list| list.to_str().ok());
    lists
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|item| item == "*" || item == tag || (comparison == Comparison::Weak && item.strip_prefix("W/") == Some(tag)))
}

/// Returns true if the header `If-Range` is exactly `tag`.
fn exact_tag(headers: &HeaderMap, tag: &str) -> bool {
    headers.get(header::IF_RANGE).is_some_and(|value| value.as_bytes() == tag.as_bytes())
}

/// Returns the path of a page without the extension `.html`, or without `index.html`. Returns `None` if the path does not end in `.html`.
fn clean_parts(parts: &[String]) -> Option<String> {
    let (last, before) = parts.split_last()?;
    let stem = last.strip_suffix(".html").filter(|stem| !stem.is_empty())?;
    if stem == "index" {
        return Some(format!("{}/", files::encode(before)));
    }
    let mut clean = before.to_vec();
    clean.push(stem.to_owned());
    Some(files::encode(&clean))
}

fn moved(to: &str, query: Option<&str>) -> Answer {
    let to = query.map_or_else(|| to.to_owned(), |query| format!("{to}?{query}"));
    let mut answer = text(StatusCode::MOVED_PERMANENTLY, "");
    match HeaderValue::try_from(to) {
        Ok(to) => drop(answer.headers_mut().insert(header::LOCATION, to)),
        Err(_) => *answer.status_mut() = StatusCode::BAD_REQUEST,
    }
    // Without this header, clients would cache a permanent redirect without a time limit, although every push can change the site.
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer
}

fn unavailable() -> Answer {
    let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, "The file cannot be read. Try again in a few seconds.\n");
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("3"));
    answer
}

fn allow(status: StatusCode) -> Answer {
    let mut answer = Response::new(empty());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    answer
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Creates a response body from a part of a file. A body of up to `PIECE` bytes is read at once; a larger body is read in pieces while the
/// client receives the response.
fn body(file: File, from: u64, length: u64) -> io::Result<Body> {
    if length <= PIECE {
        let bytes = read(&file, from, length)?;
        return Ok(Full::new(bytes).map_err(|never| match never {}).boxed_unsync());
    }
    let pieces = stream::try_unfold((file, from, length), |(file, from, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let count = left.min(PIECE);
        // The file is read on another thread, because the read waits for the disk if the data is not in the page cache.
        let (file, bytes) = tokio::task::spawn_blocking(move || read(&file, from, count).map(|bytes| (file, bytes)))
            .await
            .map_err(io::Error::other)??;
        Ok::<_, io::Error>(Some((Frame::data(bytes), (file, from + count, left - count))))
    });
    Ok(BodyExt::boxed_unsync(StreamBody::new(pieces)))
}

fn read(file: &File, from: u64, length: u64) -> io::Result<Bytes> {
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    // If the file is truncated during the response, the error closes the connection, so that the client detects the truncation.
    file.read_exact_at(&mut bytes, from)?;
    Ok(Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_header_selects_part_of_the_file() {
        let some = |first, last| Part::Some { first, last };
        for (range, expected) in [
            ("bytes=0-4", some(0, 4)),
            ("bytes=5-", some(5, 9)),
            ("bytes=-3", some(7, 9)),
            ("bytes=-30", some(0, 9)),
            ("bytes=5-500", some(5, 9)),
            ("bytes=10-", Part::None),
            ("bytes=-0", Part::None),
            ("bytes=4-2", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("lines=0-4", Part::Whole),
            ("bytes=99999999999999999999-", Part::Whole),
        ] {
            assert_eq!(part(range, 10), expected, "{range}");
        }
        assert_eq!(part("bytes=-1", 0), Part::None);
    }

    #[test]
    fn content_type_follows_the_extension_in_any_case() {
        for (name, expected) in [
            ("a/B.HTML", "text/html; charset=utf-8"),
            ("app.js", "text/javascript; charset=utf-8"),
            ("app.mjs", "text/javascript; charset=utf-8"),
            ("style.css", "text/css; charset=utf-8"),
            ("notes.md", "text/markdown; charset=utf-8"),
            ("feed.xml", "text/xml"),
            ("a.json", "application/json"),
            ("app.webmanifest", "application/manifest+json"),
            ("a.wasm", "application/wasm"),
            ("a.svg", "image/svg+xml"),
            ("a.avif", "image/avif"),
            ("a.woff2", "font/woff2"),
            ("LICENSE", "application/octet-stream"),
        ] {
            assert_eq!(content_type(name), expected, "{name}");
        }
    }

    #[test]
    fn encoding_is_used_only_if_accepted() {
        let headers = |value: &'static str| HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(value))]);
        assert!(accepts(&headers("gzip, deflate, br"), "br") && accepts(&headers("GZIP;q=0.5"), "gzip"));
        assert!(
            !accepts(&headers("gzip, br;q=0"), "br") && !accepts(&headers("brotli"), "br") && !accepts(&HeaderMap::new(), "gzip")
        );
        // The name of the weight is case-insensitive (RFC 9110, section 12.4.2). `*` stands for every encoding that the header does not
        // name (section 12.5.3).
        assert!(
            !accepts(&headers("br;Q=0"), "br") && !accepts(&headers("br; Q=0.000"), "br") && accepts(&headers("br;Q=1"), "br")
        );
        assert!(accepts(&headers("*"), "br") && accepts(&headers("gzip;q=0, *;q=0.5"), "br"));
        assert!(
            !accepts(&headers("*;q=0"), "br") && !accepts(&headers("br;q=0, *"), "br") && accepts(&headers("*;q=0, br"), "br")
        );
    }
}
