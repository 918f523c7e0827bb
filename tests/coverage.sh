#!/usr/bin/env bash
# How much of dataplane/ and control/ the quick tests run: lines, in percent, and of the parts that must be whole (who may come in, frames, states of a
# session) each by itself. Tests that start real servers are left out, so the figures are a lower bound. About twenty minutes on two cores.
#
# Needs LLVM's tools (tests/llvm.sh).
#
#   tests/coverage.sh            the table
#   tests/coverage.sh --files    every file, too
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/llvm.sh
source tests/llvm.sh

readonly DIR=${CARGO_TARGET_DIR:-$PWD/target}/coverage
# Quick ones: the crates' own, and those whose peers are in the test.
readonly PACKAGES=(-p underpass-proto -p underpass-dataplane -p underpass -p underpass-tests)
readonly TESTS=(--lib --test properties --test rules --test words --test wire_example --test io --test interop --test not_authorised --test publish --test store --test rest --test mutations
    --test command_line --test up --test definitions --test drain --test sender --test health)

# What each figure is about: a name, and what its files' paths hold.
readonly PARTS=(
    'dataplane|dataplane/'
    'control|control/src/'
    'auth|proto/src/(proof|key|sas|allow)\.rs|relay/peers/registrations\.rs|rest/door\.rs'
    'frames|proto/src/(wire/|feed\.rs|code\.rs)'
    'session states|src/(link/|relay/peers|relay/states\.rs|relay/roster\.rs|relay/listeners|quic/(admission|newcomers)|control_stream\.rs)'
)

main() {
    local profdata cov
    profdata=$(llvm profdata)
    cov=$(llvm cov)
    rm -rf "$DIR/profiles"
    # Counters that are in the file all the time (%c): most processes that tests start end by a signal.
    export CARGO_TARGET_DIR=$DIR LLVM_PROFILE_FILE="$DIR/profiles/%p-%m%c.profraw"
    export RUSTFLAGS="-Cinstrument-coverage -Cllvm-args=-runtime-counter-relocation"
    # The processes that tests start are instrumented too.
    cargo build --quiet "${PACKAGES[@]}"
    local told status=0
    told=$(mktemp)
    cargo test --no-fail-fast "${PACKAGES[@]}" "${TESTS[@]}" >"$told" 2>&1 || status=$?
    grep -E '^test .*FAILED|^test result' "$told" | sort | uniq -c | sort -rn | head -40
    "$profdata" merge --sparse --failure-mode=all -o "$DIR/merged.profdata" "$DIR"/profiles/*.profraw
    local objects=()
    while read -r binary; do
        objects+=(--object "$binary")
    done < <(sed -n 's/^ *Running .*(\(.*\))$/\1/p' "$told")
    "$cov" export --summary-only --instr-profile="$DIR/merged.profdata" "$DIR/debug/underpass" "${objects[@]}" >"$DIR/coverage.json"
    python3 - "$DIR/coverage.json" "$PWD" "${1:-}" "${PARTS[@]}" <<'PYTHON'
import json, re, sys
report, root, files, *parts = sys.argv[1:]
found = {}
for file in json.load(open(report))["data"][0]["files"]:
    path = file["filename"].removeprefix(root + "/")
    if path.startswith(("dataplane/", "control/")) and "/tests" not in path and "/examples/" not in path:
        lines = file["summary"]["lines"]
        found[path] = (lines["covered"], lines["count"])
def percent(pairs):
    covered, count = (sum(column) for column in zip(*pairs)) if pairs else (0, 0)
    return f"{100 * covered / max(count, 1):5.1f} %  {covered:6} of {count:6} lines"
for part in parts:
    name, pattern = part.split("|", 1)
    print(f"{name:16}", percent([pair for path, pair in found.items() if re.search(pattern, path)]))
if files:
    for path, pair in sorted(found.items(), key=lambda entry: entry[1][0] / max(entry[1][1], 1)):
        print(percent([pair]), path)
PYTHON
    return "$status"
}

main "$@"
