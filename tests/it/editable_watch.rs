//! Saved files in editable environments: what restarts, what is built, and what never gets lost.

use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Repo, World, in_each_mode, in_one_mode, installed, processes, until, within};

in_each_mode!(saved_python_file_is_live_at_once, edits_run_and_are_watched_after_the_loss_of_all_processes_and_mounts);
in_one_mode!(
    saved_node_file_is_live_at_once,
    only_processes_whose_patterns_match_restart,
    saved_build_input_builds_and_a_failing_build_changes_nothing,
    broken_file_is_shown_and_the_next_save_repairs_it,
    file_saved_during_a_deployment_is_not_missed,
    killed_worker_misses_no_saved_file,
    file_saved_while_the_server_restarts_is_not_missed,
    many_files_saved_at_once_are_one_restart
);

const PYTHON: &str = "\
import http.server, os
TEXT = 'one'
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = TEXT.encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()
";

const NODE: &str = "\
const text = 'one';
require('http').createServer((request, response) => response.end(text)).listen(process.env.PORT, '127.0.0.1');
";

/// Deploys a Python application, and waits until its checkout is watched.
fn python<'w>(world: &'w World, files: &[(&str, &str)]) -> Option<Repo<'w>> {
    installed("python3")?;
    world.larder(&["project", "create", "shop", "--mode", "editable"]).ok();
    let repo = Repo::new(world, "shop");
    repo.write("app.py", PYTHON).write("Procfile", "web: python app.py\n").write("requirements.txt", "# none\n");
    for (path, text) in files {
        match path.starts_with(".larder/") {
            true => repo.program(path, text),
            false => repo.write(path, text),
        };
    }
    repo.commit("one");
    repo.push().accepted();
    serves(world, "one");
    watched(world);
    Some(repo)
}

/// Returns the numbers of the processes that watch a checkout.
fn watchers(world: &World) -> Vec<i32> {
    let all = processes::of(world.directory()).into_iter();
    let is_watch = |pid: &i32| processes::arguments(*pid).is_some_and(|words| words.join(" ").ends_with("worker watch"));
    all.map(|process| process.pid).filter(is_watch).collect()
}

fn watched(world: &World) {
    until("the checkout is watched", || !watchers(world).is_empty());
    // The worker has set its watches when it has reported a file.
    let reports = || tells(world, "Procfile was saved");
    let before = reports();
    until("a saved file is reported", || {
        by_hand(world, "touch Procfile");
        within(Duration::from_secs(1), || reports() > before)
    });
}

/// Runs a command in the checkout, as the user to whom it belongs.
fn by_hand(world: &World, script: &str) -> String {
    world.larder(&["run", "shop", "--", "sh", "-ec", script]).ok().to_owned()
}

/// Replaces the text of the page.
fn save(world: &World, file: &str, from: &str, to: &str) {
    by_hand(world, &format!("sed -i \"s/'{from}'/'{to}'/\" {file}"));
}

/// Returns the number of larder's lines in the logs that contain a text.
fn tells(world: &World, text: &str) -> usize {
    logs(world, "larder").lines().filter(|line| line.contains(text)).count()
}

fn logs(world: &World, process: &str) -> String {
    world.larder(&["logs", "shop", "--process", process, "--lines", "1000"]).ok().to_owned()
}

#[track_caller]
fn says(world: &World, text: &str) {
    let said = within(Duration::from_secs(60), || tells(world, text) > 0);
    assert!(said, "larder does not say {text:?}: {}", logs(world, "larder"));
}

/// Waits until the page has a text. While the process restarts, requests wait, and no visitor sees an error.
#[track_caller]
fn serves(world: &World, text: &str) {
    until(&format!("the page has {text:?}"), || {
        let answer = world.get("shop", "/");
        assert_eq!(answer.status, 200, "{answer:#?}");
        answer.body == text
    });
}

fn saved_python_file_is_live_at_once(world: &World) {
    let Some(repo) = python(world, &[]) else { return };
    save(world, "app.py", "one", "two");
    serves(world, "two");
    says(world, "app.py was saved; web restarted after 0.");
    // Ignored files, and files that tools write, have no effect.
    by_hand(world, "mkdir -p node_modules/a tmp; echo 1 > node_modules/a/x.js; echo 1 > tmp/x; echo 1 > a.log; echo 1 > .git/x");
    save(world, "app.py", "two", "three");
    serves(world, "three");
    says(world, "web restarted");
    until("both restarts are shown", || tells(world, "web restarted") == 2);
    assert_eq!(tells(world, "app.py was saved"), 2, "{}", logs(world, "larder"));
    // A push that updates the checkout is no save.
    by_hand(world, "git checkout --quiet -- app.py");
    serves(world, "one");
    until("the third restart is shown", || tells(world, "web restarted") == 3);
    repo.write("app.py", PYTHON.replace("'one'", "'pushed'")).commit("pushed");
    repo.push().accepted();
    serves(world, "pushed");
    save(world, "app.py", "pushed", "four");
    serves(world, "four");
    until("the fourth restart is shown", || tells(world, "web restarted") == 4);
    // The processes run as before, and a removal ends the watch.
    world.larder(&["project", "destroy", "shop", "--confirm", "shop"]).ok();
    until("the watch has ended", || watchers(world).is_empty());
}

fn saved_node_file_is_live_at_once(world: &World) {
    if installed("node").is_none() {
        return;
    }
    world.larder(&["project", "create", "shop", "--mode", "editable"]).ok();
    let repo = Repo::new(world, "shop");
    repo.write("app.js", NODE)
        .write("Procfile", "web: node app.js\n")
        .write("package.json", "{\"name\":\"shop\"}\n")
        .commit("one");
    repo.push().accepted();
    serves(world, "one");
    watched(world);
    save(world, "app.js", "one", "two");
    serves(world, "two");
    says(world, "app.js was saved; web restarted after");
}

fn only_processes_whose_patterns_match_restart(world: &World) {
    let recipe = "processes:\n  web:\n    watch: [/app.py]\n  worker:\n    command: python worker.py\n    scale: 1\n    watch: [/worker.py, /shared/]\n";
    let worker = "import time\nprint('worker one', flush=True)\ntime.sleep(1000)\n";
    let Some(_repo) = python(world, &[("larder.yml", recipe), ("worker.py", worker)]) else { return };
    let starts = || logs(world, "worker").lines().filter(|line| line.contains("worker one")).count();
    until("the worker runs", || starts() == 1);
    save(world, "app.py", "one", "two");
    serves(world, "two");
    says(world, "app.py was saved; web restarted");
    assert_eq!(starts(), 1);
    by_hand(world, "mkdir shared; echo 1 > shared/x; echo 1 > notes.txt");
    until("the worker runs again", || starts() == 2);
    says(world, "; worker restarted");
    assert_eq!(tells(world, "web restarted"), 1);
    assert_eq!(tells(world, "notes.txt was saved; "), 0);
}

fn saved_build_input_builds_and_a_failing_build_changes_nothing(world: &World) {
    let script = "#!/bin/sh\nmkdir -p tmp\necho built >> tmp/built\n";
    let Some(_repo) = python(world, &[(".larder/build", script)]) else { return };
    let builds = || by_hand(world, "cat tmp/built").lines().count();
    let first = builds();
    save(world, "app.py", "one", "two");
    serves(world, "two");
    assert_eq!(builds(), first, "a file of which the build is not made builds nothing");
    by_hand(world, "echo '# more' >> requirements.txt");
    until("the build runs", || builds() == first + 1);
    says(world, "requirements.txt was saved; web restarted after");
    by_hand(world, "printf '#!/bin/sh\\necho broken on purpose\\nexit 3\\n' > .larder/build");
    says(world, ".larder/build was saved; the build failed, and the processes keep running: ");
    says(world, "broken on purpose");
    serves(world, "two");
    let restarts = tells(world, "web restarted");
    // The next saved file repeats the build.
    by_hand(world, "printf '#!/bin/sh\\necho built >> tmp/built\\n' > .larder/build");
    until("the processes restart", || tells(world, "web restarted") > restarts);
    assert_eq!(builds(), first + 2);
}

fn broken_file_is_shown_and_the_next_save_repairs_it(world: &World) {
    let Some(_repo) = python(world, &[]) else { return };
    by_hand(world, "printf 'def broken(:\\n' > app.py");
    says(world, "app.py was saved; web.1 exited 1: SyntaxError");
    by_hand(world, "git show HEAD:app.py | sed \"s/'one'/'two'/\" > app.py");
    until("the page works again", || world.get("shop", "/").body == "two");
    assert_eq!(world.larder(&["status", "--json"]).json()["environments"][0]["state"], "live");
}

fn file_saved_during_a_deployment_is_not_missed(world: &World) {
    let Some(repo) = python(world, &[]) else { return };
    // The processes of the new release run already when the script changes a file.
    let script = "#!/bin/sh\nsleep 1\nsed -i \"s/'pushed'/'saved'/\" app.py\necho saved > new.txt\n";
    repo.program(".larder/post_install", script).write("app.py", PYTHON.replace("'one'", "'pushed'")).commit("pushed");
    repo.push().accepted();
    serves(world, "saved");
    until("the restart is shown", || tells(world, "web restarted") == 1);
    assert_eq!(by_hand(world, "git diff --name-only"), "app.py\n");
}

fn killed_worker_misses_no_saved_file(world: &World) {
    let Some(_repo) = python(world, &[]) else { return };
    let before = watchers(world);
    before.iter().for_each(|pid| processes::signal(*pid, Signal::KILL));
    save(world, "app.py", "one", "two");
    serves(world, "two");
    until("another worker runs", || watchers(world).iter().any(|pid| !before.contains(pid)));
    says(world, "saved files have no effect: the worker that watches the checkout has ended");
    save(world, "app.py", "two", "three");
    serves(world, "three");
}

fn file_saved_while_the_server_restarts_is_not_missed(world: &World) {
    let Some(_repo) = python(world, &[]) else { return };
    let path = world.environment("shop").join("run/app.py");
    let text = std::fs::read_to_string(&path).unwrap();
    world.kill9_server();
    // The file keeps its owner.
    std::fs::write(&path, text.replace("'one'", "'two'")).unwrap();
    serves(world, "two");
}

fn many_files_saved_at_once_are_one_restart(world: &World) {
    let Some(_repo) = python(world, &[]) else { return };
    by_hand(
        world,
        "mkdir many; for number in $(seq 1000); do echo $number > many/$number.txt; done; sed -i \"s/'one'/'two'/\" app.py",
    );
    serves(world, "two");
    until("the restart is shown", || tells(world, "more files were saved; web restarted") > 0);
    assert!(tells(world, "web restarted") <= 4, "{}", logs(world, "larder"));
}

fn edits_run_and_are_watched_after_the_loss_of_all_processes_and_mounts(world: &World) {
    let Some(_repo) = python(world, &[]) else { return };
    save(world, "app.py", "one", "two");
    serves(world, "two");
    by_hand(world, "echo mine > notes.txt");
    // As after a reboot: no process and no mount is left.
    world.kill9_everything();
    for mount in processes::mounts(world.root()).iter().rev() {
        let point = mount.split(' ').nth(4).unwrap();
        rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    let run = world.environment("shop").join("run");
    assert!(std::fs::read_to_string(run.join("app.py")).unwrap().contains("'two'"), "the checkout is a real directory");
    world.start(&[]);
    serves(world, "two");
    assert_eq!(by_hand(world, "cat notes.txt; git diff --name-only"), "mine\napp.py\n");
    until("the checkout is watched", || !watchers(world).is_empty());
    watched(world);
    save(world, "app.py", "two", "three");
    serves(world, "three");
}
