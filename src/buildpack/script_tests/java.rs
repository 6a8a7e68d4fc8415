//! Tests of Java: Maven's options, the source of its settings, and the choice of the executable archive.

use std::fs;

use super::Project;

/// Creates a Maven project, with a fake Maven that prints its settings and options.
fn maven(files: &[(&str, &str)]) -> Project {
    let project = Project::new(files);
    project.write("pom.xml", "<project/>").program("java", "").program("javac", "");
    project.program("mvn", "echo \"options=[${MAVEN_OPTS-}]\"\nif [ \"$1\" = -s ]; then cat \"$2\"; fi");
    project
}

fn words(project: &Project) -> String {
    project.calls().into_iter().rfind(|call| call.starts_with("mvn ")).unwrap()
}

#[test]
fn maven_settings_come_from_path_or_address_or_root() {
    let project = maven(&[("settings.xml", "the root's\n"), ("ci/company settings.xml", "the company's\n")]);
    project.program("curl", "while [ \"$1\" != -o ]; do shift; done\necho \"downloaded from $4\" >\"$2\"");
    let address = ("MAVEN_SETTINGS_URL", "https://user:secret@maven.example/settings.xml");
    let path = ("MAVEN_SETTINGS_PATH", "ci/company settings.xml");

    assert!(project.compiled("java", &[]).contains("       the root's\n"));
    let output = project.compiled("java", &[address]);
    assert!(output.contains("       downloaded from https://user:secret@maven.example/settings.xml\n"), "{output}");
    // The build prints the name of the variable instead of the address, because the address has a password.
    assert!(output.contains("settings: downloaded from MAVEN_SETTINGS_URL\n"), "{output}");
    assert!(project.compiled("java", &[address, path]).contains("       the company's\n"));
    // The settings often contain a password, so they must not be in the cache.
    for entry in fs::read_dir(project.temp.path().join("cache")).unwrap() {
        assert_eq!(entry.unwrap().file_name(), "home");
    }
    let none = maven(&[]);
    none.compiled("java", &[]);
    assert!(words(&none).starts_with("mvn -B "), "{}", words(&none));
}

#[test]
fn missing_maven_settings_are_named_in_the_reason() {
    let project = maven(&[]);
    let why = project.refused("java", &[("MAVEN_SETTINGS_PATH", "ci/settings.xml")]);
    assert_eq!(why, "MAVEN_SETTINGS_PATH: there is no file ci/settings.xml (the path starts at the root of the project)");
    for (says, reason) in [
        ("curl: (22) The requested URL returned error: 404", "curl: (22) The requested URL returned error: 404"),
        ("curl: (6) Could not resolve host: maven.example", "maven.example cannot be reached from this server"),
    ] {
        let project = maven(&[]);
        project.program("curl", &format!("echo '{says}' >&2; exit 22"));
        let why = project.refused("java", &[("MAVEN_SETTINGS_URL", "https://maven.example/settings.xml")]);
        assert_eq!(why, format!("MAVEN_SETTINGS_URL: {reason}"));
        assert!(project.calls().iter().all(|call| !call.starts_with("mvn ")));
    }
}

#[test]
fn maven_gets_goals_and_options_of_project() {
    let project = maven(&[]);
    let output = project.compiled("java", &[]);
    assert!(output.contains("options=[]\n"), "{output}");
    assert!(words(&project).ends_with(" -DskipTests package"), "{}", words(&project));
    let output = project.compiled(
        "java",
        &[
            ("MAVEN_CUSTOM_GOALS", "clean verify"),
            ("MAVEN_CUSTOM_OPTS", "-Pproduction -DskipITs"),
            ("MAVEN_JAVA_OPTS", "-Xmx200m"),
            ("MAVEN_OPTS", "-Dfirst=1"),
        ],
    );
    assert!(output.contains("options=[-Dfirst=1 -Xmx200m]\n"), "{output}");
    assert!(words(&project).ends_with(" -Pproduction -DskipITs clean verify"), "{}", words(&project));
}

/// A fake `jar`, which copies the archive to the path of an extracted manifest. The archives of the tests contain only the text of a
/// manifest.
const JAR: &str = "mkdir -p META-INF && cp \"$2\" META-INF/MANIFEST.MF";

#[test]
fn executable_archive_of_a_module_is_found() {
    let library = ("api/target/api.jar", "Manifest-Version: 1.0\n");
    let web = ("web/target/web.jar", "Main-Class: org.example.Main\n");
    let project = maven(&[library, web]);
    project.program("jar", JAR);
    project.compiled("java", &[]);
    assert!(project.web("java").unwrap().ends_with("-jar web/target/web.jar"));
}

#[test]
fn several_executable_archives_of_modules_are_named() {
    let main = "Main-Class: org.example.Main\n";
    let archives = [("api/target/api.jar", main), ("web/target/web.jar", main)];
    let project = maven(&archives);
    project.program("jar", JAR);
    let output = project.compiled("java", &[]);
    assert!(output.contains("Several modules have an executable archive: api/target/api.jar, web/target/web.jar."), "{output}");
    assert_eq!(project.web("java"), None);
}
