use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

fn table(routes: &[&str]) -> (RouteTable, Vec<Pattern>) {
    let patterns: Vec<_> = routes.iter().map(|route| Pattern::parse(route).unwrap()).collect();
    (RouteTable::build(&patterns).unwrap(), patterns)
}

#[test]
fn the_most_specific_route_wins() {
    let (table, patterns) = table(&[
        "GET /",
        "GET /orders",
        "GET /orders/{id}",
        "GET /orders/latest",
        "POST /orders/{id}/cancel",
        "ANY /orders/**",
        "GET /assets/**",
        "HEAD /assets/logo",
        "ANY /any",
        "GET /any",
        "GET /a/*/c",
        "GET /dir/",
    ]);
    let cases = [
        ("GET", "/", "GET /"),
        ("HEAD", "/", "GET /"),
        ("GET", "/orders", "GET /orders"),
        ("GET", "/orders/7", "GET /orders/{id}"),
        ("GET", "/orders/latest", "GET /orders/latest"),
        ("DELETE", "/orders/latest", "ANY /orders/**"),
        ("GET", "/orders/7/8", "ANY /orders/**"),
        ("GET", "/orders/", "ANY /orders/**"),
        ("POST", "/orders", "ANY /orders/**"),
        ("PROPFIND", "/orders/7", "ANY /orders/**"),
        ("POST", "/orders/7/cancel", "POST /orders/{id}/cancel"),
        ("GET", "/assets", "GET /assets/**"),
        ("GET", "/assets/a/b.css", "GET /assets/**"),
        ("HEAD", "/assets/logo", "HEAD /assets/logo"),
        ("GET", "/assets/logo", "GET /assets/**"),
        ("HEAD", "/any", "GET /any"),
        ("PUT", "/any", "ANY /any"),
        ("GET", "/a/b/c", "GET /a/*/c"),
        ("GET", "/dir/", "GET /dir/"),
        ("POST", "/", "405 GET, HEAD"),
        ("TRACE", "/any", "405 GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        ("CONNECT", "/orders/7", "405 GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        ("get", "/", "405 GET, HEAD"),
        ("GET", "/dir", "404"),
        ("OPTIONS", "*", "404"),
        ("GET", "/a//c", "404"),
        ("GET", "/ORDERS", "404"),
        ("GET", "/ordersx", "404"),
    ];
    for (method, path, expected) in cases {
        let found = match table.find(method, path) {
            Found::Route { route, .. } => patterns[route].text().to_owned(),
            Found::OtherMethods(allow) => format!("405 {allow}"),
            Found::Nothing => "404".to_owned(),
        };
        assert_eq!(found, expected, "{method} {path}");
    }
}

#[test]
fn parameters_are_found_by_name() {
    let (table, patterns) = table(&["GET /a/{x}/b/*/{y}/**"]);
    let path = "/a/1/b/2/3/r/s";
    let Found::Route { route, parameters } = table.find("GET", path) else { panic!("no route") };
    let get = |name| parameters.get(patterns[route].parameter(name).unwrap(), path);
    assert_eq!((get("x"), get("y")), (Some("1"), Some("3")));
    assert_eq!(parameters.rest(path), "r/s");
    let path = "/a/1/b/2/3";
    let Found::Route { parameters, .. } = table.find("GET", path) else { panic!("no route") };
    assert_eq!(parameters.rest(path), "");
}

#[test]
fn ambiguity_is_an_error_that_names_a_path() {
    let cases = [
        (["GET /a/{x}", "GET /{y}/b"], "both match `/a/b`"),
        (["GET /a/**", "GET /{y}/b"], "both match `/a/b`"),
        (["GET /a/{x}", "ANY /{y}/b"], "both match `/a/b`"),
        (["HEAD /a/{x}", "GET /{y}/b"], "both match `/a/b`"),
        (["GET /a/{x}", "GET /a/{y}"], "are the same"),
        (["ANY /**", "ANY /**"], "are the same"),
    ];
    for (routes, expected) in cases {
        let patterns: Vec<_> = routes.iter().map(|route| Pattern::parse(route).unwrap()).collect();
        let errors = RouteTable::build(&patterns).unwrap_err();
        assert!(errors[0].to_string().contains(expected), "{routes:?}: {}", errors[0]);
    }
    for routes in
        [["GET /a/{x}", "POST /{y}/b"], ["GET /a/**", "GET /a/{x}"], ["GET /x", "HEAD /x"], ["GET /a/", "GET /a/{x}"]]
    {
        let patterns: Vec<_> = routes.iter().map(|route| Pattern::parse(route).unwrap()).collect();
        assert!(RouteTable::build(&patterns).is_ok(), "{routes:?}");
    }
}

#[test]
fn a_malformed_route_is_refused() {
    let nine = format!("GET {}", "/*".repeat(9));
    let bad = [
        "/x",
        "GET",
        "GET x",
        "get /x",
        "CONNECT /x",
        "GET /**/x",
        "GET /a*",
        "GET /{}",
        "GET /{a}/{a}",
        "GET /{a-b}",
        "GET /a//b",
        "GET /../x",
        "GET /%61",
        "GET /a?b=c",
        "GET /a;b",
        &nine,
    ];
    for route in bad {
        assert!(Pattern::parse(route).is_err(), "{route}");
    }
}

/// Compares the tree with the definition: of all routes that match, the one narrower than every other.
#[test]
fn the_tree_agrees_with_the_definition() {
    let seed = std::env::var("BALLET_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x0b41_1e70);
    println!("BALLET_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut hits, mut refusals) = (0, 0);
    for _ in 0..400 {
        let mut patterns: Vec<Pattern> = vec![];
        for _ in 0..rng.random_range(1..14) {
            let candidate = Pattern::parse(&random_route(&mut rng)).unwrap();
            if patterns.iter().all(|known| known.conflict(&candidate).is_none()) {
                patterns.push(candidate);
            }
        }
        let table = RouteTable::build(&patterns).unwrap();
        for _ in 0..60 {
            let method = ["GET", "HEAD", "POST", "BREW", "TRACE"][rng.random_range(0..5)];
            let path = random_path(&mut rng);
            let expected = by_definition(&patterns, method, &path);
            let found = match table.find(method, &path) {
                Found::Route { route, .. } => Ok(route),
                Found::OtherMethods(_) => Err(405),
                Found::Nothing => Err(404),
            };
            assert_eq!(
                found,
                expected,
                "{method} {path} in {:?}",
                patterns.iter().map(Pattern::text).collect::<Vec<_>>()
            );
            hits += usize::from(found.is_ok());
            refusals += usize::from(found == Err(405));
        }
    }
    assert!(hits > 1_000 && refusals > 1_000, "the cases are too easy: {hits} hits, {refusals} refusals");
}

fn random_route(rng: &mut StdRng) -> String {
    let mut route = ["GET", "HEAD", "POST", "ANY"][rng.random_range(0..4)].to_owned() + " ";
    for _ in 0..rng.random_range(0..4) {
        route += ["/a", "/b", "/*"][rng.random_range(0..3)];
    }
    match rng.random_range(0..4) {
        0 => route + "/**",
        1 => route + "/",
        _ if route.ends_with(' ') => route + "/",
        _ => route,
    }
}

fn random_path(rng: &mut StdRng) -> String {
    let mut path = String::new();
    for _ in 0..rng.random_range(0..5) {
        path += ["/a", "/b", "/c"][rng.random_range(0..3)];
    }
    if path.is_empty() || rng.random_range(0..4) == 0 {
        path.push('/');
    }
    path
}

fn by_definition(patterns: &[Pattern], method: &str, path: &str) -> Result<usize, u16> {
    let segments: Vec<_> = path[1..].split('/').collect();
    let fits: Vec<_> = (0..patterns.len()).filter(|i| fits(&patterns[*i], &segments)).collect();
    if fits.is_empty() {
        return Err(404);
    }
    // Of two routes with one path, the one that names the method is before the one that names GET for HEAD, before ANY.
    let rank = |i: usize| match (patterns[i].method, method) {
        (_, "TRACE") => None,
        (RouteMethod::Known(slot), _) if KNOWN[slot] == method => Some(0),
        (RouteMethod::Known(GET), "HEAD") => Some(1),
        (RouteMethod::Any, _) => Some(2),
        (RouteMethod::Known(_), _) => None,
    };
    let mut taken: Vec<_> = fits.into_iter().filter(|i| rank(*i).is_some()).collect();
    taken.sort_by(|a, b| match patterns[*a].relation(&patterns[*b]) {
        Relation::Narrower => std::cmp::Ordering::Less,
        Relation::Wider => std::cmp::Ordering::Greater,
        Relation::Same => rank(*a).cmp(&rank(*b)),
        Relation::Apart | Relation::Crossing => panic!("two routes match `{path}`"),
    });
    taken.first().copied().ok_or(405)
}

fn fits(pattern: &Pattern, segments: &[&str]) -> bool {
    let enough =
        if pattern.tail { segments.len() >= pattern.segments.len() } else { segments.len() == pattern.segments.len() };
    enough
        && pattern.segments.iter().zip(segments).all(|(expected, segment)| match expected {
            Segment::Literal(text) => **text == **segment,
            Segment::Wild => !segment.is_empty(),
        })
}
