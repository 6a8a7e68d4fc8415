//! Release and configuration stay a pair over random pushes, changes, failures and rollbacks, and in restore points.

use std::{collections::BTreeMap, fs};

use crate::{
    configuration::{config, shop},
    harness::{World, in_one_mode, thorough},
};
use larder::model::Digest;

in_one_mode!(
    release_keeps_its_configuration_over_random_operations,
    restore_point_contains_the_configuration,
    configuration_of_a_deployment_in_place_is_a_pair,
);

/// A generator of numbers that depend on the seed only (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed >> 32) % u64::from(limit)) as u32
    }
}

/// What is live according to the model: the code, the page of the configuration, and the number of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pair {
    code: u32,
    page: Option<String>,
    configuration: u64,
}

fn release_keeps_its_configuration_over_random_operations(world: &World) {
    let rounds = if thorough() { 50 } else { 10 };
    let seed: u64 = std::env::var("LARDER_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_130);
    let mut random = Random(seed);
    let repo = shop(world);
    repo.write("code", "1").commit("code 1");
    repo.push().accepted();
    let mut live = Pair { code: 1, page: None, configuration: 0 };
    let mut releases = BTreeMap::from([(1_u32, live.clone())]);
    let (mut code, mut last) = (1, 0);
    for round in 0..rounds {
        let number = releases.keys().max().unwrap() + 1;
        let what = random.below(5);
        let made = match what {
            0 => {
                code += 1;
                repo.write("code", code.to_string()).commit(&format!("code {code}"));
                repo.push().accepted();
                Some(Pair { code, ..live.clone() })
            }
            1 => {
                last += 1;
                let page = format!("p{round}");
                config(world, &["set", "shop", &format!("PAGE={page}")]).ok();
                Some(Pair { page: Some(page), configuration: last, ..live.clone() })
            }
            2 if live.page.is_some() => {
                last += 1;
                config(world, &["unset", "shop", "PAGE"]).ok();
                Some(Pair { page: None, configuration: last, ..live.clone() })
            }
            3 => {
                last += 1;
                config(world, &["set", "shop", "PAGE=failed", "BROKEN=1"]).exits(1);
                None
            }
            _ => {
                let old = 1 + random.below(number - 1);
                let wanted = releases[&old].clone();
                let went = world.larder(&["rollback", "shop", &format!("v{old}")]);
                if (wanted.code, wanted.configuration) == (live.code, live.configuration) {
                    went.exits(3).says("is live already");
                    None
                } else {
                    went.ok();
                    Some(wanted)
                }
            }
        };
        if let Some(made) = made {
            releases.insert(number, made.clone());
            live = made;
        }
        let page = format!("page: {}, code {}", live.page.as_deref().unwrap_or("none"), live.code);
        let seen = world.get("shop", "/").body;
        assert!(seen.contains(&page), "seed {seed}, round {round}, operation {what}: {seen:?} (expected {page:?})");
    }
    // Each release names the configuration of the model, and the digest in its journal is that of the file.
    let listed = world.larder(&["releases", "shop", "--json"]).json();
    let listed: BTreeMap<_, _> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["number"].as_u64().unwrap() as u32, row["configuration"].as_u64().unwrap_or(0)))
        .collect();
    assert_eq!(listed, releases.iter().map(|(number, pair)| (*number, pair.configuration)).collect::<BTreeMap<_, _>>());
    for journal in world.journals("shop") {
        let recorded = &journal[0]["configuration"];
        if let Some(number) = recorded["number"].as_u64() {
            let file = world.environment("shop").join(format!("config/{number}.age"));
            assert_eq!(recorded["digest"], Digest::of(&fs::read(file).unwrap()).to_string(), "{journal:?}");
        }
    }
    world.is_consistent("shop");
}

fn restore_point_contains_the_configuration(world: &World) {
    let repo = shop(world);
    repo.write("larder.yml", "data: [media/]\nhealth: {timeout: 20s}\ndrain: 1s\n").commit("with data");
    config(world, &["set", "shop", "PAGE=old"]).ok();
    repo.push().accepted();
    let sh = |script: &str| world.larder(&["run", "shop", "--", "sh", "-ec", script]).ok().to_owned();
    sh("echo old > media/file");
    world.larder(&["backup", "take", "shop"]).ok();
    let shown = world.larder(&["--json", "backup", "show", "shop"]).json();
    assert_eq!((&shown["number"], &shown["configuration"]), (&1.into(), &1.into()), "{shown}");
    config(world, &["set", "shop", "PAGE=new"]).ok();
    sh("echo new > media/file");
    world.serves("shop", "page: new");
    // The file of the configuration is lost, as in a restore of the machine from its restore points.
    let file = world.environment("shop").join("config/1.age");
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    world.larder(&["rollback", "shop", "v1"]).exits(1).says("there is no configuration 1").says("v2 is still live");
    world.serves("shop", "page: new");
    world.larder(&["rollback", "shop", "v1", "--with-data", "--confirm", "shop"]).ok();
    world.serves("shop", "page: old");
    assert_eq!(sh("cat media/file"), "old\n");
    assert!(fs::read(&file).unwrap() == bytes, "the file is the same, encrypted");
    world.is_consistent("shop");
}

fn configuration_of_a_deployment_in_place_is_a_pair(world: &World) {
    let repo = shop(world);
    repo.write("larder.yml", "strategy: in-place\nhealth: {timeout: 20s}\n").commit("in place");
    repo.push().accepted();
    config(world, &["set", "shop", "PAGE=one"]).says("v2 is live").ok();
    world.serves("shop", "page: one");
    let plan = world.last_plan("shop");
    assert!(plan.iter().any(|step| step == "deploy.stop") && !plan.iter().any(|step| step == "deploy.release"), "{plan:?}");
    config(world, &["set", "shop", "PAGE=bad", "BROKEN=1"]).exits(1).says("v2 is still live");
    world.serves("shop", "page: one");
    config(world, &["set", "shop", "PAGE=two"]).ok();
    world.serves("shop", "page: two");
    world.larder(&["rollback", "shop"]).ok();
    world.serves("shop", "page: one");
    world.is_consistent("shop");
}
