#!/usr/bin/env bash
# A release build guided by a profile: builds Underpass so that it counts what it runs, lets it carry bulk, requests, statements and new connections for
# a good minute, and builds it again by what was counted. About 20 minutes on two cores; the program is target/pgo/underpass.
#
# Needs LLVM's tools (tests/llvm.sh).
#
#   bench/pgo.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/llvm.sh
source tests/llvm.sh

DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}/pgo")
readonly DIR
# With a target named, flags are for the program alone, not for what runs while it is built.
TARGET=$(rustc -vV | sed -n 's/^host: //p')
readonly TARGET
readonly SECONDS_EACH=3 READY_WITHIN=20

main() {
    local profdata
    profdata=$(llvm profdata)
    cargo build --release -p underpass-loadtest
    local load=${CARGO_TARGET_DIR:-target}/release/underpass-loadtest
    load=$(realpath "$load")
    rm -rf "$DIR/counts"
    build "-Cprofile-generate=$DIR/counts"
    local io mtu
    for io in ring poll; do
        for mtu in 1452 65507; do
            train "$load" "$io" "$mtu"
        done
    done
    "$profdata" merge -o "$DIR/profile" "$DIR/counts"
    build "-Cprofile-use=$DIR/profile"
    cp "$DIR/$TARGET/release/underpass" "$DIR/underpass"
    echo "$DIR/underpass"
}

build() {
    RUSTFLAGS="${RUSTFLAGS:-} $1" CARGO_TARGET_DIR=$DIR cargo build --release --target "$TARGET" -p underpass
}

# Relay and agent as users run them, and load through them; both end by SIGTERM, for the counts are written at the end.
train() {
    local load=$1 io=$2 mtu=$3 underpass=$DIR/$TARGET/release/underpass work
    work=$(mktemp -d)
    echo "training: $io, datagrams of up to $mtu bytes"
    (
        cd "$work"
        mkdir underpass
        local quic tcp endpoint
        read -r quic tcp endpoint < <(free_ports)
        printf 'public_address = "127.0.0.1:%s"\nlisten = "127.0.0.1:%s"\n' "$quic" "$quic" >underpass/namespace.toml
        "$underpass" connection create training --host 127.0.0.1 --port "$endpoint" --bind "127.0.0.1:$tcp" >told
        "$underpass" connection string training --role on-premises --out training.connection >>told
        "$underpass" up --io "$io" --mtu-max "$mtu" >>told 2>&1 &
        local up=$!
        "$underpass" agent run --connection-string-file training.connection --io "$io" --mtu-max "$mtu" >>told 2>&1 &
        local agent=$!
        trap 'kill -TERM "$agent" "$up" 2>/dev/null || true; wait' EXIT
        ready
        local scenario
        for scenario in bulk http-like sql-like churn ping-pong mix; do
            "$load" run "$scenario" --duration "${SECONDS_EACH}s" --endpoint="127.0.0.1:$endpoint" --target "127.0.0.1:$tcp" >>told 2>&1 ||
                { cat told >&2; exit 1; }
        done
    )
    rm -rf "$work"
}

ready() {
    local until=$((SECONDS + READY_WITHIN))
    # A listener is there, whether or not anybody answers at the endpoint.
    until "$underpass" status training --json 2>/dev/null | grep -q '"listeners": *[1-9]'; do
        [ "$SECONDS" -lt "$until" ] || { cat told >&2; exit 1; }
        sleep 0.1
    done
}

# Three ports that nobody has.
free_ports() {
    python3 -c 'import socket
held = [socket.socket() for _ in range(3)]
for one in held: one.bind(("127.0.0.1", 0))
print(*[one.getsockname()[1] for one in held])'
}

main "$@"
