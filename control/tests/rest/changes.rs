//! Making, changing, deleting; conditions; keys; and a disk that does not take it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use underpass::store::Store;
use underpass_proto::ConnectionString;

use crate::failing::{Failing, WAYS};
use crate::{Api, PAYROLL};

#[tokio::test]
async fn one_is_made_shown_listed_changed_and_deleted() {
    let api = Api::new();
    let made = api.create("payroll-sql").await;
    assert_eq!(made.header("location"), PAYROLL);
    let shown = api.get(PAYROLL).await;
    assert_eq!(
        (shown.status.as_u16(), shown.header("etag")),
        (200, made.header("etag"))
    );
    let one = shown.json();
    assert_eq!(
        (
            one["endpoint"].as_str(),
            one["state"]["health"].as_str(),
            one["usage"]["month"].as_str()
        ),
        (Some("sql01:1433"), Some("unknown"), Some("2026-11"))
    );
    assert_eq!(one["etag"].as_str(), Some(made.header("etag")));

    fs::write(
        api.path("connections/payroll-sql.toml"),
        "# ask Ann\nhost = \"sql01\" # old\nport = 1433\n",
    )
    .unwrap();
    let changed = api.ask("PUT", PAYROLL, r#"{"host": "sql02", "port": 1433, "bind": "127.0.0.1:5000", "probe": false, "flows_max": 7}"#, &[]).await;
    assert_eq!(
        (changed.status.as_u16(), changed.json()["bind"].as_str()),
        (200, Some("127.0.0.1:5000"))
    );
    assert_eq!(
        fs::read_to_string(api.path("connections/payroll-sql.toml")).unwrap(),
        "# ask Ann\nhost = \"sql02\" # old\nport = 1433\nbind = \"127.0.0.1:5000\"\nprobe = \"off\"\n\n[limits]\nflows_max = 7\n"
    );
    let list = api.get("/v1/hybridconnections").await.json();
    assert_eq!(list["value"].as_array().unwrap().len(), 1);
    assert_eq!(list["value"][0], api.get(PAYROLL).await.json());

    assert_eq!(
        api.ask("DELETE", PAYROLL, "", &[]).await.status.as_u16(),
        204
    );
    api.get(PAYROLL).await.is_problem(404, "unknown_name");
    api.ask("DELETE", PAYROLL, "", &[])
        .await
        .is_problem(404, "unknown_name");
    assert!(!api.path("keys/payroll-sql.toml").exists());
}

#[tokio::test]
async fn what_was_read_can_be_put_back_and_true_of_older_clients_is_auto() {
    let api = Api::new();
    api.create("payroll-sql").await;
    let file = api.path("connections/payroll-sql.toml");
    for (probe, stays) in [
        ("\"on\"", "on"),
        ("\"off\"", "off"),
        ("\"auto\"", "auto"),
        ("false", "off"),
        ("true", "auto"),
        ("null", "auto"),
    ] {
        let wanted = format!(r#"{{"host": "sql01", "port": 1433, "probe": {probe}}}"#);
        let put = api.ask("PUT", PAYROLL, &wanted, &[]).await.json();
        assert_eq!(put["probe"], stays, "{probe}");
        let mut shown = api.get(PAYROLL).await.json();
        assert_eq!(shown["probe"], stays, "{probe}");
        let fields = shown.as_object_mut().unwrap();
        fields.retain(|field, _| {
            let of_requests = [
                "host",
                "port",
                "bind",
                "allow_from",
                "probe",
                "listeners_max",
                "flows_max",
            ];
            of_requests.contains(&field.as_str())
        });
        let before = fs::read_to_string(&file).unwrap();
        let back = api.ask("PUT", PAYROLL, &shown.to_string(), &[]).await;
        assert_eq!(back.json()["probe"], stays, "{back:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), before, "{probe}");
    }
    let wanted = r#"{"host": "sql01", "port": 1433, "probe": "yes"}"#;
    let refused = api.ask("PUT", PAYROLL, wanted, &[]).await;
    let refused = refused.is_problem(400, "malformed").to_string();
    assert!(refused.contains("expected \\\"auto\\\", "), "{refused}");
}

#[tokio::test]
async fn conditions_hold() {
    let api = Api::new();
    let wanted = r#"{"host": "sql02", "port": 1433}"#;
    let first = api.create("payroll-sql").await;
    let tag = first.header("etag");
    api.ask("PUT", PAYROLL, wanted, &[("if-none-match", "*")])
        .await
        .is_problem(412, "exists");
    assert_eq!(
        api.ask("PUT", PAYROLL, wanted, &[("if-match", tag)])
            .await
            .status
            .as_u16(),
        200
    );
    api.ask("PUT", PAYROLL, wanted, &[("if-match", tag)])
        .await
        .is_problem(412, "changed");
    api.ask("DELETE", PAYROLL, "", &[("if-match", tag)])
        .await
        .is_problem(412, "changed");
    api.ask(
        "PUT",
        "/v1/hybridconnections/archive-sql",
        wanted,
        &[("if-match", "*")],
    )
    .await
    .is_problem(412, "changed");
    api.ask(
        "PUT",
        PAYROLL,
        wanted,
        &[("if-match", "*"), ("if-none-match", "*")],
    )
    .await
    .is_problem(412, "exists");

    let new = api.get(PAYROLL).await;
    api.ask(
        "PUT",
        PAYROLL,
        wanted,
        &[("if-none-match", new.header("etag"))],
    )
    .await
    .is_problem(412, "changed");
    assert_eq!(
        api.ask("PUT", PAYROLL, wanted, &[("if-none-match", tag)])
            .await
            .status
            .as_u16(),
        200
    );
    let unchanged = api
        .ask("GET", PAYROLL, "", &[("if-none-match", new.header("etag"))])
        .await;
    assert_eq!(
        (unchanged.status.as_u16(), unchanged.text.as_str()),
        (304, "")
    );
    assert_eq!(
        api.ask("GET", PAYROLL, "", &[("if-none-match", tag)])
            .await
            .status
            .as_u16(),
        200
    );
}

#[tokio::test]
async fn what_is_not_as_described_is_told_with_its_place() {
    let api = Api::new();
    for (body, why) in [
        ("{", "the body is not JSON (line 1, column 1)"),
        (
            r#"{"host": "a b", "port": 1}"#,
            "host: a host name has letters, digits, hyphens and dots only",
        ),
        (
            r#"{"host": "a", "port": 0}"#,
            "port: a number from 1 to 65535 is needed",
        ),
        (
            r#"{"host": "a", "port": 70000.0}"#,
            "port: a number from 1 to 65535 is needed",
        ),
        (
            r#"{"host": "a", "port": 1, "bind": "localhost:1"}"#,
            "bind: write the address, too: 127.0.0.1:1 for the applications of this machine",
        ),
        (
            r#"{"host": "a", "port": 1, "allow_from": ["x"]}"#,
            "allow_from: it is neither a network like 10.0.0.0/8 nor an address like 10.1.2.3",
        ),
        (
            r#"{"host": "https://db01.corp:1433", "port": 1}"#,
            "host: it has more than a host in it; write db01.corp alone, and 1433 as port",
        ),
        (
            r#"{"host": "a", "port": 1, "flows_max": 0}"#,
            "flows_max: a number from 1 to 10000000 is needed",
        ),
        (
            r#"{"host": "a", "port": 1, "prot": 1}"#,
            "unknown field `prot`, expected one of `host`, `port`, `bind`, `allow_from`, `probe`, `listeners_max`, `flows_max` at line 1 column 31",
        ),
    ] {
        let problem = api
            .ask("PUT", PAYROLL, body, &[])
            .await
            .is_problem(400, "malformed");
        assert_eq!(problem["errors"][0].as_str(), Some(why), "{body}");
    }
    let nowhere = api
        .ask(
            "PUT",
            PAYROLL,
            r#"{"host": "169.254.169.254", "port": 80}"#,
            &[],
        )
        .await
        .is_problem(422, "invalid");
    assert!(
        nowhere["detail"]
            .as_str()
            .unwrap()
            .starts_with("host: no agent ever dials 169.254.169.254: "),
        "{nowhere}"
    );
    let open = api
        .ask(
            "PUT",
            PAYROLL,
            r#"{"host": "a", "port": 1, "bind": "0.0.0.0:5000"}"#,
            &[],
        )
        .await
        .is_problem(422, "invalid");
    assert!(
        open["errors"][0]
            .as_str()
            .unwrap()
            .contains("is open to other machines"),
        "{open}"
    );
    for name in [
        "short",
        "9payroll",
        "payroll-",
        "pay%20roll",
        "payroll_sql",
        "..%2F..%2Fetc",
    ] {
        api.get(&format!("/v1/hybridconnections/{name}"))
            .await
            .is_problem(400, "malformed");
    }
    api.ask("PUT", PAYROLL, "{}", &[("content-type", "text/plain")])
        .await
        .is_problem(415, "unsupported_media_type");
    api.ask("PUT", PAYROLL, &" ".repeat(65 * 1024), &[])
        .await
        .is_problem(413, "too_large");
    api.get("/v1/nothing").await.is_problem(404, "not_found");
    let wrong = api.ask("PATCH", PAYROLL, "", &[]).await;
    wrong.is_problem(405, "method_not_allowed");
    assert!(wrong.header("allow").contains("PUT"), "{wrong:?}");
    assert_eq!(fs::read_dir(api.path("connections")).unwrap().count(), 0);
}

#[tokio::test]
async fn contradictions_and_faulty_files_are_told() {
    let api = Api::new();
    let at_5000 = r#"{"host": "a", "port": 1, "bind": "127.0.0.1:5000"}"#;
    api.ask("PUT", PAYROLL, at_5000, &[]).await;
    api.ask("PUT", "/v1/hybridconnections/archive-sql", at_5000, &[])
        .await
        .is_problem(409, "binding_taken");
    fs::write(api.path("connections/payroll-sql.toml"), "host = 3").unwrap();
    let problem = api
        .ask("PUT", PAYROLL, at_5000, &[])
        .await
        .is_problem(409, "faulty_file");
    assert!(
        problem["errors"][0]
            .as_str()
            .unwrap()
            .starts_with("connections/payroll-sql.toml:1: "),
        "{problem}"
    );
    let shown = api.get(PAYROLL).await.json();
    assert_eq!(
        (
            shown["endpoint"].as_str(),
            shown["faults"].as_array().unwrap().len()
        ),
        (None, 2)
    );
}

#[tokio::test]
async fn creation_beyond_the_edition_is_refused() {
    let api = Api::with("edition = \"free\"\n", Store::new);
    for number in 1..=5 {
        api.create(&format!("payroll-{number}")).await;
    }
    let sixth = api
        .ask(
            "PUT",
            "/v1/hybridconnections/payroll-6",
            r#"{"host": "a", "port": 1}"#,
            &[],
        )
        .await;
    let problem = sixth.is_problem(403, "edition_limit");
    assert_eq!(
        problem["errors"][0],
        "the limit of 5 hybrid connections (edition free) is reached: there are 5"
    );
    let namespace = api.get("/v1/namespace").await.json();
    assert_eq!(
        (
            namespace["edition"].as_str(),
            namespace["limits"]["hybrid_connections"].as_u64(),
            namespace["hybrid_connections"].as_u64()
        ),
        (Some("free"), Some(5), Some(5))
    );
}

#[tokio::test]
async fn keys_are_listed_with_their_strings_and_made_anew_one_by_one_and_both_is_audited() {
    let api = Api::new();
    api.create("payroll-sql").await;
    let list = async || {
        let answer = api
            .ask("POST", &format!("{PAYROLL}/listKeys"), "", &[])
            .await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("cache-control")),
            (200, "no-store")
        );
        answer.json()
    };
    let before = list().await;
    for (rule, name) in [("listen", "defaultListener"), ("send", "defaultSender")] {
        for which in ["primary", "secondary"] {
            let string: ConnectionString = before[rule][format!("{which}_connection_string")]
                .as_str()
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(
                (string.rule.name(), Some(string.key.expose())),
                (name, before[rule][format!("{which}_key")].as_str())
            );
            assert_eq!(
                (string.name.as_str(), string.target.is_some()),
                ("payroll-sql", true)
            );
        }
    }
    let made = api
        .ask(
            "POST",
            &format!("{PAYROLL}/regenerateKey"),
            r#"{"rule": "send", "key": "secondary"}"#,
            &[],
        )
        .await;
    assert_eq!(
        (made.status.as_u16(), made.text.as_str()),
        (204, ""),
        "keys are told by listKeys alone"
    );
    let after = list().await;
    assert_eq!(
        (&after["listen"], &after["send"]["primary_key"]),
        (&before["listen"], &before["send"]["primary_key"])
    );
    assert_ne!(
        after["send"]["secondary_key"],
        before["send"]["secondary_key"]
    );
    api.ask(
        "POST",
        &format!("{PAYROLL}/regenerateKey"),
        r#"{"rule": "manage", "key": "primary"}"#,
        &[],
    )
    .await
    .is_problem(400, "malformed");
    api.ask(
        "POST",
        "/v1/hybridconnections/archive-sql/listKeys",
        "",
        &[],
    )
    .await
    .is_problem(404, "unknown_name");

    let audit = fs::read_to_string(api.path("run/audit.log")).unwrap();
    let lines: Vec<serde_json::Value> = audit
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            (
                line["action"].as_str().unwrap(),
                line["key"].as_str(),
                line["name"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("listKeys", None, "payroll-sql"),
            ("regenerateKey", Some("send secondary"), "payroll-sql"),
            ("listKeys", None, "payroll-sql")
        ]
    );
    assert_eq!(
        (
            lines[0]["time"].as_str(),
            lines[0]["rule"].as_str(),
            lines[0]["remote"].as_str()
        ),
        (
            Some("2026-11-23T00:00:00Z"),
            Some("manage"),
            Some("127.0.0.1:5")
        )
    );
    let keys = fs::read_to_string(api.path("keys/payroll-sql.toml")).unwrap();
    let secrets: Vec<&str> = keys
        .lines()
        .filter_map(|line| line.split('"').nth(1))
        .collect();
    assert_eq!(secrets.len(), 4);
    let others = [
        audit,
        api.get(PAYROLL).await.text,
        api.get("/v1/hybridconnections").await.text,
        api.get("/v1/status").await.text,
        api.get("/v1/namespace").await.text,
    ];
    assert!(
        secrets
            .iter()
            .all(|secret| others.iter().all(|other| !other.contains(secret)))
    );
    assert_eq!(
        fs::metadata(api.path("run/audit.log"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
}

#[tokio::test]
async fn keys_that_cannot_be_audited_are_not_told() {
    let api = Api::new();
    api.create("payroll-sql").await;
    fs::create_dir(api.path("run/audit.log")).unwrap();
    let before = fs::read_to_string(api.path("keys/payroll-sql.toml")).unwrap();
    api.ask("POST", &format!("{PAYROLL}/listKeys"), "", &[])
        .await
        .is_problem(507, "storage");
    api.ask(
        "POST",
        &format!("{PAYROLL}/regenerateKey"),
        r#"{"rule": "send", "key": "secondary"}"#,
        &[],
    )
    .await
    .is_problem(507, "storage");
    assert_eq!(
        fs::read_to_string(api.path("keys/payroll-sql.toml")).unwrap(),
        before
    );
}

#[tokio::test]
async fn a_disk_that_does_not_take_it_is_507_at_each_step() {
    for way in WAYS {
        let mut steps = 0;
        for step in 0.. {
            let failing = Arc::new(Failing::new(step, way));
            let api = Api::with("", |directory| Store::on(directory, failing.clone()));
            let put = api
                .ask("PUT", PAYROLL, r#"{"host": "sql01", "port": 1433}"#, &[])
                .await;
            if put.status.as_u16() == 201 {
                assert!(!failing.has_failed(), "{way:?} at {step}");
                break;
            }
            let problem = put.is_problem(507, "storage");
            assert!(
                problem["errors"][0]
                    .as_str()
                    .unwrap()
                    .starts_with("cannot write "),
                "{problem}"
            );
            failing.reboot();
            let left = fs::read_to_string(api.path("connections/payroll-sql.toml")).ok();
            assert!(
                left.is_none_or(|left| left == "host = \"sql01\"\nport = 1433\n"),
                "{way:?} at {step}"
            );
            steps += 1;
        }
        assert!(steps >= 8, "{way:?}: {steps}");
    }
}

#[tokio::test]
async fn a_probe_needs_a_relay() {
    let api = Api::new();
    api.ask("POST", &format!("{PAYROLL}/probe"), "", &[])
        .await
        .is_problem(404, "unknown_name");
    api.create("payroll-sql").await;
    api.ask("POST", &format!("{PAYROLL}/probe"), "", &[])
        .await
        .is_problem(503, "no_relay");
}
