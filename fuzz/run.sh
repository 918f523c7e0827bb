#!/usr/bin/env bash
# Fuzzes every target in turn with libFuzzer, on any toolchain: what cargo-fuzz passes to rustc, passed by hand, without a sanitizer (there is no unsafe
# code outside dataplane/src/io, which no target reaches). What fails is kept in fuzz/artifacts and told; the run ends with one line: ok or FAILED.
#
#   fuzz/run.sh [SECONDS] [TARGET…]      60 seconds for each target, all of them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly SECONDS_EACH=${1:-60}
shift || true
readonly ALL=(frames connection_strings sas_tokens files sessions datagrams)
readonly TARGETS=("${@:-${ALL[@]}}")
readonly HOST=$(rustc -vV | sed -n 's/^host: //p')

# The passes are there in every toolchain; only their names are not stable.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"

main() {
    trap 'status=$?; [ "$status" -eq 0 ] || echo "fuzz/run.sh: FAILED"' EXIT
    # --target keeps the instruments out of build scripts and macros.
    cargo build --quiet --release --target "$HOST" --bins
    local target
    for target in "${TARGETS[@]}"; do
        fuzz "$target"
    done
    echo "fuzz/run.sh: ok"
}

fuzz() {
    local target=$1 found="corpus-found/$1"
    mkdir -p "$found" "artifacts/$target"
    echo "==== $target, $SECONDS_EACH s"
    "${CARGO_TARGET_DIR:-target}/$HOST/release/$target" "$found" "corpus/$target" -max_total_time="$SECONDS_EACH" -max_len=4096 \
        -artifact_prefix="artifacts/$target/" -print_final_stats=1 -timeout=10 -rss_limit_mb=2048 2>&1 | tail -n 12
}

main
