//! Mirrors of package registries, for machines without access to the registries. The mirrors consist of files of Debian's packages, and are
//! configured as docs/buildpacks.md describes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::harness::{World, files::Files, installed};

/// A mirror that runs until this value is dropped.
pub struct Mirror {
    /// The name of the variable that tells builds the address of the mirror.
    pub variable: &'static str,
    path: &'static str,
    files: Files,
}

impl Mirror {
    /// Creates the mirror that an example needs. Returns `None` if there is no mirror for the example, or if a package is missing.
    pub fn of(example: &str, world: &World) -> Option<Mirror> {
        let directory = world.directory().join("mirror");
        let (variable, path) = match example {
            "java" => maven(&directory).map(|()| ("MAVEN_SETTINGS_URL", "/settings.xml")),
            "ruby" => rubygems(&directory).map(|()| ("BUNDLE_MIRROR__ALL", "")),
            _ => None,
        }?;
        Some(Mirror { variable, path, files: Files::of(&directory) })
    }

    pub fn address(&self) -> String {
        format!("http://{}{}", self.files.address, self.path)
    }

    pub fn was_asked(&self) -> bool {
        self.files.found() > 0
    }
}

/// The Maven repository of Debian's Java packages.
const MAVEN_REPOSITORY: &str = "/usr/share/maven-repo";

/// Writes settings that replace Maven Central by Debian's repository and name the versions of its plugins.
fn maven(directory: &Path) -> Option<()> {
    installed("curl")?;
    let mut versions = String::new();
    for plugin in ["maven-compiler-plugin", "maven-jar-plugin", "maven-resources-plugin", "maven-surefire-plugin"] {
        let there = Path::new(MAVEN_REPOSITORY).join("org/apache/maven/plugins").join(plugin);
        let Some(version) = newest(&there) else {
            eprintln!("SKIPPED: Debian's package of the {plugin} is not installed");
            return None;
        };
        versions += &format!("<{plugin}.version>{version}</{plugin}.version>");
    }
    // Debian's repository has no checksums, and Maven warns about each missing checksum.
    let repository = format!(
        "<id>central</id><url>file://{MAVEN_REPOSITORY}</url>\
         <releases><checksumPolicy>ignore</checksumPolicy></releases><snapshots><enabled>false</enabled></snapshots>"
    );
    let settings = format!(
        "<settings><profiles><profile><id>mirror</id><properties>{versions}</properties>\
         <repositories><repository>{repository}</repository></repositories>\
         <pluginRepositories><pluginRepository>{repository}</pluginRepository></pluginRepositories></profile></profiles>\
         <activeProfiles><activeProfile>mirror</activeProfile></activeProfiles></settings>"
    );
    fs::create_dir(directory).unwrap();
    fs::write(directory.join("settings.xml"), settings).unwrap();
    Some(())
}

/// Returns the highest version among the names of a directory's entries.
fn newest(directory: &Path) -> Option<String> {
    let versions = fs::read_dir(directory).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let numbers = |version: &str| version.split('.').map(|part| part.parse::<u32>().ok()).collect::<Option<Vec<_>>>();
    versions.filter_map(|version| Some((numbers(&version)?, version))).max().map(|(_, version)| version)
}

/// The exit status of [`GEMS`] if a gem is not installed.
const MISSING: i32 = 3;

/// Packs installed gems with their compiled extensions, and writes the index that bundler reads.
const GEMS: &str = r##"
require 'fileutils'
require 'rubygems/package'
require 'tmpdir'
require 'zlib'

place = File.expand_path(ARGV.shift)
FileUtils.mkdir_p(["#{place}/gems", "#{place}/quick/Marshal.4.8"])
begin
  specs = ARGV.map { |name| Gem::Specification.find_by_name(name) }
rescue Gem::MissingSpecError => missing
  warn missing.message.lines.first
  exit 3
end
index = specs.map do |installed|
  spec = Gem::Specification.load(installed.loaded_from)
  Dir.mktmpdir do |tree|
    FileUtils.cp_r("#{installed.full_gem_path}/.", tree)
    unless spec.extensions.empty?
      FileUtils.cp_r("#{installed.extension_dir}/.", "#{tree}/lib")
      spec.extensions = []
      spec.platform = Gem::Platform.local
    end
    Dir.chdir(tree) do
      spec.files = Dir['**/*'].select { |file| File.file?(file) }
      FileUtils.mv(Gem::Package.build(spec, true), "#{place}/gems")
    end
  end
  File.binwrite("#{place}/quick/Marshal.4.8/#{spec.full_name}.gemspec.rz", Gem.deflate(Marshal.dump(spec)))
  [spec.name, spec.version, spec.original_platform.to_s]
end
{ 'specs' => index, 'latest_specs' => index, 'prerelease_specs' => [] }.each do |name, list|
  Zlib::GzipWriter.open("#{place}/#{name}.4.8.gz") { |file| file.write(Marshal.dump(list)) }
end
"##;

fn rubygems(directory: &Path) -> Option<()> {
    let ruby: PathBuf = installed("ruby")?;
    let mut command = Command::new(ruby);
    command.env("TMPDIR", directory.parent()?).args(["-e", GEMS]).arg(directory).args(["rack", "puma", "nio4r"]);
    let made = command.output().unwrap();
    let says = String::from_utf8_lossy(&made.stderr);
    if made.status.code() == Some(MISSING) {
        eprintln!("SKIPPED: Debian's packages puma and ruby-rack are not installed: {}", says.trim());
        return None;
    }
    assert!(made.status.success(), "{says}");
    Some(())
}
