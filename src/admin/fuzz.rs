//! Fuzz body of the orders at the admin socket: their JSON bodies.
//!
//! The first byte of an input chooses the order, and whether the body is declared as JSON; the rest is the body. Example:
//! `1{"rate":10}` is a drain.

use super::orders::{DrainArguments, UpgradeArguments, check_undrain};
use super::restarts::Target;
use bytes::Bytes;
use moorline_net::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use moorline_net::http::{Method, Request, Uri};
use std::time::Duration;

/// `gateway.alternates`.
const ALTERNATES: [&str; 2] = ["gw2.example:7000", "127.0.0.1:7000"];

/// Reads an order: it is refused, or within the limits that the settings have, too.
pub fn body(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let mut headers = HeaderMap::new();
    let is_declared = kind & 0x80 == 0;
    if is_declared {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let uri = Uri::from_static("/v1/fuzz");
    let request = Request::new(Method::POST, uri, headers, Bytes::copy_from_slice(rest));
    let is_taken = match kind % 3 {
        0 => UpgradeArguments::of(&request).is_ok_and(|order| {
            let seconds = Duration::from_secs(1)..=Duration::from_secs(600);
            assert!(order.timeout.is_none_or(|timeout| seconds.contains(&timeout)), "{order:?}");
            assert!(!matches!(order.target, Target::File(path) if !path.is_absolute()));
            true
        }),
        1 => DrainArguments::of(&request, &ALTERNATES.map(str::to_owned)).is_ok_and(|wish| {
            assert!(
                wish.redirect.as_deref().is_none_or(|redirect| ALTERNATES.contains(&redirect)),
                "{wish:?}"
            );
            assert!(wish.grace.is_none_or(|grace| grace <= Duration::from_secs(3_600)));
            assert!(wish.rate.is_none_or(|rate| (1..=1_000_000).contains(&rate)));
            true
        }),
        _ => check_undrain(&request).is_ok(),
    };
    let is_object = matches!(rest.trim_ascii().first(), None | Some(b'{'));
    assert!(!is_taken || is_declared && is_object, "an order that is not a JSON object was taken");
}

#[cfg(test)]
fn seeds() -> Vec<Vec<u8>> {
    let bodies = [
        "0",
        "0{}",
        r#"0{"binary":"/usr/bin/moorline","timeout_ms":60000,"dry_run":true}"#,
        r#"0{"binary":"moorline"}"#,
        r#"0{"timeout_ms":999999999999}"#,
        r#"0["/usr/bin/moorline",60000,true]"#,
        r#"1{"grace_ms":30000,"rate":10,"redirect":"gw2.example:7000"}"#,
        r#"1{"redirect":"evil.example:1"}"#,
        r#"1{"rate":0}"#,
        "1[1000,10,null]",
        "2{}",
        r#"2{"why":1}"#,
        "2[]",
    ];
    bodies.iter().map(|body| body.as_bytes().to_vec()).collect()
}

#[test]
fn every_input_of_the_corpus_passes() {
    use std::{env, fs};
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/admin");
    let seeds = seeds();
    if env::var("FUZZ_SEEDS").is_ok_and(|value| value == "write") {
        fs::create_dir_all(&folder).expect("the folder");
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:03}")), seed).expect("a file");
        }
    }
    seeds.iter().for_each(|seed| (0..=seed.len()).for_each(|cut| body(&seed[..cut])));
    let mut count = 0;
    for entry in fs::read_dir(folder).expect("the folder is committed") {
        body(&fs::read(entry.expect("an entry").path()).expect("a file"));
        count += 1;
    }
    assert!(count >= 10, "{count} inputs");
}
