//! Tests of PHP: composer's scripts, Heroku's server scripts, `.user.ini`, and the router of PHP's own server.

use std::{
    fs,
    process::{Command, Stdio},
};

use super::{Project, ours};

const PHP: &str = "case $2 in *PHP_VERSION*) printf 8.2.0; exit ;; esac\ngrep -q \"\\\"$3\\\":\" composer.json\n";

#[test]
fn composer_scripts_run_in_order_after_the_packages() {
    let scripts = r#"{"description":"compile","scripts":{"compile":["a"],"post-autoload-dump":["b"],"post-install-cmd":["c"]}}"#;
    let project = Project::new(&[("composer.json", scripts), ("composer.lock", "{}"), ("public/index.php", "<?php\n")]);
    project.program("php", PHP).program("composer", "[ \"$1\" != install ] || mkdir -p vendor");
    project.compiled("php", &[]);
    // The second build takes the packages from the cache.
    fs::remove_dir_all(project.app("vendor")).unwrap();
    project.compiled("php", &[]);
    let calls: Vec<String> = project.calls().into_iter().filter(|call| call.starts_with("composer")).collect();
    let verbs: Vec<&str> = calls.iter().map(|call| call.rsplit(' ').find(|word| !word.starts_with('-')).unwrap()).collect();
    let events = ["post-autoload-dump", "post-install-cmd", "compile"];
    assert_eq!(verbs, [&["install"][..], &events, &["install"], &events].concat());
    assert!(project.app(".larder-router.php").is_file());
    assert_eq!(project.web("php").as_deref(), Some("php -S 127.0.0.1:$PORT -t public .larder-router.php"));
}

#[test]
fn heroku_server_scripts_start_phps_own_server() {
    for (line, script) in [
        ("web: heroku-php-apache2 -C x.conf public/", ".heroku/bin/heroku-php-apache2"),
        ("web: vendor/bin/heroku-php-apache2 public/", "vendor/bin/heroku-php-apache2"),
        ("web: $HOME/vendor/bin/heroku-php-nginx -F y.conf public/", "vendor/bin/heroku-php-nginx"),
    ] {
        let project = Project::new(&[("index.php", "<?php\n"), ("Procfile", line)]);
        project.program("php", PHP);
        // Composer leaves such a link if the project requires Heroku's buildpack.
        fs::create_dir_all(project.app("vendor/bin")).unwrap();
        std::os::unix::fs::symlink("../nowhere", project.app("vendor/bin/heroku-php-apache2")).unwrap();
        project.compiled("php", &[]);
        let mut command = Command::new(project.app(script));
        command.env_clear().env("PATH", format!("{}:/usr/bin:/bin", project.temp.path().join("bin").display()));
        command.env("PORT", "80").env("HOME", "/app").args(["-C", "x.conf", "public/"]);
        command.status().unwrap();
        let last = project.calls().pop().unwrap();
        assert_eq!(last, "php -S 127.0.0.1:80 -t public/ /app/.larder-router.php", "{line}");
    }
}

#[test]
fn user_ini_applies_to_php_processes() {
    let project = Project::new(&[("public/index.php", "<?php\n"), ("public/.user.ini", "upload_max_filesize=64M\n")]);
    project.program("php", PHP);
    project.compiled("php", &[]);
    let Some(php) = super::installed("php") else { return };
    let ask = format!(". .profile.d/php.sh; '{}' -r 'echo ini_get(\"upload_max_filesize\");'", php.display());
    let mut command = Command::new("/bin/sh");
    let output = command.args(["-c", &ask]).env("HOME", project.app("")).current_dir(project.app("")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "64M");
}

/// PHP's own server with larder's router.
struct Served {
    server: std::process::Child,
    port: u16,
}

impl Served {
    fn new(project: &Project, root: &str) -> Option<Served> {
        if Command::new("php").arg("-v").output().is_err() {
            eprintln!("SKIPPED: php is not installed");
            return None;
        }
        fs::copy(ours("lib/router.php"), project.app(".larder-router.php")).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("php");
        command.args(["-S", &format!("127.0.0.1:{port}"), "-t", root, ".larder-router.php"]).current_dir(project.app(""));
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let served = Served { server, port };
        for _ in 0..500 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(served);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("php does not listen");
    }

    fn get(&self, path: &str) -> (u16, String) {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: shop\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {answer:?}"));
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

const SHOW: &str = "<?php echo $_SERVER['SCRIPT_NAME'], ' ', $_SERVER['PATH_INFO'] ?? '-', ' ', basename(getcwd());";

#[test]
fn router_hides_private_files_and_finds_front_controller() {
    let project = Project::new(&[
        (".env", "SECRET=1"),
        ("composer.json", "{}"),
        ("vendor/autoload.php", "<?php echo 'secret';"),
        ("Procfile", "web: x"),
        ("index.php", SHOW),
        ("public/.env", "SECRET=2"),
        ("public/.well-known/x", "known"),
        ("public/style.css", "style"),
        ("public/vendor/x.js", "script"),
        ("public/index.php", SHOW),
        ("public/tool.php", SHOW),
        ("public/blog/index.php", SHOW),
        ("public/plain/index.html", "a page"),
    ]);
    let Some(served) = Served::new(&project, "public") else { return };
    for hidden in ["/.env", "/%2eenv", "//.env", "/plain/../.env", "/../.env", "/x%00.css", "/a/.git/config"] {
        assert_eq!(served.get(hidden), (404, "Not found\n".to_owned()), "{hidden}");
    }
    for (path, page) in [
        ("/.well-known/x", "known"),
        ("/style.css", "style"),
        ("/vendor/x.js", "script"),
        ("/plain/", "a page"),
        ("/", "/index.php - public"),
        ("/users/v1.2", "/index.php /users/v1.2 public"),
        ("/sitemap.xml?a=/.b", "/index.php /sitemap.xml public"),
        ("/index.php/a/b.c", "/index.php /a/b.c public"),
        ("/tool.php/x.y", "/tool.php /x.y public"),
        ("/blog/2024/a.b", "/blog/index.php /2024/a.b blog"),
    ] {
        assert_eq!(served.get(path), (200, page.to_owned()), "{path}");
    }
    drop(served);
    let Some(served) = Served::new(&project, ".") else { return };
    for hidden in
        ["/composer.json", "//composer.lock", "/vendor/autoload.php", "/Procfile", "/.larder-router.php", "/public/.env"]
    {
        assert_eq!(served.get(hidden).0, 404, "{hidden}");
    }
    assert_eq!(served.get("/public/style.css"), (200, "style".to_owned()));
    fs::remove_file(project.app("index.php")).unwrap();
    assert_eq!(served.get("/a.b").0, 404);
}
