# Sourced by scripts that count what code runs: LLVM's tools of rustc's own version, for one of another cannot read what this rustc writes.
# They come with rustup's llvm-tools, or as Debian's llvm-NN (https://apt.llvm.org).

# llvm profdata: where that tool is.
llvm() {
    local major host tool
    major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    host=$(rustc -vV | sed -n 's/^host: //p')
    for tool in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-$1" "llvm-$1-$major"; do
        command -v "$tool" && return
    done
    echo "llvm-$1 of LLVM $major is not installed; install with: rustup component add llvm-tools, or apt-get install llvm-$major" >&2
    return 1
}
