#!/usr/bin/env bash
# How much of dataplane/ and control/ the tests run: lines, in percent, and of the parts that must be whole (who may come in, frames, states of a
# session) each by itself. The tests' own lines count for nothing; neither does a line that ends in `LCOV_EXCL_LINE: why`, which nothing can bring
# about (`--excluded` tells them). About twenty minutes on two cores, half of them the build.
#
# Needs LLVM's tools (tests/llvm.sh), and the servers that tests/run.sh installs.
#
#   tests/coverage.sh                 the table
#   tests/coverage.sh --files         every file, too
#   tests/coverage.sh --lines TEXT    which lines of files whose path holds TEXT nothing ran, too
#   tests/coverage.sh --excluded      which lines cannot run, and why
#   tests/coverage.sh --again …       of the last run, without running anything
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/llvm.sh
source tests/llvm.sh

readonly DIR=${CARGO_TARGET_DIR:-$PWD/target}/coverage
readonly PACKAGES=(-p underpass-proto -p underpass-dataplane -p underpass -p underpass-tests)
# Two lanes beside each other, as in tests/run.sh. Left out: what takes minutes and comes nowhere else (fidelity_suite, nginx).
readonly LANE_A=(--lib --bins --test properties --test rules --test words --test wire_example --test io --test interop --test not_authorised --test publish --test store
    --test rest --test mutations --test editions --test up --test postgres --test bad_input --test faults --test demo --test copies)
readonly LANE_B=(--test command_line --test definitions --test health --test sender --test sender_command --test ssh --test rotation --test drain --test complaints
    --test redis --test slow_readers --test elsewhere --test walkthrough --test canary --test fidelity --test ipv6)

# What each figure is about: a name, and what its files' paths hold.
readonly PARTS=(
    'dataplane|dataplane/'
    'control|control/src/'
    'auth|proto/src/(proof|key|sas|allow)\.rs|relay/peers/registrations\.rs|rest/door\.rs'
    'frames|proto/src/(wire/|feed\.rs|code\.rs)'
    'session states|src/(link/|relay/peers|relay/states\.rs|relay/roster\.rs|relay/listeners|quic/(admission|newcomers)|control_stream\.rs)'
)

main() {
    if [ "${1:-}" = --excluded ]; then
        grep -rn --include='*.rs' 'LCOV_EXCL_LINE: ' dataplane control/src
        return
    fi
    if [ "${1:-}" = --again ]; then
        shift
        report "$@"
        return
    fi
    local status=0
    mkdir -p "$DIR"
    rm -rf "$DIR/profiles" "$DIR"/lane.*
    # Counters that are in the file all the time (%c), for most processes that tests start end by a signal; four files for each binary (%4m), for there are
    # ten thousand such processes, of 4 MB each.
    (
        export CARGO_TARGET_DIR=$DIR LLVM_PROFILE_FILE="$DIR/profiles/%4m%c.profraw"
        export RUSTFLAGS="-Cinstrument-coverage -Cllvm-args=-runtime-counter-relocation"
        cargo test --quiet --profile fast --no-run "${PACKAGES[@]}" "${LANE_A[@]}" "${LANE_B[@]}" || exit 1
        lane A "${LANE_A[@]}" &
        local other=$!
        lane B "${LANE_B[@]}" || status=$?
        wait "$other" || status=$?
        exit "$status"
    ) || status=$?
    sed -n 's/^test \(.*\) \.\.\. FAILED$/failed: \1/p' "$DIR"/lane.* | sort -u
    "$(llvm profdata)" merge --sparse --failure-mode=all -o "$DIR/merged.profdata" "$DIR"/profiles/*.profraw
    report "$@"
    return "$status"
}

lane() {
    local name=$1
    shift
    cargo test --profile fast --no-fail-fast "${PACKAGES[@]}" "$@" >"$DIR/lane.$name" 2>&1
}

# What was run, by file and part.
report() {
    local objects=() cov
    cov=$(llvm cov)
    while read -r binary; do
        objects+=(--object "$binary")
    done < <(sed -n 's/^ *Running .*(\(.*\))$/\1/p' "$DIR"/lane.*)
    "$cov" export --format=lcov --instr-profile="$DIR/merged.profdata" "$DIR/fast/underpass" "${objects[@]}" >"$DIR/coverage.lcov"
    python3 - "$DIR/coverage.lcov" "$PWD" "${1:-}" "${2:-}" "${PARTS[@]}" <<'PYTHON'
import re, sys
report, root, what, text, *parts = sys.argv[1:]

def tests_begin(path):
    """The line at which a file's own tests begin: they are its end."""
    lines = open(path).read().split("\n")
    for number, line in enumerate(lines, 1):
        if line == "#[cfg(test)]" and lines[number].startswith(("mod ", "pub mod ", "pub(crate) mod ")) and lines[number].endswith("{"):
            return number
    return len(lines) + 1

def excluded(path):
    """Lines that say of themselves that nothing brings them about."""
    return {number for number, line in enumerate(open(path), 1) if "LCOV_EXCL_LINE: " in line}

found, path = {}, None
for line in open(report):
    kind, _, rest = line.rstrip("\n").partition(":")
    if kind == "SF":
        path = rest.removeprefix(root + "/")
        ours = path.startswith(("dataplane/", "control/src/")) and not re.search(r"/tests(/|\.rs)|/examples/|/build\.rs", path)
        end = tests_begin(rest) if ours else 0
        never = excluded(rest) if ours else set()
        counts = found.setdefault(path, {}) if ours else {}
    elif kind == "DA":
        number, count = (int(field) for field in rest.split(",")[:2])
        if number < end and number not in never:
            counts[number] = max(count, counts.get(number, 0))

def percent(files):
    covered = sum(count > 0 for counts in files for count in counts.values())
    all = sum(len(counts) for counts in files)
    return f"{100 * covered / max(all, 1):5.1f} %  {covered:6} of {all:6} lines"

def ranges(numbers):
    runs = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)

for part in parts:
    name, pattern = part.split("|", 1)
    print(f"{name:16}", percent([counts for path, counts in found.items() if re.search(pattern, path)]))
if what == "--files":
    share = lambda entry: sum(count > 0 for count in entry[1].values()) / max(len(entry[1]), 1)
    for path, counts in sorted(found.items(), key=share):
        print(percent([counts]), path)
if what == "--lines":
    for path, counts in sorted(found.items()):
        missed = [number for number, count in counts.items() if count == 0]
        if text in path and missed:
            print(f"{path}: {ranges(missed)}")
PYTHON
}

main "$@"
