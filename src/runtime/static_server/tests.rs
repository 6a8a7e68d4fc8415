//! Tests of the static server: requests and responses, and one real connection.

use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, body::Bytes};

use super::*;

fn site(change: impl FnOnce(&mut StaticSettings)) -> (tempfile::TempDir, Site) {
    let temp = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = temp.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("index.html", "home");
    write("about.html", "about");
    write("docs/index.html", "docs");
    write("app.js", "plain");
    write("app.js.gz", "gzipped");
    write("app.js.br", "brotli");
    write("404.html", "lost");
    write(".env", "secret");
    write("larder.yml", "env: {}");
    write("empty/.keep", "");
    write("large.bin", &"0123456789".repeat(20_000));
    let mut settings = StaticSettings {
        root: temp.path().to_owned(),
        port: 0,
        clean_urls: false,
        routes: Vec::new(),
        error_page: None,
        headers: Vec::new(),
        release: Some("v7".parse().unwrap()),
    };
    change(&mut settings);
    let site = Site::new(settings).unwrap();
    (temp, site)
}

type Got = (StatusCode, hyper::HeaderMap, Bytes);

async fn get(site: &Site, method: &str, path: &str, headers: &[(&str, &str)]) -> Got {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = site.answer(&request.body(Empty::<Bytes>::new()).unwrap()).await;
    let (parts, body) = answer.into_parts();
    (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
}

async fn status_and_text(site: &Site, path: &str) -> (u16, String) {
    let (status, _, body) = get(site, "GET", path, &[]).await;
    (status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn path_of_file_directory_or_page_is_served() {
    let (_temp, site) = site(|_| {});
    for (path, status, text) in [
        ("/", 200, "home"),
        ("/index.html", 200, "home"),
        ("/about", 200, "about"),
        ("/about.html", 200, "about"),
        ("/docs/", 200, "docs"),
        ("/nowhere", 404, "lost"),
        ("/about.html/", 404, "lost"),
        ("/.env", 404, "lost"),
        ("/larder.yml", 404, "lost"),
        ("/empty/", 404, "lost"),
        ("/empty/.keep", 404, "lost"),
    ] {
        assert_eq!(status_and_text(&site, path).await, (status, text.to_owned()), "{path}");
    }
    assert_eq!(get(&site, "GET", "/../etc/passwd", &[]).await.0, 400);
    assert_eq!(get(&site, "GET", "/%2e%2e/etc/passwd", &[]).await.0, 400);
    let (status, headers, _) = get(&site, "GET", "/docs?a=b", &[]).await;
    assert_eq!((status.as_u16(), headers["location"].to_str().unwrap()), (301, "/docs/?a=b"));
    // The Location must not name another host.
    assert_eq!(get(&site, "GET", "//docs", &[]).await.1["location"], "/docs/");
}

#[tokio::test]
async fn response_has_headers_of_settings_and_release() {
    let (_temp, site) = site(|settings| {
        settings.headers = vec![("/*.js".into(), vec![("cache-control".parse().unwrap(), "max-age=9".parse().unwrap())])];
    });
    let (status, headers, body) = get(&site, "HEAD", "/about", &[]).await;
    assert_eq!((status.as_u16(), body.len(), &headers["content-length"]), (200, 0, &"5".parse().unwrap()));
    assert_eq!(
        (&headers["larder-release"], &headers["content-type"]),
        (&"v7".parse().unwrap(), &"text/html; charset=utf-8".parse().unwrap())
    );
    assert!(!headers.contains_key("last-modified"));
    assert_eq!(get(&site, "GET", "/app.js", &[]).await.1["cache-control"], "max-age=9");
    let (status, headers, _) = get(&site, "POST", "/", &[]).await;
    assert_eq!((status.as_u16(), headers["allow"].to_str().unwrap()), (405, "GET, HEAD, OPTIONS"));
}

#[tokio::test]
async fn unchanged_file_is_not_sent_again() {
    let (temp, site) = site(|_| {});
    let tag = get(&site, "GET", "/about", &[]).await.1["etag"].to_str().unwrap().to_owned();
    for asked in [tag.clone(), format!("\"x\", W/{tag}"), String::from("*")] {
        let (status, headers, body) = get(&site, "GET", "/about", &[("If-None-Match", &asked)]).await;
        assert_eq!((status.as_u16(), body.len(), headers["etag"].to_str().unwrap()), (304, 0, tag.as_str()));
    }
    std::fs::write(temp.path().join("about.html"), "ABOUT").unwrap();
    assert_eq!(get(&site, "GET", "/about", &[("If-None-Match", &tag)]).await.0, 200);
    // Modification dates are ignored: after a rollback, a file is older than the browser's copy.
    let later = ("If-Modified-Since", "Fri, 31 Dec 2100 00:00:00 GMT");
    assert_eq!(get(&site, "GET", "/about", &[later]).await.0, 200);
    // The error page has no entity tag, because clients would cache it as the requested page.
    assert!(!get(&site, "GET", "/nowhere", &[]).await.1.contains_key("etag"));
}

#[tokio::test]
async fn range_is_sent_as_partial_content() {
    let (_temp, site) = site(|_| {});
    let (status, headers, body) = get(&site, "GET", "/large.bin", &[("Range", "bytes=100000-100009")]).await;
    assert_eq!((status.as_u16(), &body[..]), (206, &b"0123456789"[..]));
    assert_eq!(headers["content-range"], "bytes 100000-100009/200000");
    let (status, headers, _) = get(&site, "GET", "/large.bin", &[("Range", "bytes=200000-")]).await;
    assert_eq!((status.as_u16(), headers["content-range"].to_str().unwrap()), (416, "bytes */200000"));
    assert_eq!(get(&site, "GET", "/large.bin", &[]).await.2, "0123456789".repeat(20_000));
    let tag = get(&site, "GET", "/large.bin", &[]).await.1["etag"].to_str().unwrap().to_owned();
    assert_eq!(get(&site, "GET", "/large.bin", &[("Range", "bytes=0-0"), ("If-Range", &tag)]).await.0, 206);
    assert_eq!(get(&site, "GET", "/large.bin", &[("Range", "bytes=0-0"), ("If-Range", "\"old\"")]).await.0, 200);
}

#[tokio::test]
async fn if_match_with_another_tag_is_refused_with_412() {
    let (_temp, site) = site(|_| {});
    let tag = get(&site, "GET", "/about", &[]).await.1["etag"].to_str().unwrap().to_owned();
    for (asked, status) in [
        (tag.clone(), 200),
        (format!("\"x\", {tag}"), 200),
        (String::from("*"), 200),
        (String::from("\"x\""), 412),
        // The comparison is strong: a weak tag never matches.
        (format!("W/{tag}"), 412),
    ] {
        let (answered, headers, _) = get(&site, "GET", "/about", &[("If-Match", &asked)]).await;
        assert_eq!(answered.as_u16(), status, "{asked}");
        assert_eq!(headers["etag"].to_str().unwrap(), tag, "{asked}");
    }
    // If-Match is evaluated before If-None-Match and before Range.
    let asked = [("If-Match", "\"x\""), ("If-None-Match", tag.as_str()), ("Range", "bytes=0-0")];
    assert_eq!(get(&site, "GET", "/about", &asked).await.0, 412);
    // A precondition is ignored if the response without the precondition would be an error.
    assert_eq!(get(&site, "GET", "/nowhere", &[("If-Match", "*")]).await.0, 404);
}

#[tokio::test]
async fn range_of_a_head_request_is_ignored() {
    let (_temp, site) = site(|_| {});
    let (status, headers, _) = get(&site, "HEAD", "/large.bin", &[("Range", "bytes=0-9")]).await;
    assert_eq!((status.as_u16(), headers["content-length"].to_str().unwrap()), (200, "200000"));
    assert_eq!(get(&site, "HEAD", "/large.bin", &[("Range", "bytes=200000-")]).await.0, 200);
    assert_eq!(get(&site, "GET", "/large.bin", &[("Range", "Bytes=0-9")]).await.0, 206);
}

#[tokio::test]
async fn compressed_sibling_is_sent_if_accepted() {
    let (_temp, site) = site(|_| {});
    for (asked, text, encoding) in
        [("gzip, br", "brotli", Some("br")), ("gzip", "gzipped", Some("gzip")), ("deflate", "plain", None)]
    {
        let (_, headers, body) = get(&site, "GET", "/app.js", &[("Accept-Encoding", asked)]).await;
        assert_eq!(&body[..], text.as_bytes());
        assert_eq!(headers.get("content-encoding").map(|value| value.to_str().unwrap()), encoding);
        assert_eq!(
            (&headers["vary"], &headers["content-type"]),
            (&"Accept-Encoding".parse().unwrap(), &"text/javascript; charset=utf-8".parse().unwrap())
        );
    }
}

#[tokio::test]
async fn routes_error_page_and_clean_urls_of_the_settings_are_used() {
    let (_temp, site) = site(|settings| {
        settings.routes = vec![("/app/**".into(), "about.html".into())];
        settings.error_page = Some("docs/index.html".into());
        settings.clean_urls = true;
    });
    assert_eq!(status_and_text(&site, "/app/deep/link").await, (200, "about".into()));
    assert_eq!(status_and_text(&site, "/nowhere").await, (404, "docs".into()));
    for (path, to) in [("/about.html", "/about"), ("/docs/index.html", "/docs/"), ("/index.html", "/")] {
        assert_eq!(get(&site, "GET", path, &[]).await.1["location"], to, "{path}");
    }
}

#[test]
fn site_with_a_missing_directory_is_refused() {
    let settings = |root: &str| StaticSettings {
        root: root.into(),
        port: 0,
        clean_urls: false,
        routes: Vec::new(),
        error_page: None,
        headers: Vec::new(),
        release: None,
    };
    assert!(Site::new(settings("/no/such")).unwrap_err().to_string().contains("/no/such"));
}

#[tokio::test]
async fn pipelined_requests_are_answered_over_tcp() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (_temp, site) = site(|_| {});
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    // No test sends this signal, so the server runs until the test aborts the server's task.
    let stop = signal(SignalKind::user_defined2()).unwrap();
    let server = tokio::spawn(serve(listener, Arc::new(site), stop));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\nGET /docs/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    assert!(all.starts_with("HTTP/1.1 200 OK\r\n") && all.ends_with("docs") && all.len() > 200_000);
    server.abort();
}
