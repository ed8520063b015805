//! Fetches the servers, once per machine.
//!
//! **Idea.** Java programs come from Maven Central through Maven itself (so the user's mirrors and
//! proxies hold), into a cache folder outside the clone: `HEADWATER_TEST_SERVERS`, or
//! `headwater-servers` in the user's cache. Java, Maven and PostgreSQL are [`super::system`]'s.
//!
//! **Invariants.** A folder in the cache is whole: it is filled under another name and renamed. One
//! installer works at a time, over all processes (a lock on a file). Versions are pinned; a new
//! version is a new folder.
//!
//! **Limits.** Nothing is removed from the cache.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::system::{apt_get, java, on_path, postgres, run};

const FOLDER: &str = "HEADWATER_TEST_SERVERS";
const COPY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";

/// Something from Maven Central: a folder of jars.
struct Package {
    title: &'static str,
    /// Folder in the cache.
    folder: &'static str,
    /// `group:artifact:version`, or `group:artifact:version:type:classifier` for that file alone.
    artifacts: &'static [&'static str],
}

const KAFKA: Package = Package {
    title: "Apache Kafka 4.1.0 with Kafka Connect (55 MB)",
    folder: "kafka-4.1.0",
    artifacts: &[
        "org.apache.kafka:kafka_2.13:4.1.0",
        "org.apache.kafka:kafka-tools:4.1.0",
        "org.apache.kafka:connect-runtime:4.1.0",
        "org.apache.kafka:connect-json:4.1.0",
        "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3",
    ],
};
const DEBEZIUM: Package = Package {
    title: "Debezium's PostgreSQL connector 3.3.1 (7 MB)",
    folder: "plugins/debezium-postgres-3.3.1",
    artifacts: &["io.debezium:debezium-connector-postgres:3.3.1.Final"],
};
const CONVERTER: Package = Package {
    title: "Apicurio's Avro converter 2.5.11 (22 MB)",
    folder: "plugins/apicurio-converter-2.5.11",
    artifacts: &["io.apicurio:apicurio-registry-utils-converter:2.5.11.Final"],
};
const REGISTRY: Package = Package {
    title: "Apicurio's schema registry 2.5.11 (134 MB)",
    folder: "apicurio-registry-2.5.11",
    artifacts: &["io.apicurio:apicurio-registry-app:2.5.11.Final:tar.gz:all"],
};
const REGISTRY_JAR: &str = "apicurio-registry-app-2.5.11.Final-runner.jar";

/// Fetches everything that is missing.
///
/// # Panics
/// When something cannot be had, with what was tried and what would help.
pub fn all() {
    java();
    postgres();
    kafka_classpath();
    plugins();
    registry();
}

/// The class path of Kafka's and Kafka Connect's programs, with our logging settings.
///
/// # Panics
/// When it cannot be had.
pub fn kafka_classpath() -> String {
    let settings = made("kafka-logging", |folder| {
        let path = folder.join("log4j2.properties");
        std::fs::write(path, LOGGING).map_err(|error| error.to_string())?;
        Ok(folder.to_owned())
    });
    format!("{}:{}/*", settings.display(), package(&KAFKA).display())
}

const LOGGING: &str = "\
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{ISO8601} %p %c{1}: %m%n
rootLogger.level=INFO
rootLogger.appenderRef.out.ref=out
logger.reflections.name=org.reflections
logger.reflections.level=ERROR
logger.clients.name=org.apache.kafka.clients
logger.clients.level=WARN
logger.config.name=org.apache.kafka.common.config
logger.config.level=WARN
";

/// Kafka Connect's `plugin.path`.
///
/// # Panics
/// When it cannot be had.
pub fn plugins() -> PathBuf {
    package(&DEBEZIUM);
    let (java, classpath) = (java(), kafka_classpath());
    made(CONVERTER.folder, |folder| {
        let lib = fetch(&CONVERTER, folder)?;
        list_plugins(&java, &classpath, folder)?;
        Ok(lib)
    });
    cache().join("plugins")
}

/// Adds the list of what the jars hold where it is missing: a worker that finds lists in all of them
/// need not look into every class, and starts seconds sooner.
fn list_plugins(java: &Path, classpath: &str, folder: &Path) -> Result<(), String> {
    let mut command = Command::new(java);
    command
        .args(["-cp", classpath])
        .args(["org.apache.kafka.tools.ConnectPluginPath", "sync-manifests"])
        .arg("--plugin-path")
        .arg(folder);
    run("listing Kafka Connect's plugins", &mut command)
}

/// The registry's program.
///
/// # Panics
/// When it cannot be had.
pub fn registry() -> PathBuf {
    package(&REGISTRY).join(REGISTRY_JAR)
}

/// A folder of jars.
fn package(package: &Package) -> PathBuf {
    made(package.folder, |folder| fetch(package, folder))
}

fn fetch(package: &Package, folder: &Path) -> Result<PathBuf, String> {
    let find = || on_path("mvn").next().ok_or_else(|| "no mvn".to_owned());
    // The lock is held: this is inside `made`.
    let maven = find().or_else(|_| {
        apt_get("Maven", "maven")
            .and_then(|()| find())
            .map_err(|error| format!("Maven is needed: {error}; apt-get install -y maven"))
    })?;
    eprintln!("installing {} …", package.title);
    let lib = folder.join("lib");
    let pom = folder.join("pom.xml");
    std::fs::write(&pom, pom_text(package)).map_err(|error| error.to_string())?;
    let mut command = Command::new(maven);
    command
        .args(["-q", "-B", COPY, "-DincludeScope=runtime", "-f"])
        .arg(&pom)
        .arg(format!("-DoutputDirectory={}", lib.display()));
    run("mvn", &mut command).map_err(|error| {
        format!(
            "{error}\nwhat would help: a way to Maven Central (a mirror or proxy in Maven's \
             settings.xml), or {FOLDER} naming a folder that was filled elsewhere"
        )
    })?;
    for archive in files(&lib, ".tar.gz") {
        let mut command = Command::new("tar");
        command.arg("xzf").arg(&archive).arg("-C").arg(&lib);
        run("unpacking", &mut command)?;
        std::fs::remove_file(&archive).map_err(|error| error.to_string())?;
    }
    match files(&lib, ".jar").len() {
        0 => Err(format!("Maven left no jar in {}", lib.display())),
        _ => Ok(lib),
    }
}

fn pom_text(package: &Package) -> String {
    let mut dependencies = String::new();
    for artifact in package.artifacts {
        let parts: Vec<&str> = artifact.split(':').collect();
        dependencies += &format!(
            "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version>",
            parts[0], parts[1], parts[2]
        );
        if let [_, _, _, kind, classifier] = parts[..] {
            dependencies += &format!(
                "<type>{kind}</type><classifier>{classifier}</classifier><exclusions><exclusion>\
                 <groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>"
            );
        }
        dependencies += "</dependency>\n";
    }
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n\
         <modelVersion>4.0.0</modelVersion>\n<groupId>headwater</groupId>\n\
         <artifactId>test-servers</artifactId>\n<version>1</version>\n\
         <dependencies>\n{dependencies}</dependencies>\n</project>\n"
    )
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect()
}

/// A folder of the cache (not asked for inside another one's `make`); `make` fills a new one and says which part of it to keep.
///
/// # Panics
/// When `make` fails.
pub fn made(name: &str, make: impl FnOnce(&Path) -> Result<PathBuf, String>) -> PathBuf {
    let place = cache().join(name);
    if place.exists() {
        return place;
    }
    let _lock = lock();
    if place.exists() {
        return place;
    }
    let attempt = || {
        let failed = |error: std::io::Error| format!("{}: {error}", place.display());
        std::fs::create_dir_all(place.parent().expect("in the cache")).map_err(failed)?;
        let new = tempfile::Builder::new()
            .prefix(".new-")
            .tempdir_in(cache())
            .map_err(failed)?;
        let part = make(new.path())?;
        // A folder for temporary files is private; a cache may be shared.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&part, open).map_err(failed)?;
        std::fs::rename(part, &place).map_err(failed)
    };
    attempt().unwrap_or_else(|error| panic!("the system tests need {name}: {error}"));
    place
}

/// Held while something is installed.
///
/// # Panics
/// When the cache folder cannot be written.
pub fn lock() -> File {
    let attempt = || {
        std::fs::create_dir_all(cache())?;
        let file = File::create(cache().join("lock"))?;
        file.lock()?;
        Ok(file)
    };
    attempt().unwrap_or_else(|error: std::io::Error| {
        panic!(
            "{}: {error}; {FOLDER} names another folder",
            cache().display()
        )
    })
}

fn cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    match (set(FOLDER), set("XDG_CACHE_HOME"), set("HOME")) {
        (Some(folder), _, _) => PathBuf::from(folder),
        (_, Some(caches), _) => Path::new(&caches).join("headwater-servers"),
        (_, _, Some(home)) => Path::new(&home).join(".cache/headwater-servers"),
        _ => std::env::temp_dir().join("headwater-servers-cache"),
    }
}
