//! The keeper with real processes: the views of workers, supervision, and the end of all processes.

use std::{
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use larder::{
    host::launch::{Cgroups, LaunchError, ProcessEvent, Stdio},
    model::{Area, Launch, LimitClass, ProjectId, Role, Slot, StopSignal, Supervision},
};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, kill_process, test_kill_process},
};

use crate::keeper_world::*;

#[tokio::test]
async fn worker_sees_only_its_own_directories() {
    for ground in grounds() {
        let world = World::new(ground).await;
        let (exit, text) =
            world.run("echo $MARK $HOME; cat sub/file; pwd; echo hello >> sub/file; cat sub/file; touch $LARDER_DATA/x").await;
        assert!(exit.success(), "{exit} {text}");
        if !namespaces(&world).await {
            continue;
        }
        assert_eq!(text, "set /app\nas released\n/app\nas released\nhello\n");
        // The release is unchanged; the written file is in the slot.
        let released = fs::read_to_string(world.env().join("deploy").join(world.release.to_string()).join("sub/file")).unwrap();
        assert_eq!(released, "as released\n");
        assert_eq!(fs::read_to_string(world.env().join("slots/blue/upper/sub/file")).unwrap(), "as released\nhello\n");
        assert!(world.env().join("data/x").exists());

        let line = format!(
            "ls -d {0} {0}/state {0}/projects /root /home /work 2>/dev/null; ls /; ls /proc | grep -c '^[0-9]'",
            world.root.display()
        );
        let (_, text) = world.run(&line).await;
        assert!(!text.contains("root\n") && !text.contains("state") && !text.contains("home"), "{text}");
        let (_, text) = world.run("ls /proc/self/fd | tr '\\n' ' '; grep -E '^(Cap|NoNew|Groups|Uid)' /proc/self/status").await;
        assert!(text.starts_with("0 1 2 3 "), "{text}");
        for line in text.lines().filter(|line| line.starts_with("Cap")) {
            assert!(line.ends_with("\t0000000000000000"), "{line}");
        }
        assert!(text.contains("NoNewPrivs:\t1"), "{text}");
        if ground.system {
            let uid = world.number(2);
            assert!(text.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}")) && text.contains("Groups:\t \n"), "{text}");
        }
        let (_, text) =
            world.run("id -un; mount -t tmpfs x /app 2>/dev/null && echo MOUNTED; echo x > /etc/x; echo x > /usr/x; umount /proc 2>/dev/null && echo UNMOUNTED; head -c1 /etc/shadow; :").await;
        assert!(text.starts_with("app\n"), "{text}");
        assert!(text.lines().count() == 4 && !text.contains("MOUNTED"), "{text}");
    }
}

#[tokio::test]
async fn descendants_of_a_worker_end_with_the_worker() {
    for ground in grounds() {
        let world = World::new(ground).await;
        // The worker leaves two processes behind. One of them ignores SIGTERM, has its own session and holds stdout.
        let line = "(setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' &) ; sleep 1000 & exit 7";
        let (exit, text) = world.run(line).await;
        assert_eq!((exit.code, text.as_str()), (Some(7), ""));

        let (mut child, output) = world.task("trap '' TERM; echo up; while :; do sleep 1; done").await;
        assert_eq!(read_line(&output).await, "up");
        child.terminate().await.unwrap();
        child.kill().await.unwrap();
        let exit = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
        assert_eq!(exit.signal, Some(9), "{exit:?}");
        assert_eq!(read_all(output).await, "");

        let (mut child, output) = world.task("trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done").await;
        assert_eq!(read_line(&output).await, "up");
        child.terminate().await.unwrap();
        assert_eq!(tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap().code, Some(5));

        // Dropping the handle kills the process.
        let (child, output) = world.task("echo up; sleep 1000").await;
        assert_eq!(read_line(&output).await, "up");
        drop(child);
        assert_eq!(read_all(output).await, "");
    }
}

#[tokio::test]
async fn supervised_process_outlives_the_server_and_is_restarted() {
    for ground in grounds() {
        let mut world = World::new(ground).await;
        let keeping = keep(b"web.1", StopSignal::Term);
        let line = "echo up; while [ ! -e $LARDER_DATA/end ]; do sleep 0.05; done; rm $LARDER_DATA/end; exit 3";
        let launch = world.launch(Role::Run, keeping);
        let mut child = world.launcher.launch(launch.clone(), &job(line), Stdio::default()).await.unwrap();
        let id = child.id();
        assert_eq!(read_line(&child.output().unwrap()).await, "up");
        let (_once, once) = world.task("echo up; sleep 1000").await;
        assert_eq!(read_line(&once).await, "up");

        world.replace_server();
        assert_eq!(read_all(once).await, "", "a process of Supervision::Once ends with the server");
        let kept = world.launcher.supervised().await.unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!((kept[0].id, kept[0].label.as_slice(), &kept[0].launch), (id, b"web.1".as_slice(), &launch));

        let mut events = world.launcher.events();
        // The process removes `end` as soon as it exists, so that its owner is set before it gets this name.
        let new = world.env().join("data/end.new");
        fs::write(&new, b"").unwrap();
        world.give(&new, 2);
        fs::rename(new, world.env().join("data/end")).unwrap();
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        let ProcessEvent::Exited { exit, last: false, .. } = event else { panic!("{event:?}") };
        assert_eq!(exit.code, Some(3));
        assert_eq!(read_line(&kept[0].output).await, "up");
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        assert_eq!(event, ProcessEvent::Restarted { id, restarts: 1 });

        let refused = world.launcher.reset_area(ENV, Area::Slot, None, Some(Slot::Blue)).await;
        assert!(matches!(refused, Err(LaunchError::Refused { .. })), "{refused:?}");
        world.launcher.stop(id, Duration::from_secs(5)).await.unwrap();
        tokio::time::timeout(PATIENCE, world.launcher.ended(id)).await.unwrap().unwrap();
        assert_eq!(world.launcher.supervised().await.unwrap().len(), 0);
    }
}

#[tokio::test]
async fn areas_are_reset_and_environments_removed() {
    for ground in grounds() {
        let world = World::new(ground).await;
        let (exit, text) = world.run("mkdir -p a/b && touch a/b/c && chmod 000 a").await;
        assert!(exit.success(), "{text}");
        world.launcher.reset_area(ENV, Area::Slot, None, Some(Slot::Blue)).await.unwrap();
        assert_eq!(fs::read_dir(world.env().join("slots/blue/upper")).unwrap().count(), 0);
        // An open task does not prevent the reset of a slot, and the next process gets the new slot.
        let (mut open, output) = world.task("touch left; echo up; sleep 1000").await;
        assert_eq!(read_line(&output).await, "up");
        world.launcher.reset_area(ENV, Area::Slot, None, Some(Slot::Blue)).await.unwrap();
        assert!(!tokio::time::timeout(PATIENCE, open.wait()).await.unwrap().unwrap().success());
        let (exit, text) = world.run("ls left").await;
        assert!(!exit.success(), "{text}");
        let (exit, text) = world.run("touch $LARDER_DATA/x; cat sub/file").await;
        assert!(exit.success() && text == "as released\n" || !namespaces(&world).await, "{text}");
        world.launcher.unregister(PROJECT, None).await.unwrap();
        assert!(!world.root.join("projects/shop").exists() && world.root.join("projects/other/live").exists());
        // The removal is repeated, as by a server that crashed before it recorded the removal.
        world.launcher.unregister(PROJECT, None).await.unwrap();
        world.launcher.unregister(PROJECT, Some(ENV)).await.unwrap();
        world.launcher.unregister(ProjectId(2), Some(ENV)).await.unwrap();
        assert!(world.root.join("projects/other/live").exists());
        world.trash_is_emptied().await;
        let launch = world.launch(Role::Task, Supervision::Once);
        assert!(world.launcher.launch(launch, &job("true"), Stdio::default()).await.is_err());
    }
}

#[tokio::test]
async fn all_processes_end_with_the_keeper() {
    for ground in grounds() {
        let mut world = World::new(ground).await;
        let keeping = keep(b"", StopSignal::Term);
        let line = "(setsid sh -c 'echo up; while :; do sleep 1; done' &); sleep 1000";
        let mut child = world.launcher.launch(world.launch(Role::Run, keeping), &job(line), Stdio::default()).await.unwrap();
        let output = child.output().unwrap();
        assert_eq!(read_line(&output).await, "up");
        let aside = world.root.join("trash/3.77");
        fs::create_dir(&aside).unwrap();
        fs::set_permissions(&aside, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(aside.join("left"), b"").unwrap();
        world.give(&aside, 2);
        world.give(&aside.join("left"), 2);
        world.keeper.kill().unwrap();
        world.keeper.wait().unwrap();
        assert_eq!(read_all(output).await, "");
        assert!(matches!(child.wait().await, Err(LaunchError::Gone)));
        let mut byte = [0];
        assert_eq!(world.server.read(&mut byte).unwrap_or(0), 0);
        assert!(world.launcher.capabilities().await.is_err());
        let _ = test_kill_process(Pid::from_raw(world.server_id).unwrap());

        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(world.root.to_str().unwrap()), "{mounts}");
        let old = groups(&world.root);
        let name = format!("larder-test-{}", world.directory.path().display());
        world.keeper = keeper_command(ground, &world.root, &world.elsewhere.path().join("home/tool"), &name).spawn().unwrap();
        world.next_server();
        let (exit, text) = world.run("cat sub/file").await;
        assert!(exit.success() && text == "as released\n", "{text}");
        assert!(!groups(&world.root).iter().any(|group| old.contains(group)), "{old:?}");
        world.trash_is_emptied().await;
    }
}

#[tokio::test]
async fn second_keeper_of_a_root_is_refused() {
    for ground in grounds() {
        let world = World::new(ground).await;
        let second = keeper_command(ground, &world.root, &world.root, "none").output().unwrap();
        let text = String::from_utf8_lossy(&second.stderr);
        assert!(second.status.code() == Some(3) && text.contains("another larder is running there"), "{text}");
    }
}

/// Returns the control groups of the keeper of `root`.
fn groups(root: &Path) -> Vec<PathBuf> {
    let name = format!("larder-{}", &blake3::hash(root.as_os_str().as_encoded_bytes()).to_hex()[..12]);
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().map(|entry| entry.unwrap().path().join(&name));
    let entries = hierarchies.flat_map(|path| fs::read_dir(path).into_iter().flatten()).map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir()).collect()
}

#[tokio::test]
async fn stop_signal_reaches_all_processes_of_an_application() {
    for ground in grounds() {
        let world = World::new(ground).await;
        for (stop, name) in [(StopSignal::Term, "TERM"), (StopSignal::Int, "INT"), (StopSignal::Quit, "QUIT")] {
            // The signal ends the outer shell at once, and its child exits a little later. The child is a perl program, because a shell that
            // waits for a program ignores SIGINT if the program exits at the same moment.
            let takes_time =
                format!("$SIG{{{name}}} = sub {{ select undef, undef, undef, 0.2; print qq(finished\\n); exit 0 }};");
            let line = format!("perl -e '$| = 1; {takes_time} print qq(up\\n); sleep 1 while 1' && echo never");
            let launch = world.launch(Role::Run, keep(b"", stop));
            let mut child = world.launcher.launch(launch, &job(&line), Stdio::default()).await.unwrap();
            let output = child.output().unwrap();
            assert_eq!(read_line(&output).await, "up");
            world.launcher.stop(child.id(), PATIENCE).await.unwrap();
            tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
            let text = read_all(output).await;
            assert!(text.contains("finished\n"), "{ground:?} {name}: {text}");
        }
        // A process that ignores the signal is killed.
        let line = "bash -c \"trap '' TERM; echo up; while :; do sleep 0.05; done\" && echo never";
        let launch = world.launch(Role::Run, keep(b"", StopSignal::Term));
        let mut child = world.launcher.launch(launch, &job(line), Stdio::default()).await.unwrap();
        let output = child.output().unwrap();
        assert_eq!(read_line(&output).await, "up");
        world.launcher.stop(child.id(), Duration::from_millis(100)).await.unwrap();
        tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
        assert!(!read_all(output).await.contains("never"));
    }
}

#[tokio::test]
async fn worker_environment_has_fixed_variables_and_host_paths() {
    for ground in grounds() {
        let world = World::new(ground).await;
        let (exit, text) = world
            .run("echo $LANG $TMPDIR; echo $PATH; larder-greets 2>/dev/null || echo closed; test \"$HOME\" = \"$PWD\" && env")
            .await;
        assert!(exit.success(), "{text}");
        let mut lines = text.lines();
        let private = world.launcher.capabilities().await.unwrap().namespaces.is_ok();
        let temporary = if private { "/tmp".into() } else { world.root.with_file_name("tmp") };
        assert_eq!(lines.next(), Some(format!("C.UTF-8 {}", temporary.display()).as_str()));
        let path = lines.next().unwrap();
        let tool = world.elsewhere.path().join("home/tool/bin");
        assert!(path.ends_with(&format!(":{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", tool.display())));
        assert!(Path::new(path.split(':').next().unwrap()).is_absolute());
        // Other users cannot enter the home directory. A worker reaches a directory below it only if that directory is mounted separately.
        let closed = ground.system && world.launcher.capabilities().await.unwrap().namespaces.is_err();
        assert_eq!(lines.next(), Some(if closed { "closed" } else { "hello" }));
        for line in lines {
            let name = line.split('=').next().unwrap();
            let known = ["LANG", "TMPDIR", "PATH", "HOME", "PWD", "SHLVL", "MARK", "_", "OLDPWD"].contains(&name);
            assert!(known || name.starts_with("LARDER_") && !name.contains("TEST"), "{line}");
        }
        if namespaces(&world).await {
            let (_, text) = world.run(&format!("ls {}", world.elsewhere.path().join("home").display())).await;
            assert_eq!(text, "tool\n", "only the configured directory is visible");
        }
    }
}

#[tokio::test]
async fn build_is_limited_in_memory_processes_and_priority() {
    for ground in grounds() {
        let world = World::new(ground).await;
        let cgroup = world.launcher.capabilities().await.unwrap().cgroup;
        let run = async |line: &str| {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let stdio = Stdio { stdout: Some(write), ..Stdio::default() };
            let launch = Launch { limits: LimitClass::Build { memory: None }, ..world.launch(Role::Task, Supervision::Once) };
            let mut child = world.launcher.launch(launch, &job(line), stdio).await.unwrap();
            let text = read_all(read).await;
            (tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap(), text)
        };
        let (exit, text) = run("nice; ulimit -f; ulimit -c; ionice 2>/dev/null || echo idle").await;
        assert!(exit.success());
        assert_eq!(text, format!("10\n{}\n0\nidle\n", 4096 * 1024), "{ground:?}");

        let (exit, text) = run("x=$(head -c 1000000000 /dev/zero | tr '\\0' x); echo ${#x}").await;
        assert!(!exit.success() && text.is_empty(), "{ground:?} {cgroup:?} {exit} {text}");
        assert_eq!(exit.out_of_memory, cgroup != Cgroups::None, "{ground:?} {cgroup:?} {exit}");

        let bomb = "perl -e 'for (1..5000) { $p = fork; defined $p or print(\"$_\") and exit; $p or sleep 1000 } print \"none\"'";
        let (exit, text) = run(bomb).await;
        let most = if cgroup == Cgroups::None && !ground.system { 8 * BUILD_PROCESSES } else { BUILD_PROCESSES };
        assert!(exit.success() && text.parse::<u64>().is_ok_and(|refused| refused <= most), "{ground:?} {cgroup:?} {text}");
    }
}

#[tokio::test]
async fn reload_keeps_applications_running() {
    for ground in grounds() {
        let mut world = World::new(ground).await;
        let line = "echo $$; while :; do sleep 0.05; done";
        let launch = world.launch(Role::Run, keep(b"web.1", StopSignal::Term));
        let mut child = world.launcher.launch(launch, &job(line), Stdio::default()).await.unwrap();
        let id = child.id();
        read_line(&child.output().unwrap()).await;
        // The first new server sends no request before the second reload, so the keeper waits for the exit of this server and starts the
        // next server.
        for _ in 0..2 {
            let old = world.server_id;
            kill_process(Pid::from_child(&world.keeper), Signal::HUP).unwrap();
            world.next_server();
            assert_ne!(old, world.server_id);
        }
        world.replace_server();
        let kept = world.launcher.supervised().await.unwrap();
        assert_eq!(kept.iter().map(|kept| kept.id).collect::<Vec<_>>(), [id]);
        world.launcher.stop(id, PATIENCE).await.unwrap();
        tokio::time::timeout(PATIENCE, world.launcher.ended(id)).await.unwrap().unwrap();
    }
}

/// Prints the duration of launches; checks nothing.
#[tokio::test]
#[ignore = "a measurement"]
async fn launch_cost_is_measured() {
    for ground in grounds() {
        let world = World::new(ground).await;
        for (what, count) in [("alone", 50), ("beside a kept one", 50)] {
            let mut times = Vec::new();
            for _ in 0..count {
                let begin = std::time::Instant::now();
                let (exit, _) = world.run(":").await;
                assert!(exit.success());
                times.push(begin.elapsed());
            }
            times.sort();
            eprintln!("{ground:?} {what}: median {:?}, worst {:?}", times[count / 2], times[count - 1]);
            let keeping = keep(b"", StopSignal::Term);
            let launch = world.launch(Role::Run, keeping);
            world.launcher.launch(launch, &job("sleep 1000"), Stdio::default()).await.unwrap();
        }
    }
}
