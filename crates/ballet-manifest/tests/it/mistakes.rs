//! Every mistake has a golden file: `tests/mistakes/NAME.yaml` and what `check` says of it in `NAME.txt`.

use crate::{System, expect_file, here};

#[test]
fn each_mistake_says_where_what_and_how_to_go_on() {
    let mut names: Vec<_> = std::fs::read_dir(here("tests/mistakes"))
        .expect("the golden files")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    names.sort();
    assert!(names.len() >= 30, "only {} golden files", names.len());
    let mut wrong = String::new();
    for path in names {
        let yaml = std::fs::read_to_string(&path).expect("a golden file");
        let mut system = System::new(&yaml).env("PORT_TEXT", "many").env("ENGINE", "mysql://db").engine("postgres");
        system
            .file("bad.json", "{\"name\": ")
            .file("list.json", "[]")
            .file("flow.json", r#"{"name": "other", "tasks": []}"#)
            .file("binary.json", "{}");
        // The first line may say how the file is loaded: `# --profile large --set a=b`.
        let words = yaml.lines().next().and_then(|line| line.strip_prefix("# --")).unwrap_or_default();
        for option in words.split(" --").filter(|option| !option.is_empty()) {
            system = match option.split_once(' ') {
                Some(("profile", name)) => system.profile(name),
                Some(("set", set)) => system.set(set),
                other => panic!("{other:?} in {}", path.display()),
            };
        }
        let text = match system.load() {
            Ok(_) => format!("{} has no mistake", path.display()),
            Err(_) => system.bad() + "\n",
        };
        for block in text.split("\n\n") {
            let head = block.lines().next().unwrap_or_default();
            assert!(block.contains("\nhelp: "), "{}: no help in\n{block}", path.display());
            let place = head.split(": ").next().unwrap_or_default();
            let numbers: Vec<_> = place.rsplit(':').take(2).map(str::parse::<usize>).collect();
            let good = numbers.iter().all(Result::is_ok);
            assert!(good || place.starts_with("environment"), "{}: no place in\n{block}", path.display());
        }
        if let Err(difference) = expect_file(&path.with_extension("txt"), &text) {
            wrong.push_str(&difference);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn all_mistakes_come_at_once() {
    let mistakes = System::new(
        "sistem: shop\n\
         services:\n  orders: { run: shop-orders, instances: 0 }\n\
         gateway:\n  listen: localhost:80\n  routes:\n    GET /x: nobody\n",
    )
    .load()
    .unwrap_err();
    let codes: Vec<_> = mistakes.0.iter().map(|mistake| (mistake.line, mistake.code.0)).collect();
    assert_eq!(codes, [(1, "MF005"), (3, "MF007"), (5, "MF007"), (7, "MF010")]);
}

#[test]
fn a_manifest_that_is_not_there() {
    let mut system = System::new("");
    system.options.file = "nowhere/ballet.yaml".into();
    let text = system.bad();
    assert!(text.starts_with("nowhere/ballet.yaml:1:1: the manifest cannot be read: no such file"), "{text}");
}

#[test]
fn no_text_makes_it_panic() {
    // Cuts and doubled characters of a real manifest: each must end in types or mistakes.
    let shop = include_str!("../shop.yaml");
    let mut tried = 0;
    for at in (0..shop.len()).step_by(37).filter(|at| shop.is_char_boundary(*at)) {
        for cut in [
            format!("{}{}", &shop[..at], "\n"),
            format!("{}{{{}", &shop[..at], &shop[at..]),
            format!("{}\t: ${{{}", &shop[..at], &shop[at..]),
        ] {
            let _ = System::new(&cut).load();
            tried += 1;
        }
    }
    assert!(tried > 300);
}
