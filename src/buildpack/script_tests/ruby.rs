//! Ruby: what Rails needs to know where no other web server stands before it.

use std::fs;

use super::Project;

#[test]
fn a_rails_server_serves_its_assets_and_has_a_pid_file_of_its_own() {
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
fn a_projects_own_mirrors_and_build_options_stay_in_its_bundler_settings() {
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
