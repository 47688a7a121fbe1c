#!/usr/bin/env bash
# Compiler of the fuzz targets (RUSTC_WRAPPER): only the crates of this workspace, and prost, which reads its messages, are
# compiled with coverage. The engine looks at every counter after each input, so counters of other crates cost more than the
# input itself.
#
# Crates of state machines do not report what they compare. Reports help to find magic bytes in decoders; a script has none, and
# they take half of its time.
rustc=$1
shift
case ${CARGO_PKG_NAME:-} in
    moorline | moorline-sdk | moorline-backend) unwanted=-Cllvm-args=-sanitizer-coverage-trace-compares ;;
    moorline-demo) unwanted=-C*san*cov* ;;
    moorline-* | prost) unwanted= ;;
    *) unwanted=-C*san*cov* ;;
esac
arguments=()
for argument in "$@"; do
    # shellcheck disable=SC2254 # a pattern
    case $argument in
        $unwanted) ;;
        *) arguments+=("$argument") ;;
    esac
done
exec "$rustc" "${arguments[@]}"
