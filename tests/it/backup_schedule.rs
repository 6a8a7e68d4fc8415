//! Tests of scheduled restore points: runs on a schedule, missed and interrupted runs, verification of older restore points, retention, and
//! deployments that arrive during a run.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::harness::{Repo, World, state::names, until};

const PROCFILE: &str = "web: exec larder static-server --root .\n";

/// A schedule with a run in every second.
const ALWAYS: &str = "backup: {schedule: '* * * * * *', spread: 0s, keep: {last: 2, daily: 0, weekly: 0, monthly: 0}}\n";

/// A schedule with one run per year, so that no run is due during a test unless the test changes the record of the schedule.
pub const YEARLY: &str = "backup: {schedule: '0 12 1 7 *', spread: 0s, drill: 1h}
";

fn shop(world: &World) -> Repo<'_> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", PROCFILE).write("larder.yml", "data: [media]\n");
    repo.page("version one");
    repo.push().accepted();
    until("the schedule has begun", || record(world).exists());
    world.larder(&["run", "shop", "--", "sh", "-ec", "echo upload > media/upload"]).ok();
    repo
}

fn list(world: &World) -> Value {
    world.larder(&["--json", "backup", "list", "shop"]).json()
}

fn points(world: &World) -> Vec<Value> {
    list(world)["points"].as_array().unwrap().clone()
}

fn ids(world: &World) -> Vec<String> {
    points(world).iter().map(|point| point["id"].as_str().unwrap().to_owned()).collect()
}

/// Returns the part of `larder status` that describes the scheduled restore points.
pub fn summary(world: &World) -> Value {
    world.larder(&["--json", "status"]).json()["environments"][0]["backup"].clone()
}

pub fn record(world: &World) -> PathBuf {
    world.environment("shop").join("backups.json")
}

/// Makes the next server start a missed run: sets the last handled time in the record of the schedule to `time`. No server may run
/// meanwhile.
pub fn forget_runs_since(world: &World, time: &str) {
    let mut state: Value = serde_json::from_slice(&fs::read(record(world)).unwrap()).unwrap();
    state["covered"] = Value::from(time);
    fs::write(record(world), serde_json::to_vec(&state).unwrap()).unwrap();
}

fn marks(world: &World) -> PathBuf {
    let marks = world.directory().join("marks");
    fs::create_dir(&marks).unwrap();
    fs::set_permissions(&marks, fs::Permissions::from_mode(0o777)).unwrap();
    marks
}

#[test]
fn scheduled_restore_points_are_verified_shown_and_pruned() {
    let Some(world) = World::configured(ALWAYS) else { return };
    shop(&world);
    until("a scheduled restore point is ok", || summary(&world)["newest"].is_object());
    let first = summary(&world)["newest"]["id"].as_str().unwrap().to_owned();
    world.larder(&["status"]).says("s old, next ");
    until("further runs follow", || ids(&world).len() >= 2 && !ids(&world).contains(&first));
    // The rules keep two restore points. A run takes a new restore point before it removes older restore points.
    let points = points(&world);
    assert!(points.len() <= 4, "{points:#?}");
    assert!(points.iter().any(|point| point["state"] == "ok" && point["reason"] == "scheduled"), "{points:#?}");
    let newest = points.iter().find(|point| point["state"] == "ok").unwrap();
    assert!(newest["kept_by"].as_array().unwrap().contains(&Value::from("live release")), "{newest}");
    world.larder(&["backup", "list", "shop"]).says("KEPT BY").says("next run: ").says("newest verified: ");

    // Without a schedule, the rules are applied on request.
    world.stop();
    let file = world.root().join("larder.yml");
    let off = fs::read_to_string(&file).unwrap().replace("'* * * * * *'", "off").replace("last: 2", "last: 1");
    fs::write(&file, off).unwrap();
    world.start(&[]);
    for _ in 0..2 {
        world.larder(&["backup", "take", "shop"]).ok();
        world.larder(&["backup", "verify", "shop"]).ok();
    }
    let before = ids(&world);
    world.larder(&["backup", "prune", "shop", "--dry-run"]).says("would be removed");
    assert_eq!(ids(&world), before);
    let pruned = world.larder(&["--json", "backup", "prune", "shop"]).json();
    assert_eq!(pruned["removed"].as_array().unwrap().len(), before.len() - 1, "{pruned}");
    assert_eq!(ids(&world), before[..1]);
    world.larder(&["backup", "prune", "shop"]).says("none");
    world.is_consistent("shop");
    world.end();
}

#[test]
fn missed_runs_are_made_up_for_once_also_after_a_kill() {
    let Some(world) = World::configured(YEARLY) else { return };
    shop(&world);
    assert_eq!(ids(&world), Vec::<String>::new());
    assert!(summary(&world)["next"].is_string(), "{}", summary(&world));
    world.stop();
    forget_runs_since(&world, "2023-01-01T00:00:00Z");
    let marks = marks(&world);
    // The server is killed after the capture, and the next server after the verification.
    let kill = |name: &str| format!("upkeep.{name}=return({})", marks.display());
    world.start(&[("FAILPOINTS", &format!("{};{}", kill("taken"), kill("done")))]);
    until("the run was interrupted twice", || ["upkeep.taken", "upkeep.done"].iter().all(|name| marks.join(name).exists()));
    until("the run has ended", || {
        world.larder(&["status"]).status == 0 && summary(&world)["last_run"]["result"]["verified"].is_string()
    });
    let after = summary(&world);
    assert!(after["last_run"]["missed"].as_u64().unwrap() >= 3, "{after}");
    assert_eq!(after["newest"]["id"], after["last_run"]["result"]["verified"], "{after}");
    assert_eq!((&after["drill"]["point"], &after["drill"]["failure"]), (&after["newest"]["id"], &Value::Null), "{after}");
    // The interrupted runs continued with the restore point that the first server took.
    let points = points(&world);
    assert_eq!(points.len(), 1, "{points:#?}");
    assert_eq!(points[0]["state"], "ok");
    world.larder(&["backup", "list", "shop"]).says("missed runs: ").says("is ok");
    // A restart does not repeat the run.
    world.restart(&[]);
    let again = summary(&world);
    assert_eq!((&again["last_run"], &again["next"]), (&after["last_run"], &after["next"]));
    assert_eq!(ids(&world).len(), 1);
    world.end();
}

#[test]
fn damaged_restore_point_is_announced_by_the_next_run() {
    let Some(world) = World::configured(YEARLY) else { return };
    shop(&world);
    let point = world.larder(&["--json", "backup", "take", "shop"]).json();
    let id = point["id"].as_str().unwrap();
    world.larder(&["backup", "verify", "shop"]).ok();
    assert_eq!(summary(&world)["newest"]["id"], id);
    damage(&crate::backup::stored(&world, fs::read(world.environment("shop").join("data/media/upload")).unwrap()));
    world.stop();
    forget_runs_since(&world, "2025-01-01T00:00:00Z");
    // The application changed the file meanwhile, so that the next restore point does not share the damaged file.
    fs::write(world.environment("shop").join("data/media/upload"), "changed").unwrap();
    let news = world.directory().join("news");
    fs::write(&news, "").unwrap();
    fs::set_permissions(&news, fs::Permissions::from_mode(0o666)).unwrap();
    world.start(&[("FAILPOINTS", &format!("observer=return({})", news.display()))]);
    until("the run has ended", || summary(&world)["last_run"].is_object());
    let after = summary(&world);
    assert_eq!(after["damaged"][0]["id"], id, "{after}");
    assert_eq!(after["newest"]["id"], after["last_run"]["result"]["verified"], "{after}");
    world.larder(&["status"]).says("1 restore point is damaged");
    world.larder(&["backup", "list", "shop"]).says("damaged (").says("1 restore point is damaged");
    until("the observers were notified", || {
        let told = fs::read_to_string(&news).unwrap();
        told.contains("backup_damaged") && told.contains("backup_verified")
    });
    // A drill restores a copy, compares it, and deletes it. A drill of the damaged restore point fails, and is shown.
    world.larder(&["backup", "drill", "shop"]).says("succeeded: ").says("restored and compared");
    assert_eq!(summary(&world)["drill"]["failure"], Value::Null);
    world.larder(&["backup", "drill", "shop", id]).exits(1).says("failed after");
    world.larder(&["status"]).says("the drill of ").says("data/media/upload");
    world.larder(&["backup", "drill", "shop", "nothing"]).exits(4);
    world.larder(&["backup", "drill", "shop"]).ok();
    world.larder(&["backup", "list", "shop"]).says("last drill: ").says("succeeded");
    assert_eq!(names(&world.environment("shop").join("archives/restored")), Vec::<String>::new());
    // A damaged restore point is not removed by the rules; a person removes it.
    world.larder(&["backup", "remove", "shop", id]).ok();
    assert_eq!(summary(&world)["damaged"], Value::Array(Vec::new()));
    world.end();
}

pub fn damage(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    bytes[0] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
fn deployment_interrupts_a_scheduled_capture() {
    let Some(world) = World::configured(YEARLY) else { return };
    let repo = shop(&world);
    world.stop();
    forget_runs_since(&world, "2025-01-01T00:00:00Z");
    // The failpoint makes the first capture longer than the time limit of a test. The push is therefore accepted in time only if its
    // deployment does not wait for the capture.
    world.start(&[("FAILPOINTS", "upkeep.capture=1*sleep(120000)->off")]);
    repo.page("version two");
    repo.push().accepted();
    until("the run has ended", || summary(&world)["last_run"]["result"]["verified"].is_string());
    let points = points(&world);
    assert_eq!((points.len(), points[0]["number"].as_u64()), (1, Some(2)), "{points:#?}");
    world.serves("shop", "version two");
    world.kill9_all();
    world.start(&[]);
    world.end();
}

#[test]
fn run_without_enough_disk_space_fails_with_the_needed_bytes() {
    let Some(world) = World::configured(YEARLY) else { return };
    shop(&world);
    world.stop();
    forget_runs_since(&world, "2025-01-01T00:00:00Z");
    let file = world.root().join("larder.yml");
    let full = fs::read_to_string(&file).unwrap().replace("disk_reserve: 64M", "disk_reserve: 900000G");
    fs::write(&file, full).unwrap();
    world.start(&[]);
    until("the run has ended", || summary(&world)["last_run"].is_object());
    let why = summary(&world)["last_failure"]["why"].as_str().unwrap().to_owned();
    assert!(
        why.starts_with("cannot take a scheduled restore point: ") && why.contains("bytes of disk space are needed"),
        "{why}"
    );
    world.larder(&["status"]).says("failed: cannot take a scheduled restore point");
    assert_eq!(ids(&world), Vec::<String>::new());
    world.end();
}
