#!/usr/bin/env bash
# Runs one fuzz target, bounded in runs and time: fuzz/run.sh TARGET [RUNS]     (default 10,000,000 runs)
#
# FUZZ_SECONDS=600      longest time; default 3600
# FUZZ_MERGE=1          replaces fuzz/work/TARGET by its smallest part with the same coverage, and ends
# FUZZ_SANITIZER=none   or `address`, which needs a nightly toolchain; default none: the bodies reach safe code only
#
# Starts from fuzz/corpus/TARGET, which the ordinary tests replay. What the engine finds on top goes to fuzz/work/TARGET, a
# failing input to fuzz/artifacts/TARGET; copy it to fuzz/corpus/TARGET with the mend.
set -euo pipefail
cd "$(dirname "$0")"

target=${1:?usage: fuzz/run.sh TARGET [RUNS]; targets: $(ls targets | sed 's/\.rs$//' | tr '\n' ' ')}
runs=${2:-10000000}
sanitizer=${FUZZ_SANITIZER:-none}

if ! cargo fuzz --version >/dev/null 2>&1; then
    cargo install --locked cargo-fuzz
fi
if ! rustup run nightly rustc --version >/dev/null 2>&1; then
    rustup toolchain install nightly --profile minimal || true
fi
if rustup run nightly rustc --version >/dev/null 2>&1; then
    export RUSTUP_TOOLCHAIN=nightly
elif [ "$sanitizer" = none ]; then
    # The coverage flags of the engine are unstable, and the stable compiler takes them this way.
    export RUSTC_BOOTSTRAP=1
else
    echo "fuzz: the sanitizer \`$sanitizer\` needs a nightly toolchain, and none can be installed" >&2
    exit 1
fi
echo "fuzz: target $target, at most $runs runs and ${FUZZ_SECONDS:-3600} s, sanitizer $sanitizer, $(rustc --version)"

# The engine needs the crates of this target only.
case $target in
    shard | snapshot | router | admin) features=gateway ;;
    sdk_* | dispatch_answer) features=sdk ;;
    http_* | tls_* | websocket | proxy_v2 | upgrade_head) features=net ;;
    link_host | backend_*) features=backend ;;
    *) features= ;;
esac

# A script of 512 bytes has some 150 steps. What fails in a longer one fails in a shorter one, and the engine tries more of those.
case $target in
    shard | router | sdk_core | link_host | tls_records) length=512 ;;
    message | backend_files) length=1024 ;;
    *) length=4096 ;;
esac

# Bodies that need files have them in memory.
if [ -d /dev/shm ] && [ -w /dev/shm ]; then
    TMPDIR=$(mktemp -d /dev/shm/moorline-fuzz.XXXXXX)
    export TMPDIR
    trap 'rm -rf "$TMPDIR"' EXIT
fi
export RUSTC_WRAPPER=$PWD/rustc.sh

mkdir -p "work/$target" "corpus/$target"
fuzz() {
    cargo fuzz run --fuzz-dir . --sanitizer "$sanitizer" --strip-dead-code --features "$features" "$target" "$@"
}
if [ "${FUZZ_MERGE:-0}" = 1 ]; then
    rm -rf "work/$target.new"
    mkdir "work/$target.new"
    fuzz "work/$target.new" "work/$target" -- -merge=1 -max_len="$length"
    rm -rf "work/$target"
    mv "work/$target.new" "work/$target"
    exit
fi
fuzz "work/$target" "corpus/$target" -- \
    -runs="$runs" -max_total_time="${FUZZ_SECONDS:-3600}" -max_len="$length" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1
