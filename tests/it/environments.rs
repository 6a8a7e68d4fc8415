//! The environment variables of processes. The variables of each role are built from nothing, so that the variables of the operator's shell
//! reach only the keeper.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use rustix::process::Signal;

use crate::harness::{Repo, SetOnDrop, World, in_each_mode, processes, until};

in_each_mode!(variables_of_the_operators_shell_reach_only_the_keeper);

/// Variables that change what a program loads, executes or allocates, and a variable with a secret. The values are harmless.
const OF_THE_SHELL: [(&str, &str); 8] = [
    ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=11"),
    ("LD_LIBRARY_PATH", "/from-the-shell"),
    ("LD_BIND_NOW", "from-the-shell"),
    ("MALLOC_ARENA_MAX", "11"),
    ("BASH_ENV", "/from-the-shell"),
    ("GIT_CONFIG_GLOBAL", "/from-the-shell"),
    ("PYTHONPATH", "/from-the-shell"),
    ("SHELL_SECRET", "from-the-shell"),
];

/// The variable that only the server inherits from the keeper.
const OF_THE_SERVER: (&str, &str) = ("AWS_SECRET_ACCESS_KEY", "for-the-server");

type Variables = BTreeMap<String, String>;

fn variables(pid: i32) -> Option<Variables> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Some(text.split('\0').filter_map(|pair| pair.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect())
}

/// Returns the names of the operator's variables that a process has.
fn inherited(variables: &Variables) -> Vec<&str> {
    let has = |(name, value): &(&'static str, &str)| variables.get(*name).is_some_and(|found| found == value);
    OF_THE_SHELL.iter().chain(&[OF_THE_SERVER]).filter(|pair| has(pair)).map(|(name, _)| *name).collect()
}

/// Returns true if the process with these arguments is the keeper, or a fork of the keeper that executes no other program, such as a guard.
fn is_keeper(arguments: &[String]) -> bool {
    arguments.get(1).is_some_and(|word| word == "serve")
}

/// Examines all processes repeatedly until `stop` is true. Returns the roles that were seen, and the processes with a variable of the
/// operator.
fn watch(world: &World, stop: &AtomicBool) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut roles, mut wrong) = (BTreeSet::new(), BTreeSet::new());
    while !stop.load(Ordering::SeqCst) {
        for process in processes::of(world.directory()) {
            // The arguments were read before the variables. If they are the arguments of a program, the variables were read after the
            // program was executed, and are not those of the keeper.
            let Some(variables) = variables(process.pid).filter(|_| !is_keeper(&process.arguments)) else { continue };
            let of_server = process.arguments.get(1).is_some_and(|word| word == "server" || word == "check-server");
            roles.extend(process.arguments.get(if of_server { 1 } else { 2 }).cloned());
            let mut found = inherited(&variables);
            found.retain(|name| !of_server || *name != OF_THE_SERVER.0);
            if !found.is_empty() {
                wrong.insert(format!("{:?} has {found:?}", process.arguments));
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
    (roles, wrong)
}

fn variables_of_the_operators_shell_reach_only_the_keeper(world: &World) {
    let env: Vec<_> = OF_THE_SHELL.into_iter().chain([OF_THE_SERVER]).collect();
    world.restart(&env);
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.program(".larder/post_build", "#!/bin/sh\nenv | sed 's/^/built with /'\nsleep 0.5\n").commit("print the variables");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| watch(world, &stop));
        let stopping = SetOnDrop(&stop);
        let pushed = repo.push();
        let task = world.larder(&["run", "shop", "--", "env"]);
        let ready = world.with(|server| server.ready());
        world.with(|server| processes::signal(server.keeper(), Signal::HUP));
        until("the next server is ready", || world.with(|server| server.ready()) > ready);
        drop(stopping);
        let (roles, wrong) = watching.join().unwrap();
        assert!(wrong.is_empty(), "{wrong:#?}");
        for role in ["server", "build"] {
            assert!(roles.contains(role), "{role} was not seen: {roles:?}");
        }
        pushed.accepted().says("built with PATH=");
        task.says("PATH=").ok();
    });
    world.serves("shop", "version one");

    // The keeper is the operator's own process. A fork of the keeper has a copy of the keeper's memory, and the user of the fork must not be
    // able to read this copy.
    let keeper = world.with(|server| server.keeper());
    assert_eq!(inherited(&variables(keeper).unwrap()).len(), env.len(), "the keeper was started with these variables");
    let mut guards = 0;
    for process in processes::of(world.directory()) {
        if is_keeper(&process.arguments) && process.pid != keeper {
            guards += 1;
            let owner = fs::metadata(format!("/proc/{}/environ", process.pid)).unwrap().uid();
            assert_eq!(owner, 0, "the memory of process {} belongs to its user", process.pid);
        }
    }
    assert!(guards > 0, "no guard was found");

    let server = variables(world.with(|server| server.role()).unwrap()).unwrap();
    assert_eq!(inherited(&server), [OF_THE_SERVER.0]);
    let allowed =
        ["LARDER_KEEPER", "LARDER_ROOT", "LARDER_LISTENERS", "LARDER_LOG", "RUST_BACKTRACE", "FAILPOINTS", OF_THE_SERVER.0];
    let others: Vec<_> = server.keys().filter(|name| !allowed.contains(&name.as_str())).collect();
    assert!(others.is_empty(), "the server has more variables than it needs: {others:?}");
}
