#!/usr/bin/env bash
# Every test of the workspace, from a fresh machine: installs the servers that are missing, builds, runs, sums up.
# Rust must be there (rustup.rs); the rest comes from Debian's or Ubuntu's packages. Asks nothing. Ends with one line: ok or FAILED.
#
#   bash tests/run.sh               all tests
#   bash tests/run.sh TEXT…         only tests whose name holds TEXT
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Release code that compiles quickly: what users run, less the link-time optimisation.
readonly PROFILE=fast
# Limits, seconds: about 7 minutes and 13 minutes on two cores, with room for a machine that is busy.
readonly BUILD_WITHIN=1200 RUN_WITHIN=1500

# Programs that the tests start, and the package that brings each. PostgreSQL's server is looked up by its folder.
readonly PROGRAMS=(cc:gcc curl:curl nginx:nginx wrk:wrk iperf3:iperf3 redis-server:redis-server redis-cli:redis-tools
    sshd:openssh-server ssh:openssh-client ip:iproute2 nsenter:util-linux psql:postgresql-client pgbench:postgresql-contrib mariadbd:mariadb-server)

# Python packages that try the REST API.
readonly SCHEMATHESIS=(schemathesis==4.32.5 openapi-spec-validator==0.9.0)

# What cargo said, by what it ran; what there is to run, each one's options; when all must be done.
logs=
chosen=()
run_until=0

main() {
    logs=$(mktemp -d)
    trap 'status=$?; finish; [ "$status" -eq 0 ] || echo "tests/run.sh: FAILED"' EXIT
    trap 'exit 130' INT TERM
    local started=$SECONDS
    command -v cargo >/dev/null || die "cargo is not installed: see https://rustup.rs"
    install_missing
    install_schemathesis
    say "building (profile $PROFILE)"
    # Builds the binary too: tests of its crate need it, and all others find it beside them.
    within "$BUILD_WITHIN" cargo test --quiet --profile "$PROFILE" --workspace --no-run
    say "running, in two lanes"
    local status=0
    run_until=$((SECONDS + RUN_WITHIN))
    run_all "$@" || status=$?
    cargo_test documents --doc -- "$@" || status=$?
    cat "$logs/documents.log" || true
    sum_up "$status" $((SECONDS - started))
}

# Two lanes beside each other: most tests wait more than they work, and those that must be alone take turns by a lock (tests/src/turn.rs). Each lane takes the next
# executable when it has done with one, so that neither is left with all that takes long.
run_all() {
    local names status=0
    mapfile -t names < <(integration_tests | sort -u)
    chosen=("--lib --bins" "${names[@]/#/--test }")
    lane "$@" &
    local second=$!
    lane "$@" || status=$?
    wait "$second" || status=$?
    return "$status"
}

lane() {
    local nth status=0
    for nth in "${!chosen[@]}"; do
        mkdir "$logs/taken.$nth" 2>/dev/null || continue
        # shellcheck disable=SC2086 # Words of options.
        cargo_test "$nth" ${chosen[nth]} -- "$@" || status=$?
        flock "$logs" cat "$logs/$nth.log"
    done
    return "$status"
}

# Names of all test executables: a file of a crate's tests, or a folder with a main.rs.
integration_tests() {
    local folder
    while read -r folder; do
        [ -f "$folder/../Cargo.toml" ] || continue
        find "$folder" -mindepth 1 -maxdepth 1 -name '*.rs' -exec basename {} .rs \;
        find "$folder" -mindepth 2 -maxdepth 2 -name main.rs | sed 's|/main\.rs$||; s|.*/||'
    done < <(find . -name target -prune -o -type d -name tests -print)
}

# Runs some of the workspace's tests; what cargo says is kept.
cargo_test() {
    local name=$1 left=$((run_until - SECONDS))
    shift
    [ "$left" -gt 0 ] || return 124
    within "$left" cargo test --profile "$PROFILE" --workspace --no-fail-fast "$@" >"$logs/$name.log" 2>&1
}

# Ends what runs too long, and all that it started.
within() {
    timeout "$@" &
    local child=$! status=0
    touch "$logs/runs.$child"
    wait "$child" || status=$?
    rm -f "$logs/runs.$child"
    return "$status"
}

# Ends what still runs: it is in process groups of its own, which a terminal's Ctrl-C does not reach.
finish() {
    local run
    for run in "$logs"/runs.*; do
        [ -e "$run" ] && kill "${run##*.}" 2>/dev/null
    done
    rm -rf "$logs"
}

install_missing() {
    local missing=() pair
    for pair in "${PROGRAMS[@]}"; do
        has "${pair%%:*}" || missing+=("${pair#*:}")
    done
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || has initdb || missing+=(postgresql)
    [ ${#missing[@]} -eq 0 ] && return
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then as_root=(sudo -n); fi
    if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
        die "not installed: ${missing[*]} (Debian's names). Install them, as root: apt-get install -y ${missing[*]}"
    fi
    say "installing ${missing[*]}"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# Tries the REST API by its own document. Its test skips itself where this cannot be had.
install_schemathesis() {
    local place="${CARGO_TARGET_DIR:-$PWD/target}/schemathesis"
    [ -x "$place/bin/st" ] && [ -x "$place/bin/openapi-spec-validator" ] && return
    say "installing schemathesis"
    if ! python3 -m venv "$place" || ! timeout 300 "$place/bin/pip" install --quiet --disable-pip-version-check "${SCHEMATHESIS[@]}"; then
        rm -rf "$place"
        echo "skipped: schemathesis_finds_nothing_and_the_document_is_valid (needs python3 with venv, and: pip install ${SCHEMATHESIS[*]})"
    fi
}

# Servers live in folders that a user's path may not have.
has() {
    PATH="$PATH:/usr/sbin:/usr/local/sbin:/sbin" command -v "$1" >/dev/null
}

sum_up() {
    local status=$1 took=$2
    echo
    sed -n 's/^test \(.*\) \.\.\. FAILED$/failed: \1/p' "$logs"/*.log | sort -u
    awk -v took="$took" '
        /^test result:/ { for (i = 1; i < NF; i++) { if ($(i + 1) ~ /^passed/) passed += $i; if ($(i + 1) ~ /^failed/) failed += $i; if ($(i + 1) ~ /^ignored/) ignored += $i } }
        END { printf "%d passed, %d failed, %d ignored, %d s in all\n", passed, failed, ignored, took }' "$logs"/*.log
    [ "$status" -eq 124 ] && die "not done within $RUN_WITHIN s"
    [ "$status" -eq 0 ] || die "cargo test ended with $status"
    # A filter that fits nothing, or a run that found no tests, is no success.
    grep -q '^test .* \.\.\. ok$' "$logs"/*.log || die "no test ran"
    echo "tests/run.sh: ok"
}

say() { printf '\n== %s\n' "$*"; }

die() {
    echo "error: $*" >&2
    exit 1
}

main "$@"
