//! Settings of a server in four layers: flags win over `HEADWATER_*` variables, these over
//! `headwater.toml`, that over defaults. Each value remembers where it came from.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::{Table, Value};

use super::InputError;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag(String),
    Variable(String),
    File(PathBuf),
    Default,
}

impl Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Flag(name) => write!(f, "flag {name}"),
            Origin::Variable(name) => write!(f, "variable {name}"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// One line of `--print-config`.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) name: &'static str,
    pub(crate) value: String,
    pub(crate) origin: Origin,
}

/// The layers, asked setting by setting; [`Layers::finish`] refuses keys that nobody asked for.
pub(crate) struct Layers<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    file: Option<(PathBuf, Table)>,
    asked: BTreeSet<&'static str>,
    pub(crate) shown: Vec<Shown>,
}

impl<'a> Layers<'a> {
    /// Reads the file: the named one must exist, `headwater.toml` in the current folder may.
    pub(crate) fn read(
        named: Option<&Path>,
        variable: &'a dyn Fn(&str) -> Option<String>,
    ) -> Result<Layers<'a>, InputError> {
        let path = named.unwrap_or(Path::new("headwater.toml"));
        let file = match std::fs::read_to_string(path) {
            Ok(text) => Some((path.to_owned(), parse(path, &text)?)),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(InputError::new(format!(
                    "cannot read {}: {error}",
                    path.display()
                )));
            }
        };
        Ok(Layers {
            variable,
            file,
            asked: BTreeSet::new(),
            shown: Vec::new(),
        })
    }

    /// The value of the first layer that has one. Names are kebab case as in flags; variables are
    /// `HEADWATER_NAME`, keys of the file use `_` or `-`.
    pub(crate) fn pick<T: FromStr<Err: Display> + Display>(
        &mut self,
        name: &'static str,
        flag: Option<T>,
        default: T,
    ) -> Result<T, InputError> {
        Ok(self
            .pick_optional(name, flag, Some(default))?
            .expect("there is a default"))
    }

    /// As [`Layers::pick`], for settings that may be absent.
    pub(crate) fn pick_optional<T: FromStr<Err: Display> + Display>(
        &mut self,
        name: &'static str,
        flag: Option<T>,
        default: Option<T>,
    ) -> Result<Option<T>, InputError> {
        self.asked.insert(name);
        let variable = format!("HEADWATER_{}", name.replace('-', "_").to_uppercase());
        let (value, origin) = if let Some(value) = flag {
            (Some(value), Origin::Flag(format!("--{name}")))
        } else if let Some(text) = (self.variable)(&variable).filter(|text| !text.is_empty()) {
            (Some(parsed(&text, &variable)?), Origin::Variable(variable))
        } else if let Some((path, value)) = self.in_file(name) {
            let place = format!("{name} in {}", path.display());
            (
                Some(parsed(&plain(value, &place)?, &place)?),
                Origin::File(path.clone()),
            )
        } else {
            (default, Origin::Default)
        };
        let shown = value.as_ref().map(T::to_string).unwrap_or_default();
        self.shown.push(Shown {
            name,
            value: shown,
            origin,
        });
        Ok(value)
    }

    fn in_file(&self, name: &str) -> Option<(&PathBuf, &Value)> {
        let (path, table) = self.file.as_ref()?;
        let value = table
            .get(name)
            .or_else(|| table.get(&name.replace('-', "_")))?;
        Some((path, value))
    }

    /// Refuses keys of the file that are no settings: a typo must not silently be a default.
    pub(crate) fn finish(self) -> Result<Vec<Shown>, InputError> {
        if let Some((path, table)) = &self.file {
            let unknown = table
                .keys()
                .find(|key| !self.asked.contains(&*key.replace('_', "-")));
            if let Some(key) = unknown {
                let known: Vec<_> = self
                    .asked
                    .iter()
                    .map(|name| name.replace('-', "_"))
                    .collect();
                let message = format!("{} has an unknown key {key}", path.display());
                return Err(
                    InputError::new(message).hint(format!("known are {}", known.join(", ")))
                );
            }
        }
        Ok(self.shown)
    }
}

fn parse(path: &Path, text: &str) -> Result<Table, InputError> {
    text.parse().map_err(|error: toml::de::Error| {
        InputError::new(format!(
            "{} is not TOML: {}",
            path.display(),
            error.to_string().trim()
        ))
    })
}

fn plain(value: &Value, place: &str) -> Result<String, InputError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(n) => Ok(n.to_string()),
        Value::Boolean(flag) => Ok(flag.to_string()),
        other => {
            let found = other.type_str();
            Err(InputError::new(format!(
                "{place} is a {found}, not a plain value"
            )))
        }
    }
}

fn parsed<T: FromStr<Err: Display>>(text: &str, place: &str) -> Result<T, InputError> {
    text.parse()
        .map_err(|error| InputError::new(format!("{place} = {text}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers<'a>(file: &str, variable: &'a dyn Fn(&str) -> Option<String>) -> Layers<'a> {
        let path = PathBuf::from("headwater.toml");
        let table = parse(&path, file).unwrap();
        Layers {
            variable,
            file: Some((path, table)),
            asked: BTreeSet::new(),
            shown: Vec::new(),
        }
    }

    #[test]
    fn flags_win_over_variables_over_the_file_over_defaults() {
        let variable = |name: &str| (name == "HEADWATER_B").then(|| "3".to_owned());
        let mut all = layers("a = 4\nb = 4\nc = 4", &variable);
        assert_eq!(all.pick("a", Some(2), 5).unwrap(), 2);
        assert_eq!(all.pick("b", None, 5).unwrap(), 3);
        assert_eq!(all.pick("c", None, 5).unwrap(), 4);
        assert_eq!(all.pick("d", None, 5).unwrap(), 5);
        let origins: Vec<_> = all
            .finish()
            .unwrap()
            .into_iter()
            .map(|shown| shown.origin.to_string())
            .collect();
        assert_eq!(
            origins,
            [
                "flag --a",
                "variable HEADWATER_B",
                "file headwater.toml",
                "default"
            ]
        );
    }

    #[test]
    fn mistakes_name_their_place() {
        let none = |_: &str| None;
        let mut all = layers("workers = 'many'\n", &none);
        let error = all.pick("workers", None, 1usize).unwrap_err();
        assert_eq!(
            error.message,
            "workers in headwater.toml = many: invalid digit found in string"
        );
        let mut typo = layers("log_fromat = 'json'", &none);
        typo.pick("log-format", None, "text".to_owned()).unwrap();
        let error = typo.finish().unwrap_err();
        assert_eq!(
            error.message,
            "headwater.toml has an unknown key log_fromat"
        );
        assert_eq!(error.hint.as_deref(), Some("known are log_format"));
    }

    #[test]
    fn a_named_file_must_exist() {
        let none = |_: &str| None;
        assert!(Layers::read(Some(Path::new("/nowhere/headwater.toml")), &none).is_err());
    }
}
