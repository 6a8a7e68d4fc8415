//! Tests of Ruby: the environment of Rails and the settings of bundler.

use std::fs;

use super::Project;

#[test]
fn rails_serves_assets_with_its_own_pid_file() {
    let project = Project::new(&[("Gemfile", ""), ("bin/rails", ""), ("config/application.rb", "")]);
    project.program("ruby", "printf 3.1.2").program("bundle", "");
    project.compiled("ruby", &[]);
    let profile = fs::read_to_string(project.app(".profile.d/ruby.sh")).unwrap();
    assert!(profile.contains("export RAILS_SERVE_STATIC_FILES=\"${RAILS_SERVE_STATIC_FILES:-enabled}\"\n"), "{profile}");
    let file = "tmp/pids/$LARDER_PROCESS.pid";
    let web = format!("rm -f {file}; exec bundle exec rails server -b 127.0.0.1 -p $PORT -P {file}");
    assert_eq!(project.web("ruby"), Some(web));
}

#[test]
fn bundler_mirrors_and_build_options_of_project_stay() {
    let own = "---\nBUNDLE_PATH: \"elsewhere\"\nBUNDLE_MIRROR__HTTPS://RUBYGEMS__ORG/: \"https://gems.example/\"\n\
               BUNDLE_BUILD__NOKOGIRI: \"--use-system-libraries\"\nBUNDLE_FROZEN: \"false\"\n";
    let project = Project::new(&[("Gemfile", ""), ("Gemfile.lock", ""), (".bundle/config", own)]);
    project.program("ruby", "printf 3.1.2").program("bundle", "");
    project.compiled("ruby", &[]);
    let settings = fs::read_to_string(project.app(".bundle/config")).unwrap();
    let expected = "---\nBUNDLE_PATH: \"vendor/bundle\"\nBUNDLE_WITHOUT: \"development:test\"\nBUNDLE_FROZEN: \"true\"\n\
                    BUNDLE_MIRROR__HTTPS://RUBYGEMS__ORG/: \"https://gems.example/\"\n\
                    BUNDLE_BUILD__NOKOGIRI: \"--use-system-libraries\"\n";
    assert_eq!(settings, expected);
}

#[test]
fn gems_of_project_directories_are_installed_in_every_build() {
    for (lock, restored) in [("GEM\n  specs:\n", true), ("PATH\n  remote: gems/own\n", false)] {
        let project = Project::new(&[("Gemfile", ""), ("Gemfile.lock", lock)]);
        project.program("ruby", "printf 3.1.2").program("bundle", "mkdir -p vendor/bundle");
        project.compiled("ruby", &[]);
        let output = project.compiled("ruby", &[]);
        assert_eq!(output.contains("gems restored"), restored, "{lock}: {output}");
    }
}
