#!/usr/bin/env bash
# Compiler of the fuzz targets (RUSTC_WRAPPER): only the crates of this workspace, and prost, which reads its messages, are
# compiled with coverage. The engine looks at every counter after each input, so counters of other crates cost more than the
# input itself: with all dependencies the gateway has 20 times as many.
rustc=$1
shift
case ${CARGO_PKG_NAME:-} in
    moorline-demo) ;;
    moorline* | prost) exec "$rustc" "$@" ;;
esac
arguments=()
for argument in "$@"; do
    case $argument in
        -Cpasses=sancov-module | -Cllvm-args=-sanitizer-coverage-*) ;;
        *) arguments+=("$argument") ;;
    esac
done
exec "$rustc" "${arguments[@]}"
