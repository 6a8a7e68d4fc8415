//! `larder dev`: processes, their merged log, restarts after a saved file, build errors, and the end by a signal.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::{cli::Output, docs::Page, http, installed, processes, until};

/// A Python application with a worker, without packages.
const PYTHON: &[(&str, &str)] = &[
    ("requirements.txt", "# none\n"),
    ("Procfile", "web: python app.py\nworker: python worker.py\n"),
    ("app.py", PYTHON_WEB),
    ("worker.py", "import time\nprint('worker one', flush=True)\ntime.sleep(1000)\n"),
    (".env", "GREETING='hello there'\nPORT=9\n"),
];

const PYTHON_WEB: &str = "\
import http.server, os
TEXT = 'one'
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (TEXT + ' ' + os.environ.get('GREETING', '')).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        print('request', self.path, flush=True)
print('listening', flush=True)
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()
";

const NODE_WEB: &str = "\
const text = 'one';
require('http').createServer((request, response) => response.end(text + ' ' + process.env.NODE_ENV))
  .listen(process.env.PORT, '127.0.0.1', () => console.log('listening'));
";

/// A checkout with a home of its own.
struct Laptop {
    directory: TempDir,
}

impl Laptop {
    fn new(files: &[(&str, &str)]) -> Laptop {
        let directory = tempfile::tempdir().unwrap();
        for below in ["home", "shop"] {
            fs::create_dir(directory.path().join(below)).unwrap();
        }
        let laptop = Laptop { directory };
        for (name, text) in files {
            laptop.save(name, text);
        }
        let git = Command::new("git").args(["init", "--quiet"]).arg(laptop.checkout()).status().unwrap();
        assert!(git.success());
        laptop
    }

    fn checkout(&self) -> PathBuf {
        self.directory.path().join("shop")
    }

    /// Saves a file as editors do: a new file gets the name of the old file.
    fn save(&self, name: &str, text: &str) {
        let path = self.checkout().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let draft = path.with_extension("tmp");
        fs::write(&draft, text).unwrap();
        let mode = if name.starts_with(".larder/") { 0o755 } else { 0o644 };
        fs::set_permissions(&draft, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(draft, path).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(words).current_dir(self.checkout()).env_remove("XDG_CACHE_HOME").env_remove("NODE_ENV");
        command.env("HOME", self.directory.path().join("home")).env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        Output::of(&mut self.command(words))
    }

    /// Starts `larder dev` on a free port.
    fn start(&self, words: &[&str]) -> Session {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let port_word = port.to_string();
        let words: Vec<&str> = ["dev", "--port", &port_word].iter().chain(words).copied().collect();
        let mut command = self.command(&words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).process_group(0).spawn().unwrap();
        let (send, lines) = channel();
        let out = child.stdout.take().unwrap();
        std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Session { child, port, lines, seen: Vec::new() }
    }
}

/// A running `larder dev`.
struct Session {
    child: Child,
    port: u16,
    lines: Receiver<String>,
    /// The lines that no call of [`Session::says`] has taken.
    seen: Vec<String>,
}

impl Session {
    /// Waits for a line that contains `text`, and takes the line. The lines of several processes have no order, so earlier lines that no call
    /// has taken count, too.
    #[track_caller]
    fn says(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.seen.iter().position(|line| line.contains(text)) {
                return self.seen.remove(at);
            }
            match self.lines.recv_timeout(Duration::from_secs(60)) {
                Ok(line) => self.seen.push(line),
                Err(error) => panic!("no line has {text:?} ({error}): {:#?}", self.seen),
            }
        }
    }

    fn body(&self) -> String {
        http::get(self.port, "localhost", "/").map(|response| response.body).unwrap_or_default()
    }

    #[track_caller]
    fn serves(&self, text: &str) {
        until(&format!("the page has {text:?}"), || self.body().contains(text));
    }

    fn signal(&self, signal: Signal) {
        processes::signal(i32::try_from(self.child.id()).unwrap(), signal);
    }

    /// Ends the session, and returns its exit status.
    fn end(mut self, signal: Signal) -> i32 {
        self.signal(signal);
        let code = self.child.wait().unwrap().code();
        code.unwrap_or(-1)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn saved_python_file_is_live_and_concerns_its_process_only() {
    if installed("python3").is_none() {
        return;
    }
    let laptop = Laptop::new(PYTHON);
    laptop.save("larder.yml", "processes:\n  worker:\n    watch: [/worker.py]\n");
    let mut session = laptop.start(&[]);
    session.says("PORT is set by larder itself");
    session.says("worker one");
    let line = session.says("is ready at");
    assert!(line.starts_with("larder") && line.contains("web.1") && !line.contains('\u{1b}'), "{line:?}");
    session.serves("one hello there");
    laptop.save("app.py", &PYTHON_WEB.replace("'one'", "'two'"));
    let line = session.says("app.py changed: restarting");
    assert!(line.ends_with("restarting web.1"), "{line}");
    session.serves("two hello there");
    laptop.save("worker.py", "print('worker two', flush=True)\nimport time\ntime.sleep(1000)\n");
    session.says("restarting");
    session.says("worker two");
    // A process that crashes is restarted, and the other process keeps running.
    laptop.save("worker.py", "raise SystemExit('worker broke')\n");
    session.says("worker broke");
    session.says("worker.1 exited 1; it starts again in 0.5 s");
    session.says("worker broke");
    session.serves("two");
    // Variables of `.env` restart the processes that they change.
    laptop.save(".env", "GREETING=goodbye\n");
    session.says("restarting");
    session.serves("two goodbye");
    assert_eq!(session.end(Signal::INT), 130);
    assert_eq!(processes::of(laptop.directory.path()), []);
    let git = Command::new("git").arg("-C").arg(laptop.checkout()).args(["status", "--porcelain", "-uall"]).output().unwrap();
    let status = String::from_utf8(git.stdout).unwrap();
    let known = ["requirements.txt", "Procfile", "app.py", "worker.py", ".env", "larder.yml"];
    let strange: Vec<_> = status.lines().filter(|line| !known.iter().any(|name| line.ends_with(name))).collect();
    assert!(strange.iter().all(|line| line.contains("__pycache__") || line.contains(".venv/")), "{strange:?}");
}

#[test]
fn saved_node_file_is_live() {
    if installed("node").is_none() || installed("npm").is_none() {
        return;
    }
    let laptop = Laptop::new(&[("package.json", "{\"scripts\": {\"start\": \"node server.js\"}}"), ("server.js", NODE_WEB)]);
    let mut session = laptop.start(&[]);
    session.says("is ready at");
    session.serves("one development");
    laptop.save("server.js", &NODE_WEB.replace("'one'", "'two'"));
    session.says("server.js changed: restarting web.1");
    session.serves("two development");
    assert_eq!(session.end(Signal::TERM), 143);
    assert_eq!(processes::of(laptop.directory.path()), []);
}

#[test]
fn failed_build_is_shown_and_processes_keep_running() {
    if installed("python3").is_none() {
        return;
    }
    let laptop = Laptop::new(PYTHON);
    let mut session = laptop.start(&["web"]);
    session.says("is ready at");
    laptop.save(".larder/configure", "#!/bin/sh\necho ' !     the settings are broken'\nexit 3\n");
    session.says("the settings are broken");
    session.says("the processes keep running; save a file to try again");
    session.serves("one");
    laptop.save(".larder/configure", "#!/bin/sh\necho configured\n");
    session.says("build  | configured");
    session.says("is ready at");
    session.serves("one");
    // A recipe that cannot be read is shown with its line.
    laptop.save("larder.yml", "processes:\n  web: {comand: x}\n");
    session.says("larder.yml:2");
    session.says("the processes keep running");
    session.serves("one");
    laptop.save("larder.yml", "env:\n  GREETING: unused\n  MORE: x\n");
    session.says("is ready at");
    session.serves("one hello there");
    assert_eq!(session.end(Signal::INT), 130);
}

#[test]
fn every_process_ends_with_the_session() {
    let laptop = Laptop::new(&[(
        "Procfile",
        "web: trap '' TERM; setsid sleep 1001 & sleep 1002 & echo up; while :; do sleep 1; done\nother: echo up; exec sleep 1003\n",
    )]);
    let mut session = laptop.start(&[]);
    session.says("| up");
    session.says("| up");
    until("the process in its own session runs", || processes::of(laptop.directory.path()).len() >= 5);
    // The process ignores the first signal. The second signal ends the wait.
    session.signal(Signal::INT);
    until("the other process has ended", || {
        !processes::of(laptop.directory.path()).iter().any(|process| process.arguments.iter().any(|word| word == "1003"))
    });
    assert_eq!(session.end(Signal::INT), 130);
    assert_eq!(processes::of(laptop.directory.path()), []);
}

#[test]
fn wrong_words_and_missing_values_are_refused_with_a_remedy() {
    let laptop = Laptop::new(&[("Procfile", "web: sleep 1000\nrelease: echo released $LARDER_MODE; exit 3\n")]);
    laptop.run(&["dev", "nosuch"]).exits(4).says("there is no process nosuch; the project has: web");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    laptop.run(&["dev", "--port", &port]).exits(3).says("another process listens there").says("leave out --port");
    drop(listener);
    laptop.run(&["dev", "release"]).exits(3).says("release | released editable");
    // A database without a URL, a server that does not answer, and a variable without a value are named.
    laptop.save("larder.yml", "databases:\n  main: {type: postgres, url: $DATABASE_URL}\n");
    laptop.save(
        "app.json",
        "{\"env\": {\"API_KEY\": {\"description\": \"key of the shop\"}, \"SECRET\": {\"generator\": \"secret\"}}}",
    );
    let mut session = laptop.start(&[]);
    session.says("app.json requires a value for API_KEY (key of the shop)");
    session.says("hint: add a line API_KEY=VALUE to .env");
    session.says("no process runs");
    laptop.save(".env", "API_KEY=x\n");
    session.says("the database main has no URL: add a line DATABASE_URL=URL to .env");
    laptop.save(".env", "API_KEY=x\nDATABASE_URL=postgres://shop:hunter2@127.0.0.1:1/shop\n");
    let line = session.says("no server answers at the address of DATABASE_URL, 127.0.0.1:1");
    assert!(!line.contains("hunter2"), "{line}");
    assert_eq!(session.end(Signal::INT), 130);
}

#[test]
fn own_packages_of_a_developer_stay() {
    if installed("python3").is_none() {
        return;
    }
    let laptop = Laptop::new(PYTHON);
    let venv = laptop.checkout().join(".venv");
    let made =
        Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(&venv).env("PATH", "/usr/bin:/bin").status().unwrap();
    if !made.success() {
        eprintln!("SKIPPED: python3-venv is not installed");
        return;
    }
    fs::write(venv.join("own"), "mine").unwrap();
    let mut session = laptop.start(&["web"]);
    session.says("is ready at");
    laptop.save("requirements.txt", "# still none\n");
    session.says("is ready at");
    assert_eq!(fs::read_to_string(venv.join("own")).unwrap(), "mine");
    assert_eq!(session.end(Signal::INT), 130);
}

/// Runs the commands of the page that need no server.
pub fn run_commands_of_the_page(page: &Page) {
    let laptop = Laptop::new(&[("requirements.txt", "")]);
    for command in ["git init shop", "cd shop"] {
        // The checkout of the test stands for the directory of the page.
        page.ran(command);
    }
    let [app] = page.blocks("python")[..] else { panic!("the page has one Python file") };
    laptop.save("app.py", app);
    let [procfile] = page.blocks("procfile")[..] else { panic!("the page has one Procfile") };
    laptop.save("Procfile", &format!("{procfile}release: echo migrated\n"));
    let [.., env] = page.blocks("text")[..] else { panic!("the page has a file of variables") };
    laptop.save(".env", env.lines().last().unwrap());
    let mut shown = page.blocks("text")[0].lines();
    for (line, words) in
        [("larder dev", &[][..]), ("larder dev web", &["web"]), ("larder dev --env staging", &["--env", "staging"])]
    {
        if line != "larder dev web" {
            page.ran(line);
        }
        let mut session = laptop.start(words);
        let first = shown.next().unwrap_or("larder | running").split('/').next().unwrap().to_owned();
        session.says(&first);
        session.says("web.1 is ready at http://127.0.0.1:");
        session.serves("hello from my machine");
        if line == "larder dev" {
            laptop.save("app.py", &app.replace("encode()", "upper().encode()"));
            session.serves("HELLO FROM MY MACHINE");
            laptop.save("app.py", app);
            shown.by_ref().for_each(drop);
        }
        assert_eq!(session.end(Signal::INT), 130);
    }
    page.ran("larder dev web --port 3000");
    laptop.run(&["dev", "release"]).exits(0).says("release | migrated");
    page.ran("larder dev release");
    // The recipes of the page are valid.
    for recipe in page.blocks("yaml") {
        laptop.save("larder.yml", recipe);
        laptop.run(&["dev", "nosuch"]).exits(4).says("there is no process nosuch");
    }
}

/// Prints the times from save to live. The test is a measurement, so it runs with `LARDER_TEST_THOROUGH` only.
#[test]
fn time_from_save_to_live_is_measured() {
    if !crate::harness::thorough() || installed("python3").is_none() || installed("node").is_none() {
        return;
    }
    let node: &[(&str, &str)] = &[("package.json", "{\"scripts\": {\"start\": \"node server.js\"}}"), ("server.js", NODE_WEB)];
    for (name, files, main, text) in [("python", PYTHON, "app.py", PYTHON_WEB), ("node", node, "server.js", NODE_WEB)] {
        let laptop = Laptop::new(files);
        let mut session = laptop.start(&["web"]);
        session.says("is ready at");
        let mut times: Vec<Duration> = (0..20)
            .map(|number| {
                let word = format!("edit{number}");
                let began = Instant::now();
                laptop.save(main, &text.replace("'one'", &format!("'{word}'")));
                while !session.body().contains(&word) {
                    std::thread::sleep(Duration::from_millis(2));
                }
                began.elapsed()
            })
            .collect();
        times.sort();
        eprintln!("{name}: from save to live: median {:?}, slowest {:?}", times[10], times[19]);
        assert_eq!(session.end(Signal::INT), 130);
    }
}
