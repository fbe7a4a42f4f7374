//! Which expressions have a meaning where.

use crate::merge::list;
use crate::model::Segment;
use crate::walk::nearest;

/// Which expressions have a meaning at a place.
pub(super) enum Place<'a> {
    Route {
        segments: &'a [Segment],
        access: bool,
    },
    Event,
    /// `before`: steps whose output is there; `all`: every step; `failure`: in `failed`.
    Workflow {
        before: &'a [&'a str],
        all: &'a [&'a str],
        failure: bool,
    },
}

impl Place<'_> {
    /// Whether an expression has a meaning here; if not, what to say after it, and what to do.
    pub(super) fn check(&self, scope: &str, path: &[String]) -> Result<(), (String, String)> {
        let here = match self {
            Self::Route { segments, access } => match (scope, path) {
                ("claims", []) | ("query" | "header" | "path", [] | [_, _, ..]) => {
                    return Err((format!("needs one name after `{scope}`"), format!("write `${{{scope}.name}}`")));
                }
                ("claims", _) if *access => return Ok(()),
                ("claims", _) => {
                    return Err((
                        "has no claims to look at".into(),
                        "add `access:`: without it there is no token".into(),
                    ));
                }
                ("query" | "header", [_]) => return Ok(()),
                ("path", [name]) => {
                    let mut known: Vec<String> = Vec::new();
                    for segment in *segments {
                        match segment {
                            Segment::Param(name) => known.push(name.clone()),
                            Segment::Rest => known.push("**".to_owned()),
                            Segment::Literal(_) | Segment::One => {}
                        }
                    }
                    if known.contains(name) {
                        return Ok(());
                    }
                    let help = match (nearest(name, known.iter().map(String::as_str)), known.is_empty()) {
                        (Some(near), _) => format!("did you mean `${{path.{near}}}`?"),
                        (None, true) => "name a segment in the route: `/orders/{id}`".to_owned(),
                        (None, false) => format!("the route has {}", list(&known)),
                    };
                    return Err(("is not in the route's path".into(), help));
                }
                _ => "in routes there are `claims`, `path`, `query` and `header`".to_owned(),
            },
            Self::Event => match (scope, path) {
                ("event", [_, ..]) => return Ok(()),
                _ => {
                    "in subscriptions there is `event`: `${event.subject}`, `${event.id}`, `${event.data.…}`".to_owned()
                }
            },
            Self::Workflow { before, all, failure } => match (scope, path) {
                ("input", _) | ("execution", []) => return Ok(()),
                ("execution", _) => {
                    return Err(("is not known".into(), "`${execution}` is the execution's id".into()));
                }
                ("failure", [word]) if *failure && ["step", "status", "code"].contains(&word.as_str()) => return Ok(()),
                ("failure", _) if *failure => {
                    let help = "there are `${failure.step}`, `${failure.status}` and `${failure.code}`";
                    return Err(("is not known".into(), help.into()));
                }
                ("failure", _) => {
                    return Err(("has a meaning only in `failed:`".into(), "delete it".into()));
                }
                (step, path) if all.contains(&step) => {
                    if path.first().map(String::as_str) != Some("output") {
                        let help = format!("write `${{{step}.output}}`, or a field below it");
                        return Err(("is not known".into(), help));
                    }
                    if before.contains(&step) {
                        return Ok(());
                    }
                    let help = "move this step behind it, or take the value from somewhere else";
                    return Err(("is not there yet: that step has not run".into(), help.into()));
                }
                (step, _) => match nearest(step, all.iter().copied().chain(["input", "failure", "execution"])) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => {
                        "in workflows there are `input`, `STEP.output` and `execution`, in `failed:` also `failure`"
                            .to_owned()
                    }
                },
            },
        };
        Err(("has no meaning here".into(), here))
    }
}
