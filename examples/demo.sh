#!/bin/sh
# The whole loop on real models; every file lands in the folder given (demo/ for `make demo`).
set -eu
out="${1:-demo}"
mkdir -p "$out"
say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

echo "== Llama-3.1-8B, captured without weights or GPU =="
say foretrace capture Llama-3.1-8B --phase prefill --seq 2048 -o "$out/prefill.graph"
say foretrace capture Llama-3.1-8B --phase decode --context 2048 -o "$out/decode.graph"
say foretrace inspect "$out/prefill.graph"

echo "== its steps on one H100, and on a chip that does not exist =="
say foretrace replay "$out/prefill.graph" --on h100-sxm
say foretrace replay "$out/decode.graph" --on h100-sxm --batch 16 --trace "$out/decode-h100.pftrace"
say foretrace hardware check examples/double-bandwidth.yaml
say foretrace replay "$out/prefill.graph" --on examples/double-bandwidth.yaml
say foretrace replay "$out/decode.graph" --on examples/double-bandwidth.yaml --batch 16

echo "== GPT-2 run for real on this machine's CPU, predicted for it, and the two held together =="
say foretrace measure gpt2 --device cpu --batch 1 --seq 128 -o "$out/gpt2-measured.trace"
say foretrace replay gpt2 --on this-machine --batch 1 --seq 128 --trace "$out/gpt2-predicted.pftrace"
say foretrace diff "$out/gpt2-predicted.pftrace" "$out/gpt2-measured.trace" --top 6 \
  --html "$out/gpt2-diff.html" --trace "$out/gpt2-both.pftrace"

echo
echo "Open $out/gpt2-diff.html in a browser, $out/decode-h100.pftrace and $out/gpt2-both.pftrace in https://ui.perfetto.dev"
