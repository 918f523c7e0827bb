//! Mistakes, and what a person is told of each.

const KEY: &str = "c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg=";

/// One mistake. In arguments, files and texts `DIR` stands for a fresh directory.
pub(crate) struct Case {
    pub(crate) arguments: &'static [&'static str],
    /// Path, mode, text.
    pub(crate) files: Vec<(&'static str, u32, String)>,
    pub(crate) exit: i32,
    pub(crate) told: String,
}

pub(crate) fn cases() -> Vec<Case> {
    let case = |arguments, exit, told: &str| Case {
        arguments,
        files: Vec::new(),
        exit,
        told: told.to_owned(),
    };
    let with = |case: Case, path, mode, text: &str| Case {
        files: vec![(path, mode, text.to_owned())],
        ..case
    };
    let string = format!(
        "Endpoint=hc://relay.example.com/payroll-sql;SharedAccessKeyName=defaultListener;SharedAccessKey={KEY}"
    );
    let no_file = |error: &str| {
        format!(
            "error: {error}\nhint: a process that was started with one connection string alone has no file: write agent.toml with `[[connect]]` and, below, `string_file = \"FILE\"`, start it with `underpass agent run --config agent.toml`, and name that file here\n"
        )
    };
    let agent = &[
        "agent",
        "run",
        "--connection-string-file",
        "DIR/a.connection",
    ];
    let config = &["agent", "run", "--config", "DIR/agent.toml"];
    let control = &["control", "--dir", "DIR", "--log", "error"];
    vec![
        case(
            &[
                "agent",
                "run",
                "--connection-string-file",
                "Endpoint=hc://relay.example.com/payroll-sql;SharedAccessKey=c2Vj",
            ],
            2,
            "error: an argument holds a connection string; everybody on this machine could read it, so it is not accepted\n\
             hint: put the connection string into a file that only you can read, and name that: `--connection-string-file FILE`; if others use this machine, replace the key\n",
        ),
        case(
            &["agent", "run", "--connection-string", KEY],
            2,
            "error: an argument holds what looks like a key; everybody on this machine could read it, so it is not accepted\n\
             hint: put the connection string into a file that only you can read, and name that: `--connection-string-file FILE`; if others use this machine, replace the key\n",
        ),
        case(
            &["agent", "run"],
            2,
            "error: this agent is given no connection string\n\
             hint: make one on the relay's machine (`underpass connection string NAME --role on-premises --out FILE`) and name its file: `--connection-string-file FILE`, or several in `--config agent.toml`\n",
        ),
        case(
            &["agent", "run", "--connection-string-file", "-"],
            3,
            "error: standard input: is empty; put there what `underpass connection string NAME --role on-premises` printed\n",
        ),
        case(
            &[
                "agent",
                "run",
                "--connection-string-credential",
                "a.connection",
            ],
            3,
            "error: there are no credentials here: CREDENTIALS_DIRECTORY is not set\n\
             hint: systemd sets it for a unit that has `LoadCredential=NAME:FILE`; outside of one, take `--connection-string-file FILE`\n",
        ),
        case(
            &["agent", "run", "--connection-string-credential", "../a"],
            2,
            "error: a credential is named without a path\n\
             hint: write the name that the unit's `LoadCredential=NAME:FILE` gives it\n",
        ),
        case(
            &["sender", "run"],
            2,
            "error: this sender is given no connection string\n\
             hint: make one on the relay's machine (`underpass connection string NAME --role application --out FILE`) and name its file: `--connection-string-file FILE`, or several in `--config sender.toml`\n",
        ),
        case(
            &[
                "sender",
                "run",
                "--connection-string-file",
                "DIR/a.connection",
                "--bind",
                "0.0.0.0:1433",
            ],
            2,
            "error: --bind 0.0.0.0:1433 is open to other machines, and a sender serves the applications of its own; bind to a loopback address, like 127.0.0.2:1433\n",
        ),
        with(
            case(
                &[
                    "sender",
                    "run",
                    "--connection-string-file",
                    "DIR/a.connection",
                ],
                3,
                "error: DIR/a.connection: is an on-premises string (defaultListener); a sender needs the one that `underpass connection string payroll-sql --role application` prints\n",
            ),
            "a.connection",
            0o600,
            &string,
        ),
        with(
            case(
                &[
                    "sender",
                    "run",
                    "--connection-string-file",
                    "DIR/a.connection",
                    "--hosts",
                    "write",
                    "--hosts-file",
                    "DIR/hosts",
                ],
                3,
                "error: cannot write DIR/hosts: No such file or directory (os error 2)\n\
                 hint: run the sender as a user that can write there, or take `--hosts print` and put the lines there by hand\n",
            ),
            "a.connection",
            0o600,
            &string.replace("defaultListener", "defaultSender"),
        ),
        with(
            case(
                &["sender", "run", "--config", "DIR/sender.toml"],
                3,
                "error: DIR/sender.toml:3: bind in [[connect]] cannot be \"sql01:1433\": invalid socket address syntax; write, for example, `bind = \"127.0.0.1:14330\"`\n\
                 error: DIR/sender.toml:4: unknown field \"weight\" in [[connect]]; known here are `string_file`, `bind`, `allow`\n",
            ),
            "sender.toml",
            0o644,
            "[[connect]]\nstring_file = \"a.connection\"\nbind = \"sql01:1433\"\nweight = 5\n",
        ),
        case(
            &["agent", "allow", "sql01.corp:1433"],
            2,
            &no_file("`--config FILE` is missing: the allow-list is in the agent's file"),
        ),
        case(
            &[
                "agent",
                "allow",
                "sql01.corp:1433",
                "--config",
                "DIR/agent.toml",
            ],
            3,
            &no_file("DIR/agent.toml: is not there; check the path"),
        ),
        with(
            case(
                &[
                    "agent",
                    "allow",
                    "sql01.corp:1433",
                    "--config",
                    "DIR/agent.toml",
                ],
                3,
                "error: DIR/agent.toml:1: unknown field \"alow\"; did you mean `allow`?\n",
            ),
            "agent.toml",
            0o644,
            "alow = []\n[[connect]]\nstring_file = \"a.connection\"\n",
        ),
        with(
            case(
                &[
                    "agent",
                    "allow",
                    "--remove",
                    "sql1.corp:1433",
                    "--config",
                    "DIR/agent.toml",
                ],
                1,
                "error: sql1.corp:1433 is not in that list of DIR/agent.toml\nhint: did you mean `sql01.corp:1433`?\n",
            ),
            "agent.toml",
            0o644,
            "allow = [\"sql01.corp:1433\"]\n[[connect]]\nstring_file = \"a.connection\"\n",
        ),
        case(
            &["control", "--dir", "DIR", "--log", "=="],
            2,
            "error: --log cannot be \"==\": invalid filter directive\n\
             hint: write a level, like --log debug, or a module and a level, like --log underpass_dataplane=debug\n",
        ),
        case(
            &[
                "connection",
                "create",
                "open-door",
                "--host",
                "a",
                "--port",
                "1",
                "--bind",
                "0.0.0.0:5000",
                "--dir",
                "DIR",
            ],
            2,
            "error: bind = \"0.0.0.0:5000\" is open to other machines; add `allow_from = [\"10.0.0.0/8\"]` with the networks that may connect, or bind to 127.0.0.1\n\
             hint: `--allow-from CIDR` says who may connect\n",
        ),
        case(
            &[
                "connection",
                "create",
                "payroll-sql",
                "--host",
                "a",
                "--port",
                "1",
                "--bind",
                "localhost:1433",
                "--dir",
                "DIR",
            ],
            2,
            "error: invalid value 'localhost:1433' for '--bind <ADDR>': write the address, too: 127.0.0.1:1433 for the applications of this machine\n\nFor more information, try '--help'.\n",
        ),
        case(
            &[
                "connection",
                "create",
                "payroll-sql",
                "--host",
                "a",
                "--port",
                "0",
                "--dir",
                "DIR",
            ],
            2,
            "error: invalid value '0' for '--port <PORT>': a number from 1 to 65535 is needed\n\nFor more information, try '--help'.\n",
        ),
        case(
            &["connection", "list", "--dir", "DIR"],
            0,
            "hint: DIR/connections has no hybrid connection; make one with `underpass connection create`, or name another directory with `--dir DIR`\n",
        ),
        with(
            case(
                &[
                    "connection",
                    "string",
                    "payroll-sql",
                    "--role",
                    "on-premises",
                    "--out",
                    "DIR/none/a",
                    "--dir",
                    "DIR",
                ],
                3,
                "error: cannot make DIR/none/a: No such file or directory (os error 2)\n\
                 hint: `--out` names a file in a directory that is there and that this user can write\n",
            ),
            "connections/payroll-sql.toml",
            0o644,
            "host = \"a\"\nport = 1\n",
        ),
        with(
            case(
                &[
                    "connection",
                    "create",
                    "PAYROLL-sql",
                    "--host",
                    "a",
                    "--port",
                    "1",
                    "--dir",
                    "DIR",
                ],
                3,
                "error: PAYROLL-sql exists already in DIR\nhint: edit connections/payroll-sql.toml, or choose another name\n",
            ),
            "connections/payroll-sql.toml",
            0o644,
            "",
        ),
        with(
            case(
                &[
                    "connection",
                    "create",
                    "archive-sql",
                    "--host",
                    "a",
                    "--port",
                    "1",
                    "--bind",
                    "127.0.0.1:5000",
                    "--dir",
                    "DIR",
                ],
                3,
                "error: the binding 127.0.0.1:5000 is taken by payroll-sql\nhint: choose another address or port for `--bind`\n",
            ),
            "connections/payroll-sql.toml",
            0o644,
            "host = \"a\"\nport = 1\nbind = \"127.0.0.1:5000\"",
        ),
        with(
            case(
                &[
                    "connection",
                    "string",
                    "payrol-sql",
                    "--role",
                    "on-premises",
                    "--dir",
                    "DIR",
                ],
                3,
                "error: there is no hybrid connection payrol-sql in DIR/connections\n\
                 hint: did you mean `payroll-sql`? `underpass connection list` shows all\n",
            ),
            "connections/payroll-sql.toml",
            0o644,
            "host = \"a\"\nport = 1",
        ),
        with(
            case(
                &["connection", "show", "payroll-sql", "--dir", "DIR"],
                3,
                "error: connections/payroll-sql.toml:2: port must be a whole number from 1 to 65535; write, for example, `port = 1433`\n",
            ),
            "connections/payroll-sql.toml",
            0o644,
            "host = \"a\"\nport = 0",
        ),
        with(
            case(
                control,
                3,
                "error: namespace.toml:1: unknown field \"nmae\"; did you mean `name`?\n",
            ),
            "namespace.toml",
            0o644,
            "nmae = \"contoso\"",
        ),
        with(
            case(
                control,
                3,
                "error: tls/certificate.pem: cannot be used: there is no `BEGIN CERTIFICATE` in it; put the right certificate (PEM) there, or delete it, and one is made for tls/key.pem\n",
            ),
            "tls/certificate.pem",
            0o644,
            "garbage",
        ),
        case(
            &["status", "--dir", "DIR"],
            5,
            "error: cannot ask control at DIR/run/control.sock: No such file or directory (os error 2)\n\
             hint: start it with `underpass up --dir DIR` or `underpass control --dir DIR`\n",
        ),
        case(
            agent,
            3,
            "error: DIR/a.connection: is not there; make it on the relay's machine with `underpass connection string NAME --role on-premises --out FILE`\n",
        ),
        with(
            case(
                agent,
                3,
                "error: DIR/a.connection: others can read it (mode 644), so it is not used; run `chmod 600 DIR/a.connection`, and replace its keys if somebody may have read them\n",
            ),
            "a.connection",
            0o644,
            &string,
        ),
        with(
            case(
                agent,
                3,
                "error: DIR/a.connection: is not a connection string: Endpoint is not of the form hc://host/name or sb://host/; put there what `underpass connection string NAME --role on-premises` printed\n",
            ),
            "a.connection",
            0o600,
            &string.replace("hc://", "https://"),
        ),
        with(
            case(
                agent,
                3,
                "error: DIR/a.connection: is an application's string (defaultSender); an agent needs the one that `underpass connection string payroll-sql --role on-premises` prints\n",
            ),
            "a.connection",
            0o600,
            &string.replace("defaultListener", "defaultSender"),
        ),
        with(
            case(
                agent,
                3,
                "error: this agent may dial nothing: the connection string names no Target, and there is no allow-list\n\
                 hint: write `allow = [\"host:port\"]` into agent.toml and start with `--config agent.toml`, or take a string with Target\n",
            ),
            "a.connection",
            0o600,
            &string,
        ),
        with(
            case(
                config,
                3,
                "error: DIR/agent.toml:1: allow cannot be \"sql01\": a port is missing: write host:port, host:low-high or host:*; write, for example, `allow = [\"sql01.corp.example:1433\"]`\n\
                 error: DIR/agent.toml:3: unknown field \"wieght\" in [[connect]]; did you mean `weight`?\n",
            ),
            "agent.toml",
            0o644,
            "allow = [\"sql01\"]\n[[connect]]\nwieght = 5\nstring_file = \"a.connection\"\n",
        ),
    ]
}
