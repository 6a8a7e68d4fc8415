//! Programs in a pseudo-terminal: `run` and `db shell` of people at a terminal, over real ssh.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use crate::harness::{
    Laptop, Repo, SetOnDrop, Terminal, World,
    cli::Output,
    in_each_mode, in_one_mode,
    postgres::Postgres,
    terminal::{memory, type_bytes},
    until, within,
};

in_each_mode!(shell_over_ssh_has_a_terminal_of_its_own);
in_one_mode!(
    bytes_of_a_raw_terminal_pass_unchanged,
    slow_reader_and_hung_program_take_no_memory_of_the_server,
    lost_client_hangs_up_the_terminal_and_ends_the_session,
    psql_has_a_terminal,
    laptop_gives_a_terminal_to_programs_and_none_to_pipes,
    text_has_colours_on_terminals_only,
    operator_on_the_server_has_a_terminal,
);

fn shop(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.write("larder.yml", "data: [media]\n").page("version two");
    repo.push().accepted();
}

/// Returns the processes of the project, besides its web process.
fn sessions(world: &World) -> usize {
    world.application("shop").len().saturating_sub(world.ports("shop").len())
}

/// Waits until the project has no process besides those that it had before a session.
#[track_caller]
fn session_ended(world: &World, before: usize) {
    until("all processes of the session ended", || sessions(world) <= before);
}

fn shell_over_ssh_has_a_terminal_of_its_own(world: &World) {
    shop(world);
    let before = sessions(world);
    let Some(mut shell) = Terminal::ssh(world, "alice", &["run", "shop", "sh"]) else { return };
    shell.shows("$ ");
    // The size, the type and the standard descriptors are those of a terminal, and the terminal controls the session.
    shell.types("echo size:`stty size` term:$TERM; test -t 0 && test -t 1 && test -t 2 && echo con\"\"nected > /dev/tty\n");
    shell.shows("size:37 100 term:xterm-256color");
    shell.shows("connected");
    // The device belongs to the user of the program, and no other user may read it.
    shell.types("test \"$(stat -c %u-%a $(tty))\" = \"$(id -u)-620\" && echo ow\"\"ned\n");
    shell.shows("owned");
    // A new size reaches the program as a signal.
    shell.types("sh -c 'trap \"echo now:\\$(stty size); exit\" WINCH; echo wai\"\"ting; while :; do sleep 0.05; done'\n");
    shell.shows("waiting");
    shell.resize(132, 50);
    shell.shows("now:50 132");
    // Ctrl-C ends the program in the foreground. The shell and the connection stay.
    shell.types("sh -c 'echo sle\"\"eping; exec sleep 1000'\n");
    shell.shows("sleeping");
    shell.types("\x03");
    shell.shows("$ ");
    shell.types("echo status:$?\n");
    shell.shows("status:130");
    // Ctrl-Z stops a program and `fg` continues it, which needs the control of jobs.
    shell.types("sh -c 'echo rea\"\"ding; exec cat'\n");
    shell.shows("reading");
    shell.types("\x1a");
    shell.shows("Stopped");
    shell.types("fg\n");
    // The terminal echoes the line, and the program repeats it.
    shell.types("hello\n");
    shell.shows("hello\r\n");
    shell.shows("hello\r\n");
    // Ctrl-D ends the input of the program in the foreground.
    shell.types("\x04");
    shell.shows("$ ");
    shell.types("exit 3\n");
    let (status, output) = shell.ends();
    let output = String::from_utf8_lossy(&output).into_owned();
    assert_eq!(status, 3, "{output:?}");
    assert!(!output.contains("job control turned off") && !output.contains("cannot set terminal"), "{output:?}");
    assert!(output.ends_with("exit 3\r\n"), "{output:?}");
    // A signal that ends the program gives the status of a shell, with and without a terminal.
    let killed = Terminal::ssh(world, "alice", &["run", "shop", "--", "sh", "-c", "'kill -KILL $$'"]).unwrap();
    assert_eq!(killed.ends().0, 137);
    world.ssh("alice", &["run", "shop", "--", "sh", "-c", "'kill -KILL $$'"]).exits(137);
    // A program that cannot be started names the reason in the terminal.
    let missing = Terminal::ssh(world, "alice", &["run", "shop", "no-such-program"]).unwrap();
    let (status, output) = missing.ends();
    let output = String::from_utf8_lossy(&output).into_owned();
    assert!(status == 127 && output.contains("no-such-program") && output.ends_with("not found\r\n"), "{status} {output:?}");
    // Input from a file ends as input from a person does, also after an incomplete line.
    world.ssh_on_terminal("alice", &["run", "shop", "--", "wc", "-c"], "one\ntwo").exits(0).says("7\r\n");
    session_ended(world, before);
}

fn bytes_of_a_raw_terminal_pass_unchanged(world: &World) {
    shop(world);
    // As an editor does: the other screen, each key, and the old screen.
    let editor = "stty raw -echo; printf '\\033[?1049h\\033[2J\\033[1;1Hready'; head -c 262 | od -An -v -tx1 | tr -d ' \\n'; \
                  printf '\\033[?1049l'; head -c 3 > /dev/null; stty sane; printf '\\001\\233\\377\\n\\tend'";
    let line = shlex::try_quote(editor).unwrap().into_owned();
    let mut shown = Vec::new();
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.servers(&format!("prod: {{url: {}, id: shop/production}}\n", laptop.url("")));
    let mut larder = laptop.larder_command("");
    larder.args(["-r", "prod", "run", "--", "sh", "-c", editor]);
    for window in [Terminal::ssh(world, "alice", &["run", "shop", "--", "sh", "-c", &line]), Terminal::open(&larder, 100, 37)] {
        let Some(mut window) = window else { return };
        window.shows("\u{1b}[?1049h\u{1b}[2J\u{1b}[1;1Hready");
        let bytes: Vec<u8> = (0..=255_u8).chain(*b"\x03\x04\x11\x13\x1a\x1c").collect();
        window.types(&bytes);
        window.shows(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        window.types("end");
        let (status, output) = window.ends();
        assert_eq!(status, 0, "{}", String::from_utf8_lossy(&output));
        shown.push(output);
    }
    assert!(shown[0].ends_with(b"\x1b[?1049l\x01\x9b\xff\r\n\tend"), "{:?}", String::from_utf8_lossy(&shown[0]));
    // The client of larder shows the same bytes as ssh.
    assert_eq!(String::from_utf8_lossy(&shown[0]), String::from_utf8_lossy(&shown[1]));
}

fn slow_reader_and_hung_program_take_no_memory_of_the_server(world: &World) {
    const SIZE: usize = 10_000_000;
    shop(world);
    let server = world.with(|server| server.role()).unwrap();
    let script = format!("'head -c {SIZE} /dev/zero | tr \"\\0\" x; touch media/written; echo; echo en\"\"d'");
    let Some(mut window) = Terminal::ssh(world, "alice", &["run", "shop", "--", "sh", "-c", &script]) else { return };
    window.shows("xxxx");
    window.pause(true);
    let written = world.environment("shop").join("data/media/written");
    let before = memory(server);
    assert!(!within(Duration::from_secs(1), || written.exists()), "the output is not buffered anywhere");
    assert!(memory(server) < before + 20_000, "{before} KiB, then {} KiB", memory(server));
    window.pause(false);
    let (status, output) = window.ends();
    assert_eq!((status, output.iter().filter(|byte| **byte == b'x').count()), (0, SIZE));
    assert!(output.ends_with(b"end\r\n"));
    // A program that reads nothing: the input waits at the client, and the output still arrives.
    let script = "'stty raw -echo; echo hung; sleep 2; echo still here'";
    let mut window = Terminal::ssh(world, "alice", &["run", "shop", "--", "sh", "-c", script]).unwrap();
    window.shows("hung");
    let before = memory(server);
    let keyboard = window.keyboard();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // As much as the terminal takes, and at most 40 MiB.
        scope.spawn(|| type_bytes(&keyboard, &vec![b'y'; 40 << 20], &|| is_over.load(Ordering::Relaxed)));
        let _over = SetOnDrop(&is_over);
        window.shows("still here");
        assert!(memory(server) < before + 20_000, "{before} KiB, then {} KiB", memory(server));
    });
    window.kill();
}

fn lost_client_hangs_up_the_terminal_and_ends_the_session(world: &World) {
    shop(world);
    let before = sessions(world);
    let media = world.environment("shop").join("data/media");
    // The shell notes the hang-up. A process in the background ignores it, and is killed.
    let script =
        "'trap \"touch media/NAME\" HUP; (trap \"\" HUP; exec sleep 1000) & echo rea\"\"dy; while :; do sleep 0.05; done'";
    let start = |user: &str, name: &str| {
        let mut window = Terminal::ssh(world, user, &["run", "shop", "--", "sh", "-c", &script.replace("NAME", name)])?;
        window.shows("ready");
        Some(window)
    };
    let Some(window) = start("alice", "killed") else { return };
    window.kill();
    session_ended(world, before);
    assert!(media.join("killed").exists());
    // The right to operate is taken away.
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    world.larder(&["user", "grant", "bob", "shop", "operate"]).ok();
    let window = start("bob", "revoked").unwrap();
    world.larder(&["user", "grant", "bob", "shop", "view"]).ok();
    let (status, _) = window.ends();
    assert!(status != 0 && media.join("revoked").exists());
    session_ended(world, before);
    // The server is killed.
    let window = start("alice", "server").unwrap();
    world.kill9_server();
    window.ends();
    session_ended(world, before);
    // Nothing that was typed or shown is in a file of the server or in its log, and the audit log has the same record as for a pipe.
    let mut window = Terminal::ssh(world, "alice", &["run", "shop", "--", "sh", "-c", "'read secret; echo got'"]).unwrap();
    window.types("geheim-4711\n");
    window.shows("got");
    assert_eq!(window.ends().0, 0);
    world.ssh("alice", &["run", "shop", "--", "true"]).ok();
    let found = Output::of(world.client("grep").args(["-rlF", "geheim-4711"]).arg(world.directory()));
    assert_eq!(found.stdout, "", "{found}");
    let records = world.larder(&["--json", "audit", "--lines", "10000"]).json()["records"].clone();
    let runs: Vec<_> = records.as_array().unwrap().iter().filter(|row| row["what"] == "run" && row["who"] == "alice").collect();
    let [.., terminal, pipe] = &runs[..] else { panic!("{records:#}") };
    for field in ["what", "on", "outcome", "detail", "key", "from"] {
        assert_eq!(terminal[field], pipe[field], "{field}");
    }
    // A file does not pass a terminal, which would change its bytes.
    world.ssh_on_terminal("alice", &["db", "dump", "shop"], "").says("error: ");
}

fn psql_has_a_terminal(world: &World) {
    let Some(postgres) = Postgres::start(world) else { return };
    world.project("shop");
    let repo = Repo::new(world, "shop");
    let url = postgres.url(Postgres::PASSWORD);
    repo.write("Procfile", "web: exec larder static-server --root .\n")
        .write("larder.yml", format!("env: {{DATABASE_URL: \"{url}\"}}\n"));
    repo.page("version one");
    repo.push().accepted();
    let Some(mut psql) = Terminal::ssh(world, "alice", &["db", "shell", "shop"]) else { return };
    psql.shows("shop=>");
    psql.types("\\pset pager off\nselect 40 + 2 as sum;\n");
    psql.shows("42");
    // Ctrl-C cancels the statement, and the client stays.
    psql.types("select 'wai' || 'ting';\n");
    psql.shows("waiting");
    psql.types("select pg_sleep(1000);\n");
    psql.shows("shop=> select pg_sleep(1000);");
    until("the statement runs", || {
        postgres.sql("shop", "select count(*) from pg_stat_activity where query like 'select pg_sleep%'").trim() == "1"
    });
    psql.types("\x03");
    psql.shows("canceling statement due to user request");
    psql.types("select 6 * 7 as product;\n");
    psql.shows("42");
    psql.types("\\q\n");
    assert_eq!(psql.ends().0, 0);
    let Some(mut ended) = Terminal::ssh(world, "alice", &["db", "shell", "shop"]) else { return };
    ended.shows("shop=>");
    ended.types("\x04");
    assert_eq!(ended.ends().0, 0);
}

fn laptop_gives_a_terminal_to_programs_and_none_to_pipes(world: &World) {
    shop(world);
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.servers(&format!("prod: {{url: {}, id: shop/production}}\n", laptop.url("")));
    let larder = |words: &[&str]| {
        let mut command = laptop.larder_command("");
        command.args(words);
        command
    };
    let Some(mut window) = Terminal::open(&larder(&["run", "--", "sh"]), 90, 30) else { return };
    window.shows("$ ");
    window.types("stty size; sleep 1000\n");
    window.shows("30 90");
    window.types("\x03");
    window.types("exit 5\n");
    let (status, output) = window.ends();
    let output = String::from_utf8_lossy(&output).into_owned();
    // ssh adds no line about the end of the connection.
    assert!(status == 5 && output.contains("exit 5") && !output.contains("losed"), "{status} {output:?}");
    // Pipes and files get no terminal, and `--no-tty` gives none either.
    let is_terminal = "test -t 0 || test -t 1 || test -t 2; echo $?";
    let piped = laptop.larder("", &["run", "--", "sh", "-c", is_terminal]);
    assert_eq!((piped.status, piped.stdout.as_str()), (0, "1\n"), "{piped}");
    world.ssh("alice", &["run", "shop", "--", "sh", "-c", "'test -t 0 || test -t 1; echo $?'"]).says("1\n");
    let (status, output) = Terminal::open(&larder(&["run", "--no-tty", "--", "sh", "-c", is_terminal]), 90, 30).unwrap().ends();
    assert_eq!((status, String::from_utf8_lossy(&output).trim()), (0, "1"));
    // The kill of the client ends the program on the server.
    let before = sessions(world);
    let mut window = Terminal::open(&larder(&["run", "--", "sh", "-c", "echo rea\"\"dy; exec sleep 1000"]), 90, 30).unwrap();
    window.shows("ready");
    window.kill();
    session_ended(world, before);
    // A refusal reads as without a terminal.
    let (status, output) = Terminal::open(&larder(&["run", "nowhere", "--", "true"]), 90, 30).unwrap().ends();
    let output = String::from_utf8_lossy(&output).into_owned();
    assert!(status == 4 && output.contains("there is no project nowhere\r\n"), "{status} {output:?}");
}

fn text_has_colours_on_terminals_only(world: &World) {
    const HEADER: &str = "\u{1b}[1m";
    const ERROR: &str = "\u{1b}[1;31merror\u{1b}[0m: ";
    shop(world);
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.servers(&format!("prod: {{url: {}, id: shop/production}}\n", laptop.url("")));
    let ssh = |options: &[&str], words: &[&str]| {
        let mut command = world.client("ssh");
        command.args(world.ssh_options("alice")).args(options).arg("larder@127.0.0.1").args(words);
        command
    };
    let larder = |words: &[&str], variable: &str| {
        let mut command = laptop.larder_command("");
        command.args(words).env(variable, "1");
        command
    };
    let operator = |words: &[&str], variable: &str| {
        let mut command = world.larder_command();
        command.args(words).env(variable, "1");
        command
    };
    let list: &[&str] = &["releases", "shop"];
    let json: &[&str] = &["releases", "shop", "--json"];
    // On a terminal: over ssh, from a laptop, and on the server.
    for (command, is_coloured) in [
        (ssh(&["-t"], list), true),
        (ssh(&["-t", "-o", "SetEnv=NO_COLOR=1"], list), false),
        (ssh(&["-t"], json), false),
        (larder(list, "UNUSED"), true),
        (larder(list, "NO_COLOR"), false),
        (larder(json, "UNUSED"), false),
        (operator(list, "UNUSED"), true),
        (operator(list, "NO_COLOR"), false),
        (operator(json, "UNUSED"), false),
    ] {
        let Some(window) = Terminal::open(&command, 100, 37) else { return };
        let (status, output) = window.ends();
        let output = String::from_utf8_lossy(&output).into_owned();
        assert!(status == 0 && output.contains("alice"), "{command:?}: {output:?}");
        assert_eq!(output.contains(HEADER), is_coloured, "{command:?}: {output:?}");
        assert_eq!(output.contains('\u{1b}'), is_coloured, "{command:?}: {output:?}");
    }
    let missing: &[&str] = &["releases", "nowhere"];
    for command in [ssh(&["-t"], missing), larder(missing, "UNUSED"), operator(missing, "UNUSED")] {
        let (status, output) = Terminal::open(&command, 100, 37).unwrap().ends();
        let output = String::from_utf8_lossy(&output).into_owned();
        assert!(status == 4 && output.contains(ERROR), "{command:?}: {output:?}");
    }
    // In pipes: only with the client's wish.
    for mut command in
        [ssh(&[], list), larder(list, "UNUSED"), operator(list, "UNUSED"), ssh(&[], missing), operator(missing, "UNUSED")]
    {
        Output::of(&mut command).keeps_quiet_about("\u{1b}");
    }
    for mut command in
        [ssh(&["-o", "SetEnv=CLICOLOR_FORCE=1"], list), larder(list, "CLICOLOR_FORCE"), operator(list, "CLICOLOR_FORCE")]
    {
        Output::of(&mut command).exits(0).says(HEADER);
    }
}

fn operator_on_the_server_has_a_terminal(world: &World) {
    shop(world);
    let before = sessions(world);
    let operator = |words: &[&str]| {
        let mut command = world.larder_command();
        command.args(words);
        command
    };
    let Some(mut window) = Terminal::open(&operator(&["run", "shop", "sh"]), 90, 30) else { return };
    window.shows("$ ");
    window.types("stty size; echo $TERM; echo con\"\"nected > /dev/tty; sleep 1000\n");
    window.shows("30 90\r\nxterm-256color\r\nconnected");
    window.types("\x03");
    window.types("sh -c 'trap \"echo now:\\$(stty size); exit\" WINCH; echo wai\"\"ting; while :; do sleep 0.05; done'\n");
    window.shows("waiting");
    window.resize(132, 50);
    window.shows("now:50 132");
    window.types("exit 4\n");
    let (status, output) = window.ends();
    let output = String::from_utf8_lossy(&output).into_owned();
    assert!(status == 4 && !output.contains("job control turned off"), "{status} {output:?}");
    // The terminal of the operator has its former modes, and the descriptors of the operator are not those of the program.
    let script = "larder=$1; root=$2; before=$(stty -g); $larder --root $root run shop -- true; test \"$before\" = \"$(stty -g)\" && echo re\"\"stored";
    let binary = world.with(|server| server.binary());
    let mut shell = world.client("sh");
    shell.args(["-c", script, "sh"]).arg(binary).arg(world.root());
    let (_, output) = Terminal::open(&shell, 90, 30).unwrap().ends();
    assert!(String::from_utf8_lossy(&output).contains("restored"), "{}", String::from_utf8_lossy(&output));
    // The kill of the program that the operator has started hangs up the terminal.
    let script = "trap 'touch media/hup' HUP; echo rea\"\"dy; while :; do sleep 0.05; done";
    let mut window = Terminal::open(&operator(&["run", "shop", "--", "sh", "-c", script]), 90, 30).unwrap();
    window.shows("ready");
    window.kill();
    session_ended(world, before);
    assert!(world.environment("shop").join("data/media/hup").exists());
}
