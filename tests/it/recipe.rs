//! Configuration files of a project (larder.yml, Procfile, app.json), through real pushes.

use crate::harness::{Repo, World, in_one_mode, until};

in_one_mode!(
    worker_only_application_with_web_scaled_to_zero_goes_live,
    scaled_process_without_command_is_refused,
    app_json_keys_without_effect_are_named,
    health_status_alone_keeps_the_path_of_app_json,
);

fn worker_only_application_with_web_scaled_to_zero_goes_live(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "worker: echo counting; exec sleep 1000\n");
    repo.write("app.json", r#"{"formation": {"web": {"quantity": 0}, "worker": {"quantity": 1}}, "env": {"LIMIT": 5}}"#);
    repo.commit("worker only");
    repo.push().accepted().says("v1 is live");
    until("the worker runs", || world.larder(&["logs", "shop"]).ok().contains("counting"));
    assert_eq!(world.outcomes("shop"), [Some("live".into())]);
    world.is_consistent("shop");
}

fn scaled_process_without_command_is_refused(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "worker: sleep 1000\n");
    repo.write("app.json", r#"{"formation": {"web": {"quantity": 1}}}"#);
    repo.commit("web without a command");
    repo.push().rejected_with("the process web has no command");
}

fn app_json_keys_without_effect_are_named(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.write("app.json", r#"{"name": "shop", "scripts": {"dokku": {"predeploy": "exit 1"}}, "cron": [{"command": "x"}]}"#);
    repo.commit("for another server");
    let push = repo.push();
    push.accepted().says("app.json: scripts.dokku.predeploy has no effect").says("app.json: cron has no effect");
    world.serves("shop", "version one");
}

fn health_status_alone_keeps_the_path_of_app_json(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.write("app.json", r#"{"healthchecks": {"web": [{"path": "/missing"}]}}"#);
    // The page / answers 200, /missing answers 404.
    repo.write("larder.yml", "health: {status: 404, timeout: 20s}\n").commit("expect 404 from the path of app.json");
    repo.push().accepted();
    world.serves("shop", "version one");
}
