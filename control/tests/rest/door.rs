//! Who may come in: tokens, clocks, hosts, origins.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use underpass_proto::key::Rule;
use underpass_proto::sas::{self, SasRule};
use underpass_proto::{HycoKeys, Key};

use crate::{Api, HOST, NOW, PAYROLL};

/// Refusals leave at multiples of this.
const QUANTUM: Duration = Duration::from_millis(5);

const NAMESPACE: &str = "/v1/namespace";

#[tokio::test]
async fn every_request_but_the_probes_needs_a_token() {
    let api = Api::new();
    for (method, path) in [
        ("GET", "/v1/hybridconnections"),
        ("GET", PAYROLL),
        ("PUT", PAYROLL),
        ("DELETE", PAYROLL),
        ("POST", "/v1/hybridconnections/payroll-sql/listKeys"),
        ("POST", "/v1/hybridconnections/payroll-sql/regenerateKey"),
        ("POST", "/v1/hybridconnections/payroll-sql/probe"),
        ("GET", NAMESPACE),
        ("GET", "/v1/status"),
    ] {
        let answer = api
            .send(
                method,
                path,
                r#"{"host": "a", "port": 1}"#,
                &[("host", HOST), ("content-type", "application/json")],
            )
            .await;
        answer.is_problem(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), "SharedAccessSignature");
    }
    for path in ["/healthz", "/openapi.json"] {
        assert_eq!(
            api.send("GET", path, "", &[("host", HOST)])
                .await
                .status
                .as_u16(),
            200
        );
    }
    api.send("GET", "/readyz", "", &[("host", HOST)])
        .await
        .is_problem(503, "not_ready");
    assert!(!api.path("connections/payroll-sql.toml").exists());
}

#[tokio::test]
async fn either_manage_key_holds_under_either_name() {
    let api = Api::new();
    let keys = api.manage();
    for key in [&keys.primary, keys.secondary.as_ref().unwrap()] {
        let token = token(key, SasRule::Manage, &format!("http://{HOST}/v1"), NOW + 1);
        for token in [
            token.clone(),
            token.replace("skn=manage", "skn=RootManageSharedAccessKey"),
        ] {
            assert_eq!(with(&api, NAMESPACE, &token).await.status.as_u16(), 200);
        }
    }
}

#[tokio::test]
async fn a_manage_key_that_cannot_be_read_is_the_servers_fault_and_says_what_to_do() {
    let api = Api::new();
    let token = api.token();
    let file = api.path("keys/_manage.toml");
    assert!(file.is_file(), "{}", file.display());
    std::fs::write(&file, "primary = 1").unwrap();
    let answer = with(&api, NAMESPACE, &token).await;
    let told = answer.is_problem(500, "internal").to_string();
    assert!(told.contains("keys/_manage.toml:1"), "{told}");
    assert!(told.contains("correct that file, or delete it"), "{told}");
    std::fs::remove_dir_all(api.path("keys")).unwrap();
    std::fs::write(api.path("keys"), "").unwrap();
    let answer = with(&api, NAMESPACE, &token).await;
    let told = answer.is_problem(500, "internal").to_string();
    assert!(told.contains("in a directory that it can write"), "{told}");
}

#[tokio::test]
async fn no_request_makes_manage_keys() {
    let api = Api::new();
    let stranger = Key::from_random([7; 32]);
    let uri = format!("http://{HOST}/unknown-sql");
    let file = api.path("keys/_manage.toml");
    let tokens = [
        api.token(),
        token(
            &stranger,
            SasRule::Manage,
            &format!("http://{HOST}/"),
            NOW + 1,
        ),
        token(&stranger, SasRule::Hyco(Rule::Listen), &uri, NOW + 1),
    ];
    std::fs::remove_file(&file).unwrap();
    for token in &tokens {
        let answer = with(&api, "/v1/hybridconnections/unknown-sql", token).await;
        assert!(!answer.status.is_success(), "{answer:?}");
        assert!(!file.exists(), "{token}");
    }
}

#[tokio::test]
async fn a_wrong_token_is_401_and_says_why() {
    let api = Api::new();
    api.create("payroll-sql").await;
    let primary = api.manage().primary;
    let stranger = Key::from_random([7; 32]);
    let all = format!("http://{HOST}/");
    for (token, why) in [
        (
            "Bearer abc".to_owned(),
            "a token is of the form SharedAccessSignature sr=…&sig=…&se=…&skn=…",
        ),
        (
            token(&stranger, SasRule::Manage, &all, NOW + 1),
            "the token is not signed with a key that is known here",
        ),
        (
            token(
                &stranger,
                SasRule::Hyco(Rule::Listen),
                &format!("http://{HOST}/payroll-sql"),
                NOW + 1,
            ),
            "the token is not signed with a key that is known here",
        ),
        (
            token(
                &primary,
                SasRule::Hyco(Rule::Listen),
                &format!("http://{HOST}/payroll-sql"),
                NOW + 1,
            ),
            "the token is not signed with a key that is known here",
        ),
        (
            token(&primary, SasRule::Manage, "http://127.0.0.1:8481/", NOW + 1),
            "the token is for another resource",
        ),
        (
            token(
                &primary,
                SasRule::Manage,
                &format!("http://{HOST}/v1/hybridconnections"),
                NOW + 1,
            ),
            "the token is for another resource",
        ),
        (
            token(&primary, SasRule::Manage, &all, NOW - 3 * 3_600),
            "the token expired 3 h ago by this machine's clock",
        ),
    ] {
        let problem = with(&api, NAMESPACE, &token)
            .await
            .is_problem(401, "unauthorized");
        assert_eq!(problem["errors"][0].as_str(), Some(why));
        let signature = token.split("sig=").nth(1).and_then(|rest| rest.get(..20));
        assert!(
            signature.is_none_or(|signature| !problem.to_string().contains(signature)),
            "{problem}"
        );
    }
}

#[tokio::test]
async fn a_token_is_good_below_its_resource_alone() {
    let api = Api::new();
    api.create("payroll-sql").await;
    api.create("payroll-sql2").await;
    let token = token(
        &api.manage().primary,
        SasRule::Manage,
        &format!("https://{HOST}{PAYROLL}"),
        NOW + 1,
    );
    assert_eq!(with(&api, PAYROLL, &token).await.status.as_u16(), 200);
    with(&api, "/v1/hybridconnections/payroll-sql2", &token)
        .await
        .is_problem(401, "unauthorized");
    with(&api, "/v1/hybridconnections", &token)
        .await
        .is_problem(401, "unauthorized");
}

#[tokio::test]
async fn a_right_key_without_the_right_is_403() {
    let api = Api::new();
    api.create("payroll-sql").await;
    let keys: HycoKeys =
        underpass::files::keys::load("keys", &api.path("keys/payroll-sql.toml")).unwrap();
    for rule in [Rule::Listen, Rule::Send] {
        let key = &keys.rule(rule).unwrap().primary;
        for uri in [
            format!("http://{HOST}/payroll-sql"),
            format!("http://{HOST}{PAYROLL}"),
            format!("http://{HOST}/"),
        ] {
            let problem = with(
                &api,
                PAYROLL,
                &token(key, SasRule::Hyco(rule), &uri, NOW + 1),
            )
            .await
            .is_problem(403, "forbidden");
            assert_eq!(
                problem["errors"][0],
                format!("a key of {rule} can {} and not manage", rule.right())
            );
        }
        with(
            &api,
            PAYROLL,
            &token(
                key,
                SasRule::Hyco(rule),
                &format!("http://{HOST}/payroll-sql"),
                NOW - 1,
            ),
        )
        .await
        .is_problem(401, "unauthorized");
        with(
            &api,
            PAYROLL,
            &token(key, SasRule::Manage, &format!("http://{HOST}/"), NOW + 1),
        )
        .await
        .is_problem(401, "unauthorized");
    }
}

#[tokio::test]
async fn a_clock_that_is_off_gives_the_right_answer_with_the_skew() {
    let api = Api::new();
    let token = api.token(); // Good for a minute.
    for (skew, told) in [
        (1, "1 s"),
        (90, "90 s"),
        (7_200, "2 h"),
        (40 * 86_400, "40 days"),
        (10 * 366 * 86_400, "10 years"),
    ] {
        api.time.store(NOW + 60 + skew, Ordering::SeqCst);
        let problem = with(&api, NAMESPACE, &token)
            .await
            .is_problem(401, "unauthorized");
        assert_eq!(
            problem["errors"][0],
            format!("the token expired {told} ago by this machine's clock")
        );
        assert!(
            problem["hint"]
                .as_str()
                .unwrap()
                .contains("compare the clocks"),
            "{problem}"
        );
    }
    for earlier in [1, 86_400, 10 * 366 * 86_400, NOW] {
        api.time.store(NOW - earlier, Ordering::SeqCst);
        assert_eq!(
            with(&api, NAMESPACE, &token).await.status.as_u16(),
            200,
            "a token of the future holds"
        );
    }
}

#[tokio::test]
async fn hosts_and_origins_of_others_are_refused_before_the_token_is_looked_at() {
    let api = Api::with(
        "public_address = \"relay.example.com:4433\"\n",
        underpass::store::Store::new,
    );
    for host in [
        "evil.example.com",
        "127.0.0.1.evil.example.com",
        "10.0.0.9:8480",
    ] {
        api.ask("GET", "/healthz", "", &[("host", host)])
            .await
            .is_problem(403, "host_not_allowed");
        api.send("GET", NAMESPACE, "", &[("host", host)])
            .await
            .is_problem(403, "host_not_allowed");
    }
    for host in ["localhost:8480", "relay.example.com:8480", HOST] {
        assert_eq!(
            api.send("GET", "/healthz", "", &[("host", host)])
                .await
                .status
                .as_u16(),
            200
        );
    }
    api.send("GET", "/healthz", "", &[])
        .await
        .is_problem(400, "malformed");
    api.send("GET", "/healthz", "", &[("host", HOST), ("host", "b")])
        .await
        .is_problem(400, "malformed");
    api.send(
        "GET",
        "http://evil.example.com/healthz",
        "",
        &[("host", HOST)],
    )
    .await
    .is_problem(400, "malformed");
    for origin in ["null", "http://evil.example.com", "http://127.0.0.1"] {
        api.ask(
            "PUT",
            PAYROLL,
            r#"{"host": "a", "port": 1}"#,
            &[("origin", origin)],
        )
        .await
        .is_problem(403, "origin_not_allowed");
    }
    assert_eq!(
        api.ask(
            "GET",
            NAMESPACE,
            "",
            &[("origin", &format!("http://{HOST}"))]
        )
        .await
        .status
        .as_u16(),
        200
    );
    assert!(!api.path("connections/payroll-sql.toml").exists());
}

#[tokio::test]
async fn a_flood_of_wrong_tokens_is_told_to_wait_and_a_right_one_still_passes() {
    let api = Api::new();
    let mut told_to_wait = 0;
    for _ in 0..200 {
        let answer = api
            .send(
                "GET",
                NAMESPACE,
                "",
                &[("host", HOST), ("authorization", "SharedAccessSignature x")],
            )
            .await;
        if answer.status.as_u16() == 429 {
            answer.is_problem(429, "too_many_failures");
            assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
            told_to_wait += 1;
        }
    }
    assert!(told_to_wait > 50, "{told_to_wait}");
    assert_eq!(api.get(NAMESPACE).await.status.as_u16(), 200);
}

#[tokio::test]
async fn of_a_header_that_counts_once_two_are_refused() {
    let api = Api::new();
    let token = api.token();
    let all = [("host", HOST), ("authorization", &token)];
    for twice in [
        ("authorization", token.as_str()),
        ("authorization", "SharedAccessSignature x"),
        ("host", HOST),
        ("content-type", "application/json"),
        ("origin", "http://127.0.0.1:8480"),
    ] {
        let mut headers = all.to_vec();
        headers.push(twice);
        if !all.iter().any(|(name, _)| *name == twice.0) {
            headers.push(twice);
        }
        let problem = api
            .send("GET", NAMESPACE, "", &headers)
            .await
            .is_problem(400, "malformed");
        let told = format!("the request has more than one {} header", twice.0);
        assert_eq!(problem["errors"][0].as_str(), Some(told.as_str()));
    }
    assert_eq!(
        api.send("GET", NAMESPACE, "", &all).await.status.as_u16(),
        200
    );
}

#[tokio::test]
async fn a_host_with_a_user_or_a_port_that_is_none_is_malformed() {
    let api = Api::new();
    for host in ["localhost:80@evil", "evil@localhost", "localhost:x", "::1"] {
        api.ask("GET", NAMESPACE, "", &[("host", host)])
            .await
            .is_problem(400, "malformed");
    }
}

#[tokio::test]
async fn the_lines_of_a_condition_are_one_list() {
    let api = Api::new();
    let etag = api.create("payroll-sql").await.header("etag").to_owned();
    for lines in [
        [("if-match", "\"0\""), ("if-match", &etag)],
        [("if-match", &etag), ("if-match", "\"0\"")],
    ] {
        let answer = api
            .ask("PUT", PAYROLL, r#"{"host": "sql01", "port": 1433}"#, &lines)
            .await;
        assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
    }
}

#[tokio::test]
async fn a_refusal_takes_the_same_time_whether_the_name_is_there_or_not() {
    let api = Api::new();
    api.create("payroll-sql").await;
    let forged = ["payroll-sql", "unknown-sql"].map(|name| {
        let uri = format!("http://{HOST}/{name}");
        let stranger = Key::from_random([7; 32]);
        let forged = token(&stranger, SasRule::Hyco(Rule::Listen), &uri, NOW + 1);
        (format!("/v1/hybridconnections/{name}"), forged)
    });
    let refused = async |(path, forged): &(String, String)| {
        let begun = Instant::now();
        let answer = with(&api, path, forged).await;
        let took = begun.elapsed();
        assert!(took >= QUANTUM, "{took:?}");
        (answer.status.as_u16(), took)
    };
    // In turn, so that a busy machine delays both alike.
    let mut took = [vec![], vec![]];
    for _ in 0..24 {
        for (of_name, times) in forged.iter().zip(&mut took) {
            let (status, time) = refused(of_name).await;
            assert_eq!(status, 401);
            times.push(time);
        }
    }
    let [known, unknown] = took.map(|mut times| {
        times.sort();
        times[times.len() / 2]
    });
    let difference = known.abs_diff(unknown);
    assert!(difference < QUANTUM / 2, "{known:?} and {unknown:?}");
    // Far faster than one more is permitted: the last ones of both are 429.
    for of_name in &forged {
        let mut last = 401;
        for _ in 0..100 {
            if last != 429 {
                (last, _) = refused(of_name).await;
            }
        }
        assert_eq!(last, 429);
    }
}

async fn with(api: &Api, path: &str, token: &str) -> crate::Answer {
    api.send("GET", path, "", &[("host", HOST), ("authorization", token)])
        .await
}

fn token(key: &Key, rule: SasRule, uri: &str, expires: u64) -> String {
    sas::make(uri, rule, key, expires).to_string()
}
