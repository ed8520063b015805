//! Query strings: every parameter is known, given once and of its type, or refused.

use axum::extract::Query;
use axum::http::Uri;
use queries::api::AsOf;
use queries::problem::Problem;

/// The parameters of one request, taken one by one; [`Params::finish`] refuses what is left.
pub(crate) struct Params {
    left: Vec<(String, String)>,
    asked: Vec<&'static str>,
}

impl Params {
    pub(crate) fn of(uri: &Uri) -> Result<Params, Problem> {
        let Query(left) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Problem::new(400, "invalid-query", error.body_text()))?;
        Ok(Params {
            left,
            asked: Vec::new(),
        })
    }

    /// The parameter's text; 422 if it is given twice.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        self.asked.push(name);
        let mut found = None;
        while let Some(at) = self.left.iter().position(|(given, _)| given == name) {
            if found.is_some() {
                return Err(Problem::invalid(format!("parameter {name} is given twice")));
            }
            found = Some(self.left.remove(at).1);
        }
        Ok(found)
    }

    /// A whole number within bounds.
    pub(crate) fn number(
        &mut self,
        name: &'static str,
        (least, most): (u64, u64),
    ) -> Result<Option<u64>, Problem> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let number = text.parse().ok().filter(|n| (least..=most).contains(n));
        let Some(number) = number else {
            let detail = format!("parameter {name} = {text} is out of range");
            return Err(
                Problem::invalid(detail).expected(format!("a whole number from {least} to {most}"))
            );
        };
        Ok(Some(number))
    }

    /// `true` or `false`; a bare name is true.
    pub(crate) fn flag(&mut self, name: &'static str) -> Result<bool, Problem> {
        match self.text(name)?.as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => {
                let detail = format!("parameter {name} = {other} is neither true nor false");
                Err(Problem::invalid(detail).expected("true or false"))
            }
        }
    }

    /// Engine time or RFC 3339.
    pub(crate) fn as_of(&mut self) -> Result<Option<AsOf>, Problem> {
        Ok(self.text("as_of")?.map(|text| match text.parse() {
            Ok(time) => AsOf::Time(time),
            Err(_) => AsOf::Text(text),
        }))
    }

    /// Refuses parameters that the route does not know.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        let Some((name, _)) = self.left.first() else {
            return Ok(());
        };
        let problem = Problem::invalid(format!("parameter {name} is unknown here"));
        Err(match self.asked.as_slice() {
            [] => problem.expected("no parameters"),
            asked => problem.expected(asked.join(", ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(text: &str) -> Params {
        Params::of(&format!("/x?{text}").parse().unwrap()).unwrap()
    }

    #[test]
    fn takes_known_parameters_and_refuses_the_rest() {
        let mut all = params("key=a%2Fb&history&limit=7&colour=red");
        assert_eq!(all.text("key").unwrap().as_deref(), Some("a/b"));
        assert!(all.flag("history").unwrap());
        assert_eq!(all.number("limit", (1, 10)).unwrap(), Some(7));
        let problem = all.finish().unwrap_err();
        assert_eq!(problem.detail, "parameter colour is unknown here");
        assert_eq!(problem.expected.as_deref(), Some("key, history, limit"));
    }

    #[test]
    fn says_what_a_parameter_takes() {
        let problem = params("limit=0").number("limit", (1, 10)).unwrap_err();
        assert_eq!(problem.detail, "parameter limit = 0 is out of range");
        assert_eq!(
            problem.expected.as_deref(),
            Some("a whole number from 1 to 10")
        );
        assert_eq!(
            params("a=1&a=2").text("a").unwrap_err().detail,
            "parameter a is given twice"
        );
        assert!(params("history=maybe").flag("history").is_err());
    }
}
